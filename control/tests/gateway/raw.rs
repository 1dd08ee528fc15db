//! A client made by hand: frames of a client that no kernel has, so that headers can be what no kernel would send.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header, SlicedPacket,
    TcpHeader, TransportSlice,
};
use weir_control::demo::stage::Family;
use weir_sys::packet::PacketSocket;

use crate::weir::PATIENCE;
use crate::world::World;

const CLIENT0: [u8; 6] = [0x02, 0x77, 0, 0, 0, 1];
const LAN0: [u8; 6] = [0x02, 0x77, 0, 0, 0, 2];
/// A queue that is full loses frames like any link.
fn no_room(error: std::io::Error) -> std::io::Result<()> {
    if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) { Ok(()) } else { Err(error) }
}

/// Next headers of IPv6 (RFC 8200).
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION: u8 = 60;
const TCP: u8 = 6;

/// A TCP client at the client's link.
#[derive(Debug)]
pub struct RawClient {
    socket: PacketSocket,
    pub local: SocketAddr,
    pub server: SocketAddr,
    /// SND.NXT.
    pub next: u32,
    /// RCV.NXT.
    pub expected: u32,
    identification: u16,
}

impl RawClient {
    /// Takes an address that nobody has and makes it known to the gateway. Nothing is sent yet.
    pub fn new(world: &World<'_>, family: Family, port: u16, server: u16) -> Self {
        let address: IpAddr = match family {
            Family::V4 => "10.77.1.66".parse().expect("an address"),
            Family::V6 => "fd77:1::66".parse().expect("an address"),
        };
        let known = format!("ip neigh replace {address} lladdr 02:77:00:00:00:01 dev lan0 nud permanent");
        world.sh(&world.lab.gateway, &known);
        let socket = world.lab.client.run(|| PacketSocket::open("client0")).expect("a packet socket");
        let (local, server) = (SocketAddr::new(address, port), family.origin(server));
        Self { socket, local, server, next: 0x1000_0000 + u32::from(port), expected: 0, identification: 1 }
    }

    /// Opens the connection.
    #[track_caller]
    pub fn connect(&mut self) {
        self.send_syn();
        self.expect_syn_ack();
        self.send_segment(self.next, b"", |_| {});
    }

    /// Sends a SYN.
    pub fn send_syn(&mut self) {
        self.send_segment(self.next, b"", |tcp| {
            tcp.syn = true;
            tcp.ack = false;
        });
        self.next = self.next.wrapping_add(1);
    }

    /// Waits for the answer to it.
    #[track_caller]
    pub fn expect_syn_ack(&mut self) {
        let answer = self.receive(PATIENCE, |tcp| tcp.syn && tcp.ack).expect("a SYN-ACK");
        self.expected = answer.sequence_number.wrapping_add(1);
    }

