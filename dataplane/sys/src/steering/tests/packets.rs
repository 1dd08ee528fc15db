//! Packets for the table.

use std::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, TcpHeader};

use super::endpoint;

pub const ETH: usize = 14;

/// Client and server of a family, and the rest of the bench's addresses.
#[derive(Clone, Copy)]
pub struct Family {
    pub name: &'static str,
    pub client: &'static str,
    /// Of `web`.
    pub server: &'static str,
    /// In the prefix of `mail`, and so of both.
    pub mail_server: &'static str,
    /// Of no intercept.
    pub elsewhere: &'static str,
    pub own: &'static str,
}

pub const FAMILIES: [Family; 2] = [
    Family {
        name: "IPv4",
        client: "10.1.0.2",
        server: "192.0.2.10",
        mail_server: "192.0.2.200",
        elsewhere: "198.51.100.1",
        own: "192.0.2.1",
    },
    Family {
        name: "IPv6",
        client: "fd00::2",
        server: "2001:db8::10",
        mail_server: "2001:db8:25::1",
        elsewhere: "2001:db9::1",
        own: "2001:db8::1",
    },
];

impl Family {
    pub fn is_v6(&self) -> bool {
        self.name == "IPv6"
    }

    /// The endpoint of one of the addresses above.
    pub fn at(&self, address: &str, port: u16) -> SocketAddr {
        if self.is_v6() {
            endpoint(&format!("[{address}]:{port}"))
        } else {
            endpoint(&format!("{address}:{port}"))
        }
    }

    /// A TCP packet between two of the addresses.
    pub fn tcp(&self, from: (&str, u16), to: (&str, u16), flags: Flags) -> Vec<u8> {
        tcp(self.at(from.0, from.1), self.at(to.0, to.1), flags)
    }

    /// Client to server.
    pub fn out(&self, server: &str, port: u16, flags: Flags) -> Vec<u8> {
        self.tcp((self.client, 40_000), (server, port), flags)
    }

    /// Server to client.
    pub fn back(&self, server: &str, port: u16, flags: Flags) -> Vec<u8> {
        self.tcp((server, port), (self.client, 40_000), flags)
    }
}

/// TCP flags of a packet.
#[derive(Clone, Copy)]
pub enum Flags {
    Syn,
    SynAck,
    Data,
    Fin,
    Rst,
}

/// A TCP packet in an Ethernet frame.
pub fn tcp(from: SocketAddr, to: SocketAddr, flags: Flags) -> Vec<u8> {
    let mut header = TcpHeader::new(from.port(), to.port(), 1000, 4096);
    header.syn = matches!(flags, Flags::Syn | Flags::SynAck);
    header.ack = !matches!(flags, Flags::Syn | Flags::Rst);
    header.fin = matches!(flags, Flags::Fin);
    header.rst = matches!(flags, Flags::Rst);
    let mut segment = Vec::new();
    header.write(&mut segment).unwrap();
    if matches!(flags, Flags::Data) {
        segment.extend(b"GET / HTTP/1.1\r\n");
    }
    ip(from.ip(), to.ip(), IpNumber::TCP, &segment)
}

/// A UDP packet.
pub fn udp(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut datagram = Vec::new();
    etherparse::UdpHeader { source_port: from.port(), destination_port: to.port(), length: 12, checksum: 0 }
        .write(&mut datagram)
        .unwrap();
    datagram.extend([0; 4]);
    ip(from.ip(), to.ip(), IpNumber::UDP, &datagram)
}

/// An IP packet with any payload.
pub fn ip(from: IpAddr, to: IpAddr, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            ethernet(&mut frame, EtherType::IPV4);
            let len = payload.len() as u16;
            Ipv4Header::new(len, 64, protocol, from.octets(), to.octets())
                .unwrap()
                .write(&mut frame)
                .unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            ethernet(&mut frame, EtherType::IPV6);
            let header = Ipv6Header {
                payload_length: payload.len() as u16,
                next_header: protocol,
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            header.write(&mut frame).unwrap();
        }
        mixed => panic!("{mixed:?}"),
    }
    frame.extend(payload);
    frame
}

