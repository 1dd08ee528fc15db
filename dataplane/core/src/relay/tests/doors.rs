//! Accepting and watching where descriptors and memory run out, and completions are lost.

use std::collections::{BTreeMap, VecDeque};

use super::sim::Rng;
use crate::ids::Nanos;
use crate::relay::doors::{BACKOFF, Came, DoorOp, Doors};

const NOW: Nanos = Nanos::from_secs(7);

/// A kernel with listeners at which clients wait, and with few descriptors and little memory.
struct Kernel {
    rng: Rng,
    doors: Doors,
    now: Nanos,
    /// Accepts under way: by listener, and the turns of those that are to end.
    accepting: BTreeMap<u32, u32>,
    /// What it has to say of accepts: listener, turn, what, and whether it goes on.
    says: VecDeque<(u32, u32, Came, bool)>,
    waiting: Vec<u32>,
    served: u32,
    descriptors: u32,
    has_memory: bool,
    closed: Vec<bool>,
    /// When each listener, and each watch, may be tried again at the earliest.
    not_before: BTreeMap<u32, Nanos>,
    watches: BTreeMap<u64, Nanos>,
    watched: u32,
}

impl Kernel {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let listeners = 1 + rng.below(4) as usize;
        let waiting = (0..listeners).map(|_| rng.below(20)).collect();
        Self {
            doors: Doors::new(listeners),
            now: NOW,
            accepting: BTreeMap::new(),
            says: VecDeque::new(),
            waiting,
            served: 0,
            descriptors: rng.below(10),
            has_memory: true,
            closed: vec![false; listeners],
            not_before: BTreeMap::new(),
            watches: BTreeMap::new(),
            watched: 0,
            rng,
        }
    }

    fn carry_out(&mut self) {
        while let Some(op) = self.doors.poll() {
            match op {
                DoorOp::Accept { number, turn } => {
                    assert!(!self.closed[number as usize], "accepts at a closed listener");
                    assert!(
                        self.accepting.insert(number, turn).is_none(),
                        "two accepts at listener {number}"
                    );
                    assert!(self.not_before.get(&number).is_none_or(|at| *at <= self.now), "tried too early");
                }
                DoorOp::Cancel { number, turn } => self.end(number, turn),
                DoorOp::Close { number, turn } => {
                    self.closed[number as usize] = true;
                    self.end(number, turn);
                }
                DoorOp::Watch(word) => {
                    let at = self.watches.remove(&word).expect("it failed");
                    assert!(at <= self.now, "watched too early");
                    self.watch(word);
                }
            }
        }
    }

    fn end(&mut self, number: u32, turn: u32) {
        if self.accepting.get(&number) == Some(&turn) {
            self.accepting.remove(&number);
            self.says.push_back((number, turn, Came::Cancelled, false));
        }
    }

    fn watch(&mut self, word: u64) {
        if self.has_memory {
            self.watched += 1;
        } else {
            self.watches.insert(word, self.now.saturating_add(BACKOFF));
            self.doors.handle_unwatched(self.now, word);
        }
    }

    /// A client comes to an accept, or what it lacks ends that.
    fn serve(&mut self, number: u32) {
        let Some(&turn) = self.accepting.get(&number).filter(|_| self.waiting[number as usize] > 0) else {
            return;
        };
        if self.descriptors == 0 || !self.has_memory {
            self.accepting.remove(&number);
            self.not_before.insert(number, self.now.saturating_add(BACKOFF));
            return self.says.push_back((number, turn, Came::Short, false));
        }
        self.descriptors -= 1;
        self.waiting[number as usize] -= 1;
        self.served += 1;
        let more = self.rng.chance(80);
        if !more {
            self.accepting.remove(&number);
        }
        self.says.push_back((number, turn, Came::Client, more));
        self.watch(u64::from(self.served));
    }

    fn hear(&mut self) {
        if let Some((number, turn, came, more)) = self.says.pop_front() {
            self.doors.handle(self.now, number, turn, came, more);
        }
    }

    fn step(&mut self) {
        match self.rng.below(12) {
            0 => self.descriptors = self.rng.below(6),
            1 => self.has_memory = self.rng.chance(50),
            2 => self.now = self.now.saturating_add(Nanos::from_millis(u64::from(self.rng.below(150)))),
            3 => self.doors.again(),
            4 if self.rng.chance(20) => {
                // What was to be said is not, and that it is so is.
                let lost = self.rng.below(1 + self.says.len() as u32) as usize;
                self.says.truncate(lost);
                self.not_before.clear();
                self.doors.handle_lost();
            }
            5 => {
                let is_due = self.doors.next().is_some_and(|at| at <= self.now);
                self.doors.handle_time(self.now);
                if !is_due {
                    assert_eq!(self.doors.poll(), None, "who sleeps until then is late");
                }
            }
            6..9 => {
                let number = self.rng.below(self.waiting.len() as u32);
                self.serve(number);
            }
            _ => self.hear(),
        }
        self.carry_out();
    }

    /// There is enough of everything, and nothing is lost any more.
    fn finish(&mut self) {
        (self.descriptors, self.has_memory) = (u32::MAX, true);
        for _ in 0..1000 {
            self.now = self.now.saturating_add(BACKOFF);
            self.doors.handle_time(self.now);
            (0..self.waiting.len() as u32).for_each(|number| self.serve(number));
            while !self.says.is_empty() {
                self.hear();
            }
            self.carry_out();
        }
    }
}

#[test]
fn seeds_every_client_is_served_once_there_is_what_it_takes_and_nothing_is_tried_in_haste() {
    let mut short = 0;
    for seed in 0..3000 {
        let mut kernel = Kernel::new(seed);
        let all: u32 = kernel.waiting.iter().sum();
        kernel.doors.open();
        kernel.carry_out();
        (0..300).for_each(|_| kernel.step());
        short += kernel.not_before.len();
        kernel.finish();
        assert_eq!((kernel.served, kernel.watched), (all, all), "seed {seed}");
        assert!(kernel.watches.is_empty() && !kernel.doors.is_over(), "seed {seed}");
    }
    assert!(short > 1000, "{short}");
}

#[test]
fn seeds_closed_doors_are_over_when_nothing_can_come_any_more() {
    for seed in 0..3000 {
        let mut kernel = Kernel::new(seed);
        kernel.doors.open();
        kernel.carry_out();
        let steps = kernel.rng.below(100);
        (0..steps).for_each(|_| kernel.step());
        kernel.doors.close();
        kernel.carry_out();
        let steps = kernel.rng.below(20);
        (0..steps).for_each(|_| kernel.step());
        kernel.finish();
        assert!(kernel.doors.is_over() && kernel.accepting.is_empty(), "seed {seed}");
    }
}
