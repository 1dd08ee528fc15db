//! Into the express lane and out of it ([`crate::express`]).
//!
//! A connection enters when it has had some packets, or has lived for a moment, so that short ones do not pay for the change. It is its
//! worker's again, for good, with the first FIN or RST. After a FIN the program goes on to stand by, for what the other end still sends
//! may take long. Other packets that the program hands up (a TTL that runs out, one that is too large, options it does not know) are
//! carried by the worker one by one. One that has finished at an end before it could enter is never stood by for.
//!
//! Between ports whose workers are the faster way the program only stands by: a connection that has lived for a moment is in its map, and
//! the worker goes on with it as if it were not, until it is over.

use crate::drop::DropReason;
use crate::express::{Carried, ExpressOp, Lanes, Names, Passed, Place, Stay, WayOut, is_constant};
use crate::flow::key::{FlowKey, Tuple};
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
const PACKETS: u32 = 16;
/// So long after its verdict a connection enters, however little it has said: what is in the lane outlives the process.
pub const MOMENT: Nanos = Nanos::from_secs(1);
/// For so long after its beginning it is asked again each moment whether it can stand by.
const YOUTH: Nanos = Nanos::from_secs(60);

/// What is in the number that nobody else can know.
const SECRET: cookie::Carried = cookie::Carried { mss: 0, window_scale: None, sack: false };

fn acknowledgment(tuple: Tuple, seq: Seq, ack: Seq) -> Segment {
    let (flags, options) = (TcpFlags(TcpFlags::ACK), SegmentOptions::default());
    Segment { tuple, flags, seq, ack, window: 0, options }
}

impl<F: Frame> Pipeline<F> {
    /// Between which ports the lane carries from now on. What it carries already stays.
    pub fn set_lanes(&mut self, lanes: Lanes) {
        self.lanes = lanes;
        self.has_lanes = lanes.between.iter().any(|ports| !ports.is_empty());
    }

    /// Connections that the program carries.
    pub const fn express_flows(&self) -> u64 {
        self.in_express
    }

    /// Connections that it would carry if there were no worker.
    pub const fn standby_flows(&self) -> u64 {
        self.in_standby
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
        // What a packet has at hand is asked first.
        self.flows.has_passed(slot, PACKETS)
            && self.flows.get(slot).is_some_and(|flow| flow.place == Place::Worker)
    }

    /// Asks for the connection to be carried by the program; what is in the way, if something is.
    pub(crate) fn enter(&mut self, slot: u32, out: &mut Output<F>) -> Option<Stay> {
        let flow = self.flows.get(slot).filter(|flow| flow.place == Place::Worker)?;
        match self.carried(flow) {
            Ok(carried) => self.let_in(slot, carried, out),
            Err(stay) => Some(stay),
        }
    }

    /// Asks for a connection of this worker's to be carried so; what is in the way.
    fn let_in(&mut self, slot: u32, carried: Carried, out: &mut Output<F>) -> Option<Stay> {
        let flow = self.flows.get_mut(slot)?;
        // Those that are over by then need nobody who stands by.
        let grown = flow.created.saturating_add(MOMENT);
        if carried.stands_by && self.now < grown {
            self.flows.arm(slot, grown);
            return Some(Stay::Young);
        }
        let ways = self.hasher.hash_any(&[Some(carried.to_server), Some(carried.to_client)]) as u32;
        flow.ways = ways;
        flow.place = if carried.stands_by { Place::Standby } else { Place::Entering };
        self.in_standby += u64::from(carried.stands_by);
        out.express.push(ExpressOp::Enter(carried));
        None
    }

    /// A connection as the program is to carry it, or what is in the way.
    pub(crate) fn carried(&self, flow: &Flow) -> Result<Carried, Stay> {
        self.check(flow)?;
        let names = self.names_of(flow);
        self.carried_by(flow, names, self.ways_of(flow, &names))
    }

    /// The same of one that nothing of its own is in the way of.
    fn carried_by(&self, flow: &Flow, names: Names, ways: [Option<WayOut>; 2]) -> Result<Carried, Stay> {
        let [Some(to_server), Some(to_client)] = ways else { return Err(Stay::NoWay) };
        let is_known = |(port, router): WayOut| self.fib.neighbour(port, router.ip()).is_some();
        if !is_known(to_server) || !is_known(to_client) {
            return Err(Stay::NoWay);
        }
        if [to_client.0, to_server.0].iter().any(|link| self.fib.vlans.get(*link).is_some()) {
            return Err(Stay::Vlan);
        }
        let (a, b) = (to_client.0, to_server.0);
        let stands_by = !self.lanes.carry(a, b);
        if stands_by && !self.lanes.stand_by(a, b) || a != flow.port {
            return Err(Stay::Off);
        }
        let up = self.legs.get(flow.leg).and_then(|leg| leg.up);
        Ok(Carried { names, to_server, to_client, up, stands_by })
    }

