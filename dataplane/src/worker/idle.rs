//! What a worker tells the express lane: when it had nothing in hand of what had come in. A connection changes over from the worker to the
//! program only in a pause of its own that lies before such a moment, so that the program overtakes nothing (`change_over` in
//! dataplane/bpf/express.h).

use weir_core::ids::Nanos;

use super::Worker;
use crate::driver::Driver;

/// The express lane is told that nothing is in hand at most so often.
const IDLE_EVERY: Nanos = Nanos(50_000);
/// So long after a packet was given to a worker it is in its ring, and more (`ON_ITS_WAY` in dataplane/bpf/express.h).
const ON_ITS_WAY: Nanos = Nanos(160_000);
/// For so long after the last work it does not sleep before it has told that.
const TELLING: Nanos = Nanos::from_millis(1);

/// When it had work, and what it has told of that.
#[derive(Debug, Default)]
pub(super) struct Idleness {
    /// Its last work.
    worked: Nanos,
    /// When it had nothing in hand, as told last.
    told: Nanos,
    /// Not before then again.
    next: Nanos,
    /// The last work after which the others were woken.
    woken: Nanos,
    /// In this breath frames went to another worker, which has the queue to send them by.
    pub(super) gives_away: bool,
    /// Since then none did.
    kept: Nanos,
}

impl Idleness {
    /// A breath begins.
    pub(super) fn begin(&mut self, now: Nanos) {
        if std::mem::take(&mut self.gives_away) {
            self.kept = now;
        }
    }

    /// Until when nothing of what had come in by then is in hand, here or at `others`; none: one of them may still have frames of this
    /// one's to send.
    fn until(&self, now: Nanos, others: Nanos) -> Option<Nanos> {
        (!self.gives_away && others > self.kept).then(|| now.min(others))
    }
}

impl<D: Driver> Worker<D> {
    /// Tells the express lane that nothing of what came in until now is in hand: what the program sends on by itself from then on overtakes
    /// nothing. `others`: until when that was so of all other workers before this breath, which may have had something for this one.
    pub(super) fn tell_idle(&mut self, now: Nanos, others: Nanos, has_worked: bool) {
        if has_worked {
            self.idleness.worked = now;
        }
        let is_busy = has_worked
            || self.leaving.iter().any(|frames| !frames.is_empty())
            || self.parts.driver.in_rings().transmit > 0;
        if is_busy {
            return;
        }
        self.parts.handoff.set_idle(self.parts.id, now);
        let Some(express) = self.parts.express.as_ref().filter(|_| self.parts.pipeline.express_flows() > 0)
        else {
            return;
        };
        if now < self.idleness.next || self.has_told_idle() {
            return;
        }
        self.idleness.next = now.saturating_add(IDLE_EVERY);
        if let Some(until) = self.idleness.until(now, others) {
            self.idleness.told = until;
            express.tell_idle(until);
        }
        self.wake_for_that(now);
    }

    /// Those that sleep have to look whether they have something: once after the last work, when a mark of theirs is late enough.
    fn wake_for_that(&mut self, now: Nanos) {
        let Idleness { worked, woken, .. } = self.idleness;
        let least = worked.saturating_add(ON_ITS_WAY);
        if woken == worked || now <= least || self.has_told_idle() {
            return;
        }
        self.idleness.woken = worked;
        for other in (0..self.parts.handoff.workers()).filter(|other| *other != self.parts.id) {
            if self.parts.handoff.idle(other) <= least {
                self.parts.handoff.wake(other);
            }
        }
    }

    /// Whether the express lane knows that nothing is in hand since there was work last; or it is too long to wait for.
    fn has_told_idle(&self) -> bool {
        let waited = self.breathed.is_none_or(|now| now > self.idleness.worked.saturating_add(TELLING));
        waited || self.idleness.told > self.idleness.worked.saturating_add(ON_ITS_WAY)
    }

    /// Whether it is to breathe on until it has told that.
    pub(super) fn has_to_tell_idle(&self) -> bool {
        self.parts.express.is_some() && self.parts.pipeline.express_flows() > 0 && !self.has_told_idle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_another_worker_is_to_send_are_in_hand_until_it_has_had_none_later() {
        let mut idleness = Idleness::default();
        idleness.begin(Nanos(100));
        assert_eq!(idleness.until(Nanos(100), Nanos(90)), Some(Nanos(90)));
        idleness.gives_away = true;
        assert_eq!(idleness.until(Nanos(100), Nanos(90)), None);
        idleness.begin(Nanos(200));
        // Its mark is of before it got them, or may be.
        assert_eq!(idleness.until(Nanos(200), Nanos(150)), None);
        assert_eq!(idleness.until(Nanos(200), Nanos(200)), None);
        idleness.begin(Nanos(300));
        assert_eq!(idleness.until(Nanos(300), Nanos(201)), Some(Nanos(201)));
        assert_eq!(idleness.until(Nanos(300), Nanos(u64::MAX)), Some(Nanos(300)));
    }
}
