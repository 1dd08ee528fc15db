//! What a frame is that has come in, and which worker owns its connection.

use weir_core::drop::DropReason;
use weir_core::flow::key::{FlowKey, owner};
use weir_core::frame::Frame;
use weir_core::hold::Packet;
use weir_core::ids::{Nanos, PortId};
use weir_core::parse::{self, FragmentMeta, Parsed};
use weir_core::vlan;
use weir_core::wire::icmp::IcmpMeta;

use super::Worker;
use crate::driver::Driver;
use crate::handoff::Crossing;

impl<D: Driver> Worker<D> {
    /// Reads a frame's headers and finds the worker that owns its flow.
    pub(super) fn classify(&mut self, now: Nanos, mut port: PortId, mut frame: D::Frame) {
        if let Some(seen) = self.arrived.spare()
            && seen.read(frame.data(), port, &self.parts.hasher)
        {
            if owner(seen.hash, self.parts.handoff.workers()) == self.parts.id {
                return self.arrived.push_read(frame);
            }
            let packet = seen.packet(frame);
            return self.steer(packet);
        }
        if vlan::is_tagged(frame.data()) {
            match self.untag(port, &mut frame) {
                Ok(link) => port = link,
                Err(reason) => return self.discard(frame, reason),
            }
        }
        match parse::parse(frame.data()) {
            Ok(Parsed::Tcp(meta)) => self.steer(Packet { frame, port, meta }),
            Ok(Parsed::Fragment(meta)) => {
                // In the order in which they came.
                self.handle_arrived(now);
                self.steer_fragment(now, frame, port, meta);
            }
            Ok(Parsed::Icmp(meta)) => {
                self.handle_arrived(now);
                self.steer_icmp(now, frame, port, meta);
            }
            Ok(Parsed::NotTcp) => self.parts.pipeline.handle_other(frame, &mut self.out),
            Err(reason) => self.discard(frame, reason),
        }
    }

    /// Takes the tags off a frame, and says which link it came by.
    #[inline(never)]
    fn untag(&self, port: PortId, frame: &mut D::Frame) -> Result<PortId, DropReason> {
        let Some(vlan) = vlan::take(frame)? else { return Ok(port) };
        self.parts.pipeline.fib().vlans.find(port, &vlan).ok_or(DropReason::VlanLost)
    }

    /// A segment waits in `arrived` for the others of its batch, or goes to the worker that owns its flow.
    pub(super) fn steer(&mut self, packet: Packet<D::Frame>) {
        match owner(self.parts.hasher.hash_of(&packet.meta.tuple), self.parts.handoff.workers()) {
            to if to != self.parts.id => self.hand_over(to, Crossing::Packet(packet)),
            _ => self.arrived.push_packet(packet, &self.parts.hasher),
        }
    }

    fn steer_fragment(&mut self, now: Nanos, frame: D::Frame, port: PortId, meta: FragmentMeta) {
        let workers = self.parts.handoff.workers();
        if workers > 1 {
            let to = owner(self.parts.hasher.hash_any(&(meta.src, meta.dst, meta.id)), workers);
            if to != self.parts.id {
                return self.hand_over(to, Crossing::Fragment(frame, port, meta));
            }
        }
        self.parts.pipeline.handle_fragment(now, frame, port, meta, &mut self.out);
    }

    /// An ICMP error belongs to the flow that it quotes.
    fn steer_icmp(&mut self, now: Nanos, frame: D::Frame, port: PortId, meta: IcmpMeta) {
        let workers = self.parts.handoff.workers();
        if workers > 1 {
            let to = owner(self.parts.hasher.hash(&FlowKey::of(&meta.quoted)), workers);
            if to != self.parts.id {
                return self.hand_over(to, Crossing::Icmp(frame, port, meta));
            }
        }
        self.parts.pipeline.handle_icmp(now, frame, port, meta, &mut self.out);
    }

    pub(super) fn hand_over(&mut self, to: usize, crossing: Crossing<D::Frame>) {
        match self.parts.handoff.send(to, crossing) {
            Ok(()) => {
                self.handed_over += 1;
                self.woken |= 1 << to.min(63);
            }
            Err(crossing) => {
                if let Some(frame) = crossing.into_frame() {
                    self.discard(frame, DropReason::HandoffFull);
                }
            }
        }
    }
}
