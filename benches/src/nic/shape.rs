//! The frames of the generator: one shape for each size and family, which differ from connection to connection in addresses, ports and
//! what these change in checksums.

use std::net::IpAddr;

use weir_core::flow::key::Tuple;
use weir_core::tcp::flags::TcpFlags;
use weir_core::wire::checksum;
use weir_core::wire::{ETH_LEN, IPV4_LEN, IPV6_LEN, TCP_LEN};

use crate::made::{self, Link};

/// Octets of the checksum that a wire adds (FCS): sizes are told with them, as RFC 2544 does.
pub const FCS: usize = 4;
/// Octets of a UDP header (RFC 768).
const UDP_LEN: usize = 8;
const UDP: u8 = 17;
const TCP: u8 = 6;
/// The stamp at the beginning of a payload: a mark, a number, and when it was sent in ns.
const STAMP: usize = 16;
const MARK: [u8; 4] = *b"weir";
const TTL: u8 = 64;

/// What packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Datagrams.
    Udp,
    /// Segments of open TCP connections, which are opened first.
    Tcp,
    /// SYNs: each opens another connection.
    Syn,
}

impl Kind {
    const fn header(self) -> usize {
        match self {
            Self::Udp => UDP_LEN,
            Self::Tcp | Self::Syn => TCP_LEN,
        }
    }
}

/// Frames of one size, kind and family.
#[derive(Clone, Debug)]
pub struct Shape {
    kind: Kind,
    v6: bool,
    bytes: Vec<u8>,
    /// Where the stamp is, where there is room for one.
    stamp: Option<usize>,
    /// Sum of the IPv4 header, and of pseudo header and segment, without what a connection or the stamp adds.
    header_sum: u64,
    sum: u64,
}

impl Shape {
    /// Frames of so many octets on the wire, or as many as the headers need. With `stamped` as many as the stamp needs, too.
    pub fn new(kind: Kind, v6: bool, size: usize, stamped: bool, link: Link) -> Self {
        let l4 = ETH_LEN + if v6 { IPV6_LEN } else { IPV4_LEN };
        let payload = l4 + kind.header();
        let takes_stamp = kind != Kind::Syn;
        let least = payload + if stamped && takes_stamp { STAMP } else { 0 };
        let len = size.saturating_sub(FCS).max(least);
        let stamp = (takes_stamp && len >= payload + STAMP).then_some(payload);
        // TCP without a stamp is a bare segment: what is left of the frame is padding.
        let end = if stamp.is_none() && kind != Kind::Udp { payload } else { len };
        let mut bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        bytes[..payload].fill(0);
        bytes[..6].copy_from_slice(&link.gateway);
        bytes[6..12].copy_from_slice(&link.own);
        bytes[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
        let protocol = if kind == Kind::Udp { UDP } else { TCP };
        let ip = &mut bytes[ETH_LEN..l4];
        if v6 {
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&((end - l4) as u16).to_be_bytes());
            (ip[6], ip[7]) = (protocol, TTL);
        } else {
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&((end - ETH_LEN) as u16).to_be_bytes());
            (ip[6], ip[8], ip[9]) = (0x40, TTL, protocol);
        }
        let header_sum = checksum::sum(&bytes[ETH_LEN..l4], 0);
        if let Some(at) = stamp {
            bytes[at..at + STAMP].fill(0);
            bytes[at..at + MARK.len()].copy_from_slice(&MARK);
        }
        transport(&mut bytes[l4..payload], kind, end - l4);
        let pseudo = u64::from(protocol) + (end - l4) as u64;
        let sum = checksum::sum(&bytes[l4..end], pseudo);
        Self { kind, v6, bytes, stamp, header_sum, sum }
    }

    /// Octets on the wire, with the FCS.
    pub fn size(&self) -> usize {
        self.bytes.len() + FCS
    }

    /// Writes a frame of a connection into `buffer`, with the acknowledgment number that TCP has by then; returns its length. `None`
    /// when it does not fit.
    #[inline]
    pub fn write(&self, buffer: &mut [u8], tuple: &Tuple, ack: u32, number: u32, now: u64) -> Option<usize> {
        let frame = buffer.get_mut(..self.bytes.len())?;
        frame.copy_from_slice(&self.bytes);
        let addresses = if self.v6 { ETH_LEN + 8..ETH_LEN + 40 } else { ETH_LEN + 12..ETH_LEN + 20 };
        let l4 = addresses.end;
        let half = addresses.len() / 2;
        for (place, endpoint) in [(addresses.start, tuple.src), (addresses.start + half, tuple.dst)] {
            let place = frame.get_mut(place..place + half)?;
            match endpoint.addr.ip() {
                IpAddr::V4(address) if !self.v6 => place.copy_from_slice(&address.octets()),
                IpAddr::V6(address) if self.v6 => place.copy_from_slice(&address.octets()),
                _ => return None,
            }
        }
        let between = checksum::sum(frame.get(addresses)?, 0);
        if !self.v6 {
            let field = !checksum::fold(self.header_sum + between);
            frame.get_mut(ETH_LEN + 10..ETH_LEN + 12)?.copy_from_slice(&field.to_be_bytes());
        }
        frame.get_mut(l4..l4 + 2)?.copy_from_slice(&tuple.src.port.to_be_bytes());
        frame.get_mut(l4 + 2..l4 + 4)?.copy_from_slice(&tuple.dst.port.to_be_bytes());
        let mut sum = self.sum + between + u64::from(tuple.src.port) + u64::from(tuple.dst.port);
        if self.kind == Kind::Tcp {
            frame.get_mut(l4 + 8..l4 + 12)?.copy_from_slice(&ack.to_be_bytes());
            sum += u64::from(ack >> 16) + u64::from(ack & 0xffff);
        }
        if let Some(at) = self.stamp {
            let stamp = frame.get_mut(at + 4..at + STAMP)?;
            stamp[..4].copy_from_slice(&number.to_be_bytes());
            stamp[4..].copy_from_slice(&now.to_be_bytes());
            sum = checksum::sum(stamp, sum);
        }
        let check = l4 + if self.kind == Kind::Udp { 6 } else { 16 };
        let field = match !checksum::fold(sum) {
            // Of UDP 0 says that there is none.
            0 if self.kind == Kind::Udp => u16::MAX,
            field => field,
        };
        frame.get_mut(check..check + 2)?.copy_from_slice(&field.to_be_bytes());
        Some(self.bytes.len())
    }
}

