//! Timers of flows: a hashed timing wheel (Varghese and Lauck, scheme 6) of intrusive lists, one timer a slot.
//!
//! Arming, cancelling and firing cost the same however many timers there are. A deadline further away than one turn
//! of the wheel is put where the turn ends and moved on when that comes.

use crate::ids::Nanos;

const NIL: u32 = u32::MAX;
/// Spokes of the wheel.
const SPOKES: usize = 1024;

/// The furthest a timer can be set, in ticks: deadlines are compared modulo 2^32.
pub const FURTHEST: u64 = 1 << 30;

/// One timer for each of a fixed number of slots.
#[derive(Debug)]
pub struct Wheel {
    tick: Nanos,
    /// The next tick to be served.
    now: u64,
    heads: Vec<u32>,
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
        Self {
            tick,
            now: now.0 / tick.0.max(1),
            heads: vec![NIL; SPOKES],
            next: vec![NIL; capacity],
            prev: vec![NIL; capacity],
            deadline: vec![0; capacity],
        }
    }

    /// Sets the slot's timer; an earlier setting is forgotten. A time further away than [`FURTHEST`] ticks comes early:
    /// who is called then looks at the time.
    pub fn arm(&mut self, slot: u32, at: Nanos) {
        self.cancel(slot);
        // Never in the tick that has been served.
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
        // After a long pause one turn meets every timer; more would meet them again.
        self.now = self.now.max(target.saturating_sub(SPOKES as u64));
        while self.now <= target {
            let mut slot = self.heads.get((self.now as usize) % SPOKES).copied().unwrap_or(NIL);
            while slot != NIL {
                let following = self.next.get(slot as usize).copied().unwrap_or(NIL);
                let deadline = self.deadline.get(slot as usize).copied().unwrap_or(0);
                // Compared modulo 2^32, since deadlines are kept in 32 bits.
                if (deadline.wrapping_sub(self.now as u32) as i32) <= 0 {
                    if due.len() == due.capacity() {
                        return;
                    }
                    self.cancel(slot);
                    due.push(slot);
                }
                slot = following;
            }
            self.now += 1;
        }
    }

    fn link(&mut self, slot: u32, tick: u64) {
        let spoke = (tick as usize) % SPOKES;
        let head = self.heads.get(spoke).copied().unwrap_or(NIL);
        // While linked as the first, `prev` names the spoke, with the top bit set.
        set(&mut self.next, slot, head);
        set(&mut self.prev, slot, spoke as u32 | 1 << 31);
        if head != NIL {
            set(&mut self.prev, head, slot);
        }
        set(&mut self.heads, spoke as u32, slot);
    }

    fn unlink(&mut self, slot: u32) {
        let next = self.next.get(slot as usize).copied().unwrap_or(NIL);
        let prev = self.prev.get(slot as usize).copied().unwrap_or(NIL);
        if prev & (1 << 31) != 0 {
            set(&mut self.heads, prev & !(1 << 31), next);
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
        }
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
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
