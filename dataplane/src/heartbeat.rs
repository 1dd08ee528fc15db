//! The sign of life: a thread that tells the kernel's side when the slowest of some threads lived last.
//!
//! Workers tell steering with it ([`crate::gateway`]), the relay's threads the gate of its listeners ([`crate::relay`]). What is
//! told is the oldest breath, not the time of the telling: so a limit on its age bounds how long traffic waits for a thread that
//! hangs, whenever in a beat that happens. This thread must never be what is late itself: it runs ahead of ordinary threads
//! where it may, and does nothing else.
//!
//! A thread that would go on, but gets no CPU, does not hang: the time that it waits for one is not counted, for a second at most.
//! So an overloaded machine, or one whose host takes its CPUs away for a while, lets traffic wait instead of pass.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weir_sys::{affinity, clock, thread};

/// How often it is told.
pub const BEAT: Duration = Duration::from_millis(5);
/// The longest that a thread with nothing to do may go without a breath.
pub const BREATH: Duration = Duration::from_millis(5);
/// A sign of life older than this is none, where the configuration says nothing else. Two beats and a breath leave an idle box
/// with signs of 10 ms, so that the scheduler may be late by 35; and a box that hangs stops traffic for less than 50 ms.
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
}

pub type Sign = Arc<Breath>;

/// What is known of a thread: CPU time in ns, and whether it could run.
trait Look {
    fn cpu_time(&self, thread: u32) -> Option<u64>;
    fn is_runnable(&self, thread: u32) -> bool;
}

/// The kernel knows.
struct Kernel;

impl Look for Kernel {
    fn cpu_time(&self, thread: u32) -> Option<u64> {
        thread::cpu_time(thread)
    }

    fn is_runnable(&self, thread: u32) -> bool {
        thread::is_runnable(thread)
    }
}

/// A sign, and how long its thread has waited for a CPU since it breathed last.
#[derive(Debug)]
struct Watched {
    sign: Sign,
    last: u64,
    cpu_time: Option<u64>,
    waited: u64,
}

impl Watched {
    fn new(sign: Sign) -> Self {
        Self { sign, last: 0, cpu_time: None, waited: 0 }
    }

