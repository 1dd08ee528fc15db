//! One frame in, [`Parsed`] out: the only parser of the data path. Later stages use [`Meta`], never offsets of their own.
//!
//! Ethernet II without tags, IPv4 with options (RFC 791), IPv6 with extension headers (RFC 8200), TCP (RFC 9293).
//! What is checked is what the kernel's own receive path checks (`ip_rcv_core`, `ip6_rcv_core`, `tcp_v4_rcv`), so that a packet
//! the kernel would discard is not carried further. Whoever has many packets asks [`plain_into`] first, which reads nearly all of them in
//! few steps. Tests compare both with etherparse.

use crate::drop::DropReason;
use crate::flow::key::Tuple;
use crate::tcp::flags::TcpFlags;
use crate::tcp::seq::Seq;
use crate::wire::addr::{self, Addr, Endpoint};
pub use crate::wire::extension::MAX_EXTENSION_HEADERS;
use crate::wire::extension::{self, FRAGMENT};
use crate::wire::icmp::{self, IPPROTO_ICMP, IPPROTO_ICMPV6, IcmpMeta};
use crate::wire::{
    self, ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT_OFFSET, IPPROTO_TCP, IPV4_LEN, IPV6_FRAGMENT_LEN,
    IPV6_LEN, MORE_FRAGMENTS, TCP_LEN, array_at, checksum, u16_at, u32_at,
};

mod plain;
pub use plain::plain_into;

/// The furthest an IP packet may reach in its frame, so that offsets fit 16 bits. No link is as large.
const MAX_END: usize = u16::MAX as usize;

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    Tcp(Meta),
    Fragment(FragmentMeta),
    /// An ICMP error about a TCP segment.
    Icmp(IcmpMeta),
    /// Something else that steering does not send here; the kernel takes it.
    NotTcp,
}

/// A TCP segment: where its parts are and what its header says. Offsets are octets from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub tuple: Tuple,
    pub v6: bool,
    /// Where the TCP header starts.
    pub l4: u16,
    /// Where the payload starts.
    pub payload: u16,
    /// Where the IP packet ends (the frame may go on with padding).
    pub end: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    pub flags: TcpFlags,
    pub seq: Seq,
    pub ack: Seq,
    /// The window field, not scaled.
    pub window: u16,
    /// Built from fragments here: it may not leave by a link it does not fit.
    pub reassembled: bool,
}

impl Meta {
    /// Of nothing.
    pub const NONE: Self = {
        let nobody = Endpoint { addr: Addr([0; 16]), port: 0 };
        Self {
            tuple: Tuple { src: nobody, dst: nobody },
            v6: false,
            l4: 0,
            payload: 0,
            end: 0,
            ttl: 0,
            flags: TcpFlags(0),
            seq: Seq(0),
            ack: Seq(0),
            window: 0,
            reassembled: false,
        }
    };

    /// Octets of payload.
    #[inline]
    pub const fn payload_len(&self) -> u32 {
        (self.end - self.payload) as u32
    }

    /// SEG.LEN: payload, and one each for SYN and FIN (RFC 9293 section 3.4).
    #[inline]
    pub const fn seg_len(&self) -> u32 {
        self.payload_len() + self.flags.syn() as u32 + self.flags.fin() as u32
    }

    /// The sequence number after this segment.
    #[inline]
    pub const fn seq_end(&self) -> Seq {
        self.seq.add(self.seg_len())
    }

    /// Octets of the IP packet.
    #[inline]
    pub const fn ip_len(&self) -> u16 {
        self.end - ETH_LEN as u16
    }

    /// The payload's octets.
    #[inline]
    pub fn payload_of<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(self.payload as usize..self.end as usize).unwrap_or_default()
    }

    /// The TCP options' octets.
    #[inline]
    pub fn options_of<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(self.l4 as usize + 20..self.payload as usize).unwrap_or_default()
    }

    /// The one's complement sum over pseudo header and segment: 0xffff when the checksum is right.
    pub fn segment_sum(&self, frame: &[u8]) -> u16 {
        let segment = frame.get(self.l4 as usize..self.end as usize).unwrap_or_default();
        checksum::fold(checksum::sum(segment, self.pseudo_sum()))
    }

    /// Whether one of its addresses may not be on a wire.
    pub fn is_martian(&self) -> bool {
        self.tuple.src.addr.is_martian() || self.tuple.dst.addr.is_martian()
    }

    /// The sum of the pseudo header, not folded.
    #[inline]
    pub fn pseudo_sum(&self) -> u64 {
        checksum::pseudo(&self.tuple.src.addr, &self.tuple.dst.addr, (self.end - self.l4) as usize)
    }
}

