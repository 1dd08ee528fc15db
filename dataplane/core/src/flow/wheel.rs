//! Timers of flows: two hashed timing wheels (Varghese and Lauck, schemes 6 and 7) of intrusive lists, one timer a slot.
//!
//! Arming, cancelling and firing cost the same however many timers there are. A deadline further away than one turn of the near
//! wheel is in the far one, of which a spoke is such a turn, and comes to the near one when that begins: so a connection that
//! says nothing for hours is touched twice in that time, and when there is something to do next is known ([`Wheel::next`]).

use crate::ids::Nanos;

const NIL: u32 = u32::MAX;
/// Spokes of each wheel.
const SPOKES: u64 = 1024;
/// `prev` of the first in a spoke names that.
const FIRST: u32 = 1 << 31;
/// Timers that come to the near wheel in one call.
const MOVES: usize = 256;

/// The furthest a timer can be set, in ticks: deadlines are compared modulo 2^32.
pub const FURTHEST: u64 = 1 << 30;

/// One timer for each of a fixed number of slots.
#[derive(Debug)]
pub struct Wheel {
    tick: Nanos,
    /// The next tick to be served.
    now: u64,
    /// The turn of the near wheel whose timers are all in it; turns after it are in the far one.
    turn: u64,
    /// Something was due that did not fit.
    is_behind: bool,
    /// Spokes of the near wheel, one tick each, then of the far one.
    heads: Vec<u32>,
    /// Spokes with a timer, a bit each.
    taken: [Taken; 2],
    next: Vec<u32>,
    /// `NIL`: not armed.
    prev: Vec<u32>,
    /// In ticks, modulo 2^32.
    deadline: Vec<u32>,
}

impl Wheel {
    /// Two links and a deadline.
    pub(crate) const OCTETS_PER_SLOT: usize = 3 * size_of::<u32>();

    /// Timers for slots `0..capacity` that fire at most one `tick` late. Time starts at `now`.
    pub fn new(capacity: usize, tick: Nanos, now: Nanos) -> Self {
        let now = now.0 / tick.0.max(1);
        Self {
            tick,
            now,
            turn: now / SPOKES,
            is_behind: false,
            heads: vec![NIL; 2 * SPOKES as usize],
            taken: [Taken::default(); 2],
            next: vec![NIL; capacity],
            prev: vec![NIL; capacity],
            deadline: vec![0; capacity],
        }
    }

    /// Sets the slot's timer; an earlier setting is forgotten. A time further away than [`FURTHEST`] ticks comes early:
    /// who is called then looks at the time.
    pub fn arm(&mut self, slot: u32, at: Nanos) {
        self.cancel(slot);
        // Never in the tick that is being served.
        let tick = (at.0 / self.tick.0.max(1) + 1).clamp(self.now + 1, self.now + FURTHEST);
        let Some(deadline) = self.deadline.get_mut(slot as usize) else { return };
        *deadline = tick as u32;
        self.link(slot, tick);
    }

    pub fn cancel(&mut self, slot: u32) {
        if self.is_armed(slot) {
            self.unlink(slot);
        }
    }

    pub fn is_armed(&self, slot: u32) -> bool {
        self.prev.get(slot as usize).is_some_and(|prev| *prev != NIL)
    }

    /// Collects into `due` up to its capacity slots whose time has come; they are not armed any more.
    pub fn poll(&mut self, now: Nanos, due: &mut Vec<u32>) {
        let target = now.0 / self.tick.0.max(1);
        self.is_behind = false;
        while self.now <= target {
            let is_all_here = self.begin_turn();
            self.is_behind = !self.serve(due);
            if self.is_behind {
                return;
            }
            if !is_all_here {
                return self.serve_turn(target, due);
            }
            self.now = self.next_taken().min(target + 1);
        }
    }

