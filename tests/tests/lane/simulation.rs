//! Whole connections by seed, with the real program beside the pipeline: it carries what it is let have, and gives packets and whole
//! connections back at random moments. Both ends' TCP must not notice, whatever the network does (`weir_tests::soak`).

use std::collections::{HashMap, HashSet};

use weir_core::express::{Carried, ExpressOp, Names, Passed};
use weir_core::frame::HeapFrame;
use weir_core::ids::PortId;
use weir_core::pipeline::{Output, Pipeline};
use weir_tests::bench::{LAN, WAN};
use weir_tests::pair::Express as Beside;
use weir_tests::random::Random;
use weir_tests::soak::{End, run_beside};

use super::*;

/// Connections of a test run.
const SEEDS: u64 = 700;

/// The program beside the pipeline.
struct Program<'a> {
    lane: &'a mut Lane,
    random: Random,
    /// One packet in so many is the worker's, and so is the connection after one in so many; 0: none.
    hands_up: u64,
    gives_back: u64,
    /// Connections that wait to enter, and for how many looks.
    waiting: Vec<(Carried, u64)>,
    /// What it has, by what comes in: whose it is, and when it was seen.
    flows: HashMap<Tuple, (Names, Nanos)>,
    /// Those that it only stands by for, by what their clients send.
    ending: HashSet<Tuple>,
    counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    entered: u64,
    carried: u64,
    handed_up: u64,
    given_back: u64,
}

impl<'a> Program<'a> {
    fn new(lane: &'a mut Lane, seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x1a_4e);
        let mut rate = |choices: [u64; 4]| choices[random.below(4) as usize];
        let (hands_up, gives_back) = (rate([0, 40, 8, 3]), rate([0, 100, 30, 10]));
        let (waiting, flows, counts) = (Vec::new(), HashMap::new(), Counts::default());
        Self { lane, random, hands_up, gives_back, waiting, flows, ending: HashSet::new(), counts }
    }

    fn enter(&mut self, now: Nanos, carried: &Carried) -> bool {
        let same =
            Translation { client: carried.names.client, server: carried.names.server, ..plain(Family::V4) };
        let flow = flow_of(&carried.up.unwrap_or(same));
        assert_eq!(ends(&carried.names.client), flow.client);
        let has_room = !self.random.one_in(20);
        if has_room {
            assert_eq!(self.lane.express.insert(&mut self.lane.batch, &[flow]).unwrap(), 1);
            self.flows.insert(carried.names.client, (carried.names, now));
            self.flows.insert(carried.names.server.reversed(), (carried.names, now));
            self.counts.entered += 1;
        }
        has_room
    }

    fn take(&mut self, names: &Names) -> Passed {
        let passed = self.passed(names);
        self.lane.express.take(ends(&names.client), ends(&names.server)).unwrap();
        self.ending.remove(&names.client);
        self.flows.remove(&names.client);
        self.flows.remove(&names.server.reversed());
        passed.unwrap_or_default()
    }

    fn passed(&self, names: &Names) -> Option<Passed> {
        let seen = [names.client, names.server.reversed()].map(|tuple| self.flows.get(&tuple));
        let [Some((_, up_seen)), Some((_, down_seen))] = seen else { return None };
        let [Some(up), Some(down)] =
            self.lane.express.seen(ends(&names.client), ends(&names.server)).unwrap()
        else {
            panic!("the map has lost a connection")
        };
        Some(Passed {
            packets_to_server: up.packets,
            packets_to_client: down.packets,
            bytes_to_server: up.bytes,
            bytes_to_client: down.bytes,
            seen: *up_seen.max(down_seen),
            fins: (up.fin, down.fin),
            rst: false,
        })
    }

