//! The second ClientHello on the relay (see [`crate::stage::second`], which says why): what the machine holds for its sake,
//! and what the judge makes of it.
//!
//! The relay's streams are in order, so octets are counted: those of the client's up to `cleared` may be sent.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::flow::second::HelloRetry;
use crate::ids::Nanos;
use crate::inspect::{Behind, Found, HelloEnd, Inspector, Name, Next, Outcome, Said, Watch};

use crate::policy::{Action, Cause, Decision, Policy};
use crate::reevaluate::leads_to;
use crate::verify::{HostCheck, Verified};

use super::judge::{Judge, Judgement};
use super::{Ask, Ending, Phase, Relay, Side, Span, Unread, Verdict};

/// How far the machine is with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
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

/// What the machine remembers, as long as one is to be expected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Second {
    stage: Stage,
    /// Octets of the client's stream that may be sent.
    cleared: u64,
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
    fn deadline(&self) -> Option<Nanos> {
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
        let (stage, cleared) = (Stage::Perhaps, u64::from(octets));
        let second =
            Second { stage, cleared, begins: false, heard: 0, shown: 0, budget, time, overdue: false };
        self.second = Some(Box::new(second));
    }

    /// The answer to [`Ask::Answer`].
    pub fn handle_answer(&mut self, said: Said) {
        let Some(second) = self.second.as_mut().filter(|second| second.stage == Stage::Perhaps) else {
            return;
        };
        match said {
            Said::More => {}
            Said::Other => self.second = None,
            Said::Retry => second.stage = Stage::Asked,
        }
    }

    /// The answer to [`Ask::Behind`], which showed `len` octets.
    pub fn handle_behind(&mut self, next: Next, len: u32) {
        let Some(second) = &mut self.second else { return };
        match next {
            Next::Clear => second.cleared += u64::from(len),
            Next::Handshake(at) => {
                second.cleared += (at as u64).min(u64::from(len));
                second.begins = true;
            }
            Next::Nothing => self.second = None,
        }
    }

    /// The answer to [`Ask::Second`] and [`Ask::SecondUnread`].
    pub fn handle_second(&mut self, now: Nanos, verdict: Verdict) {
        let Some(second) = self.second.as_mut().filter(|_| self.phase == Phase::Running) else { return };
        let (Stage::Held { until } | Stage::Waiting { until }) = second.stage else { return };
        match verdict {
            Verdict::Wait => second.stage = Stage::Waiting { until },
            Verdict::Pass | Verdict::Send { .. } => self.second = None,
            Verdict::Reset => self.finish(Ending::Denied),
            Verdict::Drop => self.phase = Phase::Quiet(now.saturating_add(self.limits.quiet)),
        }
    }

    /// How many of the client's octets that wait may be sent for its sake.
    pub(super) fn second_clear(&self) -> u32 {
        self.second.as_ref().map_or(u32::MAX, |second| self.up.within(second.cleared))
    }

    pub(super) fn second_deadline(&self) -> Option<Nanos> {
        self.second.as_ref()?.deadline()
    }

    /// The most octets of the client's that are held: of a second hello as many as of a first one.
    pub(super) fn second_room(&self) -> u32 {
        match &self.second {
            Some(second) if second.begins => self.up.within(second.cleared).saturating_add(second.budget),
            _ => self.limits.buffer,
        }
    }

    /// A second hello, or what may be one, has begun and waits.
    pub(super) fn is_second_held(&self) -> bool {
        self.second.as_ref().is_some_and(|second| second.begins)
    }

    /// What comes from this side is to be looked at.
    pub(super) fn is_second_read(&self, from: Side) -> bool {
        self.second.as_ref().is_some_and(|second| from == Side::Client || second.stage == Stage::Perhaps)
    }

    /// A server that says nothing more asks for nothing.
    pub(super) fn second_ended(&mut self, from: Side) {
        if from == Side::Server && self.second.as_ref().is_some_and(|second| second.stage == Stage::Perhaps) {
            self.second = None;
        }
    }

    pub(super) fn second_timer(&mut self, now: Nanos) {
        if let Some(second) = &mut self.second {
            second.overdue |= second.deadline().is_some_and(|until| now >= until);
        }
    }

    /// What is to be looked at for the sake of a second hello.
    pub(super) fn poll_ask_second(&mut self) -> Option<Ask> {
        let second = self.second.as_mut()?;
        if second.stage == Stage::Perhaps && self.down.total_received() > second.heard {
            let at = second.heard;
            second.heard = self.down.total_received();
            let span = self.down.last((second.heard - at) as u32);
            return Some(Ask::Answer { at: u32::try_from(at).unwrap_or(u32::MAX), span });
        }
        let span = self.up.from_octet(second.cleared);
        match second.stage {
            Stage::Perhaps | Stage::Asked if !second.begins => (span.len > 0).then_some(Ask::Behind { span }),
            Stage::Perhaps => None,
            Stage::Asked => {
                second.stage = Stage::Held { until: self.active.saturating_add(second.time) };
                self.poll_held_second(span)
            }
            Stage::Held { .. } => self.poll_held_second(span),
            Stage::Waiting { .. } => std::mem::take(&mut second.overdue).then_some(Ask::SecondUnverified),
        }
    }

    fn poll_held_second(&mut self, span: Span) -> Option<Ask> {
        let second = self.second.as_mut()?;
        if span.len > second.shown {
            second.shown = span.len;
            return Some(Ask::Second { span, budget: second.budget });
        }
        (second.overdue || self.up.is_ended()).then_some(Ask::SecondUnread)
    }
}

