//! All connections of a worker: a fixed number of slots, an index over them, one timer each.

use std::mem::MaybeUninit;

use hashbrown::HashTable;

use crate::footprint::index_octets;
use crate::hops::{Hops, Line};
use crate::ids::Nanos;

use super::key::{FlowHasher, FlowKey, Tuple};
use super::record::{Flow, Side, Stage};
use super::wheel::Wheel;

/// How long one tick of the flow timers is.
const TICK: Nanos = Nanos::from_millis(20);
/// Slots that are looked at for one that can be had, as in `early_drop` of net/netfilter/nf_conntrack_core.c.
const LOOKED_AT: u32 = 64;
/// The same for connections that the kernel has: of each that is asked, which is a system call.
const ASKED: u32 = 16;
/// All slots are looked at no oftener for connections that the kernel has.
const LAP: Nanos = Nanos::from_secs(1);

/// How many connections there is room for.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Connections of the fast road.
    pub fast: usize,
    /// Connections given to the kernel that are remembered, so that none of them is ever taken for an unknown one.
    pub kernel: usize,
}

/// Which slots were looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Hand {
    at: u32,
    /// When it was at slot 0.
    lap: Nanos,
}

impl Hand {
    /// The next few of so many slots, up to the last one.
    fn next(&mut self, count: u32, total: u32) -> std::ops::Range<u32> {
        let start = self.at.min(total);
        let end = start.saturating_add(count).min(total);
        self.at = if end == total { 0 } else { end };
        start..end
    }
}

/// The table. Slots are named by `u32`.
#[derive(Debug)]
pub struct FlowTable {
    hasher: FlowHasher,
    capacity: Capacity,
    /// Of buckets of one cache line, tags and slots together, it was as fast at a million connections, and cost 8 instructions more.
    index: HashTable<u32>,
    /// [`Flow::NONE`] where there is none.
    slots: Vec<Flow>,
    free: Vec<u32>,
    kernel: usize,
    half_open: usize,
    /// On the fast road, of stage [`Stage::Closed`].
    closed: usize,
    /// Where the next look around begins: for one that is over, and for some that the kernel has.
    hands: [Hand; 2],
    wheel: Wheel,
}

impl FlowTable {
    pub fn new(capacity: Capacity, hasher: FlowHasher, now: Nanos) -> Self {
        Self::with_memory(capacity, hasher, now, |_| {})
    }

    /// The same. `prepare` is shown the memory of the slots before anything is in it.
    pub fn with_memory(
        capacity: Capacity,
        hasher: FlowHasher,
        now: Nanos,
        prepare: impl FnOnce(&[MaybeUninit<Flow>]),
    ) -> Self {
        let total = (capacity.fast + capacity.kernel).min(u32::MAX as usize - 1);
        let mut slots = Vec::with_capacity(total);
        prepare(slots.spare_capacity_mut());
        slots.resize(total, Flow::NONE);
        Self {
            hasher,
            capacity,
            // Twice the slots, so that removed entries are cleared in place and the index never allocates again.
            index: HashTable::with_capacity(total * 2),
            slots,
            free: (0..total as u32).rev().collect(),
            kernel: 0,
            half_open: 0,
            closed: 0,
            hands: [Hand::default(); 2],
            wheel: Wheel::new(total, TICK, now),
        }
    }

    /// Octets that a table of this capacity holds.
    pub const fn octets(capacity: Capacity) -> usize {
        let total = capacity.fast.saturating_add(capacity.kernel);
        let slot = size_of::<Flow>() + size_of::<u32>() + Wheel::OCTETS_PER_SLOT;
        index_octets(total.saturating_mul(2)).saturating_add(total.saturating_mul(slot))
    }

