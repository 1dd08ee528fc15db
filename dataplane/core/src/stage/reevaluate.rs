//! A new configuration meets connections of before: which are judged again, which were never intercepted, and which the
//! kernel could not carry alone.

use crate::drop::PuntReason;
use crate::flow::record::{Flow, Stage, Verdict};
use crate::flow::second::HelloRetry;
use crate::frame::Frame;
use crate::ids::{Nanos, PortId};
use crate::inspect::{ALPN_NAMES, Alpn};
use crate::pipeline::{Output, Pipeline};
use crate::policy::{Action, Handshake, Policy};
use crate::reevaluate::{Again, Evidence, Live, Outcome, Standing, Tally, judge};
use crate::verify::Verified;
use crate::wire::addr::Endpoint;

use super::held::refusal;

/// Policies of before that are remembered for the sake of connections that they did not intercept.
const BEFORE: usize = 8;
/// Frames that the end of a connection takes: an RST to each end.
const RSTS: usize = 2;

impl<F: Frame> Pipeline<F> {
    /// Judges up to `max` connections from slot `cursor` on by the policy in force, ends those that it refuses, and says
    /// where to go on (`None`: that was all). It stops early when no frames are left for RSTs.
    pub fn reevaluate(
        &mut self,
        now: Nanos,
        cursor: u32,
        max: usize,
        tally: &mut Tally,
        out: &mut Output<F>,
    ) -> Option<u32> {
        self.now = now;
        let mut seen = 0;
        for slot in cursor..self.flows.slots() {
            let Some(flow) = self.flows.get(slot) else { continue };
            if seen == max || out.free.len() < RSTS {
                return Some(slot);
            }
            seen += 1;
            match flow.standing() {
                Standing::Judged => self.judge_again(slot, tally, out),
                standing => tally.pass_over(standing),
            }
        }
        None
    }

    fn judge_again(&mut self, slot: u32, tally: &mut Tally, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        let alpn = self.alpn_of(flow);
        let mut room = [&[][..]; ALPN_NAMES];
        let tuple = flow.tuple();
        let live = Live {
            port: Some(flow.port),
            on_relay: false,
            client: tuple.src.socket_addr(),
            destination: tuple.dst.socket_addr(),
            server: self.server_of(flow).socket_addr(),
            signed: flow.signed,
            evidence: flow.evidence(),
            protocol: flow.protocol,
            host: self.names.get(flow.name),
            ech: flow.ech,
            alpn: alpn.list(&mut room),
            verified: self.known_of(flow),
            hello_retry: flow.second.retry == HelloRetry::Changed,
        };
        let again = judge(&self.policy, &live);
        tally.count(&again);
        self.renew_verdict(slot, &again);
        if again.outcome == Outcome::Kept {
            self.note_anew(slot, out);
        }
        if again.outcome == Outcome::Ended {
            let action = again.decision.map_or(Action::Reset, |decision| decision.action);
            self.totals.reevaluated += 1;
            self.refuse(slot, action, refusal(action), out);
        }
    }

    /// The new verdict stands where it is what becomes of the connection.
    fn renew_verdict(&mut self, slot: u32, again: &Again) {
        let epoch = self.policy.epoch;
        let Some(flow) = self.flows.get_mut(slot) else { return };
        if let Some(decision) = again.decision
            && matches!(again.outcome, Outcome::Kept | Outcome::Ended)
        {
            let verdict = Verdict { action: decision.action, cause: decision.cause };
            (flow.intercept, flow.epoch) = (again.intercept.unwrap_or(flow.intercept), epoch);
            flow.verdict = Some(verdict);
        }
    }

    /// What is known of a connection's name without asking for it.
    pub(crate) fn known_of(&self, flow: &Flow) -> Option<Verified> {
        self.answers.known(flow.check, self.names.get(flow.name)?, &flow.tuple().dst.addr, self.now)
    }

