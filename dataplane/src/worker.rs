//! A worker: one pinned thread, one queue of every port, its frames and its flows. This file is one breath of it:
//! receive, parse, give to the pipeline (here or at the worker that owns the flow), carry out what comes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crossbeam::channel::Sender;
use crossbeam::queue::ArrayQueue;
use weir_core::batch::Batch;
use weir_core::drop::DropReason;
use weir_core::express::Names;
use weir_core::flow::key::{FlowHasher, Tuple};
use weir_core::ids::{MAX_PORTS, Nanos, PortId};
use weir_core::pipeline::{LegOp, Output, Pipeline, Punted, ServerFailed};
use weir_core::reevaluate::Tally;
use weir_core::verify::{Answer, Verified};
use weir_core::view::FlowView;
use weir_core::vlan;

use crate::driver::Driver;
use crate::express::Feeder;
use crate::gateway::{FailedServer, Failures};
use crate::handoff::{Crossing, Handoff};
use crate::punt::Punt;
use crate::questions::{Asker, Questions};
use crate::rooms::RoomBox;
use crate::snapshot::Subscriber;
use crate::stats::{Gauges, WorkerStats};

mod idle;
mod steer;

use idle::Idleness;

/// Frames taken from a port in one breath.
pub const BATCH: usize = 64;
/// Breaths between two publications of the counters while there is work.
const PUBLISH_EVERY: u32 = 256;
/// Flows listed in one breath, and flows judged again.
const LIST_BATCH: usize = 256;
const JUDGE_BATCH: usize = 64;
/// Answers taken in one breath.
const ANSWERS: usize = 256;
/// Slots looked through in one breath after the routes have changed.
const REROUTE_BATCH: u32 = 256;
/// Frames that a port may be behind with; beyond it the oldest are dropped.
const BACKLOG: usize = 1024;
/// A worker that has not breathed for so long has hung: its packets went another way meanwhile, and what waits for it was sent again. As
/// it is taken for one that only waits for a CPU for up to [`DOUBT`](crate::heartbeat::DOUBT), that is more.
const HUNG: Nanos = Nanos::from_secs(2);

/// What others ask of a worker.
#[derive(Debug)]
pub enum Command {
    /// List flows, in parts; the channel closes with the last.
    Flows(Sender<Vec<FlowView>>),
    /// Judge all flows again by the policy in force.
    Reevaluate(Sender<Tally>),
    /// Count the flows that lean on steering as it was before the policy in force.
    Leaning(Sender<u64>),
}

/// A command that is being carried out, a batch a breath.
#[derive(Debug)]
enum Scan {
    Flows(Sender<Vec<FlowView>>),
    Reevaluate(Sender<Tally>, Tally),
    Leaning(Sender<u64>, u64),
}

/// What a worker is made of.
#[derive(Debug)]
pub struct Parts<D: Driver> {
    pub id: usize,
    pub driver: D,
    pub pipeline: Pipeline<D::Frame>,
    pub hasher: FlowHasher,
    pub handoff: Arc<Handoff<D::Frame>>,
    pub punt: Punt,
    pub snapshots: Subscriber,
    pub commands: Arc<ArrayQueue<Command>>,
    pub stats: Arc<WorkerStats>,
    /// Servers of pools that did not take a connection, for control.
    pub failures: Failures,
    /// How often packets have gone past the workers for a while, because there was no sign of life of theirs: what came meanwhile they
    /// have not seen.
    pub gaps: Arc<AtomicU64>,
    /// Until when (ns) cookies that the steering program made may come back.
    pub cookies_until: Arc<AtomicU64>,
    /// Memory for what is held, where a configuration needs more; none: it has what it began with.
    pub rooms: Option<Arc<RoomBox<D::Frame>>>,
    /// For control's resolver; none: every name is unknown.
    pub questions: Option<Arc<Questions>>,
    pub answers: Arc<ArrayQueue<Answer>>,
    /// Of the express lane, where there is one.
    pub express: Option<Feeder>,
    pub frames: Vec<D::Frame>,
    /// For each port, the worker that sends for this one when it has no queue there.
    pub senders: [usize; MAX_PORTS],
}

