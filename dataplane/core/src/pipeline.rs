//! The stages in order. A worker gives it packets that [`crate::parse`] has read and whose flow it owns; what comes
//! out is in [`Output`]. Nothing here waits, allocates for a packet, or looks at a clock.
//!
//! Per breath: [`Pipeline::handle`] for each packet, [`Pipeline::handle_fragment`] for each fragment, then
//! [`Pipeline::poll_timers`]; the caller then carries out `Output` in this order: `questions` (one that there is no room for is
//! answered at once), `kernel`, `punt`, `tx`, `again`, `express`.

use std::fmt;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::sync::Arc;

use crate::drop::{Counters, DropReason, PuntReason};
use crate::express::{Lanes, Place};
use crate::fib::Fib;
use crate::flow::key::{FlowHasher, FlowKey, Tuple};
use crate::flow::legs::Legs;
use crate::flow::names::NameStore;
use crate::flow::record::{Flow, Side, Stage};
use crate::flow::table::{Capacity, FlowTable};
use crate::fragments::{Fragments, Reassembly};
use crate::frame::Frame;
use crate::hold::{Holds, Packet, Room};
use crate::hops::Hops;
use crate::ids::{InterceptId, Nanos, PortId, PortSet};
use crate::inspect::Found;
use crate::parse::FragmentMeta;
use crate::policy::{Intercept, Policy};
use crate::ports::PortAllocator;
use crate::rewrite::HopCache;
use crate::sources::{SOURCES, Sources};
use crate::stage::timers;
use crate::tcp::cookie::Cookies;
use crate::tcp::grants::Grants;
use crate::tcp::shown::Shown;
use crate::verify::Answers;
use crate::wire::addr::Addr;

pub use crate::output::{Course, KernelOp, LegOp, Output, PuntTo, Punted, ServerFailed};
pub use crate::totals::Totals;

/// Different lists of ALPN names that are kept: clients have few.
const ALPNS: usize = 1024;

/// How a pipeline is built. Sizes are per worker.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub flows: Capacity,
    /// Connections whose first bytes can be held at once.
    pub holds: usize,
    /// The most octets of one hold.
    pub hold_bytes: usize,
    /// The most frames held in all.
    pub hold_frames: usize,
    pub names: usize,
    /// Datagrams under reassembly at once.
    pub fragments: usize,
    /// Ports whose senders may leave partial checksums in their frames.
    pub partial_checksums: PortSet,
    /// This worker's number, of how many. All have the same `seed` and `secret`.
    pub worker: usize,
    pub workers: usize,
    pub seed: u64,
    /// Of SYN cookies.
    pub secret: [u8; 32],
    /// The packets are those of a capture: the server has had what is held here, and may acknowledge it.
    pub is_replay: bool,
}

/// Asked of the tuple of each SYN that would open a connection, as the client sends it: what its server calls one of that tuple that goes
/// on elsewhere, past this worker; none: there is none. A new one would be carried there, behind the verdict of the old.
#[derive(Clone)]
pub struct Elsewhere(Arc<Leg>);

/// From what the client sends to what its server calls it.
type Leg = dyn Fn(&Tuple) -> Option<Tuple> + Send + Sync;

impl Elsewhere {
    pub fn new(leg: impl Fn(&Tuple) -> Option<Tuple> + Send + Sync + 'static) -> Self {
        Self(Arc::new(leg))
    }

    pub(crate) fn leg(&self, tuple: &Tuple) -> Option<Tuple> {
        (self.0)(tuple)
    }
}

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elsewhere").finish_non_exhaustive()
    }
}