/// A fragment of a datagram that may be TCP. Offsets in octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentMeta {
    pub src: Addr,
    pub dst: Addr,
    pub id: u32,
    pub v6: bool,
    /// Protocol of the fragmented part: IPv4's protocol field, the IPv6 fragment header's next header.
    pub protocol: u8,
    /// Offset of this piece in the fragmentable part.
    pub offset: u16,
    pub more: bool,
    /// Where the piece's data starts and ends in the frame.
    pub data: u16,
    pub end: u16,
    /// IPv6: where the fragment header starts, and where the octet is that names it.
    pub header: u16,
    pub named_at: u16,
}

/// What the IP header around a segment or an ICMP message said.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    pub src: Addr,
    pub dst: Addr,
    pub v6: bool,
    pub ttl: u8,
    /// Where the segment or message starts, and where the packet ends.
    pub l4: usize,
    pub end: usize,
}

/// Reads a frame.
pub fn parse(frame: &[u8]) -> Result<Parsed, DropReason> {
    match wire::get_u16(frame, 12).ok_or(DropReason::Truncated)? {
        ETHERTYPE_IPV4 => parse_v4(frame),
        ETHERTYPE_IPV6 => parse_v6(frame),
        _ => Ok(Parsed::NotTcp),
    }
}

fn parse_v4(frame: &[u8]) -> Result<Parsed, DropReason> {
    let packet = frame.get(ETH_LEN..).ok_or(DropReason::Truncated)?;
    let ip = packet.first_chunk::<IPV4_LEN>().ok_or(DropReason::BadIpHeader)?;
    let total = usize::from(u16_at(ip, 2));
    // Version 4 and a header length in words; without options both in one comparison.
    let (header, is_right) = match ip[0] {
        0x45 => (IPV4_LEN, checksum::is_right(checksum::sum_of(ip))),
        first => {
            let header = usize::from(first & 15) * 4;
            let whole = packet.get(..header).filter(|_| first >> 4 == 4 && header >= IPV4_LEN);
            (header, whole.is_some_and(|whole| checksum::is_right(checksum::sum(whole, 0))))
        }
    };
    if !is_right || total < header {
        return Err(DropReason::BadIpHeader);
    }
    let (l4, end) = (ETH_LEN + header, ETH_LEN + total);
    if end > frame.len() || end > MAX_END {
        return Err(DropReason::Truncated);
    }
    let (src, dst) = (u32_at(ip, 12), u32_at(ip, 16));
    let outer = || Outer {
        src: Addr::v4(src.to_be_bytes()),
        dst: Addr::v4(dst.to_be_bytes()),
        v6: false,
        ttl: ip[8],
        l4,
        end,
    };
    let is_piece = u16_at(ip, 6) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0;
    match ip[9] {
        IPPROTO_TCP if !is_piece => {
            if addr::is_martian_v4(src) || addr::is_martian_v4(dst) {
                return Err(DropReason::Martian);
            }
            parse_tcp(frame, &outer())
        }
        IPPROTO_TCP => parse_v4_fragment(ip, &outer()),
        IPPROTO_ICMP if !is_piece => Ok(parse_icmp(frame, &outer())),
        _ => Ok(Parsed::NotTcp),
    }
}

#[cold]
fn parse_v4_fragment(ip: &[u8; IPV4_LEN], outer: &Outer) -> Result<Parsed, DropReason> {
    if outer.src.is_martian() || outer.dst.is_martian() {
        return Err(DropReason::Martian);
    }
    let word = u16_at(ip, 6);
    Ok(Parsed::Fragment(FragmentMeta {
        src: outer.src,
        dst: outer.dst,
        id: u32::from(u16_at(ip, 4)),
        v6: false,
        protocol: ip[9],
        offset: (word & FRAGMENT_OFFSET) * 8,
        more: word & MORE_FRAGMENTS != 0,
        data: outer.l4 as u16,
        end: outer.end as u16,
        header: 0,
        named_at: 0,
    }))
}

fn parse_v6(frame: &[u8]) -> Result<Parsed, DropReason> {
    let packet = frame.get(ETH_LEN..).ok_or(DropReason::Truncated)?;
    let ip = packet.first_chunk::<IPV6_LEN>().ok_or(DropReason::BadIpHeader)?;
    if ip[0] >> 4 != 6 {
        return Err(DropReason::BadIpHeader);
    }
    let end = ETH_LEN + IPV6_LEN + usize::from(u16_at(ip, 4));
    if end > frame.len() || end > MAX_END {
        return Err(DropReason::Truncated);
    }
    let [src, dst] = [8, 24].map(|at| Addr(array_at(ip, at)));
    let outer = Outer { src, dst, v6: true, ttl: ip[7], l4: ETH_LEN + IPV6_LEN, end };
    if ip[6] != IPPROTO_TCP {
        return parse_v6_chain(frame, outer, ip[6]);
    }
    // IPv4-mapped addresses are our own way to write IPv4; on a wire nobody may use them (`ip6_rcv_core`).
    if src.is_v4() || dst.is_v4() || src.is_martian() || dst.is_martian() {
        return Err(DropReason::Martian);
    }
    parse_tcp(frame, &outer)
}

