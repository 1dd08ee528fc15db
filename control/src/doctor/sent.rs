//! Both directions of connections that nobody has, sent to the ports by other devices of this host, where frames of these arrive
//! there: ports that are cabled with each other, and virtual devices whose other end is here. Which queue a frame came to, the AF_XDP
//! socket there says.
//!
//! Only these frames are taken from the kernel, for as long as that lasts: by addresses that are set aside for benchmarks (RFC 2544,
//! RFC 5180) together with TCP ports that nobody serves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weir_core::flow::key::Tuple;
use weir_core::frame::{Frame as _, HeapFrame};
use weir_core::tcp::flags::TcpFlags;
use weir_core::tcp::seq::Seq;
use weir_core::wire::build::{self, Segment, SegmentOptions};
use weir_core::wire::edit;
use weir_sys::clock;
use weir_sys::packet::PacketSocket;
use weir_sys::steering::{InterceptTable, Steering, SteeringError};
use weir_sys::xsk::Queue;

use super::ground::Ground;
use crate::host::LinkInfo;

/// Connections of each family.
const SAMPLE: u16 = 64;
/// The discard port, and the first of the clients'.
const SERVER: u16 = 9;
const CLIENTS: u16 = 61_000;
/// How long a frame may take to arrive where nobody knows whether any does, and where others have.
const TRIAL: Duration = Duration::from_millis(200);
const WAIT: Duration = Duration::from_secs(3);
/// Between two looks.
const PAUSE: Duration = Duration::from_micros(20);
/// Longer than one connection takes: the sign of life is renewed for each.
const ALIVE: u64 = 60_000_000_000;
/// Room for one frame.
const LONGEST: usize = 128;
/// The shortest frame of Ethernet, without its check sequence: NICs send no shorter one.
const SHORTEST: usize = 60;

/// A port with the program on it, and a socket on each of its queues.
#[derive(Debug)]
pub struct Open<'a> {
    pub link: &'a LinkInfo,
    pub queues: Vec<Queue>,
}

/// What became of the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub connections: u32,
    /// Those of which the directions came to queues of different numbers.
    pub unlike: u32,
}

/// Sends them, each by every way through two ports.
///
/// # Errors
/// A sentence: why nothing can be seen.
pub fn play(ground: &Ground<'_>, steering: &mut Steering, ports: &mut [Open<'_>]) -> Result<Seen, String> {
    prepare(steering, ports).map_err(|error| error.to_string())?;
    let mut senders = Vec::new();
    for at in 0..ports.len() {
        senders.push(sender_to(ground, ports, at)?);
    }
    let (mut connections, mut unlike) = (0, 0);
    for (number, v6) in (0..SAMPLE).flat_map(|number| [(number, false), (number, true)]) {
        let mut came = Vec::new();
        steering.heartbeat(clock::monotonic_ns()).map_err(|error| error.to_string())?;
        for (port, sender) in ports.iter_mut().zip(&senders) {
            let mut queue = |back| {
                let lost = || format!("a frame from {} to {} was lost", sender.device, port.link.name);
                sender.deliver(port, Probe { number, v6, back }, WAIT).ok_or_else(lost)
            };
            came.push([queue(false)?, queue(true)?]);
        }
        let ways = (0..came.len()).flat_map(|a| (0..came.len()).map(move |b| (a, b)));
        for (client_side, server_side) in ways.filter(|(a, b)| a != b) {
            connections += 1;
            unlike += u32::from(came[client_side][0] != came[server_side][1]);
        }
    }
    Ok(Seen { connections, unlike })
}

