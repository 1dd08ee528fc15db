//! The second ClientHello on the relay (see [`crate::stage::second`], which says why): what the machine holds for its sake,
//! and what the judge makes of it.
//!
//! The relay's streams are in order, so octets are counted: those of the client's up to `cleared` may be sent.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::flow::second::HelloRetry;
use crate::ids::Nanos;
use crate::inspect::{Behind, Found, HelloEnd, Inspector, Next, Outcome, Said, Watch};
use crate::policy::{Action, Cause, Decision, Policy};
use crate::reevaluate::leads_to;
use crate::verify::{HostCheck, Verified};

use super::judge::{Judge, Judgement};
use super::{Ask, Ending, Phase, Relay, Side, Unread, Verdict};

/// How far the machine is with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// None is to be expected.
    #[default]
    No,
    /// The server has not said whether it asks for one.
    Perhaps,
    Asked,
    /// It has begun, and is held.
    Held {
        until: Nanos,
    },
    /// The verdict on it waits for a resolver.
    Waiting {
        until: Nanos,
    },
}

/// What the machine remembers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Second {
    pub stage: Stage,
    /// Octets of the client's stream that may be sent.
    pub cleared: u64,
    /// A handshake begins there.
    begins: bool,
    /// Octets of the server's stream that were shown, and of a second hello.
    heard: u64,
    shown: u32,
    budget: u32,
    time: Nanos,
    /// It will not be read to its end.
    overdue: bool,
}

impl Second {
    /// Octets of the client's stream that may be sent.
    pub fn limit(&self) -> u64 {
        if self.stage == Stage::No { u64::MAX } else { self.cleared }
    }

    pub fn deadline(&self) -> Option<Nanos> {
        match self.stage {
            Stage::Held { until } | Stage::Waiting { until } if !self.overdue => Some(until),
            _ => None,
        }
    }
}

impl Relay {
    /// The verdict let the connection pass, by a hello of so many octets, and the server may ask for a second one: that is
    /// to be held, of so many octets at most and for so long.
    pub fn expect_second(&mut self, octets: u32, budget: u32, time: Nanos) {
        if self.down.total_received() > 0 || self.down.is_ended() {
            // It has said something else first, or all that it will.
            return;
        }
        let budget = budget.clamp(1, self.limits.buffer.max(1));
        let cleared = u64::from(octets);
        self.second = Second { stage: Stage::Perhaps, cleared, budget, time, ..Second::default() };
    }

    /// The answer to [`Ask::Answer`].
    pub fn handle_answer(&mut self, said: Said) {
        if self.second.stage == Stage::Perhaps {
            self.second.stage = match said {
                Said::More => Stage::Perhaps,
                Said::Other => Stage::No,
                Said::Retry => Stage::Asked,
            };
        }
    }

    /// The answer to [`Ask::Behind`], which showed `len` octets.
    pub fn handle_behind(&mut self, next: Next, len: u32) {
        match next {
            Next::Clear => self.second.cleared += u64::from(len),
            Next::Handshake(at) => {
                self.second.cleared += (at as u64).min(u64::from(len));
                self.second.begins = true;
            }
            Next::Nothing => self.second.stage = Stage::No,
        }
    }

    /// The answer to [`Ask::Second`] and [`Ask::SecondUnread`].
    pub fn handle_second(&mut self, now: Nanos, verdict: Verdict) {
        let until = match self.second.stage {
            Stage::Held { until } | Stage::Waiting { until } if self.phase == Phase::Running => until,
            _ => return,
        };
        match verdict {
            Verdict::Wait => self.second.stage = Stage::Waiting { until },
            Verdict::Pass | Verdict::Send { .. } => self.second.stage = Stage::No,
            Verdict::Reset => self.finish(Ending::Denied),
            Verdict::Drop => self.phase = Phase::Quiet(now.saturating_add(self.limits.quiet)),
        }
    }

    /// A server that says nothing more asks for nothing.
    pub(super) fn second_ended(&mut self, from: Side) {
        if from == Side::Server && self.second.stage == Stage::Perhaps {
            self.second.stage = Stage::No;
        }
    }

    pub(super) fn second_timer(&mut self, now: Nanos) {
        self.second.overdue |= self.second.deadline().is_some_and(|until| now >= until);
    }

    /// What is to be looked at for the sake of a second hello.
    pub(super) fn poll_ask_second(&mut self) -> Option<Ask> {
        if self.second.stage == Stage::Perhaps && self.down.total_received() > self.second.heard {
            let at = self.second.heard;
            self.second.heard = self.down.total_received();
            let span = self.down.last((self.second.heard - at) as u32);
            return Some(Ask::Answer { at: u32::try_from(at).unwrap_or(u32::MAX), span });
        }
        match self.second.stage {
            Stage::Perhaps | Stage::Asked if !self.second.begins => {
                let span = self.up.from_octet(self.second.cleared);
                (span.len > 0).then_some(Ask::Behind { span })
            }
            Stage::Asked => {
                self.second.stage = Stage::Held { until: self.active.saturating_add(self.second.time) };
                self.poll_held_second()
            }
            Stage::Held { .. } => self.poll_held_second(),
            Stage::Waiting { .. } if self.second.overdue => {
                self.second.overdue = false;
                Some(Ask::SecondUnverified)
            }
            Stage::No | Stage::Perhaps | Stage::Waiting { .. } => None,
        }
    }

