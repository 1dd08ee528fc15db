//! One whole connection by its seed: how weir takes it, what both ends' TCP can do, a PROXY header or none, numbers that wrap
//! or not, and a network that loses, copies, damages, delays and reorders. `make soak` runs a million of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use smoltcp::socket::tcp::State;
use weir_core::express::Lanes;
use weir_core::ids::Nanos;
use weir_core::policy::{Handshake, PoolSpec, ProxyVersion, Source, SynCookies};

use crate::bench::{Bench, LAN, Setup, WAN};
use crate::hello::{client_hello, http_request};
use crate::host::Kind;
use crate::packet::Family;
use crate::pair::{Express, Outcome, Pair, Play, wire};
use crate::random::{Random, bytes};

/// How a connection comes to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The handshake passes.
    Through,
    /// weir answers the SYN, and connects to where the client wanted to go.
    Answer,
    /// The same, with SYN cookies alone.
    Cookies,
    /// weir answers the SYN, and a rule sends the connection to a pool.
    Send,
    /// The handshake passes, and a rule takes the connection from its server to a pool.
    Rebind,
}

impl Mode {
    pub const ALL: [Self; 5] = [Self::Through, Self::Answer, Self::Cookies, Self::Send, Self::Rebind];

    const fn is_sent(self) -> bool {
        matches!(self, Self::Send | Self::Rebind)
    }
}

/// What a seed stands for.
#[derive(Clone, Debug)]
pub struct Case {
    pub family: Family,
    pub mode: Mode,
    pub proxy: Option<ProxyVersion>,
    pub source: Source,
    pub play: Play,
}

/// How a connection went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything arrived, and both ends closed.
    Whole,
    /// The network lost or damaged every SYN to the servers: the client was reset.
    NoServer,
    /// Both ends fell silent with octets not acknowledged: they had given up, as smoltcp does on the worst wires, and when
    /// the window is smaller than it was at first.
    Silent,
    /// A host put octets together in a wrong way, although each segment that left the gateway whole had the right ones.
    Stack,
}

impl End {
    /// How many there are.
    pub const COUNT: usize = 4;
}

