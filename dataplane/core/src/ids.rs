//! Small numbers that must not be mixed up.

use serde::{Deserialize, Serialize};

/// A NIC the dataplane owns: its place in the configuration's list of ports. Or, from [`MAX_PORTS`] on, a VLAN of one: a link of
/// its own to all but those who receive and send frames ([`crate::fib::Vlans`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortId(pub u8);

/// The most ports a box can have.
pub const MAX_PORTS: usize = 32;

/// The most ports and VLANs of them. The last number is no link's.
pub const MAX_LINKS: usize = u8::MAX as usize;

/// An intercept: its place in the configuration's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InterceptId(pub u8);

/// The most intercepts of a configuration: the steering program matches them as bits of one word.
pub const MAX_INTERCEPTS: usize = 64;

/// A pool: its place in the configuration's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PoolId(pub u16);

/// A server of a pool: its place in the pool's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServerId(pub u16);

/// A rule: its place in its intercept's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleId(pub u16);

/// A moment or a span in nanoseconds, on whatever clock the caller reads (CLOCK_MONOTONIC in production).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Nanos(pub u64);

impl Nanos {
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms.saturating_mul(1_000_000))
    }
    pub const fn from_secs(s: u64) -> Self {
        Self(s.saturating_mul(1_000_000_000))
    }
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// A set of ports, and of VLANs of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSet([u64; 4]);

impl PortSet {
    /// None.
    pub const NONE: Self = Self([0; 4]);

    /// The first 32 ports as bits.
    pub const fn of_bits(bits: u32) -> Self {
        Self([bits as u64, 0, 0, 0])
    }

    /// Those of `links` that are ports.
    pub const fn of_ports(links: Self) -> Self {
        Self::of_bits(links.0[0] as u32)
    }

    #[inline]
    pub fn contains(self, port: PortId) -> bool {
        self.0.get(usize::from(port.0 >> 6)).is_some_and(|word| word >> (port.0 & 63) & 1 != 0)
    }

    pub fn insert(&mut self, port: PortId) {
        if let Some(word) = self.0.get_mut(usize::from(port.0 >> 6)) {
            *word |= 1 << (port.0 & 63);
        }
    }

    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    /// In order.
    pub fn iter(self) -> impl Iterator<Item = PortId> {
        (0..=u8::MAX).map(PortId).filter(move |port| self.contains(*port))
    }
}
