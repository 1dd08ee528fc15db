//! Servers that `send` rules give connections to.
//!
//! A client is given servers of its own address family only, so a pool has a table for each family. In a table are the
//! servers that are up; when none is, those that are down, since a try is better than a refusal and a check may be
//! wrong; when there are none of these either, those that are draining. A server of weight 0 is draining.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::maglev::{self, Member, Table};
use crate::flow::key::Tuple;
use crate::ids::ServerId;
use crate::wire::addr::{Addr, Endpoint};

/// The most servers of a pool.
pub const MAX_SERVERS: usize = 1024;
/// The heaviest weight of a server.
pub const MAX_WEIGHT: u16 = 256;
/// The source ports of a pool with `source = "gateway"` unless the configuration says others: those below where the
/// kernel's own begin (ip_local_port_range).
pub const GATEWAY_PORTS: RangeInclusive<u16> = 10_000..=32_767;

/// How a pool picks a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// Consistent hashing, so that a server which comes or goes moves few clients.
    #[default]
    Maglev,
}

/// What of a connection is hashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HashBy {
    /// The client's address: all connections of a client go to one server.
    #[default]
    Client,
    /// Addresses and ports of both ends: the connections of a client are spread.
    Flow,
}

/// Whose address a pool's servers see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    #[default]
    Client,
    Gateway,
}

/// The version of a PROXY protocol header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyVersion {
    V1,
    V2,
}

impl ProxyVersion {
    /// The version, as the configuration and the admin API spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// Whether a server is given connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    #[default]
    Up,
    Down,
    /// It keeps the connections that it has.
    Draining,
}

impl ServerState {
    /// The state, as the command line and the admin API spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Draining => "draining",
        }
    }
}

/// One server of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    pub addr: SocketAddr,
    /// Its share of the connections, beside the weights of the others; 0: it is draining.
    pub weight: u16,
    pub state: ServerState,
}

impl Server {
    /// A server of weight 1 that is up.
    pub const fn new(addr: SocketAddr) -> Self {
        Self { addr, weight: 1, state: ServerState::Up }
    }

    /// The state, with weight 0 taken for what it means.
    pub const fn effective(&self) -> ServerState {
        if self.weight == 0 { ServerState::Draining } else { self.state }
    }

    pub fn endpoint(&self) -> Endpoint {
        self.addr.into()
    }

    /// Whether clients of this address's family can be given to it.
    fn serves(&self, client: &Addr) -> bool {
        self.endpoint().addr.is_v4() == client.is_v4()
    }
}

/// What a pool is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    pub name: String,
    /// In the order of the file: a server's place is its [`ServerId`].
    pub servers: Vec<Server>,
    pub balance: Balance,
    pub hash: HashBy,
    pub source: Source,
    /// The header that goes before the client's first octet.
    pub proxy: Option<ProxyVersion>,
    /// Source ports with [`Source::Gateway`].
    pub ports: RangeInclusive<u16>,
}

impl PoolSpec {
    /// A pool of no servers yet, with the defaults that a configuration file has too.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            servers: Vec::new(),
            balance: Balance::default(),
            hash: HashBy::default(),
            source: Source::default(),
            proxy: None,
            ports: GATEWAY_PORTS,
        }
    }

    /// Adds a server of weight 1 that is up.
    pub fn server(mut self, addr: SocketAddr) -> Self {
        self.servers.push(Server::new(addr));
        self
    }
}

/// Servers that take each other's place, with their tables.
#[derive(Clone, Debug)]
pub struct Pool {
    pub name: String,
    pub servers: Vec<Server>,
    pub balance: Balance,
    pub hash: HashBy,
    pub source: Source,
    /// The header that goes before the client's first octet.
    pub proxy: Option<ProxyVersion>,
    /// Source ports with [`Source::Gateway`].
    pub ports: RangeInclusive<u16>,
    v4: Arc<Table>,
    v6: Arc<Table>,
}

impl Pool {
    pub fn new(spec: PoolSpec) -> Self {
        let (v4, v6) = tables(&spec.servers);
        Self {
            name: spec.name,
            servers: spec.servers,
            balance: spec.balance,
            hash: spec.hash,
            source: spec.source,
            proxy: spec.proxy,
            ports: spec.ports,
            v4,
            v6,
        }
    }

    /// The server for a connection of this client (`src`) that asked for that destination (`dst`). `not`: the server
    /// that was tried before and did not answer; `None` when there is no other of its kind.
    pub fn pick(&self, client: &Tuple, not: Option<ServerId>) -> Option<ServerId> {
        let table = if client.src.addr.is_v4() { &self.v4 } else { &self.v6 };
        let hasher = SipHasher13::new_with_keys(2, 0);
        let hash = match self.hash {
            HashBy::Client => hasher.hash(&client.src.addr.0),
            HashBy::Flow => {
                let src = maglev::hash_endpoint(&hasher, &client.src);
                maglev::hash_endpoint(&SipHasher13::new_with_keys(2, src), &client.dst)
            }
        };
        match not {
            None => table.get(hash),
            Some(not) => table.other(hash, not),
        }
    }

    pub fn server(&self, id: ServerId) -> Option<&Server> {
        self.servers.get(usize::from(id.0))
    }

    /// Whether it has a server for clients of this address's family.
    pub fn serves(&self, client: &Addr) -> bool {
        self.servers.iter().any(|server| server.serves(client))
    }

    /// The same pool with its servers in these states, in their order. Those beyond the list keep theirs.
    pub fn with_states(&self, states: &[ServerState]) -> Self {
        let mut pool = self.clone();
        for (server, state) in pool.servers.iter_mut().zip(states) {
            server.state = *state;
        }
        if pool.servers != self.servers {
            (pool.v4, pool.v6) = tables(&pool.servers);
        }
        pool
    }
}

/// The tables of both families. Their sizes depend on the weights alone, not on states.
fn tables(servers: &[Server]) -> (Arc<Table>, Arc<Table>) {
    let table = |family: Addr| {
        let mine = || servers.iter().filter(|server| server.serves(&family));
        let states = [ServerState::Up, ServerState::Down, ServerState::Draining];
        let best = states.into_iter().find(|state| mine().any(|server| server.effective() == *state));
        let members: Vec<Member> = (0..)
            .map(ServerId)
            .zip(servers)
            .filter(|(_, server)| server.serves(&family) && Some(server.effective()) == best)
            .map(|(id, server)| Member { id, endpoint: server.endpoint(), weight: server.weight.max(1) })
            .collect();
        Arc::new(Table::new(&members, maglev::size(mine().map(|server| server.weight))))
    };
    (table(Addr::v4([0; 4])), table(Addr::default()))
}
