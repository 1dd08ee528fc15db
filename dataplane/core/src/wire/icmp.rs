//! ICMP errors that quote a TCP segment (RFC 792, RFC 1191, RFC 4443).
//!
//! An error belongs to the connection it quotes. Everything else that is ICMP, and every error that cannot be read to the
//! quoted ports and sequence number, is the kernel's: reading returns `None`, never an error.

use super::addr::{Addr, Endpoint};
use super::extension::{self, FRAGMENT, MAX_EXTENSION_HEADERS};
use super::{IPPROTO_TCP, IPV6_LEN, checksum, get_u16, get_u32};
use crate::flow::key::Tuple;
use crate::parse::Outer;
use crate::tcp::seq::Seq;

/// IP protocol number of ICMP.
pub const IPPROTO_ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const IPPROTO_ICMPV6: u8 = 58;
/// Octets of an error before what it quotes.
pub const ICMP_LEN: usize = 8;
/// The least of a TCP segment that is quoted: ports and sequence number.
const QUOTED_LEN: usize = 8;
/// The last code of ICMPv4's type 3 that the kernel knows (`NR_ICMP_UNREACH`).
const LAST_V4_CODE: u8 = 15;

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpKind {
    /// Destination unreachable (ICMPv4 type 3 but code 4, ICMPv6 type 1). The codes are the family's.
    Unreachable { code: u8 },
    /// Fragmentation needed (ICMPv4 type 3 code 4), packet too big (ICMPv6 type 2). `mtu` in octets; 0 from a router older
    /// than RFC 1191.
    TooBig { mtu: u32 },
    /// Time exceeded (ICMPv4 type 11, ICMPv6 type 3).
    TimeExceeded,
    /// Parameter problem (ICMPv4 type 12, ICMPv6 type 4).
    Parameter,
}

/// An error: where its parts are and what they say. Offsets are octets from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpMeta {
    /// The sender of the error: a router, or the far end.
    pub src: Addr,
    /// Who is told: the sender of the quoted segment.
    pub dst: Addr,
    pub v6: bool,
    /// TTL or hop limit.
    pub ttl: u8,
    pub kind: IcmpKind,
    /// Where the ICMP header starts.
    pub l4: u16,
    /// Where the quoted IP header starts.
    pub quote: u16,
    /// Where the quoted TCP header starts.
    pub quoted_l4: u16,
    /// Where the IP packet ends.
    pub end: u16,
    /// Source and destination as the quoted segment has them.
    pub quoted: Tuple,
    /// The quoted segment's sequence number.
    pub seq: Seq,
}

impl IcmpMeta {
    /// Whether the kernel gives up a connection in SYN-SENT because of this error: `tcp_v4_err` and `tcp_v6_err` do for all
    /// but those of the path MTU and codes that IPv4 does not know. RFC 1122 section 4.2.3.9 would have some of them
    /// waited out; RFC 5461 section 4.1 tells why stacks do not while they connect.
    pub const fn is_hard(&self) -> bool {
        match self.kind {
            IcmpKind::TooBig { .. } => false,
            IcmpKind::Unreachable { code } => self.v6 || code <= LAST_V4_CODE,
            IcmpKind::TimeExceeded | IcmpKind::Parameter => true,
        }
    }

    /// Octets of the quoted TCP segment that are there, at least 8.
    #[inline]
    pub const fn quoted_len(&self) -> usize {
        (self.end - self.quoted_l4) as usize
    }

    /// The one's complement sum that the ICMP checksum covers: 0xffff when it is right.
    pub fn sum(&self, frame: &[u8]) -> u16 {
        let message = frame.get(usize::from(self.l4)..usize::from(self.end)).unwrap_or_default();
        let pseudo = if self.v6 {
            checksum::pseudo_of(IPPROTO_ICMPV6, &self.src, &self.dst, message.len())
        } else {
            0
        };
        checksum::fold(checksum::sum(message, pseudo))
    }
}

