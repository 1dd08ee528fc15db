//! Small numbers that must not be mixed up.

use serde::{Deserialize, Serialize};

/// A NIC the dataplane owns: its place in the configuration's list of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortId(pub u8);

/// The most ports a box can have.
pub const MAX_PORTS: usize = 32;

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

/// A set of ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSet(pub u32);

impl PortSet {
    pub const fn contains(self, port: PortId) -> bool {
        port.0 < MAX_PORTS as u8 && self.0 & (1 << port.0) != 0
    }
    pub fn insert(&mut self, port: PortId) {
        if (port.0 as usize) < MAX_PORTS {
            self.0 |= 1 << port.0;
        }
    }
    /// In order.
    pub fn iter(self) -> impl Iterator<Item = PortId> {
        (0..MAX_PORTS as u8).map(PortId).filter(move |port| self.contains(*port))
    }
}
