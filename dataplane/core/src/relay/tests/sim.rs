//! The machine against a world that completes operations in any order, in parts, late, and with failures.

use super::*;
use crate::inspect::{Behind, Watch};

/// A client that says its hello again behind other records, and a server that asks for that or does not.
struct Second {
    begins: usize,
    ends: usize,
    /// What was read tells that client octets may pass.
    open: bool,
    watch: Watch,
    behind: Behind,
}

/// SplitMix64: a run is its seed.
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u32) -> u32 {
        (self.next() % u64::from(n.max(1))) as u32
    }
    pub fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    Connect,
    Recv(Side, u32),
    Send(Side, u32),
    Watch(Side),
}

impl Op {
    fn side(self) -> Side {
        match self {
            Op::Connect => Side::Server,
            Op::Recv(side, _) | Op::Send(side, _) | Op::Watch(side) => side,
        }
    }
}

/// One direction: what its sender sends, and what its receiver got.
#[derive(Default)]
struct Stream {
    source: Vec<u8>,
    taken: usize,
    eof_seen: bool,
    sink: Vec<u8>,
    fin: bool,
}

#[derive(Default)]
struct LegState {
    reset: bool,
    stopping: bool,
    closed: bool,
}

struct World {
    rng: Rng,
    relay: Relay,
    now: Nanos,
    ops: Vec<Op>,
    streams: [Stream; 2],
    legs: [LegState; 2],
    timer: Option<Nanos>,
    verdict: Option<Verdict>,
    passed: bool,
    /// The verdict waits for a resolver.
    waits: bool,
    /// A server may be connected before the verdict.
    ahead: bool,
    sends: bool,
    /// Servers that were connected to, and those of a pool that were reported.
    calls: Vec<Towards>,
    blamed: Vec<Towards>,
    /// A connect was told to stop, for another server.
    cancelled: bool,
    faults: bool,
    /// Receives that found no memory.
    starved: u32,
    /// A watch ended that was not told to: the kernel cannot watch.
    unwatchable: bool,
    /// There was no room to hold what the client sends.
    hungry: bool,
    /// The most octets that wait in a direction, and that are held.
    buffer: u32,
    budget: u32,
    /// Octets of the first hello, and the second.
    hello: u32,
    second: Option<Second>,
    log: Vec<String>,
}

impl Second {
    /// A hello, other records, another hello, and the rest of the stream; its server asks, or says something else.
    fn put_into(rng: &mut Rng, streams: &mut [Stream; 2]) -> (u32, Option<Self>) {
        let record = |kind: u8, len: u32| {
            let mut out = vec![kind, 3, 3];
            out.extend((len as u16).to_be_bytes());
            out.resize(5 + len as usize, 1);
            out
        };
        let mut client = record(22, 20 + rng.below(40));
        let hello = client.len() as u32;
        (0..rng.below(4)).for_each(|_| client.extend(record(20 + 3 * rng.below(2) as u8, rng.below(90))));
        let begins = client.len();
        client.extend(record(22, 1 + rng.below(60)));
        let ends = client.len();
        client.append(&mut streams[0].source);
        streams[0].source = client;
        if rng.chance(60) {
            let mut server = super::second::retry_request();
            server.append(&mut streams[1].source);
            streams[1].source = server;
        }
        let second = Self { begins, ends, open: false, watch: Watch::default(), behind: Behind::default() };
        (hello, Some(second))
    }
}

fn index(side: Side) -> usize {
    side as usize
}

