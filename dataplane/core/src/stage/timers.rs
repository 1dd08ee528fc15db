//! How long connections are remembered, and what happens when that is over.
//!
//! A packet does not move its connection's timer; a timer that runs out looks when the last packet was.

use crate::drop::DropReason;
use crate::flow::record::{Flow, Stage};
use crate::flow::second::Expected;
use crate::frame::Frame;
use crate::ids::Nanos;
use crate::pipeline::{KernelOp, Output, Pipeline};
use crate::policy::Action;
use crate::verify::HostCheck;

use super::answer::SYN_ACKS;

/// A SYN without an answer: Linux gives up after 127 s, a lingering entry is cheap only for a while.
pub const HANDSHAKE: Nanos = Nanos::from_secs(75);
/// What weir itself sends and is not acknowledged is sent again after this, and then after twice as long each time
/// (RFC 6298 sections 2.1 and 5.5).
pub const RETRANSMIT: Nanos = Nanos::from_secs(1);
/// An established connection without a packet: RFC 5382 REQ-5 asks for at least 2 hours and 4 minutes.
pub const IDLE: Nanos = Nanos::from_secs(2 * 3600 + 5 * 60);
/// After both FINs: 2 MSL as Linux counts it (TCP_TIMEWAIT_LEN).
pub const LINGER: Nanos = Nanos::from_secs(60);
/// When its place is wanted: what is over, or has had nothing but its SYN, from the last packet. Longer than a sender waits for its first
/// two retransmissions (RFC 6298: 1 s, then 2 s).
pub const CROWDED: Nanos = Nanos::from_secs(4);
/// The same of a connection that the relay has: steering has seen a FIN of both ends, and the relay may still have octets for one.
pub const CROWDED_FINS: Nanos = Nanos::from_secs(30);
/// A connection without a packet after an RST of which nobody knows whether it ended it (RFC 7857 section 2.2).
pub const RESET: Nanos = Nanos::from_secs(240);
/// After an RST.
pub const CLOSED: Nanos = Nanos::from_secs(10);
/// A refused connection without a packet. Linux retransmits at least every 120 s (TCP_RTO_MAX).
pub const REFUSED: Nanos = Nanos::from_secs(130);
/// How often a kernel-road connection is looked up in the kernel map.
pub const KERNEL_CHECK: Nanos = Nanos::from_secs(30);

/// How long inspected bytes are kept for a server that does not acknowledge them, from the last packet of either end: longer than
/// a sender waits between two probes of a closed window (Linux: 120 s, TCP_RTO_MAX).
pub const UNACKED: Nanos = Nanos::from_secs(300);
/// The same where the room for such bytes is more than half full.
pub const UNACKED_CROWDED: Nanos = Nanos::from_secs(60);
/// How long a server may take to acknowledge a PROXY header.
pub const HEADER: Nanos = Nanos::from_secs(60);

impl<F: Frame> Pipeline<F> {
    pub(crate) fn timer(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        let (passes, waiting) = (flow.passes(), flow.check == HostCheck::Waiting);
        let (stage, seen, held, key) = (flow.stage, flow.seen, flow.hold != Flow::NO_HOLD, flow.key);
        let second = flow.second.expected();
        match stage {
            Stage::SynSent => self.expire_at(slot, seen.saturating_add(HANDSHAKE), out),
            Stage::SynRcvd => self.syn_ack_timer(slot, out),
            Stage::Dialing => self.syn_timer(slot, out),
            Stage::Splice if let Expected::Held { until } = second => self.second_overdue(slot, until.0, out),
            Stage::Splice if self.header_timer(slot, out) => {}
            Stage::Answered | Stage::Held if waiting => self.unverified(slot, out),
            // A client that says nothing, or waits for the server to speak.
            Stage::Answered => {
                self.decide(slot, None, out);
            }
            Stage::Elsewhere => self.expire_at(slot, seen.saturating_add(IDLE), out),
            Stage::Held if held => {
                self.decide(slot, None, out);
            }
            // The server never took what goes before the client's octets.
            Stage::Splice if self.lacks_header(slot) => {
                self.refuse(slot, Action::Reset, DropReason::Unacknowledged, out);
            }
            Stage::Splice if held => self.unacked_timer(slot, seen, out),
            Stage::Splice => self.express_timer(slot, out),
            Stage::Held => self.expire_at(slot, seen.saturating_add(IDLE), out),
            Stage::Refused => {
                self.expire_at(slot, seen.max(self.grace_end(slot)).saturating_add(REFUSED), out);
            }
            Stage::Closed if (!passes || held) && self.now < self.grace_end(slot) => {
                self.flows.arm(slot, self.grace_end(slot));
            }
            Stage::Closed => self.forget(slot, out),
            Stage::Kernel => {
                self.flows.arm(slot, self.now.saturating_add(KERNEL_CHECK));
                out.kernel.push(KernelOp::Check(key));
            }
        }
    }

    /// The server has not acknowledged all that was inspected. Without those octets the client's retransmissions can be compared no
    /// longer, and so cannot pass.
    fn unacked_timer(&mut self, slot: u32, seen: Nanos, out: &mut Output<F>) {
        let limit = if self.holds.is_crowded() { UNACKED_CROWDED } else { UNACKED };
        if seen.saturating_add(limit) <= self.now {
            return self.refuse(slot, Action::Reset, DropReason::Unacknowledged, out);
        }
        // How crowded it is may be another thing by then.
        let next = self.now.saturating_add(UNACKED_CROWDED);
        self.flows.arm(slot, next.min(seen.saturating_add(limit)));
    }

    /// When the grace time of the connection's intercept ends. Within it an unknown connection is one from before, so that
    /// what has not been allowed is remembered for as long.
    pub(crate) fn grace_end(&self, slot: u32) -> Nanos {
        let Some(flow) = self.flows.get(slot) else { return self.started };
        let grace = self.intercept_of(flow).map_or(Nanos(0), |(_, intercept)| intercept.midstream.grace);
        self.spared_until(flow.port, flow.tuple().dst, grace)
    }

    /// The client does not answer our SYN-ACK.
    fn syn_ack_timer(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        flow.tries = flow.tries.saturating_add(1);
        let tries = flow.tries;
        if tries >= SYN_ACKS {
            self.totals.expired += 1;
            return self.forget(slot, out);
        }
        self.flows.arm(slot, self.now.saturating_add(Nanos(RETRANSMIT.0 << tries)));
        self.answer_again(slot, out);
    }

    pub(crate) fn expire_at(&mut self, slot: u32, end: Nanos, out: &mut Output<F>) {
        if end > self.now {
            return self.flows.arm(slot, end);
        }
        self.totals.expired += 1;
        if self.flows.get(slot).is_some_and(|flow| matches!(flow.stage, Stage::Held | Stage::Refused)) {
            // Of a connection that was not allowed nothing may stay at the server; an RST before may have been lost.
            self.reset_server(slot, out);
        }
        self.forget(slot, out);
    }
}
