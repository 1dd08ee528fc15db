//! The words that rules and intercepts are made of, and the question and answer of a decision.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{Nanos, PoolId, RuleId};

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    Allow,
    Reset,
    Drop,
    Send(PoolId),
    Relay,
}

impl Action {
    /// The action, as the configuration, the command line and the admin API spell it.
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

/// What was recognised in the first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tls,
    Http,
    /// Bytes came and they are neither.
    Other,
}

impl Protocol {
    /// The protocol, as the configuration, the command line and the admin API spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Other => "other",
        }
    }
}

/// How an intercept answers a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Handshake {
    Through,
    Answer,
    Relay,
}

impl Handshake {
    /// The handshake, as the configuration, the command line and the admin API spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Through => "through",
            Self::Answer => "answer",
            Self::Relay => "relay",
        }
    }
}

/// When a SYN is answered with a cookie instead of a flow (RFC 4987, section 3.6), where the handshake is `answer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SynCookies {
    /// Once half-open flows are too many.
    #[default]
    Auto,
    Always,
    Off,
}

/// What becomes of UDP to port 443 of an intercept's destinations, where QUIC would walk round its rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quic {
    #[default]
    Pass,
    /// Answered with ICMP, so that clients fall back to TCP.
    Reject,
}

/// What becomes of a connection whose destination is none of the addresses of the name that it asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyHost {
    /// Nobody looks.
    #[default]
    Off,
    /// It passes, is counted and logged.
    Log,
    Reset,
}

impl VerifyHost {
    /// The mode, as the configuration spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Log => "log",
            Self::Reset => "reset",
        }
    }
}

/// No room for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Full {
    Kernel,
    Drop,
}

/// What to do with packets of unknown connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Midstream {
    pub action: Action,
    /// For this long after start, such packets are connections from before and go to the kernel.
    pub grace: Nanos,
}

/// All that a rule can look at. `protocol` is `None` while nothing could be identified
/// (server spoke first, hold exhausted); `host` is lower case without a trailing dot.
///
/// Addresses are those on the wire. Who reads them off a dual-stack socket gives
/// [`IpAddr::to_canonical`], or rules on IPv4 prefixes miss.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub client: IpAddr,
    pub server: IpAddr,
    pub server_port: u16,
    pub protocol: Option<Protocol>,
    pub host: Option<&'a str>,
    /// The client offers Encrypted ClientHello: `host` may not be the name that it means.
    pub ech: bool,
    /// The ALPN protocol names offered, each without its length octet.
    pub alpn: &'a [&'a [u8]],
    /// These are of a second hello, after a HelloRetryRequest, that does not say what the first did.
    pub hello_retry: bool,
}

impl Facts<'_> {
    /// Nothing is known of what the client says.
    pub const fn of_addresses(client: IpAddr, server: IpAddr, server_port: u16) -> Self {
        Facts {
            client,
            server,
            server_port,
            protocol: None,
            host: None,
            ech: false,
            alpn: &[],
            hello_retry: false,
        }
    }
}

/// Why a decision was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    Rule(RuleId),
    Otherwise,
    Unidentified,
    /// `verify_host`: the destination is none of the name's addresses.
    HostMismatch,
    /// `verify_host`: the name's addresses are not known, and the intercept's `unidentified` refuses.
    HostUnknown,
    /// The second hello after a HelloRetryRequest would take the connection to another server than the first, or came unasked.
    HelloRetry,
}

/// The answer of [`super::Intercept::decide`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub action: Action,
    pub cause: Cause,
}