/// A running worker.
#[derive(Debug)]
pub struct Worker<D: Driver> {
    parts: Parts<D>,
    out: Output<D::Frame>,
    batch: Vec<D::Frame>,
    /// Segments of this worker's flows that are about to be handled together.
    arrived: Batch<D::Frame>,
    /// Finished frames by port, in the order they leave.
    leaving: Vec<Vec<D::Frame>>,
    /// Workers that got something in this breath.
    woken: u64,
    /// And the slot where it goes on.
    scan: Option<(Scan, u32)>,
    /// The slot where looking for connections whose routes have changed goes on.
    reroute: Option<u32>,
    /// The express lane is asked what it has seen, too; and how many gaps there had been when that was begun last.
    asks: bool,
    gaps: u64,
    /// No port had more packets than were taken.
    is_drained: bool,
    idleness: Idleness,
    /// When it breathed last; none: it has not begun.
    breathed: Option<Nanos>,
    /// It has hung, and so many frames that it receives may have waited for it.
    late: usize,
    ports: [(u64, u64); MAX_PORTS],
    handed_over: u64,
    breaths: u32,
    low: usize,
    high: usize,
    /// Its share of them.
    frames: usize,
}

impl<D: Driver> Worker<D> {
    pub fn new(mut parts: Parts<D>) -> Self {
        let share = parts.frames.len() + parts.driver.in_rings().fill;
        let out = Output { free: std::mem::take(&mut parts.frames), ..Output::default() };
        Self {
            parts,
            out,
            batch: Vec::with_capacity(BATCH),
            arrived: Batch::with_capacity(BATCH),
            leaving: (0..MAX_PORTS).map(|_| Vec::new()).collect(),
            woken: 0,
            scan: None,
            reroute: None,
            asks: false,
            gaps: 0,
            is_drained: true,
            idleness: Idleness::default(),
            breathed: None,
            late: 0,
            ports: [(0, 0); MAX_PORTS],
            handed_over: 0,
            breaths: 0,
            low: share / 8,
            high: share / 2,
            frames: share,
        }
    }

    /// One breath at `now`. Returns how many frames it moved.
    pub fn breathe(&mut self, now: Nanos) -> usize {
        self.take_snapshot(now);
        let cookies_until = self.parts.cookies_until.load(Relaxed);
        if cookies_until != 0 {
            self.parts.pipeline.expect_cookies(Nanos(cookies_until));
        }
        let mut work = 0;
        let others_idle = self.parts.handoff.others_idle(self.parts.id);
        self.idleness.begin(now);
        let before = self.breathed.replace(now);
        if before.is_some_and(|before| now > before.saturating_add(HUNG)) {
            self.late = self.frames;
        }
        self.is_drained = true;
        for at in 0..self.parts.driver.ports().len() {
            let port = self.parts.driver.ports()[at];
            work += self.receive(now, port);
        }
        work += self.receive_handed_over(now);
        if self.is_drained {
            self.late = 0;
        }
        work += self.receive_answers(now);
        self.parts.pipeline.poll_timers(now, &mut self.out);
        self.serve_commands(now);
        self.follow_routes();
        self.carry_out(now);
        self.parts.driver.supply(&mut self.out.free);
        if let Some(express) = &mut self.parts.express {
            express.carry_out(&mut self.parts.pipeline, &mut self.out);
        }
        self.parts.handoff.balance(&mut self.out.free, self.low, self.high);
        self.tell_idle(now, others_idle, work > 0);
        self.breaths = self.breaths.wrapping_add(1);
        if work == 0 || self.breaths.is_multiple_of(PUBLISH_EVERY) {
            self.publish();
        }
        self.parts.stats.breathed.breathe(now.0);
        work
    }

    fn take_snapshot(&mut self, now: Nanos) {
        if let Some(snapshot) = self.parts.snapshots.take() {
            let pipeline = &mut self.parts.pipeline;
            if let Some(rooms) = &self.parts.rooms {
                rooms.take(|room| pipeline.take_room(room));
            }
            self.parts.pipeline.set_snapshot(now, snapshot.policy.clone(), snapshot.fib.clone());
            if let Some(express) = &mut self.parts.express {
                self.parts.pipeline.set_lanes(snapshot.lanes);
                express.forget_ways();
                self.look_again(false);
            }
        }
    }

    /// Looks through all connections that the express lane has. A look that was under way begins anew.
    const fn look_again(&mut self, asks: bool) {
        self.asks = asks || self.asks && self.reroute.is_some();
        self.reroute = Some(0);
    }

    /// Connections of the express lane that go another way now are taken back, and those that it can stand by for let in, a batch a
    /// breath; and how they went on while nobody looked is asked.
    fn follow_routes(&mut self) {
        let gaps = self.parts.gaps.load(Relaxed);
        if gaps != self.gaps && self.parts.express.is_some() {
            self.gaps = gaps;
            self.look_again(true);
        }
        // What was asked for before comes first.
        let is_behind = self.out.express.len() > REROUTE_BATCH as usize;
        if let Some(from) = self.reroute.filter(|_| !is_behind) {
            self.reroute = self.parts.pipeline.reroute(from, REROUTE_BATCH, self.asks, &mut self.out);
        }
    }

