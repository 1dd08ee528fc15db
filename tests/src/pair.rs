//! Smoltcp hosts on a virtual clock, joined through the pipeline by two wires that lose, copy, delay and reorder: a client,
//! the server that it asks for, and one of a pool, where the connection may be sent.
//!
//! Every run is a function of its seed. While it runs, each frame is held against the invariants: nothing of the client
//! reaches the server's wire before the verdict, and nothing is acknowledged that the server has not acknowledged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::IpAddress;
use weir_core::frame::HeapFrame;
use weir_core::ids::{Nanos, PortId};
use weir_core::pipeline::{Output, Pipeline};
use weir_core::verify::{Answer, Verified};

use crate::bench::{Bench, Came, LAN, Moved, WAN, pool_server};
use crate::host::{Host, Kind};
use crate::packet::{FIN, Family, RST, SYN, Seen};
use crate::random::Random;
use crate::renumber::framed;

/// How bad a wire is: one frame in so many meets it; 0 is never. Delay in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    pub loses: u64,
    pub copies: u64,
    pub damages: u64,
    pub delay: u64,
    pub jitter: u64,
}

/// Where a frame is on its way to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Gateway(u8),
    Client,
    Server,
    Pool,
}

/// A packet on its way: when it arrives, its number, where, and its octets.
type Flying = (u64, u64, To, Vec<u8>);

/// What is asked of a run.
#[derive(Clone, Debug)]
pub struct Play {
    pub seed: u64,
    pub wire: Wire,
    /// The longest run, in microseconds of virtual time.
    pub limit: u64,
    /// Octets of the request that decide.
    pub hello: usize,
    /// What client and server send. The server begins when it has received something.
    pub request: Vec<u8>,
    pub response: Vec<u8>,
    /// Whether the client closes before it has everything.
    pub early_close: bool,
    /// The client sends no more than so many octets before it has received so many.
    pub pause: Option<(usize, usize)>,
    /// What the client's and the servers' TCP is like.
    pub client: Kind,
    pub server: Kind,
    /// The connection is to be sent to the pool.
    pub is_sent: bool,
    /// What a resolver says of the name, and after how long, in microseconds.
    pub verified: (Verified, u64),
}

impl Play {
    /// Nothing but a seed.
    pub fn new(seed: u64, wire: Wire, limit: u64) -> Self {
        Self {
            seed,
            wire,
            limit,
            hello: 0,
            request: Vec::new(),
            response: Vec::new(),
            early_close: false,
            pause: None,
            client: Kind::default(),
            server: Kind::default(),
            is_sent: false,
            verified: (Verified::Matches, 0),
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// At the server that has the connection in the end, behind a PROXY header.
    pub at_server: Vec<u8>,
    /// The PROXY header.
    pub header: Vec<u8>,
    pub at_client: Vec<u8>,
    pub client: State,
    pub server: State,
    /// Frames with payload seen on the server's wire.
    pub payload_to_server: u64,
    /// Why payload did not pass that came after the lane first had the connection.
    pub lost: Vec<Moved>,
    /// Virtual time it took, in microseconds.
    pub took: u64,
    /// When a host last sent something that is to be acknowledged.
    pub spoke: u64,
}

/// An express lane beside the pipeline.
pub trait Express {
    /// Sends a packet that has come in by a port on, if it is one of the lane's: by which port, and as what.
    fn carry(&mut self, now: Nanos, port: PortId, frame: &[u8]) -> Option<(PortId, Vec<u8>)>;
    /// Does what the pipeline has asked for.
    fn carry_out(&mut self, now: Nanos, pipe: &mut Pipeline<HeapFrame>, out: &mut Output<HeapFrame>);
}

/// The hosts, the wires, and the gateway between them.
pub struct Pair<'a> {
    bench: &'a mut Bench,
    lane: Option<&'a mut dyn Express>,
    /// Why payload did not pass that came after the lane first had the connection.
    lost: Vec<Moved>,
    client: Host,
    server: Host,
    pool: Host,
    is_sent: bool,
    random: Random,
    wire: Wire,
    limit: u64,
    flight: BinaryHeap<Reverse<Flying>>,
    count: u64,
    now: u64,
    verified: (Verified, u64),
    /// Answers of the resolver, and when they come.
    answers: Vec<(u64, Answer)>,
    /// The furthest acknowledgment that a server has sent; at first the client's SYN, which weir may answer itself.
    acked: Option<u32>,
    payload_to_server: u64,
    spoke: u64,
    /// What the ends send, and the number of the first octet of each, as the client has them.
    request: Stream,
    response: Stream,
}

/// What an end sends.
struct Stream {
    octets: Vec<u8>,
    first: Option<u32>,
}

impl Stream {
    /// Invariant 3, for every segment that leaves the gateway whole: at each number stands what the sender sent there.
    fn check(&self, seen: &Seen) {
        let Some(first) = self.first.filter(|_| seen.sound && !seen.payload.is_empty()) else { return };
        let at = seen.seq.wrapping_sub(first) as i32;
        // A PROXY header comes before the first octet, and so does the octet of garbage of a keep-alive.
        if at >= 0 {
            let (at, len) = (at as usize, seen.payload.len());
            assert!(
                self.octets.get(at..at + len) == Some(&seen.payload[..]),
                "invariant 3: other octets at {at}, {len} of them"
            );
        }
    }
}

impl std::fmt::Debug for Pair<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("now", &self.now)
            .field("flying", &self.flight.len())
            .finish_non_exhaustive()
    }
}

