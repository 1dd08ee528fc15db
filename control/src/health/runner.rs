//! Carries out the checks, on the event loop.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use weir_core::ids::{PoolId, ServerId};
use weir_core::policy::ProxyVersion;

use super::Board;
use super::probe::probe;
use crate::config::{Check, Pool};

/// Servers that refused a connection of the dataplane, or did not answer it.
pub type Passive = Arc<ArrayQueue<(PoolId, ServerId)>>;

/// How often failures are read from the dataplane's queue, and servers looked through for another try.
const LOOK: Duration = Duration::from_millis(100);
/// Probes under way at once: each has a descriptor.
const MOST: usize = 256;
/// The first probes are spread over this long, or over an interval that is shorter.
const FIRST: Duration = Duration::from_secs(1);

/// Watches the servers of `pools` until it is dropped. What it finds is on the board. Needs a `LocalSet`.
pub async fn run(pools: &[Pool], board: Arc<Board>, passive: Passive) {
    let mut tasks = JoinSet::new();
    let permits = Arc::new(Semaphore::new(MOST));
    for (id, pool) in (0..).map(PoolId).zip(pools) {
        let Some(check) = &pool.check else { continue };
        let check = Arc::new(check.clone());
        for (place, server) in (0..).map(ServerId).zip(&pool.spec.servers) {
            let server =
                Watched { pool: id, place, addr: server.addr, check: check.clone(), proxy: pool.spec.proxy };
            tasks.spawn_local(server.watch(board.clone(), permits.clone()));
        }
    }
    loop {
        while let Some((pool, server)) = passive.pop() {
            board.report(|health, now| health.passive_failure(now, pool, server));
        }
        board.report(|health, now| health.tick(now));
        sleep(LOOK).await;
    }
}

/// A server with a check.
struct Watched {
    pool: PoolId,
    place: ServerId,
    addr: SocketAddr,
    check: Arc<Check>,
    proxy: Option<ProxyVersion>,
}

impl Watched {
    async fn watch(self, board: Arc<Board>, permits: Arc<Semaphore>) {
        let interval = self.check.interval;
        sleep(interval.min(FIRST).mul_f64(random())).await;
        loop {
            // A tenth more or less, so that servers and gateways do not fall into step.
            let next = Instant::now() + interval.mul_f64(0.9 + 0.2 * random());
            // The semaphore is never closed.
            if let Ok(_permit) = permits.acquire().await {
                let result = probe(self.addr, &self.check, self.proxy).await;
                board.report(|health, now| health.probed(now, self.pool, self.place, &result));
            }
            sleep_until(next).await;
        }
    }
}

/// Between 0 and 1. Each hasher of this kind has keys of its own.
fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}
