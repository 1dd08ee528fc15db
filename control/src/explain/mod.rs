//! `weir explain`: the whole way of one connection through the box, and why it takes it.
//!
//! Each layer is asked itself, and says what it would do with the client's SYN, or does with the connection if it lives. In
//! the order of a packet:
//!
//! - [`ingress`]: by which port it comes in. [`steering`]: what the XDP program makes of it, condition by condition, from the
//!   maps of the running program and by the program itself on a copy of what was found there. [`flow`]: the flow table.
//! - [`policy`]: the intercept, the rule, the pool's server, by the compiled policy that workers and relay use; [`names`]: what
//!   `verify_host` makes of the name.
//! - [`nft`]: the rule of `inet weir` that takes it on the kernel road; [`firewall`]: what rules of others do to it there. [`route`]: the policy rule, the table and the route
//!   that the kernel chooses, unmarked and marked. [`socket`]: the relay's sockets. [`nexthop`]: neighbour and MTU.
//! - [`doubts`]: what of it all is not certain. [`road`]: what that comes to. [`why`]: the two questions that people ask.
//!
//! [`gateway`] is the side that answers in `weir run`. A layer that cannot be asked (no root, nothing runs) says so in its
//! step, and the others are asked all the same. Nothing is changed, and nothing is sent but what a
//! resolver sends when it is asked for a name (`verify_host`).

pub mod doubts;
pub mod firewall;
pub mod flow;
pub mod gateway;
pub mod ingress;
pub mod kernel;
pub mod names;
pub mod nexthop;
pub mod nft;
pub mod policy;
pub mod road;
pub mod route;
pub mod socket;
pub mod steering;
pub mod table;
pub mod why;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;
use weir_core::policy::Protocol;

use crate::config::Config;
use crate::exit::Failure;
use crate::host::{self, HostError, HostSpec};
use crate::lists::idn;
use crate::run::convert;
use gateway::Gateway;
use kernel::Kernel;
use road::Road;
use why::Because;

/// One connection, and what its client asks for.
#[derive(Clone, Debug)]
pub struct Question {
    /// The client.
    pub from: SocketAddr,
    /// What it connects to.
    pub to: SocketAddr,
    /// The port (or its device) that it comes in by; none: that of the route to the client.
    pub ingress: Option<String>,
    pub host: Option<String>,
    pub alpn: Vec<String>,
    /// The client offers Encrypted ClientHello.
    pub ech: bool,
    /// It is a second hello, after a HelloRetryRequest, that does not say what the first did.
    pub hello_retry: bool,
    pub protocol: Option<Protocol>,
}

impl Question {
    /// Addresses as they are on the wire, names as rules have them. What carries a name is TLS on port 443 or with ALPN,
    /// and HTTP elsewhere, unless it is said.
    pub fn normal(mut self) -> Self {
        for at in [&mut self.from, &mut self.to] {
            *at = SocketAddr::new(at.ip().to_canonical(), at.port());
        }
        self.host = self.host.map(|host| {
            // An IPv6 address stands in brackets in HTTP, and without them in rules.
            let host =
                host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host).to_owned();
            let ascii = idn::to_ascii(&host).map_or_else(|_| host.clone(), Cow::into_owned);
            ascii.trim_end_matches('.').to_ascii_lowercase()
        });
        let tls = !self.alpn.is_empty() || self.ech || self.hello_retry;
        if self.protocol.is_none() && (self.host.is_some() || tls) {
            let tls = tls || self.to.port() == 443;
            self.protocol = Some(if tls { Protocol::Tls } else { Protocol::Http });
        }
        self
    }
}

/// A layer of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    Ingress,
    Steering,
    Flow,
    Policy,
    Nft,
    Rule,
    Route,
    Socket,
    NextHop,
}

impl Layer {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Steering => "steering",
            Self::Flow => "flow",
            Self::Policy => "policy",
            Self::Nft => "nft",
            Self::Rule => "rule",
            Self::Route => "route",
            Self::Socket => "socket",
            Self::NextHop => "next-hop",
        }
    }
}

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Kernel,
    Gateway,
    Configuration,
    Resolver,
}

impl Source {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Gateway => "gateway",
            Self::Configuration => "configuration",
            Self::Resolver => "resolver",
        }
    }
}

/// One question on the way.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub layer: Layer,
    pub question: String,
    pub answer: String,
    /// What the answer was found in: lines of dumps, commands that ask the same.
    pub detail: Vec<String>,
    pub source: Source,
}

impl Step {
    pub fn new(layer: Layer, source: Source, question: &str, answer: impl Into<String>) -> Self {
        Self { layer, question: question.to_owned(), answer: answer.into(), detail: Vec::new(), source }
    }

    pub fn detail(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.detail.extend(lines);
        self
    }
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub host: Option<String>,
    #[serde(flatten)]
    pub road: Road,
    /// What was read and may not be what is in force, and lists that could not be read; what that makes of the verdict.
    pub doubts: Vec<String>,
    /// Why it is not intercepted; none where it is.
    pub not_intercepted: Option<Because>,
    /// Why it arrives at a local socket; none where it does not.
    pub local: Option<Because>,
    pub steps: Vec<Step>,
}

