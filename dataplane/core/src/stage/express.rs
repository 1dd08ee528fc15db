//! Into the express lane and out of it ([`crate::express`]).
//!
//! A connection enters when it has had some packets, or has lived for a moment, so that short ones do not pay for the change. It comes
//! back for good with the first FIN, RST or SYN; other packets that the program hands up (a TTL that runs out, one that is too
//! large, options it does not know) are carried by the worker one by one.

use crate::drop::DropReason;
use crate::express::{Carried, ExpressOp, Lanes, Names, Passed, Place, Stay, WayOut, is_constant};
use crate::flow::key::FlowKey;
use crate::flow::record::{Flow, Side, Stage};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::Nanos;
use crate::pipeline::{LegOp, Output, Pipeline};
use crate::tcp::cookie;
use crate::tcp::flags::TcpFlags;
use crate::tcp::seq::Seq;
use crate::tcp::track;
use crate::wire::build::{Segment, SegmentOptions};

use super::timers;

/// Packets of both directions after which a connection may enter; asked again each time so many have passed.
const PACKETS: u64 = 16;
/// So long after its verdict a connection enters, however little it has said: what is in the lane outlives the process.
pub const MOMENT: Nanos = Nanos::from_secs(1);

impl<F: Frame> Pipeline<F> {
    /// Between which ports the lane carries from now on. What it carries already stays.
    pub fn set_lanes(&mut self, lanes: Lanes) {
        self.lanes = lanes;
        self.has_lanes = !lanes.is_empty();
    }

    /// Connections that the program carries.
    pub const fn express_flows(&self) -> u64 {
        self.in_express
    }

    /// The connection has nothing left to wait for: its timer is that of an established one.
    pub(crate) fn rest(&mut self, slot: u32) {
        let wait = if self.lanes.is_empty() { timers::IDLE } else { MOMENT };
        self.flows.arm(slot, self.now.saturating_add(wait));
    }

    /// A packet of the connection has passed: it may have had enough of them.
    #[inline]
    pub(crate) fn may_enter(&mut self, slot: u32, out: &mut Output<F>) {
        if self.has_lanes && self.is_due(slot) {
            self.enter(slot, out);
        }
    }

    /// Whether it has just had so many packets that it is to be asked for.
    pub(crate) fn is_due(&self, slot: u32) -> bool {
        self.flows.get(slot).is_some_and(|flow| {
            flow.place == Place::Worker
                && flow.client.packets.wrapping_add(flow.server.packets).is_multiple_of(PACKETS)
        })
    }

