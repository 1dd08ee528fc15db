//! The verdict: what was found is put to the rules, and the answer is carried out.

use crate::drop::DropReason;
use crate::express::Place;
use crate::flow::names::NameRef;
use crate::flow::record::{Flow, Side, Stage, Verdict};
use crate::flow::second::HelloRetry;
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::InterceptId;
use crate::inspect::{ALPN_NAMES, Found};
use crate::pipeline::{Output, Pipeline};
use crate::policy::{Action, Cause, Decision, Facts, VerifyHost};
use crate::stage::held::refusal;
use crate::stage::timers;
use crate::tcp::flags::TcpFlags;
use crate::tcp::seq::Seq;
use crate::tcp::track;
use crate::verify::{self, HostCheck, Need, Verified};
use crate::wire::build::{self, Segment, SegmentOptions};

/// What the rules say of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ruling {
    pub intercept: InterceptId,
    pub decision: Decision,
    pub verify_host: VerifyHost,
    pub unidentified: Action,
    /// The name is the outer one of an Encrypted ClientHello.
    pub is_hidden: bool,
    /// Whether what the client says could change the decision.
    pub by_content: bool,
}

impl<F: Frame> Pipeline<F> {
    /// Decides a connection by what was found, `None` when nothing could be: the server spoke first, the hold is
    /// exhausted or its time is over. Returns whether its packets pass.
    pub(crate) fn decide(&mut self, slot: u32, found: Option<&Found>, out: &mut Output<F>) -> bool {
        self.conclude(slot, found, None, out)
    }

    /// The same; `known` is what a resolver said of the name that was found, when it was asked before.
    pub(crate) fn conclude(
        &mut self,
        slot: u32,
        found: Option<&Found>,
        known: Option<Verified>,
        out: &mut Output<F>,
    ) -> bool {
        let Some(ruling) = self.rule_on(slot, found) else { return false };
        self.note_found(slot, found);
        self.expect_second(slot, found, &ruling);
        let need = self.verification(slot, &ruling, found, known);
        let check = need.check();
        let Some(flow) = self.flows.get_mut(slot) else { return false };
        flow.check = check;
        if check == HostCheck::Waiting {
            self.ask(slot, found, true, out);
            return false;
        }
        let mut decision = ruling.decision;
        if let Need::Known(verified) = need {
            decision = verify::rule(ruling.verify_host, verified, ruling.unidentified, decision);
            self.count_verified(verified);
        }
        let passes = self.take_verdict(slot, ruling.intercept, decision, out);
        if check == HostCheck::Asked {
            self.ask(slot, found, false, out);
        }
        passes
    }

    /// What the rules say, and what the intercept says of the name.
    pub(crate) fn rule_on(&self, slot: u32, found: Option<&Found>) -> Option<Ruling> {
        let flow = self.flows.get(slot)?;
        let tuple = flow.tuple();
        let mut room = [&[][..]; ALPN_NAMES];
        let facts = Facts {
            client: tuple.src.addr.ip(),
            server: tuple.dst.addr.ip(),
            server_port: tuple.dst.port,
            protocol: found.map(|f| f.protocol),
            host: found.and_then(|f| f.host.as_ref()).map(|name| name.as_str()),
            ech: found.is_some_and(|f| f.ech),
            alpn: found.map_or(&[][..], |f| f.alpn.list(&mut room)),
            hello_retry: flow.second.retry == HelloRetry::Changed,
        };
        let mut ruling = match self.intercept_of(flow) {
            Some((id, intercept)) => Ruling {
                intercept: id,
                decision: intercept.decide(&facts),
                verify_host: intercept.verify_host,
                unidentified: intercept.unidentified,
                is_hidden: intercept.is_hidden(&facts),
                by_content: intercept.depends_on_content(&facts),
            },
            // What a new configuration does not intercept any more passes.
            None => Ruling {
                intercept: flow.intercept,
                decision: Decision { action: Action::Allow, cause: Cause::Otherwise },
                verify_host: VerifyHost::Off,
                unidentified: Action::Allow,
                is_hidden: false,
                by_content: false,
            },
        };
        // Another server does not know what a signed connection is signed with.
        if flow.signed && matches!(ruling.decision.action, Action::Send(_)) {
            ruling.decision.action = Action::Reset;
        }
        Some(ruling)
    }