/// One worker's connections and what happens to their packets.
#[derive(Debug)]
pub struct Pipeline<F> {
    pub(crate) policy: Arc<Policy>,
    pub(crate) fib: Arc<Fib>,
    pub(crate) flows: FlowTable,
    pub(crate) holds: Holds<F>,
    pub(crate) names: NameStore,
    /// Lists of ALPN names.
    pub(crate) alpns: NameStore,
    /// Policies of before, and until when each was in force.
    pub(crate) before: Vec<(Arc<Policy>, Nanos)>,
    pub(crate) ways: HopCache,
    pub(crate) hops: Hops,
    pub(crate) legs: Legs,
    pub(crate) ports: PortAllocator,
    pub(crate) sources: Arc<Sources>,
    pub(crate) elsewhere: Option<Elsewhere>,
    pub(crate) grants: Grants,
    pub(crate) cookies: Cookies,
    pub(crate) answers: Answers,
    pub(crate) lanes: Lanes,
    /// Whether there is one: each packet asks.
    pub(crate) has_lanes: bool,
    /// Connections that the program carries.
    pub(crate) in_express: u64,
    pub(crate) in_standby: u64,
    /// Until then a cookie may come back.
    pub(crate) cookies_until: Nanos,
    pub(crate) shown: Shown,
    pub(crate) hasher: FlowHasher,
    pub(crate) worker: usize,
    pub(crate) workers: usize,
    /// ICMP errors that were sent since then.
    pub(crate) errors: u32,
    pub(crate) errors_since: Nanos,
    pub(crate) now: Nanos,
    pub(crate) started: Nanos,
    pub(crate) scratch: Vec<Packet<F>>,
    pub counters: Counters,
    pub totals: Totals,
    /// What the last verdict was taken on: for `weir replay`, which shows more than a flow remembers.
    pub last_found: Option<Found>,
    fragments: Fragments<F>,
    pieces: Vec<F>,
    pub(crate) partial: PortSet,
    /// Whether there is any: each packet asks.
    pub(crate) has_partial: bool,
    pub(crate) is_replay: bool,
    due: Vec<u32>,
}

impl<F: Frame> Pipeline<F> {
    /// A pipeline that starts at `now`: the grace time for connections from before begins here.
    pub fn new(config: &Config, policy: Arc<Policy>, fib: Arc<Fib>, now: Nanos) -> Self {
        Self::with_memory(config, policy, fib, now, |_| {})
    }

    /// The same. `prepare` is shown the memory of the connections before anything is in it.
    pub fn with_memory(
        config: &Config,
        policy: Arc<Policy>,
        fib: Arc<Fib>,
        now: Nanos,
        prepare: impl FnOnce(&[MaybeUninit<Flow>]),
    ) -> Self {
        let hasher = FlowHasher::new(config.seed);
        let mut ports = PortAllocator::new();
        ports.prepare(policy.gateway_ports());
        Self {
            legs: Legs::new(config.flows.fast, hasher.clone()),
            ports,
            sources: Arc::new(Sources::new(if config.workers > 1 { 1 } else { SOURCES }, config.seed)),
            elsewhere: None,
            grants: Grants::new(hasher.clone()),
            cookies: Cookies::new(config.secret),
            answers: Answers::new(&config.secret),
            lanes: Lanes::NONE,
            has_lanes: false,
            in_express: 0,
            in_standby: 0,
            cookies_until: Nanos(0),
            shown: Shown::new(crate::stage::answer::COOKIE_LIFE),
            hasher: hasher.clone(),
            errors: 0,
            errors_since: now,
            worker: config.worker,
            workers: config.workers.max(1),
            policy,
            partial: with_vlans(config.partial_checksums, &fib),
            has_partial: !config.partial_checksums.is_empty(),
            fib,
            flows: FlowTable::with_memory(config.flows, hasher.clone(), now, prepare),
            holds: Holds::new(config.holds, config.hold_bytes, config.hold_frames),
            names: NameStore::new(config.names, hasher.clone()),
            alpns: NameStore::new(config.names.min(ALPNS), hasher.clone()),
            before: Vec::new(),
            hops: Hops::new(hasher.clone()),
            ways: HopCache::new(hasher),
            now,
            started: now,
            scratch: Vec::with_capacity(crate::hold::MAX_FRAMES),
            counters: Counters::default(),
            totals: Totals::default(),
            last_found: None,
            fragments: Fragments::new(config.fragments),
            pieces: Vec::with_capacity(crate::fragments::MAX_PIECES),
            is_replay: config.is_replay,
            due: Vec::with_capacity(64),
        }
    }

    /// New rules or routes. Connections keep the verdict they have.
    pub fn set_snapshot(&mut self, now: Nanos, policy: Arc<Policy>, fib: Arc<Fib>) {
        self.now = now;
        self.partial = with_vlans(self.partial, &fib);
        self.ports.prepare(policy.gateway_ports());
        self.note_intercepts(&policy);
        self.resize_holds(&policy);
        self.policy = policy;
        self.fib = fib;
        self.ways.clear();
        self.hops.clear();
    }

    /// Room for the bytes that clients wait with, as a configuration of the whole box says. What goes beyond the memory that
    /// there is comes by [`Self::take_room`].
    fn resize_holds(&mut self, policy: &Policy) {
        if let Some((count, _)) = policy.hold_room(self.workers, self.flows.capacity().fast) {
            self.holds.set_most(count);
        }
    }

    /// Larger memory for holds, before the configuration that needs it; what was used until now is in `room` afterwards, to be
    /// freed elsewhere.
    pub fn take_room(&mut self, room: &mut Room<F>) {
        self.holds.take_room(room);
    }