/// Has the program give these connections' frames, and nothing else, to the sockets.
fn prepare(steering: &mut Steering, ports: &[Open<'_>]) -> Result<(), SteeringError> {
    let mut table = InterceptTable::default();
    let numbers = (0..ports.len()).filter_map(|at| u32::try_from(at).ok());
    let to = [Ipv4Net::new(v4(0), 15).map(IpNet::V4), Ipv6Net::new(v6(0), 48).map(IpNet::V6)];
    let tcp = [(SERVER, SERVER), (CLIENTS, CLIENTS + SAMPLE)];
    table.add(0, to.into_iter().flatten().map(|net| net.trunc()), tcp, numbers.clone(), false);
    steering.set_intercepts(&table)?;
    for (number, port) in numbers.zip(ports) {
        steering.set_port(port.link.ifindex, number)?;
        for queue in &port.queues {
            steering.set_socket(number, queue.queue(), queue.fd())?;
        }
    }
    steering.set_limits(ALIVE, false)?;
    steering.heartbeat(clock::monotonic_ns())
}

/// The device whose frames arrive at a port. What is only on top of the port (VLANs and the like) sends by it, and not to it.
fn sender_to(ground: &Ground<'_>, ports: &mut [Open<'_>], at: usize) -> Result<Sender, String> {
    let (name, index) = (ports[at].link.name.clone(), ports[at].link.ifindex);
    let others: Vec<u32> =
        ports.iter().map(|port| port.link.ifindex).filter(|other| *other != index).collect();
    let lower = ports[at].link.lower;
    let may = |link: &&LinkInfo| {
        let is_other_end = link.lower == Some(index) && lower == Some(link.ifindex);
        link.up && (is_other_end || others.contains(&link.ifindex))
    };
    for link in ground.links.iter().filter(may) {
        let Ok(socket) = PacketSocket::open(&link.name) else { continue };
        let macs = [ports[at].link.mac, link.mac].map(Option::unwrap_or_default);
        let sender = Sender { device: link.name.clone(), socket, macs };
        if sender.deliver(&mut ports[at], Probe { number: 0, v6: false, back: false }, TRIAL).is_some() {
            return Ok(sender);
        }
    }
    Err(format!("no frame that this host sends arrives at {name}"))
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    number: u16,
    v6: bool,
    back: bool,
}

/// A device whose frames arrive at a port.
struct Sender {
    device: String,
    socket: PacketSocket,
    /// Of the port, and of the device.
    macs: [[u8; 6]; 2],
}

impl Sender {
    /// Sends a frame; the queue that it came to, if it did in time.
    fn deliver(&self, port: &mut Open<'_>, probe: Probe, wait: Duration) -> Option<u32> {
        let frame = probe.frame(&self.macs)?;
        self.socket.send(&frame).ok()?;
        let deadline = Instant::now() + wait;
        let mut came = Vec::new();
        loop {
            for queue in &mut port.queues {
                queue.recv(&mut came, 8);
                let is_it = came.iter().any(|of| of.data() == frame);
                queue.fill(&mut came);
                if is_it {
                    return Some(queue.queue());
                }
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Probe {
    fn frame(self, macs: &[[u8; 6]; 2]) -> Option<Vec<u8>> {
        let address =
            |side| if self.v6 { v6(side + self.number).into() } else { v4(side + self.number).into() };
        let end = |address: IpAddr, port| SocketAddr::new(address, port).into();
        // Clients in the lower half of the addresses, servers in the upper one.
        let (client, server) = (end(address(0), CLIENTS + self.number), end(address(1 << 15), SERVER));
        let tuple =
            if self.back { Tuple { src: server, dst: client } } else { Tuple { src: client, dst: server } };
        let (seq, ack, flags) = (Seq(self.number.into()), Seq(1), TcpFlags(TcpFlags::ACK));
        let segment = Segment { tuple, flags, seq, ack, window: 500, options: SegmentOptions::default() };
        let mut frame = HeapFrame::new(LONGEST);
        build::segment(&mut frame, &segment, &[])?;
        edit::set_macs(frame.data_mut(), macs);
        let mut frame = frame.data().to_vec();
        frame.resize(frame.len().max(SHORTEST), 0);
        Some(frame)
    }
}

/// An address of 198.18.0.0/15.
fn v4(host: u16) -> Ipv4Addr {
    let [high, low] = host.to_be_bytes();
    Ipv4Addr::new(198, 18 + (high >> 7), high & 0x7f, low)
}

/// An address of 2001:2::/48.
fn v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 2, 0, host >> 15, 0, 0, 0, host & 0x7fff)
}

#[cfg(test)]
mod tests {
    use weir_core::parse::{Parsed, parse};

    use super::*;

    fn frame_of(number: u16, v6: bool, back: bool) -> Vec<u8> {
        Probe { number, v6, back }.frame(&[[2; 6], [4; 6]]).unwrap()
    }

    #[test]
    fn both_directions_of_a_probe_have_each_others_ends_and_whole_checksums() {
        for (number, v6) in (0..SAMPLE).flat_map(|number| [(number, false), (number, true)]) {
            let read = |back| {
                let frame = frame_of(number, v6, back);
                match parse(&frame) {
                    Ok(Parsed::Tcp(meta)) => (meta, frame[..12].to_vec()),
                    other => panic!("{other:?}"),
                }
            };
            let ((there, macs), (back, _)) = (read(false), read(true));
            assert_eq!((there.tuple, there.v6), (back.tuple.reversed(), v6));
            assert!(
                frame_of(number, v6, false).len() >= SHORTEST,
                "a NIC would add to it, and nobody would know it again"
            );
            assert_eq!(macs, [[2; 6], [4; 6]].concat());
            assert_ne!(there.tuple.src.addr, there.tuple.dst.addr);
        }
    }
}
