//! The sign of life: a thread that tells the kernel's side when the slowest of some threads lived last.
//!
//! Workers tell steering with it ([`crate::gateway`]), the relay's threads the gate of its listeners ([`crate::relay`]). What is
//! told is the oldest sign, not the time of the telling: so a limit on its age bounds how long traffic waits for a thread that
//! hangs, whenever in a beat that happens. This thread must never be what is late itself: it runs ahead of ordinary threads
//! where it may, and does nothing else.
//!
//! A thread lives that has breathed, or is seen to sleep: it says until when at the latest it waits for something to do, and the
//! kernel says that it is asleep. So a box with nothing to do rests. One that does not come back in time, was stopped, or is stuck
//! elsewhere than where it waits, gives no sign.
//!
//! A thread that would go on, but gets no CPU, does not hang: the time that it waits for one is not counted, for a second at most.
//! So an overloaded machine, or one whose host takes its CPUs away for a while, lets traffic wait instead of pass.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weir_sys::thread::{State, StateFile};
use weir_sys::{affinity, clock, thread};

/// How often it is told while threads work; and, in ns, while all sleep, where the limit leaves room for two of these: each costs a CPU
/// that rests about 50 us.
const BEAT: Duration = Duration::from_millis(5);
const QUIET: u64 = 20_000_000;
/// So long after such a beat those that sleep wake: it still sees them sleep.
const AFTER: u64 = 200_000;
/// The longest that a thread may go without a breath that cannot be seen to sleep, or has something to do but later.
pub const BREATH: Duration = Duration::from_millis(5);
/// The longest that a thread with nothing to do sleeps.
const NAP: Duration = Duration::from_millis(50);
/// A sign of life older than this is none, where the configuration says nothing else. Of a box at rest it is up to 20 ms old, of
/// one at work up to 10, so that the scheduler may be late by 25. However often it is told, it is of no later than the hang: a box that
/// hangs stops traffic for less than 50 ms.
pub const LIMIT: Duration = Duration::from_millis(45);

/// So much later it may still come back: on a machine that is overloaded, threads wait for one another. So long, what the workers
/// translate is not given to the kernel, which knows nothing of those connections and would reset them; TCP sends it again.
pub const DOUBT: Duration = Duration::from_secs(1);

/// From this age on it is asked what the thread is about.
const SUSPECT: u64 = 15_000_000;
/// So long a thread may wait for a CPU and still be alive.
const STARVED: u64 = DOUBT.as_nanos() as u64;

/// A thread's sign of life. All orderings are Relaxed: each number stands for itself.
#[derive(Debug, Default)]
pub struct Breath {
    /// When it breathed last, in ns of CLOCK_MONOTONIC; 0: never.
    at: AtomicU64,
    /// It waits for something to do, until then at the latest; 0: it does not.
    asleep: AtomicU64,
    /// It can be seen to sleep.
    is_seen: AtomicBool,
    /// The kernel's number of the thread.
    thread: AtomicU32,
}

impl Breath {
    /// The calling thread is the one that will breathe.
    pub fn begin(&self) {
        self.thread.store(thread::current(), Relaxed);
    }

    /// The thread lives at `now` (ns of CLOCK_MONOTONIC).
    pub fn breathe(&self, now: u64) {
        self.at.store(now, Relaxed);
    }

    /// When it last did; 0: never.
    pub fn last(&self) -> u64 {
        self.at.load(Relaxed)
    }

    /// How long it may sleep from `now` (ns of CLOCK_MONOTONIC) on when it has nothing to do.
    pub fn longest_sleep(&self, now: u64) -> Duration {
        if self.is_seen.load(Relaxed) { together(now, NAP) } else { BREATH }
    }

    /// It sleeps: `wait` waits for something to do, from `now` (ns of CLOCK_MONOTONIC) for so long at most, and does nothing else.
    pub fn sleep<T>(&self, now: u64, longest: Duration, wait: impl FnOnce() -> T) -> T {
        let longest = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        self.asleep.store(now.saturating_add(longest), Relaxed);
        let waited = wait();
        self.asleep.store(0, Relaxed);
        waited
    }

    /// Whether it is at work and has not breathed for more than `limit` ns before `now`.
    pub fn is_late(&self, now: u64, limit: u64) -> bool {
        let last = self.last();
        last != 0 && self.asleep.load(Relaxed) == 0 && now.saturating_sub(last) > limit
    }
}

pub type Sign = Arc<Breath>;

/// The longest wait from `now` (ns of CLOCK_MONOTONIC) of at most `longest` that ends when others of this kind do, just after a
/// beat: a CPU that wakes once for all of them rests longer. `longest`: more than the time between two such moments, 20 ms.
pub fn together(now: u64, longest: Duration) -> Duration {
    let last = now.saturating_add(u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX)) - AFTER;
    Duration::from_nanos((last - last % QUIET + AFTER).saturating_sub(now))
}

/// What is known of a thread: CPU time in ns, and what it is about. Nothing: nobody can say.
trait Look {
    fn cpu_time(&mut self, thread: u32) -> Option<u64>;
    fn state(&mut self, thread: u32) -> Option<State>;
}

/// The kernel knows.
#[derive(Debug, Default)]
struct Kernel {
    /// Of the one thread that it is asked about.
    state: Option<StateFile>,
}

impl Look for Kernel {
    fn cpu_time(&mut self, thread: u32) -> Option<u64> {
        thread::cpu_time(thread)
    }

    fn state(&mut self, thread: u32) -> Option<State> {
        if self.state.is_none() {
            self.state = StateFile::open(thread).ok();
        }
        self.state.as_ref()?.read().ok()
    }
}

