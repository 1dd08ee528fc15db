//! What is known of the servers, shared by those who report, those who ask, and the one that publishes.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::Notify;
use weir_core::ids::Nanos;
use weir_core::policy::ServerState;
use weir_sys::clock;

use super::{Health, PoolView};
use crate::config::Pool;

/// Why a server cannot be drained.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DrainError {
    #[error("no pool is named `{0}`; there are: {1}")]
    Pool(String, String),
    #[error("pool `{0}` has no server {1}; it has: {2}")]
    Server(String, SocketAddr, String),
}

/// The health of the running gateway's pools.
#[derive(Debug)]
pub struct Board {
    health: Mutex<Health>,
    changed: Notify,
}

impl Board {
    /// `numbered`: the epoch since which the pools and their servers have their numbers.
    pub fn new(pools: &[Pool], numbered: u32) -> Self {
        let board = Self { health: Mutex::new(Health::new(&[], now())), changed: Notify::new() };
        board.replace(pools, numbered);
        board
    }

    /// Other pools take the place of these; see [`Health::replace`].
    pub fn replace(&self, pools: &[Pool], numbered: u32) {
        self.health().replace(pools, numbered, now());
    }

    /// Reports something; `report` says whether a state is another after it.
    pub fn report(&self, report: impl FnOnce(&mut Health, Nanos) -> bool) {
        if report(&mut self.health(), now()) {
            self.changed.notify_one();
        }
    }

    /// Waits until states have changed since the last call. One waits.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn states(&self) -> Vec<Vec<ServerState>> {
        self.health().states()
    }

    pub fn views(&self) -> Vec<PoolView> {
        self.health().views(now())
    }

    /// Drains a server, or ends that; gives its pool as it is then.
    ///
    /// # Errors
    /// There is no such pool or no such server.
    pub fn drain(&self, pool: &str, server: SocketAddr, drained: bool) -> Result<PoolView, DrainError> {
        let mut health = self.health();
        let (id, place) = health.find(pool, server).map_err(|there| {
            let list = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            match health.has(pool) {
                true => DrainError::Server(pool.to_owned(), server, list),
                false => DrainError::Pool(pool.to_owned(), list),
            }
        })?;
        if health.drain(now(), id, place, drained) {
            self.changed.notify_one();
        }
        Ok(health.views(now()).swap_remove(usize::from(id.0)))
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> Nanos {
    Nanos(clock::monotonic_ns())
}
