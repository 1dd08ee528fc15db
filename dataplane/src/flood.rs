//! A flood of SYNs: when the steering program answers them in the workers' place.
//!
//! A worker is the better one to answer: it knows the servers, and the connections that a SYN may belong to. But each SYN that
//! comes to it costs the way there, and under a flood that way is all that a core does. So while more SYNs arrive than are
//! anybody's, and the intercept answers with cookies, the program answers where the packet comes in.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use weir_core::ids::Nanos;
use weir_core::tcp::cookie::{self, Cookies};
use weir_sys::steering::{CookieKey, CookiePromise, CookieState, CookieSwitch, SteeringError};
use weir_sys::{affinity, clock, ethtool};

use crate::heartbeat::together;
use crate::stats::WorkerStats;

/// The longest time between two looks: with others' rest it is more than [`WINDOW`], too.
const TURN: Duration = Duration::from_millis(125);
/// How long SYNs are counted for a decision, in ns.
const WINDOW: u64 = 100_000_000;
/// More SYNs than this in a second are a flood; fewer than half of it, for [`CALM`] windows, are none any more.
const FLOOD_PER_S: u64 = 10_000;
const CALM: u32 = 10;
/// A worker that is at work and whose last breath is so long ago, in ns, has more to do than it can.
const LATE: u64 = 20_000_000;
/// How long after the last cookie one may come back: two periods (RFC 4987 section 3.6 leaves it to the implementation).
const COOKIE_LIFE: u64 = 2 * cookie::PERIOD.0;
/// After so many windows whose answers were all lost, the program is no help.
const PATIENCE: u32 = 3;
/// What is taken off an MTU for the MSS: IP and TCP headers.
const HEADERS_V4: u32 = 40;
const HEADERS_V6: u32 = 60;
/// The least MSS (RFC 9293 section 3.7.1).
const LEAST_MSS: u32 = 536;

/// What is promised to a client of which nothing is looked up, when the smallest MTU of the ports is `mtu`.
pub fn promise(mtu: u32, window: u16) -> CookiePromise {
    let mss = |headers| mtu.saturating_sub(headers).clamp(LEAST_MSS, u32::from(u16::MAX)) as u16;
    CookiePromise { mss_v4: mss(HEADERS_V4), mss_v6: mss(HEADERS_V6), window }
}

/// Whether a worker has too many half-open connections, or no time for more.
fn is_pressed(worker: &WorkerStats, now: u64) -> bool {
    worker.is_pressed() || worker.breathed.is_late(now, LATE)
}

/// Decides from what is counted; pure.
#[derive(Debug, Default)]
struct Gauge {
    state: CookieState,
    calm: u32,
}

impl Gauge {
    /// `syns` arrived in `took` ns; `pressed`: a worker had more of them than it can take.
    fn decide(&mut self, syns: u64, took: u64, pressed: bool) -> CookieState {
        let rate = u128::from(syns) * 1_000_000_000 / u128::from(took.max(1));
        let flood = u128::from(FLOOD_PER_S);
        if rate > flood {
            self.calm = 0;
            // Who was pressed once in a flood would be again as soon as it had to answer.
            if pressed || self.state == CookieState::All {
                self.state = CookieState::All;
            } else {
                self.state = CookieState::Always;
            }
        } else if 2 * rate < flood && self.state != CookieState::Off {
            self.calm += 1;
            if self.calm >= CALM {
                *self = Self::default();
            }
        }
        self.state
    }
}

/// A port's device, and what became of the answers of the program to what came by it.
#[derive(Debug)]
struct Port {
    device: String,
    /// Only a veth device is known to lose them, and to say what it sent: a device of another driver has nothing here.
    way_out: Option<WayOut>,
}

/// Frames that the program answered, and frames that left the device, when they were read last.
#[derive(Debug, Default)]
struct WayOut {
    answered: u64,
    sent: u64,
    /// Windows in a row in which some were answered and none was sent.
    lost: u32,
}

/// Watches, and switches the program.
#[derive(Debug)]
pub struct Flood {
    switch: CookieSwitch,
    cookies: Cookies,
    promise: CookiePromise,
    /// Told to the workers: until when cookies may come back.
    until: Arc<AtomicU64>,
    ports: Vec<Port>,
    gauge: Gauge,
    state: CookieState,
    period: Option<u64>,
    counted: (u64, u64),
    /// The program cannot be told, or a device does not send what it answers.
    given_up: bool,
}

impl Flood {
    pub fn new(
        switch: CookieSwitch,
        cookies: Cookies,
        promise: CookiePromise,
        until: Arc<AtomicU64>,
        devices: Vec<String>,
    ) -> Self {
        let of = |device: String| {
            let is_veth = ethtool::driver_of(&device).is_ok_and(|driver| driver == "veth");
            Port { device, way_out: is_veth.then(WayOut::default) }
        };
        Self {
            switch,
            cookies,
            promise,
            until,
            ports: devices.into_iter().map(of).collect(),
            gauge: Gauge::default(),
            state: CookieState::Off,
            period: None,
            counted: (0, 0),
            given_up: false,
        }
    }

