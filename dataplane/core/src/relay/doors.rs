//! When a thread of the relay accepts and watches, and when it waits with that: descriptors or memory are short, another process
//! accepts beside this one, the listeners close, or the kernel has lost what it had to say.
//!
//! One accept is under way at each listener, and brings connections until it ends. Each has a turn: an accept that was given up is
//! known by it when it speaks after all.

use std::collections::VecDeque;

use crate::ids::Nanos;

/// How long is waited when descriptors or memory are short.
pub const BACKOFF: Nanos = Nanos::from_millis(100);

/// Turns go round: one of so long ago has spoken.
const TURNS: u32 = 1 << 24;

/// What came of an accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// A connection, or one that was gone before it could be had.
    Client,
    /// Descriptors or memory are short.
    Short,
    /// It was told to end.
    Cancelled,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorOp {
    /// Accept at a listener until that ends.
    Accept { number: u32, turn: u32 },
    /// End an accept: it ends with [`Came::Cancelled`], or has ended.
    Cancel { number: u32, turn: u32 },
    /// Close a listener, and end its accept.
    Close { number: u32, turn: u32 },
    /// Watch what was being watched under this word.
    Watch(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is under way.
    Shut,
    Accepting,
    /// Until then.
    Waiting(Nanos),
}

#[derive(Debug)]
struct Door {
    state: State,
    turn: u32,
}

/// The listeners of a thread, and the watches that could not be had.
#[derive(Debug)]
pub struct Doors {
    doors: Vec<Door>,
    is_closed: bool,
    /// Watches to be tried again, and when: in order.
    watches: VecDeque<(Nanos, u64)>,
    ops: VecDeque<DoorOp>,
}

impl Doors {
    /// So many listeners, at which nothing is accepted yet.
    pub fn new(listeners: usize) -> Self {
        let doors = (0..listeners).map(|_| Door { state: State::Shut, turn: 0 }).collect();
        Self { doors, is_closed: false, watches: VecDeque::new(), ops: VecDeque::new() }
    }

    /// What is to be done next.
    pub fn poll(&mut self) -> Option<DoorOp> {
        self.ops.pop_front()
    }

    /// Accepts at all listeners.
    pub fn open(&mut self) {
        for number in 0..self.doors.len() {
            self.accept(number);
        }
    }

    /// An accept said something; `more`: it goes on. Of one that was given up it changes nothing.
    pub fn handle(&mut self, now: Nanos, number: u32, turn: u32, came: Came, more: bool) {
        let Some(door) = self.doors.get_mut(number as usize).filter(|door| door.turn == turn) else { return };
        if more || door.state != State::Accepting {
            return;
        }
        door.state = State::Shut;
        match came {
            _ if self.is_closed => {}
            Came::Short => door.state = State::Waiting(now.saturating_add(BACKOFF)),
            Came::Client | Came::Cancelled => self.accept(number as usize),
        }
    }

    /// A watch failed for want of memory.
    pub fn handle_unwatched(&mut self, now: Nanos, word: u64) {
        self.watches.push_back((now.saturating_add(BACKOFF), word));
    }

    /// Something that was said is lost, nobody knows what: accepts may have ended without a word.
    pub fn handle_lost(&mut self) {
        for number in 0..self.doors.len() {
            let Some(door) = self.doors.get_mut(number).filter(|door| door.state == State::Accepting) else {
                continue;
            };
            self.ops.push_back(DoorOp::Cancel { number: number as u32, turn: door.turn });
            door.state = State::Shut;
            if !self.is_closed {
                self.accept(number);
            }
        }
    }

    /// Accepting begins anew at all listeners.
    pub fn again(&mut self) {
        for (door, number) in self.doors.iter().zip(0..).filter(|(door, _)| door.state == State::Accepting) {
            self.ops.push_back(DoorOp::Cancel { number, turn: door.turn });
        }
    }

    /// Closes the listeners. Connections may come until [`Self::is_over`].
    pub fn close(&mut self) {
        if std::mem::replace(&mut self.is_closed, true) {
            return;
        }
        for (door, number) in self.doors.iter_mut().zip(0..) {
            self.ops.push_back(DoorOp::Close { number, turn: door.turn });
            if door.state != State::Accepting {
                door.state = State::Shut;
            }
        }
    }

    /// When [`Self::handle_time`] has something to do; none: never, as things are.
    pub fn next(&self) -> Option<Nanos> {
        let waits = |door: &Door| match door.state {
            State::Waiting(at) if !self.is_closed => Some(at),
            _ => None,
        };
        let watch = self.watches.front().map(|(at, _)| *at);
        self.doors.iter().filter_map(waits).chain(watch).min()
    }

    /// What has waited long enough.
    pub fn handle_time(&mut self, now: Nanos) {
        for number in 0..self.doors.len() {
            let waits_no_more =
                |door: &Door| matches!(door.state, State::Waiting(at) if at <= now) && !self.is_closed;
            if self.doors.get(number).is_some_and(waits_no_more) {
                self.accept(number);
            }
        }
        while let Some((_, word)) = self.watches.pop_front_if(|(at, _)| *at <= now) {
            self.ops.push_back(DoorOp::Watch(word));
        }
    }

    /// No connection can come any more.
    pub fn is_over(&self) -> bool {
        self.is_closed && self.doors.iter().all(|door| door.state == State::Shut)
    }

    fn accept(&mut self, number: usize) {
        let Some(door) = self.doors.get_mut(number) else { return };
        (door.state, door.turn) = (State::Accepting, (door.turn + 1) % TURNS);
        self.ops.push_back(DoorOp::Accept { number: number as u32, turn: door.turn });
    }
}
