//! Starting, asking and stopping the relay.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use crossbeam::queue::ArrayQueue;
use thiserror::Error;
use weir_core::reevaluate::Tally;
use weir_core::relay::Limits;
use weir_core::sources::{SOURCES, Sources};
use weir_core::verify::Answer;
use weir_sys::gate::{Gate, GatePulse};
use weir_sys::keeper::SignPlace;
use weir_sys::sockopt::Upkeep;
use weir_sys::steering::SteeringError;
use weir_sys::uring::{Key, UringError, Waker};

use super::flows::RelayFlow;
use super::listener;
use super::ring::{Request, Setup, Worker};
use super::stats::{Counters, Stats};
use crate::gateway::Failures;
use crate::heartbeat::{self, Heartbeat, Sign, Stalls};
use crate::questions::Questions;
use crate::random;
use crate::snapshot::{Publisher, Snapshot};

/// How long a worker may take to answer a question.
const ANSWER: Duration = Duration::from_secs(2);
/// How long the first sign of life may take.
const FIRST_BEAT: Duration = Duration::from_secs(5);

/// What the relay is started with.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The port that nft's tproxy sends to.
    pub listen: u16,
    /// Threads, each with its own ring and listeners.
    pub workers: usize,
    /// Cores to pin workers to, in turn; empty: not pinned.
    pub cores: Vec<usize>,
    /// The most connections of the whole relay; more are reset.
    pub connections: u32,
    /// Of each connection. It has memory for octets only while some wait.
    pub limits: Limits,
    /// What the kernel looks after on both legs' sockets.
    pub upkeep: Upkeep,
    /// The listeners' queue of connections not yet accepted.
    pub backlog: i32,
    /// Where it tells of servers of pools that failed.
    pub failures: Failures,
    /// Where it asks about names; none: every name is unknown.
    pub questions: Option<Arc<Questions>>,
    /// A sign of life of the relay's threads that is older is none.
    pub heartbeat: Duration,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            listen: 12377,
            workers: 1,
            cores: Vec::new(),
            connections: 8192,
            limits: Limits::default(),
            upkeep: Upkeep::default(),
            backlog: 4096,
            failures: Arc::new(ArrayQueue::new(64)),
            questions: None,
            heartbeat: heartbeat::LIMIT,
        }
    }
}

/// Called with the two ends of a leg: where it comes from and where it goes.
pub type Hook = Box<dyn Fn(SocketAddr, SocketAddr) + Send + Sync>;

