//! One rule: what it asks of a connection and what it says.

use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Action, Facts, NameSet, Prefixes, Protocol, TcpPorts};

/// What a rule is made from. Every condition that is given must hold; a rule without conditions takes everything.
#[derive(Clone, Debug)]
pub struct RuleSpec {
    pub action: Action,
    /// Where the rule stands: `file:line`.
    pub origin: String,
    /// Shared, since a blocklist is large.
    pub host: Option<Arc<NameSet>>,
    /// Client addresses; empty: any.
    pub from: Vec<IpNet>,
    /// Server addresses; empty: any.
    pub to: Vec<IpNet>,
    /// Server ports; empty: any.
    pub tcp: Vec<RangeInclusive<u16>>,
    /// ALPN protocol names of which the client must offer one; empty: any offer or none.
    pub alpn: Vec<String>,
    pub protocol: Option<Protocol>,
}

impl RuleSpec {
    /// A rule without conditions.
    pub fn new(action: Action) -> Self {
        Self {
            action,
            origin: String::new(),
            host: None,
            from: Vec::new(),
            to: Vec::new(),
            tcp: Vec::new(),
            alpn: Vec::new(),
            protocol: None,
        }
    }

    /// Whether the rule needs the client's first bytes, so that it cannot be judged at the SYN.
    pub fn by_content(&self) -> bool {
        self.host.is_some() || !self.alpn.is_empty() || self.protocol.is_some()
    }
}

/// One compiled rule.
#[derive(Clone, Debug)]
pub struct Rule {
    pub action: Action,
    /// Where the rule stands: `file:line`.
    pub origin: String,
    host: Option<Arc<NameSet>>,
    from: Option<Prefixes>,
    to: Option<Prefixes>,
    tcp: Option<TcpPorts>,
    alpn: Vec<Box<[u8]>>,
    protocol: Option<Protocol>,
}

impl Rule {
    /// Compiles one rule.
    pub fn new(spec: RuleSpec) -> Self {
        let prefixes = |list: Vec<IpNet>| (!list.is_empty()).then(|| list.into_iter().collect());
        Self {
            action: spec.action,
            origin: spec.origin,
            host: spec.host,
            from: prefixes(spec.from),
            to: prefixes(spec.to),
            tcp: (!spec.tcp.is_empty()).then(|| spec.tcp.into_iter().collect()),
            alpn: spec.alpn.into_iter().map(|name| name.into_bytes().into_boxed_slice()).collect(),
            protocol: spec.protocol,
        }
    }

    /// Whether the rule needs the client's first bytes, so that it cannot be judged at the SYN.
    pub fn by_content(&self) -> bool {
        self.host.is_some() || !self.alpn.is_empty() || self.protocol.is_some()
    }

    /// Whether all conditions hold.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.matches_addresses(facts) && self.matches_content(facts)
    }

    fn matches_addresses(&self, facts: &Facts<'_>) -> bool {
        self.from.as_ref().is_none_or(|set| set.contains(facts.client))
            && self.to.as_ref().is_none_or(|set| set.contains(facts.server))
            && self.tcp.as_ref().is_none_or(|set| set.contains(facts.server_port))
    }

    /// Names count only in a protocol that was recognised: what could not be identified has none.
    fn matches_content(&self, facts: &Facts<'_>) -> bool {
        let (host, alpn, protocol) = match facts.protocol {
            Some(seen @ (Protocol::Tls | Protocol::Http)) => (facts.host, facts.alpn, seen),
            Some(Protocol::Other) | None => (None, [].as_slice(), Protocol::Other),
        };
        self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.host.as_ref().is_none_or(|set| host.is_some_and(|host| set.contains(host)))
            && (self.alpn.is_empty() || alpn.iter().any(|o| self.alpn.iter().any(|wanted| **wanted == **o)))
    }

    /// Whether every connection that `later` would take is taken by this rule, so that `later`, behind it, is idle.
    /// True only where that is certain: sets are compared condition by condition.
    pub fn shadows(&self, later: &Self) -> bool {
        covers(&self.host, &later.host, |mine, theirs| mine.covers(theirs))
            && covers(&self.from, &later.from, Prefixes::covers)
            && covers(&self.to, &later.to, Prefixes::covers)
            && covers(&self.tcp, &later.tcp, TcpPorts::covers)
            && covers(&self.protocol, &later.protocol, |mine, theirs| mine == theirs)
            && (self.alpn.is_empty()
                || (!later.alpn.is_empty() && later.alpn.iter().all(|name| self.alpn.contains(name))))
    }
}

/// Whether the condition `mine` holds wherever `theirs` does; no condition holds everywhere.
fn covers<T>(mine: &Option<T>, theirs: &Option<T>, compare: impl Fn(&T, &T) -> bool) -> bool {
    match (mine, theirs) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(mine), Some(theirs)) => compare(mine, theirs),
    }
}