    /// Why a connection stays with the worker: none where it does not, and where nothing has a lane.
    pub(crate) fn stays(&self, flow: &Flow) -> Option<Stay> {
        if self.lanes.is_empty() || flow.stage == Stage::Kernel || flow.place == Place::Express {
            return None;
        }
        if flow.place == Place::Standby {
            let is_ending = flow.said_fins() != (false, false);
            return Some(if is_ending { Stay::Ending } else { Stay::Standby });
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
        } else if flow.said_fins() != (false, false) {
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

    /// Whoever carries out [`ExpressOp::Enter`] says whether the program has the connection now. `entered` is false: it had no room.
    /// What comes back is false where nobody wants it there any more: it is to be taken out.
    #[must_use]
    pub fn handle_entered(&mut self, key: &FlowKey, entered: bool) -> bool {
        if !entered {
            self.totals.express_full += 1;
        }
        let place = if entered { Place::Express } else { Place::NoRoom };
        self.settle_place(key, place)
    }

    /// The same, where one of its ways out is no device of the lane's just now: it may ask again.
    pub fn handle_no_way(&mut self, key: &FlowKey) {
        self.settle_place(key, Place::Worker);
    }

    /// Whether the connection is one that was to enter.
    fn settle_place(&mut self, key: &FlowKey, place: Place) -> bool {
        let Some(flow) = self.flows.find(key).and_then(|slot| self.flows.get_mut(slot)) else { return false };
        match (flow.place, place) {
            (Place::Standby, Place::Express) => {
                self.totals.express_entered += 1;
            }
            (Place::Standby, _) => {
                flow.place = place;
                self.in_standby = self.in_standby.saturating_sub(1);
            }
            (Place::Entering, Place::Express) => {
                flow.place = place;
                track::lose(flow);
                self.in_express += 1;
                self.totals.express_entered += 1;
            }
            (Place::Entering, _) => flow.place = place,
            _ => return false,
        }
        true
    }

    /// Takes a connection back.
    pub(crate) fn leave(&mut self, slot: u32, place: Place, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        match flow.place {
            Place::Express => self.in_express = self.in_express.saturating_sub(1),
            Place::Standby => self.in_standby = self.in_standby.saturating_sub(1),
            Place::Entering => {}
            _ => return,
        }
        flow.place = place;
        let flow = *flow;
        out.express.push(ExpressOp::Leave(self.names_of(&flow)));
    }

    /// A connection that the program carries is the worker's again, as long as there is one: an end says that it has finished.
    fn stand_by(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot).filter(|flow| flow.place == Place::Express) else { return };
        flow.place = Place::Standby;
        self.in_express = self.in_express.saturating_sub(1);
        self.in_standby += 1;
        self.note_fins(slot, out);
    }

    /// Whoever carries on without this worker is to know which ends have finished.
    #[cold]
    pub(crate) fn note_fins(&self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot).filter(|flow| flow.place == Place::Standby) else { return };
        let told = self.names_of(flow);
        // Of one and the same packet, or nothing has come between.
        if matches!(out.express.last(), Some(ExpressOp::Ending { names, .. }) if *names == told) {
            out.express.pop();
        }
        out.express.push(ExpressOp::Ending { names: told, fins: flow.fins(), says: flow.said_fins() });
    }

    /// What the program calls a connection.
    pub(crate) fn names_of(&self, flow: &Flow) -> Names {
        let client = flow.tuple();
        Names { client, server: self.legs.get(flow.leg).map_or(client, |leg| leg.tuple) }
    }

    /// What the program had carried of a connection when it was taken back.
    pub fn handle_passed(&mut self, key: &FlowKey, passed: &Passed) {
        let Some(slot) = self.flows.find(key) else { return };
        let Some(flow) = self.flows.get_mut(slot) else { return };
        flow.add_passed(passed);
        flow.add_fins(passed);
        if flow.stage == Stage::Splice && !flow.place.is_in_map() && track::is_over(flow) {
            self.linger(slot, timers::LINGER);
        }
    }

    /// What the program had carried, and which ends it knew of, when the worker had it stand by for the rest.
    pub fn handle_ending(&mut self, key: &FlowKey, passed: &Passed, out: &mut Output<F>) {
        let Some(slot) = self.flows.find(key) else { return };
        let Some(flow) = self.flows.get_mut(slot).filter(|flow| flow.place == Place::Standby) else { return };
        // Of those that are known here it is, too, whether they were acknowledged.
        let (client, server) = flow.fins();
        flow.add_fins(&Passed { fins: (passed.fins.0 && !client, passed.fins.1 && !server), ..*passed });
        if track::is_over(flow) {
            self.close(slot, timers::LINGER, out);
        }
    }

