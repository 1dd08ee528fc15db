//! Answering SYNs with cookies in the program: the keys, and when.
//!
//! weir-dataplane's heartbeat thread is the caller. How a cookie is made is written in weir-core, tcp/cookie.rs.

use std::fmt;
use std::sync::Arc;

use aya::maps::{MapData, PerCpuArray};

use super::error::SteeringError;
use super::layout::{COOKIE_KEYS, Config, Cookies, SYNS_ANSWERED, SYNS_SEEN};
use super::map::Map;
use super::set;

/// What the cookies of one period are made with. The secret itself is not given away.
#[derive(Clone, Copy)]
pub struct CookieKey {
    /// The number of the period.
    pub period: u64,
    /// The key of the period, and that of the clock, as SipHash takes them.
    pub key: [u8; 16],
    pub clock: [u8; 16],
}

impl fmt::Debug for CookieKey {
    /// Keys are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CookieKey").field("period", &self.period).finish_non_exhaustive()
    }
}

/// What a SYN-ACK with a cookie says, in octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookiePromise {
    pub mss_v4: u16,
    pub mss_v6: u16,
    pub window: u16,
}

/// Whose SYNs the program answers; `enum weir_cookie_state` of maps.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum CookieState {
    /// Nobody's: the workers answer.
    #[default]
    Off = 0,
    /// Those of intercepts with cookies always.
    Always,
    /// Those of intercepts with cookies under pressure, too.
    All,
}

/// The maps of it: cheap to clone, for any thread.
#[derive(Clone)]
pub struct CookieSwitch {
    config: Map<u32, u64>,
    cookies: Map<u32, Cookies>,
    syns: Arc<PerCpuArray<MapData, u64>>,
}

impl fmt::Debug for CookieSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CookieSwitch").finish_non_exhaustive()
    }
}

impl CookieSwitch {
    pub(super) fn new(
        config: Map<u32, u64>,
        cookies: Map<u32, Cookies>,
        syns: PerCpuArray<MapData, u64>,
    ) -> Self {
        Self { config, cookies, syns: Arc::new(syns) }
    }

    /// Gives the program the key of a period, in the place of the one two periods before. The program reads only the key of
    /// the period that it is in, so that of the next one is to be there before it begins.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn set_key(&self, key: &CookieKey, promise: &CookiePromise) -> Result<(), SteeringError> {
        let words = |octets: &[u8; 16]| {
            let (low, high) = octets.split_at(8);
            [low, high].map(|half| half.try_into().map_or(0, u64::from_le_bytes))
        };
        let value = Cookies {
            period: key.period,
            key: words(&key.key),
            clock: words(&key.clock),
            mss4: promise.mss_v4,
            mss6: promise.mss_v6,
            window: promise.window,
            reserved: 0,
        };
        set(&self.cookies, "cookies", &((key.period % COOKIE_KEYS) as u32), &value)
    }

    /// Says whose SYNs are answered from now on.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn set_state(&self, state: CookieState) -> Result<(), SteeringError> {
        set(&self.config, "config", &(Config::Cookies as u32), &(state as u64))
    }

    /// SYNs since the start that the program could have answered, whether it did or not.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn syns(&self) -> Result<u64, SteeringError> {
        self.sum(SYNS_SEEN)
    }

    /// SYNs from this port since the start that the program answered.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn answered(&self, port: u32) -> Result<u64, SteeringError> {
        self.sum(SYNS_ANSWERED + port)
    }

    /// Says which ports (one bit each, by their numbers) send answers as redirected frames rather than with XDP_TX: those whose
    /// driver does better by that.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn set_redirected(&self, ports: u64) -> Result<(), SteeringError> {
        set(&self.config, "config", &(Config::CookiesRedirected as u32), &ports)
    }

    fn sum(&self, slot: u32) -> Result<u64, SteeringError> {
        let failed = |error| SteeringError::Map {
            map: "syns",
            action: "reading",
            source: std::io::Error::other(error),
        };
        Ok(self.syns.get(&slot, 0).map_err(failed)?.iter().sum())
    }
}