    /// Others are still to come from the far wheel: those that are here wait for none of them. As far as the turn goes.
    fn serve_turn(&mut self, target: u64, due: &mut Vec<u32>) {
        self.is_behind = true;
        let last = self.now / SPOKES * SPOKES + SPOKES - 1;
        while self.now < target.min(last) {
            self.now += 1;
            if !self.serve(due) {
                return;
            }
        }
    }

    /// Whether the last [`Self::poll`] has left something that was due.
    pub const fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// When to poll again, if nothing is armed until then. None: never.
    pub fn next(&self) -> Option<Nanos> {
        if self.is_behind {
            return Some(Nanos(0));
        }
        let tick = self.next_taken();
        (tick != u64::MAX).then(|| Nanos(tick.saturating_mul(self.tick.0)))
    }

    /// The next tick with a timer, or in which timers come from the far wheel.
    fn next_taken(&self) -> u64 {
        let [near, far] = &self.taken;
        let tick = near.after(self.now % SPOKES).map_or(u64::MAX, |wait| self.now + wait);
        // Of turns that were passed over there is nothing.
        let later = (self.turn + 1).max(self.now.div_ceil(SPOKES));
        let turn = far.after(later % SPOKES).map(|wait| later + wait);
        tick.min(turn.map_or(u64::MAX, |turn| turn * SPOKES))
    }

    /// Timers of the turn that has begun come from the far wheel; whether all are here.
    fn begin_turn(&mut self) -> bool {
        let turn = self.now / SPOKES;
        if self.turn == turn {
            return true;
        }
        let spoke = (SPOKES + turn % SPOKES) as usize;
        for _ in 0..MOVES {
            let slot = self.heads.get(spoke).copied().unwrap_or(NIL);
            if slot == NIL {
                self.turn = turn;
                return true;
            }
            let deadline = self.deadline.get(slot as usize).copied().unwrap_or(0);
            // Compared modulo 2^32, since deadlines are kept in 32 bits.
            let wait = deadline.wrapping_sub(self.now as u32) as i32;
            self.unlink(slot);
            self.link(slot, self.now + u64::try_from(wait).unwrap_or(0));
        }
        false
    }

    /// Collects the timers of this tick; whether all had room.
    fn serve(&mut self, due: &mut Vec<u32>) -> bool {
        let spoke = (self.now % SPOKES) as usize;
        while let Some(slot) = self.heads.get(spoke).copied().filter(|slot| *slot != NIL) {
            if due.len() == due.capacity() {
                return false;
            }
            self.unlink(slot);
            due.push(slot);
        }
        true
    }

    fn link(&mut self, slot: u32, tick: u64) {
        let turn = self.now / SPOKES;
        let spoke = if tick < self.now + SPOKES {
            tick % SPOKES
        } else {
            // Beyond the last turn: moved on when that comes.
            SPOKES + (tick / SPOKES).min(turn + SPOKES - 1) % SPOKES
        };
        let head = self.heads.get(spoke as usize).copied().unwrap_or(NIL);
        set(&mut self.next, slot, head);
        set(&mut self.prev, slot, spoke as u32 | FIRST);
        if head != NIL {
            set(&mut self.prev, head, slot);
        }
        self.set_head(spoke as u32, slot);
    }

    fn set_head(&mut self, spoke: u32, slot: u32) {
        set(&mut self.heads, spoke, slot);
        let [near, far] = &mut self.taken;
        match u64::from(spoke).checked_sub(SPOKES) {
            Some(spoke) => far.set(spoke, slot != NIL),
            None => near.set(u64::from(spoke), slot != NIL),
        }
    }

    fn unlink(&mut self, slot: u32) {
        let next = self.next.get(slot as usize).copied().unwrap_or(NIL);
        let prev = self.prev.get(slot as usize).copied().unwrap_or(NIL);
        if prev & FIRST != 0 {
            self.set_head(prev & !FIRST, next);
        } else {
            set(&mut self.next, prev, next);
        }
        if next != NIL {
            set(&mut self.prev, next, prev);
        }
        set(&mut self.prev, slot, NIL);
    }
}

