//! Header views and edits: the only place that knows byte offsets.
//!
//! Sources: IEEE 802.3, RFC 791, RFC 8200, RFC 9293 section 3.1.

pub mod addr;
pub mod build;
pub mod checksum;
pub mod edit;
pub mod error;
pub mod extension;
pub mod icmp;
pub mod patch;

/// Length of an Ethernet header without a tag, in octets.
pub const ETH_LEN: usize = 14;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IP protocol number of TCP.
pub const IPPROTO_TCP: u8 = 6;
/// Length of an IPv6 header, in octets.
pub const IPV6_LEN: usize = 40;
/// Length of an IPv6 fragment header, in octets.
pub const IPV6_FRAGMENT_LEN: usize = 8;

/// A big-endian `u16` at `at`, or `None` past the end.
#[inline]
pub fn get_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let b = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(b.try_into().ok()?))
}

/// A big-endian `u32` at `at`, or `None` past the end.
#[inline]
pub fn get_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let b = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(b.try_into().ok()?))
}

/// Writes `value` at `at`; outside the frame nothing is written.
#[inline]
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(value.len())) {
        place.copy_from_slice(value);
    }
}
