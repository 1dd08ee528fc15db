//! A worker's thread: breathe, and sleep when there is nothing to do.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use weir_core::ids::{Nanos, PortId};
use weir_sys::clock;
use weir_sys::waiter::Waiter;
use weir_sys::xsk::Queue;

use crate::driver::afxdp::{AfXdp, XskFrame};
use crate::heartbeat::{BREATH, Breath};
use crate::worker::Worker;

/// What a worker does while nothing comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Sleeps after a while; the kernel wakes it with the first packet.
    Adaptive,
    /// Never sleeps.
    Busy,
}

/// Breaths without work before a worker goes to sleep.
const SPINS: u32 = 64;
/// The sleep while frames are still to be sent: copy mode may want another kick.
const SHORT_SLEEP: Duration = Duration::from_micros(200);

/// Breaths between two looks whether every port is still there.
const LOOK_EVERY: u32 = 4096;
/// A sleep counts as so many, and so many more for each breath's time that it may take.
const SLEEP_COUNTS: u32 = 64;

/// New sockets for a worker, of ports whose devices came back.
pub type Arrivals = Arc<ArrayQueue<(PortId, Queue)>>;

/// Runs until `stop`, and gives `sign`; then closes the sockets and returns all frames.
pub fn run(
    mut worker: Worker<AfXdp>,
    mut waiter: Waiter,
    arrivals: &Arrivals,
    idle: Idle,
    (sign, stop): (&Breath, &AtomicBool),
) -> Vec<XskFrame> {
    for fd in worker.driver().fds() {
        if let Err(error) = waiter.add(fd) {
            tracing::error!(%error, "the worker cannot wait for a socket and polls it");
        }
    }
    let (mut quiet, mut breaths) = (0_u32, 0_u32);
    while !stop.load(Relaxed) {
        breaths += 1;
        while let Some((port, queue)) = arrivals.pop() {
            worker.welcome(port, queue, &mut waiter);
        }
        if breaths >= LOOK_EVERY {
            breaths = 0;
            worker.bury_lost_ports(&mut waiter);
        }
        let now = Nanos(clock::monotonic_ns());
        if worker.breathe(now) > 0 || worker.has_work() {
            quiet = 0;
            continue;
        }
        quiet = quiet.saturating_add(1);
        if idle == Idle::Busy || quiet < SPINS {
            std::hint::spin_loop();
            continue;
        }
        let patience = patience(&worker, sign, now);
        let has_work = || worker.has_work() || !arrivals.is_empty();
        if let Err(error) = sign.sleep(now.0, patience, || waiter.wait(patience, has_work)) {
            tracing::debug!(%error, "waiting");
        }
        breaths += SLEEP_COUNTS * (1 + patience.as_millis() as u32 / BREATH.as_millis() as u32);
    }
    // Polls of the sockets end before the sockets do: an armed one keeps its queue taken.
    drop(waiter);
    let (mut driver, mut frames) = worker.into_driver();
    driver.close(&mut frames);
    frames
}

/// How long it sleeps at most: whatever comes by a socket or from another thread wakes it before.
fn patience(worker: &Worker<AfXdp>, sign: &Breath, now: Nanos) -> Duration {
    let longest = if worker.driver().outstanding() > 0 {
        SHORT_SLEEP
    } else if worker.lacks_frames() {
        BREATH
    } else {
        sign.longest_sleep(now.0)
    };
    worker.due_in(now).map_or(longest, |due| longest.min(due))
}

impl Worker<AfXdp> {
    /// A port whose device is gone is closed; its frames come back, and its packets take the kernel road.
    fn bury_lost_ports(&mut self, waiter: &mut Waiter) {
        let (driver, free) = self.driver_and_pool();
        driver.close_lost(|fd| forget(waiter, fd));
        driver.collect_closed(free);
    }

    /// A port's device is there again.
    fn welcome(&mut self, port: PortId, queue: Queue, waiter: &mut Waiter) {
        let (driver, _) = self.driver_and_pool();
        let Some(fd) = driver.replace(port, queue, |fd| forget(waiter, fd)) else {
            return tracing::error!(port = port.0, "the worker has no place for a new socket");
        };
        if let Err(error) = waiter.add(fd) {
            tracing::error!(%error, "the worker cannot wait for a socket and polls it");
        }
    }
}

/// Ends the poll of a socket that is about to be closed.
fn forget(waiter: &mut Waiter, fd: BorrowedFd<'_>) {
    if let Err(error) = waiter.remove(fd) {
        tracing::debug!(%error, "the poll of a lost port");
    }
}