impl World {
    fn new(seed: u64, faults: bool) -> Self {
        let mut rng = Rng(seed);
        let buffer = 1 + rng.below(200);
        let limits = Limits { buffer, ..LIMITS };
        let bytes = 1 + rng.below(100);
        let held = rng.chance(70);
        let mut stream = || {
            let len = if rng.chance(15) { 0 } else { rng.below(3_000) };
            let source = (0..len).map(|_| rng.next() as u8).collect();
            Stream { source, ..Stream::default() }
        };
        let mut streams = [stream(), stream()];
        let (hello, second) =
            if held && rng.chance(50) { Second::put_into(&mut rng, &mut streams) } else { (0, None) };
        let send = rng.chance(40);
        let from = if rng.chance(50) { LocalEnd::Client } else { LocalEnd::Gateway };
        let verdict = match rng.below(if faults { 4 } else { 1 }) {
            1 => Verdict::Reset,
            2 => Verdict::Drop,
            _ if send => Verdict::Send { from, spare: rng.chance(70) },
            _ => Verdict::Pass,
        };
        let ahead = !send && rng.chance(70);
        let start = match (held, verdict) {
            (true, _) => Start::Held { bytes, time: Nanos::from_secs(3), ahead },
            (false, Verdict::Send { .. }) => Start::Settled(verdict),
            (false, _) => Start::Settled(Verdict::Pass),
        };
        let mut relay = Relay::new(NOW, limits, start);
        if rng.chance(30) {
            let rates =
                Rates { rule: Some(Rate(50 + rng.next() % 1_000_000)), connection: Some(Rate(20_000)) };
            relay.handle_throttle(RulePace::new(rates).expect("rates").throttle());
        }
        Self {
            rng,
            relay,
            now: NOW,
            ops: Vec::new(),
            streams,
            legs: Default::default(),
            timer: None,
            verdict: held.then_some(verdict),
            passed: !held,
            waits: false,
            ahead,
            sends: matches!(verdict, Verdict::Send { .. }),
            calls: Vec::new(),
            blamed: Vec::new(),
            cancelled: false,
            faults,
            starved: 0,
            unwatchable: false,
            hungry: false,
            buffer,
            budget: bytes.min(buffer),
            hello,
            second,
            log: Vec::new(),
        }
    }

    fn run(&mut self) {
        for _ in 0..200_000 {
            self.ask();
            while let Some(command) = self.relay.poll() {
                self.log.push(format!("{command:?}"));
                self.command(command);
            }
            self.check_bounds();
            if self.relay.is_done() {
                assert!(self.ops.is_empty(), "done with operations under way: {:?}", self.ops);
                return;
            }
            self.step();
        }
        panic!("no end: {:?}", self.ops);
    }

    fn ask(&mut self) {
        while let Some(ask) = self.relay.poll_ask() {
            let answer = match ask {
                Ask::Inspect { len, budget } => {
                    assert!(len <= budget && budget == self.budget);
                    assert_eq!(len as usize, self.streams[0].taken, "the whole prefix");
                    self.rng.chance(10)
                }
                Ask::Unidentified(_) => true,
                Ask::Unverified => {
                    assert!(self.waits, "nobody was asked");
                    true
                }
                ask => {
                    self.ask_second(ask);
                    continue;
                }
            };
            if answer && matches!(ask, Ask::Inspect { .. }) && self.rng.chance(30) {
                // A resolver is asked first.
                self.waits = true;
                self.relay.handle_verdict(self.now, Verdict::Wait);
            } else if answer {
                self.log.push(format!("{ask:?}"));
                self.decide();
            }
        }
        // The resolver's answer.
        if self.waits && self.verdict.is_some() && self.relay.is_held() && self.rng.chance(10) {
            self.decide();
        }
    }

    fn decide(&mut self) {
        let verdict = self.verdict.take().expect("asked once answered");
        self.log.push(format!("-> {verdict:?}"));
        self.passed = matches!(verdict, Verdict::Pass | Verdict::Send { .. });
        if self.second.is_some() && self.passed {
            self.relay.expect_second(self.hello, self.budget, Nanos::from_secs(3));
            // A server that speaks before the verdict cannot ask any more.
            if self.streams[1].taken > 0 || self.streams[1].eof_seen {
                self.second = None;
            }
        }
        self.relay.handle_verdict(self.now, verdict);
    }

