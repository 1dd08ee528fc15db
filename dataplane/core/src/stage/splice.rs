//! An allowed connection: both directions pass.

use crate::drop::DropReason;
use crate::express::Place;
use crate::flow::record::{Flow, Side};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::pipeline::{Output, Pipeline};
use crate::tcp::seq::Seq;
use crate::tcp::track::{self, Rst};
use crate::wire::edit;

use super::{held, timers};

impl<F: Frame> Pipeline<F> {
    pub(crate) fn splice(&mut self, slot: u32, side: Side, mut packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        // As long as the server may still be waiting for inspected bytes, it takes them as they were inspected.
        if side == Side::Client && (flow.hold != Flow::NO_HOLD || flow.second.is_expected()) {
            held::calm(&mut packet);
        }
        if matches!(flow.place, Place::Entering | Place::Express) {
            match self.handed_up(slot, side, packet, out) {
                Some(handed) => packet = handed,
                None => return,
            }
        }
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let meta = packet.meta;
        if meta.flags.rst() {
            return self.splice_rst(slot, side, packet, out);
        }
        if meta.flags.syn() {
            // A SYN-ACK sent again, since the client's ACK was lost; no new connection opens behind a verdict.
            return if side == Side::Server && flow.leg == Flow::NO_LEG && meta.ack == flow.isn.add(1) {
                self.forward_syn(packet, out)
            } else {
                self.discard(packet.frame, DropReason::UnexpectedSyn, out)
            };
        }
        if flow.hold != Flow::NO_HOLD {
            let hold = flow.hold;
            match side {
                Side::Client if self.holds.changed(hold, meta.seq, meta.payload_of(packet.frame.data())) => {
                    // Damage on the way is no change: such a segment has a wrong checksum.
                    return if meta.segment_sum(packet.frame.data()) == 0xffff {
                        self.end_changed(slot, packet, out)
                    } else {
                        self.discard(packet.frame, DropReason::BadChecksum, out)
                    };
                }
                Side::Server if meta.flags.ack() && self.inspected_is_acked(hold, meta.ack) => {
                    self.drop_hold(slot, DropReason::Ended, out);
                    self.rest(slot);
                }
                _ => {}
            }
        }
        if self.flows.get(slot).is_some_and(|flow| flow.second.is_expected()) {
            packet = match self.before_second(slot, side, packet, out) {
                Some(packet) => packet,
                None => return,
            };
        }
        if let Some(packet) = self.behind_header(slot, side, packet, out) {
            self.pass(slot, side, packet, out);
            self.may_enter(slot, out);
        }
    }

    /// What stands before the client's first octet on the server's leg is weir's PROXY header. As long as the server may
    /// be waiting for it, no octet of the client goes there: the one of a keep-alive probe is cut off, others are dropped.
    pub(crate) fn behind_header(
        &mut self,
        slot: u32,
        side: Side,
        mut packet: Packet<F>,
        out: &mut Output<F>,
    ) -> Option<Packet<F>> {
        let flow = self.flows.get(slot)?;
        let waits = self.legs.get(flow.leg).is_some_and(|leg| !leg.header_acked);
        let meta = packet.meta;
        if side == Side::Server || !waits || !meta.seq.before(flow.isn.add(1)) {
            return Some(packet);
        }
        let is_probe = meta.seq == flow.isn && meta.payload_len() <= 1 && !meta.flags.fin();
        if !is_probe {
            self.discard(packet.frame, DropReason::OutOfWindow, out);
            return None;
        }
        if meta.payload_len() > 0 {
            if meta.segment_sum(packet.frame.data()) != 0xffff {
                self.discard(packet.frame, DropReason::BadChecksum, out);
                return None;
            }
            packet.meta = edit::cut_payload(&mut packet.frame, &meta);
        }
        Some(packet)
    }

    fn inspected_is_acked(&self, hold: u32, ack: Seq) -> bool {
        let acked = |start: Seq| !ack.before(start.add(self.holds.inspected(hold)));
        self.holds.get(hold).is_some_and(|h| acked(h.start) && h.frames.is_empty())
    }

    fn splice_rst(&mut self, slot: u32, side: Side, packet: Packet<F>, out: &mut Output<F>) {
        let follows = side == Side::Client && self.follows_second(slot, packet.meta.seq);
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let verdict = track::judge_rst(flow, side, &packet.meta);
        let is_read = flow.hold == Flow::NO_HOLD && !flow.second.is_expected();
        match if follows { Rst::Ends } else { verdict } {
            // The server may neither get this one nor have got what was inspected: the client could see to that with a
            // TTL. So the RST is made here, and the bytes stay for comparison.
            Rst::Ends if side == Side::Client && !is_read => {
                let next = if follows { flow.client.nxt } else { packet.meta.seq };
                self.discard(packet.frame, DropReason::Ended, out);
                self.drop_unread(slot, out);
                self.reset_server_at(slot, next, out);
                self.close(slot, timers::CLOSED, out);
            }
            Rst::Ends => {
                self.drop_hold(slot, DropReason::Ended, out);
                self.close(slot, timers::CLOSED, out);
                self.send_on(slot, side, packet, out);
            }
            Rst::Challenged => self.send_on(slot, side, packet, out),
            Rst::OutOfWindow => self.discard(packet.frame, DropReason::RstOutOfWindow, out),
            Rst::Unsure => self.unsure_rst(slot, side, packet, out),
        }
    }
}