    /// The ALPN names that a connection's client offered.
    pub(crate) fn alpn_of(&self, flow: &Flow) -> Alpn {
        self.alpns.get_bytes(flow.alpn).and_then(Alpn::from_wire).unwrap_or_default()
    }

    /// Where a connection goes.
    pub(crate) fn server_of(&self, flow: &Flow) -> Endpoint {
        self.legs.get(flow.leg).map_or(flow.tuple().dst, |leg| leg.tuple.dst)
    }

    /// How many of up to `max` connections from slot `cursor` on the kernel could not carry alone and are not of any
    /// intercept or pool of the fast road any more, so that steering must go on to send their packets here; and where to
    /// go on.
    pub fn leaning(&self, cursor: u32, max: usize) -> (u64, Option<u32>) {
        let (mut seen, mut count) = (0, 0);
        for (slot, flow) in self.flows.iter_from(cursor) {
            if seen == max {
                return (count, Some(slot));
            }
            seen += 1;
            count += u64::from(self.leans(flow));
        }
        (count, None)
    }

    fn leans(&self, flow: &Flow) -> bool {
        let plain = flow.leg == Flow::NO_LEG && !flow.by_weir && flow.hold == Flow::NO_HOLD;
        match flow.stage {
            Stage::Kernel | Stage::Elsewhere => return false,
            Stage::SynSent | Stage::Splice | Stage::Closed | Stage::Held if plain => return false,
            // Refused, it has had its RSTs; what comes yet is answered by its ends.
            Stage::Refused => return false,
            _ => {}
        }
        let destination = flow.tuple().dst;
        let taken = takes(&self.policy, flow.port, destination);
        let pooled = self
            .legs
            .get(flow.leg)
            .is_none_or(|leg| leg.target.is_none() || self.policy.has_server(&leg.tuple.dst));
        !(taken && pooled)
    }

    /// Notes that from now on other connections may be intercepted than before.
    pub(crate) fn note_intercepts(&mut self, next: &Policy) {
        if next.numbered() == self.policy.numbered() {
            return;
        }
        let longest = next.intercepts().iter().map(|i| i.midstream.grace).max().unwrap_or(Nanos(0));
        let now = self.now;
        self.before.retain(|(_, since)| since.saturating_add(longest) > now);
        if self.before.len() == BEFORE {
            self.before.remove(0);
        }
        self.before.push((self.policy.decided(), now));
    }

    /// Until when an unknown connection to `server` by `port` can be one from before: from before the start, or from before
    /// a configuration that takes it to the fast road was in force. `grace`: for so long after either.
    pub(crate) fn spared_until(&self, port: PortId, server: Endpoint, grace: Nanos) -> Nanos {
        let missed = self.before.iter().filter(|(policy, _)| !takes(policy, port, server));
        let newest = missed.map(|(_, since)| *since).fold(self.started, Nanos::max);
        newest.saturating_add(grace)
    }
}

/// Whether connections to `server` that come by `port` are the fast road's.
fn takes(policy: &Policy, port: PortId, server: Endpoint) -> bool {
    let intercept = policy.intercept(port, server.addr.ip(), server.port).and_then(|id| policy.get(id));
    intercept.is_some_and(|intercept| intercept.handshake != Handshake::Relay)
}

impl Flow {
    /// Where the connection stands.
    pub fn standing(&self) -> Standing {
        match self.stage {
            Stage::SynSent | Stage::SynRcvd | Stage::Held | Stage::Answered => Standing::Undecided,
            Stage::Splice | Stage::Dialing => Standing::Judged,
            Stage::Kernel if self.punted == Some(PuntReason::Midstream) => Standing::Unjudged,
            // What the relay has, the relay judges.
            Stage::Kernel | Stage::Refused | Stage::Closed | Stage::Elsewhere => Standing::Over,
        }
    }

    /// What is known of its first bytes, once there is a verdict.
    pub const fn evidence(&self) -> Evidence {
        match self.protocol {
            _ if self.partial => Evidence::Unknown,
            Some(_) => Evidence::Found,
            None => Evidence::Nothing,
        }
    }
}
