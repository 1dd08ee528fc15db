//! The relay's loop: wait in the ring, hand each completion to its connection, let the timers come.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};
use weir_core::ids::{Nanos, PortId};
use weir_core::reevaluate::Tally;
use weir_core::relay::doors::{Came, DoorOp, Doors};
use weir_core::relay::{Event, Judge, Limits, Relay, Side};
use weir_core::sources::Sources;
use weir_core::verify::{Answer, Answers};
use weir_sys::uring::{Completion, Errno, Key, Outcome, Readiness, Ring, Slab, UringError, Waker};
use weir_sys::{affinity, clock, sockopt};

use super::conn::{Connection, Task};
use super::flows::RelayFlow;
use super::handle::{Hooks, RelayConfig};
use super::listener::{is_gone, is_own, refuse};
use super::pump::{Asking, Pump};
use super::stats::{Counter, Stats};
use super::stock::CHUNK;
use super::timers::Timers;
use crate::heartbeat::{BREATH, Sign};
use crate::random;
use crate::snapshot::{Snapshot, Subscriber};

/// Operations that are submitted in one system call.
const ENTRIES: u32 = 1024;
/// How often accepting begins anew while another process accepts, too; and how long it may.
const ANEW: Nanos = Nanos::from_millis(500);
const BESIDE: Nanos = Nanos::from_secs(60);
/// Completions, and connections where all are gone through, between two signs of life: a thread that works does not hang.
const BREATHS: usize = 4;
const BREATHS_OF_ALL: usize = 256;
/// How long connections that were reset at the end may take to close.
const LAST: Nanos = Nanos::from_secs(2);

/// What a worker is made from.
pub(super) struct Setup {
    pub number: usize,
    pub config: RelayConfig,
    pub connections: u32,
    /// So many threads share what is bounded for all.
    pub workers: usize,
    pub sources: Arc<Sources>,
    /// Another process serves the listeners until [`Request::Accept`].
    pub takes_over: bool,
    pub listeners: Vec<OwnedFd>,
    pub snapshot: Arc<Snapshot>,
    pub subscriber: Subscriber,
    pub hooks: Arc<Hooks>,
    pub stats: Arc<Stats>,
    /// Set once it accepts nothing any more (Release, for the Acquire of [`has_left`](super::RelayHandle::has_left)).
    pub left: Arc<AtomicBool>,
    /// When it breathed last.
    pub sign: Sign,
    pub inbox: Receiver<Request>,
}

/// What the handle asks.
pub(super) enum Request {
    Flows {
        limit: usize,
        reply: Sender<Vec<RelayFlow>>,
    },
    /// Judge all connections again by the policy in force.
    Reevaluate {
        reply: Sender<Tally>,
    },
    /// From now on this process accepts, too: the other one is about to leave.
    Accept,
    /// Connections may finish for so long. Clients whose handshake is under way are accepted meanwhile, for `linger` at most.
    Stop {
        drain: Duration,
        linger: Duration,
    },
    Answer {
        key: Key,
        answer: Answer,
    },
}

/// How far the end is.
#[derive(Clone, Copy, PartialEq)]
enum Ending {
    No,
    /// Connections may finish until then.
    Draining(Nanos),
    /// What is left was reset, and has until then to close.
    Resetting(Nanos),
}

/// One thread of the relay.
pub(super) struct Worker {
    config: RelayConfig,
    limits: Arc<Limits>,
    connections: usize,
    sources: Arc<Sources>,
    workers: usize,
    listeners: Vec<Option<OwnedFd>>,
    table: Slab<Connection>,
    pump: Pump,
    snapshot: Arc<Snapshot>,
    subscriber: Subscriber,
    inbox: Receiver<Request>,
    sign: Sign,
    doors: Doors,
    left: Arc<AtomicBool>,
    /// Accepting has not begun.
    waits: bool,
    /// When the listeners are closed.
    closing: Option<Nanos>,
    /// While another process may accept beside this one: when accepting begins anew, and until when it does. A client's coming wakes one
    /// of the two, and that may be the one which is about to leave.
    anew: Option<(Nanos, Nanos)>,
    ending: Ending,
}