/// What the judge remembers, until nothing can follow the first hello.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// Where the first hello ends.
    end: HelloEnd,
    watch: Watch,
    behind: Behind,
    inspector: Inspector,
    /// Where the connection goes, while a resolver is asked about the second hello's name.
    pub waits: Option<SocketAddr>,
}

impl Reading {
    pub fn after(end: HelloEnd) -> Self {
        let (watch, inspector) = (Watch::default(), Inspector::default());
        Self { end, watch, behind: Behind::new(end.in_record), inspector, waits: None }
    }
}

impl Judge {
    /// Octets of the first hello, where the verdict let it pass and a second one may be asked for.
    pub fn expects_second(&self) -> Option<u32> {
        Some(self.reading.as_ref()?.end.at)
    }

    /// What came of the second hello.
    pub const fn hello_retry(&self) -> HelloRetry {
        self.retry
    }

    /// Rules are kept as long as something may have to be judged by them.
    pub(super) fn keep(&mut self, policy: &Arc<Policy>) {
        self.policy = if self.reading.is_some() { policy.clone() } else { policy.decided() };
    }

    /// Nothing is to be judged any more.
    fn expect_no_more(&mut self) {
        self.reading = None;
        self.policy = self.policy.decided();
    }

    /// Shows octets of the server's answer, from octet `at` of its stream on.
    pub fn answer(&mut self, at: u32, bytes: &[u8]) -> Said {
        let Some(reading) = &mut self.reading else { return Said::Other };
        let said = reading.watch.read(at, bytes);
        match said {
            Said::More => {}
            Said::Retry => self.retry = HelloRetry::Asked,
            Said::Other => self.expect_no_more(),
        }
        said
    }

    /// Shows what the client sends behind its first hello: each octet once, until a handshake begins.
    pub fn behind(&mut self, bytes: &[u8]) -> Next {
        let Some(reading) = &mut self.reading else { return Next::Nothing };
        let next = reading.behind.read(bytes);
        if next == Next::Nothing {
            self.expect_no_more();
        }
        next
    }

    /// Shows the second hello so far, of a connection that goes to `server`. `None`: more is needed.
    pub fn second(&mut self, prefix: &[u8], budget: u32, server: SocketAddr) -> Option<Verdict> {
        let reading = self.reading.as_mut().filter(|reading| !reading.behind.is_no_hello(prefix));
        let Some(reading) = reading else {
            self.expect_no_more();
            return Some(Verdict::Pass);
        };
        match reading.inspector.inspect(prefix, budget as usize) {
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
            self.retry = HelloRetry::Same;
            self.expect_no_more();
            return Verdict::Pass;
        }
        self.retry = HelloRetry::Changed;
        let (decision, waits) = self.rule_on(found, true);
        let judgement = Judgement::of(decision, found, unread);
        if waits && let Some(reading) = &mut self.reading {
            self.judgement = Some(judgement);
            reading.waits = Some(server);
            return Verdict::Wait;
        }
        self.settle_second(judgement, server)
    }

    fn says_the_same(&self, found: &Found) -> bool {
        self.judgement.as_ref().is_some_and(|first| {
            first.protocol == Some(found.protocol)
                && first.host.as_deref() == found.host.as_ref().map(Name::as_str)
                && first.ech == found.ech
                && *first.alpn() == found.alpn
        })
    }

    /// The resolver's answer about the second hello's name.
    pub(super) fn second_verified(&mut self, verified: Verified, server: SocketAddr) -> Option<Verdict> {
        let judgement = self.judgement.take()?;
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
