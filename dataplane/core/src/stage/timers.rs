//! How long connections are remembered, and what happens when that is over.
//!
//! A packet does not move its connection's timer; a timer that runs out looks when the last packet was.

use crate::flow::record::{Flow, Stage};
use crate::frame::Frame;
use crate::ids::Nanos;
use crate::pipeline::{KernelOp, Output, Pipeline};

/// A SYN without an answer: Linux gives up after 127 s, a lingering entry is cheap only for a while.
pub const HANDSHAKE: Nanos = Nanos::from_secs(75);
/// An established connection without a packet: RFC 5382 REQ-5 asks for at least 2 hours and 4 minutes.
pub const IDLE: Nanos = Nanos::from_secs(2 * 3600 + 5 * 60);
/// After both FINs: 2 MSL as Linux counts it (TCP_TIMEWAIT_LEN).
pub const LINGER: Nanos = Nanos::from_secs(60);
/// After an RST.
pub const CLOSED: Nanos = Nanos::from_secs(10);
/// A refused connection: its client may go on sending for as long as it retransmits quickly.
pub const REFUSED: Nanos = Nanos::from_secs(60);
/// How often a kernel-road connection is looked up in the kernel map.
pub const KERNEL_CHECK: Nanos = Nanos::from_secs(30);

impl<F: Frame> Pipeline<F> {
    pub(crate) fn timer(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        let (stage, seen, hold, key) = (flow.stage, flow.seen, flow.hold, flow.key);
        match stage {
            Stage::SynSent => self.expire_after(slot, seen, HANDSHAKE, out),
            Stage::Held if hold != Flow::NO_HOLD => {
                self.decide(slot, None, out);
            }
            Stage::Held | Stage::Splice => self.expire_after(slot, seen, IDLE, out),
            Stage::Refused => self.expire_after(slot, seen, REFUSED, out),
            Stage::Closed => self.forget(slot, out),
            Stage::Kernel => {
                self.flows.arm(slot, self.now.saturating_add(KERNEL_CHECK));
                out.kernel.push(KernelOp::Check(key));
            }
        }
    }

    fn expire_after(&mut self, slot: u32, seen: Nanos, patience: Nanos, out: &mut Output<F>) {
        let end = seen.saturating_add(patience);
        if end <= self.now {
            self.totals.expired += 1;
            self.forget(slot, out);
        } else {
            self.flows.arm(slot, end);
        }
    }
}