    fn carry_out_one(
        &mut self,
        now: Nanos,
        op: ExpressOp,
        pipe: &mut Pipeline<HeapFrame>,
        out: &mut Output<HeapFrame>,
    ) {
        match op {
            ExpressOp::Enter(carried) => self.waiting.push((carried, self.random.below(6))),
            ExpressOp::Leave(names) => {
                self.let_in(now, true, pipe);
                let passed = self.take(&names);
                pipe.handle_passed(&names.key(), &passed);
            }
            ExpressOp::Ending { names, fins, says } => {
                self.let_in(now, true, pipe);
                let (client, server) = (ends(&names.client), ends(&names.server));
                if let Some(passed) = self.passed(&names) {
                    self.lane.express.set_ending(client, server, fins, says).unwrap();
                    self.ending.insert(names.client);
                    pipe.handle_ending(&names.key(), &passed, out);
                }
            }
            ExpressOp::Ask(names) => {
                self.let_in(now, true, pipe);
                pipe.handle_seen(&names.key(), self.passed(&names).as_ref(), out);
            }
            ExpressOp::Note(_) => {}
        }
    }

    /// Those whose time has come enter, or all.
    fn let_in(&mut self, now: Nanos, all: bool, pipe: &mut Pipeline<HeapFrame>) {
        for (carried, looks) in std::mem::take(&mut self.waiting) {
            if looks > 0 && !all {
                self.waiting.push((carried, looks - 1));
                continue;
            }
            let entered = self.enter(now, &carried);
            let is_wanted = pipe.handle_entered(&carried.names.key(), entered);
            if entered && !is_wanted {
                self.take(&carried.names);
            }
        }
    }
}

impl Beside for Program<'_> {
    fn carry(&mut self, now: Nanos, port: PortId, frame: &[u8]) -> Option<(PortId, Vec<u8>)> {
        let tuple = meta_of(frame)?.tuple;
        let (names, seen) = self.flows.get_mut(&tuple)?;
        if self.ending.contains(&names.client) {
            return None;
        }
        if self.random.one_in(self.hands_up) {
            self.counts.handed_up += 1;
            return None;
        }
        let (way, to) = if port == LAN { (Way::ToServer, WAN) } else { (Way::ToClient, LAN) };
        let trial = self.lane.run(way, frame);
        // What is for the worker comes out as it came in.
        if trial.frame[..6] != NEXT[way as usize] {
            assert_eq!(trial.frame, frame);
            return None;
        }
        assert_eq!(trial.action, REDIRECT);
        *seen = now;
        self.counts.carried += 1;
        Some((to, trial.frame))
    }

    fn carry_out(&mut self, now: Nanos, pipe: &mut Pipeline<HeapFrame>, out: &mut Output<HeapFrame>) {
        self.let_in(now, false, pipe);
        while !out.express.is_empty() {
            for op in std::mem::take(&mut out.express) {
                self.carry_out_one(now, op, pipe, out);
            }
        }
        if self.random.one_in(self.gives_back)
            && let Some((names, _)) = self.flows.values().next().copied()
        {
            // As after somebody has emptied the map.
            self.take(&names);
            pipe.handle_seen(&names.key(), None, out);
            self.counts.given_back += 1;
        }
    }
}

#[test]
fn connections_of_every_kind_go_into_the_lane_and_out_of_it_and_arrive_whole() {
    with_lane(|lane| {
        let (mut ends, mut wrong, mut all) = ([0_u64; End::COUNT], Vec::new(), Counts::default());
        for seed in 1..=SEEDS {
            let mut program = Program::new(lane, seed);
            match run_beside(seed, Some(&mut program)) {
                Ok(end) => ends[end as usize] += 1,
                Err(why) => wrong.push(why),
            }
            let counts = program.counts;
            all.entered += counts.entered;
            all.carried += counts.carried;
            all.handed_up += counts.handed_up;
            all.given_back += counts.given_back;
            // Of one that has failed.
            let left: Vec<Names> = program.flows.values().map(|(names, _)| *names).collect();
            for names in left {
                program.take(&names);
            }
        }
        assert!(wrong.is_empty(), "{} failed:\n{}", wrong.len(), wrong.join("\n"));
        let of = |end: End| ends[end as usize];
        assert!(of(End::NoServer) + of(End::Silent) + of(End::Stack) <= SEEDS / 50, "{ends:?}");
        assert!(all.entered > SEEDS && all.carried > 20 * SEEDS, "{all:?}");
        assert!(all.handed_up > SEEDS && all.given_back > SEEDS / 2, "{all:?}");
    });
}
