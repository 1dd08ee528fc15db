//! One deadline for each connection, in the wheel that the fast road's flows have: 12 octets each, and nothing to clean up.

use weir_core::flow::wheel::Wheel;
use weir_core::ids::Nanos;

/// How late a deadline may be noticed.
const TICK: Nanos = Nanos::from_millis(10);
/// Deadlines that are served in one go.
const BATCH: usize = 256;

/// Deadlines by the number of a connection's place.
#[derive(Debug)]
pub(super) struct Timers {
    wheel: Wheel,
    due: Vec<u32>,
}

impl Timers {
    pub fn new(connections: usize, now: Nanos) -> Self {
        Self { wheel: Wheel::new(connections, TICK, now), due: Vec::with_capacity(BATCH) }
    }

    /// Replaces the deadline armed before.
    pub fn arm(&mut self, at: Nanos, place: u32) {
        self.wheel.arm(place, at);
    }

    pub fn cancel(&mut self, place: u32) {
        self.wheel.cancel(place);
    }

    /// When to ask for the next one at the latest; none: nothing is armed.
    pub fn next(&self) -> Option<Nanos> {
        if self.due.is_empty() { self.wheel.next() } else { Some(Nanos(0)) }
    }

    /// One that has come. A connection may be asked early, never late by more than a tick.
    pub fn pop(&mut self, now: Nanos) -> Option<u32> {
        if self.due.is_empty() {
            self.wheel.poll(now, &mut self.due);
        }
        self.due.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_once_and_not_early() {
        let mut timers = Timers::new(4, Nanos(0));
        timers.arm(Nanos::from_millis(30), 3);
        timers.arm(Nanos::from_millis(10), 1);
        timers.arm(Nanos::from_millis(10), 2);
        timers.cancel(2);
        assert_eq!(timers.pop(Nanos::from_millis(9)), None);
        assert_eq!((timers.pop(Nanos::from_millis(20)), timers.pop(Nanos::from_millis(20))), (Some(1), None));
        assert_eq!(timers.next(), Some(Nanos::from_millis(40)));
        assert_eq!((timers.pop(Nanos::from_millis(40)), timers.pop(Nanos::from_millis(40))), (Some(3), None));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn replaced_deadline_is_forgotten() {
        let mut timers = Timers::new(2, Nanos(0));
        for i in 1..100_000 {
            timers.arm(Nanos(i), 1);
        }
        timers.arm(Nanos::from_secs(9), 1);
        assert_eq!(timers.pop(Nanos::from_secs(8)), None);
        assert_eq!(timers.pop(Nanos::from_millis(9_020)), Some(1));
    }
}