    /// The answer to [`ExpressOp::Ask`]; `None`: the program does not have the connection any more.
    pub fn handle_seen(&mut self, key: &FlowKey, passed: Option<&Passed>, out: &mut Output<F>) {
        let Some(slot) = self.flows.find(key) else { return };
        let Some(flow) = self.flows.get_mut(slot).filter(|flow| flow.place.is_in_map()) else { return };
        let Some(passed) = passed else {
            // Somebody has emptied the map: the worker carries it.
            let place = std::mem::take(&mut flow.place);
            self.in_express -= u64::from(place == Place::Express && self.in_express > 0);
            self.in_standby -= u64::from(place == Place::Standby && self.in_standby > 0);
            return self.flows.arm(slot, self.now.saturating_add(timers::IDLE));
        };
        flow.seen = flow.seen.max(passed.seen);
        flow.add_fins(passed);
        if track::is_over(flow) {
            // Nobody was there when it ended, or has seen whether the ends were acknowledged.
            return self.close(slot, timers::RESET, out);
        }
        let went_past =
            flow.place == Place::Standby && passed.packets_to_server + passed.packets_to_client > 0;
        if went_past {
            track::lose(flow);
        }
        flow.reset |= passed.rst;
        let idle = if flow.reset { timers::RESET } else { timers::IDLE };
        let end = flow.seen.saturating_add(idle);
        let leg = self.legs.get(flow.leg).map(|leg| (leg.receiver, leg.tuple));
        if end <= self.now {
            self.totals.expired += 1;
            return self.forget(slot, out);
        }
        self.flows.arm(slot, end);
        if went_past {
            self.ask_about_fins(slot, out);
        }
        // Nor does the worker see packets that would receive those of the leg.
        if let Some((Some(worker), leg)) = leg {
            out.legs.push(LegOp::Claim { worker, leg, frame: None });
        }
    }