/// What others want to know of connections. Called by the relay's threads: must be quick and must not block.
pub struct Hooks {
    /// A connection was accepted, or its leg to the server comes from another port or goes to another server: before any
    /// segment of that leg. Not called for a leg that comes from an address of this box, which is not intercepted.
    pub opened: Hook,
    /// Once for each call of `opened`.
    pub closed: Hook,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { opened: Box::new(|_, _| {}), closed: Box::new(|_, _| {}) }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

/// Why the relay does not run.
#[derive(Debug, Error)]
pub enum RelayError {
    #[error(transparent)]
    Uring(#[from] UringError),
    #[error("the relay cannot listen on {address}: {source}; {advice}")]
    Listen { address: SocketAddr, source: std::io::Error, advice: &'static str },
    #[error("the relay's thread {name} cannot be started: {source}")]
    Thread { name: String, source: std::io::Error },
    #[error("the gate of the relay's listeners: {0}")]
    Gate(#[from] SteeringError),
    #[error("the gate cannot be put before the relay's listeners: {0}")]
    Guard(std::io::Error),
    #[error("the relay's thread {name} ended while it started")]
    Died { name: String },
}

/// One worker, from outside.
struct Member {
    requests: Sender<Request>,
    waker: Waker,
    /// It accepts nothing any more.
    left: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// The running relay. Dropping it stops it at once.
pub struct RelayHandle {
    members: Vec<Member>,
    stats: Arc<Stats>,
    gate: GatePulse,
    /// Ends before the threads do.
    heartbeat: Option<Heartbeat>,
    /// For another process to take over.
    listeners: Mutex<Vec<OwnedFd>>,
    backlog: i32,
    upkeep: Upkeep,
    guard: Mutex<Gate>,
}

impl fmt::Debug for RelayHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayHandle").field("workers", &self.members.len()).finish_non_exhaustive()
    }
}

impl RelayHandle {
    /// Opens the listeners and starts the threads, in the network namespace of the calling thread.
    ///
    /// `snapshot` holds the rules to begin with, `publisher` brings later ones.
    pub fn start(
        config: &RelayConfig,
        snapshot: &Arc<Snapshot>,
        publisher: &mut Publisher,
        hooks: Hooks,
    ) -> Result<Self, RelayError> {
        Self::take_over(config, snapshot, publisher, hooks, Vec::new())
    }

    /// As [`Self::start`], with listeners of another process ([`Self::listeners`]), which serves them until this one does, from
    /// [`Self::accept`] on: no connection is lost in between, also of those that wait in their queues; and none when this process
    /// ends before that.
    pub fn take_over(
        config: &RelayConfig,
        snapshot: &Arc<Snapshot>,
        publisher: &mut Publisher,
        hooks: Hooks,
        inherited: Vec<OwnedFd>,
    ) -> Result<Self, RelayError> {
        let workers = config.workers.max(1);
        let takes_over = !inherited.is_empty();
        // All listeners before any thread: a connection must not arrive at half a group and be lost with it.
        let listeners = listener::open_all(config, inherited)?;
        let mut gate = Gate::load(config.heartbeat)?;
        let pulse = gate.pulse();
        if !takes_over {
            guard(&mut gate, &listeners)?;
        }
        let hooks = Arc::new(hooks);
        let mut handle = Self {
            members: Vec::new(),
            stats: Arc::default(),
            gate: pulse.clone(),
            heartbeat: None,
            listeners: Mutex::new(duplicates(&listeners).map_err(RelayError::Guard)?),
            backlog: config.backlog,
            upkeep: config.upkeep,
            guard: Mutex::new(gate),
        };
        let sources = Arc::new(Sources::new(SOURCES, random::seed()));
        let signs: Vec<Sign> = (0..workers).map(|_| Sign::default()).collect();
        for (number, listeners) in listeners.into_iter().enumerate() {
            let (requests, inbox) = unbounded();
            let setup = Setup {
                number,
                config: config.clone(),
                connections: config.connections.div_ceil(workers as u32).max(1),
                workers,
                sources: sources.clone(),
                takes_over,
                listeners,
                snapshot: snapshot.clone(),
                subscriber: publisher.subscribe(),
                hooks: hooks.clone(),
                stats: handle.stats.clone(),
                left: Arc::default(),
                sign: signs.get(number).cloned().unwrap_or_default(),
                inbox,
            };
            handle.members.push(spawn(setup, requests)?);
        }
        let tell = move |sign| {
            if let Err(error) = pulse.beat(sign) {
                tracing::error!(%error, "the gate of the relay's listeners");
            }
        };
        let heart = Heartbeat::start("weir-relay-beat", config.heartbeat, signs, Arc::default(), tell);
        let name = || "weir-relay-beat".to_owned();
        let heart = heart.map_err(|source| RelayError::Thread { name: name(), source })?;
        // Until then connections pass the listeners by.
        if !heart.wait(FIRST_BEAT) {
            return Err(RelayError::Thread { name: name(), source: io::ErrorKind::TimedOut.into() });
        }
        handle.heartbeat = Some(heart);
        Ok(handle)
    }

    /// Serves the listeners that were taken over; the process that had them may leave them now. One that has served them all along
    /// goes on.
    ///
    /// # Errors
    /// A listener of its own cannot be had. Those of the other process are served all the same.
    pub fn accept(&self) -> Result<(), RelayError> {
        let listens = listener::listen(&self.own_listeners(), self.backlog);
        // Until now the other process's sign of life counted.
        let claims = self.claim().map_err(RelayError::Guard);
        for member in &self.members {
            member.ask(Request::Accept);
        }
        listens.and(claims)
    }

    /// What was counted, of all workers.
    pub fn counters(&self) -> Counters {
        self.stats.read()
    }

    /// New connections that were forwarded since no thread of the relay, or not every one, lived.
    pub fn passed_by(&self) -> u64 {
        self.gate.passed_by()
    }

    /// Where its sign of life is.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn sign_place(&self) -> std::io::Result<SignPlace> {
        self.gate.place()
    }

    /// How often that was so, and is not any more.
    pub fn stalls(&self) -> Stalls {
        self.heartbeat.as_ref().map(Heartbeat::stalls).unwrap_or_default()
    }

    /// At most `limit` connections that exist now.
    pub fn flows(&self, limit: usize) -> Vec<RelayFlow> {
        let mut flows = Vec::new();
        for member in &self.members {
            let (reply, answer) = bounded(1);
            member.ask(Request::Flows { limit: limit - flows.len(), reply });
            flows.extend(answer.recv_timeout(ANSWER).unwrap_or_default());
        }
        flows
    }

    /// All connections that exist now, waiting at most `patience` for them; and how many threads have not told theirs.
    pub fn all_flows(&self, patience: Duration) -> (Vec<RelayFlow>, usize) {
        let deadline = Instant::now() + patience;
        let ask = |member: &Member| {
            let (reply, answer) = bounded(1);
            member.ask(Request::Flows { limit: usize::MAX, reply });
            answer
        };
        let asked: Vec<Receiver<_>> = self.members.iter().map(ask).collect();
        let (mut flows, mut silent) = (Vec::new(), 0);
        for answer in asked {
            match answer.recv_deadline(deadline) {
                Ok(of_thread) => flows.extend(of_thread),
                // One that has ended has none.
                Err(RecvTimeoutError::Disconnected) => {}
                Err(RecvTimeoutError::Timeout) => silent += 1,
            }
        }
        (flows, silent)
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.members.len()
    }

    /// Judges all connections again by the policy that was published last, and ends those that it refuses. `None`: some
    /// thread has not answered within `patience`; it goes on all the same.
    pub fn reevaluate(&self, patience: Duration) -> Option<Tally> {
        let (reply, answer) = unbounded();
        for member in &self.members {
            member.ask(Request::Reevaluate { reply: reply.clone() });
        }
        drop(reply);
        let deadline = Instant::now() + patience;
        let mut sum = Tally::default();
        for _ in &self.members {
            sum.add(&answer.recv_deadline(deadline).ok()?);
        }
        Some(sum)
    }

    /// Gives a thread the answer to a question of its.
    pub fn answer(&self, thread: usize, key: Key, answer: Answer) {
        if let Some(member) = self.members.get(thread) {
            member.ask(Request::Answer { key, answer });
        }
    }

    /// Whether every thread runs.
    pub fn is_alive(&self) -> bool {
        self.members.iter().all(|member| !member.thread.is_finished())
    }

    /// The listeners, for [`Self::take_over`] in another process.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn listeners(&self) -> io::Result<Vec<OwnedFd>> {
        self.own_listeners().iter().map(OwnedFd::try_clone).collect()
    }

