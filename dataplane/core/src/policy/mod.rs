//! Compiled, immutable rules: one [`Policy`] per epoch.
//!
//! Control compiles it from the configuration; workers and relay only read it. They ask in this order:
//! [`Policy::intercept`] at a SYN, [`Intercept::relay_at_syn`] at the same SYN, and [`Intercept::decide`] when the
//! client's first bytes have been read (or could not be). The steering program asks the same question as
//! [`Policy::intercept`] of the [`SteeringTable`]. No lookup allocates, and none depends on the length of a list of
//! names, prefixes or ports; rules are tried one after the other.

mod builder;
mod hosts;
mod intercept;
mod limits;
pub(crate) mod maglev;
mod names;
mod pattern;
mod pool;
mod ports;
mod prefixes;
mod rule;
mod sorted;
mod steering;
mod succession;
#[cfg(test)]
mod tests;
mod vlans;
mod words;

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::fib::Vlans;
use crate::ids::{InterceptId, PoolId, PortId};
use crate::wire::addr::Endpoint;

pub use builder::{BuildError, MAX_POOLS, MAX_RULES, PolicyBuilder};
pub use hosts::Hosts;
pub use intercept::{Intercept, InterceptSpec};
pub use limits::{HeldFull, Limits};
pub use names::{MAX_LABEL, MAX_NAME, NameError, NameSet};
pub use pool::{
    Balance, GATEWAY_PORTS, HashBy, MAX_SERVERS, MAX_WEIGHT, Pool, PoolSpec, ProxyVersion, Server,
    ServerState, Source,
};
pub use ports::TcpPorts;
pub use prefixes::{Prefixes, PrefixesBuilder};
pub use rule::{Rule, RuleSpec};
pub use steering::{FromBits, SteeringTable};
pub use vlans::VlanChoice;
pub use words::{
    Action, Cause, Decision, Facts, Full, Handshake, Midstream, Protocol, Quic, SynCookies, VerifyHost,
};

/// The rules of one configuration. Made by [`PolicyBuilder`].
#[derive(Clone, Debug)]
pub struct Policy {
    /// The number of the configuration.
    pub epoch: u32,
    pub limits: Limits,
    /// Large, and shared by policies that differ only in the states of servers.
    intercepts: Arc<[Intercept]>,
    pools: Vec<Pool>,
    /// Where the servers of all pools are.
    servers: Arc<HashSet<Endpoint, foldhash::fast::FixedState>>,
    /// Intercepts by destination prefix, as bits.
    to: Arc<steering::Destinations>,
    /// Intercepts by the port, or the VLAN of one, that a SYN comes from, as bits.
    from: Arc<FromBits>,
    /// The first epoch whose intercepts and rules have these numbers.
    numbered: u32,
    /// Configurations before this one, the newest first.
    earlier: Arc<[Arc<succession::Earlier>]>,
    /// The same without its lists, where there are any.
    bare: Option<Arc<Self>>,
}

impl Policy {
    fn new(epoch: u32, limits: Limits, intercepts: Vec<Intercept>, pools: Vec<Pool>) -> Self {
        let to = Arc::new(steering::Destinations::new(&intercepts));
        let from = Arc::new(steering::from_bits(&intercepts, &Vlans::default()));
        let servers = pools.iter().flat_map(|pool| &pool.servers).map(Server::endpoint).collect();
        let servers = Arc::new(servers);
        let (numbered, intercepts, earlier) = (epoch, intercepts.into(), Arc::new([]));
        let policy =
            Self { epoch, limits, intercepts, pools, servers, to, from, numbered, earlier, bare: None };
        let bare = policy.intercepts.iter().any(Intercept::is_large).then(|| {
            let intercepts = policy.intercepts.iter().map(Intercept::bare).collect();
            Arc::new(Self { intercepts, ..policy.clone() })
        });
        Self { bare, ..policy }
    }

    /// What is left to be asked when the rules have decided: the same without the lists of rules, which would else
    /// stay in memory as long as the longest connection that was decided by them.
    pub fn decided(self: &Arc<Self>) -> Arc<Self> {
        self.bare.as_ref().unwrap_or(self).clone()
    }

