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
/// Length of an IPv4 header without options, in octets.
pub const IPV4_LEN: usize = 20;
/// Length of a TCP header without options, in octets.
pub const TCP_LEN: usize = 20;
/// Where an IPv4 header has its fragment offset, in the word that says so (RFC 791 section 3.1), and the flag for more of them.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Length of an IPv6 header, in octets.
pub const IPV6_LEN: usize = 40;
/// Packets of so many octets fit every way of IPv6, and no sender believes in a narrower one (RFC 8200 section 5, RFC 8201 section 4).
pub const IPV6_MIN_MTU: u16 = 1280;
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

/// The octets at `at` of a header that has been read whole; zeros past its end.
#[inline]
pub fn array_at<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    header.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

/// As [`array_at`]: a big-endian `u16`.
#[inline]
pub fn u16_at(header: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array_at(header, at))
}

/// As [`array_at`]: a big-endian `u32`.
#[inline]
pub fn u32_at(header: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(header, at))
}

/// Writes `value` at `at`; outside the frame nothing is written.
#[inline]
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(value.len())) {
        place.copy_from_slice(value);
    }
}
