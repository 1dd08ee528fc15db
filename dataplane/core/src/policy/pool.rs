//! Servers that `send` rules give connections to.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// How a pool picks a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// Consistent hashing, so that a server which comes or goes moves few clients.
    #[default]
    Maglev,
}

/// Whose address a pool's servers see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    #[default]
    Client,
    Gateway,
}

/// Servers that take each other's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub name: String,
    pub servers: Vec<SocketAddr>,
    pub balance: Balance,
    pub source: Source,
}
