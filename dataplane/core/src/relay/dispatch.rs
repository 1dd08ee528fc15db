//! Which servers of a pool a connection is given to: picked once, when the verdict is `send`, as on the fast road.

use std::net::SocketAddr;

use crate::flow::key::Tuple;
use crate::ids::{PoolId, ServerId};
use crate::policy::{Policy, ProxyVersion, Source};

use super::{LocalEnd, Towards, Verdict};

/// A pool's server, and the one that is tried when it does not take the connection. All questions are about the policy
/// that it was picked from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dispatch {
    pool: PoolId,
    server: ServerId,
    spare: Option<ServerId>,
}

impl Dispatch {
    /// For the connection of this client (`src`) to that destination (`dst`). `None`: the pool has no server of its family.
    pub fn pick(policy: &Policy, id: PoolId, tuple: &Tuple) -> Option<Self> {
        let pool = policy.pool(id)?;
        let server = pool.pick(tuple, None)?;
        Some(Self { pool: id, server, spare: pool.pick(tuple, Some(server)) })
    }

    /// What the machine is told.
    pub fn verdict(&self, policy: &Policy) -> Verdict {
        let from = match policy.pool(self.pool).map(|pool| pool.source) {
            Some(Source::Gateway) => LocalEnd::Gateway,
            Some(Source::Client) | None => LocalEnd::Client,
        };
        Verdict::Send { from, spare: self.spare.is_some() }
    }

    pub fn server(&self, to: Towards) -> Option<(PoolId, ServerId)> {
        let server = match to {
            Towards::Destination => None,
            Towards::Server => Some(self.server),
            Towards::Spare => self.spare,
        };
        Some((self.pool, server?))
    }

    pub fn address(&self, policy: &Policy, to: Towards) -> Option<SocketAddr> {
        let (pool, server) = self.server(to)?;
        Some(policy.pool(pool)?.server(server)?.addr)
    }

    /// The header that goes before the client's first octet.
    pub fn proxy(&self, policy: &Policy) -> Option<ProxyVersion> {
        policy.pool(self.pool)?.proxy
    }
}