    /// A segment with its checksum right, without Ethernet and IP headers. `edit` may change the header first.
    pub fn segment(&self, sequence: u32, payload: &[u8], edit: impl FnOnce(&mut TcpHeader)) -> Vec<u8> {
        let mut tcp = TcpHeader::new(self.local.port(), self.server.port(), sequence, 64_000);
        tcp.ack = true;
        tcp.acknowledgment_number = self.expected;
        edit(&mut tcp);
        tcp.checksum = match (self.local.ip(), self.server.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                tcp.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                tcp.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)
            }
            _ => unreachable!("one family"),
        }
        .expect("a segment is short");
        [tcp.to_bytes().as_slice(), payload].concat()
    }

    /// Sends one plain segment.
    pub fn send_segment(&mut self, sequence: u32, payload: &[u8], edit: impl FnOnce(&mut TcpHeader)) {
        let segment = self.segment(sequence, payload, edit);
        self.send_ip(&segment, &[], TCP);
    }

    /// Sends one IP packet: after the header `between` (options of IPv4, extension headers of IPv6, of which the first
    /// is of the kind `next`), then `rest`.
    pub fn send_ip(&mut self, rest: &[u8], between: &[u8], next: u8) {
        let packet = match (self.local.ip(), self.server.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut ip =
                    Ipv4Header::new(rest.len() as u16, 64, IpNumber(TCP), from.octets(), to.octets())
                        .expect("short");
                ip.options = Ipv4Options::try_from(between).expect("whole words");
                ip.set_payload_len(rest.len()).expect("short");
                ip.identification = self.identification;
                ip.header_checksum = ip.calc_header_checksum();
                [ip.to_bytes().as_slice(), rest].concat()
            }
            (from, to) => {
                [&self.ipv6_header(from, to, between.len() + rest.len(), next), between, rest].concat()
            }
        };
        self.identification += 1;
        self.send_packet(&packet);
    }

    /// Sends a segment in fragments: each of the given bytes of it, the last with more to come false.
    pub fn send_fragments(&mut self, segment: &[u8], pieces: &[std::ops::Range<usize>]) {
        let last = segment.len();
        for piece in pieces {
            let (data, more) = (&segment[piece.clone()], piece.end < last);
            self.send_fragment(data, piece.start, more);
        }
        self.identification += 1;
    }

    /// Sends one fragment of the datagram under way.
    pub fn send_fragment(&mut self, data: &[u8], offset: usize, more: bool) {
        let packet = match (self.local.ip(), self.server.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut ip =
                    Ipv4Header::new(data.len() as u16, 64, IpNumber(TCP), from.octets(), to.octets())
                        .expect("short");
                ip.identification = self.identification;
                ip.dont_fragment = false;
                ip.more_fragments = more;
                ip.fragment_offset = ((offset / 8) as u16).try_into().expect("13 bits");
                ip.header_checksum = ip.calc_header_checksum();
                [ip.to_bytes().as_slice(), data].concat()
            }
            (from, to) => {
                let header = fragment_header(TCP, offset, more, self.identification);
                [&self.ipv6_header(from, to, 8 + data.len(), FRAGMENT), &header[..], data].concat()
            }
        };
        self.send_packet(&packet);
    }

    fn ipv6_header(&self, from: IpAddr, to: IpAddr, length: usize, next: u8) -> Vec<u8> {
        let (IpAddr::V6(from), IpAddr::V6(to)) = (from, to) else { unreachable!("one family") };
        let header = Ipv6Header {
            traffic_class: 0,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: length as u16,
            next_header: IpNumber(next),
            hop_limit: 64,
            source: from.octets(),
            destination: to.octets(),
        };
        header.to_bytes().to_vec()
    }

    fn send_packet(&self, packet: &[u8]) {
        let ether_type = if self.local.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let ethernet = Ethernet2Header { source: CLIENT0, destination: LAN0, ether_type };
        self.socket
            .send(&[ethernet.to_bytes().as_slice(), packet].concat())
            .or_else(no_room)
            .expect("the link is up");
    }

    /// The next segment of the server's that `wanted` takes, if one comes within `patience`.
    pub fn receive(&self, patience: Duration, wanted: impl Fn(&TcpHeader) -> bool) -> Option<TcpHeader> {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let length = self.socket.recv(&mut buffer, left).expect("the link is up")?;
            let Ok(packet) = SlicedPacket::from_ethernet(&buffer[..length]) else { continue };
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else { continue };
            let header = tcp.to_header();
            let ports = (header.source_port, header.destination_port);
            if ports == (self.server.port(), self.local.port()) && wanted(&header) {
                return Some(header);
            }
        }
    }
}

/// The fragment header of RFC 8200, section 4.5.
pub fn fragment_header(next: u8, offset: usize, more: bool, identification: u16) -> [u8; 8] {
    let [high, low] = ((offset as u16) | u16::from(more)).to_be_bytes();
    let [id_high, id_low] = identification.to_be_bytes();
    [next, 0, high, low, 0, 0, id_high, id_low]
}

/// An extension header of `units` times eight bytes, filled with one option that a receiver skips when it does not know
/// it: 0x1e, for experiments (RFC 4727). Linux takes no PadN of this length.
pub fn padded(next: u8, units: u8) -> Vec<u8> {
    let length = usize::from(units) * 8;
    let mut header = vec![0; length];
    header[..4].copy_from_slice(&[next, units - 1, 0x1e, (length - 4) as u8]);
    header
}