impl Worker {
    /// On the thread that will run it.
    pub fn new(setup: Setup) -> Result<Self, UringError> {
        let Setup { number, config, connections, listeners, .. } = setup;
        pin(number, &config.cores);
        affinity::favour();
        setup.sign.begin();
        let ring = Ring::new(ENTRIES)?;
        let timers = Timers::new(connections as usize, Nanos(clock::monotonic_ns()));
        let asking = Asking {
            number,
            questions: config.questions.clone(),
            answers: Answers::new(&random::secret()),
            rings: false,
        };
        let pump = Pump::new(ring, &config, timers, setup.stats, setup.hooks, asking);
        Ok(Self {
            limits: Arc::new(config.limits),
            config,
            connections: connections as usize,
            sources: setup.sources,
            workers: setup.workers,
            doors: Doors::new(listeners.len()),
            listeners: listeners.into_iter().map(Some).collect(),
            left: setup.left,
            table: Slab::new(),
            pump,
            snapshot: setup.snapshot,
            subscriber: setup.subscriber,
            inbox: setup.inbox,
            sign: setup.sign,
            waits: setup.takes_over,
            closing: None,
            anew: None,
            ending: Ending::No,
        })
    }

    pub fn waker(&self) -> Waker {
        self.pump.ring.waker()
    }

    /// Until it is told to stop, or the ring fails.
    pub fn run(&mut self) {
        self.share_hold_room();
        if !self.waits {
            self.doors.open();
            self.at_doors();
        }
        let mut completions = Vec::new();
        while !self.is_over() {
            let now = self.now();
            self.sign.breathe(now.0);
            let timeout = self.timeout(now);
            let wait = || self.pump.ring.wait(Some(timeout), &mut completions);
            if let Err(error) = self.sign.sleep(now.0, timeout, wait) {
                tracing::error!(%error, "the relay's ring failed: this thread of the relay ends");
                return;
            }
            self.pump.now = self.now();
            self.take_snapshot();
            for (completion, done) in completions.drain(..).zip(1..) {
                self.completed(completion);
                self.breathe_at(done, BREATHS);
            }
            self.go_on();
            self.feed();
            self.timers();
            self.requests();
            self.pump.publish();
        }
    }

    fn breathe(&self) {
        self.sign.breathe(clock::monotonic_ns());
    }

    /// In the midst of much to do.
    fn breathe_at(&self, done: usize, each: usize) {
        if done.is_multiple_of(each) {
            self.breathe();
        }
    }

    fn now(&self) -> Nanos {
        // One clock for all threads: connections of a rule share its bandwidth.
        Nanos(clock::monotonic_ns())
    }

    /// How long there is nothing to do from `now` on but for what completes.
    fn timeout(&self, now: Nanos) -> Duration {
        if !self.pump.again.is_empty() {
            return Duration::ZERO;
        }
        let ending = match self.ending {
            Ending::No => None,
            Ending::Draining(until) | Ending::Resetting(until) => Some(until),
        };
        let anew = self.anew.map(|(at, _)| at);
        let due = [self.pump.timers.next(), self.doors.next(), anew, self.closing, ending];
        // Of room that a timer has freed, who waits for it hears in the next turn.
        let longest = if self.pump.hungry.is_empty() { self.sign.longest_sleep(now.0) } else { BREATH };
        let due = due.into_iter().flatten().min();
        due.map_or(longest, |at| longest.min(Duration::from_nanos(at.0.saturating_sub(now.0))))
    }

    fn completed(&mut self, completion: Completion) {
        let Completion { token, outcome, more } = completion;
        match (Task::of_token(token), outcome) {
            (_, Outcome::Woken) => {}
            (_, Outcome::Lost) => self.lost(),
            ((Task::Accept, key), outcome) => self.accepted(key, outcome, more),
            ((Task::Leg(side, attempt), key), Outcome::Ready(ready)) => {
                self.ready(key, side, attempt, ready, more);
            }
            // The watch was ended with its leg, or for another one.
            ((Task::Leg(..), _), Outcome::Failed(Errno::CANCELED)) => {}
            ((Task::Leg(side, _), key), _) => {
                if self.table.get(key).is_some_and(|conn| conn.token(key, side) == token) {
                    self.pump.stats.add(Counter::WatchBackoff, 1);
                    self.doors.handle_unwatched(self.pump.now, token);
                }
            }
        }
    }

