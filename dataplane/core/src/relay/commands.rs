//! What the relay's machine wants done next, derived from its state.

use crate::ids::Nanos;

use super::upstream::Upstream;
use super::{Command, Ending, Gate, Leg, Phase, Relay, Side};

impl Relay {
    pub(super) fn poll_running(&mut self) -> Option<Command> {
        if let Some(command) = self.poll_upstream() {
            return Some(command);
        }
        self.poll_flow(Side::Client)
            .or_else(|| self.poll_flow(Side::Server))
            .or_else(|| self.poll_finished())
            .or_else(|| self.poll_watch(Side::Client))
            .or_else(|| self.poll_watch(Side::Server))
    }

    pub(super) fn poll_finished(&mut self) -> Option<Command> {
        if !self.up.is_shut() || !self.down.is_shut() {
            return None;
        }
        self.finish(Ending::Finished);
        self.poll_over(Ending::Finished)
    }

    /// The server hears at once; of the client nothing is received any more, but its going away is noticed.
    pub(super) fn poll_quiet(&mut self) -> Option<Command> {
        if let Some(command) = self.poll_leave(Side::Server, true) {
            return Some(command);
        }
        if self.is_moving(Side::Client) {
            return (!std::mem::replace(&mut self.hushed, true)).then_some(Command::Cancel(Side::Client));
        }
        (!self.blind && !std::mem::replace(self.watch(Side::Client), true))
            .then_some(Command::Watch(Side::Client))
    }

    /// The bytes that come from `from`: send what is there, pass its end on, receive more.
    pub(super) fn poll_flow(&mut self, from: Side) -> Option<Command> {
        let connected = self.upstream == Upstream::Connected;
        let may_send = connected && (from == Side::Server || self.gate == Gate::Open);
        let may_recv = connected || from == Side::Client;
        let room = match (self.gate, from) {
            (Gate::Held { budget, .. } | Gate::Asked { budget, .. }, Side::Client) => budget,
            (Gate::Open, Side::Client) => self.second_room(),
            _ => self.limits.buffer,
        };
        let to = from.other();
        let most = if may_send { self.allowed(from) } else { 0 };
        let pipe = self.pipe_from(from);
        if may_send {
            if let Some(len) = pipe.offer_send(most) {
                return Some(Command::Send { to, len });
            }
            if pipe.offer_shutdown() {
                return Some(Command::Shutdown(to));
            }
        }
        if may_recv && let Some(most) = pipe.offer_recv(room) {
            return Some(Command::Recv { from, most });
        }
        None
    }

    /// How many of the octets that wait may be sent now, by the bandwidth; if none, the timer says when.
    fn allowed(&mut self, from: Side) -> u32 {
        let to_client = from == Side::Server;
        // Behind a first hello only what is no second one.
        let clear = if to_client { u32::MAX } else { self.second_clear() };
        let (now, waiting) = (self.now, self.pipe_from(from).sendable().min(clear));
        let (Some(throttle), 1..) = (&mut self.throttle, waiting) else { return waiting };
        let allowed = throttle.allow(to_client, now, waiting);
        let [up, down] = &mut self.resumes;
        *if to_client { down } else { up } = allowed.err();
        allowed.unwrap_or(0)
    }

    /// A leg that nothing is received from would not tell of its RST, be that behind FINs.
    pub(super) fn poll_watch(&mut self, side: Side) -> Option<Command> {
        if side == Side::Server && self.upstream != Upstream::Connected {
            return None;
        }
        let receiving = self.pipe_from(side).is_receiving();
        if receiving || self.blind || std::mem::replace(self.watch(side), true) {
            return None;
        }
        Some(Command::Watch(side))
    }

    pub(super) fn poll_over(&mut self, ending: Ending) -> Option<Command> {
        let reset = !matches!(ending, Ending::Finished);
        self.poll_leave(Side::Server, reset).or_else(|| self.poll_leave(Side::Client, reset))
    }

    /// Stop what is under way on a leg, then close it.
    pub(super) fn poll_leave(&mut self, side: Side, reset: bool) -> Option<Command> {
        let busy = self.is_busy(side);
        let leg = self.leg(side);
        match *leg {
            Leg::Open if reset => {
                *leg = Leg::Stopping;
                Some(Command::Reset(side))
            }
            Leg::Open if busy => {
                *leg = Leg::Stopping;
                Some(Command::Cancel(side))
            }
            Leg::Open | Leg::Stopping if !busy => {
                *leg = Leg::Closed;
                Some(Command::Close(side))
            }
            _ => None,
        }
    }

    pub(super) fn poll_timer(&mut self) -> Option<Command> {
        let deadline = self.deadline()?;
        if self.armed.is_some_and(|armed| armed <= deadline) {
            // It fires early at worst, and the real deadline is armed then: bytes need not move timers.
            return None;
        }
        self.armed = Some(deadline);
        Some(Command::ArmTimer(deadline))
    }

    pub(super) fn deadline(&self) -> Option<Nanos> {
        match self.phase {
            Phase::Over(_) => None,
            Phase::Quiet(until) => Some(until),
            Phase::Running => {
                let mut deadline = self.idle_deadline();
                if let Some(call) = self.call_deadline() {
                    deadline = deadline.min(call);
                }
                if let Some(second) = self.second_deadline() {
                    deadline = deadline.min(second);
                }
                if let Gate::Held { until, .. } | Gate::Asked { until, .. } = self.gate
                    && self.unread.is_none()
                {
                    deadline = deadline.min(until);
                }
                let resume = self.resumes.into_iter().flatten().min();
                Some(resume.map_or(deadline, |resume| deadline.min(resume)))
            }
        }
    }

    pub(super) fn idle_deadline(&self) -> Nanos {
        let half_closed = self.up.is_ended() || self.down.is_ended();
        self.active.saturating_add(if half_closed { self.limits.half_closed } else { self.limits.idle })
    }
}