    pub const fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Connections on the fast road, and those given to the kernel.
    pub fn len(&self) -> (usize, usize) {
        (self.index.len() - self.kernel, self.kernel)
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    #[inline]
    pub fn find(&self, key: &FlowKey) -> Option<u32> {
        let hash = self.hasher.hash(key);
        self.index.find(hash, |&slot| self.get(slot).is_some_and(|f| f.key == *key)).copied()
    }

    /// The slot that the index names first for this hash: nearly always the right one. It is not looked at, but what a packet needs of
    /// it is fetched: who looks at it some packets later finds it at hand. `both`: two cache lines.
    #[inline]
    pub fn expect(&self, hash: u64, both: bool) -> u32 {
        let slot = self.index.find(hash, |_| true).map_or(u32::MAX, |slot| *slot);
        if let Some(flow) = self.slots.get(slot as usize) {
            flow.prefetch(both);
        }
        slot
    }

    /// Where the connection of a packet is, and which end sent it. `hash` is [`FlowHasher::hash_of`] of the packet's tuple.
    #[inline]
    pub fn locate(&self, likely: u32, hash: u64, tuple: &Tuple) -> Option<(u32, Side)> {
        let side = |slot: u32| Some((slot, self.get(slot)?.side_of(tuple)?));
        side(likely).or_else(|| side(*self.index.find(hash, |&slot| side(slot).is_some())?))
    }

    /// The connection in this slot, which end sent a packet, and the line that it takes, if the packet is of it and plain ones need no
    /// thought. What is done with it does not change that.
    #[inline(always)]
    pub(crate) fn open<'a>(
        &mut self,
        slot: u32,
        tuple: &Tuple,
        v6: bool,
        hops: &'a Hops,
    ) -> Option<(&mut Flow, Side, &'a Line)> {
        let flow = self.slots.get_mut(slot as usize)?;
        let line = hops.line(flow.line).filter(|line| line.v6 == v6)?;
        let side = flow.side_at_once(tuple, v6)?;
        Some((flow, side, line))
    }

    #[inline]
    pub fn get(&self, slot: u32) -> Option<&Flow> {
        self.slots.get(slot as usize).filter(|flow| flow.low.is_some())
    }

    /// Whether the connection has had a multiple of so many packets. It is one that is there: of its record the first line alone is read.
    #[inline]
    pub fn has_passed(&self, slot: u32, packets: u32) -> bool {
        self.slots
            .get(slot as usize)
            .is_some_and(|flow| flow.client.packets.wrapping_add(flow.server.packets).is_multiple_of(packets))
    }

    /// The connection, for whatever is to be done with it: the next packet is to look at it as a whole.
    #[inline]
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Flow> {
        let flow = self.slots.get_mut(slot as usize).filter(|flow| flow.low.is_some())?;
        flow.line = 0;
        Some(flow)
    }

    /// A sender of this connection, if it is the one of the packet, leaves checksums to others. Nothing else changes.
    pub(crate) fn note_unsummed(&mut self, slot: u32, tuple: &Tuple) {
        let flow = self.slots.get_mut(slot as usize);
        if let Some(flow) = flow.filter(|flow| flow.side_of(tuple).is_some()) {
            flow.unsummed = true;
        }
    }

    /// As long as nobody calls [`Self::get_mut`], and as long as there is this line, plain segments of this connection need no thought.
    pub(crate) fn set_open(&mut self, slot: u32, line: u32) {
        if let Some(flow) = self.get_mut(slot) {
            flow.line = line;
        }
    }

    /// Slots, in use or not.
    pub fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Whether a connection of this kind still has room.
    pub fn has_room(&self, stage: Stage) -> bool {
        let (fast, kernel) = self.len();
        match stage {
            Stage::Kernel => kernel < self.capacity.kernel,
            _ => fast < self.capacity.fast,
        }
    }

    /// More than seven eighths of the room for connections given to the kernel are taken.
    pub const fn is_kernel_crowded(&self) -> bool {
        self.kernel * 8 > self.capacity.kernel * 7
    }

    /// Whether there are connections of stage [`Stage::Closed`].
    pub const fn has_closed(&self) -> bool {
        self.closed > 0
    }

    /// The next few slots, in turns, whatever is in them: for a connection that is over.
    pub(crate) fn look_for_closed(&mut self) -> impl Iterator<Item = u32> + use<> {
        let total = self.slots();
        let [hand, _] = &mut self.hands;
        hand.next(LOOKED_AT, total)
    }