impl<'a> Pair<'a> {
    pub fn new(bench: &'a mut Bench, play: &Play) -> Self {
        let (c, s) = (bench.client, bench.server);
        let client_waits = if play.early_close { 0 } else { play.response.len() };
        let mut client = Host::new(&[c.0], play.client, play.seed, play.request.clone(), client_waits);
        client.pause = play.pause;
        let serving = |addresses: &[std::net::IpAddr], seed: u64, port: u16| {
            let seed = play.seed ^ seed;
            // A PROXY header comes on top.
            let mut host = Host::new(addresses, play.server, seed, play.response.clone(), play.request.len());
            host.waits = true;
            host.socket().listen(port).expect("a free port");
            host
        };
        let server = serving(&[s.0], 0x5555, s.1);
        let pool = [0, 1].map(|n| pool_server(bench.family, n));
        let pool = serving(&pool.map(|(addr, _)| addr), 0xaaaa, pool[0].1);
        let handle = client.handle;
        let socket = client.sockets.get_mut::<Socket>(handle);
        socket.connect(client.interface.context(), (IpAddress::from(s.0), s.1), c.1).expect("connects");
        Self {
            bench,
            lane: None,
            lost: Vec::new(),
            client,
            server,
            pool,
            is_sent: play.is_sent,
            random: Random::new(play.seed),
            wire: play.wire,
            limit: play.limit,
            flight: BinaryHeap::new(),
            count: 0,
            now: 0,
            verified: play.verified,
            answers: Vec::new(),
            acked: None,
            payload_to_server: 0,
            spoke: 0,
            request: Stream { octets: play.request.clone(), first: None },
            response: Stream { octets: play.response.clone(), first: None },
        }
    }

    /// With a lane beside the pipeline.
    pub fn beside(self, lane: &'a mut dyn Express) -> Self {
        Self { lane: Some(lane), ..self }
    }

    /// Runs until both ends are closed, nothing flies, or the time is over.
    pub fn run(mut self) -> Outcome {
        let start = self.bench.now;
        loop {
            self.client.poll(self.now);
            self.server.poll(self.now);
            self.pool.poll(self.now);
            self.depart();
            let done = |s: State| matches!(s, State::Closed | State::TimeWait);
            let serving = if self.is_sent { &self.pool } else { &self.server };
            if self.flight.is_empty() && done(self.client.state()) && done(serving.state()) {
                break;
            }
            let flying = self.flight.peek().map_or(u64::MAX, |Reverse((at, ..))| *at);
            // The gateway's timers are served at least every 50 ms.
            let hosts = [&mut self.client, &mut self.server, &mut self.pool];
            let next = hosts.into_iter().map(|host| host.poll_at(self.now)).fold(flying, u64::min);
            self.now = next.min(self.now + 50_000);
            if self.now > self.limit {
                break;
            }
            self.bench.now = start.saturating_add(Nanos(self.now * 1000));
            self.arrive();
            self.hear();
            let mut out = std::mem::take(&mut self.bench.out);
            self.bench.pipe.poll_timers(self.bench.now, &mut out);
            self.bench.out = out;
            let came = self.bench.collect();
            self.leave(came);
            self.work_lane();
        }
        let serving = if self.is_sent { self.pool } else { self.server };
        let (header, at_server) = split_header(&serving.received);
        Outcome {
            client: self.client.state(),
            server: serving.state(),
            header,
            at_server,
            at_client: self.client.received,
            payload_to_server: self.payload_to_server,
            lost: self.lost,
            took: self.now,
            spoke: self.spoke,
        }
    }

