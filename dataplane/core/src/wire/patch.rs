//! Fields written into a packet, each with what that does to the checksums over it.
//!
//! One field may count in several checksums: an address in IPv4's and in TCP's, and in an ICMP error's when it is quoted.
//! A write outside the packet does nothing and changes nothing.

use super::addr::Addr;
use super::checksum::Change;
use super::{get_u16, get_u32, put};

/// Which address of an IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Source,
    Destination,
}

/// Writes a 16-bit field on an even offset of what its checksums cover.
#[inline]
#[must_use]
pub fn set_u16(bytes: &mut [u8], at: usize, new: u16) -> Change {
    let Some(old) = get_u16(bytes, at) else { return Change::NONE };
    put(bytes, at, &new.to_be_bytes());
    Change::of_u16(old, new)
}

/// As [`set_u16`], for 32 bits.
#[inline]
#[must_use]
pub fn set_u32(bytes: &mut [u8], at: usize, new: u32) -> Change {
    let Some(old) = get_u32(bytes, at) else { return Change::NONE };
    put(bytes, at, &new.to_be_bytes());
    Change::of_u32(old, new)
}

/// As [`set_u16`], for any number of octets.
#[inline]
#[must_use]
pub fn set(bytes: &mut [u8], at: usize, new: &[u8]) -> Change {
    let Some(place) = bytes.get_mut(at..at.saturating_add(new.len())) else { return Change::NONE };
    let change = Change::of(place, new);
    place.copy_from_slice(new);
    change
}

/// Writes an address of the IP header at `ip`; `addr` is of the header's family. IPv4's checksum is not mended here.
#[inline]
#[must_use]
pub fn set_addr(bytes: &mut [u8], ip: usize, which: Which, addr: &Addr) -> Change {
    match (addr.0, which) {
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, tail @ ..], Which::Source) => set(bytes, ip + 12, &tail),
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, tail @ ..], Which::Destination) => {
            set(bytes, ip + 16, &tail)
        }
        (all, Which::Source) => set(bytes, ip + 8, &all),
        (all, Which::Destination) => set(bytes, ip + 24, &all),
    }
}

/// Brings the checksum field at `at` up to date. Returns what that does to a checksum around it.
#[inline]
pub fn mend(bytes: &mut [u8], at: usize, change: Change) -> Change {
    get_u16(bytes, at).map_or(Change::NONE, |field| set_u16(bytes, at, change.apply(field)))
}