/// The header behind IP, ports and checksum left zero.
fn transport(header: &mut [u8], kind: Kind, len: usize) {
    match kind {
        Kind::Udp => header[4..6].copy_from_slice(&(len as u16).to_be_bytes()),
        Kind::Tcp | Kind::Syn => {
            let (flags, seq) = match kind {
                Kind::Syn => (TcpFlags::SYN, made::CLIENT_ISN),
                _ => (TcpFlags::ACK, made::AFTER_REQUEST),
            };
            header[4..8].copy_from_slice(&seq.0.to_be_bytes());
            (header[12], header[13]) = (5 << 4, flags);
            header[14..16].copy_from_slice(&500_u16.to_be_bytes());
        }
    }
}

/// What a stamp says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub number: u32,
    /// When the frame was sent, in ns.
    pub sent: u64,
}

/// The stamp of a frame that has come through, if it has one.
#[inline]
pub fn stamp_of(kind: Kind, frame: &[u8]) -> Option<Stamp> {
    let l4 = ETH_LEN + if *frame.get(12)? == 0x86 { IPV6_LEN } else { IPV4_LEN };
    let at = l4 + kind.header();
    let stamp = frame.get(at..at + STAMP)?;
    let (number, sent) = (stamp[4..8].try_into().ok()?, stamp[8..].try_into().ok()?);
    (stamp[..4] == MARK)
        .then_some(Stamp { number: u32::from_be_bytes(number), sent: u64::from_be_bytes(sent) })
}

#[cfg(test)]
mod tests {
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

    use super::*;

    const LINK: Link = Link { own: [2; 6], gateway: [4; 6] };

    /// The frame, and whether its checksums are right as another reader has them.
    fn written(kind: Kind, n: u32, size: usize, stamped: bool) -> (Vec<u8>, bool) {
        let shape = Shape::new(kind, n % 2 == 1, size, stamped, LINK);
        let mut buffer = [0xa5; 2048];
        let len = shape.write(&mut buffer, &made::tuple(n), 7_000_001, 9, 0x0123_4567_89ab_cdef).unwrap();
        let frame = buffer[..len].to_vec();
        let headers = PacketHeaders::from_ethernet_slice(&frame).unwrap();
        let payload = headers.payload.slice();
        let right = match (headers.net.unwrap(), headers.transport.unwrap()) {
            (NetHeaders::Ipv4(ip, _), TransportHeader::Udp(udp)) => {
                ip.header_checksum == ip.calc_header_checksum()
                    && udp.checksum == udp.calc_checksum_ipv4(&ip, payload).unwrap()
            }
            (NetHeaders::Ipv4(ip, _), TransportHeader::Tcp(tcp)) => {
                ip.header_checksum == ip.calc_header_checksum()
                    && tcp.checksum == tcp.calc_checksum_ipv4(&ip, payload).unwrap()
            }
            (NetHeaders::Ipv6(ip, _), TransportHeader::Udp(udp)) => {
                udp.checksum == udp.calc_checksum_ipv6(&ip, payload).unwrap()
            }
            (NetHeaders::Ipv6(ip, _), TransportHeader::Tcp(tcp)) => {
                tcp.checksum == tcp.calc_checksum_ipv6(&ip, payload).unwrap()
            }
            _ => false,
        };
        (frame, right)
    }

    #[test]
    fn frames_have_right_checksums_in_every_shape() {
        for kind in [Kind::Udp, Kind::Tcp, Kind::Syn] {
            for n in 0..200 {
                for size in [64, 65, 82, 128, 594, 1518] {
                    for stamped in [false, true] {
                        let (frame, right) = written(kind, n, size, stamped);
                        assert!(right, "{kind:?} {n} {size} {stamped}: {frame:02x?}");
                    }
                }
            }
        }
    }

    #[test]
    fn frame_has_the_size_asked_for_where_its_headers_fit() {
        for (kind, n, size, stamped, len) in [
            (Kind::Udp, 0, 64, false, 60),
            (Kind::Tcp, 0, 64, false, 60),
            (Kind::Udp, 0, 64, true, 60),
            (Kind::Udp, 1, 64, false, 62),
            (Kind::Udp, 1, 64, true, 78),
            (Kind::Tcp, 0, 64, true, 70),
            (Kind::Tcp, 1, 1518, true, 1514),
        ] {
            assert_eq!(written(kind, n, size, stamped).0.len(), len, "{kind:?} {n} {size} {stamped}");
        }
    }

    #[test]
    fn stamp_written_is_read_again() {
        for (kind, n) in [(Kind::Udp, 0), (Kind::Udp, 1), (Kind::Tcp, 2), (Kind::Tcp, 3)] {
            let (frame, _) = written(kind, n, 128, true);
            let stamp = Stamp { number: 9, sent: 0x0123_4567_89ab_cdef };
            assert_eq!(stamp_of(kind, &frame), Some(stamp));
        }
        assert_eq!(stamp_of(Kind::Tcp, &written(Kind::Tcp, 0, 64, false).0), None);
    }
}
