//! The lane's devices and next hops by the numbers that the program calls them by.
//!
//! A next hop keeps its number while a connection in the lane names it, or a worker may be about to let one in that does. Which
//! numbers are free again is looked for when many are taken: first a new period begins, and each worker asks for the numbers of
//! what enters from then on ([`Ways::learn_period`]); when all of them do, the program's map is read, and a number that no
//! entry names, and that nobody has asked for since, is given to another next hop when one needs it. So no entry ever meets a number
//! that has changed its meaning.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use weir_core::express::WayOut;
use weir_core::fib::{Fib, Way};
use weir_core::flow::key::FlowKey;
use weir_core::ids::{MAX_PORTS, PortId};
use weir_sys::steering::{Express, ExpressHop, FormerLane, Sweep};

use super::former::Former;
use super::strays::Strays;

/// Numbers that there are.
const NUMBERS: usize = 1 << u16::BITS;
/// So many are taken, and it is looked for those that are free again.
const MANY: usize = NUMBERS / 4 * 3;
/// After that it is not looked again for so many calls: they may all be in use.
const REST: u32 = 60;

/// The lane's devices and next hops, shared by workers and control. No packet waits for the lock: it is taken when a connection
/// enters by a way that the worker has not used yet, and when the host changes.
#[derive(Debug)]
pub struct Ways {
    express: Express,
    former: Former,
    strays: Strays,
    known: Mutex<Known>,
    /// Written with the lock held (Release); workers read it (Acquire) without.
    period: AtomicU32,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    links: [Option<u8>; MAX_PORTS],
    hops: HashMap<(PortId, IpAddr), u16>,
    /// What each number means. Of one that a process before gave it may not be known.
    meanings: Vec<Option<Meaning>>,
    /// Numbers below the length of `meanings` that nobody uses.
    free: Vec<u16>,
    fib: Arc<Fib>,
    search: Search,
    /// The period that each worker has learned.
    workers: Vec<Weak<AtomicU32>>,
}

#[derive(Clone, Copy, Debug)]
struct Meaning {
    way: (PortId, IpAddr),
    /// The period in which it was asked for last.
    asked: u32,
}

/// How far it is with looking for free numbers.
#[derive(Clone, Copy, Debug)]
enum Search {
    /// For so many calls more.
    Rests(u32),
    /// Until all workers have learned of the period.
    Waits,
    /// Somebody reads the map.
    Reads,
}

impl Default for Search {
    fn default() -> Self {
        Self::Rests(0)
    }
}

impl Ways {
    /// `former`: lanes of other layouts, which may name next hops as well.
    pub fn new(express: Express, former: Vec<FormerLane>) -> Self {
        let former = Former::new(former);
        Self {
            express,
            former,
            strays: Strays::default(),
            known: Mutex::default(),
            period: AtomicU32::new(0),
        }
    }

    /// Lanes of other layouts.
    pub const fn former(&self) -> &Former {
        &self.former
    }

    /// Connections of the lane that no worker knows.
    pub const fn strays(&self) -> &Strays {
        &self.strays
    }

