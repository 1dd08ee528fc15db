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
        self.idleness.told = now.min(others);
        express.tell_idle(self.idleness.told);
        if !self.has_told_idle() {
            // Those that sleep have to look whether they have something.
            for other in (0..self.parts.handoff.workers()).filter(|other| *other != self.parts.id) {
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
