//! Puts the dataplane together: the memory area, a socket for each queue of each port, a thread for each worker, and
//! the heartbeat that tells the steering program that all of them are alive.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use crossbeam::queue::ArrayQueue;
use weir_core::express::Adopted;
use weir_core::flow::key::FlowHasher;
use weir_core::ids::{MAX_PORTS, Nanos, PoolId, PortId, ServerId};
use weir_core::pipeline::{Config, Pipeline};
use weir_core::policy::Policy;
use weir_core::reevaluate::Tally;
use weir_core::sources::{SOURCES, Sources};
use weir_core::tcp::cookie::Cookies;
use weir_core::verify::Answer;
use weir_sys::memory::prefer_huge_pages;
use weir_sys::steering::{CookieSwitch, Pulse, Steering, SteeringError};
use weir_sys::waiter::{Waiter, Waker};
use weir_sys::xsk::{Area, Frame, Mode, Queue, XskError};
use weir_sys::{affinity, clock};

use crate::driver::Driver as _;
use crate::driver::afxdp::{AfXdp, XskFrame};
use crate::express::{Feeder, Ways, carried_elsewhere, share_out, tell_of_strays};
use crate::flood::{self, Flood};
use crate::handoff::Handoff;
use crate::heartbeat::{Heartbeat, Stalls};
use crate::needs::{frame_size, pipeline_config, rooms};
use crate::punt::Punt;
use crate::questions::Questions;
use crate::random;
use crate::rooms::Rooms;
use crate::snapshot::{Publisher, Snapshot};
use crate::sockets::{open_queue, open_queues, port_states};
use crate::stats::{Summary, WorkerStats};
use crate::thread::{self, Arrivals, Idle};
use crate::worker::{Command, Parts, Worker};

mod listing;

pub use crate::needs::{FRAME_SIZES, Needs, largest_packet};

/// Entries of each ring.
pub(crate) const RING: u32 = 2048;
/// Frames for each queue: what fills its receive ring, and as many on their way.
pub const FRAMES_PER_QUEUE: usize = 2 * RING as usize;
/// Crossings that wait for a worker at most.
const MAILBOX: usize = 4096;
/// Answers about names that wait for a worker at most.
const ANSWERS: usize = 8192;
/// Octets of a frame that the driver keeps for itself (XDP_PACKET_HEADROOM).
pub(crate) const HEADROOM: usize = 256;

/// One port to own.
#[derive(Clone, Debug)]
pub struct PortSpec {
    pub device: String,
    pub ifindex: u32,
    pub queues: Vec<u32>,
    /// As the configuration spells it, for reports.
    pub asked: &'static str,
    pub mode: Mode,
    /// Its peer may leave partial checksums (veth, virtio, TUN/TAP).
    pub partial_checksums: bool,
    /// Largest IP packet.
    pub mtu: u32,
    /// Octets of the steps in which the driver counts the size of a frame that it receives into.
    pub grain: usize,
}

/// A server of a pool that did not take a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedServer {
    pub pool: PoolId,
    pub server: ServerId,
    /// The epoch since which they have these numbers.
    pub numbered: u32,
}

/// For whoever looks after them.
pub type Failures = Arc<ArrayQueue<FailedServer>>;

/// What the dataplane is to be.
#[derive(Clone, Debug)]
pub struct Spec {
    /// In the order of their [`PortId`]s.
    pub ports: Vec<PortSpec>,
    /// Cores that workers are pinned to, in turn; none: not pinned.
    pub cores: Vec<usize>,
    pub idle: Idle,
    /// Connections that the box has room for.
    pub flows: usize,
    /// Connections on the kernel road that are remembered.
    pub kernel_flows: usize,
    /// The most octets held for one verdict.
    pub hold_bytes: usize,
    /// Where workers tell of servers that failed.
    pub failures: Failures,
    /// Where workers ask about names; none: every name is unknown.
    pub questions: Option<Arc<Questions>>,
    /// Connections that can wait for a verdict at the same time, all workers together.
    pub holds: usize,
    /// The express lane, where there is one.
    pub express: Option<Arc<Ways>>,
    /// What it carries already.
    pub adopted: Arc<[Adopted]>,
    /// The window (octets) that every intercept which answers can hold.
    pub answer_window: u16,
    /// A sign of life of the workers that is older is none.
    pub heartbeat: Duration,
}

/// What a port got.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PortState {
    pub device: String,
    pub queues: Vec<u32>,
    /// The mode that the configuration asks for.
    pub asked: &'static str,
    /// True when every socket of it is zero-copy.
    pub zero_copy: bool,
}