impl Case {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut pick = |n: u64| random.below(n);
        let family = [Family::V4, Family::V6][pick(2) as usize];
        let mode = Mode::ALL[pick(5) as usize];
        let proxy = [None, Some(ProxyVersion::V1), Some(ProxyVersion::V2)][pick(3) as usize];
        let source = [Source::Client, Source::Gateway][pick(2) as usize];
        let wire = wire(&mut random);
        let host = if mode.is_sent() { "sent.example" } else { "fine.example" };
        let mut request = match random.below(4) {
            0 => http_request(host),
            n => client_hello(host, [0, 200, 1400][n as usize - 1]),
        };
        let hello = request.len();
        let length = random.below(60_000) as usize;
        request.extend(bytes(&mut random, length));
        if let Some(next) = request.get_mut(hello) {
            // No handshake, which would wait for the server's answer.
            *next = 0;
        }
        let length = random.below(60_000) as usize;
        let response = bytes(&mut random, length);
        let mut kind = || Kind {
            buffer: [8, 32, 128][random.below(3) as usize] * 1024,
            timestamps: random.one_in(2),
            // Half of them begin shortly before the wrap.
            // The second half of a hello would wait for the acknowledgment of the first, which only its server can give.
            nagle: false,
            shift: if random.one_in(2) { 0 } else { (random.below(1 << 16) as u32).wrapping_neg() },
        };
        let (client, server) = (kind(), kind());
        let play = Play {
            hello,
            request,
            response,
            early_close: random.one_in(4),
            client,
            server,
            is_sent: mode.is_sent(),
            ..Play::new(seed, wire, 900_000_000)
        };
        Self { family, mode, proxy: proxy.filter(|_| mode.is_sent()), source, play }
    }

    fn bench(&self) -> Bench {
        let mut setup = Setup::new();
        setup.spec.handshake = match self.mode {
            Mode::Through | Mode::Rebind => Handshake::Through,
            Mode::Answer | Mode::Cookies | Mode::Send => Handshake::Answer,
        };
        if self.mode == Mode::Cookies {
            setup.spec.syn_cookies = SynCookies::Always;
        }
        // Smoltcp's retransmissions come late, and each twice as late as the one before: no verdict by the clock.
        setup.spec.hold_time = Nanos::from_secs(1000);
        let (proxy, source) = (self.proxy, self.source);
        let setup = setup.sending(|pool| PoolSpec { proxy, source, ..pool });
        Bench::of(self.family, setup)
    }

    /// Plays it. What is wrong is said, or panics.
    fn play(&self, mut lane: Option<&mut dyn Express>) -> Result<End, String> {
        let mut bench = self.bench();
        let pair = |bench| Pair::new(bench, &self.play);
        let outcome = match &mut lane {
            Some(lane) => {
                bench.pipe.set_lanes(all_lanes());
                pair(&mut bench).beside(&mut **lane).run()
            }
            None => pair(&mut bench).run(),
        };
        let failed = bench.pipe.totals.failed;
        let end = self.judge(&bench, &outcome)?;
        self.judge_losses(&outcome)?;
        empty_after_timers(&mut bench, lane)?;
        match end {
            End::Whole if failed > 0 => Err(format!("{failed} server legs failed, and all arrived")),
            _ => Ok(end),
        }
    }

    /// What the gateway lost of a connection that had been in the lane is of none that goes on.
    fn judge_losses(&self, outcome: &Outcome) -> Result<(), String> {
        match &outcome.lost[..] {
            [] => Ok(()),
            lost => Err(format!("the gateway lost payload: {lost:?}")),
        }
    }

    fn judge(&self, bench: &Bench, outcome: &Outcome) -> Result<End, String> {
        let play = &self.play;
        if !play.request.starts_with(&outcome.at_server) || !play.response.starts_with(&outcome.at_client) {
            return Ok(End::Stack);
        }
        if bench.pipe.totals.failed > 0 && (play.wire.loses > 0 || play.wire.damages > 0) {
            return Ok(End::NoServer);
        }
        let arrived = outcome.at_server == play.request
            && (play.early_close || outcome.at_client == play.response)
            && outcome.client != State::Established;
        if arrived {
            return match (self.proxy.is_some(), outcome.header.is_empty()) {
                (true, true) => Err("no PROXY header arrived".to_owned()),
                (false, false) => Err("a PROXY header arrived".to_owned()),
                _ => Ok(End::Whole),
            };
        }
        let (views, _) = bench.pipe.views(bench.now, 0, 1);
        // A host that closes into a window that is shut says nothing but empty segments (smoltcp 0.14).
        let mute = outcome.took - outcome.spoke > 300_000_000;
        let silent = views.first().is_none_or(|view| view.idle_ns > Nanos::from_secs(300).0);
        let shrank = play.server.buffer < usize::from(u16::MAX) && self.mode != Mode::Through;
        if mute || (silent && (play.wire.loses > 0 || shrank) && outcome.took > 300_000_000) {
            return Ok(End::Silent);
        }
        Err(format!(
            "{} of {} octets at the server, {} of {} at the client, {:?} and {:?} after {} us",
            outcome.at_server.len(),
            play.request.len(),
            outcome.at_client.len(),
            play.response.len(),
            outcome.client,
            outcome.server,
            outcome.took,
        ))
    }
}

/// Between both ports.
fn all_lanes() -> Lanes {
    let mut lanes = Lanes::NONE;
    for (from, to) in [(LAN, WAN), (WAN, LAN)] {
        lanes.between[usize::from(from.0)].insert(to);
    }
    lanes
}

/// After the timers nothing is left of a connection.
fn empty_after_timers(bench: &mut Bench, mut lane: Option<&mut dyn Express>) -> Result<(), String> {
    for _ in 0..200 {
        bench.now = bench.now.saturating_add(Nanos::from_secs(60));
        let now = bench.now;
        bench.pipe.poll_timers(now, &mut bench.out);
        bench.collect();
        if let Some(lane) = &mut lane {
            lane.carry_out(now, &mut bench.pipe, &mut bench.out);
            bench.collect();
        }
    }
    if bench.pipe.express_flows() > 0 {
        return Err("the lane has a connection after the timers".to_owned());
    }
    match (bench.pipe.flow_counts(), bench.pipe.leg_count(), bench.pipe.frames_held()) {
        ((0, 0), 0, 0) => Ok(()),
        left => Err(format!("flows, legs and frames are left after the timers: {left:?}")),
    }
}

/// Plays the connection of a seed; an invariant that breaks is an error.
pub fn run(seed: u64) -> Result<End, String> {
    run_beside(seed, None)
}

/// The same, with an express lane beside the pipeline.
pub fn run_beside(seed: u64, lane: Option<&mut dyn Express>) -> Result<End, String> {
    let case = Case::new(seed);
    let played = catch_unwind(AssertUnwindSafe(|| case.play(lane))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
    });
    played.map_err(|wrong| {
        let Case { family, mode, proxy, source, play } = &case;
        let (wire, client, server) = (play.wire, play.client, play.server);
        format!("seed {seed}: {wrong}\n  {family:?} {mode:?} {proxy:?} {source:?} {wire:?}\n  client {client:?}, server {server:?}, early close {}", play.early_close)
    })
}