    fn depart(&mut self) {
        while let Some(packet) = self.client.sent() {
            let seen = Seen::read(&framed(&packet));
            if seen.flags & SYN != 0 {
                self.acked.get_or_insert(seen.seq.wrapping_add(1));
                self.request.first = Some(seen.seq.wrapping_add(1));
            }
            self.note(&seen);
            self.fly(To::Gateway(LAN.0), packet);
        }
        let from_servers = std::iter::from_fn(|| self.server.sent().or_else(|| self.pool.sent()));
        for packet in from_servers.collect::<Vec<_>>() {
            let seen = Seen::read(&framed(&packet));
            self.note(&seen);
            if seen.flags & RST == 0 {
                let newer = self.acked.is_none_or(|acked| (seen.ack.wrapping_sub(acked) as i32) > 0);
                self.acked = if newer { Some(seen.ack) } else { self.acked };
            }
            self.fly(To::Gateway(WAN.0), packet);
        }
    }

    /// A host says something that is to be acknowledged.
    fn note(&mut self, seen: &Seen) {
        if !seen.payload.is_empty() || seen.flags & (SYN | FIN) != 0 {
            self.spoke = self.now;
        }
    }

    fn fly(&mut self, to: To, mut packet: Vec<u8>) {
        let wire = self.wire;
        if self.random.one_in(wire.loses) {
            return;
        }
        if self.random.one_in(wire.damages) {
            // In the TCP segment, whose checksum shows it; but not where another wire's damage may make it right again (RFC 1071).
            let (at, bit) = (packet.len() - 1 - self.random.below(12) as usize, self.random.below(8));
            if Seen::read(&framed(&packet)).sound {
                packet[at] ^= 1 << bit;
            }
        }
        let copies = 1 + u64::from(self.random.one_in(wire.copies));
        for _ in 0..copies {
            let at = self.now + wire.delay + self.random.below(wire.jitter);
            self.count += 1;
            self.flight.push(Reverse((at, self.count, to, packet.clone())));
        }
    }

    /// The resolver's answers arrive.
    fn hear(&mut self) {
        let now = self.now;
        let due: Vec<Answer> =
            self.answers.extract_if(.., |(at, _)| *at <= now).map(|(_, answer)| answer).collect();
        let mut out = std::mem::take(&mut self.bench.out);
        for answer in due {
            self.bench.pipe.handle_verified(self.bench.now, &answer, &mut out);
        }
        self.bench.out = out;
    }

    fn arrive(&mut self) {
        while let Some(Reverse((at, ..))) = self.flight.peek()
            && *at <= self.now
            && let Some(Reverse((_, _, to, packet))) = self.flight.pop()
        {
            match to {
                To::Client => self.client.receive(packet),
                To::Server => self.server.receive(packet),
                To::Pool => self.pool.receive(packet),
                To::Gateway(port) => self.receive(PortId(port), &framed(&packet)),
            }
        }
    }

