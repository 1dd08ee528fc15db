//! Random clients, servers and forgers: nothing is lost, nothing stays, and weir acknowledges nothing of its own.

use std::collections::HashSet;

use weir_core::ids::{Nanos, PoolId};
use weir_core::policy::{Action, PoolSpec, ProxyVersion, Source, SynCookies};
use weir_tests::bench::{Bench, FRAMES, LAN, Setup, WAN};
use weir_tests::hello::client_hello;
use weir_tests::packet::{ACK, BOTH, FIN, Family, PSH, RST, SYN, Seen, Seg, URG};
use weir_tests::random::Random;

use super::answer::{GRANTED, OPTIONS, ts};

struct World {
    bench: Bench,
    random: Random,
    /// The last segments that left on each side.
    to_server: Vec<Seen>,
    to_client: Vec<Seen>,
    /// Acknowledgments that a client may be shown: of its SYNs, and those that servers sent.
    acks: HashSet<u32>,
    hello: Vec<u8>,
    next: u32,
}

fn setup(random: &mut Random) -> Setup {
    let mut setup = if random.below(3) == 0 { Setup::new() } else { Setup::answer() };
    let (proxy, gateway) = (random.below(3), random.below(2) == 0);
    setup = setup.sending(|pool| PoolSpec {
        proxy: [None, Some(ProxyVersion::V1), Some(ProxyVersion::V2)][proxy as usize],
        source: if gateway { Source::Gateway } else { Source::Client },
        ports: 20_000..=20_002,
        ..pool
    });
    let spec = &mut setup.spec;
    spec.syn_cookies = [SynCookies::Auto, SynCookies::Always, SynCookies::Off][random.below(3) as usize];
    spec.midstream.action = [Action::Reset, Action::Drop][random.below(2) as usize];
    spec.unidentified = [Action::Allow, Action::Reset, Action::Send(PoolId(0))][random.below(3) as usize];
    spec.hold_bytes = [16_384, 60][random.below(2) as usize];
    setup.limits.half_open = 1 + random.below(3) as u32;
    setup.limits.source.flows = Some(2 + random.below(4) as u32);
    setup.config.holds = 1 + random.below(3) as usize;
    setup.config.flows.fast = 2 + random.below(5) as usize;
    setup.config.hold_frames = 2 + random.below(8) as usize;
    setup
}

impl World {
    fn new(seed: u64, family: Family) -> Self {
        let mut random = Random::new(seed);
        let bench = Bench::of(family, setup(&mut random));
        let name =
            ["fine.example", "sent.example", "sent.example", "denied.example"][random.below(4) as usize];
        let hello = client_hello(name, random.below(200) as usize);
        Self {
            bench,
            random,
            to_server: Vec::new(),
            to_client: Vec::new(),
            acks: HashSet::new(),
            hello,
            next: 1000,
        }
    }

    fn below(&mut self, n: u32) -> u32 {
        self.random.below(n.into()) as u32
    }

    fn step(&mut self) {
        match self.below(10) {
            0 => self.syn(),
            1..=4 => self.client(),
            5..=7 => self.server(),
            8 => self.forger(),
            _ => {
                let span = Nanos::from_millis(self.random.below(2500));
                let (came, _) = self.bench.wait_any(span);
                self.note(&came);
            }
        }
    }

    fn give(&mut self, lan: bool, seg: &Seg) {
        let (came, _) = self.bench.give_any(if lan { LAN } else { WAN }, &seg.frame());
        self.note(&came);
    }

    fn note(&mut self, came: &weir_tests::bench::Came) {
        self.to_server.extend(came.to_server());
        for seen in came.to_client() {
            let judged = seen.flags & ACK != 0 && seen.flags & RST == 0;
            assert!(!judged || self.acks.contains(&seen.ack), "acknowledges what nobody did: {seen:?}");
            assert!(seen.sound);
            self.to_client.push(seen);
        }
    }

    fn syn(&mut self) {
        let port = 40_000 + self.below(3) as u16;
        let isn = if self.below(2) == 0 { self.next } else { self.next.wrapping_add(self.below(100_000)) };
        self.next = isn;
        self.acks.insert(isn.wrapping_add(1));
        let options: &[u8] = if self.below(2) == 0 { &OPTIONS } else { &[] };
        let seg = Seg::new((self.bench.client.0, port), self.bench.server, SYN, isn, 0).options(options);
        self.give(true, &seg);
    }

