//! What the lists of a million entries that are measured consist of.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Of each list.
pub const ENTRIES: u32 = 1_000_000;

/// Numbers that look random, each once (a permutation of 32 bits).
pub fn scramble(i: u32) -> u32 {
    let x = (i ^ (i >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// The i-th name: of 15 to 27 octets, like those of blocklists.
pub fn name(i: u32) -> String {
    let x = scramble(i);
    let middle = ["track", "ads", "metrics", "cdn-edge"][(x % 4) as usize];
    format!("{middle}{x:x}.host{}.example", x % 977)
}

/// The first address of the i-th IPv4 prefix: one of 24 bits.
pub fn v4(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(scramble(i) & !0xff)
}

/// The first address of the i-th IPv6 prefix: one of 64 bits.
pub fn v6(i: u32) -> Ipv6Addr {
    Ipv6Addr::from((0x2001_0db8_u128 << 96) | (u128::from(scramble(i)) << 64))
}