/// A frame of another protocol.
pub fn other(ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    ethernet(&mut frame, EtherType(ethertype));
    frame.extend([0; 46]);
    frame
}

fn ethernet(frame: &mut Vec<u8>, ether_type: EtherType) {
    let header = Ethernet2Header { destination: [2; 6], source: [4; 6], ether_type };
    header.write(frame).unwrap();
}

/// The frame with a VLAN tag before its type.
pub fn tagged(frame: &[u8], tpid: u16) -> Vec<u8> {
    tagged_with(frame, tpid, 0x002a)
}

/// A frame with a tag: priority and VLAN in `tci`.
pub fn tagged_with(frame: &[u8], tpid: u16, tci: u16) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend(tpid.to_be_bytes());
    tagged.extend(tci.to_be_bytes());
    tagged.extend(&frame[12..]);
    tagged
}

/// An IPv4 packet made a fragment: `offset` in units of 8 bytes.
pub fn ipv4_fragment(frame: &[u8], offset: u16, more: bool) -> Vec<u8> {
    let mut fragment = frame.to_vec();
    let field = offset | u16::from(more) << 13;
    fragment[ETH + 6..ETH + 8].copy_from_slice(&field.to_be_bytes());
    fragment
}

/// An IPv4 packet with `words` words of options (no-operations).
pub fn ipv4_options(frame: &[u8], words: u8) -> Vec<u8> {
    let mut longer = frame[..ETH + 20].to_vec();
    longer[ETH] = 0x40 | (5 + words);
    let total = (frame.len() - ETH + usize::from(words) * 4) as u16;
    longer[ETH + 2..ETH + 4].copy_from_slice(&total.to_be_bytes());
    longer.extend(vec![1; usize::from(words) * 4]);
    longer.extend(&frame[ETH + 20..]);
    longer
}

/// An extension header of RFC 8200.
#[derive(Clone, Copy, Debug)]
pub enum Extension {
    HopByHop,
    /// A routing header of this many bytes; 8 to 2048.
    Routing(usize),
    Destination,
    /// Offset in units of 8 bytes, and whether more follow.
    Fragment(u16, bool),
}

impl Extension {
    fn number(self) -> u8 {
        match self {
            Self::HopByHop => 0,
            Self::Routing(_) => 43,
            Self::Fragment(..) => 44,
            Self::Destination => 60,
        }
    }

    fn bytes(self, next: u8) -> Vec<u8> {
        match self {
            // A PadN option fills the rest.
            Self::HopByHop | Self::Destination => vec![next, 0, 1, 4, 0, 0, 0, 0],
            Self::Routing(len) => {
                let mut header = vec![0; len];
                header[..2].copy_from_slice(&[next, (len / 8 - 1) as u8]);
                header
            }
            Self::Fragment(offset, more) => {
                let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
                vec![next, 0, high, low, 0, 0, 0, 7]
            }
        }
    }
}

/// An IPv6 packet with extension headers before what it carries.
pub fn ipv6_extensions(frame: &[u8], chain: &[Extension]) -> Vec<u8> {
    let last = frame[ETH + 6];
    let mut longer = frame[..ETH + 40].to_vec();
    longer[ETH + 6] = chain.first().map_or(last, |first| first.number());
    for (place, extension) in chain.iter().enumerate() {
        let next = chain.get(place + 1).map_or(last, |next| next.number());
        longer.extend(extension.bytes(next));
    }
    longer.extend(&frame[ETH + 40..]);
    let payload = (longer.len() - ETH - 40) as u16;
    longer[ETH + 4..ETH + 6].copy_from_slice(&payload.to_be_bytes());
    longer
}