    /// A frame comes to the gateway: to the lane first. Once the lane has had the connection, payload that comes in goes out, once, whoever
    /// has it now; or it is counted why not.
    fn receive(&mut self, port: PortId, frame: &[u8]) {
        let now = self.bench.now;
        let is_past_thought = self.bench.pipe.totals.express_entered > 0;
        let (came, moved) = match self.lane.as_mut().and_then(|lane| lane.carry(now, port, frame)) {
            Some(sent) => (Came { tx: vec![sent], ..Came::default() }, Vec::new()),
            None => self.bench.give_any(port, frame),
        };
        if is_past_thought && self.wire.damages == 0 {
            let payload = Seen::read(frame).payload;
            let sent = came
                .tx
                .iter()
                .filter(|(_, frame)| is_tcp(frame) && Seen::read(frame).payload == payload)
                .count();
            match (payload.is_empty(), sent) {
                (true, _) | (false, 1) => {}
                (false, 0) if !moved.is_empty() => self.lost.extend(moved),
                (false, n) => panic!("payload that came in went out {n} times, and {moved:?} were counted"),
            }
        }
        self.leave(came);
        self.work_lane();
    }

    fn work_lane(&mut self) {
        let Some(lane) = self.lane.as_mut() else { return };
        let mut out = std::mem::take(&mut self.bench.out);
        lane.carry_out(self.bench.now, &mut self.bench.pipe, &mut out);
        self.bench.out = out;
        let came = self.bench.collect();
        self.leave(came);
    }

    /// Frames leave the gateway; each is held against the invariants.
    fn leave(&mut self, came: Came) {
        // What a server of the pool says of a connection that is forgotten the kernel gets, which knows nothing of it either.
        let is_late =
            |frame: &[u8]| self.is_sent && Seen::read(frame).src.1 == pool_server(self.bench.family, 0).1;
        assert!(came.punt.iter().all(|(_, frame)| is_late(frame)), "nothing of this is for the kernel");
        let (verified, after) = self.verified;
        for question in came.questions {
            self.answers.push((self.now + after, question.answer(verified, Nanos::from_secs(60))));
        }
        for (port, frame) in came.tx {
            if !is_tcp(&frame) {
                // An ICMP error, which these hosts do not look at.
                continue;
            }
            let seen = Seen::read(&frame);
            if port == WAN {
                let to = if seen.dst == self.bench.server { To::Server } else { To::Pool };
                if !seen.payload.is_empty() {
                    let totals = &self.bench.pipe.totals;
                    assert!(totals.allowed + totals.sent > 0, "invariant 2: payload before the verdict");
                    assert!(!self.is_sent || to == To::Pool, "payload to a server that it is not for");
                    self.request.check(&seen);
                    self.payload_to_server += 1;
                }
                self.fly(to, frame[14..].to_vec());
            } else {
                if seen.flags & SYN != 0 {
                    self.response.first = Some(seen.seq.wrapping_add(1));
                }
                self.response.check(&seen);
                if let Some(acked) = self.acked
                    && seen.flags & RST == 0
                    && seen.sound
                {
                    let ahead = seen.ack.wrapping_sub(acked) as i32;
                    assert!(ahead <= 0, "invariant 1: acknowledged {ahead} octets more than the server has");
                }
                self.fly(To::Client, frame[14..].to_vec());
            }
        }
    }
}

/// By IPv4's protocol or IPv6's next header.
fn is_tcp(frame: &[u8]) -> bool {
    frame[if frame[14] >> 4 == 6 { 20 } else { 23 }] == 6
}

/// What comes before the request, when a PROXY header does (HAProxy's proxy-protocol.txt).
fn split_header(received: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let at = if received.starts_with(b"PROXY ") {
        received.windows(2).position(|w| w == b"\r\n").map_or(0, |at| at + 2)
    } else if received.starts_with(b"\r\n\r\n\0\r\nQUIT\n") && received.len() >= 16 {
        (16 + usize::from(u16::from_be_bytes([received[14], received[15]]))).min(received.len())
    } else {
        0
    };
    (received[..at].to_vec(), received[at..].to_vec())
}

/// A wire of middling badness, by seed.
pub fn wire(random: &mut Random) -> Wire {
    let mut rate = |choices: &[u64]| choices[random.below(choices.len() as u64) as usize];
    Wire {
        loses: rate(&[0, 50, 20, 8]),
        copies: rate(&[0, 30, 10]),
        damages: rate(&[0, 0, 60]),
        delay: rate(&[10, 1_000, 20_000]),
        jitter: rate(&[1, 500, 8_000, 40_000]),
    }
}

/// The family as a word for messages.
pub const fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}