fn set(list: &mut [u32], at: u32, value: u32) {
    if let Some(place) = list.get_mut(at as usize) {
        *place = value;
    }
}

/// Which spokes of a wheel have a timer.
#[derive(Clone, Copy, Debug)]
struct Taken([u64; (SPOKES / 64) as usize]);

impl Default for Taken {
    fn default() -> Self {
        Self([0; (SPOKES / 64) as usize])
    }
}

impl Taken {
    fn set(&mut self, spoke: u64, taken: bool) {
        if let Some(word) = self.0.get_mut((spoke / 64) as usize) {
            *word = *word & !(1 << (spoke % 64)) | u64::from(taken) << (spoke % 64);
        }
    }

    /// How many spokes after `from`, round the wheel, the next is that has one; 0: that itself.
    fn after(&self, from: u64) -> Option<u64> {
        let words = self.0.len() as u64;
        // The first word is looked at once more in the end, for the spokes before `from`.
        (0..=words).find_map(|step| {
            let at = (from / 64 + step) % words;
            let word = self.0.get(at as usize)? & if step == 0 { u64::MAX << (from % 64) } else { u64::MAX };
            (word != 0).then(|| (at * 64 + u64::from(word.trailing_zeros()) + SPOKES - from) % SPOKES)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_at_each_time_fires_what_a_list_would() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let tick = Nanos::from_millis(10);
        let start = Nanos::from_secs(5);
        let mut wheel = Wheel::new(64, tick, start);
        let mut model: [Option<u64>; 64] = [None; 64];
        let mut now = start.0;
        let mut due = Vec::with_capacity(64);
        for _ in 0..20_000 {
            let slot = random() % 64;
            match random() % 4 {
                0 => {
                    wheel.cancel(slot as u32);
                    model[slot as usize] = None;
                }
                1 => now += random() % 2_000_000_000,
                _ => {
                    // Up to 60 s: several turns of the wheel.
                    let at = now + random() % 60_000_000_000;
                    wheel.arm(slot as u32, Nanos(at));
                    model[slot as usize] = Some(at);
                }
            }
            due.clear();
            wheel.poll(Nanos(now), &mut due);
            for slot in &due {
                let at = model[*slot as usize].take().expect("fired what was armed");
                assert!(at <= now, "fired before its time");
            }
            for at in model.iter().flatten() {
                assert!(*at + 2 * tick.0 > now, "late by more than a tick");
            }
        }
    }

    #[test]
    fn next_is_when_something_fires_or_comes_nearer_and_not_before() {
        let tick = Nanos::from_millis(20);
        let second = Nanos::from_secs(1).0;
        for start in [0, 7 * second, 123_456 * second] {
            let mut wheel = Wheel::new(200, tick, Nanos(start));
            assert_eq!(wheel.next(), None);
            let mut left: Vec<_> = (0..200_u64).map(|n| start + (n * n * n) % 30_000 * second + n).collect();
            (0..).zip(&left).for_each(|(slot, at)| wheel.arm(slot, Nanos(*at)));
            let (mut now, mut polls) = (start, 0);
            let mut due = Vec::with_capacity(200);
            while let Some(next) = wheel.next() {
                assert!(left.iter().all(|at| at + 2 * tick.0 > now), "something is late at {now}");
                assert!(next.0 > now, "asked for twice");
                (now, polls) = (next.0, polls + 1);
                wheel.poll(next, &mut due);
                due.drain(..).for_each(|slot| {
                    let at = std::mem::replace(&mut left[slot as usize], u64::MAX - 2 * tick.0);
                    assert!(at <= now, "before its time");
                });
            }
            assert!(left.iter().all(|at| *at > now), "all have fired");
            // Each has its own, one to come nearer, and one more beyond the far wheel's turn.
            assert!(polls <= 3 * 200, "{polls} polls");
        }
    }

    #[test]
    fn many_that_come_nearer_at_once_are_moved_in_parts_and_none_is_lost() {
        let (tick, count) = (Nanos::from_millis(20), 10 * MOVES as u32);
        let mut wheel = Wheel::new(count as usize, tick, Nanos(0));
        (0..count).for_each(|slot| wheel.arm(slot, Nanos::from_secs(100)));
        let mut due = Vec::with_capacity(64);
        let mut fired = 0;
        while let Some(next) = wheel.next() {
            wheel.poll(next.max(Nanos::from_secs(90)), &mut due);
            assert!(due.is_empty(), "before its time");
            if !wheel.is_behind() {
                break;
            }
        }
        assert!(wheel.next() > Some(Nanos::from_secs(100)), "it sleeps until they are due");
        for _ in 0..=count / 64 {
            wheel.poll(Nanos::from_secs(101), &mut due);
            fired += due.drain(..).count();
        }
        assert_eq!((fired, wheel.next()), (count as usize, None));
    }

    #[test]
    fn poll_with_full_output_goes_on_next_time() {
        let mut wheel = Wheel::new(10, Nanos::from_millis(1), Nanos(0));
        for slot in 0..10 {
            wheel.arm(slot, Nanos::from_millis(3));
        }
        let mut all = Vec::new();
        for _ in 0..4 {
            let mut due = Vec::with_capacity(3);
            wheel.poll(Nanos::from_millis(50), &mut due);
            all.extend(due);
            assert_eq!(wheel.is_behind(), all.len() < 10);
        }
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn turn_with_many_timers_keeps_the_others_waiting_for_none_of_them() {
        const MANY: u32 = 300_000;
        let ms = |ms: u64| Nanos::from_millis(ms);
        let mut wheel = Wheel::new(MANY as usize + 1, ms(20), Nanos(0));
        (0..MANY).for_each(|slot| wheel.arm(slot, ms(41_500 + u64::from(slot) % 19_000)));
        let mut due = Vec::with_capacity(64);
        wheel.poll(ms(40_950), &mut due);
        assert_eq!(due, []);
        wheel.arm(MANY, ms(40_970));
        let mut now = ms(40_955);
        while !due.contains(&MANY) {
            due.clear();
            now = now.saturating_add(Nanos(60_000));
            wheel.poll(now, &mut due);
        }
        assert!(now <= ms(41_010), "{now:?}");
        // And each of them at its time, a tick late at most.
        let mut fired = 0;
        while fired < MANY {
            due.clear();
            now = now.saturating_add(Nanos(60_000));
            wheel.poll(now, &mut due);
            for slot in &due {
                let at = ms(41_500 + u64::from(*slot) % 19_000);
                assert!(at <= now && now <= at.saturating_add(ms(41)), "{slot}: {now:?}");
            }
            fired += due.len() as u32;
        }
    }

    #[test]
    fn deadline_beyond_the_count_comes_early_and_not_at_once() {
        let tick = Nanos::from_millis(20);
        // Two and a half years of uptime: the count of ticks wraps.
        for start in [0, u64::from(u32::MAX) - 5] {
            let mut wheel = Wheel::new(3, tick, Nanos(start * tick.0));
            wheel.arm(0, Nanos(u64::MAX));
            wheel.arm(1, Nanos((start + 5) * tick.0));
            wheel.arm(2, Nanos((start + 6) * tick.0));
            wheel.arm(2, Nanos((start + 2000) * tick.0));
            let mut due = Vec::with_capacity(3);
            wheel.poll(Nanos((start + 1000) * tick.0), &mut due);
            assert_eq!(due, [1]);
            wheel.poll(Nanos((start + 3000) * tick.0), &mut due);
            assert_eq!(due, [1, 2]);
            assert!(wheel.is_armed(0) && !wheel.is_armed(1));
            wheel.cancel(0);
            assert!(!wheel.is_armed(0));
        }
    }
}