    /// Remembers what was found. Twice for a connection that waited for a resolver: a name that is kept stays.
    pub(crate) fn note_found(&mut self, slot: u32, found: Option<&Found>) {
        self.last_found = found.copied();
        let Some(flow) = self.flows.get_mut(slot) else { return };
        self.holds.seal(flow.hold);
        flow.protocol = found.map(|f| f.protocol);
        flow.ech = found.is_some_and(|f| f.ech);
        flow.partial = false;
        if let Some(host) = found.and_then(|f| f.host.as_ref()) {
            if flow.name == NameRef::NONE {
                flow.name = self.names.intern(host.as_str());
            }
            flow.partial |= flow.name == NameRef::NONE;
        }
        if let Some(wire) = found.map(|f| f.alpn.wire()).filter(|wire| !wire.is_empty()) {
            if flow.alpn == NameRef::NONE {
                flow.alpn = self.alpns.intern_bytes(wire);
            }
            flow.partial |= flow.alpn == NameRef::NONE;
        }
    }

    /// Carries a decision out. Returns whether the connection's packets pass.
    fn take_verdict(&mut self, slot: u32, id: InterceptId, decision: Decision, out: &mut Output<F>) -> bool {
        let Decision { action, cause } = decision;
        let Some(flow) = self.flows.get_mut(slot) else { return false };
        let verdict = Verdict { action, cause };
        (flow.intercept, flow.epoch, flow.verdict) = (id, self.policy.epoch, Some(verdict));
        self.totals.unidentified += u64::from(cause == Cause::Unidentified);
        if !verdict.passes() {
            self.refuse(slot, action, refusal(action), out);
            return false;
        }
        self.carry_out(slot, action, out);
        self.flows.get(slot).is_some_and(|flow| flow.stage != Stage::Refused)
    }

    /// Lets a connection go where the verdict says.
    fn carry_out(&mut self, slot: u32, action: Action, out: &mut Output<F>) {
        let by_weir = self.flows.get(slot).is_some_and(|flow| flow.by_weir);
        match action {
            Action::Send(pool) if !self.is_replay => self.dial(slot, Some(pool), out),
            _ => {
                self.totals.allowed += 1;
                if by_weir { self.dial(slot, None, out) } else { self.release(slot, out) }
            }
        }
    }

    /// Lets the held frames go, in order; the bytes stay for comparison until the server has acknowledged them.
    pub(crate) fn release(&mut self, slot: u32, out: &mut Output<F>) {
        self.flows.set_stage(slot, Stage::Splice);
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let hold = flow.hold;
        if hold == Flow::NO_HOLD {
            return self.rest(slot);
        }
        let expects = flow.second.is_expected();
        self.flows.arm(slot, self.now.saturating_add(timers::UNACKED_CROWDED));
        if expects { self.await_answer(slot, out) } else { self.pass_held(slot, None, out) }
    }

    /// Notes a packet and sends it on.
    pub(crate) fn pass(&mut self, slot: u32, side: Side, packet: Packet<F>, out: &mut Output<F>) {
        if let Some(flow) = self.flows.get_mut(slot) {
            let (fins, said) = (flow.fins(), flow.said_fins());
            track::note(flow, side, &packet.meta);
            let says = flow.said_fins();
            if track::is_over(flow) {
                self.close(slot, timers::LINGER, out);
            } else if flow.fins() != fins || says.0 && !said.0 || says.1 && !said.1 {
                self.note_fins(slot, out);
            }
        }
        self.send_on(slot, side, packet, out);
    }

