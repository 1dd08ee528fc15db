//! What a configuration file says, typed.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use weir_core::ids::PortId;
use weir_core::policy::{InterceptSpec, Policy, PolicyBuilder, PoolSpec};

/// One valid configuration. Made by [`super::load`]; what it holds has been checked there.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file, as it was named.
    pub file: PathBuf,
    pub gateway: Gateway,
    /// In the order of the file: a port's place is its [`PortId`].
    pub ports: Vec<Port>,
    pub workers: Workers,
    pub fallback: Fallback,
    /// In the order of the file: an intercept's place is its `InterceptId`.
    pub intercepts: Vec<InterceptSpec>,
    /// In the order of the file: a pool's place is its `PoolId`.
    pub pools: Vec<PoolSpec>,
}

/// What becomes of intercepted traffic while weir is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fail {
    /// The kernel forwards it.
    Open,
    /// It is dropped.
    Closed,
}

/// `[gateway]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub fail: Fail,
    /// The admin API's socket.
    pub admin: PathBuf,
    /// Where metrics are served; none: nowhere.
    pub metrics: Option<SocketAddr>,
}

/// The queues of a device that weir takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queues {
    All,
    List(Vec<u16>),
}

/// How AF_XDP is bound to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The best that the driver has.
    Auto,
    ZeroCopy,
    Copy,
    /// XDP by the network stack, for drivers that have none.
    Generic,
}

impl Mode {
    /// The mode, as the file spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::ZeroCopy => "zero-copy",
            Self::Copy => "copy",
            Self::Generic => "generic",
        }
    }
}

/// One `[[port]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub device: String,
    pub queues: Queues,
    pub mode: Mode,
    /// Where it stands: `file:line`.
    pub origin: String,
}

/// The cores that workers are pinned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    Auto,
    List(Vec<u16>),
}

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Sleeps until a packet comes.
    Adaptive,
    Busy,
}

/// Whether flows move to the express lane after their verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Express {
    Auto,
    Always,
    Never,
}

/// `[workers]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workers {
    pub cores: Cores,
    pub idle: Idle,
    pub express: Express,
    /// Flows that the box can hold, all workers together.
    pub flows: u32,
}

/// The packet mark by which the kernel tells weir's connections from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub value: u32,
    /// The bits of a mark that are weir's.
    pub mask: u32,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

/// `[fallback]`: what the kernel road uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallback {
    pub mark: Mark,
    /// Routing table that delivers marked packets locally.
    pub table: u32,
    /// Priority of the routing rule that leads there.
    pub priority: u32,
    /// TCP port of the transparent listener, on both families.
    pub listen: u16,
}

impl Config {
    /// The rules as workers and relay read them.
    pub fn compile(&self, epoch: u32) -> Policy {
        let builder = self.pools.iter().cloned().fold(PolicyBuilder::new(epoch), PolicyBuilder::pool);
        let builder = self.intercepts.iter().cloned().fold(builder, PolicyBuilder::intercept);
        builder.build().expect("reading the file refuses whatever the builder does")
    }

    /// The port of this name, and its place.
    pub fn port(&self, name: &str) -> Option<(PortId, &Port)> {
        (0..).map(PortId).zip(&self.ports).find(|(_, port)| port.name == name)
    }
}
