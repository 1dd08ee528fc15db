//! How many flows each source has, and how fast it opens new ones.
//!
//! A source is a prefix: an IPv4 address, or an IPv6 /64, since a host chooses the rest of its address freely (RFC 8981).
//! The table has a fixed number of slots. A source without flows that has been quiet gives up its slot to another; when
//! every slot that a source could have is taken by others, it is let in without being counted: a full table refuses
//! nobody. The verdict stage asks at a SYN and tells when a flow ends.

use crate::flow::key::FlowHasher;
use crate::ids::Nanos;
use crate::wire::addr::Addr;

/// Slots that a source may have; it is looked for in all of them.
const WAYS: usize = 8;

/// One second: the burst of a rate is what it grants in this time.
const BURST: Nanos = Nanos::from_secs(1);

/// Bounds for each source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceLimits {
    /// Flows at a time.
    pub flows: Option<u32>,
    /// New flows per second, and at once after a quiet second.
    pub rate: Option<u32>,
}

impl SourceLimits {
    /// Whether there is any.
    pub const fn any(&self) -> bool {
        self.flows.is_some() || self.rate.is_some()
    }

    /// One worker's part where `workers` share a source's flows evenly, rounded up.
    pub fn part_of(&self, workers: u32) -> Self {
        let part = |whole: u32| whole.div_ceil(workers.max(1));
        Self { flows: self.flows.map(part), rate: self.rate.map(part) }
    }
}

/// Which bound a source has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Flows,
    Rate,
}

/// The sources that have flows, or had some lately.
#[derive(Debug)]
pub struct Sources {
    sets: Box<[[Slot; WAYS]]>,
    hasher: FlowHasher,
    /// Flows let in without being counted, since there was no slot.
    untracked: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    prefix: Addr,
    flows: u32,
    /// When all that was opened has been paid for, at the rate: the theoretical arrival time of the generic cell rate
    /// algorithm (ITU-T I.371), a token bucket in one number.
    paid: Nanos,
}

impl Slot {
    /// Whether somebody else may have it.
    fn is_idle(&self, now: Nanos) -> bool {
        self.flows == 0 && self.paid <= now
    }

    /// Counts one more flow, unless a bound forbids it.
    fn admit(&mut self, now: Nanos, limits: &SourceLimits) -> Result<(), Over> {
        if limits.flows.is_some_and(|most| self.flows >= most) {
            return Err(Over::Flows);
        }
        if let Some(rate) = limits.rate {
            let price = Nanos(BURST.0.checked_div(u64::from(rate)).unwrap_or(u64::MAX));
            let paid = self.paid.max(now).saturating_add(price);
            if paid > now.saturating_add(BURST) {
                return Err(Over::Rate);
            }
            self.paid = paid;
        }
        self.flows = self.flows.saturating_add(1);
        Ok(())
    }
}

impl Sources {
    /// Room for at least this many sources. The seed is secret, so that nobody can choose addresses that share slots.
    pub fn new(sources: usize, seed: u64) -> Self {
        let sets = sources.div_ceil(WAYS).max(1).next_power_of_two();
        Self {
            sets: vec![[Slot::default(); WAYS]; sets].into_boxed_slice(),
            hasher: FlowHasher::new(seed),
            untracked: 0,
        }
    }

    /// Counts a new flow of `source`.
    ///
    /// # Errors
    /// The bound that forbids it; then nothing is counted.
    pub fn admit(&mut self, now: Nanos, source: &Addr, limits: &SourceLimits) -> Result<(), Over> {
        if !limits.any() {
            return Ok(());
        }
        let prefix = prefix_of(source);
        let Some(set) = self.set(&prefix) else { return Ok(()) };
        if let Some(slot) = set.iter_mut().find(|slot| slot.prefix == prefix) {
            return slot.admit(now, limits);
        }
        if let Some(slot) = set.iter_mut().find(|slot| slot.is_idle(now)) {
            let mut fresh = Slot { prefix, ..Slot::default() };
            fresh.admit(now, limits)?;
            *slot = fresh;
            return Ok(());
        }
        self.untracked += 1;
        Ok(())
    }

    /// Counts a flow of `source` that is there already, whatever the bounds say.
    pub(crate) fn count(&mut self, now: Nanos, source: &Addr) {
        let whatever = SourceLimits { flows: Some(u32::MAX), rate: None };
        // Nothing forbids it, but for four billions of them.
        let _counted = self.admit(now, source, &whatever);
    }

    /// A flow of `source` that was admitted has ended. One that was let in uncounted, or while there were no bounds, may
    /// end in another's place, so that a source can have a few more than its bound, never fewer.
    pub fn leave(&mut self, source: &Addr) {
        let prefix = prefix_of(source);
        if let Some(slot) =
            self.set(&prefix).and_then(|set| set.iter_mut().find(|slot| slot.prefix == prefix))
        {
            slot.flows = slot.flows.saturating_sub(1);
        }
    }

    /// Flows of a source's prefix at this time.
    pub fn flows(&self, source: &Addr) -> u32 {
        let prefix = prefix_of(source);
        let set = self.sets.get(self.place(&prefix));
        set.and_then(|set| set.iter().find(|slot| slot.prefix == prefix)).map_or(0, |slot| slot.flows)
    }

    /// Flows let in without being counted, since there was no slot.
    pub const fn untracked(&self) -> u64 {
        self.untracked
    }

    fn set(&mut self, prefix: &Addr) -> Option<&mut [Slot; WAYS]> {
        let place = self.place(prefix);
        self.sets.get_mut(place)
    }

    /// The number of sets is a power of two.
    fn place(&self, prefix: &Addr) -> usize {
        self.hasher.hash_any(prefix) as usize & (self.sets.len() - 1)
    }
}

/// The /32 of an IPv4 address, the /64 of an IPv6 one.
fn prefix_of(source: &Addr) -> Addr {
    let mut prefix = *source;
    if !source.is_v4() {
        let (_, host) = prefix.0.split_at_mut(8);
        host.fill(0);
    }
    prefix
}

#[cfg(test)]
mod tests;