    /// Asks for the connection to be carried by the program, if nothing is in the way.
    pub(crate) fn enter(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot).filter(|flow| flow.place == Place::Worker) else { return };
        let Ok(carried) = self.carried(flow) else { return };
        let ways = self.hasher.hash_any(&[Some(carried.to_server), Some(carried.to_client)]) as u32;
        let Some(flow) = self.flows.get_mut(slot) else { return };
        (flow.place, flow.ways) = (Place::Entering, ways);
        out.express.push(ExpressOp::Enter(carried));
    }

    /// A connection as the program is to carry it, or what is in the way.
    pub(crate) fn carried(&self, flow: &Flow) -> Result<Carried, Stay> {
        self.check(flow)?;
        let names = self.names_of(flow);
        let [Some(to_server), Some(to_client)] = self.ways_of(flow, &names) else { return Err(Stay::NoWay) };
        let is_known = |(port, router): WayOut| self.fib.neighbour(port, router.ip()).is_some();
        if !is_known(to_server) || !is_known(to_client) {
            return Err(Stay::NoWay);
        }
        if [to_client.0, to_server.0].iter().any(|link| self.fib.vlans.get(*link).is_some()) {
            return Err(Stay::Vlan);
        }
        if !self.lanes.carry(to_client.0, to_server.0) || to_client.0 != flow.port {
            return Err(Stay::Off);
        }
        let up = self.legs.get(flow.leg).and_then(|leg| leg.up);
        Ok(Carried { names, to_server, to_client, up })
    }

    /// Why a connection stays with the worker: none where it does not, and where nothing has a lane.
    pub(crate) fn stays(&self, flow: &Flow) -> Option<Stay> {
        if self.lanes.is_empty() || flow.stage == Stage::Kernel || flow.place == Place::Express {
            return None;
        }
        Some(self.carried(flow).err().unwrap_or(Stay::Young))
    }

    /// What of the connection itself is in the way.
    fn check(&self, flow: &Flow) -> Result<(), Stay> {
        let leg = self.legs.get(flow.leg);
        let up = leg.and_then(|leg| leg.up.as_ref());
        let waits = leg.is_some_and(|leg| !leg.header_acked || leg.up.is_none_or(|up| !up.acked));
        match flow.place {
            Place::Back => return Err(Stay::Ending),
            Place::NoRoom => return Err(Stay::NoRoom),
            _ => {}
        }
        if self.lanes.is_empty() {
            Err(Stay::Off)
        } else if flow.stage != Stage::Splice || !flow.passes() {
            Err(Stay::Undecided)
        } else if flow.hold != Flow::NO_HOLD || waits {
            Err(Stay::Unacknowledged)
        } else if !flow.is_settled() {
            Err(Stay::Unanswered)
        } else if flow.client.fin || flow.server.fin {
            Err(Stay::Ending)
        } else if flow.unsummed {
            Err(Stay::Unsummed)
        } else if up.is_some_and(|up| !is_constant(up)) {
            Err(Stay::Clock)
        } else {
            Ok(())
        }
    }

    /// The ways out of both directions, to the server and to the client.
    pub(crate) fn ways_of(&self, flow: &Flow, names: &Names) -> [Option<WayOut>; 2] {
        let ends = [(names.server.dst.addr, flow.to_server), (names.client.src.addr, flow.to_client)];
        ends.map(|(end, stays)| {
            self.fib.gateway(end.ip(), &flow.key, stays).map(|(port, router)| (port, router.into()))
        })
    }

    /// Whoever carries out [`ExpressOp::Enter`] says whether the program has the connection now. `false`: it had no room.
    pub fn handle_entered(&mut self, key: &FlowKey, entered: bool) {
        if !entered {
            self.totals.express_full += 1;
        }
        let Some(flow) = self.flows.find(key).and_then(|slot| self.flows.get_mut(slot)) else { return };
        if flow.place != Place::Entering {
            return;
        }
        flow.place = if entered { Place::Express } else { Place::NoRoom };
        if entered {
            track::lose(flow);
            self.in_express += 1;
            self.totals.express_entered += 1;
        }
    }

    /// Takes a connection back.
    pub(crate) fn leave(&mut self, slot: u32, place: Place, out: &mut Output<F>) {
        let Some(names) = self.flows.get(slot).map(|flow| self.names_of(flow)) else { return };
        let Some(flow) = self.flows.get_mut(slot) else { return };
        match flow.place {
            Place::Express => self.in_express = self.in_express.saturating_sub(1),
            Place::Entering => {}
            _ => return,
        }
        flow.place = place;
        out.express.push(ExpressOp::Leave(names));
    }

    /// What the program calls a connection.
    pub(crate) fn names_of(&self, flow: &Flow) -> Names {
        let client = flow.tuple();
        Names { client, server: self.legs.get(flow.leg).map_or(client, |leg| leg.tuple) }
    }

    /// What the program had carried of a connection when it was taken back.
    pub fn handle_passed(&mut self, key: &FlowKey, passed: &Passed) {
        let Some(flow) = self.flows.find(key).and_then(|slot| self.flows.get_mut(slot)) else { return };
        flow.add_passed(passed);
    }

    /// The answer to [`ExpressOp::Ask`]; `None`: the program does not have the connection any more.
    pub fn handle_seen(&mut self, key: &FlowKey, passed: Option<&Passed>, out: &mut Output<F>) {
        let Some(slot) = self.flows.find(key) else { return };
        let Some(flow) = self.flows.get_mut(slot).filter(|flow| flow.place == Place::Express) else { return };
        let Some(passed) = passed else {
            // Somebody has emptied the map: the worker carries it.
            flow.place = Place::Worker;
            self.in_express = self.in_express.saturating_sub(1);
            return self.flows.arm(slot, self.now.saturating_add(timers::IDLE));
        };
        flow.seen = flow.seen.max(passed.seen);
        let end = flow.seen.saturating_add(timers::IDLE);
        let leg = self.legs.get(flow.leg).map(|leg| (leg.receiver, leg.tuple));
        if end <= self.now {
            self.totals.expired += 1;
            return self.forget(slot, out);
        }
        self.flows.arm(slot, end);
        // Nor does the worker see packets that would receive those of the leg.
        if let Some((Some(worker), leg)) = leg {
            out.legs.push(LegOp::Claim { worker, leg, frame: None });
        }
    }

    /// The timer of an established connection: it may enter by now, or the program is asked whether it lives.
    pub(crate) fn express_timer(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        let names = self.names_of(flow);
        let (place, seen, idle) =
            (flow.place, flow.seen, if flow.reset { timers::RESET } else { timers::IDLE });
        if place == Place::Express {
            self.flows.arm(slot, self.now.saturating_add(timers::IDLE));
            out.express.push(ExpressOp::Ask(names));
            return;
        }
        self.enter(slot, out);
        self.expire_at(slot, seen.saturating_add(idle), out);
    }

    /// A packet of a connection that the program carries, which it has handed up, or which was on its way here. `None`: it is
    /// gone.
    pub(crate) fn handed_up(
        &mut self,
        slot: u32,
        side: Side,
        packet: Packet<F>,
        out: &mut Output<F>,
    ) -> Option<Packet<F>> {
        let flags = packet.meta.flags;
        if flags.fin() || flags.rst() {
            self.leave(slot, Place::Back, out);
            return Some(packet);
        }
        if flags.syn() || self.flows.get(slot).is_some_and(|flow| flow.place == Place::Entering) {
            return Some(packet);
        }
        if let Some(flow) = self.flows.get_mut(slot) {
            let (from, _) = flow.ends(side);
            from.packets += 1;
            from.bytes += u64::from(packet.meta.payload_len());
        }
        self.send_on(slot, side, packet, out);
        None
    }

    /// An RST of a connection whose numbers are not known. It passes, and its receiver judges it; who then is asked with an
    /// impossible segment, and answers it with an RST that bears a number which only they can know, has the connection no more.
    pub(crate) fn unsure_rst(&mut self, slot: u32, side: Side, packet: Packet<F>, out: &mut Output<F>) {
        let meta = packet.meta;
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        if flow.asked == Some((side, meta.seq)) {
            self.discard(packet.frame, DropReason::ToWeir, out);
            return self.close(slot, timers::CLOSED);
        }
        flow.reset = true;
        self.flows.arm(slot, self.now.saturating_add(timers::RESET));
        self.send_on(slot, side, packet, out);
        self.ask_whether_it_lives(slot, side, meta.seq, out);
    }

    /// Sends the end opposite of `side` an acknowledgment of something that it can hardly have sent: if it has the connection, it
    /// answers with an ACK of where it stands, or not at all (RFC 9293 section 3.10.7.4); if not, with an RST from that number on.
    pub(crate) fn ask_whether_it_lives(&mut self, slot: u32, side: Side, seq: Seq, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let secret = cookie::Carried { mss: 0, window_scale: None, sack: false };
        let number = self.cookies.make(&flow.tuple(), seq, &secret, self.now);
        let up = self.legs.get(flow.leg).and_then(|leg| Some((leg.tuple, leg.up?.delta)));
        let (to, tuple, ack) = match (side, up) {
            (Side::Client, Some((tuple, delta))) => (Side::Server, tuple, number.add(delta.wrapping_neg())),
            (Side::Client, None) => (Side::Server, flow.tuple(), number),
            (Side::Server, _) => (Side::Client, flow.tuple().reversed(), number),
        };
        flow.asked = Some((to, number));
        let options = SegmentOptions::default();
        let segment = Segment { tuple, flags: TcpFlags(TcpFlags::ACK), seq, ack, window: 0, options };
        self.send_built(&segment, out);
    }

    /// The routes may have changed: takes back connections that go another way now, of those in up to `max` slots from `cursor` on;
    /// where to go on. They enter again by the new way.
    pub fn reroute(&mut self, cursor: u32, max: u32, out: &mut Output<F>) -> Option<u32> {
        for slot in cursor..self.flows.slots() {
            if slot - cursor >= max {
                return Some(slot);
            }
            let Some(flow) = self.flows.get(slot).filter(|flow| flow.place == Place::Express) else {
                continue;
            };
            let ways = self.ways_of(flow, &self.names_of(flow));
            if flow.ways != self.hasher.hash_any(&ways) as u32 {
                self.leave(slot, Place::Worker, out);
            }
        }
        None
    }
}

impl Flow {
    /// Counts what the program has carried.
    pub(crate) fn add_passed(&mut self, passed: &Passed) {
        self.client.packets += passed.packets_to_server;
        self.server.packets += passed.packets_to_client;
        self.client.bytes += passed.bytes_to_server;
        self.server.bytes += passed.bytes_to_client;
        self.seen = self.seen.max(passed.seen);
    }
}
