//! The shape that nearly every frame has, read at once: a TCP segment without anything between Ethernet's header, IP's and its
//! own, which neither opens nor ends a connection.
//!
//! Each header is read as one array, so that one comparison of lengths is enough for all of its fields. What is not of this shape,
//! or not right, is left to [`super::parse`], who knows what it is or what is wrong with it. Tests hold the two against each other.

use super::Meta;
use crate::tcp::flags::TcpFlags;
use crate::tcp::seq::Seq;
use crate::wire::addr::Addr;
use crate::wire::{
    ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT_OFFSET, IPPROTO_TCP, IPV4_LEN, IPV6_LEN,
    MORE_FRAGMENTS, TCP_LEN, array_at, checksum, u16_at, u32_at,
};

/// Where a segment starts behind each of the IP headers, and where its header without options ends.
const V4: usize = ETH_LEN + IPV4_LEN;
const V4_HEADS: usize = V4 + TCP_LEN;
const V6: usize = ETH_LEN + IPV6_LEN;
const V6_HEADS: usize = V6 + TCP_LEN;

/// EtherType and version, and of IPv4 the length of its header (RFC 791 section 3.1): a mask and what it leaves, as they stand in a
/// frame.
const IS_V4: [u32; 2] = [0xffff_ff00_u32.to_be(), ((ETHERTYPE_IPV4 as u32) << 16 | 0x4500).to_be()];
const IS_V6: [u32; 2] = [0xffff_f000_u32.to_be(), ((ETHERTYPE_IPV6 as u32) << 16 | 0x6000).to_be()];
/// The same for flags and offset of a fragment and for the protocol: all of TCP.
const IS_WHOLE_TCP: [u32; 2] =
    [(((MORE_FRAGMENTS | FRAGMENT_OFFSET) as u32) << 16 | 0xff).to_be(), (IPPROTO_TCP as u32).to_be()];

/// The flags of which a plain segment has only ACK.
const TELLING: u8 = TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST | TcpFlags::ACK;

/// Reads a frame into `meta`. `false`: it has another shape, and `meta` is worth nothing. Whether IPv4 addresses may be on a wire is not asked: no connection has any that may
/// not, and who finds none asks ([`Meta::is_martian`]).
#[inline(never)]
pub fn plain_into(frame: &[u8], meta: &mut Meta) -> bool {
    let Some(heads) = frame.first_chunk::<V4_HEADS>() else { return false };
    let kind = u32::from_ne_bytes(array_at(heads, ETH_LEN - 2));
    let is = |[mask, left]: [u32; 2]| kind & mask == left;
    if is(IS_V4) {
        return read_v4(heads, frame.len(), meta);
    }
    match frame.first_chunk() {
        Some(heads) if is(IS_V6) => read_v6(heads, frame.len(), meta),
        _ => false,
    }
}

/// The segment whose header stands at `L4`, in a frame of `len` octets, of a packet that says that it ends at `end`; one that ends
/// beyond 2^16 seems to end before its segment begins.
#[inline(always)]
fn read_segment<const L4: usize>(heads: &[u8], end: u16, len: usize, meta: &mut Meta) -> bool {
    let [offset, flags] = array_at(heads, L4 + 12);
    let payload = L4 as u16 + u16::from(offset >> 4) * 4;
    let is_plain = flags & TELLING == TcpFlags::ACK;
    if !is_plain || offset < ((TCP_LEN / 4) << 4) as u8 || payload > end || usize::from(end) > len {
        return false;
    }
    meta.tuple.src.port = u16_at(heads, L4);
    meta.tuple.dst.port = u16_at(heads, L4 + 2);
    meta.seq = Seq(u32_at(heads, L4 + 4));
    meta.ack = Seq(u32_at(heads, L4 + 8));
    meta.window = u16_at(heads, L4 + 14);
    meta.flags = TcpFlags(flags);
    (meta.l4, meta.payload, meta.end) = (L4 as u16, payload, end);
    (meta.v6, meta.reassembled) = (L4 == V6, false);
    true
}

#[inline(always)]
fn read_v4(heads: &[u8; V4_HEADS], len: usize, meta: &mut Meta) -> bool {
    let [mask, left] = IS_WHOLE_TCP;
    let is_whole_tcp = u32::from_ne_bytes(array_at(heads, ETH_LEN + 6)) & mask == left;
    let ip = array_at::<IPV4_LEN>(heads, ETH_LEN);
    if !is_whole_tcp || !checksum::is_right(checksum::sum_of(&ip)) {
        return false;
    }
    meta.tuple.src.addr = Addr::v4(array_at(heads, ETH_LEN + 12));
    meta.tuple.dst.addr = Addr::v4(array_at(heads, ETH_LEN + 16));
    meta.ttl = heads[ETH_LEN + 8];
    read_segment::<V4>(heads, u16_at(heads, ETH_LEN + 2).wrapping_add(ETH_LEN as u16), len, meta)
}

/// Out of line, so that the other has all its offsets as constants.
#[inline(never)]
fn read_v6(heads: &[u8; V6_HEADS], len: usize, meta: &mut Meta) -> bool {
    let (src, dst) = (Addr(array_at(heads, ETH_LEN + 8)), Addr(array_at(heads, ETH_LEN + 24)));
    if heads[ETH_LEN + 6] != IPPROTO_TCP || !src.is_unicast_v6() || !dst.is_unicast_v6() {
        return false;
    }
    (meta.tuple.src.addr, meta.tuple.dst.addr) = (src, dst);
    meta.ttl = heads[ETH_LEN + 7];
    read_segment::<V6>(heads, u16_at(heads, ETH_LEN + 4).wrapping_add(V6 as u16), len, meta)
}
