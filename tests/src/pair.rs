//! Two smoltcp hosts on a virtual clock, joined through the pipeline by two wires that lose, copy, delay and reorder.
//!
//! Every run is a function of its seed. While it runs, each frame is held against the invariants: nothing of the client
//! reaches the server's wire before the verdict, and nothing is acknowledged that the server has not acknowledged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::IpAddress;
use weir_core::ids::{Nanos, PortId};

use crate::bench::{Bench, Came, LAN, WAN};
use crate::host::Host;
use crate::packet::{Family, RST, Seen, ethernet};
use crate::random::Random;

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
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub at_server: Vec<u8>,
    pub at_client: Vec<u8>,
    pub client: State,
    pub server: State,
    /// Frames with payload seen on the server's wire.
    pub payload_to_server: u64,
    /// Virtual time it took, in microseconds.
    pub took: u64,
}

/// The hosts, the wires, and the gateway between them.
pub struct Pair<'a> {
    bench: &'a mut Bench,
    client: Host,
    server: Host,
    random: Random,
    wire: Wire,
    limit: u64,
    flight: BinaryHeap<Reverse<Flying>>,
    count: u64,
    now: u64,
    /// The furthest acknowledgment that the server has sent.
    acked: Option<u32>,
    payload_to_server: u64,
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
        let mut client = Host::new(c.0, play.seed, play.request.clone(), client_waits);
        let mut server = Host::new(s.0, play.seed ^ 0x5555, play.response.clone(), play.request.len());
        server.waits = true;
        server.socket().listen(s.1).expect("a free port");
        let handle = client.handle;
        let socket = client.sockets.get_mut::<Socket>(handle);
        socket.connect(client.interface.context(), (IpAddress::from(s.0), s.1), c.1).expect("connects");
        Self {
            bench,
            client,
            server,
            random: Random::new(play.seed),
            wire: play.wire,
            limit: play.limit,
            flight: BinaryHeap::new(),
            count: 0,
            now: 0,
            acked: None,
            payload_to_server: 0,
        }
    }

    /// Runs until both ends are closed, nothing flies, or the time is over.
    pub fn run(mut self) -> Outcome {
        let start = self.bench.now;
        loop {
            self.client.poll(self.now);
            self.server.poll(self.now);
            self.depart();
            let done = |s: State| matches!(s, State::Closed | State::TimeWait);
            if self.flight.is_empty() && done(self.client.state()) && done(self.server.state()) {
                break;
            }
            let flying = self.flight.peek().map_or(u64::MAX, |Reverse((at, ..))| *at);
            // The gateway's timers are served at least every 50 ms.
            let next = flying.min(self.client.poll_at(self.now)).min(self.server.poll_at(self.now));
            self.now = next.min(self.now + 50_000);
            if self.now > self.limit {
                break;
            }
            self.bench.now = start.saturating_add(Nanos(self.now * 1000));
            self.arrive();
            let mut out = std::mem::take(&mut self.bench.out);
            self.bench.pipe.poll_timers(self.bench.now, &mut out);
            self.bench.out = out;
            let came = self.bench.collect();
            self.leave(came);
        }
        Outcome {
            client: self.client.state(),
            server: self.server.state(),
            at_server: self.server.received,
            at_client: self.client.received,
            payload_to_server: self.payload_to_server,
            took: self.now,
        }
    }

    fn depart(&mut self) {
        while let Some(packet) = self.client.link.tx.pop_front() {
            self.fly(To::Gateway(LAN.0), packet);
        }
        while let Some(packet) = self.server.link.tx.pop_front() {
            let seen = Seen::read(&framed(&packet));
            if seen.flags & RST == 0 {
                let newer = self.acked.is_none_or(|acked| (seen.ack.wrapping_sub(acked) as i32) > 0);
                self.acked = if newer { Some(seen.ack) } else { self.acked };
            }
            self.fly(To::Gateway(WAN.0), packet);
        }
    }

    fn fly(&mut self, to: To, mut packet: Vec<u8>) {
        let wire = self.wire;
        if self.random.one_in(wire.loses) {
            return;
        }
        if self.random.one_in(wire.damages) {
            // In the TCP segment, whose checksum shows it.
            let at = packet.len() - 1 - self.random.below(12) as usize;
            packet[at] ^= 1 << self.random.below(8);
        }
        let copies = 1 + u64::from(self.random.one_in(wire.copies));
        for _ in 0..copies {
            let at = self.now + wire.delay + self.random.below(wire.jitter);
            self.count += 1;
            self.flight.push(Reverse((at, self.count, to, packet.clone())));
        }
    }

    fn arrive(&mut self) {
        while let Some(Reverse((at, ..))) = self.flight.peek()
            && *at <= self.now
            && let Some(Reverse((_, _, to, packet))) = self.flight.pop()
        {
            match to {
                To::Client => self.client.link.rx.push_back(packet),
                To::Server => self.server.link.rx.push_back(packet),
                To::Gateway(port) => {
                    let (came, _) = self.bench.give_any(PortId(port), &framed(&packet));
                    self.leave(came);
                }
            }
        }
    }

    /// Frames leave the gateway; each is held against the invariants.
    fn leave(&mut self, came: Came) {
        assert!(came.punt.is_empty(), "nothing of this is for the kernel");
        for (port, frame) in came.tx {
            let seen = Seen::read(&frame);
            if port == WAN {
                if !seen.payload.is_empty() {
                    assert!(self.bench.pipe.totals.allowed > 0, "invariant 2: payload before the verdict");
                    self.payload_to_server += 1;
                }
                self.fly(To::Server, frame[14..].to_vec());
            } else {
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

fn framed(packet: &[u8]) -> Vec<u8> {
    ethernet(packet[0] >> 4 == 6, packet)
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