    /// A sender that leaves checksums to others once will do so again.
    pub(crate) fn note_unsummed(&mut self, slot: u32, unsummed: bool) {
        if unsummed && let Some(flow) = self.flows.get_mut(slot) {
            flow.unsummed = true;
        }
    }

    /// Takes a frame that holds no TCP, which steering should not have sent here: the kernel has it.
    pub fn handle_other(&mut self, frame: F, out: &mut Output<F>) {
        let reason = PuntReason::NotIntercepted;
        self.counters.punt(reason);
        out.punt.push(Punted { to: PuntTo::Forward, reason, frame });
    }

    /// Takes one fragment. A whole datagram of an intercept comes out in `again`; any other goes to the kernel, in
    /// the pieces it came in.
    pub fn handle_fragment(
        &mut self,
        now: Nanos,
        frame: F,
        port: PortId,
        meta: FragmentMeta,
        out: &mut Output<F>,
    ) {
        self.now = now;
        match self.fragments.push(now, frame, port, meta, &mut out.free, &mut self.pieces) {
            Reassembly::Pending => {}
            Reassembly::Tcp(whole) if self.of_intercept(&whole) => {
                out.free.append(&mut self.pieces);
                out.again.push(whole);
            }
            Reassembly::Tcp(Packet { frame, .. }) => {
                out.free.push(frame);
                self.punt_pieces(out);
            }
            Reassembly::Other => self.punt_pieces(out),
            Reassembly::Dropped(reason, count) => (0..count).for_each(|_| self.counters.drop(reason)),
        }
    }

    /// A datagram of no intercept goes on as it came.
    fn punt_pieces(&mut self, out: &mut Output<F>) {
        for piece in self.pieces.drain(..) {
            let reason = PuntReason::NotIntercepted;
            self.counters.punt(reason);
            out.punt.push(Punted { to: PuntTo::Forward, reason, frame: piece });
        }
    }

    /// Serves the timers that have run out.
    pub fn poll_timers(&mut self, now: Nanos, out: &mut Output<F>) {
        self.now = now;
        for _ in 0..self.fragments.expire(now, &mut out.free) {
            self.counters.drop(DropReason::FragmentTimeout);
        }
        let mut due = std::mem::take(&mut self.due);
        self.flows.poll(now, &mut due);
        for slot in due.drain(..) {
            self.timer(slot, out);
        }
        self.due = due;
    }

    /// Whether [`Self::poll_timers`] has left connections whose time has come.
    pub const fn has_due(&self) -> bool {
        self.flows.is_behind()
    }

    /// When a connection's time comes next, at the earliest; none: no connection waits. What is not whole of fragments waits longer
    /// than it has to until somebody looks.
    pub fn next_timer(&self) -> Option<Nanos> {
        self.flows.next_timer()
    }

    /// Cookies that this worker has not made may come back until then.
    pub fn expect_cookies(&mut self, until: Nanos) {
        self.cookies_until = self.cookies_until.max(until);
        self.shown.expect_any(until);
    }

    /// Whether as many connections are half-open as may be.
    pub fn is_pressed(&self) -> bool {
        self.flows.half_open() >= self.half_open_limit()
    }

    /// Connections on the fast road and on the kernel road.
    pub fn flow_counts(&self) -> (usize, usize) {
        self.flows.len()
    }

    /// Frames held for verdicts and for reassembly.
    pub fn frames_held(&self) -> usize {
        self.holds.in_use().1 + self.fragments.frames()
    }

    /// Server legs.
    pub fn leg_count(&self) -> usize {
        self.legs.len()
    }

    /// Source ports of the gateway in use toward servers of pools.
    pub fn ports_in_use(&self) -> u64 {
        self.ports.total()
    }

    /// Counts connections of sources together with the other workers, from the first on.
    pub fn share_sources(&mut self, sources: Arc<Sources>) {
        self.sources = sources;
    }

    /// Connections that others carry are not opened here.
    pub fn spare(&mut self, elsewhere: Elsewhere) {
        self.elsewhere = Some(elsewhere);
    }

    /// Connections that are counted with a source's.
    pub fn flows_of(&self, source: IpAddr) -> u32 {
        self.sources.flows(&source.into())
    }

    /// The routes, and what the links are like.
    pub fn fib(&self) -> &Fib {
        &self.fib
    }