    /// What a judge would answer.
    fn ask_second(&mut self, ask: Ask) {
        let octets = |stream: &Stream, span: Span| {
            let waiting = &stream.source[stream.sink.len()..stream.taken];
            waiting[span.at as usize..(span.at + span.len) as usize].to_vec()
        };
        let second = self.second.as_mut().expect("one is expected");
        self.log.push(format!("{ask:?}"));
        match ask {
            Ask::Answer { at, span } => {
                let bytes = octets(&self.streams[1], span);
                assert_eq!(bytes, self.streams[1].source[at as usize..][..bytes.len()], "in their order");
                let said = second.watch.read(at, &bytes);
                second.open |= said == crate::inspect::Said::Other;
                self.relay.handle_answer(said);
            }
            Ask::Behind { span } => {
                let next = second.behind.read(&octets(&self.streams[0], span));
                self.relay.handle_behind(next, span.len);
            }
            Ask::Second { span, budget } => {
                let bytes = octets(&self.streams[0], span);
                assert_eq!(bytes, self.streams[0].source[second.begins..][..bytes.len()], "from its start");
                if bytes.len() >= second.ends - second.begins || span.len >= budget {
                    second.open = true;
                    self.relay.handle_second(self.now, Verdict::Pass);
                }
            }
            ask => {
                assert_eq!(ask, Ask::SecondUnread);
                second.open = true;
                self.relay.handle_second(self.now, Verdict::Pass);
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Connect { to, .. } => self.call(to),
            Command::Blame(to) => self.blamed.push(to),
            Command::Recv { from, most } => {
                let level = self.waiting(from) as u32;
                assert!(most > 0 && level + most <= self.buffer, "room for {most} beside {level}");
                self.begin(Op::Recv(from, most));
            }
            Command::Send { to, len } => {
                assert!(to == Side::Client || self.passed, "client bytes before the verdict");
                if let (Side::Server, Some(second)) = (to, &self.second) {
                    let end = self.streams[0].sink.len() + len as usize;
                    assert!(second.open || end <= second.begins, "a second hello before it was judged");
                }
                assert!(len as usize <= self.waiting(to.other()));
                self.begin(Op::Send(to, len));
            }
            Command::Watch(side) => self.begin(Op::Watch(side)),
            Command::Shutdown(to) => {
                let stream = &mut self.streams[index(to.other())];
                assert!(stream.eof_seen && !stream.fin);
                assert_eq!(stream.sink.len(), stream.source.len(), "FIN after the last byte");
                stream.fin = true;
            }
            Command::Reset(side) => {
                self.legs[index(side)].reset = true;
                self.legs[index(side)].stopping = true;
            }
            Command::Cancel(side) => {
                self.cancelled |= side == Side::Server && self.relay.ending().is_none();
                self.legs[index(side)].stopping = true;
            }
            Command::Close(side) => {
                assert!(self.ops.iter().all(|op| op.side() != side), "{side:?} closed with {:?}", self.ops);
                let leg = &mut self.legs[index(side)];
                assert!(!leg.closed);
                // A leg to the server may be opened again, from another port.
                leg.closed = side == Side::Client || self.relay.ending().is_some();
                if !leg.closed {
                    *leg = LegState::default();
                }
            }
            Command::ArmTimer(at) => self.timer = Some(at),
        }
    }

    fn call(&mut self, to: Towards) {
        assert!(self.passed || self.ahead, "no server before the verdict");
        assert_eq!(self.sends && self.passed, to != Towards::Destination, "{to:?}");
        assert!(to != Towards::Spare || self.calls.contains(&Towards::Server), "the spare comes second");
        self.calls.push(to);
        self.begin(Op::Connect);
    }

    fn begin(&mut self, op: Op) {
        assert!(!self.legs[index(op.side())].closed);
        self.ops.push(op);
    }

    fn check_bounds(&self) {
        let held = (self.streams[0].taken - self.streams[0].sink.len()) as u32;
        assert!(self.passed || held <= self.budget, "{held} held, {} allowed", self.budget);
        assert!(self.relay.buffered() <= 2 * self.buffer);
        for side in [Side::Client, Side::Server] {
            let count = |f: fn(&Op) -> bool| self.ops.iter().filter(|op| op.side() == side && f(op)).count();
            assert!(count(|op| matches!(op, Op::Recv(..))) <= 1);
            assert!(count(|op| matches!(op, Op::Send(..))) <= 1);
            assert!(count(|op| matches!(op, Op::Watch(_))) <= 1);
            let is_there = side == Side::Client || self.relay.is_connected();
            if is_there && self.relay.ending().is_none() && !self.unwatchable {
                assert!(
                    count(|op| !matches!(op, Op::Send(..))) >= 1,
                    "nobody would notice a RST of the {side:?}"
                );
            }
        }
    }

    /// Completes one operation chosen at random, or lets the timer come.
    fn step(&mut self) {
        if self.faults && self.rng.chance(2) {
            self.stray();
        }
        let able: Vec<usize> = (0..self.ops.len()).filter(|&i| self.can_complete(self.ops[i])).collect();
        if self.hungry && (able.is_empty() || self.rng.chance(20)) {
            self.hungry = false;
            return self.relay.handle_room(Side::Client);
        }
        if able.is_empty() || (self.faults && self.timer.is_some() && self.rng.chance(1)) {
            let at = self.timer.take().unwrap_or_else(|| panic!("stuck with {:?}", self.ops));
            self.now = self.now.max(at);
            self.log.push("timer".into());
            return self.relay.handle(self.now, Event::Timer);
        }
        let op = self.ops.swap_remove(able[self.rng.below(able.len() as u32) as usize]);
        self.now.0 += u64::from(self.rng.below(1_000));
        let event = match op {
            Op::Recv(from, _) if self.waiting(from) > 0 && self.rng.chance(10) => Event::NoRoom(from),
            Op::Recv(Side::Client, _) if self.relay.holds(Side::Client) && self.rng.chance(5) => {
                self.hungry = true;
                Event::HoldFull(Side::Client)
            }
            _ => self.complete(op),
        };
        self.starved += u32::from(matches!(event, Event::NoRoom(_)));
        self.unwatchable |= matches!(event, Event::Unwatched(_)) && self.relay.ending().is_none();
        self.log.push(format!("{op:?} -> {event:?}"));
        self.relay.handle(self.now, event);
    }

    /// Octets received from a side and not sent on.
    fn waiting(&self, from: Side) -> usize {
        let stream = &self.streams[index(from)];
        stream.taken - stream.sink.len()
    }

    /// A watch ends only by a failure or when stopped.
    fn can_complete(&self, op: Op) -> bool {
        !matches!(op, Op::Watch(side) if !self.legs[index(side)].stopping && !self.faults)
    }

    fn complete(&mut self, op: Op) -> Event {
        let leg = &self.legs[index(op.side())];
        let stopped = leg.stopping && self.rng.chance(80);
        // Every other server of a pool does not answer, so that the next is tried.
        let pooled = op == Op::Connect && self.sends && self.rng.chance(50);
        let failed = self.faults && (pooled || self.rng.chance(1));
        let failure = match (stopped, failed) {
            (true, _) => Some(Failure::Cancelled),
            (false, true) => Some(Failure::ALL[self.rng.below(Failure::ALL.len() as u32) as usize]),
            _ if self.rng.chance(3) && op != Op::Connect => Some(Failure::Cancelled),
            _ => None,
        };
        match op {
            Op::Connect => failure.map_or(Event::Connected, Event::ConnectFailed),
            Op::Watch(side) if stopped || !failed => Event::Unwatched(side),
            Op::Watch(side) => Event::Hangup(side),
            Op::Recv(from, most) => match failure {
                Some(failure) => Event::RecvFailed(from, failure),
                None => self.deliver(from, most),
            },
            Op::Send(to, len) => match failure {
                Some(failure) => Event::SendFailed(to, failure),
                None => self.drain(to, len),
            },
        }
    }

    fn deliver(&mut self, from: Side, most: u32) -> Event {
        let stream = &mut self.streams[index(from)];
        let left = stream.source.len() - stream.taken;
        if left == 0 {
            stream.eof_seen = true;
            if let (Side::Server, Some(second)) = (from, &mut self.second) {
                // Too little for anything.
                second.open |= stream.source.len() < Watch::LEN as usize;
            }
            return Event::Eof(from);
        }
        let len = 1 + self.rng.below(most.min(left as u32)) as usize;
        stream.taken += len;
        Event::Received { from, len: len as u32 }
    }

    fn drain(&mut self, to: Side, most: u32) -> Event {
        let stream = &mut self.streams[index(to.other())];
        let sent = stream.sink.len();
        let len = 1 + self.rng.below(most) as usize;
        stream.sink.extend_from_slice(&stream.source[sent..sent + len]);
        Event::Sent { to, len: len as u32 }
    }

    /// A completion of an operation that is not under way.
    fn stray(&mut self) {
        let under_way = |f: fn(&Op) -> bool| self.ops.iter().any(f);
        let event = match self.rng.below(4) {
            0 if !under_way(|op| matches!(op, Op::Recv(Side::Client, _))) => Event::Eof(Side::Client),
            1 if !under_way(|op| matches!(op, Op::Send(Side::Client, _))) => {
                Event::SendFailed(Side::Client, Failure::Reset)
            }
            2 if !under_way(|op| matches!(op, Op::Connect)) => Event::ConnectFailed(Failure::Refused),
            3 if !under_way(|op| matches!(op, Op::Watch(Side::Server))) => Event::Hangup(Side::Server),
            _ => return,
        };
        self.relay.handle(self.now, event);
    }
}

fn run(seed: u64, faults: bool) -> World {
    let mut world = World::new(seed, faults);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
    if let Err(panic) = result {
        let tail = world.log.len().saturating_sub(30);
        eprintln!("seed {seed}, faults {faults}; the last steps:\n{}", world.log[tail..].join("\n"));
        std::panic::resume_unwind(panic);
    }
    world
}

#[test]
fn any_order_of_completions_delivers_every_byte_and_both_ends() {
    let mut starved = 0;
    for seed in 0..3_000 {
        let world = run(seed, false);
        starved += world.starved;
        assert_eq!(world.relay.ending(), Some(Ending::Finished), "seed {seed}");
        for stream in &world.streams {
            assert!(stream.fin && stream.sink == stream.source, "seed {seed}");
        }
        assert!(world.legs.iter().all(|leg| !leg.reset), "seed {seed}");
        let totals = (world.streams[0].sink.len() as u64, world.streams[1].sink.len() as u64);
        assert_eq!(world.relay.traffic(), totals, "seed {seed}");
    }
    assert!(starved > 1_000, "{starved} receives found no memory");
}

#[test]
fn failures_at_any_point_reset_what_is_left_and_leave_nothing_under_way() {
    let mut endings = std::collections::HashSet::new();
    let (mut saved, mut overdue) = (0, 0);
    for seed in 0..6_000 {
        let world = run(seed, true);
        let spared = world.calls.contains(&Towards::Spare);
        saved += u32::from(spared && world.relay.ending() == Some(Ending::Finished));
        overdue += u32::from(spared && world.cancelled);
        let ending = world.relay.ending().expect("over");
        endings.insert(ending.name());
        let client = &world.legs[0];
        match ending {
            Ending::Finished => assert!(!client.reset, "seed {seed}"),
            _ if world.blamed.len() > world.calls.len() => panic!("seed {seed}: {:?}", world.blamed),
            Ending::Dropped | Ending::Denied => {
                assert!(client.reset && world.streams[0].sink.is_empty(), "seed {seed}");
            }
            _ => assert!(client.reset, "seed {seed}: {ending:?}"),
        }
    }
    for name in ["finished", "denied", "dropped", "connect-failed", "client-failed", "server-failed", "idle"]
    {
        assert!(endings.contains(name), "{name} was never seen: {endings:?}");
    }
    assert!(saved > 20 && overdue > 5, "{saved} saved by another server, {overdue} after silence");
}
