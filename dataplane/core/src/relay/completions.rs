//! What a completion or the timer changes in the relay's machine.

use crate::ids::Nanos;

use super::upstream::{Connect, Upstream};
use super::{Ending, Failure, Gate, Phase, Relay, Side, Towards, Unread, Verdict};

impl Relay {
    pub(super) fn received(&mut self, now: Nanos, from: Side, len: u32) {
        if !self.pipe_from(from).received(len) {
            return;
        }
        self.active = now;
        if from == Side::Server && self.up.total_received() == 0 {
            self.unread.get_or_insert(Unread::ServerFirst);
        }
    }

    pub(super) fn end_of_stream(&mut self, now: Nanos, from: Side) {
        if self.pipe_from(from).ended() {
            self.active = now;
            self.second_ended(from);
        }
    }

    /// Nobody stops a watch while the connection runs, so the kernel cannot watch this leg: asking again would be
    /// answered the same way at once. The idle time bounds what goes unnoticed.
    pub(super) fn unwatched(&mut self, side: Side) {
        let was = std::mem::replace(self.watch(side), false);
        self.blind |= was && self.phase == Phase::Running;
    }

    pub(super) fn failed(&mut self, side: Side, failure: Failure) {
        if failure == Failure::Cancelled {
            return;
        }
        if side == Side::Client && matches!(self.phase, Phase::Quiet(_)) {
            self.phase = Phase::Over(Ending::Dropped);
        }
        self.finish(Ending::Failed(side, failure));
    }

    pub(super) fn hung_up(&mut self, side: Side) {
        if std::mem::replace(self.watch(side), false) {
            self.failed(side, Failure::Reset);
        }
    }

    pub(super) fn timer(&mut self, now: Nanos) {
        self.armed = None;
        match self.phase {
            Phase::Running => {}
            Phase::Quiet(until) if now >= until => return self.phase = Phase::Over(Ending::Dropped),
            Phase::Quiet(_) | Phase::Over(_) => return,
        }
        if self.call_deadline().is_some_and(|deadline| now >= deadline) {
            self.unanswered();
        }
        if now >= self.idle_deadline() {
            return self.finish(Ending::Idle);
        }
        self.second_timer(now);
        if let Gate::Held { until, .. } | Gate::Asked { until, .. } = self.gate
            && now >= until
        {
            self.unread = Some(Unread::HoldTime);
        }
    }

    pub(super) fn settle(&mut self, now: Nanos, verdict: Verdict) {
        match verdict {
            Verdict::Pass => self.call(now, Connect::AHEAD),
            Verdict::Send { .. } if self.upstream != Upstream::Waiting => self.finish(Ending::Denied),
            Verdict::Send { from, spare } => {
                self.spare = spare;
                self.call(now, Connect { to: Towards::Server, from });
            }
            // A connection that waits is not settled.
            Verdict::Wait => {}
            Verdict::Reset => self.finish(Ending::Denied),
            Verdict::Drop => self.phase = Phase::Quiet(now.saturating_add(self.limits.quiet)),
        }
    }

    /// The first ending counts: what fails while it is carried out changes nothing.
    pub(super) fn finish(&mut self, ending: Ending) {
        if self.phase == Phase::Running {
            self.phase = Phase::Over(ending);
        }
    }
}
