//! How often everything is compared when changes keep coming: a pure machine.
//!
//! The first change after a calm is looked at at once. While more come, one round stands for all that came since the last, and
//! the pause between rounds doubles up to a ceiling: whoever changes something in a loop costs weir a few rounds a second, and
//! what he takes is still back within one. Where a round costs much (a full table), the pause is four times what it cost; what
//! a round waited for is no cost.

use std::time::{Duration, Instant};

/// The first pause.
const LEAST: Duration = Duration::from_millis(50);
/// The longest that doubling comes to.
const MOST: Duration = Duration::from_millis(400);
/// How long nothing must have changed for the next change to be looked at at once.
const CALM: Duration = Duration::from_secs(1);
/// Pauses are at least so many times what the round cost.
const REST: u32 = 4;

/// When the next round is due.
#[derive(Debug)]
pub struct Pace {
    pause: Duration,
    /// No round before.
    open: Instant,
    wanted: bool,
}

impl Pace {
    pub const fn new(now: Instant) -> Self {
        Self { pause: LEAST, open: now, wanted: false }
    }

    /// Something may have changed.
    pub const fn want(&mut self) {
        self.wanted = true;
    }

    /// When a round is due, if one is.
    pub fn due(&self) -> Option<Instant> {
        self.wanted.then_some(self.open)
    }

    /// The earliest time from `wish` on at which there may be a round.
    pub fn not_before(&self, wish: Instant) -> Instant {
        wish.max(self.open)
    }

    /// A round was done: what was announced until it began is in it. `cost`: its CPU time.
    pub fn done(&mut self, began: Instant, ended: Instant, cost: Duration) {
        let calm = began.saturating_duration_since(self.open) >= CALM;
        self.pause = if calm { LEAST } else { (2 * self.pause).min(MOST) };
        self.open = ended + self.pause.max(REST * cost);
        self.wanted = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes come without end for `span`, and each round takes `took`; the times at which rounds began.
    fn storm(pace: &mut Pace, start: Instant, span: Duration, took: Duration) -> Vec<Duration> {
        let mut rounds = Vec::new();
        let mut now = start;
        while now < start + span {
            pace.want();
            if pace.due().is_some_and(|due| due <= now) {
                rounds.push(now - start);
                pace.done(now, now + took, took);
                now += took;
            }
            now += Duration::from_millis(1);
        }
        rounds
    }

    #[test]
    fn first_change_is_looked_at_at_once_and_a_storm_costs_a_few_rounds_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.due(), None);
        let rounds = storm(&mut pace, start, Duration::from_secs(10), Duration::from_millis(5));
        assert_eq!(rounds[0], Duration::ZERO);
        assert!((20..=30).contains(&rounds.len()), "{rounds:?}");
        let longest = rounds.windows(2).map(|two| two[1] - two[0]).max().unwrap();
        assert!(longest < Duration::from_millis(500), "{longest:?}");
        // After a calm it is as in the beginning.
        let later = start + Duration::from_secs(20);
        assert_eq!(storm(&mut pace, later, Duration::from_millis(30), Duration::ZERO), [Duration::ZERO]);
        assert!(pace.due().unwrap() <= later + LEAST);
    }

    #[test]
    fn rounds_that_cost_much_leave_four_times_as_long_in_peace() {
        let start = Instant::now();
        let took = Duration::from_millis(500);
        let rounds = storm(&mut Pace::new(start), start, Duration::from_secs(20), took);
        assert!(rounds.windows(2).all(|two| two[1] - two[0] >= 5 * took), "{rounds:?}");
    }

    #[test]
    fn round_in_the_middle_of_which_the_process_was_stopped_leaves_no_longer_pause() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let ended = start + Duration::from_secs(20);
        pace.done(start, ended, Duration::from_millis(5));
        pace.want();
        assert!(pace.due().unwrap() <= ended + MOST);
    }

    #[test]
    fn change_that_comes_in_a_pause_is_not_forgotten() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.done(start, start, Duration::ZERO);
        assert_eq!(pace.due(), None);
        pace.want();
        let due = pace.due().unwrap();
        assert!(due > start && due <= start + MOST);
        assert_eq!(pace.not_before(start), due);
        assert_eq!(pace.not_before(due + CALM), due + CALM);
    }
}
