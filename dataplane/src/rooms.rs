//! Memory for what clients wait with, where a reload asks for more than a worker has: it is made and freed here, by control, and
//! only changes hands in a worker's breath.

use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::queue::ArrayQueue;
use weir_core::hold::Room;
use weir_core::policy::Policy;

/// A worker's letter box.
#[derive(Debug)]
pub struct RoomBox<F> {
    fresh: ArrayQueue<Room<F>>,
    spent: ArrayQueue<Room<F>>,
}

impl<F> RoomBox<F> {
    fn new() -> Self {
        // One spent room for each fresh one that was put in since the spent ones were last taken out, and one more for a worker
        // that is just taking one.
        Self { fresh: ArrayQueue::new(1), spent: ArrayQueue::new(2) }
    }

    /// Lets `swap` exchange a larger room, if there is one, for the worker's own.
    pub fn take(&self, swap: impl FnOnce(&mut Room<F>)) {
        if let Some(mut room) = self.fresh.pop() {
            swap(&mut room);
            // There is space: see `new`.
            drop(self.spent.push(room));
        }
    }
}

/// Control's side: the boxes of all workers, and what they have.
#[derive(Debug)]
pub struct Rooms<F> {
    boxes: Vec<Arc<RoomBox<F>>>,
    /// Holds and octets of each that every worker has or will have.
    size: Mutex<(usize, usize)>,
    /// Connections that a worker has room for.
    flows: usize,
}

impl<F> Rooms<F> {
    /// For `workers` of which each has so many holds of so many octets.
    pub fn new(workers: usize, size: (usize, usize), flows: usize) -> Self {
        let boxes = (0..workers).map(|_| Arc::new(RoomBox::new())).collect();
        Self { boxes, size: Mutex::new(size), flows }
    }

    /// A worker's box.
    pub fn of(&self, worker: usize) -> Option<Arc<RoomBox<F>>> {
        self.boxes.get(worker).cloned()
    }

    /// Makes room for what `policy` holds, before it is published, and frees what is used no more.
    pub fn prepare(&self, policy: &Policy) {
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = policy.hold_room(self.boxes.len(), self.flows).unwrap_or_default();
        let larger = (size.0.max(wanted.0), size.1.max(wanted.1));
        let grows = larger != *size;
        *size = larger;
        for of_worker in &self.boxes {
            while of_worker.spent.pop().is_some() {}
            if grows {
                // One that was not taken yet is smaller.
                drop(of_worker.fresh.force_push(Room::new(larger.0, larger.1)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_core::policy::{InterceptSpec, Limits, PolicyBuilder};

    use super::*;

    fn policy(held: u64, bytes: u32) -> Policy {
        let spec = InterceptSpec { hold_bytes: bytes, ..InterceptSpec::new("web") };
        let limits = Limits { held: Some(held), ..Limits::default() };
        PolicyBuilder::new(1).limits(limits).intercept(spec).build().expect("a policy")
    }

    #[test]
    fn more_is_made_once_and_what_was_swapped_out_is_freed_by_the_next_call() {
        let rooms: Rooms<()> = Rooms::new(2, (32, 1024), 4096);
        rooms.prepare(&policy(64 * 1024, 1024));
        let own = rooms.of(0).expect("two workers");
        own.take(|_| panic!("it has as much already"));
        rooms.prepare(&policy(1 << 20, 1024));
        rooms.prepare(&policy(1 << 20, 2048));
        own.take(|room| assert_eq!(room.size(), (512, 2048), "the larger of both, for half of the box"));
        own.take(|_| panic!("taken"));
        assert_eq!(own.spent.len(), 1);
        rooms.prepare(&policy(1 << 18, 1024));
        assert!(own.spent.is_empty() && own.fresh.is_empty(), "what shrinks needs nothing");
        assert_eq!(rooms.of(1).expect("the other").fresh.len(), 1, "it has not taken its own");
    }
}
