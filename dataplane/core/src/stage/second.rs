//! The second ClientHello. Where the client offers TLS 1.3 and the rules look at what it says, a verdict is not the end of
//! inspection: the server may ask for another hello (HelloRetryRequest), and not every server insists that it bears the name
//! of the first (RFC 8446 section 4.1.2).
//!
//! What the server sends is looked at while it passes, until its first 43 octets are known, and nothing of it is held. What
//! the client sends behind its first hello passes meanwhile record by record, as far as it is no handshake: early data goes
//! on. A handshake is held. When the server turns out to have answered otherwise everything passes and nothing is looked at
//! any more; when it has asked, the second hello is read within the intercept's `hold`. One that asks for the same keeps the
//! verdict. Another is put to the rules; where it leads elsewhere than the first the connection is ended.
//!
//! [`Flow::is_settled`] says that no more inspection is to come: the express lane asks that.

use crate::drop::DropReason;
use crate::flow::names::NameRef;
use crate::flow::record::{Flow, Side, Stage, Verdict};
use crate::flow::second::{Expected, HelloRetry, Second, Until};
use crate::frame::Frame;
use crate::hold::{Packet, Refused};
use crate::ids::Nanos;
use crate::inspect::{Found, Next, Outcome, Said, Watch};
use crate::pipeline::{Output, Pipeline};
use crate::policy::{Action, Cause, Decision};
use crate::reevaluate;
use crate::tcp::seq::Seq;
use crate::tcp::track;
use crate::verdict::Ruling;
use crate::verify::{self, HostCheck, Need, Verified};

use super::timers;

impl Flow {
    /// Whether no more inspection is to come: the verdict let it pass, the inspected bytes are acknowledged, no second hello
    /// can follow, and no resolver is waited for. From then on its packets may go a way on which nobody reads them. (That the
    /// server has its PROXY header is the leg's to say.)
    #[inline]
    pub fn is_settled(&self) -> bool {
        self.stage == Stage::Splice
            && self.hold == Self::NO_HOLD
            && !self.second.is_expected()
            && self.check != HostCheck::Waiting
    }
}

