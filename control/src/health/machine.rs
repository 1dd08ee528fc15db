//! What is known of each server, as a pure machine.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use weir_core::ids::{Nanos, PoolId, ServerId};
use weir_core::policy::ServerState;

use crate::config::{Check, Pool};

/// Connections in a row that must fail until a server without a check is down.
const FALL: u32 = 3;
/// Without a check: how long a server stays down until it is tried again, and after how long without a failure those
/// before are forgotten.
const PAUSE: Nanos = Nanos::from_secs(10);

/// All servers of all pools.
#[derive(Debug)]
pub struct Health {
    pools: Vec<Watched>,
    /// The epoch since which pools and servers have their numbers.
    numbered: u32,
}

/// One pool.
#[derive(Debug)]
struct Watched {
    name: String,
    check: Option<Check>,
    servers: Vec<Watch>,
}

/// One server.
#[derive(Debug)]
struct Watch {
    addr: SocketAddr,
    weight: u16,
    is_up: bool,
    /// By command.
    is_drained: bool,
    /// Failures in a row while it is up, successes in a row while it is down.
    streak: u32,
    /// When the last failure was reported.
    failed: Nanos,
    /// Why it is up or down.
    why: String,
    /// When the state that is shown came to be.
    since: Nanos,
}

/// A pool, for `weir status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolView {
    pub name: String,
    /// The kind of its check; none: it learns from the connections that it is given.
    pub check: Option<&'static str>,
    pub servers: Vec<ServerView>,
}

/// A server, for `weir status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerView {
    pub address: SocketAddr,
    /// `up`, `down` or `draining`.
    pub state: &'static str,
    pub weight: u16,
    pub why: String,
    /// How long it has been in this state.
    pub since_s: u64,
}

impl PoolView {
    pub fn has_server_up(&self) -> bool {
        self.servers.iter().any(|server| server.state == ServerState::Up.name())
    }
}

impl Health {
    /// Everybody is up until something else is known.
    pub fn new(pools: &[Pool], now: Nanos) -> Self {
        let watched = |pool: &Pool| Watched {
            name: pool.spec.name.clone(),
            check: pool.check.clone(),
            servers: pool.spec.servers.iter().map(|s| Watch::new(s.addr, s.weight, now)).collect(),
        };
        Self { pools: pools.iter().map(watched).collect(), numbered: 0 }
    }

    /// Other pools take the place of these, under numbers that hold from the epoch `numbered` on. What is known of a
    /// server, and whether it is drained, is kept where a pool of the same name still has its address.
    pub fn replace(&mut self, pools: &[Pool], numbered: u32, now: Nanos) {
        let before = std::mem::replace(self, Self { numbered, ..Self::new(pools, now) });
        for mut old in before.pools {
            let Some(new) = self.pools.iter_mut().find(|pool| pool.name == old.name) else { continue };
            for server in &mut new.servers {
                if let Some(at) = old.servers.iter().position(|watch| watch.addr == server.addr) {
                    let known = old.servers.swap_remove(at);
                    let since = if known.weight == server.weight { known.since } else { now };
                    *server = Watch { weight: server.weight, since, ..known };
                }
            }
        }
    }

    /// Whether numbers given since that epoch mean what they mean here.
    pub const fn is_numbered(&self, epoch: u32) -> bool {
        self.numbered == epoch
    }

    /// What a probe found. Returns whether the server's state is another now.
    pub fn probed(
        &mut self,
        now: Nanos,
        pool: PoolId,
        server: ServerId,
        result: &Result<String, String>,
    ) -> bool {
        self.change(now, pool, server, |server, check| {
            let Some(check) = check else { return };
            match result {
                Ok(found) => server.succeeded(check, found),
                Err(error) => server.failed(now, check.fall, memory(Some(check)), error),
            }
        })
    }

    /// A connection that the dataplane gave to the server was refused or not answered. It counts like a probe that
    /// fails.
    pub fn passive_failure(&mut self, now: Nanos, pool: PoolId, server: ServerId) -> bool {
        self.change(now, pool, server, |server, check| {
            let fall = check.map_or(FALL, |check| check.fall);
            server.failed(now, fall, memory(check), "connections were refused or not answered");
        })
    }

    /// Gives servers without a check that were down long enough another try. Returns whether any state is another now.
    pub fn tick(&mut self, now: Nanos) -> bool {
        let mut any = false;
        for pool in self.pools.iter_mut().filter(|pool| pool.check.is_none()) {
            for server in pool.servers.iter_mut().filter(|server| !server.is_up) {
                if now >= server.failed.saturating_add(PAUSE) {
                    any |= server.changed(now, &pool.name, Watch::try_again);
                }
            }
        }
        any
    }

    /// Drains a server, or ends that. Returns whether its state is another now.
    pub fn drain(&mut self, now: Nanos, pool: PoolId, server: ServerId, drained: bool) -> bool {
        self.change(now, pool, server, |server, _| server.is_drained = drained)
    }