/// A sign, and how long its thread has waited for a CPU since it gave it last.
#[derive(Debug)]
struct Watched<L: Look> {
    sign: Sign,
    look: L,
    /// When it lived last, by its breath or by what was seen.
    last: u64,
    is_asleep: bool,
    cpu_time: Option<u64>,
    waited: u64,
}

impl<L: Look> Watched<L> {
    const fn new(sign: Sign, look: L) -> Self {
        Self { sign, look, last: 0, is_asleep: false, cpu_time: None, waited: 0 }
    }

    /// When the thread lived last, and what it has waited for a CPU since then on top; `since`: when this was asked before.
    fn lived(&mut self, now: u64, since: u64) -> u64 {
        let breathed = self.sign.last();
        if breathed == 0 {
            return 0;
        }
        let last = breathed.max(self.seen_asleep(now)).max(self.last);
        if last != self.last {
            (self.last, self.waited) = (last, 0);
        }
        if self.is_asleep {
            self.cpu_time = None;
            return last;
        }
        let thread = self.sign.thread.load(Relaxed);
        let cpu_time = self.look.cpu_time(thread);
        let is_late = now.saturating_sub(last) > SUSPECT;
        if is_late
            && cpu_time.is_some()
            && cpu_time == self.cpu_time
            && self.look.state(thread) == Some(State::Runnable)
        {
            self.waited += now - since.clamp(last, now);
        }
        self.cpu_time = cpu_time;
        last + self.waited.min(STARVED)
    }

    /// Until when it is seen to sleep; 0: it does not. What it says is of `now` or later, so that a thread which hangs after that is
    /// not taken to live by more than this.
    fn seen_asleep(&mut self, now: u64) -> u64 {
        let until = self.sign.asleep.load(Relaxed);
        let is_seen = self.sign.is_seen.load(Relaxed);
        self.is_asleep = false;
        if until == 0 && is_seen {
            return 0;
        }
        let state = self.look.state(self.sign.thread.load(Relaxed));
        if state.is_some() != is_seen {
            self.sign.is_seen.store(state.is_some(), Relaxed);
        }
        if until == 0 || state != Some(State::Asleep) {
            return 0;
        }
        self.is_asleep = now <= until;
        now.min(until)
    }
}

/// What was late so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// Times that the sign of life was older than the limit, and came back.
    pub count: u64,
    /// The longest of them.
    pub longest: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// The sign that was told last.
    told: AtomicU64,
    /// The age, in ns, from which on a sign is late.
    limit_ns: u64,
    stalls: AtomicU64,
    longest_ns: AtomicU64,
    /// Rises with each of them.
    gaps: Arc<AtomicU64>,
}

/// The running thread; it ends when dropped.
#[derive(Debug)]
pub struct Heartbeat {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Starts it. `tell` gets the oldest of `signs` whenever that has moved. One older than `limit` is counted as late as soon as there
    /// is one again, and `gaps` rises: of what went another way meanwhile all has gone, or is just going.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(
        name: &str,
        limit: Duration,
        signs: Vec<Sign>,
        gaps: Arc<AtomicU64>,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let shared = Arc::new(Shared { limit_ns, gaps, ..Shared::default() });
        let board = shared.clone();
        let body = move || {
            if let Err(error) = affinity::run_promptly() {
                tracing::warn!(%error, "the heartbeat has no priority over other threads: on a busy machine it may come late");
            }
            beat_on(&board, signs, &tell);
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Whether a sign of life has been told.
    pub fn has_told(&self) -> bool {
        self.shared.told.load(Relaxed) != 0
    }

    /// Waits until the first sign of life has been told; whether it was, within `patience`.
    pub fn wait(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while !self.has_told() {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// How often it was late, and by how much at most.
    pub fn stalls(&self) -> Stalls {
        Stalls {
            count: self.shared.stalls.load(Relaxed),
            longest: Duration::from_nanos(self.shared.longest_ns.load(Relaxed)),
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Tells the oldest of the signs again and again, until it is to stop.
fn beat_on(board: &Shared, signs: Vec<Sign>, tell: &impl Fn(u64)) {
    let watch = |sign| Watched::new(sign, Kernel::default());
    let mut watched: Vec<_> = signs.into_iter().map(watch).collect();
    let (mut told, mut since) = (0, clock::monotonic_ns());
    while !board.stop.load(Relaxed) {
        let now = clock::monotonic_ns();
        let oldest = watched.iter_mut().map(|thread| thread.lived(now, since)).min();
        told = beat(board, oldest.unwrap_or(0), told, tell);
        since = now;
        board.told.store(told, Relaxed);
        let rests = watched.iter().all(|thread| thread.is_asleep);
        let rests = rests && board.limit_ns >= 2 * QUIET;
        std::thread::sleep(if rests { Duration::from_nanos(QUIET - now % QUIET) } else { BEAT });
    }
}

/// One beat, with the oldest sign; returns what has been told now.
fn beat(board: &Shared, oldest: u64, told: u64, tell: &impl Fn(u64)) -> u64 {
    if oldest <= told {
        return told;
    }
    tell(oldest);
    // The age that the last sign had when this one had replaced it: who looked before may have seen as much.
    let age = clock::monotonic_ns().saturating_sub(told);
    if told != 0 && age > board.limit_ns {
        board.stalls.fetch_add(1, Relaxed);
        board.longest_ns.fetch_max(age, Relaxed);
        board.gaps.fetch_add(1, Relaxed);
    }
    oldest
}

#[cfg(test)]
mod tests;
