//! The sign of life: a thread that tells the kernel's side when the slowest of some threads lived last.
//!
//! Workers tell steering with it ([`crate::gateway`]), the relay's threads the gate of its listeners ([`crate::relay`]). What is
//! told is the oldest breath, not the time of the telling: so a limit on its age bounds how long traffic waits for a thread that
//! hangs, whenever in a beat that happens. This thread must never be what is late itself: it runs ahead of ordinary threads
//! where it may, and neither logs nor allocates.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weir_sys::{affinity, clock};

/// How often it is told.
pub const BEAT: Duration = Duration::from_millis(5);
/// The longest that a thread with nothing to do may go without a breath.
pub const BREATH: Duration = Duration::from_millis(5);
/// A sign of life older than this is none. Two beats and a breath leave an idle box with signs of 10 ms, so that the scheduler
/// may be late by 35; and a box that hangs stops traffic for less than 50 ms.
pub const LIMIT: Duration = Duration::from_millis(45);

/// So much later it may still come back: on a machine that is overloaded, threads wait for one another. So long, what the workers
/// translate is not given to the kernel, which knows nothing of those connections and would reset them; TCP sends it again.
pub const DOUBT: Duration = Duration::from_secs(1);

/// When a thread breathed last, in ns of CLOCK_MONOTONIC; 0: never. All orderings are Relaxed: the number stands for itself.
pub type Sign = Arc<AtomicU64>;

/// What was late so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// Times that the sign of life was older than [`LIMIT`], and came back.
    pub count: u64,
    /// The longest of them.
    pub longest: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// The sign that was told last.
    told: AtomicU64,
    stalls: AtomicU64,
    longest_ns: AtomicU64,
}

/// The running thread; it ends when dropped.
#[derive(Debug)]
pub struct Heartbeat {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Starts it. `tell` gets the oldest of `signs` whenever that has moved.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(name: &str, signs: Vec<Sign>, tell: impl Fn(u64) + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let board = shared.clone();
        let body = move || {
            if let Err(error) = affinity::run_promptly() {
                tracing::warn!(%error, "the heartbeat has no priority over other threads: on a busy machine it may come late");
            }
            let mut told = 0;
            while !board.stop.load(Relaxed) {
                told = beat(&board, &signs, told, &tell);
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

/// One beat; returns what has been told now.
fn beat(board: &Shared, signs: &[Sign], told: u64, tell: &impl Fn(u64)) -> u64 {
    let oldest = signs.iter().map(|sign| sign.load(Relaxed)).min().unwrap_or(0);
    if oldest <= told {
        return told;
    }
    // The age that the last sign had when this one replaced it.
    let age = clock::monotonic_ns().saturating_sub(told);
    tell(oldest);
    if told != 0 && age > LIMIT.as_nanos() as u64 {
        board.stalls.fetch_add(1, Relaxed);
        board.longest_ns.fetch_max(age, Relaxed);
    }
    oldest
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn sign_of_the_slowest_thread_is_told_once() {
        let (told, board) = (Mutex::new(Vec::new()), Shared::default());
        let tell = |sign| told.lock().unwrap().push(sign);
        let signs: Vec<Sign> = [3, 5].map(|sign| Arc::new(AtomicU64::new(sign))).into();
        let mut last = beat(&board, &signs, 0, &tell);
        last = beat(&board, &signs, last, &tell);
        signs[0].store(9, Relaxed);
        last = beat(&board, &signs, last, &tell);
        signs[0].store(11, Relaxed);
        assert_eq!((beat(&board, &signs, last, &tell), told.into_inner().unwrap()), (5, vec![3, 5]));
    }

    #[test]
    fn thread_that_never_breathed_is_no_sign_of_life() {
        let signs: Vec<Sign> = [0, 5].map(|sign| Arc::new(AtomicU64::new(sign))).into();
        beat(&Shared::default(), &signs, 0, &|_| panic!("told"));
    }

    #[test]
    fn thread_that_pauses_is_one_stall() {
        let sign = Sign::default();
        let heart = Heartbeat::start("test", vec![sign.clone()], |_| {}).unwrap();
        let breathe_for = |time| {
            let from = Instant::now();
            while from.elapsed() < time {
                sign.store(clock::monotonic_ns(), Relaxed);
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
    }
}
