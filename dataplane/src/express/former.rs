//! Lanes that a weir of another layout has left ([`weir_sys::steering::FormerLane`]): how many connections they still have, and when
//! the last has ended.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weir_core::stage::timers;
use weir_sys::clock;
use weir_sys::steering::{Ends, FormerLane, FormerTimes, Left};

const TIMES: FormerTimes =
    FormerTimes { closed: timers::CLOSED.0, reset: timers::RESET.0, idle: timers::IDLE.0 };
/// Looking at all connections may take so much of a core: one part in this many.
const SHARE: u32 = 20;
/// And is not done more often than this.
const PAUSE: Duration = Duration::from_secs(1);

/// All such lanes. Control asks for the look once a second, on a thread that may wait.
#[derive(Debug)]
pub struct Former {
    state: Mutex<State>,
    /// Whether there is any: each SYN asks.
    has: AtomicBool,
}

#[derive(Debug)]
struct State {
    lanes: Vec<FormerLane>,
    left: Left,
    /// Layouts whose last connection has ended.
    ended: Vec<u32>,
    /// Not before; none: somebody looks.
    next: Option<Instant>,
}

impl Former {
    pub(super) const fn new(lanes: Vec<FormerLane>) -> Self {
        let left = Left { flows: 0, translated: 0 };
        let has = AtomicBool::new(!lanes.is_empty());
        Self { state: Mutex::new(State { lanes, left, ended: Vec::new(), next: None }), has }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lanes that are left.
    pub fn lanes(&self) -> Vec<FormerLane> {
        self.state().lanes.clone()
    }

    /// Source and destination, as they go out, of what goes from the first of these to the second, if one of them still carries that. A few
    /// system calls, while there is any.
    pub fn held(&self, ends: Ends) -> Option<Ends> {
        if !self.has.load(Relaxed) {
            return None;
        }
        self.lanes().iter().find_map(|lane| lane.held(ends).ok().flatten())
    }

    /// Connections that they have, as seen last.
    pub fn left(&self) -> Left {
        self.state().left
    }

    /// Whether [`Self::look`] is to be called; then nobody else is told so before it is done.
    pub fn wants_look(&self) -> bool {
        let mut state = self.state();
        let wants = !state.lanes.is_empty() && state.next.is_some_and(|next| next <= Instant::now());
        if wants {
            state.next = None;
        }
        wants
    }

    /// Counts the connections, and takes out those that have ended.
    pub fn look(&self) {
        let (begun, mut left, mut ended) = (Instant::now(), Left::default(), Vec::new());
        for lane in self.lanes() {
            match lane.sweep(clock::monotonic_ns(), &TIMES) {
                Ok(Left { flows: 0, .. }) => ended.push(lane.layout),
                Ok(Left { flows, translated }) => {
                    left.flows += flows;
                    left.translated += translated;
                }
                Err(error) => tracing::warn!(%error, "express lane: that of another version cannot be read"),
            }
        }
        let mut state = self.state();
        state.lanes.retain(|lane| !ended.contains(&lane.layout));
        self.has.store(!state.lanes.is_empty(), Relaxed);
        state.ended.append(&mut ended);
        state.left = left;
        state.next = Some(Instant::now() + PAUSE + begun.elapsed() * SHARE);
    }

    /// Layouts whose last connection has ended since this was asked last: nothing of them is needed any more.
    pub fn take_ended(&self) -> Vec<u32> {
        std::mem::take(&mut self.state().ended)
    }
}
