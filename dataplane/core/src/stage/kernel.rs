//! Connections on the kernel road: each is remembered here, so that an evicted entry of the kernel map never makes an
//! unknown connection of it.

use crate::drop::{DropReason, PuntReason};
use crate::flow::key::FlowKey;
use crate::flow::record::{Flow, Stage};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::{InterceptId, Nanos};
use crate::pipeline::{Course, KernelOp, Output, Pipeline};

use super::timers;

impl<F: Frame> Pipeline<F> {
    /// A record for the connection a packet from the client belongs to.
    pub(crate) fn kernel_flow(&self, id: InterceptId, reason: PuntReason, packet: &Packet<F>) -> Flow {
        let mut flow = Flow::new(&packet.meta.tuple, packet.port, id, self.policy.epoch, self.now);
        flow.stage = Stage::Kernel;
        flow.punted = Some(reason);
        flow.isn = packet.meta.seq;
        flow
    }

    /// Remembers it and enters it in the kernel map. `None`: no room.
    pub(crate) fn enter_kernel_road(&mut self, flow: Flow, out: &mut Output<F>) -> Option<u32> {
        let key = flow.key;
        if self.flows.is_kernel_crowded() {
            for slot in self.flows.look_for_kernels(self.now) {
                out.kernel.extend(self.check_of(slot));
            }
        }
        let slot = self.flows.insert(flow)?;
        self.flows.arm(slot, self.now.saturating_add(timers::KERNEL_CHECK));
        out.kernel.push(KernelOp::Insert(key));
        Some(slot)
    }

    fn check_of(&self, slot: u32) -> Option<KernelOp> {
        self.flows.get(slot).filter(|flow| flow.stage == Stage::Kernel).map(|flow| KernelOp::Check(flow.key))
    }

    /// Its entry may be gone; and what that says must not be lost. `goes_on`: more than its SYN has come.
    pub(crate) fn reenter_kernel_road(&mut self, slot: u32, goes_on: bool, out: &mut Output<F>) {
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.answered |= goes_on;
            out.kernel.push(KernelOp::Keep { key: flow.key, goes_on });
        }
    }

    /// A connection from before the start.
    pub(crate) fn give_midstream(&mut self, id: InterceptId, packet: Packet<F>, out: &mut Output<F>) {
        // An RST ends what it belongs to: there is nothing to remember.
        if packet.meta.flags.rst() {
            return self.punt(packet, PuntReason::Midstream, out);
        }
        // Its addresses become a record: they must not be what a bit on the wire has made of another's.
        if !self.is_replay && packet.meta.segment_sum(packet.frame.data()) != 0xffff {
            return self.discard(packet.frame, DropReason::BadChecksum, out);
        }
        let mut flow = self.kernel_flow(id, PuntReason::Midstream, &packet);
        let from_client =
            self.policy.intercept(packet.port, packet.meta.tuple.dst.addr.ip(), packet.meta.tuple.dst.port);
        if from_client != Some(id) {
            flow.turn();
        }
        match self.enter_kernel_road(flow, out) {
            Some(_) => {
                self.totals.midstream += 1;
                self.punt(packet, PuntReason::Midstream, out);
            }
            None => self.discard(packet.frame, DropReason::TableFull, out),
        }
    }

    /// A packet of a kernel-road connection that steering sent here: its map entry is gone, or was not yet there.
    pub(crate) fn on_kernel_road(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        self.reenter_kernel_road(slot, true, out);
        self.punt(packet, PuntReason::KernelFlow, out);
    }

    /// The answer to [`KernelOp::Check`]: when the map last saw the connection, and how far it saw it come (`None`: no entry).
    pub fn handle_kernel_seen(&mut self, key: &FlowKey, seen: Option<(Nanos, Course)>, out: &mut Output<F>) {
        let is_crowded = self.flows.is_kernel_crowded();
        let Some(slot) = self.flows.find(key) else { return };
        let Some(flow) = self.flows.get_mut(slot) else { return };
        if flow.stage != Stage::Kernel {
            return;
        }
        let course = seen.map(|(at, course)| {
            flow.seen = flow.seen.max(at);
            course
        });
        flow.answered |= matches!(course, Some(Course::Lives | Course::Ended));
        let began = !flow.answered && flow.punted != Some(PuntReason::Midstream);
        let (patience, hurried) = match course {
            Some(Course::Ended) => (timers::LINGER, timers::CROWDED_FINS),
            Some(Course::Began) if began => (timers::HANDSHAKE, timers::CROWDED),
            // Pushed out by others: of what lives that is rare, and it has been seen to live before.
            None if began => (timers::HANDSHAKE, timers::HANDSHAKE),
            _ => (timers::IDLE, timers::IDLE),
        };
        let is_hurried = is_crowded && hurried < patience;
        let patience = if is_hurried { hurried } else { patience };
        if flow.seen.saturating_add(patience) <= self.now {
            self.totals.expired += u64::from(!is_hurried);
            self.totals.recycled += u64::from(is_hurried);
            self.forget(slot, out);
        }
    }
}
