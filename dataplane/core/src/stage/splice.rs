//! An allowed connection: both directions pass.

use crate::drop::DropReason;
use crate::flow::record::{Flow, Side};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::pipeline::{Output, Pipeline};
use crate::tcp::track::{self, Rst};

use super::{held, timers};

impl<F: Frame> Pipeline<F> {
    pub(crate) fn splice(&mut self, slot: u32, side: Side, mut packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        // As long as the server may still be waiting for inspected bytes, it takes them as they were inspected.
        if flow.hold != Flow::NO_HOLD && side == Side::Client {
            held::calm(&mut packet);
        }
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
                }
                _ => {}
            }
        }
        self.pass(slot, side, packet, out);
    }

    fn inspected_is_acked(&self, hold: u32, ack: crate::tcp::seq::Seq) -> bool {
        self.holds.get(hold).is_some_and(|h| !ack.before(h.start.add(self.holds.inspected(hold))))
    }

    fn splice_rst(&mut self, slot: u32, side: Side, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        match track::judge_rst(flow, side, &packet.meta) {
            Rst::Ends => {
                self.drop_hold(slot, DropReason::Ended, out);
                self.close(slot, timers::CLOSED);
                self.send_on(slot, side, packet, out);
            }
            Rst::Challenged => self.send_on(slot, side, packet, out),
            Rst::OutOfWindow => self.discard(packet.frame, DropReason::RstOutOfWindow, out),
        }
    }
}