    fn receive(&mut self, now: Nanos, port: PortId) -> usize {
        let mut batch = std::mem::take(&mut self.batch);
        let got = self.parts.driver.receive(port, &mut batch, BATCH);
        self.ports[port.0 as usize].0 += got as u64;
        self.is_drained &= got < BATCH;
        for frame in batch.drain(..) {
            if let Some(left) = self.late.checked_sub(1) {
                self.late = left;
                self.discard(frame, DropReason::Late);
                continue;
            }
            self.classify(now, port, frame);
        }
        self.batch = batch;
        self.handle_arrived(now);
        got
    }

    /// Puts the tags of a link on a frame that is to leave by it, and says which port that is.
    #[inline(never)]
    fn tag(&self, link: PortId, frame: &mut D::Frame) -> Option<PortId> {
        let of = self.parts.pipeline.fib().vlans.get(link)?;
        vlan::put_on(frame, &of.vlan).then_some(of.port)
    }

    fn handle_arrived(&mut self, now: Nanos) {
        self.parts.pipeline.handle_batch(now, &mut self.arrived, &mut self.out);
    }

    fn receive_handed_over(&mut self, now: Nanos) -> usize {
        let mut got = 0;
        while got < 4 * BATCH
            && let Some(crossing) = self.parts.handoff.receive(self.parts.id)
        {
            got += 1;
            match crossing {
                Crossing::Packet(packet) if self.late > 0 => self.discard(packet.frame, DropReason::Late),
                Crossing::Packet(packet) => {
                    self.arrived.push_packet(packet, &self.parts.hasher);
                    if self.arrived.len() == BATCH {
                        self.handle_arrived(now);
                    }
                }
                crossing => {
                    self.handle_arrived(now);
                    self.handle_crossing(now, crossing);
                }
            }
        }
        self.handle_arrived(now);
        got
    }

    /// What comes from another worker besides packets.
    fn handle_crossing(&mut self, now: Nanos, crossing: Crossing<D::Frame>) {
        match crossing {
            Crossing::Packet(packet) => self.parts.pipeline.handle(now, packet, &mut self.out),
            Crossing::Fragment(frame, port, meta) => {
                self.parts.pipeline.handle_fragment(now, frame, port, meta, &mut self.out);
            }
            Crossing::Send(port, frame) => self.out.tx.push((port, frame)),
            Crossing::Icmp(frame, port, meta) => {
                self.parts.pipeline.handle_icmp(now, frame, port, meta, &mut self.out);
            }
            Crossing::Claim { owner, leg, frame } => self.claimed(now, owner, &leg, frame),
            Crossing::Release { owner, key } => self.parts.pipeline.release_claim(&key, owner),
        }
    }

    fn receive_answers(&mut self, now: Nanos) -> usize {
        let mut got = 0;
        while got < ANSWERS
            && let Some(answer) = self.parts.answers.pop()
        {
            got += 1;
            self.parts.pipeline.handle_verified(now, &answer, &mut self.out);
        }
        got
    }

    /// Asks control what the pipeline wants to know of names. What there is no room for is unknown.
    fn ask_control(&mut self, now: Nanos) {
        if self.out.questions.is_empty() {
            return;
        }
        let mut asked = std::mem::take(&mut self.out.questions);
        for question in asked.drain(..) {
            let asker = Asker::Worker(self.parts.id);
            if self.parts.questions.as_ref().is_none_or(|questions| !questions.ask(asker, question)) {
                self.parts.pipeline.totals.host_unasked += 1;
                let unknown = question.answer(Verified::Unknown, Nanos(0));
                self.parts.pipeline.handle_verified(now, &unknown, &mut self.out);
            }
        }
        self.out.questions = asked;
        if let Some(questions) = &self.parts.questions {
            questions.ring();
        }
    }

    /// Another worker opens a server leg whose packets come here: from before its SYN leaves they are handed on.
    fn claimed(&mut self, now: Nanos, owner: usize, leg: &Tuple, frame: Option<(PortId, D::Frame)>) {
        self.parts.pipeline.make_room(&mut self.out);
        let granted = self.parts.pipeline.claim(now, leg, owner);
        match frame {
            Some(sending) if granted => self.out.tx.push(sending),
            Some((_, frame)) => self.discard(frame, DropReason::TableFull),
            None => {}
        }
    }

