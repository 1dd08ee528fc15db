//! The straight line: a plain segment of a connection that has nothing left to wait for, which is nearly every packet.
//!
//! It does what the road by [`super::splice`] does with such a segment, and nothing else; whatever needs a thought, or is not known
//! yet, is left to that road, untouched.

use crate::express::Place;
use crate::flow::record::{Flow, Side, Stage};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::PortId;
use crate::pipeline::Pipeline;
use crate::tcp::track;
use crate::wire::edit;

use super::timers;

impl Flow {
    /// Whether plain segments of both ends pass unchanged, and nobody looks at them.
    #[inline]
    fn runs(&self) -> bool {
        self.stage == Stage::Splice
            && !matches!(self.place, Place::Entering | Place::Express)
            && self.hold == Self::NO_HOLD
            && self.leg == Self::NO_LEG
            && !self.expects_second()
    }
}

impl<F: Frame> Pipeline<F> {
    /// Makes the packet ready to leave by the port that is returned. `None`: it has to take the long road, and is as it was.
    #[inline]
    pub(crate) fn straight(&mut self, slot: u32, side: Side, packet: &mut Packet<F>) -> Option<PortId> {
        let meta = &packet.meta;
        let flow = self.flows.get_mut(slot).filter(|flow| meta.flags.is_plain() && flow.runs())?;
        if side == Side::Client && self.now < self.cookies_until {
            return None;
        }
        let Some(hop) = self.hops.get(flow.hops, side) else {
            self.learn_hop(slot, side, packet);
            return None;
        };
        if meta.ttl <= 1 || meta.ip_len() > hop.mtu {
            return None;
        }
        flow.seen = self.now;
        track::note(flow, side, meta);
        packet.frame.set_len(usize::from(meta.end));
        let bytes = packet.frame.data_mut();
        edit::decrement_ttl(bytes, meta.v6);
        edit::set_macs(bytes, &hop.dst_mac, &hop.src_mac);
        let port = hop.port;
        if track::is_over(flow) {
            self.close(slot, timers::LINGER);
        }
        Some(port)
    }

    /// The next packet of this direction finds its way by number.
    #[cold]
    fn learn_hop(&mut self, slot: u32, side: Side, packet: &Packet<F>) {
        let hop = self.next_hop(&packet.meta.tuple);
        if let Some(flow) = self.flows.get_mut(slot) {
            self.hops.note(&mut flow.hops, side, &hop);
        }
    }
}
