//! Carries out the checks, on the event loop.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use weir_core::policy::ProxyVersion;
use weir_dataplane::gateway::FailedServer;

use super::Board;
use super::probe::probe;
use crate::config::{Check, Pool};

/// Servers that refused a connection of the dataplane, or did not answer it.
pub type Passive = Arc<ArrayQueue<FailedServer>>;
/// The pools in force.
pub type Pools = watch::Receiver<Arc<[Pool]>>;

/// How often failures are read from the dataplane's queue, and servers looked through for another try.
const LOOK: Duration = Duration::from_millis(100);
/// Without pools there is nothing to read and nothing to look through.
const NEVER: Duration = Duration::MAX;
/// Probes under way at once: each has a descriptor.
const MOST: usize = 256;
/// The first probes are spread over this long, or over an interval that is shorter.
const FIRST: Duration = Duration::from_secs(1);

/// Watches the servers of `pools` until it is dropped. What it finds is on the board. When other pools take their place,
/// the checks of servers that stay go on. Needs a `LocalSet`.
pub async fn run(mut pools: Pools, board: Arc<Board>, passive: Passive) {
    let mut probes = Probes::new(board.clone());
    let now = pools.borrow_and_update().clone();
    probes.follow(&now);
    loop {
        while let Some(FailedServer { pool, server, numbered }) = passive.pop() {
            // Numbers of another configuration may mean others.
            board.report(|health, now| {
                health.is_numbered(numbered) && health.passive_failure(now, pool, server)
            });
        }
        board.report(|health, now| health.tick(now));
        let look = if pools.borrow().is_empty() { NEVER } else { LOOK };
        if let Ok(Ok(())) = timeout(look, pools.changed()).await {
            let now = pools.borrow_and_update().clone();
            probes.follow(&now);
        } else if pools.has_changed().is_err() {
            sleep(LOOK).await;
        }
    }
}

/// The checks that run.
struct Probes {
    board: Arc<Board>,
    permits: Arc<Semaphore>,
    tasks: JoinSet<()>,
    running: HashMap<(String, SocketAddr), Probing>,
}

/// What a server is asked, and the task that asks it.
struct Probing {
    check: Check,
    proxy: Option<ProxyVersion>,
    task: AbortHandle,
}

impl Probes {
    fn new(board: Arc<Board>) -> Self {
        let permits = Arc::new(Semaphore::new(MOST));
        Self { board, permits, tasks: JoinSet::new(), running: HashMap::new() }
    }

    /// Checks the servers of these pools: those that were asked the same before are left to their tasks.
    fn follow(&mut self, pools: &[Pool]) {
        let mut before = std::mem::take(&mut self.running);
        for pool in pools {
            let Some(check) = &pool.check else { continue };
            for server in &pool.spec.servers {
                let key = (pool.spec.name.clone(), server.addr);
                let same = |p: &Probing| p.check == *check && p.proxy == pool.spec.proxy;
                let kept = if before.get(&key).is_some_and(same) { before.remove(&key) } else { None };
                let probing = kept.unwrap_or_else(|| self.probe(&key, check, pool.spec.proxy));
                self.running.insert(key, probing);
            }
        }
        before.into_values().for_each(|gone| gone.task.abort());
        while self.tasks.try_join_next().is_some() {}
    }

    fn probe(
        &mut self,
        (pool, addr): &(String, SocketAddr),
        check: &Check,
        proxy: Option<ProxyVersion>,
    ) -> Probing {
        let server = Watched { pool: pool.clone(), addr: *addr, check: check.clone(), proxy };
        let task = self.tasks.spawn_local(server.watch(self.board.clone(), self.permits.clone()));
        Probing { check: check.clone(), proxy, task }
    }
}

/// A server with a check.
struct Watched {
    pool: String,
    addr: SocketAddr,
    check: Check,
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
                board.report(|health, now| match health.find(&self.pool, self.addr) {
                    Ok((pool, server)) => health.probed(now, pool, server, &result),
                    Err(_) => false,
                });
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
