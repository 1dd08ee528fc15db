//! A worker's thread: breathe, and sleep when there is nothing to do.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use weir_core::ids::Nanos;
use weir_sys::clock;
use weir_sys::waiter::Waiter;

use crate::driver::afxdp::{AfXdp, XskFrame};
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
/// The longest sleep: a fraction of the heartbeat's limit, and of a flow timer's tick.
const SLEEP: Duration = Duration::from_millis(5);
/// The sleep while frames are still to be sent: copy mode may want another kick.
const SHORT_SLEEP: Duration = Duration::from_micros(200);

/// Runs until `stop`; then closes the sockets and returns all frames.
pub fn run(mut worker: Worker<AfXdp>, mut waiter: Waiter, idle: Idle, stop: &AtomicBool) -> Vec<XskFrame> {
    let fds: Vec<_> = worker.driver().fds().map(|fd| fd.try_clone_to_owned()).collect();
    for fd in fds.into_iter().flatten() {
        if let Err(error) = waiter.add(fd) {
            tracing::error!(%error, "the worker cannot wait for a socket and polls it");
        }
    }
    let mut quiet = 0_u32;
    while !stop.load(Relaxed) {
        if worker.breathe(Nanos(clock::monotonic_ns())) > 0 || worker.has_work() {
            quiet = 0;
            continue;
        }
        quiet = quiet.saturating_add(1);
        if idle == Idle::Busy || quiet < SPINS {
            std::hint::spin_loop();
            continue;
        }
        let patience = if worker.driver().outstanding() > 0 { SHORT_SLEEP } else { SLEEP };
        // What was handed over before `sleeping` was visible is seen by the second look at the mailbox.
        let sleep = waiter.prepare();
        if worker.has_work() {
            sleep.cancel();
        } else if let Err(error) = sleep.wait(patience) {
            tracing::debug!(%error, "waiting");
        }
    }
    let (mut driver, mut frames) = worker.into_driver();
    driver.close(&mut frames);
    frames
}