    pub(crate) fn known(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        flow.seen = self.now;
        let (side, stage, leg) = (flow.side(&packet.meta.tuple), flow.stage, flow.leg);
        if stage == Stage::Elsewhere {
            return self.elsewhere(leg as usize, side, packet, out);
        }
        if packet.meta.flags.opens() {
            return self.syn_again(slot, side, packet, out);
        }
        let packet = if side == Side::Client && self.now < self.cookies_until {
            let Some(packet) = self.redeem_over(slot, packet, out) else { return };
            packet
        } else {
            packet
        };
        if side == Side::Server {
            if !self.comes_from_server(slot, &packet) {
                return self.discard(packet.frame, DropReason::WrongPort, out);
            }
            if self.legs.get(leg).is_some_and(|leg| leg.is_apart) {
                return self.old_server(packet, out);
            }
        }
        self.staged(slot, side, stage, packet, out);
    }

    /// A packet with the addresses of a server leg that stands apart from its client's.
    pub(crate) fn on_leg(&mut self, leg: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some((slot, tuple)) = self.legs.get(leg).map(|leg| (leg.flow, leg.tuple)) else {
            return self.unknown(packet, out);
        };
        let from_server = packet.meta.tuple.src == tuple.dst;
        if !from_server || packet.meta.flags.opens() {
            return self.discard(packet.frame, DropReason::LegInUse, out);
        }
        if !self.comes_from_server(slot, &packet) {
            return self.discard(packet.frame, DropReason::WrongPort, out);
        }
        let Some(packet) = self.straight_across(slot, Side::Server, packet, out) else { return };
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        flow.seen = self.now;
        let stage = flow.stage;
        self.staged(slot, Side::Server, stage, packet, out);
    }

    fn staged(&mut self, slot: u32, side: Side, stage: Stage, mut packet: Packet<F>, out: &mut Output<F>) {
        // Where weir is the one who answers, it checks first (RFC 9293 section 3.1).
        let to_weir = matches!(stage, Stage::SynRcvd | Stage::Answered | Stage::Dialing);
        if to_weir && side == Side::Client && packet.meta.segment_sum(packet.frame.data()) != 0xffff {
            return self.discard(packet.frame, DropReason::BadChecksum, out);
        }
        let joined = matches!(stage, Stage::Splice | Stage::Closed);
        if joined && side == Side::Server && self.flows.get(slot).is_some_and(|f| f.leg != Flow::NO_LEG) {
            match self.come_in(slot, packet, out) {
                Some(translated) => packet = translated,
                None => return,
            }
        }
        match (stage, side) {
            (Stage::SynSent, Side::Client) => self.syn_sent_client(slot, packet, out),
            (Stage::SynSent, Side::Server) => self.syn_sent_server(slot, packet, out),
            (Stage::SynRcvd, Side::Client) => self.syn_rcvd_client(slot, packet, out),
            (Stage::Answered | Stage::Dialing, Side::Client) => self.early_client(slot, packet, out),
            (Stage::SynRcvd | Stage::Answered, Side::Server) => self.old_server(packet, out),
            (Stage::Dialing, Side::Server) => self.dialing_server(slot, packet, out),
            (Stage::Held, Side::Client) => self.held_client(slot, packet, out),
            (Stage::Held, Side::Server) => self.held_server(slot, packet, out),
            (Stage::Splice, _) => self.splice(slot, side, packet, out),
            (Stage::Refused, _) => self.refused(slot, side, packet, out),
            (Stage::Kernel, _) => self.on_kernel_road(slot, packet, out),
            (Stage::Closed, _) => self.closed(slot, side, packet, out),
            (Stage::Elsewhere, _) => self.discard(packet.frame, DropReason::OldLeg, out),
        }
    }

    /// A packet of a server that has nothing to do with the connection, or not any more: it is told so.
    fn old_server(&mut self, packet: Packet<F>, out: &mut Output<F>) {
        let meta = packet.meta;
        self.discard(packet.frame, DropReason::OldLeg, out);
        self.answer_rst(&meta, out);
    }

    /// A packet of a server leg whose connection is at another worker.
    fn elsewhere(&mut self, worker: usize, side: Side, packet: Packet<F>, out: &mut Output<F>) {
        if side == Side::Client {
            return self.discard(packet.frame, DropReason::LegInUse, out);
        }
        out.hand.push((worker, packet));
    }

    /// What comes from the destination of `leg` is for `worker` from now on. `false`: no room, or it is another
    /// connection's.
    pub fn claim(&mut self, now: Nanos, leg: &Tuple, worker: usize) -> bool {
        self.now = now;
        if let Some(slot) = self.flows.find(&FlowKey::of(leg)) {
            return self.flows.get_mut(slot).is_some_and(|flow| {
                flow.seen = now;
                flow.stage == Stage::Elsewhere && flow.leg as usize == worker
            });
        }
        let mut flow = Flow::new(leg, PortId(u8::MAX), InterceptId(u8::MAX), 0, now);
        (flow.stage, flow.leg) = (Stage::Elsewhere, worker as u32);
        let Some(slot) = self.flows.insert(flow) else { return false };
        self.flows.arm(slot, now.saturating_add(timers::IDLE));
        true
    }

