//! A connection that is over lingers, for retransmissions of its last segments.

use crate::drop::DropReason;
use crate::express::Place;
use crate::flow::record::{Flow, Side, Stage};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::Nanos;
use crate::pipeline::{Output, Pipeline};

use super::{held, timers};

impl<F: Frame> Pipeline<F> {
    /// The connection is over, and is forgotten after `linger`.
    pub(crate) fn close(&mut self, slot: u32, linger: Nanos, out: &mut Output<F>) {
        // Nobody is to take it for one that goes on.
        self.leave(slot, Place::Back, out);
        self.linger(slot, linger);
    }

    /// The same of one that no program has.
    pub(crate) fn linger(&mut self, slot: u32, linger: Nanos) {
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.tries = 0;
            flow.seen = self.now;
            self.flows.set_stage(slot, Stage::Closed);
            self.flows.arm(slot, self.now.saturating_add(linger));
        }
    }

    /// Whether there is room for another connection on the fast road. Where there is none, one that is over makes it: of those that are
    /// looked at, the one that has been silent the longest (so does `early_drop` of net/netfilter/nf_conntrack_core.c).
    pub fn make_room(&mut self, out: &mut Output<F>) -> bool {
        if self.flows.has_room(Stage::SynSent) {
            return true;
        }
        if !self.flows.has_closed() {
            return false;
        }
        let slots = self.flows.look_for_closed().filter(|slot| self.is_over(*slot));
        let seen = |slot| Some((self.flows.get(slot)?.seen, slot));
        let Some((_, slot)) = slots.filter_map(seen).min() else { return false };
        self.totals.recycled += 1;
        self.forget(slot, out);
        true
    }

    /// Whether nothing but a late packet can come of this connection, and nothing bad of that.
    fn is_over(&self, slot: u32) -> bool {
        let quiet = self.now.saturating_sub(timers::CROWDED);
        self.flows.get(slot).is_some_and(|flow| {
            let is_silent = flow.stage == Stage::Closed && flow.seen <= quiet;
            // Of these somebody may still send something again.
            let is_unsure = flow.hold != Flow::NO_HOLD || flow.hearsay;
            is_silent && !is_unsure && (flow.passes() || self.grace_end(slot) <= self.now)
        })
    }

    /// A late packet. Payload passes only if the connection was allowed: what was never inspected stays out.
    pub(crate) fn closed(&mut self, slot: u32, side: Side, mut packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return self.unknown(packet, out) };
        let meta = packet.meta;
        if flow.by_weir && flow.leg == Flow::NO_LEG {
            // There never was a server.
            self.discard(packet.frame, DropReason::OldLeg, out);
            return self.answer_rst(&meta, out);
        }
        if !flow.passes() && meta.payload_len() > 0 {
            return self.discard(packet.frame, DropReason::Midstream, out);
        }
        if meta.flags.syn() {
            return self.discard(packet.frame, DropReason::UnexpectedSyn, out);
        }
        if flow.second.is_expected()
            && side == Side::Client
            && meta.seq.add(meta.payload_len()).after(flow.second.read)
        {
            return self.discard(packet.frame, DropReason::Midstream, out);
        }
        let (hold, is_held) = (flow.hold, flow.hold != Flow::NO_HOLD && side == Side::Client);
        if is_held {
            held::calm(&mut packet);
            if self.holds.changed(hold, meta.seq, meta.payload_of(packet.frame.data())) {
                return self.discard(packet.frame, DropReason::ChangedBytes, out);
            }
        }
        let Some(packet) = self.behind_header(slot, side, packet, out) else { return };
        self.send_on(slot, side, packet, out);
    }
}