    /// The same policy, of the same epoch, with the servers of its pools in these states: a list for each pool, in their
    /// order. Pools and servers beyond the lists keep theirs. Costs new tables for the pools that change, and little else.
    pub fn with_pools<S: AsRef<[ServerState]>>(&self, states: &[S]) -> Self {
        let mut policy = self.clone();
        for (pool, states) in policy.pools.iter_mut().zip(states) {
            *pool = pool.with_states(states.as_ref());
        }
        policy.bare =
            policy.bare.map(|bare| Arc::new(Self { pools: policy.pools.clone(), ..(*bare).clone() }));
        policy
    }

    /// The same policy, of the same epoch, on a box with these VLANs.
    pub fn with_vlans(&self, vlans: &Vlans) -> Self {
        let from = Arc::new(steering::from_bits(&self.intercepts, vlans));
        let bare = self.bare.as_deref().map(|bare| Arc::new(Self { from: from.clone(), ..bare.clone() }));
        Self { from, bare, ..self.clone() }
    }

    pub fn intercepts(&self) -> &[Intercept] {
        &self.intercepts
    }

    pub fn get(&self, id: InterceptId) -> Option<&Intercept> {
        self.intercepts.get(id.0 as usize)
    }

    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    pub fn pool(&self, id: PoolId) -> Option<&Pool> {
        self.pools.get(usize::from(id.0))
    }

    /// Servers that the gateway connects to from addresses of its own, and the ports for that.
    pub fn gateway_ports(&self) -> impl Iterator<Item = (Endpoint, RangeInclusive<u16>)> + '_ {
        let pools = self.pools().iter().filter(|pool| pool.source == Source::Gateway);
        pools.flat_map(|pool| pool.servers.iter().map(|server| (server.endpoint(), pool.ports.clone())))
    }

    /// Whether some pool has a server there.
    pub fn has_server(&self, at: &Endpoint) -> bool {
        self.servers.contains(at)
    }

    /// The first intercept that takes connections which arrive at `from` for `server:port`.
    pub fn intercept(&self, from: PortId, server: IpAddr, port: u16) -> Option<InterceptId> {
        let from = self.from.get(usize::from(from.0)).copied().unwrap_or(0);
        self.first(server, port, from)
    }

    /// The same for connections that may arrive anywhere.
    pub fn intercept_from_anywhere(&self, server: IpAddr, port: u16) -> Option<InterceptId> {
        self.first(server, port, self.from.iter().fold(0, |all, bits| all | bits))
    }

    /// Whether connections of an intercept may arrive at `from`.
    pub fn is_from(&self, id: InterceptId, from: PortId) -> bool {
        self.from.get(usize::from(from.0)).is_some_and(|bits| bits >> (id.0 & 63) & 1 != 0)
    }

    fn first(&self, server: IpAddr, port: u16, from: u64) -> Option<InterceptId> {
        let mut bits = self.to_bits(server) & from;
        // From the lowest bit up: one step for each intercept whose addresses fit.
        while bits != 0 {
            let id = InterceptId(bits.trailing_zeros() as u8);
            if self.get(id).is_some_and(|intercept| intercept.tcp().contains(port)) {
                return Some(id);
            }
            bits &= bits - 1;
        }
        None
    }

    /// The first intercept whose destinations hold `server:port` and whose `from` holds `client_side`:
    /// the question to ask for a packet from server to client.
    pub fn intercept_of_server(&self, client_side: PortId, server: IpAddr, port: u16) -> Option<InterceptId> {
        self.intercept(client_side, server, port)
    }

    /// The same intercepts, as the steering program's maps hold them.
    pub fn steering(&self) -> SteeringTable {
        SteeringTable::new(self)
    }

    fn to_bits(&self, server: IpAddr) -> u64 {
        let bits = match server {
            IpAddr::V4(a) => self.to.v4.get_lpm(&Ipv4Net::from(a)).map(|(_, bits)| *bits),
            IpAddr::V6(a) => self.to.v6.get_lpm(&Ipv6Net::from(a)).map(|(_, bits)| *bits),
        };
        bits.unwrap_or(0)
    }
}