    /// Puts the gate of this process before the listeners, where another's was, and has the kernel look after what they accept as is
    /// wanted here.
    ///
    /// # Errors
    /// None is expected.
    pub fn claim(&self) -> io::Result<()> {
        let mut gate = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        let listeners = self.own_listeners();
        listeners.iter().try_for_each(|listener| gate.guard(listener))?;
        listener::look_after(&listeners, &self.upkeep)
    }

    fn own_listeners(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections run for at most `drain`, then what is left is reset: begins that, and waits for nothing. Until `linger` is
    /// over, clients whose handshake is under way are still accepted.
    pub fn begin_stop(&self, drain: Duration, linger: Duration) {
        self.own_listeners().clear();
        for member in &self.members {
            member.ask(Request::Stop { drain, linger });
        }
    }

    /// Whether nothing that comes from now on comes to this relay, which was told to stop.
    pub fn has_left(&self) -> bool {
        self.members.iter().all(|member| member.thread.is_finished() || member.left.load(Ordering::Acquire))
    }

    /// Whether all threads have ended.
    pub fn is_over(&self) -> bool {
        self.members.iter().all(|member| member.thread.is_finished())
    }

    /// Stops accepting, lets connections run for at most `drain`, resets the rest, and waits for the threads.
    pub fn stop(mut self, drain: Duration) {
        self.end(drain);
    }

    fn end(&mut self, drain: Duration) {
        drop(self.heartbeat.take());
        self.own_listeners().clear();
        for member in &self.members {
            member.ask(Request::Stop { drain, linger: Duration::ZERO });
        }
        for member in self.members.drain(..) {
            if member.thread.join().is_err() {
                tracing::error!("a relay thread panicked");
            }
        }
    }
}

impl Drop for RelayHandle {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

impl Member {
    fn ask(&self, request: Request) {
        // A worker that ended answers nothing: its callers see no flows.
        let _ = self.requests.send(request);
        self.waker.wake();
    }
}

/// Puts the gate before all listeners: each of an address family stands for those that share its port. They keep the
/// program, and the program its map.
fn guard(gate: &mut Gate, listeners: &[Vec<OwnedFd>]) -> Result<(), RelayError> {
    let first = listeners.first().into_iter().flatten();
    first.into_iter().try_for_each(|listener| gate.guard(listener).map_err(RelayError::Guard))
}

fn duplicates(listeners: &[Vec<OwnedFd>]) -> io::Result<Vec<OwnedFd>> {
    listeners.iter().flatten().map(OwnedFd::try_clone).collect()
}

fn spawn(setup: Setup, requests: Sender<Request>) -> Result<Member, RelayError> {
    let name = format!("weir-relay-{}", setup.number);
    let left = setup.left.clone();
    let (ready, readiness): (Sender<Result<Waker, UringError>>, Receiver<_>) = bounded(1);
    let body = move || match Worker::new(setup) {
        Ok(mut worker) => {
            let _ = ready.send(Ok(worker.waker()));
            worker.run();
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    };
    let thread = std::thread::Builder::new()
        .name(name.clone())
        .spawn(body)
        .map_err(|source| RelayError::Thread { name: name.clone(), source })?;
    let waker = readiness.recv().map_err(|_| RelayError::Died { name })??;
    Ok(Member { requests, waker, left, thread })
}
