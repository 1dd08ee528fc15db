//! The relay's loop: wait in the ring, hand each completion to its connection, let the timers come.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};
use weir_core::ids::{Nanos, PortId};
use weir_core::reevaluate::Tally;
use weir_core::relay::{Event, Judge, Limits, Relay, Side};
use weir_core::sources::Sources;
use weir_core::verify::{Answer, Answers};
use weir_sys::uring::{Completion, Errno, Key, Outcome, Readiness, Ring, Slab, UringError, Waker};
use weir_sys::{affinity, clock, sockopt};

use super::conn::{Connection, Task};
use super::flows::RelayFlow;
use super::handle::{Hooks, RelayConfig};
use super::listener::{is_gone, is_own};
use super::pump::{Asking, Pump};
use super::stats::{Counter, Stats};
use super::timers::Timers;
use crate::heartbeat::{BREATH, Sign};
use crate::random;
use crate::snapshot::{Snapshot, Subscriber};

/// How long accepting pauses when descriptors or memory are short.
const BACKOFF: Nanos = Nanos::from_millis(100);
/// Operations that are submitted in one system call.
const ENTRIES: u32 = 1024;
/// How often accepting begins anew while another process accepts, too; and how long it may.
const ANEW: Nanos = Nanos::from_millis(500);
const BESIDE: Nanos = Nanos::from_secs(60);
/// Sources that each thread can count.
const SOURCES: usize = 65_536;
/// How long connections that were reset at the end may take to close.
const LAST: Nanos = Nanos::from_secs(2);

/// What a worker is made from.
pub(super) struct Setup {
    pub number: usize,
    pub config: RelayConfig,
    pub connections: u32,
    /// How many threads share the sources.
    pub workers: u32,
    /// Another process serves the listeners until [`Request::Accept`].
    pub takes_over: bool,
    pub listeners: Vec<OwnedFd>,
    pub snapshot: Arc<Snapshot>,
    pub subscriber: Subscriber,
    pub hooks: Arc<Hooks>,
    pub stats: Arc<Stats>,
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
    workers: u32,
    sources: Sources,
    listeners: Vec<OwnedFd>,
    table: Slab<Connection>,
    pump: Pump,
    snapshot: Arc<Snapshot>,
    subscriber: Subscriber,
    inbox: Receiver<Request>,
    sign: Sign,
    /// Accepting pauses until then, on these listeners.
    paused: Option<(Nanos, Vec<usize>)>,
    /// Accepting has not begun.
    waits: bool,
    /// When the listeners are closed.
    closing: Option<Nanos>,
    /// Accepts under way: until they have ended, a connection may come of them.
    accepting: usize,
    /// While another process may accept beside this one: when accepting begins anew, and until when it does. A client's coming wakes one
    /// of the two, and that may be the one which is about to leave.
    anew: Option<(Nanos, Nanos)>,
    ending: Ending,
}

