//! Edits of a parsed frame, each with its checksums mended.

use crate::frame::Frame;
use crate::parse::Meta;
use crate::tcp::flags::TcpFlags;
use crate::tcp::options;

use super::{ETH_LEN, array_at, checksum, get_u16, put};

/// Octets from the start of a TCP header to its checksum.
const TCP_CHECKSUM: usize = 16;
/// Where a frame has what changes at each router, and the octets up to the last of it.
const TTL: usize = ETH_LEN + 8;
const IPV4_CHECKSUM: usize = ETH_LEN + 10;
const HOP_LIMIT: usize = ETH_LEN + 7;
const HEAD: usize = ETH_LEN + 12;

/// Writes the Ethernet addresses of the next hop: destination and source.
#[inline]
pub fn set_macs(frame: &mut [u8], macs: &[[u8; 6]; 2]) {
    if let (Some(head), Some(macs)) = (frame.first_chunk_mut::<12>(), macs.as_flattened().first_chunk()) {
        *head = *macs;
    }
}

/// Takes one from TTL (RFC 1812 section 5.3.1) or hop limit (RFC 8200 section 3), which is more than that.
#[inline]
pub fn decrement_ttl(frame: &mut [u8], v6: bool) {
    let Some(head) = frame.first_chunk_mut::<HEAD>() else { return };
    if v6 {
        head[HOP_LIMIT] = head[HOP_LIMIT].wrapping_sub(1);
    } else {
        head[TTL] = head[TTL].wrapping_sub(1);
        // The word with the TTL has become smaller by 0x0100 (RFC 1141, with the carry of RFC 1624). The sum is one of words in
        // either order of octets (RFC 1071 section 2, B).
        let sum = u32::from(u16::from_le_bytes(array_at(head, IPV4_CHECKSUM))) + 1;
        put(head, IPV4_CHECKSUM, &((sum + u32::from(sum >= 0xffff)) as u16).to_le_bytes());
    }
}

/// A frame from a virtual device whose sender left the checksum to its NIC holds the pseudo header's sum there
/// (`CHECKSUM_PARTIAL`, include/linux/skbuff.h). Such a checksum is filled in. Returns whether it was.
pub fn fill_partial_checksum(frame: &mut [u8], meta: &Meta) -> bool {
    let at = meta.l4 as usize + TCP_CHECKSUM;
    let pseudo = checksum::fold(meta.pseudo_sum());
    // A right checksum can look like this by chance, once in 65,536 segments: then the whole sum is 0xffff.
    if get_u16(frame, at) != Some(pseudo) || meta.segment_sum(frame) == 0xffff {
        return false;
    }
    write_checksum(frame, meta);
    true
}

/// Computes the TCP checksum anew.
pub fn write_checksum(frame: &mut [u8], meta: &Meta) {
    let at = meta.l4 as usize + TCP_CHECKSUM;
    put(frame, at, &[0, 0]);
    let sum = !meta.segment_sum(frame);
    put(frame, at, &sum.to_be_bytes());
}

/// Takes everything from a SYN that would let data pass beside the inspection: MPTCP and Fast Open options, and payload.
/// Returns the meta of what is left.
pub fn sanitize_syn<F: Frame>(frame: &mut F, meta: &Meta) -> Meta {
    strip_options(frame.data_mut(), meta);
    cut_payload(frame, meta)
}

/// Clears the urgent pointer and its flag. Returns the meta of what is left.
pub fn clear_urgent(frame: &mut [u8], meta: &Meta) -> Meta {
    let mut calm = *meta;
    let l4 = meta.l4 as usize;
    let words = (get_u16(frame, l4 + 12), get_u16(frame, l4 + TCP_CHECKSUM), get_u16(frame, l4 + 18));
    let (Some(flags), Some(sum), Some(pointer)) = words else { return calm };
    calm.flags.0 &= !TcpFlags::URG;
    let cleared = flags & !u16::from(TcpFlags::URG);
    let sum = checksum::update(checksum::update(sum, flags, cleared), pointer, 0);
    put(frame, l4 + 12, &cleared.to_be_bytes());
    put(frame, l4 + TCP_CHECKSUM, &sum.to_be_bytes());
    put(frame, l4 + 18, &[0, 0]);
    calm
}

/// Removes the payload (and padding behind it); lengths and both checksums are mended.
pub fn cut_payload<F: Frame>(frame: &mut F, meta: &Meta) -> Meta {
    let mut shorter = *meta;
    shorter.end = meta.payload;
    frame.set_len(meta.payload as usize);
    set_ip_len(frame.data_mut(), &shorter);
    write_checksum(frame.data_mut(), &shorter);
    shorter
}

/// Writes the IP length fields that `meta.end` implies.
pub fn set_ip_len(frame: &mut [u8], meta: &Meta) {
    if meta.v6 {
        let len = meta.ip_len().saturating_sub(super::IPV6_LEN as u16);
        put(frame, ETH_LEN + 4, &len.to_be_bytes());
        return;
    }
    let (Some(old), Some(sum)) = (get_u16(frame, ETH_LEN + 2), get_u16(frame, ETH_LEN + 10)) else {
        return;
    };
    put(frame, ETH_LEN + 2, &meta.ip_len().to_be_bytes());
    put(frame, ETH_LEN + 10, &checksum::update(sum, old, meta.ip_len()).to_be_bytes());
}

/// Overwrites, in a SYN or SYN-ACK, the options that would let data pass beside the inspection.
fn strip_options(frame: &mut [u8], meta: &Meta) {
    if let Some(bytes) = frame.get_mut(meta.l4 as usize + 20..meta.payload as usize) {
        options::strip(bytes);
    }
    write_checksum(frame, meta);
}

#[cfg(test)]
mod tests {
    use super::super::u16_at;
    use super::*;

    /// Each checksum and each TTL: the header is as right, or as wrong, as it was.
    #[test]
    fn decrement_ttl_mends_the_checksum_as_rfc_1624_has_it() {
        let mut frame = [0_u8; HEAD];
        for ttl in 1..=255_u8 {
            for sum in (0..=u16::MAX).step_by(13).chain([0xfefe, 0xfeff, 0xff00, 0xfffe, 0xffff]) {
                put(&mut frame, TTL, &[ttl, 6]);
                put(&mut frame, IPV4_CHECKSUM, &sum.to_be_bytes());
                decrement_ttl(&mut frame, false);
                let (old, new) = (u16::from_be_bytes([ttl, 6]), u16_at(&frame, TTL));
                let expected = checksum::update(sum, old, new);
                assert_eq!(new, u16::from_be_bytes([ttl - 1, 6]));
                assert_eq!(u16_at(&frame, IPV4_CHECKSUM), expected, "TTL {ttl}, checksum {sum:04x}");
            }
        }
    }
}