/// A packet with something before its segment, or none: `next` is what the IPv6 header names.
#[cold]
fn parse_v6_chain(frame: &[u8], mut outer: Outer, mut next: u8) -> Result<Parsed, DropReason> {
    let mut named_at = ETH_LEN + 6;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        let at = outer.l4;
        if next == IPPROTO_TCP {
            let Outer { src, dst, .. } = outer;
            if src.is_v4() || dst.is_v4() || src.is_martian() || dst.is_martian() {
                return Err(DropReason::Martian);
            }
            return parse_tcp(frame, &outer);
        }
        if next == IPPROTO_ICMPV6 {
            return Ok(parse_icmp(frame, &outer));
        }
        if !extension::is_extension(next) {
            return Ok(Parsed::NotTcp);
        }
        let (len, following) = extension::read(frame, next, at).ok_or(DropReason::Truncated)?;
        if next == FRAGMENT {
            let word = wire::get_u16(frame, at + 2).ok_or(DropReason::Truncated)?;
            // More to come, or an offset: RFC 8200 section 4.5. Else it is whole (RFC 6946).
            if word & 0xfff9 != 0 {
                return parse_v6_fragment(
                    frame,
                    (outer.src, outer.dst),
                    following,
                    (at, named_at, outer.end),
                );
            }
        }
        named_at = at;
        outer.l4 += len;
        next = following;
        if outer.l4 > outer.end {
            return Err(DropReason::Truncated);
        }
    }
    Err(DropReason::ExtensionHeaders)
}

/// A fragment whose header stands at `at`, in a packet that ends at `end`.
fn parse_v6_fragment(
    frame: &[u8],
    (src, dst): (Addr, Addr),
    protocol: u8,
    (at, named_at, end): (usize, usize, usize),
) -> Result<Parsed, DropReason> {
    // What the first fragment names counts (RFC 8200 section 4.5); behind an extension header there may be TCP.
    if protocol != IPPROTO_TCP && !extension::is_extension(protocol) {
        return Ok(Parsed::NotTcp);
    }
    if src.is_martian() || dst.is_martian() || src.is_v4() || dst.is_v4() {
        return Err(DropReason::Martian);
    }
    let word = wire::get_u16(frame, at + 2).ok_or(DropReason::Truncated)?;
    let id = wire::get_u32(frame, at + 4).ok_or(DropReason::Truncated)?;
    let data = at + IPV6_FRAGMENT_LEN;
    if data > end {
        return Err(DropReason::Truncated);
    }
    Ok(Parsed::Fragment(FragmentMeta {
        src,
        dst,
        id,
        v6: true,
        protocol,
        offset: word & 0xfff8,
        more: word & 1 != 0,
        data: data as u16,
        end: end as u16,
        header: at as u16,
        named_at: named_at as u16,
    }))
}

#[cold]
fn parse_icmp(frame: &[u8], ip: &Outer) -> Parsed {
    icmp::read(frame, ip).map_or(Parsed::NotTcp, Parsed::Icmp)
}

/// The segment of a packet whose addresses may be on a wire.
fn parse_tcp(frame: &[u8], ip: &Outer) -> Result<Parsed, DropReason> {
    let segment = frame.get(ip.l4..ip.end).ok_or(DropReason::Truncated)?;
    let tcp = segment.first_chunk::<TCP_LEN>().ok_or(DropReason::BadTcpHeader)?;
    let header = usize::from(tcp[12] >> 4) * 4;
    let flags = TcpFlags(tcp[13]);
    if header < TCP_LEN || header > segment.len() || !flags.possible() {
        return Err(DropReason::BadTcpHeader);
    }
    Ok(Parsed::Tcp(Meta {
        tuple: Tuple {
            src: Endpoint { addr: ip.src, port: u16_at(tcp, 0) },
            dst: Endpoint { addr: ip.dst, port: u16_at(tcp, 2) },
        },
        v6: ip.v6,
        l4: ip.l4 as u16,
        payload: (ip.l4 + header) as u16,
        end: ip.end as u16,
        ttl: ip.ttl,
        flags,
        seq: Seq(u32_at(tcp, 4)),
        ack: Seq(u32_at(tcp, 8)),
        window: u16_at(tcp, 14),
        reassembled: false,
    }))
}

#[cfg(test)]
mod tests;
