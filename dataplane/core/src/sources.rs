//! How many flows each source has, and how fast it opens new ones.
//!
//! A source is a prefix: an IPv4 address, or an IPv6 /64, since a host chooses the rest of its address freely (RFC 8981).
//! The table has a fixed number of slots. A source without flows that has been quiet gives up its slot to another; when
//! every slot that a source could have is taken by others, it is let in without being counted: a full table refuses
//! nobody. The verdict stage asks at a SYN and tells when a flow ends.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use crate::flow::key::FlowHasher;
use crate::ids::Nanos;
use crate::wire::addr::Addr;

/// Slots that a source may have; it is looked for in all of them.
const WAYS: usize = 8;

/// Sources that a road can count.
pub const SOURCES: usize = 65_536;

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

    /// What a new flow costs of the time that a rate grants.
    fn price(&self) -> Option<Nanos> {
        Some(Nanos(BURST.0.checked_div(u64::from(self.rate?)).unwrap_or(u64::MAX)))
    }

    /// Whether a source without flows may have one.
    fn admits_any(&self) -> Result<(), Over> {
        match (self.flows, self.rate) {
            (Some(0), _) => Err(Over::Flows),
            (_, Some(0)) => Err(Over::Rate),
            _ => Ok(()),
        }
    }
}

/// Which bound a source has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Flows,
    Rate,
}

/// The sources that have flows, or had some lately. Any thread may count: what a slot says is in one word.
#[derive(Debug)]
pub struct Sources {
    sets: Box<[[Slot; WAYS]]>,
    hasher: FlowHasher,
    /// Flows let in without being counted, since there was no slot.
    untracked: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Whose it is, half a hash of the prefix, and how many flows that has: [`State`].
    state: AtomicU64,
    /// When all that was opened has been paid for, at the rate: the theoretical arrival time of the generic cell rate
    /// algorithm (ITU-T I.371), a token bucket in one number.
    paid: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    tag: u32,
    flows: u32,
}

impl State {
    const fn of(word: u64) -> Self {
        Self { tag: (word >> 32) as u32, flows: word as u32 }
    }

    const fn word(self) -> u64 {
        (self.tag as u64) << 32 | self.flows as u64
    }
}

/// Why a flow was not counted in a slot.
enum Refused {
    Over(Over),
    /// Another source has the slot by now.
    Gone,
}

impl Slot {
    // Two threads that take slots for one source must not both miss what the other did, hence SeqCst.
    fn state(&self) -> State {
        State::of(self.state.load(SeqCst))
    }

    fn swap(&self, from: State, to: State) -> bool {
        self.state.compare_exchange(from.word(), to.word(), SeqCst, SeqCst).is_ok()
    }

    /// Whether somebody else may have it.
    fn is_idle(&self, now: Nanos) -> bool {
        self.state().flows == 0 && self.paid.load(Relaxed) <= now.0
    }

    /// Counts one more flow, unless a bound forbids it.
    fn admit(&self, now: Nanos, tag: u32, limits: &SourceLimits) -> Result<(), Refused> {
        let price = limits.price();
        let is_over = |flows: u32| limits.flows.is_some_and(|most| flows >= most);
        if is_over(self.state().flows) {
            return Err(Refused::Over(Over::Flows));
        }
        if let Some(price) = price {
            let pay = |paid: u64| {
                let paid = Nanos(paid).max(now).saturating_add(price);
                (paid <= now.saturating_add(BURST)).then_some(paid.0)
            };
            self.paid.fetch_update(Relaxed, Relaxed, pay).map_err(|_| Refused::Over(Over::Rate))?;
        }
        loop {
            let state = self.state();
            let refused = match state {
                _ if state.tag != tag => Refused::Gone,
                _ if is_over(state.flows) => Refused::Over(Over::Flows),
                _ if self.swap(state, State { flows: state.flows.saturating_add(1), ..state }) => {
                    return Ok(());
                }
                _ => continue,
            };
            if let Some(price) = price {
                self.paid.fetch_sub(price.0, Relaxed);
            }
            return Err(refused);
        }
    }
}

impl Sources {
    /// Room for at least this many sources. The seed is secret, so that nobody can choose addresses that share slots.
    pub fn new(sources: usize, seed: u64) -> Self {
        let sets = sources.div_ceil(WAYS).max(1).next_power_of_two();
        Self {
            sets: (0..sets).map(|_| Default::default()).collect(),
            hasher: FlowHasher::new(seed),
            untracked: AtomicU64::new(0),
        }
    }

    /// Counts a new flow of `source`.
    ///
    /// # Errors
    /// The bound that forbids it; then nothing is counted.
    pub fn admit(&self, now: Nanos, source: &Addr, limits: &SourceLimits) -> Result<(), Over> {
        if !limits.any() {
            return Ok(());
        }
        limits.admits_any()?;
        let (tag, set) = self.place(source);
        // Others may be taking slots at the same time: as often as there are slots.
        for _ in 0..WAYS {
            let Some(slot) = set.iter().find(|slot| slot.state().tag == tag).or_else(|| take(set, now, tag))
            else {
                break;
            };
            match slot.admit(now, tag, limits) {
                Ok(()) => return Ok(()),
                Err(Refused::Over(over)) => return Err(over),
                Err(Refused::Gone) => {}
            }
        }
        self.untracked.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Counts a flow of `source` that is there already, whatever the bounds say.
    pub(crate) fn count(&self, now: Nanos, source: &Addr) {
        let whatever = SourceLimits { flows: Some(u32::MAX), rate: None };
        // Nothing forbids it, but for four billions of them.
        let _counted = self.admit(now, source, &whatever);
    }

    /// A flow of `source` that was admitted has ended. One that was let in uncounted, or while there were no bounds, may
    /// end in another's place, so that a source can have a few more than its bound, never fewer.
    pub fn leave(&self, source: &Addr) {
        let (tag, set) = self.place(source);
        for slot in set {
            loop {
                let state = slot.state();
                let Some(flows) = state.flows.checked_sub(1).filter(|_| state.tag == tag) else { break };
                if slot.swap(state, State { flows, ..state }) {
                    return;
                }
            }
        }
    }

    /// Flows of a source's prefix at this time.
    pub fn flows(&self, source: &Addr) -> u32 {
        let (tag, set) = self.place(source);
        set.iter().map(Slot::state).find(|state| state.tag == tag).map_or(0, |state| state.flows)
    }

    /// Flows let in without being counted, since there was no slot.
    pub fn untracked(&self) -> u64 {
        self.untracked.load(Relaxed)
    }

    /// What a source's slot is marked with, and where it may be. The number of sets is a power of two.
    fn place(&self, source: &Addr) -> (u32, &[Slot]) {
        let hash = self.hasher.hash_any(&prefix_of(source));
        let set = self.sets.get(hash as usize & (self.sets.len() - 1));
        ((hash >> 32) as u32, set.map_or(&[], |set| &set[..]))
    }
}

/// A slot that nobody needs, marked as this source's. None where another thread has taken one for it meanwhile.
fn take(set: &[Slot], now: Nanos, tag: u32) -> Option<&Slot> {
    let mine = State { tag, flows: 0 };
    let slot =
        set.iter().find(|slot| slot.is_idle(now) && slot.swap(State { flows: 0, ..slot.state() }, mine))?;
    let is_only = set.iter().filter(|other| other.state().tag == tag).count() == 1;
    if !is_only && slot.swap(mine, State { tag: !tag, flows: 0 }) {
        // Whoever looks again finds the other's, or takes one.
        return set.iter().find(|slot| slot.state().tag == tag);
    }
    Some(slot)
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
