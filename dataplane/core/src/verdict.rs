//! The verdict: what was found is put to the rules, and the answer is carried out.

use crate::drop::DropReason;
use crate::flow::names::NameRef;
use crate::flow::record::{Flow, Side, Stage, Verdict};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::inspect::{ALPN_NAMES, Found};
use crate::pipeline::{Output, Pipeline};
use crate::policy::{Action, Cause, Decision, Facts};
use crate::stage::held::refusal;
use crate::stage::timers;
use crate::tcp::flags::TcpFlags;
use crate::tcp::seq::Seq;
use crate::tcp::track;
use crate::wire::build::{self, Segment, SegmentOptions};

impl<F: Frame> Pipeline<F> {
    /// Decides a connection by what was found, `None` when nothing could be: the server spoke first, the hold is
    /// exhausted or its time is over. Returns whether its packets pass.
    pub(crate) fn decide(&mut self, slot: u32, found: Option<&Found>, out: &mut Output<F>) -> bool {
        let Some(flow) = self.flows.get(slot) else { return false };
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
        };
        // What a new configuration does not intercept any more passes.
        let nothing = Decision { action: Action::Allow, cause: Cause::Otherwise };
        let (id, Decision { action, cause }) =
            self.intercept_of(flow).map_or((flow.intercept, nothing), |(id, i)| (id, i.decide(&facts)));
        // Another server does not know what a signed connection is signed with.
        let action = if flow.signed && matches!(action, Action::Send(_)) { Action::Reset } else { action };
        let name = facts.host.map(|host| self.names.intern(host));
        let wire = found.map(|f| f.alpn.wire()).filter(|wire| !wire.is_empty());
        let alpn = wire.map(|wire| self.alpns.intern_bytes(wire));
        self.last_found = found.copied();
        self.holds.seal(flow.hold);
        let Some(flow) = self.flows.get_mut(slot) else { return false };
        let verdict = Verdict { action, cause };
        (flow.intercept, flow.epoch, flow.verdict) = (id, self.policy.epoch, Some(verdict));
        flow.protocol = facts.protocol;
        flow.ech = facts.ech;
        flow.partial = [name, alpn].contains(&Some(NameRef::NONE));
        flow.name = name.unwrap_or(NameRef::NONE);
        flow.alpn = alpn.unwrap_or(NameRef::NONE);
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
            return self.flows.arm(slot, self.now.saturating_add(timers::IDLE));
        }
        self.flows.arm(slot, self.now.saturating_add(timers::UNACKED));
        let mut held = std::mem::take(&mut self.scratch);
        self.holds.release(hold, &mut held);
        for packet in held.drain(..) {
            self.pass(slot, Side::Client, packet, out);
        }
        self.scratch = held;
    }

    /// Notes a packet and sends it on.
    pub(crate) fn pass(&mut self, slot: u32, side: Side, packet: Packet<F>, out: &mut Output<F>) {
        if let Some(flow) = self.flows.get_mut(slot) {
            track::note(flow, side, &packet.meta);
            if track::is_over(flow) {
                self.close(slot, timers::LINGER);
            }
        }
        self.send_on(slot, side, packet, out);
    }

    /// Ends a connection by verdict. The server's end is always freed: it can never hear from this client again.
    /// A dropped client gets no answer. What was held is dropped for `reason`; its frames carry the answers.
    pub(crate) fn refuse(&mut self, slot: u32, action: Action, reason: DropReason, out: &mut Output<F>) {
        self.drop_hold(slot, reason, out);
        self.reset_server(slot, out);
        if action == Action::Drop {
            self.totals.dropped += 1;
        } else {
            self.totals.reset += 1;
            self.reset_client(slot, out);
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