    /// What is to be done at the listeners, and watches that are tried again.
    fn at_doors(&mut self) {
        while let Some(op) = self.doors.poll() {
            match op {
                DoorOp::Accept { number, turn } => {
                    if let Some(Some(listener)) = self.listeners.get(number as usize) {
                        self.pump.ring.accept(listener, accept_token(number, turn));
                    }
                }
                DoorOp::Cancel { number, turn } => self.pump.ring.cancel_accept(accept_token(number, turn)),
                DoorOp::Close { number, turn } => {
                    if let Some(listener) = self.listeners.get_mut(number as usize).and_then(Option::take) {
                        self.pump.ring.close_listener(listener, accept_token(number, turn));
                    }
                }
                DoorOp::Watch(token) => self.watch_again(token),
            }
        }
    }

    /// A watch that found no memory. Its leg may have gone meanwhile.
    fn watch_again(&mut self, token: u64) {
        let (Task::Leg(side, _), key) = Task::of_token(token) else { return };
        let Some(conn) = self.table.get(key) else { return };
        let is_its = conn.token(key, side) == token;
        if let Some(socket) = conn.socket(side).filter(|_| is_its) {
            self.pump.ring.watch(socket, token);
        }
    }

    /// The kernel had no memory for what it had to say: everything is asked anew.
    fn lost(&mut self) {
        tracing::warn!(
            "the kernel was out of memory and has lost what it had to tell the relay: all is asked anew"
        );
        self.pump.stats.add(Counter::Lost, 1);
        self.doors.handle_lost();
        self.at_doors();
        for ((key, conn), done) in self.table.iter().zip(1..) {
            for side in [Side::Client, Side::Server] {
                if let Some(socket) = conn.socket(side) {
                    let token = conn.token(key, side);
                    self.pump.ring.unwatch(token);
                    self.pump.ring.watch(socket, token);
                }
            }
            self.breathe_at(done, BREATHS_OF_ALL);
        }
    }

    /// A leg is ready for something. One that is gone, is not.
    fn ready(&mut self, key: Key, side: Side, attempt: u8, ready: Readiness, more: bool) {
        let Some(conn) = self.table.get_mut(key) else { return };
        let token = Task::Leg(side, attempt).token(key);
        let late = conn.token(key, side) != token;
        let Some(socket) = conn.socket(side).filter(|_| !late) else { return };
        if !more {
            self.pump.ring.watch(socket, token);
        }
        let leg = conn.leg(side);
        leg.ready.add(ready);
        if self.pump.ready(key, conn) {
            self.remove(key);
        }
    }

    /// Connections that had more to do than their turn allowed.
    fn go_on(&mut self) {
        for (key, done) in std::mem::take(&mut self.pump.again).into_iter().zip(1..) {
            let Some(conn) = self.table.get_mut(key) else { continue };
            if self.pump.ready(key, conn) {
                self.remove(key);
            }
            self.breathe_at(done, BREATHS);
        }
    }

    /// An event of a connection. Of one that is gone, it is late and changes nothing.
    fn happened(&mut self, key: Key, event: Event) {
        let Some(conn) = self.table.get_mut(key) else { return };
        if self.pump.drive(key, conn, Some(event)) {
            self.remove(key);
        }
    }

    /// What control says of the name of a connection, which may have gone.
    fn answered(&mut self, key: Key, answer: &Answer) {
        let conn = self.table.get_mut(key);
        self.pump.answered(conn, answer);
        if let Some(conn) = self.table.get_mut(key)
            && self.pump.drive(key, conn, None)
        {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(conn) = self.table.remove(key) {
            if conn.counted {
                self.sources.leave(&conn.client().ip().into());
            }
            self.pump.forget(key, conn);
        }
    }

    fn requests(&mut self) {
        while let Ok(request) = self.inbox.try_recv() {
            match request {
                Request::Flows { limit, reply } => {
                    let now = self.pump.now;
                    let all = self.table.iter().take(limit).zip(1..);
                    let flows = all.map(|((_, conn), done)| {
                        self.breathe_at(done, BREATHS_OF_ALL);
                        RelayFlow::of(conn, &self.snapshot.fib, self.pump.answers(), now)
                    });
                    let _ = reply.send(flows.collect());
                }
                Request::Reevaluate { reply } => {
                    let _ = reply.send(self.reevaluate());
                }
                Request::Accept => self.accept_beside(),
                Request::Stop { drain, linger } => self.stop(drain, linger),
                Request::Answer { key, answer } => self.answered(key, &answer),
            }
        }
    }
}

/// The rules.
impl Worker {
    fn take_snapshot(&mut self) {
        if let Some(snapshot) = self.subscriber.take() {
            self.snapshot = snapshot;
            self.share_hold_room();
        }
    }