    /// Watches on a thread of its own until `stop`, of which it hears when it is unparked.
    ///
    /// # Errors
    /// No thread can be had; the program cannot be told.
    pub fn watch(
        mut self,
        workers: Vec<Arc<WorkerStats>>,
        stop: Arc<AtomicBool>,
    ) -> io::Result<JoinHandle<()>> {
        let redirected = (0..u64::BITS).zip(&self.ports).filter(|(_, port)| port.way_out.is_some());
        let redirected = redirected.fold(0, |all, (number, _)| all | 1 << number);
        self.switch.set_redirected(redirected).map_err(io::Error::other)?;
        let body = move || {
            // A flood leaves ordinary threads no time to notice it.
            if let Err(error) = affinity::run_promptly() {
                tracing::warn!(%error, "no priority over other threads: floods of SYNs may be noticed late");
            }
            while !stop.load(Relaxed) {
                let now = clock::monotonic_ns();
                self.look_again(now, workers.iter().any(|worker| is_pressed(worker, now)));
                std::thread::park_timeout(together(now, TURN));
            }
            self.end();
        };
        std::thread::Builder::new().name("weir-flood".to_owned()).spawn(body)
    }

    /// Called once in a window, at `now` (ns, CLOCK_MONOTONIC).
    fn look_again(&mut self, now: u64, pressed: bool) {
        if self.given_up {
            return;
        }
        if self.state != CookieState::Off {
            self.until.store(now + COOKIE_LIFE, Relaxed);
        }
        if let Err(error) = self.look(now, pressed) {
            tracing::error!(%error, "SYN cookies of the steering program");
            self.give_up();
        }
    }

    fn look(&mut self, now: u64, pressed: bool) -> Result<(), SteeringError> {
        let (at, before) = self.counted;
        if now.saturating_sub(at) < WINDOW {
            return Ok(());
        }
        self.renew_keys(now)?;
        let syns = self.switch.syns()?;
        self.counted = (now, syns);
        if at == 0 {
            return Ok(());
        }
        if self.state != CookieState::Off && !self.is_sent()? {
            self.give_up();
            return Ok(());
        }
        let state = self.gauge.decide(syns.saturating_sub(before), now - at, pressed);
        if state != self.state {
            if self.state == CookieState::Off {
                self.until.store(now + COOKIE_LIFE, Relaxed);
                tracing::warn!("a flood of SYNs: the steering program answers them with cookies");
            } else if state == CookieState::Off {
                tracing::info!("the flood of SYNs is over");
            }
            self.switch.set_state(state)?;
            self.state = state;
        }
        Ok(())
    }

    /// The keys of this period and the next.
    fn renew_keys(&mut self, now: u64) -> Result<(), SteeringError> {
        let period = cookie::period(Nanos(now));
        if self.period == Some(period) {
            return Ok(());
        }
        for period in [period, period + 1] {
            let (key, clock) = (self.cookies.key(period), self.cookies.clock_key());
            self.switch.set_key(&CookieKey { period, key, clock }, &self.promise)?;
        }
        self.period = Some(period);
        Ok(())
    }

    /// Whether the devices send what the program answers. A veth device says that it does, and drops it, unless its peer has
    /// an XDP program or GRO (drivers/net/veth.c, veth_xdp_xmit): then the workers go on answering.
    fn is_sent(&mut self) -> Result<bool, SteeringError> {
        for (number, port) in (0..).zip(&mut self.ports) {
            let Some(way_out) = &mut port.way_out else { continue };
            let (answered, sent) = (self.switch.answered(number)?, sent_by(&port.device));
            let is_lost = answered > way_out.answered && sent == way_out.sent;
            *way_out = WayOut { answered, sent, lost: if is_lost { way_out.lost + 1 } else { 0 } };
            if way_out.lost == PATIENCE {
                tracing::warn!(
                    device = port.device,
                    "answers of the steering program are lost on their way out: its workers answer SYNs (ethtool -K PEER gro on mends it)"
                );
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn give_up(&mut self) {
        self.given_up = true;
        self.end();
    }

    /// The workers answer again.
    fn end(&mut self) {
        if self.state != CookieState::Off
            && let Err(error) = self.switch.set_state(CookieState::Off)
        {
            tracing::error!(%error, "SYN cookies of the steering program");
        }
        self.state = CookieState::Off;
    }
}

/// XDP frames that left a veth device since it was made.
fn sent_by(device: &str) -> u64 {
    let statistics = ethtool::statistics_of(device).unwrap_or_default();
    statistics.iter().filter(|(name, _)| name.ends_with("_xdp_xmit")).map(|(_, count)| count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENTH: u64 = WINDOW;

    #[test]
    fn flood_switches_on_and_its_end_off() {
        let mut gauge = Gauge::default();
        assert_eq!(gauge.decide(900, TENTH, false), CookieState::Off);
        assert_eq!(gauge.decide(1100, TENTH, false), CookieState::Always);
        assert_eq!(gauge.decide(200_000, TENTH, true), CookieState::All);
        assert_eq!(gauge.decide(200_000, TENTH, false), CookieState::All);
        // Between the two bounds nothing changes.
        for _ in 0..100 {
            assert_eq!(gauge.decide(700, TENTH, false), CookieState::All);
        }
        for _ in 1..CALM {
            assert_eq!(gauge.decide(100, TENTH, false), CookieState::All);
        }
        assert_eq!(gauge.decide(100, TENTH, false), CookieState::Off);
        assert_eq!(gauge.decide(100, TENTH, true), CookieState::Off);
    }

    #[test]
    fn promise_fits_the_mtu() {
        let promised = promise(1500, 16_384);
        assert_eq!((promised.mss_v4, promised.mss_v6, promised.window), (1460, 1440, 16_384));
        assert_eq!(promise(100, 1).mss_v6, 536);
    }
}
