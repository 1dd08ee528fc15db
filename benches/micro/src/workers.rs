//! Two workers against one: each a thread with a pipeline of its own and its share of the connections, as queues of NICs share them.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::BATCH;
use crate::bed::Spread;
use crate::cases::passing;

/// How long one timing lasts.
const SLICE: Duration = Duration::from_millis(400);
/// Batches between two looks at the clock's end.
const UNWATCHED: u64 = 10;

/// Connections in all.
pub const FLOWS: [u32; 2] = [1000, 1_000_000];

/// What the comparison is called.
pub fn name(flows: u32) -> String {
    format!("workers/2/{flows}")
}

/// Packets per second of two workers by those of one, with so many connections in all; each timing of one is followed by one of two.
pub fn two_by_one(flows: u32) -> Vec<f64> {
    let timing = |_| {
        let alone = rate(&[flows]);
        rate(&[flows / 2, flows / 2]) / alone
    };
    (0..5).map(timing).collect()
}

/// Packets per second of threads that start together, each with so many connections.
fn rate(flows: &[u32]) -> f64 {
    let (ready, stop) = (Barrier::new(flows.len() + 1), AtomicBool::new(false));
    let worker = |flows: u32| {
        let mut work = passing(flows, false, Spread::Uniform);
        (0..1000).for_each(|_| work());
        ready.wait();
        let (begun, mut batches) = (Instant::now(), 0_u64);
        while !stop.load(Relaxed) {
            (0..UNWATCHED).for_each(|_| work());
            batches += UNWATCHED;
        }
        (batches * BATCH as u64) as f64 / begun.elapsed().as_secs_f64()
    };
    thread::scope(|scope| {
        let worker = &worker;
        let start = |flows: &u32| {
            let flows = *flows;
            scope.spawn(move || worker(flows))
        };
        let workers: Vec<_> = flows.iter().map(start).collect();
        ready.wait();
        thread::sleep(SLICE);
        stop.store(true, Relaxed);
        workers.into_iter().map(|worker| worker.join().unwrap_or_default()).sum()
    })
}
