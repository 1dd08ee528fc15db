//! What a configuration file says, typed.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use weir_core::ids::PortId;
use weir_core::policy::{
    self, Action, HeldFull, InterceptSpec, NameSet, Policy, PolicyBuilder, PoolSpec, RuleSpec,
};
use weir_core::sources::SourceLimits;

use crate::lists::{Content, Kind, List, Missing, Stamp};

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
    pub limits: Limits,
    pub relay: Relay,
    /// In the order of the file: an intercept's place is its `InterceptId`.
    pub intercepts: Vec<InterceptSpec>,
    /// In the order of the file: a pool's place is its `PoolId`.
    pub pools: Vec<Pool>,
    pub identity: Identity,
    /// The files with lists that rules name, each once. The rules share their contents.
    pub lists: Vec<List>,
    /// Those of which nothing could be read, where that is no error.
    pub missing: Vec<Missing>,
    /// Of the file as it was read; none where there was no regular file.
    pub stamp: Option<Stamp>,
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
    /// Weir hangs when it has shown no sign of life for so long.
    pub heartbeat: Duration,
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
    /// To stand by: the program has them, and carries them when there is no worker.
    Standby,
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

/// `[limits]`: what clients can make the box hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections whose handshake is not complete, all workers together.
    pub half_open: u32,
    /// Octets of clients that wait for a verdict, in all.
    pub held: u64,
    /// What becomes of an octet more.
    pub held_full: HeldFull,
    /// Connections of one source at a time: of an IPv4 address, or an IPv6 /64.
    pub source_flows: Option<u32>,
    /// New connections of one source per second.
    pub source_rate: Option<u32>,
    /// What a SYN beyond these two gets: `Reset` or `Drop`.
    pub source_over: Action,
}

/// `[relay]`: how long its connections may take and last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// For the server that the client asked for to answer.
    pub connect: Duration,
    /// For a server of a pool; then another is tried.
    pub pool_connect: Duration,
    /// Without an octet in either direction.
    pub idle: Duration,
    /// Likewise, once one end has closed.
    pub half_closed: Duration,
    /// After which silence an end is asked whether it is there; none: never.
    pub keepalive: Option<Duration>,
    /// How long octets may stay unacknowledged; none: as the kernel has it.
    pub user_timeout: Option<Duration>,
}

/// `[identity]`: how weir knows that it does not know a name.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Outer names of Encrypted ClientHellos that hide another.
    pub ech_public_names: Arc<NameSet>,
}

/// One `[[pool]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub spec: PoolSpec,
    /// How weir finds out whether a server is up; none: by the connections that it sends there.
    pub check: Option<Check>,
}

/// `check` of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub probe: Probe,
    /// From the beginning of one probe to that of the next.
    pub interval: Duration,
    /// The longest that a probe may take.
    pub timeout: Duration,
    /// Probes in a row that must succeed until a server is up again.
    pub rise: u32,
    /// Probes and connections in a row that must fail until it is down.
    pub fall: u32,
}

/// What a probe asks of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// To take a connection.
    Tcp,
    /// To answer a ClientHello, with this name in it or none. Its certificate is not looked at.
    Tls { host: Option<String> },
    /// To answer `GET path` with one of these statuses. The Host is this one, or the server's address.
    Http { path: String, host: Option<String>, status: Vec<RangeInclusive<u16>> },
}

impl Probe {
    /// The kind of the check, as the file spells it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls { .. } => "tls",
            Self::Http { .. } => "http",
        }
    }
}

impl Limits {
    /// As the rules carry them.
    pub const fn of_policy(&self) -> policy::Limits {
        policy::Limits {
            half_open: self.half_open,
            held: Some(self.held),
            held_full: self.held_full,
            source: SourceLimits { flows: self.source_flows, rate: self.source_rate },
            source_over: self.source_over,
        }
    }
}

impl Config {
    /// The rules as workers and relay read them.
    pub fn compile(&self, epoch: u32) -> Policy {
        let builder = PolicyBuilder::new(epoch)
            .limits(self.limits.of_policy())
            .ech_public_names(self.identity.ech_public_names.clone());
        let builder = self.pools.iter().map(|pool| pool.spec.clone()).fold(builder, PolicyBuilder::pool);
        let builder = self.intercepts.iter().cloned().fold(builder, PolicyBuilder::intercept);
        builder.build().expect("reading the file refuses whatever the builder does")
    }

    /// Puts a list that was read anew in the place of the one of the same file, in all rules. Returns the old one.
    pub fn replace_list(&mut self, list: List) -> Option<List> {
        let is_same = |old: &&mut List| old.path == list.path && old.content.kind() == list.content.kind();
        let old = self.lists.iter_mut().find(is_same)?;
        let rules = self.intercepts.iter_mut().flat_map(|intercept| &mut intercept.rules);
        rules.for_each(|rule| replace_in(rule, &old.content, &list.content));
        Some(std::mem::replace(old, list))
    }

    /// The same, with rules as if these of its lists held other contents.
    pub fn supposing(&self, lists: &[Content], contents: fn(Kind) -> Content) -> Self {
        let mut config = self.clone();
        for list in lists {
            let content = contents(list.kind());
            let rules = config.intercepts.iter_mut().flat_map(|intercept| &mut intercept.rules);
            rules.for_each(|rule| replace_in(rule, list, &content));
        }
        config
    }

    /// Where the rules stand that have a list: `file:line` each.
    pub fn rules_with(&self, list: &Content) -> Vec<String> {
        let rules = self.intercepts.iter().flat_map(|intercept| &intercept.rules);
        rules.filter(|rule| has(rule, list)).map(|rule| rule.origin.clone()).collect()
    }

    /// The port of this name, and its place.
    pub fn port(&self, name: &str) -> Option<(PortId, &Port)> {
        (0..).map(PortId).zip(&self.ports).find(|(_, port)| port.name == name)
    }
}

fn has(rule: &RuleSpec, list: &Content) -> bool {
    match list {
        Content::Names(names) => rule.host_lists.iter().any(|list| Arc::ptr_eq(list, names)),
        Content::Prefixes(prefixes) => {
            rule.from_lists.iter().chain(&rule.to_lists).any(|list| Arc::ptr_eq(list, prefixes))
        }
    }
}

fn replace_in(rule: &mut RuleSpec, old: &Content, new: &Content) {
    match (old, new) {
        (Content::Names(old), Content::Names(new)) => {
            let lists = rule.host_lists.iter_mut();
            lists.filter(|list| Arc::ptr_eq(list, old)).for_each(|list| *list = new.clone());
        }
        (Content::Prefixes(old), Content::Prefixes(new)) => {
            let lists = rule.from_lists.iter_mut().chain(&mut rule.to_lists);
            lists.filter(|list| Arc::ptr_eq(list, old)).for_each(|list| *list = new.clone());
        }
        _ => {}
    }
}