    /// The thread's last breath, and what it has waited for a CPU since then on top; `since`: when this was asked before.
    fn breathed(&mut self, now: u64, since: u64, look: &impl Look) -> u64 {
        let (last, thread) = (self.sign.last(), self.sign.thread.load(Relaxed));
        let cpu_time = look.cpu_time(thread);
        if last != self.last {
            (self.last, self.waited) = (last, 0);
        }
        let is_late = last != 0 && now.saturating_sub(last) > SUSPECT;
        if is_late && cpu_time.is_some() && cpu_time == self.cpu_time && look.is_runnable(thread) {
            self.waited += now - since.clamp(last, now);
        }
        self.cpu_time = cpu_time;
        if last == 0 { 0 } else { last + self.waited.min(STARVED) }
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
    stalls: Arc<AtomicU64>,
    longest_ns: AtomicU64,
}

/// The running thread; it ends when dropped.
#[derive(Debug)]
pub struct Heartbeat {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Starts it. `tell` gets the oldest of `signs` whenever that has moved. One older than `limit` is counted as late, in `stalls`,
    /// as soon as there is one again.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(
        name: &str,
        limit: Duration,
        signs: Vec<Sign>,
        stalls: Arc<AtomicU64>,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let shared = Arc::new(Shared { limit_ns, stalls, ..Shared::default() });
        let board = shared.clone();
        let body = move || {
            if let Err(error) = affinity::run_promptly() {
                tracing::warn!(%error, "the heartbeat has no priority over other threads: on a busy machine it may come late");
            }
            let mut watched: Vec<Watched> = signs.into_iter().map(Watched::new).collect();
            let (mut told, mut since) = (0, clock::monotonic_ns());
            while !board.stop.load(Relaxed) {
                let now = clock::monotonic_ns();
                let breaths = watched.iter_mut().map(|thread| thread.breathed(now, since, &Kernel));
                told = beat(&board, breaths.min().unwrap_or(0), told, &tell);
                since = now;
                board.told.store(told, Relaxed);
                std::thread::sleep(BEAT);
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Waits until the first sign of life has been told; whether it was, within `patience`.
    pub fn wait(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while self.shared.told.load(Relaxed) == 0 {
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

/// One beat, with the oldest sign; returns what has been told now.
fn beat(board: &Shared, oldest: u64, told: u64, tell: &impl Fn(u64)) -> u64 {
    if oldest <= told {
        return told;
    }
    // The age that the last sign had when this one replaced it.
    let age = clock::monotonic_ns().saturating_sub(told);
    tell(oldest);
    if told != 0 && age > board.limit_ns {
        board.stalls.fetch_add(1, Relaxed);
        board.longest_ns.fetch_max(age, Relaxed);
    }
    oldest
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A thread with this CPU time, that could run or could not.
    struct Thread(u64, bool);

    impl Look for Thread {
        fn cpu_time(&self, _: u32) -> Option<u64> {
            Some(self.0)
        }

        fn is_runnable(&self, _: u32) -> bool {
            self.1
        }
    }

    const MS: u64 = 1_000_000;

    fn breath(at: u64) -> Sign {
        let sign = Sign::default();
        sign.breathe(at);
        sign
    }

    #[test]
    fn sign_is_told_once() {
        let (told, board) = (Mutex::new(Vec::new()), Shared::default());
        let tell = |sign| told.lock().unwrap().push(sign);
        let last = [3, 3, 5, 4].into_iter().fold(0, |last, oldest| beat(&board, oldest, last, &tell));
        assert_eq!((last, told.into_inner().unwrap()), (5, vec![3, 5]));
    }

    #[test]
    fn thread_that_never_breathed_is_no_sign_of_life() {
        let mut thread = Watched::new(Sign::default());
        for now in 1..100 {
            assert_eq!(thread.breathed(now * MS, (now - 1) * MS, &Thread(0, true)), 0);
        }
    }

    #[test]
    fn thread_that_waits_for_a_cpu_lives_for_a_second_and_no_longer() {
        let mut thread = Watched::new(breath(100 * MS));
        let mut at =
            |now, cpu_time, runnable| thread.breathed(now * MS, (now - 5) * MS, &Thread(cpu_time, runnable));
        // Young enough not to be asked about.
        assert_eq!((at(105, 7, true), at(110, 7, true), at(115, 7, true)), (100 * MS, 100 * MS, 100 * MS));
        // It waits, runs for a while without a breath, waits again.
        assert_eq!((at(120, 7, true), at(125, 7, true)), (105 * MS, 110 * MS));
        assert_eq!((at(130, 9, true), at(135, 11, true)), (110 * MS, 110 * MS));
        assert_eq!(at(140, 11, true), 115 * MS);
        // It sleeps, or was stopped.
        assert_eq!(at(145, 11, false), 115 * MS);
        for now in 30..500 {
            assert!(at(now * 5, 11, true) <= 1100 * MS);
        }
        assert_eq!(at(2500, 11, true), 1100 * MS);
    }

    #[test]
    fn machine_that_stood_still_is_no_stall_of_its_threads() {
        let mut thread = Watched::new(breath(100 * MS));
        assert_eq!(thread.breathed(104 * MS, 99 * MS, &Thread(7, false)), 100 * MS);
        assert_eq!(thread.breathed(404 * MS, 104 * MS, &Thread(7, true)), 400 * MS);
        // The next breath is a new beginning.
        thread.sign.breathe(405 * MS);
        assert_eq!(thread.breathed(409 * MS, 404 * MS, &Thread(8, true)), 405 * MS);
    }

    #[test]
    fn thread_that_pauses_is_one_stall() {
        let sign = Sign::default();
        let told = Arc::<AtomicU64>::default();
        let heart = Heartbeat::start("test", LIMIT, vec![sign.clone()], told.clone(), |_| {}).unwrap();
        let breathe_for = |time| {
            let from = Instant::now();
            while from.elapsed() < time {
                sign.breathe(clock::monotonic_ns());
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        breathe_for(Duration::from_millis(50));
        let before = heart.stalls();
        std::thread::sleep(LIMIT * 3);
        assert_eq!(heart.stalls(), before, "it is not over yet");
        breathe_for(Duration::from_millis(50));
        let stalls = heart.stalls();
        assert!(stalls.count > before.count && stalls.longest >= LIMIT * 2, "{stalls:?}");
        assert_eq!(told.load(Relaxed), stalls.count, "whoever missed something learns of it");
    }
}
