//! What is sent in a rehearsal: the packets that weir hands to the kernel, and those that ports hand to its relay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::PacketBuilder;
use ipnet::IpNet;

use super::{FORWARD, INPUT};
use crate::doctor::ground::Ground;
use crate::host::{PUNT_TUN, RELAY_TUN};

/// The client's port in the first case; each has its own.
const CLIENT_PORT: u16 = 40_077;
/// Sequence numbers begin here.
const FIRST: u32 = 1_000_000;

/// One packet, and where it must come out.
#[derive(Clone, Debug)]
pub struct Case {
    pub id: &'static str,
    pub client: IpAddr,
    /// The device that leads to the client, and the one that leads to everybody else.
    pub from: String,
    pub far: String,
    pub into: String,
    pub out_of: String,
    pub packet: Vec<u8>,
    /// Its sequence number, by which it is known when it comes out; no other case has it.
    pub number: u32,
    /// It does not come out itself, but a listener's answer to it.
    pub is_answered: bool,
    /// For people.
    pub words: String,
}

/// For each family, of the first intercept that takes it: a new connection and one under way that come in by weir's TUN
/// device, answers that do, and connections for the relay that come in by the port, and by weir's other device.
pub fn cases(ground: &Ground<'_>) -> Vec<Case> {
    let mut cases = Vec::new();
    for (v4, name) in [(true, "IPv4"), (false, "IPv6")] {
        let Some((lan, wan, client, server, port)) = ends(ground, v4) else { continue };
        let server = SocketAddr::new(server, port);
        let mut number = CLIENT_PORT;
        let mut case = |id, packet: Packet, into: &str, words: &str| {
            number += 1;
            let client = SocketAddr::new(client, number);
            let (source, to) = if packet == Packet::Answer { (server, client) } else { (client, server) };
            let sequence = FIRST + 2 * u32::from(number) + u32::from(v4);
            cases.push(Case {
                id,
                client: client.ip(),
                from: lan.clone(),
                far: wan.clone(),
                into: into.to_owned(),
                out_of: if packet.comes_back() { lan.clone() } else { wan.clone() },
                packet: build(source, to, packet, sequence),
                number: sequence,
                is_answered: packet == Packet::ForRelay,
                words: format!("{name}: {words}"),
            });
        };
        if ground.fast {
            case(FORWARD, Packet::Syn, PUNT_TUN, "new connections that weir hands to the kernel");
            case(FORWARD, Packet::Data, PUNT_TUN, "connections under way that weir hands to the kernel");
            case(FORWARD, Packet::Answer, PUNT_TUN, "servers' answers that weir hands to the kernel");
        }
        case(INPUT, Packet::ForRelay, &lan, "new connections for the relay");
        if ground.fast {
            case(INPUT, Packet::ForRelay, RELAY_TUN, "new connections that weir hands to the relay");
        }
    }
    cases
}

/// The first packet of a connection that a client opens. `from` and `far`: the devices that lead to the client and to everybody
/// else; `into`: the one that it comes in by. It is forwarded, or answered by somebody who listens here.
pub fn first(
    (client, server): (SocketAddr, SocketAddr),
    (from, far): (&str, &str),
    into: &str,
    is_answered: bool,
) -> Case {
    let out_of = if is_answered { from } else { far }.to_owned();
    Case {
        id: if is_answered { INPUT } else { FORWARD },
        client: client.ip(),
        from: from.to_owned(),
        far: far.to_owned(),
        into: into.to_owned(),
        out_of,
        packet: build(client, server, Packet::Syn, FIRST),
        number: FIRST,
        is_answered,
        words: format!("{client} -> {server}"),
    }
}

/// A client behind a port of an intercept, and a destination of it behind another port.
fn ends(ground: &Ground<'_>, v4: bool) -> Option<(String, String, IpAddr, IpAddr, u16)> {
    let of_family = |net: &&IpNet| net.addr().is_ipv4() == v4;
    ground.spec.intercepts.iter().find_map(|intercept| {
        let lan = intercept.from.iter().find(|device| ground.link(device).is_some())?;
        let wan = ground.ports().map(|(port, _)| &port.device).find(|device| *device != lan).unwrap_or(lan);
        let to = intercept.to.iter().find(of_family)?;
        let (port, _) = intercept.ports.first()?;
        let client = client(ground, lan, v4);
        let own = |address: &IpAddr| ground.own.iter().any(|(own, ..)| own == address) || *address == client;
        let server = candidates(to).into_iter().find(|address| !own(address))?;
        Some((lan.clone(), wan.clone(), client, server, *port))
    })
}

/// A neighbour on the port's own network, or any address where it has none.
fn client(ground: &Ground<'_>, device: &str, v4: bool) -> IpAddr {
    let index = ground.link(device).map(|link| link.ifindex);
    let on_port = ground.own.iter().filter(|(address, at, _)| Some(*at) == index && address.is_ipv4() == v4);
    let global =
        on_port.filter(|(address, ..)| !matches!(address, IpAddr::V6(a) if a.is_unicast_link_local()));
    let neighbours = global.filter_map(|(address, _, length)| IpNet::new(*address, *length).ok());
    let own = |address: &IpAddr| ground.own.iter().any(|(own, ..)| own == address);
    neighbours
        .flat_map(|net| candidates(&net.trunc()).into_iter().filter(move |address| net.contains(address)))
        .find(|address| !own(address))
        .unwrap_or(if v4 {
            Ipv4Addr::new(10, 77, 77, 77).into()
        } else {
            Ipv6Addr::new(0xfd77, 0x77, 0, 0, 0, 0, 0, 0x77).into()
        })
}

/// Addresses of a prefix that could be somebody's.
fn candidates(net: &IpNet) -> Vec<IpAddr> {
    match (net, net.prefix_len()) {
        (IpNet::V4(_), 0) => {
            vec![Ipv4Addr::new(198, 51, 100, 80).into(), Ipv4Addr::new(203, 0, 113, 80).into()]
        }
        (IpNet::V6(_), 0) => vec![Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x80).into()],
        (net, length) if length == net.max_prefix_len() => vec![net.addr()],
        (IpNet::V4(net), _) => net.hosts().take(8).map(IpAddr::V4).collect(),
        (IpNet::V6(net), _) => net.hosts().skip(1).take(8).map(IpAddr::V6).collect(),
    }
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packet {
    /// The client's first.
    Syn,
    /// The client's, of a connection that nobody has seen begin.
    Data,
    /// The server's, of such a connection.
    Answer,
    /// The client's first, which the relay answers.
    ForRelay,
}

impl Packet {
    /// Whether what comes out goes to the client.
    const fn comes_back(self) -> bool {
        matches!(self, Self::Answer | Self::ForRelay)
    }
}

fn build(from: SocketAddr, to: SocketAddr, packet: Packet, number: u32) -> Vec<u8> {
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => return Vec::new(),
    };
    let builder = builder.tcp(from.port(), to.port(), number, 64_000);
    let (builder, payload) = match packet {
        Packet::Syn | Packet::ForRelay => (builder.syn(), &b""[..]),
        Packet::Data | Packet::Answer => (builder.ack(2_000_000), &b"over the top"[..]),
    };
    let mut octets = Vec::with_capacity(builder.size(payload.len()));
    // A Vec takes whatever is written.
    let _ = builder.write(&mut octets, payload);
    octets
}