    /// The pool of this name and its server of this address; of these, which there are.
    ///
    /// # Errors
    /// The names of all pools when none is called that; the pool's addresses when no server has that.
    pub fn find(&self, pool: &str, server: SocketAddr) -> Result<(PoolId, ServerId), Vec<String>> {
        let named = (0..).map(PoolId).zip(&self.pools).find(|(_, watched)| watched.name == pool);
        let Some((id, watched)) = named else {
            return Err(self.pools.iter().map(|pool| pool.name.clone()).collect());
        };
        let server = (0..).map(ServerId).zip(&watched.servers).find(|(_, watch)| watch.addr == server);
        match server {
            Some((server, _)) => Ok((id, server)),
            None => Err(watched.servers.iter().map(|watch| watch.addr.to_string()).collect()),
        }
    }

    /// Whether there is a pool of this name.
    pub fn has(&self, pool: &str) -> bool {
        self.pools.iter().any(|watched| watched.name == pool)
    }

    /// The state of each server of each pool, in their order, as the policy takes it.
    pub fn states(&self) -> Vec<Vec<ServerState>> {
        let states = |pool: &Watched| pool.servers.iter().map(Watch::state).collect();
        self.pools.iter().map(states).collect()
    }

    pub fn views(&self, now: Nanos) -> Vec<PoolView> {
        let view = |pool: &Watched| PoolView {
            name: pool.name.clone(),
            check: pool.check.as_ref().map(|check| check.probe.name()),
            servers: pool.servers.iter().map(|server| server.view(now, pool.check.is_some())).collect(),
        };
        self.pools.iter().map(view).collect()
    }

    fn change(
        &mut self,
        now: Nanos,
        pool: PoolId,
        server: ServerId,
        change: impl FnOnce(&mut Watch, Option<&Check>),
    ) -> bool {
        let Some(pool) = self.pools.get_mut(usize::from(pool.0)) else { return false };
        let Some(server) = pool.servers.get_mut(usize::from(server.0)) else { return false };
        server.changed(now, &pool.name, |server| change(server, pool.check.as_ref()))
    }
}

/// After how long without a failure those before are forgotten: failing probes come once in an interval.
fn memory(check: Option<&Check>) -> Nanos {
    let probes = check.map_or(Duration::ZERO, |check| check.interval.saturating_mul(2));
    PAUSE.max(Nanos(u64::try_from(probes.as_nanos()).unwrap_or(u64::MAX)))
}

impl Watch {
    fn new(addr: SocketAddr, weight: u16, now: Nanos) -> Self {
        Self {
            addr,
            weight,
            is_up: true,
            is_drained: false,
            streak: 0,
            failed: Nanos(0),
            why: String::new(),
            since: now,
        }
    }

    fn state(&self) -> ServerState {
        match self {
            Self { is_drained: true, .. } | Self { weight: 0, .. } => ServerState::Draining,
            Self { is_up: true, .. } => ServerState::Up,
            Self { is_up: false, .. } => ServerState::Down,
        }
    }

    fn view(&self, now: Nanos, is_checked: bool) -> ServerView {
        let why = match self {
            Self { is_drained: true, .. } => "drained by command".to_owned(),
            Self { weight: 0, .. } => "its weight is 0".to_owned(),
            Self { why, .. } if !why.is_empty() => why.clone(),
            _ if is_checked => "not checked yet".to_owned(),
            _ => "no check, and no failure".to_owned(),
        };
        ServerView {
            address: self.addr,
            state: self.state().name(),
            weight: self.weight,
            why,
            since_s: now.saturating_sub(self.since).0 / 1_000_000_000,
        }
    }

    /// Makes a change, and says when it makes another state of it.
    fn changed(&mut self, now: Nanos, pool: &str, change: impl FnOnce(&mut Self)) -> bool {
        let before = self.state();
        change(self);
        let state = self.state();
        if state == before {
            return false;
        }
        self.since = now;
        let (server, why) = (self.addr, self.view(now, false).why);
        tracing::warn!(pool, %server, was = before.name(), is = state.name(), why, "pool");
        true
    }

    fn succeeded(&mut self, check: &Check, found: &str) {
        if self.is_up {
            self.streak = 0;
        } else {
            self.streak += 1;
            if self.streak < check.rise {
                return;
            }
            self.is_up = true;
            self.streak = 0;
        }
        found.clone_into(&mut self.why);
    }

    /// `memory`: failures longer ago do not count.
    fn failed(&mut self, now: Nanos, fall: u32, memory: Nanos, error: &str) {
        if !self.is_up {
            self.streak = 0;
        } else if now.saturating_sub(self.failed) > memory {
            self.streak = 1;
        } else {
            self.streak += 1;
        }
        self.failed = now;
        if self.is_up && self.streak >= fall {
            self.is_up = false;
            self.streak = 0;
        }
        if !self.is_up {
            error.clone_into(&mut self.why);
        }
    }

    /// Up, and down again at the next failure.
    fn try_again(&mut self) {
        self.is_up = true;
        self.streak = FALL - 1;
        // So that the next failure is not too long after the last.
        self.failed = self.failed.saturating_add(PAUSE);
        self.why = "tried again after connections failed".to_owned();
    }
}