impl Worker {
    /// On the thread that will run it.
    pub fn new(setup: Setup) -> Result<Self, UringError> {
        let Setup { number, config, connections, workers, listeners, .. } = setup;
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
            workers,
            sources: Sources::new(SOURCES, random::seed()),
            listeners,
            table: Slab::new(),
            pump,
            snapshot: setup.snapshot,
            subscriber: setup.subscriber,
            inbox: setup.inbox,
            sign: setup.sign,
            paused: None,
            waits: setup.takes_over,
            closing: None,
            accepting: 0,
            anew: None,
            ending: Ending::No,
        })
    }

    pub fn waker(&self) -> Waker {
        self.pump.ring.waker()
    }

    /// Until it is told to stop, or the ring fails.
    pub fn run(&mut self) {
        if !self.waits {
            (0..self.listeners.len()).for_each(|number| self.accept(number));
        }
        let mut completions = Vec::new();
        while !self.is_over() {
            self.sign.breathe(clock::monotonic_ns());
            if let Err(error) = self.pump.ring.wait(Some(self.timeout()), &mut completions) {
                tracing::error!(%error, "the relay's ring failed: this thread of the relay ends");
                return;
            }
            self.pump.now = self.now();
            self.take_snapshot();
            for completion in completions.drain(..) {
                self.completed(completion);
            }
            self.go_on();
            self.timers();
            self.requests();
            self.pump.publish();
        }
    }

    fn now(&self) -> Nanos {
        // One clock for all threads: connections of a rule share its bandwidth.
        Nanos(clock::monotonic_ns())
    }

    /// How long there is nothing to do but for what completes. Deadlines are looked at with each sign of life.
    fn timeout(&self) -> Duration {
        if self.pump.again.is_empty() { BREATH } else { Duration::ZERO }
    }

    fn completed(&mut self, completion: Completion) {
        let Completion { token, outcome, more } = completion;
        match (Task::of_token(token), outcome) {
            (_, Outcome::Woken) => {}
            ((Task::Accept, key), outcome) => self.accepted(key.index as usize, outcome, more),
            ((Task::Leg(side, attempt), key), Outcome::Ready(ready)) => {
                self.ready(key, side, attempt, ready, more);
            }
            // The watch was ended with its leg, or memory was short.
            ((Task::Leg(side, attempt), key), _) => {
                self.ready(key, side, attempt, Readiness::default(), more);
            }
        }
    }

    /// A leg is ready for something. One that is gone, is not.
    fn ready(&mut self, key: Key, side: Side, attempt: u8, ready: Readiness, more: bool) {
        let Some(conn) = self.table.get_mut(key) else { return };
        let late = side == Side::Server
            && Task::Leg(side, conn.attempts).token(key) != Task::Leg(side, attempt).token(key);
        let Some(socket) = conn.socket(side).filter(|_| !late) else { return };
        if !more {
            self.pump.ring.watch(socket, Task::Leg(side, attempt).token(key));
        }
        let leg = conn.leg(side);
        leg.ready.add(ready);
        if self.pump.ready(key, conn) {
            self.remove(key);
        }
    }

    /// Connections that had more to do than their turn allowed.
    fn go_on(&mut self) {
        for key in std::mem::take(&mut self.pump.again) {
            let Some(conn) = self.table.get_mut(key) else { continue };
            if self.pump.ready(key, conn) {
                self.remove(key);
            }
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
                    let flows = self
                        .table
                        .iter()
                        .take(limit)
                        .map(|(_, conn)| RelayFlow::of(conn, self.pump.answers(), now));
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
        }
    }

    fn reevaluate(&mut self) -> Tally {
        // What was published before the request counts for it.
        self.take_snapshot();
        let policy = self.snapshot.policy.clone();
        let mut tally = Tally::default();
        let keys: Vec<Key> = self.table.iter().map(|(key, _)| key).collect();
        for key in keys {
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
            (0..self.listeners.len()).for_each(|number| self.accept(number));
            let now = self.pump.now;
            self.anew = Some((now.saturating_add(ANEW), now.saturating_add(BESIDE)));
        }
    }

    fn accept(&mut self, number: usize) {
        if let Some(listener) = self.listeners.get(number) {
            self.pump.ring.accept(listener, accept_token(number));
            self.accepting += 1;
        }
    }

    fn accepted(&mut self, number: usize, outcome: Outcome, more: bool) {
        let mut again = !more;
        self.accepting -= usize::from(!more);
        match outcome {
            Outcome::Accepted(socket) => self.opened(socket),
            // The listeners are closed.
            Outcome::Failed(_) if self.listeners.is_empty() => {}
            Outcome::Failed(Errno::CANCELED) => {}
            Outcome::Failed(errno) if is_gone(errno) => self.pump.stats.add(Counter::AcceptGone, 1),
            Outcome::Failed(errno) => {
                tracing::debug!(%errno, "accepting pauses");
                again = false;
                self.pause(number);
            }
            Outcome::Ready(_) | Outcome::Woken => {}
        }
        if again && !self.listeners.is_empty() {
            self.accept(number);
        }
    }

    fn pause(&mut self, number: usize) {
        self.pump.stats.add(Counter::AcceptBackoff, 1);
        let until = self.pump.now.saturating_add(BACKOFF);
        let (_, numbers) = self.paused.get_or_insert_with(|| (until, Vec::new()));
        numbers.push(number);
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
        if self.sources.admit(now, &source, &limits.part_of(self.workers)).is_err() {
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
        if let Some((_, numbers)) = self.paused.take_if(|(until, _)| *until <= now) {
            for number in numbers {
                self.accept(number);
            }
        }
        if let Some((_, until)) = self.anew.take_if(|(at, _)| *at <= now) {
            for number in 0..self.listeners.len() {
                self.pump.ring.cancel_accept(accept_token(number));
            }
            self.anew = (now < until).then(|| (now.saturating_add(ANEW), until));
        }
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
            for (number, listener) in self.listeners.drain(..).enumerate() {
                self.pump.ring.close_listener(listener, accept_token(number));
            }
            self.paused = None;
        }
        if !matches!(self.ending, Ending::Draining(until) if until <= now) {
            return;
        }
        self.ending = Ending::Resetting(now.saturating_add(LAST));
        let keys: Vec<Key> = self.table.iter().map(|(key, _)| key).collect();
        for key in keys {
            let Some(conn) = self.table.get_mut(key) else { continue };
            conn.machine.handle_stop();
            if self.pump.drive(key, conn, None) {
                self.remove(key);
            }
        }
    }

    /// Nothing is there, and nothing can come.
    fn is_empty(&self) -> bool {
        self.table.is_empty() && self.accepting == 0
    }

    fn is_over(&self) -> bool {
        match self.ending {
            Ending::No => false,
            Ending::Draining(_) => self.closing.is_none() && self.is_empty(),
            Ending::Resetting(until) => self.is_empty() || self.now() >= until,
        }
    }
}

fn accept_token(number: usize) -> u64 {
    Task::Accept.token(Key { index: number as u32, generation: 0 })
}

/// RST rather than FIN: the client knows at once that nobody serves it.
fn refuse(socket: OwnedFd) {
    // If it cannot be set the client gets FIN, which ends the connection as well.
    let _ = sockopt::set_reset_on_close(&socket);
}

fn pin(number: usize, cores: &[usize]) {
    let Some(&core) = cores.get(number % cores.len().max(1)) else { return };
    if let Err(error) = affinity::pin_to_cpu(core) {
        tracing::warn!(core, %error, "a relay thread is not pinned: no such core, or not allowed to this process");
    }
}