    /// Answers something that a client has got, more or less well.
    fn client(&mut self) {
        let Some(last) = self.pick(true) else { return self.syn() };
        let at = [0, 0, 0, 30, 1][self.random.below(5) as usize];
        let jitter = if self.below(6) == 0 { self.below(90_000).wrapping_sub(45_000) } else { 0 };
        let flags = [ACK, ACK, PSH | ACK, PSH | ACK, FIN | ACK, RST, RST | ACK, ACK | URG]
            [self.random.below(8) as usize];
        let seq = last.ack.wrapping_add(jitter).wrapping_sub(u32::from(self.below(9) == 0));
        let ack =
            last.seq.wrapping_add(u32::from(last.flags & SYN != 0)).wrapping_add(last.payload.len() as u32);
        let payload = if flags & RST == 0 && self.below(3) > 0 {
            let whole = self.below(3) > 0;
            let to =
                if whole { self.hello.len() } else { (at + self.below(120) as usize).min(self.hello.len()) };
            self.hello[at..to.max(at)].to_vec()
        } else {
            Vec::new()
        };
        let seq = seq.wrapping_add(if payload.is_empty() { 0 } else { at as u32 });
        let ack = if self.below(10) == 0 { ack.wrapping_add(self.below(9)).wrapping_sub(4) } else { ack };
        let mut seg = Seg::new(last.dst, last.src, flags, seq, ack).payload(payload);
        if self.below(3) == 0 {
            seg = seg.options(&ts(200, 300));
        }
        self.give(true, &seg);
    }

    fn pick(&mut self, client: bool) -> Option<Seen> {
        let list = if client { &self.to_client } else { &self.to_server };
        let back = self.random.below(4) as usize;
        list.len().checked_sub(1 + back.min(list.len().saturating_sub(1))).map(|at| list[at].clone())
    }

    fn server(&mut self) {
        let Some(last) = self.pick(false) else { return };
        let syn = last.flags & SYN != 0;
        let end = last.seq.wrapping_add(last.payload.len() as u32).wrapping_add(u32::from(syn));
        let ack = if self.below(8) == 0 { last.seq.wrapping_add(self.below(9)) } else { end };
        let own = if syn { 0xffff_ff00 } else { last.ack };
        let seg = match self.below(12) {
            0 => Seg::new(last.dst, last.src, RST | ACK, own, ack),
            1 => Seg::new(last.dst, last.src, RST, own, 0),
            2 => Seg::new(last.dst, last.src, FIN | ACK, own, ack),
            _ if syn => {
                let options: &[u8] = if self.below(3) == 0 { &[2, 4, 5, 0x78] } else { &GRANTED };
                Seg::new(last.dst, last.src, SYN | ACK, own, ack).options(options)
            }
            3 => Seg::new(last.dst, last.src, SYN | ACK, own, ack),
            4..=5 => Seg::new(last.dst, last.src, ACK, own, ack).payload("data of the server"),
            _ => Seg::new(last.dst, last.src, ACK, own, ack),
        };
        self.acks.insert(ack);
        self.give(false, &seg);
    }

    /// Who knows addresses and ports, and guesses well.
    fn forger(&mut self) {
        let client = self.below(2) == 0;
        let Some(last) = self.pick(client) else { return };
        let flags = [ACK, RST, SYN, SYN | ACK, FIN | ACK, PSH | ACK][self.random.below(6) as usize];
        let (seq, ack) =
            (last.ack.wrapping_add(self.below(70_000)), last.seq.wrapping_add(self.below(70_000)));
        if flags & SYN != 0 && client {
            self.acks.insert(seq.wrapping_add(1));
        }
        if !client {
            self.acks.insert(ack);
        }
        let seg =
            Seg::new(last.dst, last.src, flags, seq, ack).payload(if self.below(2) == 0 { "x" } else { "" });
        self.give(client, &seg);
    }

    fn end(mut self) {
        let (came, _) = self.bench.wait_any(Nanos::from_secs(3 * 3600));
        self.note(&came);
        let pipe = &self.bench.pipe;
        let left = (pipe.flow_counts().0, pipe.leg_count(), pipe.ports_in_use(), pipe.frames_held());
        assert_eq!((left, pipe.flows_of(self.bench.client.0)), ((0, 0, 0, 0), 0));
        assert_eq!(self.bench.out.free.len(), FRAMES);
    }
}

#[test]
fn random_ends_and_forgers_leave_nothing_behind_and_nothing_is_acknowledged_for_them() {
    let only = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in only.map_or(0..400, |seed: u64| seed..seed + 1) {
        for family in BOTH {
            let played = std::panic::catch_unwind(|| {
                let mut world = World::new(seed, family);
                for _ in 0..250 {
                    world.step();
                }
                world.end();
            });
            assert!(played.is_ok(), "SEED={seed} {family:?}");
        }
    }
}