    fn poll_held_second(&mut self) -> Option<Ask> {
        let span = self.up.from_octet(self.second.cleared);
        if span.len > self.second.shown {
            self.second.shown = span.len;
            // What goes round the end of the buffer is not shown, and so not read.
            let room = self.limits.buffer.saturating_sub(span.at);
            return Some(Ask::Second { span, budget: self.second.budget.min(room) });
        }
        let over = self.second.overdue || self.up.is_ended();
        over.then_some(Ask::SecondUnread)
    }
}

/// What the judge remembers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    /// Where the first hello ends, until nothing can follow it.
    end: Option<HelloEnd>,
    pub retry: HelloRetry,
    watch: Watch,
    behind: Behind,
    inspector: Inspector,
    /// Where the connection goes, while a resolver is asked about the second hello's name.
    pub waits: Option<SocketAddr>,
}

impl Reading {
    pub fn after(end: HelloEnd) -> Self {
        Self { end: Some(end), behind: Behind::new(end.in_record), ..Self::default() }
    }
}

impl Judge {
    /// Octets of the first hello, where the verdict let it pass and a second one may be asked for.
    pub fn expects_second(&self) -> Option<u32> {
        Some(self.reading.end?.at)
    }

    /// What came of the second hello.
    pub const fn hello_retry(&self) -> HelloRetry {
        self.reading.retry
    }

    /// Rules are kept as long as something may have to be judged by them.
    pub(super) fn keep(&mut self, policy: &Arc<Policy>) {
        self.policy = if self.reading.end.is_some() { policy.clone() } else { policy.decided() };
    }

    /// Nothing is to be judged any more.
    fn expect_no_more(&mut self) {
        self.reading.end = None;
        self.policy = self.policy.decided();
    }

    /// Shows octets of the server's answer, from octet `at` of its stream on.
    pub fn answer(&mut self, at: u32, bytes: &[u8]) -> Said {
        let said = self.reading.watch.read(at, bytes);
        match said {
            Said::More => {}
            Said::Retry => self.reading.retry = HelloRetry::Asked,
            Said::Other => self.expect_no_more(),
        }
        said
    }

    /// Shows what the client sends behind its first hello: each octet once, until a handshake begins.
    pub fn behind(&mut self, bytes: &[u8]) -> Next {
        let next = self.reading.behind.read(bytes);
        if next == Next::Nothing {
            self.expect_no_more();
        }
        next
    }

    /// Shows the second hello so far, of a connection that goes to `server`. `None`: more is needed.
    pub fn second(&mut self, prefix: &[u8], budget: u32, server: SocketAddr) -> Option<Verdict> {
        if self.reading.behind.is_no_hello(prefix) {
            self.expect_no_more();
            return Some(Verdict::Pass);
        }
        match self.reading.inspector.inspect(prefix, budget as usize) {
            Outcome::More => None,
            Outcome::Done(found) => Some(self.judge_second(Some(&found), None, server)),
        }
    }

    /// There is nothing more to read of it.
    pub fn second_unread(&mut self, server: SocketAddr) -> Verdict {
        self.judge_second(None, Some(Unread::HoldTime), server)
    }

    fn judge_second(&mut self, found: Option<&Found>, unread: Option<Unread>, server: SocketAddr) -> Verdict {
        if found.is_some_and(|found| self.says_the_same(found)) {
            self.reading.retry = HelloRetry::Same;
            self.expect_no_more();
            return Verdict::Pass;
        }
        self.reading.retry = HelloRetry::Changed;
        let (decision, waits) = self.rule_on(found, true);
        let judgement = Judgement::of(decision, found, unread);
        if waits {
            self.judgement = Some(judgement);
            self.reading.waits = Some(server);
            return Verdict::Wait;
        }
        self.settle_second(judgement, server)
    }

    fn says_the_same(&self, found: &Found) -> bool {
        self.judgement.is_some_and(|first| {
            (first.protocol, first.host, first.ech) == (Some(found.protocol), found.host, found.ech)
                && first.alpn == found.alpn
        })
    }

    /// The resolver's answer about the second hello's name.
    pub(super) fn second_verified(&mut self, verified: Verified, server: SocketAddr) -> Option<Verdict> {
        let judgement = self.judgement?;
        self.reading.waits = None;
        self.check = HostCheck::Known(verified);
        let decision = self.ruled(verified, judgement.decision);
        Some(self.settle_second(Judgement { decision, ..judgement }, server))
    }

    fn settle_second(&mut self, judgement: Judgement, server: SocketAddr) -> Verdict {
        let Decision { action, cause } = judgement.decision;
        let refused = matches!(action, Action::Reset | Action::Drop);
        let leads_here = leads_to(&self.policy, action, server.into(), self.server.into());
        let decision = match (refused, leads_here) {
            (false, false) => Decision { action: Action::Reset, cause: Cause::HelloRetry },
            _ => Decision { action, cause },
        };
        self.judgement = Some(Judgement { decision, ..judgement });
        self.expect_no_more();
        match decision.action {
            Action::Reset => Verdict::Reset,
            Action::Drop => Verdict::Drop,
            Action::Allow | Action::Relay | Action::Send(_) => Verdict::Pass,
        }
    }
}