    /// The timer of an established connection: it may enter by now, or the program is asked whether it lives.
    pub(crate) fn express_timer(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        if flow.place.is_in_map() && track::is_over(flow) {
            // Taken over so: what its ends send again of the last segments goes on.
            return self.close(slot, timers::RESET, out);
        }
        let names = self.names_of(flow);
        let (place, seen, idle) =
            (flow.place, flow.seen, if flow.reset { timers::RESET } else { timers::IDLE });
        let end = seen.saturating_add(idle);
        if place == Place::Express || place == Place::Standby && end <= self.now {
            self.flows.arm(slot, self.now.saturating_add(timers::IDLE));
            out.express.push(ExpressOp::Ask(names));
            return;
        }
        let stay = self.enter(slot, out);
        // What is in the way of one that nobody sends packets of may pass by itself, and soon.
        let may_pass =
            matches!(stay, Some(Stay::NoWay | Stay::Undecided | Stay::Unacknowledged | Stay::Unanswered));
        let is_young = self.flows.get(slot).is_some_and(|flow| self.now < flow.created.saturating_add(YOUTH));
        if may_pass && is_young && end > self.now {
            return self.flows.arm(slot, end.min(self.now.saturating_add(MOMENT)));
        }
        self.expire_at(slot, end, out);
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
        let is_entering = self.flows.get(slot).is_some_and(|flow| flow.place == Place::Entering);
        if flags.rst() || flags.fin() && is_entering {
            self.leave(slot, Place::Back, out);
            return Some(packet);
        }
        if flags.fin() {
            self.stand_by(slot, out);
            return Some(packet);
        }
        if flags.syn() || is_entering {
            return Some(packet);
        }
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.count(side, 1, u64::from(packet.meta.payload_len()));
        }
        self.send_on(slot, side, packet, out);
        None
    }

    /// An RST of a connection whose numbers are not known. It passes, and its receiver judges it; who then is asked with an
    /// impossible segment, and answers it with an RST that bears a number which only they can know, has the connection no more.
    pub(crate) fn unsure_rst(&mut self, slot: u32, side: Side, packet: Packet<F>, out: &mut Output<F>) {
        let meta = packet.meta;
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        if flow.asked == Some(side) && flow.answer == meta.seq {
            self.discard(packet.frame, DropReason::ToWeir, out);
            return self.close(slot, timers::CLOSED, out);
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
        let number = self.cookies.make(&flow.tuple(), seq, &SECRET, self.now);
        let up = self.legs.get(flow.leg).and_then(|leg| Some((leg.tuple, leg.up?.delta)));
        let (to, tuple, ack) = match (side, up) {
            (Side::Client, Some((tuple, delta))) => (Side::Server, tuple, number.add(delta.wrapping_neg())),
            (Side::Client, None) => (Side::Server, flow.tuple(), number),
            (Side::Server, _) => (Side::Client, flow.tuple().reversed(), number),
        };
        (flow.asked, flow.answer) = (Some(to), number);
        self.send_built(&acknowledgment(tuple, seq, ack), out);
    }

    /// Both ends have said that they have finished, and the acknowledgments may have gone past: the others are asked. To an octet that they
    /// have had they answer with what they have (RFC 9293 section 3.10.7.4).
    fn ask_about_fins(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot).filter(|flow| flow.said_fins() == (true, true)) else { return };
        let claims = flow.claims;
        for side in [Side::Client, Side::Server] {
            if let Some(claim) = claims.get(side).filter(|claim| claim.fin) {
                self.ask_whether_it_lives(slot, side, claim.at.add(1_u32.wrapping_neg()), out);
            }
        }
    }

    /// A SYN with the tuple of a connection that goes on elsewhere, and which its server calls `leg`. It does not pass. The server is asked
    /// as above, and says itself where it stands; a client that knows nothing of the connection answers that with an RST, as a server does
    /// that does not (RFC 9293 section 3.10.7.3). That ends it there, and the SYN that is sent again opens one.
    #[cold]
    pub(crate) fn challenge_elsewhere(&mut self, leg: Tuple, packet: Packet<F>, out: &mut Output<F>) {
        let meta = packet.meta;
        self.discard(packet.frame, DropReason::UnexpectedSyn, out);
        let number = self.cookies.make(&meta.tuple, meta.seq, &SECRET, self.now);
        self.send_built(&acknowledgment(leg, meta.seq, number), out);
    }

    /// The routes or the lanes may have changed: takes back connections that go another way now, or are to be carried by another, of those
    /// in up to `max` slots from `cursor` on, and lets those enter that can stand by now; where to go on. Those that were taken back
    /// enter again. With `asks` it is asked what the program has seen of each of the others, when there was no sign of life.
    pub fn reroute(&mut self, cursor: u32, max: u32, asks: bool, out: &mut Output<F>) -> Option<u32> {
        if self.in_express + self.in_standby == 0 && self.lanes.standby.iter().all(|ports| ports.is_empty()) {
            return None;
        }
        let end = cursor.saturating_add(max).min(self.flows.slots());
        for slot in cursor..end {
            let Some(flow) = self.flows.get(slot).filter(|flow| flow.place.is_in_map()) else { continue };
            let names = self.names_of(flow);
            let ways = self.ways_of(flow, &names);
            let moves = flow.ways != self.hasher.hash_any(&ways) as u32;
            let stands_by = flow.place == Place::Standby;
            let is_others = || {
                let carried = self.check(flow).and_then(|()| self.carried_by(flow, names, ways));
                carried.is_ok_and(|carried| carried.stands_by != stands_by)
            };
            if moves || is_others() {
                self.leave(slot, Place::Worker, out);
            } else if asks {
                out.express.push(ExpressOp::Ask(names));
            }
        }
        // All of them in one piece.
        for slot in cursor..end {
            let waiting = self.flows.get(slot).filter(|flow| flow.place == Place::Worker);
            if let Some(Ok(carried)) = waiting.map(|flow| self.carried(flow))
                && carried.stands_by
            {
                self.let_in(slot, carried, out);
            }
        }
        (end < self.flows.slots()).then_some(end)
    }
}

impl Flow {
    /// Ends that have finished, of the client and of the server, or that say so where that is all there is to go by: it is not known where
    /// the connection stands, or its other end has finished.
    pub(crate) fn said_fins(&self) -> (bool, bool) {
        let (client, server) = self.fins();
        let counts = self.is_lost() || client || server;
        let says = |side| counts && self.claims.has_fin(side);
        (client || says(Side::Client), server || says(Side::Server))
    }

    /// Ends that the program has sent on without a worker. Nobody else will say whether they were acknowledged.
    fn add_fins(&mut self, passed: &Passed) {
        let (client, server) = self.fins();
        self.hearsay |= passed.fins.0 && !client || passed.fins.1 && !server;
        for (end, fin) in [(&mut self.client_rest, passed.fins.0), (&mut self.server_rest, passed.fins.1)] {
            (end.fin, end.fin_acked) = (end.fin | fin, end.fin_acked | fin);
        }
    }

    /// Counts what the program has carried.
    pub(crate) fn add_passed(&mut self, passed: &Passed) {
        self.count(Side::Client, passed.packets_to_server, passed.bytes_to_server);
        self.count(Side::Server, passed.packets_to_client, passed.bytes_to_client);
        self.seen = self.seen.max(passed.seen);
    }
}