/// All that was found, for [`road`] and [`why`].
#[derive(Debug)]
pub struct Way {
    pub question: Question,
    /// The file that was read; none where there is none to read.
    pub config: Option<PathBuf>,
    pub gateway: Gateway,
    pub ingress: ingress::Ingress,
    pub steered: Option<steering::Steered>,
    /// Why the steering program that is there could not be asked.
    pub unasked: Option<String>,
    pub flow: Option<flow::Living>,
    pub judged: Option<policy::Judged>,
    pub next_hop: nexthop::Hops,
    pub nft: nft::Answer,
    pub routes: route::Routes,
    pub sockets: socket::Sockets,
    /// What the rules of others do to it on the kernel's road; none: nothing that is known.
    pub filtered: Option<firewall::Filtered>,
    pub doubts: Vec<String>,
}

/// Where to ask.
#[derive(Clone, Debug)]
pub struct Place {
    /// The configuration that was read, and the gateway's admin socket.
    pub config: Option<Config>,
    pub admin: PathBuf,
}

/// Asks everybody.
///
/// # Errors
/// The kernel does not answer over netlink, or `--in` names what is no port and no device.
pub fn explain(question: Question, place: Place) -> Result<Explanation, Failure> {
    let question = question.normal();
    if question.from.is_ipv4() != question.to.is_ipv4() {
        return Err(Failure {
            exit: crate::exit::Exit::Usage,
            message: format!("{} and {} are of different address families", question.from, question.to),
        });
    }
    let refused = |error: HostError| Failure::refused(error);
    host::wait(async { Ok(answer(question, place).await) }).map_err(refused)?
}

async fn answer(question: Question, place: Place) -> Result<Explanation, Failure> {
    let mut steps = Vec::new();
    let Place { mut config, admin } = place;
    let mut gateway = gateway::status(&admin);
    if config.is_none() {
        config = gateway.config();
    }
    let ports = config.iter().flat_map(|config| config.ports.iter().map(|port| port.device.clone()));
    let kernel = Kernel::read(ports.collect()).await.map_err(Failure::refused)?;
    let ingress = ingress::find(&kernel, config.as_ref(), &question, &mut steps).await?;
    gateway.ask(&admin, &question, &ingress);
    let vlans = &kernel.picture.fib.vlans;
    let compiled = |config: &Config| config.compile(1).with_vlans(vlans).with_pools(&gateway.pools(config));
    let policy = config.as_ref().map(compiled);
    let steered = steering::ask(&gateway, &ingress, policy.as_ref(), &kernel, &question, &mut steps);
    let (steered, unasked) = match steered {
        Ok(steered) => (steered, None),
        Err(why) => (None, Some(why)),
    };
    let flow = flow::of(&gateway, config.as_ref().map(|config| config.workers.flows), &mut steps);
    let mut doubts = doubts::find(config.as_ref(), &gateway, &mut steps);
    doubts.look_at(config.as_ref(), compiled, (&ingress, &question), &mut steps);
    let judged = policy::judge(policy.as_ref(), &ingress, &gateway, &question, &mut steps);
    let vlans = || kernel.picture.vlans.iter().map(|(_, sub)| sub);
    let spec = config.as_ref().map(|config| convert::host_spec(config, vlans()));
    let sockets = socket::find(&question, spec.as_ref(), &mut steps);
    let mut found = sockets.clone();
    // While weir hangs it is there, and for a packet the kernel does not find it (dataplane/bpf/gate.bpf.c).
    found.listener = found.listener.filter(|_| !gateway.is_stuck());
    let nft = nft::ask(&kernel, &ingress, judged.as_ref(), &found, &question, &mut steps).await;
    let routes = route::ask(&kernel, &ingress, &nft, mark_of(spec.as_ref()), &question, &mut steps).await;
    let next_hop =
        nexthop::find(&kernel, judged.as_ref(), flow.as_ref(), &routes, &question, &mut steps).await;
    let config = config.map(|config| config.file);
    let way = Way {
        question,
        config,
        gateway,
        ingress,
        steered,
        unasked,
        flow,
        judged,
        next_hop,
        nft,
        routes,
        sockets,
        filtered: None,
        doubts: doubts.told,
    };
    Ok(conclude(&kernel, way, spec.as_ref(), steps).await)
}

/// What it comes to, with the rules of others tried where the kernel has the packet.
async fn conclude(
    kernel: &Kernel,
    mut way: Way,
    spec: Option<&HostSpec>,
    mut steps: Vec<Step>,
) -> Explanation {
    let mut road = road::conclude(&way);
    way.filtered = firewall::ask(kernel, &way, &road, spec, &mut steps).await;
    if let Some(filtered) = &way.filtered {
        road = road.through(filtered);
    }
    // In the order of the way; some had to be known before others.
    steps.sort_by_key(|step| step.layer as u8);
    Explanation {
        from: way.question.from,
        to: way.question.to,
        host: way.question.host.clone(),
        doubts: std::mem::take(&mut way.doubts),
        not_intercepted: why::not_intercepted(&way, &road),
        local: why::local(&way, &road),
        road,
        steps,
    }
}

fn mark_of(spec: Option<&HostSpec>) -> u32 {
    spec.map_or_else(|| HostSpec::default().mark, |spec| spec.mark)
}

#[cfg(test)]
mod tests;