/// Reads an ICMP message; `None` when it is not an error that quotes TCP.
pub fn read(frame: &[u8], outer: &Outer) -> Option<IcmpMeta> {
    let packet = frame.get(..outer.end)?;
    let kind = kind(packet, outer)?;
    let quote = outer.l4 + ICMP_LEN;
    let (src, dst, quoted_l4) = if outer.v6 { quoted_v6(packet, quote)? } else { quoted_v4(packet, quote)? };
    let tcp = packet.get(quoted_l4..quoted_l4 + QUOTED_LEN)?;
    // IPv4-mapped addresses are our own way to write IPv4.
    let mapped = outer.v6 && [outer.src, outer.dst, src, dst].iter().any(Addr::is_v4);
    let martian = [outer.src, outer.dst, src, dst].iter().any(Addr::is_martian);
    if mapped || martian {
        return None;
    }
    Some(IcmpMeta {
        src: outer.src,
        dst: outer.dst,
        v6: outer.v6,
        ttl: outer.ttl,
        kind,
        l4: outer.l4 as u16,
        quote: quote as u16,
        quoted_l4: quoted_l4 as u16,
        end: outer.end as u16,
        quoted: Tuple {
            src: Endpoint { addr: src, port: get_u16(tcp, 0)? },
            dst: Endpoint { addr: dst, port: get_u16(tcp, 2)? },
        },
        seq: Seq(get_u32(tcp, 4)?),
    })
}

fn kind(packet: &[u8], outer: &Outer) -> Option<IcmpKind> {
    let at = outer.l4;
    let (kind, code) = (*packet.get(at)?, *packet.get(at + 1)?);
    Some(match (outer.v6, kind) {
        (false, 3) if code == 4 => IcmpKind::TooBig { mtu: u32::from(get_u16(packet, at + 6)?) },
        (false, 3) | (true, 1) => IcmpKind::Unreachable { code },
        (true, 2) => IcmpKind::TooBig { mtu: get_u32(packet, at + 4)? },
        (false, 11) | (true, 3) => IcmpKind::TimeExceeded,
        (false, 12) | (true, 4) => IcmpKind::Parameter,
        _ => return None,
    })
}

/// The addresses of the quoted packet at `at`, and where its TCP header is. Its lengths and checksum are of the whole packet
/// as a router saw it, and are not judged.
fn quoted_v4(packet: &[u8], at: usize) -> Option<(Addr, Addr, usize)> {
    let header: &[u8; 20] = packet.get(at..)?.first_chunk()?;
    let [first, _, _, _, _, _, fragment, offset, _, protocol, _, _, src @ .., d0, d1, d2, d3] = *header;
    let len = usize::from(first & 0x0f) * 4;
    let is_first = u16::from_be_bytes([fragment, offset]) & 0x1fff == 0;
    if first >> 4 != 4 || len < 20 || protocol != IPPROTO_TCP || !is_first {
        return None;
    }
    Some((Addr::v4(src), Addr::v4([d0, d1, d2, d3]), at + len))
}

/// As [`quoted_v4`].
fn quoted_v6(packet: &[u8], at: usize) -> Option<(Addr, Addr, usize)> {
    let header: &[u8; IPV6_LEN] = packet.get(at..)?.first_chunk()?;
    let (fixed, addresses) = header.split_first_chunk::<8>()?;
    let (src, dst) = (addresses.first_chunk::<16>()?, addresses.last_chunk::<16>()?);
    let [first, _, _, _, _, _, mut next, _] = *fixed;
    if first >> 4 != 6 {
        return None;
    }
    let mut l4 = at + IPV6_LEN;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        if next == IPPROTO_TCP {
            return Some((Addr(*src), Addr(*dst), l4));
        }
        let is_later_piece =
            next == FRAGMENT && get_u16(packet, l4 + 2).is_none_or(|word| word & 0xfff8 != 0);
        if !extension::is_extension(next) || is_later_piece {
            return None;
        }
        let (len, following) = extension::read(packet, next, l4)?;
        l4 += len;
        next = following;
    }
    None
}

#[cfg(test)]
mod tests;
