//! The straight line: a plain segment of a connection that has nothing left to wait for, which is nearly every packet.
//!
//! It does what the road by [`super::splice`] does with such a segment, and nothing else; whatever needs a thought, or is not known
//! yet, is left to that road, untouched. Where weir has joined the connection of two, the segment is rewritten on its way.

use crate::batch::Seen;
use crate::express::{Place, is_constant};
use crate::flow::key::Tuple;
use crate::flow::record::{Flow, Side, Stage};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::hops::Hop;
use crate::ids::PortId;
use crate::parse::Meta;
use crate::pipeline::{Output, Pipeline};
use crate::tcp::track;
use crate::wire::edit;

use super::timers;

impl Flow {
    /// Whether plain segments of both ends pass, and nobody looks at them.
    #[inline]
    fn runs(&self) -> bool {
        self.stage == Stage::Splice
            && !matches!(self.place, Place::Entering | Place::Express)
            && self.hold == Self::NO_HOLD
            && !self.second.is_expected()
    }
}

impl<F: Frame> Pipeline<F> {
    /// Notes a segment whose connection is the one that was looked for first and is simply running ([`Self::straight_at`] has found so),
    /// and where it leaves: its frame is to be handed on. `None`: it has to be looked at further, and all is as it was.
    #[inline(always)]
    pub(crate) fn straight(&mut self, seen: &mut Seen) -> Option<()> {
        let meta = &seen.meta;
        let (flow, side, line) = self.flows.open(seen.likely, &meta.tuple, meta.v6, &self.hops)?;
        let (hop, shift) = line.of(side);
        let passes = meta.flags.is_plain() && meta.ttl > 1 && meta.ip_len() <= hop.mtu;
        if !passes || !track::note_plain(flow, side, meta, shift) {
            return None;
        }
        flow.seen = self.now;
        seen.hop = *hop;
        Some(())
    }

    /// The same for any plain segment of the connection in `slot`.
    pub(crate) fn straight_at(
        &mut self,
        slot: u32,
        side: Side,
        packet: &mut Packet<F>,
        out: &mut Output<F>,
    ) -> Option<PortId> {
        let meta = &packet.meta;
        let flow = self.flows.get_mut(slot).filter(|flow| meta.flags.is_plain() && flow.runs())?;
        if flow.leg != Flow::NO_LEG {
            return None;
        }
        if side == Side::Client && self.now < self.cookies_until {
            return None;
        }
        let Some(hop) = self.hops.get(&flow.hops, side) else {
            self.learn_hop(slot, side, &packet.meta.tuple);
            self.learn_hop(slot, side.opposite(), &packet.meta.tuple.reversed());
            return None;
        };
        if meta.ttl <= 1 || meta.ip_len() > hop.mtu {
            return None;
        }
        flow.seen = self.now;
        let fins = flow.fins();
        track::note(flow, side, meta);
        hand_on(&mut packet.frame, meta, hop);
        let port = hop.port;
        if track::is_over(flow) {
            self.close(slot, timers::LINGER, out);
        } else if flow.fins() != fins {
            self.note_fins(slot, out);
        } else if track::is_steady(flow) {
            let shifts = [flow.client_rest.shift, flow.server_rest.shift];
            if let Some(line) = self.hops.number_line(&flow.hops, shifts, meta.v6) {
                self.flows.set_open(slot, line);
            }
        }
        Some(port)
    }

    /// The straight line of a connection whose server leg is another one. Returns the packet where it has to take the long road.
    pub(crate) fn straight_across(
        &mut self,
        slot: u32,
        side: Side,
        mut packet: Packet<F>,
        out: &mut Output<F>,
    ) -> Option<Packet<F>> {
        let meta = packet.meta;
        let flow = self.flows.get_mut(slot).filter(|flow| meta.flags.is_plain() && flow.runs());
        let Some(flow) = flow else { return Some(packet) };
        let leg = self.legs.get_mut(flow.leg).filter(|leg| leg.header_acked);
        let Some(up) = leg.and_then(|leg| leg.up.as_mut()).filter(|up| is_constant(up)) else {
            return Some(packet);
        };
        let (comes, goes) = match side {
            Side::Client => (up.client, up.server),
            Side::Server => (up.server.reversed(), up.client.reversed()),
        };
        if meta.tuple != comes || side == Side::Client && self.now < self.cookies_until {
            return Some(packet);
        }
        let Some(&hop) = self.hops.get(&flow.hops, side) else {
            self.learn_hop(slot, side, &goes);
            return Some(packet);
        };
        if meta.ttl <= 1 || meta.ip_len() > hop.mtu {
            return Some(packet);
        }
        flow.seen = self.now;
        let crossed = match side {
            Side::Client => up.to_server(&mut packet.frame, &meta, self.now),
            Side::Server => up.to_client(&mut packet.frame, &meta, self.now),
        };
        let fins = flow.fins();
        // In the client's numbers.
        match (side, &crossed) {
            (Side::Client, _) => track::note(flow, side, &meta),
            (Side::Server, Ok(seen)) => track::note(flow, side, seen),
            (Side::Server, Err(_)) => {}
        }
        if track::is_over(flow) {
            self.close(slot, timers::LINGER, out);
        } else if flow.fins() != fins {
            self.note_fins(slot, out);
        }
        match crossed {
            Ok(_) => {
                hand_on(&mut packet.frame, &meta, &hop);
                out.tx.push((hop.port, packet.frame));
                self.may_enter(slot, out);
            }
            Err(reason) => self.discard(packet.frame, reason, out),
        }
        None
    }

    /// The next packet of this direction finds its way by number.
    #[cold]
    fn learn_hop(&mut self, slot: u32, side: Side, tuple: &Tuple) {
        let hop = self.next_hop(tuple);
        if let Some(flow) = self.flows.get_mut(slot) {
            self.hops.note(&mut flow.hops, side, &hop);
        }
    }
}

/// What a router does to a packet. The frame may have ended with padding.
#[inline(always)]
pub(crate) fn hand_on<F: Frame>(frame: &mut F, meta: &Meta, hop: &Hop) {
    frame.set_len(usize::from(meta.end));
    let bytes = frame.data_mut();
    edit::decrement_ttl(bytes, meta.v6);
    edit::set_macs(bytes, &hop.macs);
}
