//! Bounds on what clients can make the box hold, and what becomes of those who meet them.

use serde::{Deserialize, Serialize};

use super::{Action, Policy};
use crate::sources::SourceLimits;

/// No room to hold more bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldFull {
    /// The segment is dropped; the client sends it again when there may be room.
    #[default]
    Wait,
    /// The connection is reset.
    Reset,
    /// The connection is dropped silently.
    Drop,
}

/// Bounds of the whole box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows whose handshake is not complete.
    pub half_open: u32,
    /// Octets of clients that wait for a verdict, all workers together. `None`: as many as the pipelines were built for.
    pub held: Option<u64>,
    /// What becomes of a segment that would have to be held and finds no room.
    pub held_full: HeldFull,
    /// Bounds for each source prefix: an IPv4 address, an IPv6 /64.
    pub source: SourceLimits,
    /// What a SYN beyond its source's bounds gets: `Reset` or `Drop`.
    pub source_over: Action,
}

impl Default for Limits {
    /// What a configuration file without limits means for a box of 1,048,576 flows: an eighth of them half-open, segments
    /// wait for room, and sources have no bounds.
    fn default() -> Self {
        Self {
            half_open: 131_072,
            held: None,
            held_full: HeldFull::Wait,
            source: SourceLimits::default(),
            source_over: Action::Drop,
        }
    }
}

impl Policy {
    /// How many holds one of `workers` is to have, which has room for `flows` connections, and the octets of each. `None`: it
    /// says nothing of that.
    pub fn hold_room(&self, workers: usize, flows: usize) -> Option<(usize, usize)> {
        let held = self.limits.held?;
        let hold = self.intercepts().iter().map(|intercept| intercept.hold_bytes).max().unwrap_or(0);
        let (workers, flows) = (workers.max(1) as u64, flows as u64);
        let count = (held / u64::from(hold).max(1)).min(flows * workers).div_ceil(workers).max(16);
        Some((count.min(flows) as usize, hold as usize))
    }
}