    /// Tells other workers of server legs, and hands them what is theirs; tells control of servers that failed.
    fn tell_others(&mut self) {
        let mut legs = std::mem::take(&mut self.out.legs);
        for op in legs.drain(..) {
            let owner = self.parts.id;
            match op {
                LegOp::Claim { worker, leg, frame } => {
                    self.hand_over(worker, Crossing::Claim { owner, leg, frame });
                }
                LegOp::Release { worker, key } => self.hand_over(worker, Crossing::Release { owner, key }),
            }
        }
        self.out.legs = legs;
        let mut hand = std::mem::take(&mut self.out.hand);
        for (worker, packet) in hand.drain(..) {
            self.hand_over(worker, Crossing::Packet(packet));
        }
        self.out.hand = hand;
        let mut errors = std::mem::take(&mut self.out.hand_icmp);
        for (worker, frame, port, meta) in errors.drain(..) {
            self.hand_over(worker, Crossing::Icmp(frame, port, meta));
        }
        self.out.hand_icmp = errors;
        for failed in self.out.failed.drain(..) {
            // When control is behind, it learns of the next one.
            let ServerFailed { pool, server, numbered, .. } = failed;
            let _behind = self.parts.failures.push(FailedServer { pool, server, numbered });
        }
    }

    /// Does what the pipeline asked for: first the kernel map, then the frames for the kernel, then those for the wire.
    fn carry_out(&mut self, now: Nanos) {
        let mut again = std::mem::take(&mut self.out.again);
        for packet in again.drain(..) {
            self.steer(packet);
        }
        self.out.again = again;
        self.handle_arrived(now);
        if let Some(express) = &mut self.parts.express {
            express.carry_out_first(&mut self.parts.pipeline, &mut self.out);
        }
        self.ask_control(now);
        let mut ops = std::mem::take(&mut self.out.kernel);
        for op in ops.drain(..) {
            match self.parts.punt.apply(&op, now) {
                Ok(Some((key, seen))) => {
                    self.parts.pipeline.handle_kernel_seen(&key, seen, &mut self.out);
                }
                Ok(None) => {}
                // Without its entry the flow's packets come here and are handed on one by one: slow, and right.
                Err(error) => tracing::debug!(%error, "kernel map"),
            }
        }
        ops.append(&mut self.out.kernel);
        self.out.kernel = ops;
        self.tell_others();
        self.send_punts();
        self.send_frames();
        self.wake_others();
    }

    fn send_punts(&mut self) {
        let mut punts = std::mem::take(&mut self.out.punt);
        for Punted { to, reason, frame } in punts.drain(..) {
            if self.parts.punt.send(to, &frame).is_err() {
                self.parts.pipeline.counters.punt_failed(reason);
            }
            self.out.free.push(frame);
        }
        self.out.punt = punts;
    }

    fn send_frames(&mut self) {
        let mut tx = std::mem::take(&mut self.out.tx);
        let mut used = 0_u32;
        for (mut port, mut frame) in tx.drain(..) {
            if usize::from(port.0) >= MAX_PORTS {
                let Some(carrier) = self.tag(port, &mut frame) else {
                    self.discard(frame, DropReason::VlanLost);
                    continue;
                };
                port = carrier;
            }
            let at = port.0 as usize;
            if !self.parts.driver.can_send(port) {
                self.send_elsewhere(port, frame);
                continue;
            }
            used |= 1 << at;
            self.leaving[at].push(frame);
        }
        self.out.tx = tx;
        for at in 0..MAX_PORTS {
            if used & (1 << at) == 0 && self.leaving[at].is_empty() {
                continue;
            }
            let port = PortId(at as u8);
            if !self.parts.driver.can_send(port) {
                // The port has gone with these on their way.
                for frame in self.leaving[at].drain(..) {
                    self.parts.pipeline.counters.drop(DropReason::PortLost);
                    self.out.free.push(frame);
                }
                continue;
            }
            let sent = self.parts.driver.send(port, &mut self.leaving[at]);
            self.ports[at].1 += sent as u64;
            let excess = self.leaving[at].len().saturating_sub(BACKLOG);
            for frame in self.leaving[at].drain(..excess) {
                self.parts.pipeline.counters.drop(DropReason::TxFull);
                self.out.free.push(frame);
            }
        }
    }

    /// This worker has no queue of the port: the one that has sends the frame.
    fn send_elsewhere(&mut self, port: PortId, frame: D::Frame) {
        let to = self.parts.senders[port.0 as usize];
        if to == self.parts.id || to >= self.parts.handoff.workers() {
            return self.discard(frame, DropReason::PortLost);
        }
        self.idleness.gives_away = true;
        self.hand_over(to, Crossing::Send(port, frame));
    }