    /// The same for connections that the kernel has: each is looked at once in [`LAP`] at most, since that costs a system call.
    pub(crate) fn look_for_kernels(&mut self, now: Nanos) -> impl Iterator<Item = u32> + use<> {
        let total = self.slots();
        let [_, hand] = &mut self.hands;
        let is_early = hand.at == 0 && now < hand.lap.saturating_add(LAP) && hand.lap > Nanos(0);
        if hand.at == 0 && !is_early {
            hand.lap = now;
        }
        hand.next(if is_early { 0 } else { ASKED }, total)
    }

    /// Adds a connection whose key is not in the table; `None` when its kind has no room.
    pub fn insert(&mut self, flow: Flow) -> Option<u32> {
        if !self.has_room(flow.stage) {
            return None;
        }
        let slot = self.free.pop()?;
        let hash = self.hasher.hash(&flow.key);
        let (hasher, slots) = (&self.hasher, &self.slots);
        self.index
            .insert_unique(hash, slot, |&s| slots.get(s as usize).map_or(0, |flow| hasher.hash(&flow.key)));
        self.kernel += usize::from(flow.stage == Stage::Kernel);
        self.half_open += usize::from(flow.stage.is_half_open());
        self.closed += usize::from(flow.stage == Stage::Closed);
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = flow;
        }
        Some(slot)
    }

    /// Forgets a connection.
    pub fn remove(&mut self, slot: u32) -> Option<Flow> {
        let flow = std::mem::replace(self.get_mut(slot)?, Flow::NONE);
        self.wheel.cancel(slot);
        self.kernel -= usize::from(flow.stage == Stage::Kernel);
        self.half_open -= usize::from(flow.stage.is_half_open());
        self.closed -= usize::from(flow.stage == Stage::Closed);
        let hash = self.hasher.hash(&flow.key);
        if let Ok(entry) = self.index.find_entry(hash, |&s| s == slot) {
            entry.remove();
        }
        self.free.push(slot);
        Some(flow)
    }

    /// Moves a connection to another stage of the fast road.
    #[inline]
    pub fn set_stage(&mut self, slot: u32, stage: Stage) {
        let Some(flow) = self.get_mut(slot) else { return };
        let before = std::mem::replace(&mut flow.stage, stage);
        self.half_open -= usize::from(before.is_half_open());
        self.half_open += usize::from(stage.is_half_open());
        self.closed -= usize::from(before == Stage::Closed);
        self.closed += usize::from(stage == Stage::Closed);
    }

    /// Connections whose handshake is not complete.
    pub const fn half_open(&self) -> usize {
        self.half_open
    }

    /// Sets the connection's timer.
    #[inline]
    pub fn arm(&mut self, slot: u32, at: Nanos) {
        self.wheel.arm(slot, at);
    }

    /// Collects connections whose timer has run out, as many as `due` has capacity for.
    pub fn poll(&mut self, now: Nanos, due: &mut Vec<u32>) {
        self.wheel.poll(now, due);
    }

    /// Whether the last [`Self::poll`] has left some.
    pub const fn is_behind(&self) -> bool {
        self.wheel.is_behind()
    }

    /// When the next timer runs out, at the earliest; none: there is none.
    pub fn next_timer(&self) -> Option<Nanos> {
        self.wheel.next()
    }

    /// The connections in slots from `cursor` on, and their slots.
    pub fn iter_from(&self, cursor: u32) -> impl Iterator<Item = (u32, &Flow)> {
        self.slots
            .iter()
            .enumerate()
            .skip(cursor as usize)
            .filter(|(_, flow)| flow.low.is_some())
            .map(|(slot, flow)| (slot as u32, flow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::NextHop;
    use crate::flow::key::Tuple;
    use crate::hops::HopNumbers;
    use crate::ids::{InterceptId, PortId};
    use crate::wire::addr::{Addr, Endpoint};

    fn flow(n: u16, stage: Stage) -> Flow {
        let src = Endpoint { addr: Addr::v4([10, 0, 0, 1]), port: n };
        let dst = Endpoint { addr: Addr::v4([192, 0, 2, 1]), port: 443 };
        let mut flow = Flow::new(&Tuple { src, dst }, PortId(0), InterceptId(0), 1, Nanos(0));
        flow.stage = stage;
        flow
    }

    #[test]
    fn insert_at_capacity_is_refused_by_kind() {
        let mut table = FlowTable::new(Capacity { fast: 3, kernel: 2 }, FlowHasher::new(3), Nanos(0));
        let slots: Vec<_> = (0..3).map(|n| table.insert(flow(n, Stage::SynSent)).unwrap()).collect();
        assert_eq!(table.insert(flow(9, Stage::SynSent)), None);
        assert!(table.insert(flow(10, Stage::Kernel)).is_some());
        assert!(table.insert(flow(11, Stage::Kernel)).is_some());
        assert_eq!(table.insert(flow(12, Stage::Kernel)), None);
        assert_eq!(table.len(), (3, 2));
        assert!(table.remove(slots[1]).is_some());
        assert_eq!(table.find(&flow(1, Stage::SynSent).key), None);
        assert!(table.insert(flow(9, Stage::SynSent)).is_some());
        assert!(table.find(&flow(9, Stage::SynSent).key).is_some());
    }

    /// The last octets of the IPv6 addresses are the IPv4 ones: a packet over the one IP is never of a connection over the other.
    #[test]
    fn open_takes_packets_of_both_ends_over_its_own_ip_only() {
        let (mut hops, mut numbers) = (Hops::new(FlowHasher::new(1)), HopNumbers::NONE);
        let hop = NextHop::Forward { port: PortId(1), src_mac: [2; 6], dst_mac: [4; 6], mtu: 1500 };
        for side in [Side::Client, Side::Server] {
            hops.note(&mut numbers, side, &hop);
        }
        let end = |v6: bool, last: u8, port| {
            let mut addr = Addr::v4([10, 0, 0, last]);
            if v6 {
                addr.0[..12].copy_from_slice(&[0xfd; 12]);
            }
            Endpoint { addr, port }
        };
        for (v6, from, to) in [(false, 1, 2), (false, 2, 1), (true, 1, 2), (true, 2, 1)] {
            let tuple = |v6| Tuple { src: end(v6, from, 4000), dst: end(v6, to, 443) };
            let mut table = FlowTable::new(Capacity { fast: 1, kernel: 0 }, FlowHasher::new(3), Nanos(0));
            let slot = table.insert(Flow::new(&tuple(v6), PortId(0), InterceptId(0), 1, Nanos(0))).unwrap();
            let line = hops.number_line(&numbers, [0, 0], v6).unwrap();
            let side = |table: &mut FlowTable, tuple: Tuple, v6| {
                table.open(slot, &tuple, v6, &hops).map(|(_, side, _)| side)
            };
            assert_eq!(side(&mut table, tuple(v6), v6), None, "it needs a thought");
            table.set_open(slot, line);
            assert_eq!(side(&mut table, tuple(v6), v6), Some(Side::Client));
            assert_eq!(side(&mut table, tuple(v6).reversed(), v6), Some(Side::Server));
            assert_eq!(side(&mut table, tuple(!v6), !v6), None);
            for other in [
                Tuple { dst: end(v6, to, 444), ..tuple(v6) },
                Tuple { src: end(v6, to, 4000), ..tuple(v6) },
                Tuple { src: end(v6, 3, 443), ..tuple(v6).reversed() },
                Tuple { src: end(v6, from, 443), dst: end(v6, to, 4000) },
            ] {
                assert_eq!(side(&mut table, other, v6), None, "{other:?}");
            }
            assert!(table.get_mut(slot).is_some());
            assert_eq!(side(&mut table, tuple(v6), v6), None, "somebody has had it in hand");
        }
    }

    /// Connections come and go for long; the index stays where it was made.
    #[test]
    fn index_never_grows() {
        let mut table = FlowTable::new(Capacity { fast: 100, kernel: 0 }, FlowHasher::new(5), Nanos(0));
        let room = table.index.allocation_size();
        let mut slots = std::collections::VecDeque::new();
        for n in 0..60_000 {
            if slots.len() == 100 {
                table.remove(slots.pop_front().unwrap());
            }
            slots.push_back(table.insert(flow(n, Stage::Splice)).unwrap());
        }
        assert_eq!(table.index.allocation_size(), room);
    }
}
