//! A connection that is over lingers, for retransmissions of its last segments.

use crate::drop::DropReason;
use crate::flow::record::{Flow, Side, Stage};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::Nanos;
use crate::pipeline::{Output, Pipeline};

impl<F: Frame> Pipeline<F> {
    /// The connection is over, and is forgotten after `linger`.
    pub(crate) fn close(&mut self, slot: u32, linger: Nanos) {
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.tries = 0;
            self.flows.set_stage(slot, Stage::Closed);
            self.flows.arm(slot, self.now.saturating_add(linger));
        }
    }

    /// A late packet. Payload passes only if the connection was allowed: what was never inspected stays out.
    pub(crate) fn closed(&mut self, slot: u32, side: Side, packet: Packet<F>, out: &mut Output<F>) {
        let allowed = self.flows.get(slot).is_some_and(Flow::passes);
        if !allowed && packet.meta.payload_len() > 0 {
            return self.discard(packet.frame, DropReason::Midstream, out);
        }
        if packet.meta.flags.syn() {
            return self.discard(packet.frame, DropReason::UnexpectedSyn, out);
        }
        self.send_on(slot, side, packet, out);
    }
}
