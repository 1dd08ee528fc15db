//! A refused connection stays refused until its tuple is used again; and packets of connections that nobody knows.

use crate::drop::{DropReason, PuntReason};
use crate::flow::key::FlowKey;
use crate::flow::record::{Flow, Side};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::InterceptId;
use crate::parse::Meta;
use crate::pipeline::{Output, Pipeline};
use crate::policy::{Action, Handshake};
use crate::tcp::flags::TcpFlags;
use crate::tcp::seq::Seq;
use crate::tcp::track;
use crate::wire::build::{Segment, SegmentOptions};

use super::held::refusal;

impl<F: Frame> Pipeline<F> {
    /// A packet of a refused connection: answered with an RST, unless its client is to hear nothing.
    pub(crate) fn refused(&mut self, slot: u32, side: Side, packet: Packet<F>, out: &mut Output<F>) {
        let silent = self.flows.get(slot).and_then(|f| f.verdict).is_some_and(|v| v.action == Action::Drop);
        let meta = packet.meta;
        if self.flows.get(slot).is_some_and(Flow::is_lost) {
            self.reset_lost(slot, side, &meta, silent, out);
        }
        self.discard(packet.frame, refusal(if silent { Action::Drop } else { Action::Reset }), out);
        if !(silent && side == Side::Client) {
            self.answer_rst(&meta, out);
        }
    }

    /// The first packet of a connection that came back from the express lane to be refused says where both ends stand. Its sender
    /// is answered in any case.
    fn reset_lost(&mut self, slot: u32, side: Side, meta: &Meta, silent: bool, out: &mut Output<F>) {
        let delta =
            self.flows.get(slot).and_then(|flow| self.legs.get(flow.leg)?.up).map_or(0, |up| up.delta);
        let Some(flow) = self.flows.get_mut(slot).filter(|_| meta.flags.ack()) else { return };
        // A server's packet is as the server sent it.
        let seq = if side == Side::Server { meta.seq.add(delta) } else { meta.seq };
        track::settle(flow, side, seq, meta.ack);
        match side {
            Side::Client => self.reset_server(slot, out),
            Side::Server if !silent => self.reset_client(slot, out),
            Side::Server => {}
        }
    }

    /// A packet of an intercept whose connection is not known.
    pub(crate) fn midstream(&mut self, id: InterceptId, packet: Packet<F>, out: &mut Output<F>) {
        let Some(intercept) = self.policy.get(id) else {
            return self.punt(packet, PuntReason::NotIntercepted, out);
        };
        let (handshake, midstream) = (intercept.handshake, intercept.midstream);
        if handshake == Handshake::Relay {
            return self.punt(packet, PuntReason::RelayRule, out);
        }
        let packet = if handshake == Handshake::Answer {
            let Some(packet) = self.redeem(id, packet, out) else { return };
            packet
        } else {
            packet
        };
        let (src, dst) = (packet.meta.tuple.src, packet.meta.tuple.dst);
        let from_client = self.policy.intercept(packet.port, dst.addr.ip(), dst.port) == Some(id);
        let (port, server) = if from_client {
            (packet.port, dst)
        } else {
            let fits = |side: &_| self.policy.intercept_of_server(*side, src.addr.ip(), src.port) == Some(id);
            (self.fib.ports(dst.addr.ip()).iter().find(fits).unwrap_or(packet.port), src)
        };
        if handshake == Handshake::Answer && from_client && self.may_hold_cookie(&packet.meta) {
            // Of a client that has a cookie and whose first segment was lost: elsewhere it would be reset.
            return self.discard(packet.frame, DropReason::BadCookie, out);
        }
        let in_grace = self.now < self.spared_until(port, server, midstream.grace);
        if in_grace || midstream.action == Action::Allow {
            return self.give_midstream(id, packet, out);
        }
        let meta = packet.meta;
        if handshake == Handshake::Answer && self.now < self.cookies_until {
            // It may be of a client that has a cookie and whose first segment was lost: an RST would end what is well.
            return self.discard(packet.frame, DropReason::BadCookie, out);
        }
        self.discard(packet.frame, DropReason::Midstream, out);
        if midstream.action != Action::Drop {
            self.answer_rst(&meta, out);
        }
    }

    /// Whether the client of this segment may just have been shown a cookie.
    fn may_hold_cookie(&mut self, meta: &Meta) -> bool {
        let hash = self.hasher.hash(&FlowKey::of(&meta.tuple));
        self.now < self.cookies_until && self.shown.may_have(hash, self.now)
    }

    /// Answers a segment as a closed port does (RFC 9293 section 3.10.7.1). An RST gets no answer.
    pub(crate) fn answer_rst(&mut self, meta: &Meta, out: &mut Output<F>) {
        if meta.flags.rst() {
            return;
        }
        let (flags, seq, ack) = if meta.flags.ack() {
            (TcpFlags::RST, meta.ack, Seq(0))
        } else {
            (TcpFlags::RST | TcpFlags::ACK, Seq(0), meta.seq_end())
        };
        let segment = Segment {
            tuple: meta.tuple.reversed(),
            flags: TcpFlags(flags),
            seq,
            ack,
            window: 0,
            options: SegmentOptions::default(),
        };
        self.send_built(&segment, out);
    }
}
