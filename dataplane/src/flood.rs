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
use weir_sys::{clock, ethtool};

use crate::stats::WorkerStats;

/// How often is looked.
const TURN: Duration = Duration::from_millis(20);
/// How long SYNs are counted for a decision.
const WINDOW: u64 = 100_000_000;
/// More SYNs than this in a second are a flood; fewer than half of it, for [`CALM`] windows, are none any more.
const FLOOD_PER_S: u64 = 10_000;
const CALM: u32 = 10;
/// How long after the last cookie one may come back: two periods (RFC 4987 section 3.6 leaves it to the implementation).
const COOKIE_LIFE: u64 = 2 * cookie::PERIOD.0;
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

/// Decides from what is counted; pure.
#[derive(Debug, Default)]
struct Gauge {
    state: CookieState,
    calm: u32,
}

impl Gauge {
    /// `syns` arrived in `took` ns; `pressed`: a worker has too many half-open connections.
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

/// What a device says of frames that the program sent back out of it.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    well: u64,
    failed: u64,
}

/// Watches, and switches the program.
#[derive(Debug)]
pub struct Flood {
    switch: CookieSwitch,
    cookies: Cookies,
    promise: CookiePromise,
    /// Told to the workers: until when cookies may come back.
    until: Arc<AtomicU64>,
    devices: Vec<String>,
    sent: Vec<Sent>,
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
        let sent = devices.iter().map(|device| sent_by(device)).collect();
        Self {
            switch,
            cookies,
            promise,
            until,
            devices,
            sent,
            gauge: Gauge::default(),
            state: CookieState::Off,
            period: None,
            counted: (0, 0),
            given_up: false,
        }
    }

    /// Watches on a thread of its own until `stop`.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn watch(
        mut self,
        workers: Vec<Arc<WorkerStats>>,
        stop: Arc<AtomicBool>,
    ) -> io::Result<JoinHandle<()>> {
        let body = move || {
            while !stop.load(Relaxed) {
                self.look_again(clock::monotonic_ns(), workers.iter().any(|worker| worker.is_pressed()));
                std::thread::sleep(TURN);
            }
            self.end();
        };
        std::thread::Builder::new().name("weir-flood".to_owned()).spawn(body)
    }

    /// Called every few milliseconds, at `now` (ns, CLOCK_MONOTONIC).
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
        if self.state != CookieState::Off && !self.is_sent() {
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
    fn is_sent(&mut self) -> bool {
        for (device, before) in self.devices.iter().zip(&mut self.sent) {
            let now = sent_by(device);
            let well = now.well.saturating_sub(before.well);
            let failed = now.failed.saturating_sub(before.failed);
            *before = now;
            if well == 0 && failed > 0 {
                tracing::warn!(
                    device,
                    "answers of the steering program are lost on their way out: its workers answer SYNs (ethtool -K PEER gro on mends it)"
                );
                self.give_up();
                return false;
            }
        }
        true
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

/// Only veth is known to count so; of other devices nothing is known, and nothing is wrong with them.
fn sent_by(device: &str) -> Sent {
    let mut sent = Sent::default();
    for (name, count) in ethtool::statistics_of(device).unwrap_or_default() {
        if name.ends_with("_xdp_tx") {
            sent.well += count;
        } else if name.ends_with("_xdp_tx_errors") {
            sent.failed += count;
        }
    }
    sent
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