    /// What is held for verdicts is bounded for all threads together: each has its part, of a receive at least.
    fn share_hold_room(&mut self) {
        let limits = &self.snapshot.policy.limits;
        self.pump.held_full = limits.held_full;
        if let Some(held) = limits.held {
            let share = usize::try_from(held).unwrap_or(usize::MAX).div_ceil(self.workers);
            self.pump.stocks.set_hold_room(share.max(CHUNK));
        }
    }

    /// Connections that wait for room to hold what their clients send, as far as there is some.
    fn feed(&mut self) {
        for _ in 0..self.pump.hungry.len() {
            let stocks = &self.pump.stocks;
            let next = self.pump.hungry.pop_front_if(|(_, octets)| stocks.has_hold_room(*octets));
            let Some((key, _)) = next else { return };
            let Some(conn) = self.table.get_mut(key) else { continue };
            conn.machine.handle_room(Side::Client);
            if self.pump.drive(key, conn, None) {
                self.remove(key);
            }
        }
    }

    fn reevaluate(&mut self) -> Tally {
        // What was published before the request counts for it.
        self.take_snapshot();
        let policy = self.snapshot.policy.clone();
        let mut tally = Tally::default();
        let keys: Vec<Key> = self.table.iter().map(|(key, _)| key).collect();
        for (key, done) in keys.into_iter().zip(1..) {
            self.breathe_at(done, BREATHS_OF_ALL);
            let Some(conn) = self.table.get_mut(key) else { continue };
            if conn.judge_again(self.pump.now, &policy, self.pump.answers(), &mut tally)
                && self.pump.drive(key, conn, None)
            {
                self.remove(key);
            }
        }
        tally
    }
}

/// Accepting.
impl Worker {
    /// Begins, while another process still accepts from the same listeners.
    fn accept_beside(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.doors.open();
            self.at_doors();
            let now = self.pump.now;
            self.anew = Some((now.saturating_add(ANEW), now.saturating_add(BESIDE)));
        }
    }

    fn accepted(&mut self, key: Key, outcome: Outcome, more: bool) {
        let came = match outcome {
            Outcome::Accepted(socket) => {
                self.opened(socket);
                Came::Client
            }
            Outcome::Failed(Errno::CANCELED) => Came::Cancelled,
            // Its listener is closed.
            Outcome::Failed(_) if self.listeners.get(key.index as usize).is_none_or(Option::is_none) => {
                Came::Cancelled
            }
            Outcome::Failed(errno) if is_gone(errno) => {
                self.pump.stats.add(Counter::AcceptGone, 1);
                Came::Client
            }
            Outcome::Failed(errno) => {
                tracing::debug!(%errno, "accepting pauses");
                self.pump.stats.add(Counter::AcceptBackoff, 1);
                Came::Short
            }
            Outcome::Ready(_) | Outcome::Woken | Outcome::Lost => return,
        };
        self.doors.handle(self.pump.now, key.index, key.generation, came, more);
        self.at_doors();
    }

    fn opened(&mut self, socket: OwnedFd) {
        let stats = &self.pump.stats;
        if matches!(self.ending, Ending::Resetting(_)) {
            return refuse(socket);
        }
        let Ok((server, client)) = sockopt::endpoints(&socket) else {
            return stats.add(Counter::AcceptGone, 1);
        };
        if is_own(server, self.config.listen) {
            stats.add(Counter::RefusedOwn, 1);
            return refuse(socket);
        }
        if self.table.len() >= self.connections {
            stats.add(Counter::RefusedFull, 1);
            return refuse(socket);
        }
        let (limits, source) = (self.snapshot.policy.limits.source, client.ip().into());
        let now = self.pump.now;
        if self.sources.admit(now, &source, &limits).is_err() {
            stats.add(Counter::RefusedSource, 1);
            return refuse(socket);
        }
        stats.add(Counter::Accepted, 1);
        self.pump.opened(client, server);
        let class = sockopt::syn_class(&socket).unwrap_or(0);
        let mut conn = self.connection(client, server, socket);
        (conn.class, conn.counted) = (class, limits.any());
        let key = self.table.insert(conn);
        let Some(conn) = self.table.get_mut(key) else { return };
        if self.pump.drive(key, conn, None) {
            return self.remove(key);
        }
        if let Some(socket) = conn.socket(Side::Client) {
            self.pump.ring.watch(socket, Task::Leg(Side::Client, 0).token(key));
        }
    }

