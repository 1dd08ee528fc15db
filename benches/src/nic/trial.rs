//! One trial: frames at a rate for a while, and what comes of them.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use weir_sys::{affinity, clock};

use super::flows::Flows;
use super::port::{BATCH, Port};
use super::shape::{Kind, stamp_of};
use crate::Failure;

/// After the last frame was sent, what is under way has so long to arrive.
const UNDER_WAY: Duration = Duration::from_millis(300);
/// The longest sleep of the receiver.
const NAP: Duration = Duration::from_millis(1);
/// A sender that is further behind than so many batches does not catch up: the rate is not attained.
const BEHIND: f64 = 4.0 * BATCH as f64;
/// Rounds of the sender between two looks at what comes back to it.
const LOOK_EVERY: u64 = 32;
/// Nearer than this in ns a sender does not sleep until a frame is due.
const WAKE_UP: u64 = 100_000;
/// The longest latency that is told apart, in ns.
const LONGEST: u64 = 60_000_000_000;

/// How much, and by which CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub kind: Kind,
    /// Frames per second; none: as many as the sender can.
    pub rate: Option<f64>,
    pub seconds: f64,
    /// Queues that are sent by, from the first on.
    pub tx_queues: usize,
    pub tx_cpu: Option<usize>,
    pub rx_cpu: Option<usize>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seconds: f64,
    pub sent: u64,
    /// By queue of the receiving device.
    pub arrived: Vec<u64>,
    /// Frames that came back to the sending device: answers to SYNs.
    pub returned: u64,
    /// Of those that arrived, those that the tester had no room for: no latency is known of them.
    pub unread: u64,
    /// Frames that were overtaken by a later one of their queue.
    pub reordered: u64,
    /// In ns; frames without a stamp are not in it.
    pub latency: Histogram<u64>,
}

/// Its figures as they are stored.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub offered_per_s: Option<f64>,
    pub sent_per_s: f64,
    pub arrived_per_s: f64,
    pub sent: u64,
    pub arrived: u64,
    pub lost: u64,
    pub arrived_by_queue: Vec<u64>,
    pub returned: u64,
    pub unread_by_tester: u64,
    pub reordered: u64,
}

impl Outcome {
    pub fn arrived(&self) -> u64 {
        self.arrived.iter().sum()
    }

    /// What the box between did not deliver.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.arrived())
    }

    pub fn figures(&self, order: &Order) -> Figures {
        Figures {
            offered_per_s: order.rate,
            sent_per_s: self.sent as f64 / self.seconds,
            arrived_per_s: self.arrived() as f64 / self.seconds,
            sent: self.sent,
            arrived: self.arrived(),
            lost: self.lost(),
            arrived_by_queue: self.arrived.clone(),
            returned: self.returned,
            unread_by_tester: self.unread,
            reordered: self.reordered,
        }
    }
}

/// Sends and receives.
///
/// # Errors
/// A thread cannot be pinned, or the kernel does not tell its counters.
pub fn run(tx: &mut Port, rx: &mut Port, flows: &mut Flows, order: &Order) -> Result<Outcome, Failure> {
    let (before, back, lost) = (rx.arrived()?, tx.arrived()?, rx.lost_here()?);
    let is_over = AtomicBool::new(false);
    let (sent, received) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(rx, order, &is_over));
        let sent = send(tx, flows, order);
        std::thread::sleep(UNDER_WAY);
        is_over.store(true, Relaxed);
        (sent, receiver.join())
    });
    let ((sent, ns), received) = (sent?, received.map_err(|_| "the receiver panicked")??);
    let grown =
        |now: &[u64], before: &[u64]| now.iter().zip(before).map(|(now, before)| now - before).collect();
    let arrived: Vec<u64> = grown(&rx.arrived()?, &before);
    let returned: Vec<u64> = grown(&tx.arrived()?, &back);
    Ok(Outcome {
        seconds: ns as f64 / 1e9,
        sent,
        arrived,
        returned: returned.iter().sum(),
        unread: rx.lost_here()? - lost,
        reordered: received.reordered,
        latency: received.latency,
    })
}

/// Returns how many frames have left, and in how many ns.
fn send(tx: &mut Port, flows: &mut Flows, order: &Order) -> Result<(u64, u64), Failure> {
    order.tx_cpu.map_or(Ok(()), affinity::pin_to_cpu)?;
    let (begin, mut sent, mut rounds) = (clock::monotonic_ns(), 0_u64, 0_u64);
    let end = begin + (order.seconds * 1e9) as u64;
    // From when on the rate counts: later, where the sender was behind.
    let mut since = (begin, 0_u64);
    loop {
        let now = clock::monotonic_ns();
        if now >= end {
            break;
        }
        let count = match order.rate {
            None => BATCH,
            Some(rate) => {
                let due = (now - since.0) as f64 * rate / 1e9 - (sent - since.1) as f64;
                if due > BEHIND {
                    since = (now, sent);
                }
                if due < 1.0 {
                    let wait = ((1.0 - due) / rate * 1e9) as u64;
                    pause(wait.min(end - now));
                    continue;
                }
                due as usize
            }
        };
        rounds += 1;
        sent += tx.send(rounds as usize % order.tx_queues, count, |buffer| flows.write(buffer, now)) as u64;
        if rounds.is_multiple_of(LOOK_EVERY) {
            tx.receive(|_, _| None);
        }
    }
    let until = clock::monotonic_ns() + UNDER_WAY.as_nanos() as u64;
    while tx.outstanding() > 0 && clock::monotonic_ns() < until {
        std::hint::spin_loop();
    }
    tx.receive(|_, _| None);
    Ok((sent - tx.outstanding() as u64, end - begin))
}

fn pause(ns: u64) {
    if ns > WAKE_UP {
        std::thread::sleep(Duration::from_nanos(ns - WAKE_UP / 2));
    } else {
        std::hint::spin_loop();
    }
}

struct Received {
    latency: Histogram<u64>,
    reordered: u64,
}

fn receive(rx: &mut Port, order: &Order, is_over: &AtomicBool) -> Result<Received, Failure> {
    order.rx_cpu.map_or(Ok(()), affinity::pin_to_cpu)?;
    let mut received = Received { latency: Histogram::new_with_bounds(1, LONGEST, 3)?, reordered: 0 };
    let (mut waiter, mut last) = (rx.waiter()?, vec![None; rx.queues()]);
    loop {
        let over = is_over.load(Relaxed);
        let mut now = None;
        let got = rx.receive(|queue, octets| {
            let now = *now.get_or_insert_with(clock::monotonic_ns);
            let stamp = stamp_of(order.kind, octets)?;
            received.latency.saturating_record(now.saturating_sub(stamp.sent));
            let last = last.get_mut(queue)?;
            let is_late = last.is_some_and(|last: u32| (stamp.number.wrapping_sub(last) as i32) < 0);
            received.reordered += u64::from(is_late);
            if !is_late {
                *last = Some(stamp.number);
            }
            None
        });
        if got == 0 {
            if over {
                return Ok(received);
            }
            waiter.wait(NAP, || false)?;
        }
    }
}