    fn wake_others(&mut self) {
        while self.woken != 0 {
            let worker = self.woken.trailing_zeros() as usize;
            self.woken &= self.woken - 1;
            self.parts.handoff.wake(worker);
        }
    }

    fn serve_commands(&mut self, now: Nanos) {
        if self.scan.is_none()
            && let Some(command) = self.parts.commands.pop()
        {
            let scan = match command {
                Command::Flows(reply) => Scan::Flows(reply),
                Command::Reevaluate(reply) => Scan::Reevaluate(reply, Tally::default()),
                Command::Leaning(reply) => Scan::Leaning(reply, 0),
            };
            // What was published before the command counts for it.
            self.take_snapshot(now);
            self.scan = Some((scan, 0));
        }
        let Some((mut scan, cursor)) = self.scan.take() else { return };
        let pipeline = &mut self.parts.pipeline;
        let next = match &mut scan {
            Scan::Flows(reply) => {
                let express = self.parts.express.as_ref();
                let passed = |names: &Names| express.and_then(|express| express.passed(names));
                let (views, next) = pipeline.views_with(now, cursor, LIST_BATCH, passed);
                let heard = reply.send(views).is_ok();
                next.filter(|_| heard)
            }
            Scan::Reevaluate(_, tally) => pipeline.reevaluate(now, cursor, JUDGE_BATCH, tally, &mut self.out),
            Scan::Leaning(_, count) => {
                let (leaning, next) = pipeline.leaning(cursor, LIST_BATCH);
                *count += leaning;
                next
            }
        };
        match (next, scan) {
            (Some(next), scan) => self.scan = Some((scan, next)),
            // Whoever has stopped waiting wants no answer.
            (None, Scan::Reevaluate(reply, tally)) => drop(reply.send(tally)),
            (None, Scan::Leaning(reply, count)) => drop(reply.send(count)),
            (None, Scan::Flows(_)) => {}
        }
    }

    fn discard(&mut self, frame: D::Frame, reason: DropReason) {
        self.parts.pipeline.counters.drop(reason);
        self.out.free.push(frame);
    }

    /// Whether there is something to do at once.
    pub fn has_work(&self) -> bool {
        self.scan.is_some()
            || self.reroute.is_some()
            || self.parts.pipeline.has_due()
            || !self.out.express.is_empty()
            || self.has_to_tell_idle()
            || !self.parts.commands.is_empty()
            || !self.parts.answers.is_empty()
            || self.parts.handoff.has_mail(self.parts.id)
            || self.leaving.iter().any(|frames| !frames.is_empty())
    }

    /// Whether it waits for frames that other workers have: nobody wakes it when they give them back.
    pub const fn lacks_frames(&self) -> bool {
        self.out.free.is_empty()
    }

    /// How long after `now` something is due, at the earliest; none: nothing is.
    pub fn due_in(&self, now: Nanos) -> Option<Duration> {
        let due = self.parts.pipeline.next_timer()?;
        Some(Duration::from_nanos(due.0.saturating_sub(now.0)))
    }

    /// Lets others see the numbers of this moment.
    pub fn publish(&self) {
        let waiting: usize = self.leaving.iter().map(Vec::len).sum();
        let mut rings = self.parts.driver.in_rings();
        rings.transmit += waiting;
        let held = self.parts.pipeline.frames_held();
        let mut gauges = Gauges::new(self.parts.pipeline.flow_counts(), self.out.free.len(), rings, held);
        gauges.handed_over = self.handed_over;
        let crossed = self.parts.driver.crossed();
        (gauges.crossed, gauges.crossed_zero_copy) = (crossed.frames, crossed.zero_copy);
        let pipeline = &self.parts.pipeline;
        gauges.pressed = u64::from(pipeline.is_pressed());
        (gauges.flows_express, gauges.flows_standby) = (pipeline.express_flows(), pipeline.standby_flows());
        self.parts.stats.publish(&pipeline.counters, &pipeline.totals, &self.ports, &gauges);
    }

    pub fn driver(&self) -> &D {
        &self.parts.driver
    }

    /// The driver and the free frames, for looking after ports between two breaths.
    pub fn driver_and_pool(&mut self) -> (&mut D, &mut Vec<D::Frame>) {
        (&mut self.parts.driver, &mut self.out.free)
    }

    /// The driver and the pool, for taking the worker down.
    pub fn into_driver(self) -> (D, Vec<D::Frame>) {
        (self.parts.driver, self.out.free)
    }
}