    /// The leg that `worker` claimed is gone.
    pub fn release_claim(&mut self, key: &FlowKey, worker: usize) {
        if let Some(slot) = self.flows.find(key)
            && self.flows.get(slot).is_some_and(|f| f.stage == Stage::Elsewhere && f.leg as usize == worker)
        {
            self.flows.remove(slot);
        }
    }

    /// Whether a packet in the name of a connection's server can be the server's. What the server says decides while
    /// there is no verdict, while inspected bytes or a PROXY header are not acknowledged, and while it may ask for a second
    /// hello: a client must not be able to say it.
    fn comes_from_server(&mut self, slot: u32, packet: &Packet<F>) -> bool {
        let Some(flow) = self.flows.get(slot) else { return true };
        let open = matches!(flow.stage, Stage::SynSent | Stage::Held | Stage::Dialing);
        let unacked = self.legs.get(flow.leg).is_some_and(|leg| !leg.header_acked);
        if !open && !unacked && flow.hold == Flow::NO_HOLD && !flow.second.is_expected() {
            return true;
        }
        self.is_behind(slot, packet.port, &packet.meta.tuple.src.addr)
    }

    /// Whether what comes by `port` can be from `server`, or from the way to it, and not from a client.
    pub(crate) fn is_behind(&mut self, slot: u32, port: PortId, server: &Addr) -> bool {
        if self.ways.leads_by(&self.fib, server, port) {
            return true;
        }
        // By another way than ours to it: believed where no client can be.
        let Some(flow) = self.flows.get(slot) else { return true };
        let client_side = self.intercept_of(flow).is_some_and(|(id, _)| self.policy.is_from(id, port));
        port != flow.port && !client_side
    }

    /// The intercept that judges a connection, and its number now. In another configuration than the one it came with
    /// the number may mean another intercept, so that it is looked up anew. `None`: no intercept takes it any more.
    pub(crate) fn intercept_of(&self, flow: &Flow) -> Option<(InterceptId, &Intercept)> {
        let id = if self.policy.numbers_since(flow.epoch) {
            flow.intercept
        } else {
            let server = flow.tuple().dst;
            self.policy.intercept(flow.port, server.addr.ip(), server.port)?
        };
        Some((id, self.policy.get(id)?))
    }

    /// Gives a frame back, with its reason counted.
    pub(crate) fn discard(&mut self, frame: F, reason: DropReason, out: &mut Output<F>) {
        self.counters.drop(reason);
        out.free.push(frame);
    }

    /// Gives one packet to the kernel to forward.
    pub(crate) fn punt(&mut self, packet: Packet<F>, reason: PuntReason, out: &mut Output<F>) {
        self.punt_to(PuntTo::Forward, packet, reason, out);
    }

    pub(crate) fn punt_to(
        &mut self,
        to: PuntTo,
        mut packet: Packet<F>,
        reason: PuntReason,
        out: &mut Output<F>,
    ) {
        self.counters.punt(reason);
        packet.frame.set_len(packet.meta.end as usize);
        out.punt.push(Punted { to, reason, frame: packet.frame });
    }

    /// Forgets a connection and gives back what it held.
    pub(crate) fn forget(&mut self, slot: u32, out: &mut Output<F>) {
        self.leave(slot, Place::Back, out);
        self.drop_leg(slot, out);
        if let Some(flow) = self.flows.remove(slot) {
            self.names.release(flow.name);
            self.alpns.release(flow.alpn);
            if flow.counted {
                self.sources.leave(&flow.tuple().src.addr);
            }
            if flow.hold != Flow::NO_HOLD {
                for _ in 0..self.holds.close(flow.hold, &mut out.free) {
                    self.counters.drop(DropReason::Ended);
                }
            }
            if flow.stage == Stage::Kernel {
                out.kernel.push(KernelOp::Remove(flow.key));
            }
        }
    }
}

/// The same ports, and the VLANs of them.
fn with_vlans(ports: PortSet, fib: &Fib) -> PortSet {
    let mut all = PortSet::of_ports(ports);
    for (number, _) in fib.vlans.iter().filter(|(_, of)| ports.contains(of.port)) {
        all.insert(number);
    }
    all
}
