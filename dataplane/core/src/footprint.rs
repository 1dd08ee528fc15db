//! How much memory a worker's pipeline takes, before it is made: whoever starts it can refuse in a sentence what would else end
//! in the middle of an allocation.
//!
//! Everything that grows with the configuration has its full size from the start. What does not (caches of fixed size, the rules)
//! is left out: it is a few MiB.

use crate::flow::legs::Legs;
use crate::flow::names::NameStore;
use crate::flow::table::FlowTable;
use crate::hold::Holds;
use crate::pipeline::Config;

/// Octets of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Held from the start.
    pub held: usize,
    /// Asked for from the start, and held when it is used.
    pub reserved: usize,
}

/// What a pipeline of frames `F` made from `config` takes.
pub fn of<F>(config: &Config) -> Footprint {
    let (legs, reserved) = Legs::octets(config.flows.fast);
    let parts = [
        FlowTable::octets(config.flows),
        legs,
        NameStore::octets(config.names),
        Holds::<F>::octets(config.holds, config.hold_bytes),
    ];
    Footprint { held: parts.into_iter().fold(0, usize::saturating_add), reserved }
}

/// Octets of a hash table of slot numbers with room for `capacity`: seven eighths of a power of two of buckets, each a number and
/// an octet of its hash.
pub(crate) const fn index_octets(capacity: usize) -> usize {
    (capacity.saturating_mul(8) / 7).next_power_of_two().saturating_mul(size_of::<u32>() + 1)
}