    /// The program's maps.
    pub const fn express(&self) -> &Express {
        &self.express
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what number the program calls a port's device by; `None`: it has none.
    pub fn set_link(&self, port: PortId, link: Option<u8>) {
        let mut known = self.known();
        if let Some(place) = known.links.get_mut(usize::from(port.0)) {
            *place = link;
        }
        self.renew(&known);
    }

    /// Tells the program of the next hops as they are now. One that is not resolved, or whose link is down, sends packets to the
    /// workers until it is.
    pub fn follow(&self, fib: &Arc<Fib>) {
        let mut known = self.known();
        known.fib = fib.clone();
        self.renew(&known);
    }

    fn renew(&self, known: &Known) {
        for (number, meaning) in (0..).zip(&known.meanings) {
            let Some(Meaning { way: (port, router), .. }) = meaning else { continue };
            if let Err(error) = self.express.set_hop(number, &known.hop(*port, *router)) {
                tracing::error!(%error, "express lane: a next hop stays as it was");
            }
        }
    }

    /// A worker that will ask for numbers: where it says which period it has learned of.
    pub(super) fn enrol(&self) -> Arc<AtomicU32> {
        let mut known = self.known();
        let learned = Arc::new(AtomicU32::new(self.period.load(Ordering::Acquire)));
        known.workers.push(Arc::downgrade(&learned));
        learned
    }

    /// Called by a worker that has no entry under way: whether it must ask again for numbers that it knows.
    pub(super) fn learn_period(&self, learned: &AtomicU32) -> bool {
        let period = self.period.load(Ordering::Acquire);
        let is_new = learned.load(Ordering::Relaxed) != period;
        if is_new {
            // Pairs with the load in `wants_sweep`: entries with numbers of the period before are in the map by then.
            learned.store(period, Ordering::Release);
        }
        is_new
    }

    /// The numbers of a way out: its device's and its next hop's. `None`: no device, or no number left.
    pub(super) fn number(&self, way: WayOut) -> Option<(u8, u16)> {
        let mut known = self.known();
        let (port, router) = (way.0, way.1.ip());
        let link = known.links.get(usize::from(port.0)).copied().flatten()?;
        let asked = self.period.load(Ordering::Relaxed);
        let meaning = Meaning { way: (port, router), asked };
        if let Some(number) = known.hops.get(&(port, router)).copied() {
            *known.meanings.get_mut(usize::from(number))? = Some(meaning);
            return Some((link, number));
        }
        let number = match known.free.last() {
            Some(number) => *number,
            None => u16::try_from(known.meanings.len()).ok()?,
        };
        self.express.set_hop(number, &known.hop(port, router)).ok()?;
        known.take(number, meaning);
        Some((link, number))
    }

    /// Whether the map is to be read for free numbers ([`Self::free_numbers`]): called about once a second.
    pub fn wants_sweep(&self) -> bool {
        let mut known = self.known();
        match known.search {
            Search::Rests(0) if known.taken() >= MANY => {
                self.period.fetch_add(1, Ordering::Release);
                known.search = Search::Waits;
                false
            }
            Search::Rests(calls) => {
                known.search = Search::Rests(calls.saturating_sub(1));
                false
            }
            Search::Waits => {
                let period = self.period.load(Ordering::Relaxed);
                known.workers.retain(|worker| worker.strong_count() > 0);
                let mut learned = known.workers.iter().filter_map(Weak::upgrade);
                let have_all = learned.all(|learned| learned.load(Ordering::Acquire) == period);
                if have_all {
                    known.search = Search::Reads;
                }
                have_all
            }
            Search::Reads => false,
        }
    }

    /// Reads the map, all of it, and frees the numbers that no entry names and nobody has asked for in this period.
    ///
    /// # Errors
    /// The map cannot be read; no number is freed.
    pub fn free_numbers(&self) -> io::Result<()> {
        let named = self.named();
        let mut known = self.known();
        known.search = Search::Rests(REST);
        let period = self.period.load(Ordering::Relaxed);
        known.keep(&named?, period);
        tracing::debug!(taken = known.taken(), "express lane: numbers of next hops");
        Ok(())
    }

    /// Of each number, whether an entry names it.
    fn named(&self) -> io::Result<Vec<bool>> {
        let mut named = vec![false; NUMBERS];
        let mut name = |hop: u16| {
            if let Some(named) = named.get_mut(usize::from(hop)) {
                *named = true;
            }
        };
        for lane in self.former.lanes() {
            lane.flows(|flow| name(flow.hop))?;
        }
        let mut sweep = Sweep::default();
        loop {
            let more = self.express.sweep(&mut sweep)?;
            sweep.entries().for_each(|entry| name(entry.hop));
            if !more {
                return Ok(named);
            }
        }
    }
}

impl Known {
    /// A process before has called the way to `dst` by this number.
    pub(super) fn recall(&mut self, number: u16, dst: IpAddr, flow: &FlowKey) {
        let at = usize::from(number);
        if self.meanings.len() <= at {
            self.meanings.resize(at + 1, None);
        }
        let Some(way) = self.fib.gateway(dst, flow, Way::NONE) else { return };
        if let Some(meaning) = self.meanings.get_mut(at) {
            *meaning = Some(Meaning { way, asked: 0 });
        }
        self.hops.entry(way).or_insert(number);
    }

    fn hop(&self, port: PortId, router: IpAddr) -> ExpressHop {
        let link = self.links.get(usize::from(port.0)).copied().flatten();
        match (link, self.fib.neighbour(port, router)) {
            (Some(link), Some((of, dst_mac))) => {
                ExpressHop { link, dst_mac, src_mac: of.mac, mtu: of.mtu, is_up: true }
            }
            _ => ExpressHop { link: 0, dst_mac: [0; 6], src_mac: [0; 6], mtu: 0, is_up: false },
        }
    }

    /// Numbers that are somebody's, or may be.
    const fn taken(&self) -> usize {
        self.meanings.len() - self.free.len()
    }

    /// Gives a number that was free, or the next one, a meaning.
    fn take(&mut self, number: u16, meaning: Meaning) {
        match self.meanings.get_mut(usize::from(number)) {
            Some(place) => {
                *place = Some(meaning);
                self.free.pop();
            }
            None => self.meanings.push(Some(meaning)),
        }
        self.hops.insert(meaning.way, number);
    }

    /// All numbers are free but those that are named, or were asked for in this period.
    fn keep(&mut self, named: &[bool], period: u32) {
        self.free.clear();
        // The lowest are given first.
        for (number, meaning) in (0..=u16::MAX).zip(&mut self.meanings).rev() {
            let is_asked = meaning.is_some_and(|meaning| meaning.asked == period);
            if is_asked || named.get(usize::from(number)).is_none_or(|named| *named) {
                continue;
            }
            if let Some(Meaning { way, .. }) = meaning.take()
                && self.hops.get(&way) == Some(&number)
            {
                self.hops.remove(&way);
            }
            self.free.push(number);
        }
    }
}

#[cfg(test)]
mod tests;
