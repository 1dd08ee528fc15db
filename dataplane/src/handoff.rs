//! Between workers: a frame that arrives at one worker and belongs to another crosses by descriptor, over bounded
//! lock-free queues (crossbeam). The memory area is shared, so nothing is copied.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use weir_core::flow::key::{FlowKey, Tuple};
use weir_core::hold::Packet;
use weir_core::ids::{Nanos, PortId};
use weir_core::parse::FragmentMeta;
use weir_core::wire::icmp::IcmpMeta;
use weir_sys::waiter::Waker;

/// What crosses.
#[derive(Debug)]
pub enum Crossing<F> {
    /// A segment of a flow that the other worker owns.
    Packet(Packet<F>),
    Fragment(F, PortId, FragmentMeta),
    /// A finished frame for a port of which only the other worker has a queue.
    Send(PortId, F),
    /// An ICMP error about a flow that the other worker owns.
    Icmp(F, PortId, IcmpMeta),
    /// What the destination of `leg` answers is to be handed to worker `owner`; then the frame is to be sent.
    Claim {
        owner: usize,
        leg: Tuple,
        frame: Option<(PortId, F)>,
    },
    /// What `owner` claimed it does not need any more.
    Release {
        owner: usize,
        key: FlowKey,
    },
}

impl<F> Crossing<F> {
    /// The frame, when it could not cross.
    pub fn into_frame(self) -> Option<F> {
        match self {
            Self::Packet(packet) => Some(packet.frame),
            Self::Fragment(frame, ..) | Self::Send(_, frame) | Self::Icmp(frame, ..) => Some(frame),
            Self::Claim { frame, .. } => frame.map(|(_, frame)| frame),
            Self::Release { .. } => None,
        }
    }
}

/// One worker's mailbox.
#[derive(Debug)]
struct Mailbox<F> {
    queue: ArrayQueue<Crossing<F>>,
    waker: Waker,
}

/// Mailboxes of all workers, and the reservoir that evens out their pools: frames are freed where they leave, not where
/// they came from.
#[derive(Debug)]
pub struct Handoff<F> {
    mailboxes: Vec<Mailbox<F>>,
    /// When each worker last had nothing in hand, ns: written in each idle breath, so that each has its cache line.
    idle: Vec<CachePadded<AtomicU64>>,
    reservoir: ArrayQueue<F>,
}

impl<F> Handoff<F> {
    /// For as many workers as there are wakers; `room` crossings each, `frames` frames in all.
    pub fn new(wakers: Vec<Waker>, room: usize, frames: usize) -> Arc<Self> {
        let mailbox = |waker| Mailbox { queue: ArrayQueue::new(room), waker };
        Arc::new(Self {
            idle: wakers.iter().map(|_| CachePadded::default()).collect(),
            mailboxes: wakers.into_iter().map(mailbox).collect(),
            reservoir: ArrayQueue::new(frames.max(1)),
        })
    }

    pub fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    /// Hands over to `worker`; gives it back when the mailbox is full. [`Self::wake`] comes after the batch.
    pub fn send(&self, worker: usize, crossing: Crossing<F>) -> Result<(), Crossing<F>> {
        match self.mailboxes.get(worker) {
            // push (Release) pairs with pop (Acquire) in receive().
            Some(mailbox) => mailbox.queue.push(crossing),
            None => Err(crossing),
        }
    }

    /// Wakes a worker that sleeps.
    pub fn wake(&self, worker: usize) {
        if let Some(mailbox) = self.mailboxes.get(worker) {
            mailbox.waker.wake();
        }
    }

    pub fn receive(&self, worker: usize) -> Option<Crossing<F>> {
        self.mailboxes.get(worker)?.queue.pop()
    }

    /// Whether something waits for `worker`.
    pub fn has_mail(&self, worker: usize) -> bool {
        self.mailboxes.get(worker).is_some_and(|m| !m.queue.is_empty())
    }

    /// Says that `worker` had nothing in hand at `at`: whatever came in until then was handed over, or has left.
    pub fn set_idle(&self, worker: usize, at: Nanos) {
        if let Some(idle) = self.idle.get(worker) {
            // Pairs with the load below: what was handed over before is in the mailboxes.
            idle.store(at.0, Ordering::Release);
        }
    }

    /// When `worker` last had nothing in hand.
    pub fn idle(&self, worker: usize) -> Nanos {
        Nanos(self.idle.get(worker).map_or(u64::MAX, |idle| idle.load(Ordering::Acquire)))
    }

    /// When the last of all other workers had nothing in hand. What they have handed over until then is in the mailboxes.
    pub fn others_idle(&self, worker: usize) -> Nanos {
        let others = (0..self.workers()).filter(|other| *other != worker);
        others.map(|other| self.idle(other)).min().unwrap_or(Nanos(u64::MAX))
    }

    /// Keeps a pool between `low` and `high` frames.
    pub fn balance(&self, pool: &mut Vec<F>, low: usize, high: usize) {
        while pool.len() > high {
            let Some(frame) = pool.pop() else { break };
            if let Err(frame) = self.reservoir.push(frame) {
                pool.push(frame);
                break;
            }
        }
        while pool.len() < low {
            let Some(frame) = self.reservoir.pop() else { break };
            pool.push(frame);
        }
    }

    /// Takes up to `count` free frames that no worker has.
    pub fn take(&self, count: usize) -> Vec<F> {
        std::iter::from_fn(|| self.reservoir.pop()).take(count).collect()
    }

    /// Gives frames back.
    pub fn put(&self, frames: impl IntoIterator<Item = F>) {
        for frame in frames {
            // There is room for all frames that there are.
            let _ = self.reservoir.push(frame);
        }
    }

    /// Free frames that no worker has.
    pub fn in_reservoir(&self) -> usize {
        self.reservoir.len()
    }
}