    /// Ends a connection by verdict. The server's end is always freed: it can never hear from this client again.
    /// A dropped client gets no answer. What was held is dropped for `reason`; its frames carry the answers.
    pub(crate) fn refuse(&mut self, slot: u32, action: Action, reason: DropReason, out: &mut Output<F>) {
        self.drop_hold(slot, reason, out);
        self.leave(slot, Place::Back, out);
        // Where its ends stand the next packet of either says, and what it gets is exact.
        let is_lost = self.flows.get(slot).is_some_and(Flow::is_lost);
        if !is_lost {
            self.reset_server(slot, out);
        }
        if action == Action::Drop {
            self.totals.dropped += 1;
        } else {
            self.totals.reset += 1;
            if !is_lost {
                self.reset_client(slot, out);
            }
        }
        self.flows.set_stage(slot, Stage::Refused);
        let Some(flow) = self.flows.get_mut(slot) else { return };
        if flow.failure.is_none() && flow.verdict.is_none_or(Verdict::passes) {
            flow.verdict =
                Some(Verdict { action, cause: flow.verdict.map_or(Cause::Otherwise, |v| v.cause) });
        }
        let from = self.now.max(self.grace_end(slot));
        self.flows.arm(slot, from.saturating_add(timers::REFUSED));
    }

    /// An RST to the server with exactly the sequence number it expects next. Nothing where there is no server yet.
    pub(crate) fn reset_server(&mut self, slot: u32, out: &mut Output<F>) {
        if let Some(next) = self.flows.get(slot).map(|flow| flow.client.nxt) {
            self.reset_server_at(slot, next, out);
        }
    }

    /// The same where another sequence number of the client's is known to be the one.
    pub(crate) fn reset_server_at(&mut self, slot: u32, next: Seq, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        let leg = self.legs.get(flow.leg);
        let (tuple, flags, seq, ack) = match leg.map(|leg| (leg, leg.up.as_ref())) {
            None if flow.by_weir || flow.failure.is_some() => return,
            None => (flow.tuple(), TcpFlags::RST | TcpFlags::ACK, next, flow.client.ack),
            Some((leg, None)) => (leg.tuple, TcpFlags::RST, leg.isn.add(1), Seq(0)),
            Some((leg, Some(up))) => {
                let ack = flow.client.ack.add(up.delta.wrapping_neg());
                (leg.tuple, TcpFlags::RST | TcpFlags::ACK, next, ack)
            }
        };
        let options = SegmentOptions::default();
        self.send_built(&Segment { tuple, flags: TcpFlags(flags), seq, ack, window: 0, options }, out);
    }

    /// An RST to the client with exactly the sequence number it expects next; it acknowledges what the client sent and
    /// the server never saw only as far as an RST does, which is not at all (RFC 9293 section 3.5.2).
    pub(crate) fn reset_client(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        let segment = Segment {
            tuple: flow.tuple().reversed(),
            flags: TcpFlags(TcpFlags::RST | TcpFlags::ACK),
            seq: flow.server.nxt,
            ack: flow.client.nxt,
            window: 0,
            options: SegmentOptions::default(),
        };
        self.send_built(&segment, out);
    }

    /// Builds a segment in a free frame and sends it.
    pub(crate) fn send_built(&mut self, segment: &Segment, out: &mut Output<F>) {
        self.send_segment(segment, &[], out);
    }

    /// As [`Self::send_built`], with a payload.
    pub(crate) fn send_segment(&mut self, segment: &Segment, payload: &[u8], out: &mut Output<F>) {
        let Some(mut frame) = out.free.pop() else {
            return self.counters.drop(DropReason::NoFrame);
        };
        match build::segment(&mut frame, segment, payload) {
            Some(meta) => self.forward(Packet { frame, port: crate::ids::PortId(u8::MAX), meta }, out),
            None => self.discard(frame, DropReason::NoFrame, out),
        }
    }
}