impl<F: Frame> Pipeline<F> {
    /// The first hello was judged: a second one is to be expected where it could change something.
    pub(crate) fn expect_second(&mut self, slot: u32, found: Option<&Found>, ruling: &Ruling) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let start = self.holds.get(flow.hold).map(|hold| hold.start);
        flow.set_second(match (found.and_then(|found| found.end), start) {
            (Some(end), Some(start)) if ruling.by_content => Second::after(start, end),
            _ => Second::default(),
        });
    }

    /// The verdict is carried out, and the server's answer is the next that it says.
    pub(crate) fn await_answer(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let first_end = flow.second.read;
        if let Expected::Perhaps { watch, .. } = flow.second.expected() {
            flow.expect(Expected::Perhaps { from: flow.server.nxt, watch });
        }
        let hold = flow.hold;
        self.read_on(slot, out);
        // A frame that ends the first hello and begins another would never pass. No client that was not asked says two.
        let Some(flow) = self.flows.get(slot).filter(|flow| flow.second.is_expected()) else { return };
        let Some(start) = self.holds.get(hold).map(|hold| hold.start) else { return };
        let octets = |seq: Seq| u32::try_from(seq.since(start)).unwrap_or(0);
        if self.holds.has_frame_across(hold, octets(first_end), octets(flow.second.read)) {
            self.end_second(slot, Decision { action: Action::Reset, cause: Cause::HelloRetry }, out);
        }
    }

    /// A segment of a connection whose second hello may be to come. Gives it back when it may pass now.
    pub(crate) fn before_second(
        &mut self,
        slot: u32,
        side: Side,
        packet: Packet<F>,
        out: &mut Output<F>,
    ) -> Option<Packet<F>> {
        match side {
            Side::Server => {
                self.hear(slot, &packet, out);
                Some(packet)
            }
            Side::Client => self.hold_behind(slot, packet, out),
        }
    }

    /// What the server says, as far as it tells whether it asks for a second hello.
    fn hear(&mut self, slot: u32, packet: &Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let meta = packet.meta;
        let end = flow.second.read.add(u32::from(flow.client_rest.fin));
        let is_ahead = !self.is_replay && meta.flags.ack() && meta.ack.after(end);
        let beginning = match flow.second.expected() {
            Expected::Perhaps { from, watch } => {
                let at = meta.seq.since(from);
                let fits = meta.payload_len() > 0
                    && at < Watch::LEN as i32
                    && at.saturating_add(meta.payload_len() as i32) > 0
                    && !meta.seq_end().after(flow.client.edge);
                fits.then_some((at, watch))
            }
            _ => None,
        };
        if !is_ahead && beginning.is_none() || meta.segment_sum(packet.frame.data()) != 0xffff {
            return;
        }
        if is_ahead {
            // The server has octets of the client that never came this way: steering let them pass while no worker breathed.
            flow.bypassed = true;
            self.totals.bypassed += 1;
            return self.expect_no_more(slot, out);
        }
        let Some((at, mut watch)) = beginning else { return };
        let bytes = meta.payload_of(packet.frame.data());
        let skip = usize::try_from(at.saturating_neg()).unwrap_or(0);
        match watch.read(u32::try_from(at).unwrap_or(0), bytes.get(skip..).unwrap_or_default()) {
            Said::More => {
                if let Expected::Perhaps { from, .. } = flow.second.expected() {
                    flow.expect(Expected::Perhaps { from, watch });
                }
            }
            Said::Other => self.expect_no_more(slot, out),
            Said::Retry => {
                flow.expect(Expected::Asked);
                flow.second.retry = HelloRetry::Asked;
                self.totals.hello_retry += 1;
                self.read_on(slot, out);
            }
        }
    }

    /// Holds what the client sends behind what was read, and reads on. Gives back what was read before, and what has no
    /// payload.
    fn hold_behind(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) -> Option<Packet<F>> {
        let flow = self.flows.get(slot)?;
        let (meta, read) = (packet.meta, flow.second.read);
        let end = meta.seq.add(meta.payload_len());
        let is_fin_behind = meta.flags.fin() && end.after(read);
        if !end.after(read) || meta.payload_len() == 0 && !is_fin_behind {
            return Some(packet);
        }
        if meta.segment_sum(packet.frame.data()) != 0xffff {
            self.discard(packet.frame, DropReason::BadChecksum, out);
            return None;
        }
        let Some(hold) = self.hold_from_read(slot) else {
            self.no_hold(slot, packet, out);
            return None;
        };
        let (start, budget) = self.holds.get(hold).map(|hold| (hold.start, hold.budget))?;
        let reads = matches!(self.flows.get(slot)?.second.expected(), Expected::Held { .. });
        if !reads && i64::from(end.since(start)) > i64::from(budget) {
            // It could not be read to its end; it comes again when the server has what is before it.
            self.discard(packet.frame, DropReason::HoldFull, out);
            return None;
        }
        let left_out = usize::try_from(start.since(meta.seq)).unwrap_or(0);
        let payload = (meta.payload as usize + left_out).min(meta.end as usize)..meta.end as usize;
        match self.holds.push(hold, packet, payload) {
            Ok(()) => {
                if let Some(flow) = self.flows.get_mut(slot) {
                    track::note_ack(flow, Side::Client, &meta);
                }
                self.read_on(slot, out);
            }
            Err((Refused::Changed, packet)) => self.end_changed(slot, packet, out),
            Err((Refused::OutOfWindow, packet)) => self.discard(packet.frame, DropReason::OutOfWindow, out),
            Err((Refused::Full, packet)) => self.discard(packet.frame, DropReason::HoldFull, out),
            Err((Refused::Duplicate, packet)) => self.discard(packet.frame, DropReason::HoldDuplicate, out),
        }
        None
    }

    /// The connection's hold; one that is opened now begins where the client's stream is to be read on.
    fn hold_from_read(&mut self, slot: u32) -> Option<u32> {
        let flow = self.flows.get(slot)?;
        if flow.hold != Flow::NO_HOLD {
            return Some(flow.hold);
        }
        let budget = self.intercept_of(flow).map_or(0, |(_, intercept)| intercept.hold_bytes);
        let flow = self.flows.get_mut(slot)?;
        let hold = self.holds.open(flow.second.read, budget)?;
        flow.hold = hold;
        self.flows.arm(slot, self.now.saturating_add(timers::UNACKED_CROWDED));
        Some(hold)
    }

    /// Reads what is held behind the first hello: records that are no handshake pass, and the second hello is judged once
    /// it is there.
    fn read_on(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let hold = flow.hold;
        let Some(start) = self.holds.get(hold).map(|hold| hold.start) else { return };
        let from = u32::try_from(flow.second.read.since(start)).unwrap_or(0);
        let unread = self.holds.reading(hold).get(from as usize..).unwrap_or_default();
        let (octets, begins) = match flow.second.behind.read(unread) {
            Next::Clear => (unread.len() as u32, false),
            Next::Handshake(at) => (at as u32, true),
            Next::Nothing => return self.expect_no_more(slot, out),
        };
        let handshake = unread.get(octets as usize..).unwrap_or_default();
        let is_no_hello = begins && flow.second.behind.is_no_hello(handshake);
        let read = from.saturating_add(octets);
        flow.second.read = start.add(read);
        let asked = flow.second.expected();
        self.holds.seal_at(hold, read);
        self.pass_held(slot, Some(read), out);
        match asked {
            Expected::Asked if is_no_hello => self.expect_no_more(slot, out),
            Expected::Asked if begins => {
                self.begin_second(slot, read);
                self.read_second(slot, out);
            }
            Expected::Held { .. } => self.read_second(slot, out),
            Expected::Asked | Expected::Perhaps { .. } | Expected::No => {}
        }
    }

    fn begin_second(&mut self, slot: u32, at: u32) {
        let Some(flow) = self.flows.get(slot) else { return };
        let wait = self.intercept_of(flow).map_or(timers::HANDSHAKE, |(_, intercept)| intercept.hold_time);
        let until = self.now.saturating_add(wait);
        self.holds.read_from(flow.hold, at);
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.expect(Expected::Held { until: Until(until) });
        }
        self.flows.arm(slot, until);
    }

    fn read_second(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        let hold = flow.hold;
        if flow.check == HostCheck::Waiting {
            return;
        }
        match self.holds.inspect(hold) {
            Outcome::Done(found) => self.judge_second(slot, Some(&found), None, out),
            Outcome::More if self.holds.is_complete(hold) => self.judge_second(slot, None, None, out),
            Outcome::More => {}
        }
    }

    /// The time that the second hello may be held is over.
    pub(crate) fn second_overdue(&mut self, slot: u32, until: Nanos, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        if until > self.now {
            return self.flows.arm(slot, until);
        }
        if flow.check == HostCheck::Waiting {
            let found = self.holds.found(flow.hold);
            return self.judge_second(slot, found.as_ref(), Some(Verified::Unknown), out);
        }
        self.judge_second(slot, None, None, out);
    }

    /// What the rules make of the second hello; `known`: what a resolver said of its name.
    pub(crate) fn judge_second(
        &mut self,
        slot: u32,
        found: Option<&Found>,
        known: Option<Verified>,
        out: &mut Output<F>,
    ) {
        let is_same = found.is_some_and(|found| self.says_the_same(slot, found));
        let Some(flow) = self.flows.get_mut(slot) else { return };
        if is_same {
            flow.second.retry = HelloRetry::Same;
            return self.expect_no_more(slot, out);
        }
        flow.second.retry = HelloRetry::Changed;
        self.totals.hello_changed += u64::from(known.is_none());
        let Some(ruling) = self.rule_on(slot, found) else { return };
        let need = self.verification(slot, &ruling, found, known);
        let Some(flow) = self.flows.get_mut(slot) else { return };
        flow.check = need.check();
        if flow.check == HostCheck::Waiting {
            return self.ask(slot, found, true, out);
        }
        let mut decision = ruling.decision;
        if let Need::Known(verified) = need {
            decision = verify::rule(ruling.verify_host, verified, ruling.unidentified, decision);
            self.count_verified(verified);
        }
        self.note_second(slot, found);
        if need == (Need::Ask { waits: false }) {
            self.ask(slot, found, false, out);
        }
        self.take_second_verdict(slot, &ruling, decision, out);
    }

    fn says_the_same(&self, slot: u32, found: &Found) -> bool {
        let Some(flow) = self.flows.get(slot) else { return false };
        let host = found.host.as_ref().map(|name| name.as_str());
        !flow.partial
            && flow.protocol == Some(found.protocol)
            && self.names.get(flow.name) == host
            && flow.ech == found.ech
            && self.alpn_of(flow) == found.alpn
    }

    /// What the second hello says stands from now on.
    fn note_second(&mut self, slot: u32, found: Option<&Found>) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        self.names.release(std::mem::replace(&mut flow.name, NameRef::NONE));
        self.alpns.release(std::mem::replace(&mut flow.alpn, NameRef::NONE));
        self.note_found(slot, found);
    }

    fn take_second_verdict(&mut self, slot: u32, ruling: &Ruling, decision: Decision, out: &mut Output<F>) {
        let verdict = Verdict { action: decision.action, cause: decision.cause };
        let Some(flow) = self.flows.get(slot) else { return };
        let (server, destination) = (self.server_of(flow), flow.tuple().dst);
        let leads_here = reevaluate::leads_to(&self.policy, decision.action, server, destination);
        let epoch = self.policy.epoch;
        let Some(flow) = self.flows.get_mut(slot) else { return };
        (flow.intercept, flow.epoch) = (ruling.intercept, epoch);
        if verdict.passes() && leads_here {
            flow.verdict = Some(verdict);
            return self.expect_no_more(slot, out);
        }
        let elsewhere = Decision { action: Action::Reset, cause: Cause::HelloRetry };
        self.end_second(slot, if verdict.passes() { elsewhere } else { decision }, out);
    }

    fn end_second(&mut self, slot: u32, decision: Decision, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        flow.verdict = Some(Verdict { action: decision.action, cause: decision.cause });
        flow.expect(Expected::No);
        flow.second.retry = HelloRetry::Changed;
        self.totals.hello_refused += 1;
        self.refuse(slot, decision.action, DropReason::HelloRetry, out);
    }

    /// Nothing more is to be read: what is held passes. What was read of it stays for comparison until it is acknowledged.
    fn expect_no_more(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let is_judged = matches!(flow.second.expected(), Expected::Held { .. });
        flow.expect(Expected::No);
        let hold = flow.hold;
        if is_judged {
            self.holds.seal_at(hold, self.holds.contiguous(hold));
            self.flows.arm(slot, self.now.saturating_add(timers::UNACKED_CROWDED));
        }
        self.pass_held(slot, None, out);
    }

    /// Lets held frames go, in order; of those that were not read, as far as `upto` octets of the hold.
    pub(crate) fn pass_held(&mut self, slot: u32, upto: Option<u32>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        let mut held = std::mem::take(&mut self.scratch);
        match upto {
            Some(upto) => self.holds.release_some(flow.hold, upto, &mut held),
            None => self.holds.release(flow.hold, &mut held),
        }
        for packet in held.drain(..) {
            self.pass(slot, Side::Client, packet, out);
        }
        self.scratch = held;
    }

    /// The connection is over: what is held of a second hello will not pass.
    pub(crate) fn drop_unread(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        for _ in 0..self.holds.drop_frames(flow.hold, &mut out.free) {
            self.counters.drop(DropReason::Ended);
        }
    }

    /// Whether an RST of the client stands behind what is held of it: the client counts held bytes.
    pub(crate) fn follows_second(&self, slot: u32, seq: Seq) -> bool {
        let hold = self.flows.get(slot).filter(|flow| flow.second.is_expected()).map(|flow| flow.hold);
        let hold = hold.and_then(|id| Some((id, self.holds.get(id)?)));
        hold.is_some_and(|(id, hold)| {
            let end = hold.start.add(self.holds.contiguous(id));
            seq == end || seq == end.add(1) && self.holds.is_complete(id)
        })
    }
}