/// Why the dataplane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "device {device}: an MTU of {mtu} does not fit a frame; lower it to {most} (ip link set {device} mtu {most})"
    )]
    Mtu { device: String, mtu: u32, most: usize },
    #[error("no port has a queue: list one in `queues` of a [[port]]")]
    NoQueue,
    #[error(transparent)]
    Xsk(#[from] XskError),
    #[error(transparent)]
    Steering(#[from] SteeringError),
    #[error("a worker's thread: {0}")]
    Thread(io::Error),
}

/// The running dataplane.
#[derive(Debug)]
pub struct Dataplane {
    threads: Vec<JoinHandle<Vec<XskFrame>>>,
    heartbeat: Option<Heartbeat>,
    pulse: Pulse,
    /// How often packets may have gone past the workers for a while: before the first sign of life, and whenever one was late.
    gaps: Arc<AtomicU64>,
    flood: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    stats: Vec<Arc<WorkerStats>>,
    commands: Vec<Arc<ArrayQueue<Command>>>,
    arrivals: Vec<Arrivals>,
    answers: Vec<Arc<ArrayQueue<Answer>>>,
    handoff: Arc<Handoff<XskFrame>>,
    rooms: Rooms<XskFrame>,
    area: Arc<Area>,
    /// Which queue of every port each worker has.
    queues: Vec<u32>,
    ports: Vec<PortState>,
    frames: usize,
}

impl Dataplane {
    /// Opens the sockets (the steering program must be on the ports) and starts the workers, which read `first` and
    /// then what `publisher` brings. Steering is told of the sockets; the caller enables it.
    ///
    /// # Errors
    /// [`StartError`]; everything that was opened is closed again.
    pub fn start(
        spec: &Spec,
        steering: &Steering,
        punt: &Punt,
        publisher: &mut Publisher,
        first: &Snapshot,
    ) -> Result<Self, StartError> {
        let frame_size = frame_size(&spec.ports)?;
        let queues: BTreeSet<u32> = spec.ports.iter().flat_map(|p| p.queues.iter().copied()).collect();
        if queues.is_empty() {
            return Err(StartError::NoQueue);
        }
        let sockets: usize = spec.ports.iter().map(|p| p.queues.len()).sum();
        let frames = sockets * FRAMES_PER_QUEUE;
        let (area, mut pool) = Area::new(frames, frame_size, true)?;
        let mut ports = port_states(&spec.ports);
        let mut drivers = Vec::new();
        for queue in &queues {
            drivers.push(open_queues(spec, steering, &area, *queue, &mut ports, &mut pool)?);
        }
        let waiters: Vec<Waiter> =
            drivers.iter().map(|_| Waiter::new()).collect::<Result<_, _>>().map_err(StartError::Thread)?;
        let wakers: Vec<Waker> = waiters.iter().map(Waiter::waker).collect();
        let handoff = Handoff::new(wakers, MAILBOX, frames);
        let mut plane = Self {
            rooms: rooms(spec, frames, drivers.len()),
            threads: Vec::new(),
            heartbeat: None,
            pulse: steering.pulse(),
            gaps: Arc::default(),
            flood: None,
            stop: Arc::new(AtomicBool::new(false)),
            stats: Vec::new(),
            commands: Vec::new(),
            arrivals: Vec::new(),
            answers: Vec::new(),
            handoff,
            area,
            queues: queues.into_iter().collect(),
            ports,
            frames,
        };
        let cookies_until = Arc::new(AtomicU64::new(0));
        let make = Make {
            spec,
            cookies_until: cookies_until.clone(),
            queues: plane.queues.clone(),
            punt,
            first,
            seed: random::seed(),
            sources: Arc::new(Sources::new(SOURCES, random::seed())),
            secret: random::secret(),
            failures: spec.failures.clone(),
        };
        plane.start_workers(&make, drivers.into_iter().zip(waiters).collect(), pool, publisher)?;
        tell_of_strays(spec.express.as_deref());
        plane.start_flood(spec, steering.cookies(), Cookies::new(make.secret), cookies_until)?;
        plane.start_heartbeat(spec.heartbeat)?;
        Ok(plane)
    }

    fn start_workers(
        &mut self,
        make: &Make<'_>,
        drivers: Vec<(AfXdp, Waiter)>,
        mut pool: Vec<Frame>,
        publisher: &mut Publisher,
    ) -> Result<(), StartError> {
        let share = self.frames / drivers.len();
        let (mut own, mut all) = (Vec::new(), Vec::new());
        for (driver, _) in &drivers {
            let rest = pool.len().saturating_sub(share.saturating_sub(driver.in_rings().fill));
            own.push(pool.split_off(rest).into_iter().map(XskFrame).collect::<Vec<_>>());
            all.push(own.last().map_or(0, Vec::len) + driver.in_rings().fill);
        }
        let made = own.into_iter().zip(make.pipelines(&all)).enumerate();
        for ((driver, waiter), (id, (own, pipeline))) in drivers.into_iter().zip(made) {
            self.start_worker(make, (id, pipeline), driver, waiter, own, publisher)?;
        }
        Ok(())
    }

    /// Watches for floods of SYNs, which the steering program then answers.
    fn start_flood(
        &mut self,
        spec: &Spec,
        switch: CookieSwitch,
        cookies: Cookies,
        until: Arc<AtomicU64>,
    ) -> Result<(), StartError> {
        let devices = spec.ports.iter().map(|port| port.device.clone()).collect();
        let mtu = spec.ports.iter().map(|port| port.mtu).min().unwrap_or(1500);
        let flood = Flood::new(switch, cookies, flood::promise(mtu, spec.answer_window), until, devices);
        let thread = flood.watch(self.stats.clone(), self.stop.clone());
        self.flood = Some(thread.map_err(StartError::Thread)?);
        Ok(())
    }

    fn start_worker(
        &mut self,
        make: &Make<'_>,
        (id, pipeline): (usize, Pipeline<XskFrame>),
        driver: AfXdp,
        waiter: Waiter,
        frames: Vec<XskFrame>,
        publisher: &mut Publisher,
    ) -> Result<(), StartError> {
        let stats = Arc::new(WorkerStats::default());
        let commands = Arc::new(ArrayQueue::new(16));
        let arrivals = Arrivals::new(ArrayQueue::new(MAX_PORTS));
        let answers = Arc::new(ArrayQueue::new(ANSWERS));
        let parts = Parts {
            id,
            pipeline,
            driver,
            hasher: FlowHasher::new(make.seed),
            handoff: self.handoff.clone(),
            punt: make.punt.clone(),
            snapshots: publisher.subscribe(),
            commands: commands.clone(),
            stats: stats.clone(),
            failures: make.failures.clone(),
            gaps: self.gaps.clone(),
            cookies_until: make.cookies_until.clone(),
            questions: make.spec.questions.clone(),
            answers: answers.clone(),
            express: make.spec.express.clone().map(|ways| Feeder::new(ways, id as u8)),
            rooms: self.rooms.of(id),
            frames,
            senders: make.senders(),
        };
        let core = make.spec.cores.get(id % make.spec.cores.len().max(1)).copied();
        let (idle, stop, arriving) = (make.spec.idle, self.stop.clone(), arrivals.clone());
        let sign = stats.breathed.clone();
        let body = move || {
            if let Some(core) = core
                && let Err(error) = affinity::pin_to_cpu(core)
            {
                tracing::warn!(core, %error, "the worker is not pinned");
            }
            affinity::favour();
            sign.begin();
            thread::run(Worker::new(parts), waiter, &arriving, idle, (&sign, &stop))
        };
        let thread = std::thread::Builder::new().name(format!("weir-worker-{id}")).spawn(body);
        self.threads.push(thread.map_err(StartError::Thread)?);
        self.stats.push(stats);
        self.commands.push(commands);
        self.arrivals.push(arrivals);
        self.answers.push(answers);
        Ok(())
    }

    /// Opens sockets on a port whose device came back, another one of its name, and gives them to the workers. The steering
    /// program must be on it. Queues that it has not got any more stay away; those that it has besides take the kernel road.
    ///
    /// # Errors
    /// [`StartError`]; then the port stays as it was.
    pub fn reopen(&self, port: PortId, spec: &PortSpec, steering: &Steering) -> Result<(), StartError> {
        self.check_mtu(&spec.device, spec.mtu, spec.grain)?;
        let mut opened = Vec::new();
        for (worker, queue) in self.queues.iter().enumerate().filter(|(_, q)| spec.queues.contains(q)) {
            let mut supply: Vec<_> =
                self.handoff.take(RING as usize).into_iter().map(|frame| frame.0).collect();
            let socket = open_queue(&self.area, spec, *queue, &mut supply);
            self.handoff.put(supply.into_iter().map(XskFrame));
            match socket {
                Ok(socket) => opened.push((worker, *queue, socket)),
                Err(error) => {
                    opened.into_iter().for_each(|(_, _, socket)| self.take_back(socket));
                    return Err(error.into());
                }
            }
        }
        if opened.is_empty() {
            return Err(StartError::NoQueue);
        }
        let mut result = Ok(());
        for (worker, number, socket) in opened {
            // One that steering was not told of goes to its worker all the same: it looks after the frames in it.
            let told = steering.set_socket(u32::from(port.0), number, socket.fd());
            result = result.and(told);
            let Some(arrivals) = self.arrivals.get(worker) else { continue };
            match arrivals.push((port, socket)) {
                Ok(()) => self.handoff.wake(worker),
                Err((_, socket)) => self.take_back(socket),
            }
        }
        self.catch_up();
        Ok(result?)
    }

    /// Closes a socket that no worker has; its frames are free.
    fn take_back(&self, socket: Queue) {
        self.handoff.put(socket.close().into_iter().map(XskFrame));
    }

    /// Whether packets of this size (of IP, in octets) fit the frames that there are, for a driver with buffers of that grain.
    ///
    /// # Errors
    /// [`StartError::Mtu`] with the largest that would.
    pub fn check_mtu(&self, device: &str, mtu: u32, grain: usize) -> Result<(), StartError> {
        let most = largest_packet(self.area.frame_size(), grain);
        if mtu as usize <= most {
            return Ok(());
        }
        Err(StartError::Mtu { device: device.to_owned(), mtu, most })
    }

    /// Steering is told the last breath of the worker that breathed longest ago.
    fn start_heartbeat(&mut self, limit: Duration) -> Result<(), StartError> {
        let pulse = self.pulse.clone();
        let signs = self.stats.iter().map(|stats| stats.breathed.clone()).collect();
        let tell = move |sign| {
            if let Err(error) = pulse.beat(sign) {
                tracing::error!(%error, "heartbeat");
            }
        };
        let heartbeat = Heartbeat::start("weir-heartbeat", limit, signs, self.gaps.clone(), tell);
        let heartbeat = heartbeat.map_err(StartError::Thread)?;
        self.heartbeat = Some(heartbeat);
        Ok(())
    }

    /// Packets go to the workers from now on. What the express lane has carried by itself until then, and which ends it saw, they ask for.
    pub fn catch_up(&self) {
        self.gaps.fetch_add(1, Relaxed);
        self.wake();
    }

    /// How often steering was without a sign of life although the workers live.
    pub fn stalls(&self) -> Stalls {
        self.heartbeat.as_ref().map(Heartbeat::stalls).unwrap_or_default()
    }

    /// Waits until every worker has breathed and the heartbeat has told steering so.
    ///
    /// # Errors
    /// A worker does not come up within `patience`.
    pub fn wait_for_heartbeat(&self, patience: Duration) -> Result<(), StartError> {
        let deadline = Instant::now() + patience;
        while !self.heartbeat.as_ref().is_some_and(Heartbeat::has_told) {
            if Instant::now() > deadline || !self.is_alive() {
                return Err(StartError::Thread(io::Error::from(io::ErrorKind::TimedOut)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The numbers of all workers together.
    pub fn summary(&self) -> Summary {
        let mut sum = Summary::default();
        for stats in &self.stats {
            stats.add_to(&mut sum);
        }
        sum
    }

    /// How many frames there are, and how many of them lie in no worker's hands.
    pub fn frames(&self) -> (usize, usize) {
        (self.frames, self.handoff.in_reservoir())
    }

    pub fn workers(&self) -> usize {
        self.threads.len()
    }

    /// What each port got.
    pub fn ports(&self) -> &[PortState] {
        &self.ports
    }

    /// Whether every worker still runs.
    pub fn is_alive(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Those that sleep take what was published last at once: connections in the express lane may have to go another way.
    pub fn wake(&self) {
        (0..self.handoff.workers()).for_each(|worker| self.handoff.wake(worker));
    }

    /// Makes room for what `policy` lets clients wait with. Before it is published.
    pub fn prepare(&self, policy: &Policy) {
        self.rooms.prepare(policy);
    }

    /// Judges all flows again by the policy that was published last, and ends those that it refuses. `None`: some worker
    /// has not answered within `patience`; it goes on all the same.
    pub fn reevaluate(&self, patience: Duration) -> Option<Tally> {
        let tallies = self.ask_all(Command::Reevaluate, patience)?;
        let mut sum = Tally::default();
        tallies.iter().for_each(|tally| sum.add(tally));
        Some(sum)
    }

    /// How many flows need steering to go on as before the policy that was published last ([`Pipeline::leaning`]). Whoever
    /// answers has that policy. `None`: some worker has not answered within `patience`.
    pub fn leaning(&self, patience: Duration) -> Option<u64> {
        Some(self.ask_all(Command::Leaning, patience)?.iter().sum())
    }

    /// What every worker answers, of a command that each answers once; none when some worker does not.
    fn ask_all<T>(&self, command: fn(Sender<T>) -> Command, patience: Duration) -> Option<Vec<T>> {
        let answers = self.ask(command, patience);
        (answers.len() == self.commands.len()).then_some(answers)
    }

    /// What workers answer until all have, or for `patience`. One that has too many commands waiting is not asked.
    fn ask<T>(&self, command: fn(Sender<T>) -> Command, patience: Duration) -> Vec<T> {
        let (sender, receiver) = crossbeam::channel::unbounded();
        for (worker, commands) in self.commands.iter().enumerate() {
            if commands.push(command(sender.clone())).is_ok() {
                self.handoff.wake(worker);
            }
        }
        drop(sender);
        let deadline = Instant::now() + patience;
        let mut answers = Vec::new();
        while let Ok(answer) = receiver.recv_deadline(deadline) {
            answers.push(answer);
        }
        answers
    }

    /// Gives a worker the answer to a question of its. One that there is no room for is lost, as if it came too late.
    pub fn answer(&self, worker: usize, answer: Answer) {
        if let Some(answers) = self.answers.get(worker) {
            let _lost = answers.push(answer);
            self.handoff.wake(worker);
        }
    }

    /// Stops the workers and closes the sockets. Steering must be off the ports, or packets go to nobody for a moment.
    pub fn stop(mut self) {
        self.stop_threads();
    }

    fn stop_threads(&mut self) {
        // Nobody reads the sockets from now on, and closing them takes a while: no packet is to wait for that.
        drop(self.heartbeat.take());
        if let Err(error) = self.pulse.beat(0) {
            tracing::debug!(%error, "heartbeat");
        }
        self.stop.store(true, Relaxed);
        self.wake();
        if let Some(thread) = self.flood.take() {
            thread.thread().unpark();
            drop(thread.join());
        }
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.stop_threads();
    }
}

/// What all workers are made from.
struct Make<'a> {
    spec: &'a Spec,
    queues: Vec<u32>,
    punt: &'a Punt,
    first: &'a Snapshot,
    seed: u64,
    sources: Arc<Sources>,
    /// Of SYN cookies: a client's SYN and its ACK meet the same worker, and still all have one.
    secret: [u8; 32],
    cookies_until: Arc<AtomicU64>,
    failures: Failures,
}

impl Make<'_> {
    fn pipeline(&self, id: usize, frames: usize, workers: usize) -> Pipeline<XskFrame> {
        let config = Config {
            seed: self.seed,
            secret: self.secret,
            ..pipeline_config(self.spec, id, frames, workers)
        };
        let now = Nanos(clock::monotonic_ns());
        let (policy, fib) = (self.first.policy.clone(), self.first.fib.clone());
        let mut pipeline = Pipeline::with_memory(&config, policy, fib, now, prefer_huge_pages);
        pipeline.share_sources(self.sources.clone());
        if let Some(ways) = &self.spec.express {
            pipeline.spare(carried_elsewhere(ways.clone()));
        }
        pipeline
    }

    /// One for each worker, with its number of frames; they have the connections that the express lane carries already.
    fn pipelines(&self, frames: &[usize]) -> Vec<Pipeline<XskFrame>> {
        let workers = frames.len();
        let pipelines = frames.iter().enumerate().map(|(id, frames)| self.pipeline(id, *frames, workers));
        let mut pipelines: Vec<_> = pipelines.collect();
        let (hasher, now) = (FlowHasher::new(self.seed), Nanos(clock::monotonic_ns()));
        for names in share_out(&mut pipelines, &self.spec.adopted, &hasher, now) {
            if let Some(ways) = &self.spec.express
                && let Err(error) = ways.strays().add(ways.express(), names)
            {
                tracing::warn!(%error, "express lane: a connection ends");
            }
        }
        pipelines
    }

    /// For each port, which worker sends for one that has no queue of it.
    fn senders(&self) -> [usize; MAX_PORTS] {
        let mut senders = [usize::MAX; MAX_PORTS];
        for (sender, port) in senders.iter_mut().zip(&self.spec.ports) {
            let first = port.queues.first();
            *sender = self.queues.iter().position(|q| Some(q) == first).unwrap_or(usize::MAX);
        }
        senders
    }
}