    /// The port the client's SYN came in by is not known here; those that lead back to it are. Of several, one that has an
    /// intercept for it.
    fn side_of(&self, client: SocketAddr, destination: SocketAddr) -> Option<PortId> {
        let ports = self.snapshot.fib.ports(client.ip().to_canonical());
        let (to, port) = (destination.ip().to_canonical(), destination.port());
        let fits = |side: &PortId| self.snapshot.policy.intercept(*side, to, port).is_some();
        ports.iter().find(fits).or_else(|| ports.iter().next())
    }

    fn connection(&self, client: SocketAddr, destination: SocketAddr, socket: OwnedFd) -> Connection {
        let from = self.side_of(client, destination);
        let mut judge = Judge::new(self.snapshot.policy.clone(), from, client, destination);
        let mut machine = Relay::new(self.pump.now, self.limits.clone(), judge.start());
        if let Some(throttle) = judge.throttle() {
            machine.handle_throttle(throttle);
        }
        Connection::new(machine, judge, socket)
    }
}

/// The clock.
impl Worker {
    fn timers(&mut self) {
        let now = self.pump.now;
        while let Some(place) = self.pump.timers.pop(now) {
            if let Some(key) = self.table.key(place) {
                self.happened(key, Event::Timer);
            }
        }
        self.doors.handle_time(now);
        if let Some((_, until)) = self.anew.take_if(|(at, _)| *at <= now) {
            self.doors.again();
            self.anew = (now < until).then(|| (now.saturating_add(ANEW), until));
        }
        self.at_doors();
        self.end(now);
    }

    fn stop(&mut self, drain: Duration, linger: Duration) {
        let after = |time: Duration| {
            self.pump.now.saturating_add(Nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
        };
        let (until, closing) = (after(drain), after(linger.min(drain)));
        if !matches!(self.ending, Ending::Resetting(_)) {
            self.closing = Some(closing);
            self.ending = Ending::Draining(until);
        }
        self.end(self.pump.now);
    }

    fn end(&mut self, now: Nanos) {
        if self.closing.take_if(|at| *at <= now).is_some() {
            self.doors.close();
            self.at_doors();
        }
        if self.doors.is_over() {
            self.left.store(true, Ordering::Release);
        }
        if !matches!(self.ending, Ending::Draining(until) if until <= now) {
            return;
        }
        self.ending = Ending::Resetting(now.saturating_add(LAST));
        let keys: Vec<Key> = self.table.iter().map(|(key, _)| key).collect();
        for (key, done) in keys.into_iter().zip(1..) {
            self.breathe_at(done, BREATHS_OF_ALL);
            let Some(conn) = self.table.get_mut(key) else { continue };
            conn.machine.handle_stop();
            if self.pump.drive(key, conn, None) {
                self.remove(key);
            }
        }
    }

    /// Nothing is there, and nothing can come.
    fn is_empty(&self) -> bool {
        self.table.is_empty() && self.doors.is_over()
    }

    fn is_over(&self) -> bool {
        match self.ending {
            Ending::No => false,
            Ending::Draining(_) => self.closing.is_none() && self.is_empty(),
            Ending::Resetting(until) => self.is_empty() || self.now() >= until,
        }
    }
}

fn accept_token(number: u32, turn: u32) -> u64 {
    Task::Accept.token(Key { index: number, generation: turn })
}

fn pin(number: usize, cores: &[usize]) {
    let Some(&core) = cores.get(number % cores.len().max(1)) else { return };
    if let Err(error) = affinity::pin_to_cpu(core) {
        tracing::warn!(core, %error, "a relay thread is not pinned: no such core, or not allowed to this process");
    }
}
