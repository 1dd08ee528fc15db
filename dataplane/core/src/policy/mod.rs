//! Compiled, immutable rules: one [`Policy`] per epoch.
//!
//! Control compiles it from the configuration; workers and relay only read it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{InterceptId, Nanos, PoolId, PortId, PortSet, RuleId};

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    Allow,
    Reset,
    Drop,
    Send(PoolId),
    Relay,
}

/// What was recognised in the first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tls,
    Http,
    /// Bytes came and they are neither.
    Other,
}

/// How an intercept answers a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Handshake {
    Through,
    Answer,
    Relay,
}

/// No room for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Full {
    Kernel,
    Drop,
}

/// All that a rule can look at. `protocol` is `None` while nothing could be identified
/// (server spoke first, hold exhausted); `host` is lower case without a trailing dot.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub client: IpAddr,
    pub server: IpAddr,
    pub server_port: u16,
    pub protocol: Option<Protocol>,
    pub host: Option<&'a str>,
    /// The ALPN protocol names offered, each without its length octet.
    pub alpn: &'a [&'a [u8]],
}

/// Why a decision was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    Rule(RuleId),
    Otherwise,
    Unidentified,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub action: Action,
    pub cause: Cause,
}

/// The action, as the command line and the admin API spell it.
impl Action {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Reset => "reset",
            Self::Drop => "drop",
            Self::Send(_) => "send",
            Self::Relay => "relay",
        }
    }
}

/// What to do with packets of unknown connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Midstream {
    pub action: Action,
    /// For this long after start, such packets are connections from before and go to the kernel.
    pub grace: Nanos,
}

/// One configured set of destinations to take over.
#[derive(Clone, Debug)]
pub struct Intercept {
    pub name: String,
    /// Ports its SYNs come from.
    pub from: PortSet,
    pub handshake: Handshake,
    /// The most client bytes held before there is a verdict.
    pub hold_bytes: u32,
    pub hold_time: Nanos,
    pub full: Full,
    pub otherwise: Action,
    pub unidentified: Action,
    pub midstream: Midstream,
    rules: Vec<Rule>,
}

/// One rule, with the sets it matches. Placeholder fields are filled in by the policy compiler.
#[derive(Clone, Debug)]
pub struct Rule {
    pub action: Action,
    /// Where the rule stands: `file:line`.
    pub origin: String,
}

/// The rules of one configuration.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The number of the configuration.
    pub epoch: u32,
    intercepts: Vec<Intercept>,
}

impl Policy {
    pub fn intercepts(&self) -> &[Intercept] {
        &self.intercepts
    }

    pub fn get(&self, id: InterceptId) -> Option<&Intercept> {
        self.intercepts.get(id.0 as usize)
    }

    /// The first intercept that takes connections which arrive at `from` for `server:port`.
    pub fn intercept(&self, _from: PortId, _server: IpAddr, _port: u16) -> Option<InterceptId> {
        None
    }

    /// The first intercept whose destinations hold `server:port` and whose `from` holds `client_side`:
    /// the question to ask for a packet from server to client.
    pub fn intercept_of_server(&self, client_side: PortId, server: IpAddr, port: u16) -> Option<InterceptId> {
        self.intercept(client_side, server, port)
    }
}

impl Intercept {
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The `relay` rule that takes a SYN, if one does, whatever rules by name stand before it (DESIGN section 9).
    pub fn relay_at_syn(&self, _client: IpAddr, _server: IpAddr, _port: u16) -> Option<RuleId> {
        None
    }

    /// First match wins; then `unidentified` when `facts.protocol` is `None` or `Other`, else `otherwise`.
    pub fn decide(&self, _facts: &Facts<'_>) -> Decision {
        Decision { action: self.otherwise, cause: Cause::Otherwise }
    }
}
