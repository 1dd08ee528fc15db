//! One deadline per connection, in a heap; replaced deadlines stay in it until they come, or until they are too many.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use weir_core::ids::Nanos;
use weir_sys::uring::Key;

/// Entries above which replaced deadlines are swept out, if most are.
const SWEEP: usize = 1024;

/// Deadlines by time. Whether one still counts is for the caller to say.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Nanos, u64)>>,
}

impl Timers {
    pub fn arm(&mut self, at: Nanos, key: Key) {
        self.heap.push(Reverse((at, key.to_bits())));
    }

    /// The earliest.
    pub fn next(&self) -> Option<Nanos> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// One that has come.
    pub fn pop(&mut self, now: Nanos) -> Option<(Nanos, Key)> {
        self.next().filter(|at| *at <= now)?;
        self.heap.pop().map(|Reverse((at, bits))| (at, Key::from_bits(bits)))
    }

    /// Forgets entries for which `counts` is false, when there are more than twice `live` of them and they matter.
    pub fn sweep(&mut self, live: usize, counts: impl Fn(Nanos, Key) -> bool) {
        if self.heap.len() > SWEEP && self.heap.len() > 2 * live {
            self.heap.retain(|Reverse((at, bits))| counts(*at, Key::from_bits(*bits)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    #[test]
    fn deadlines_come_in_order_and_not_early() {
        let mut timers = Timers::default();
        timers.arm(Nanos(30), key(3));
        timers.arm(Nanos(10), key(1));
        assert_eq!((timers.next(), timers.pop(Nanos(9))), (Some(Nanos(10)), None));
        assert_eq!(timers.pop(Nanos(40)), Some((Nanos(10), key(1))));
        assert_eq!(timers.pop(Nanos(40)), Some((Nanos(30), key(3))));
        assert_eq!(timers.pop(Nanos(40)), None);
    }

    #[test]
    fn replaced_deadlines_do_not_pile_up() {
        let mut timers = Timers::default();
        for i in 0..100_000 {
            timers.arm(Nanos(i), key(1));
            timers.sweep(1, |at, _| at == Nanos(i));
        }
        assert!(timers.heap.len() <= SWEEP + 1, "{}", timers.heap.len());
    }
}
