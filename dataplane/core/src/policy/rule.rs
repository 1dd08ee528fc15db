//! One rule: what it asks of a connection and what it says.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Action, Facts, Hosts, NameSet, Prefixes, Protocol, TcpPorts};
use crate::pace::{Rates, RulePace};

/// More names or prefixes than anybody writes into a rule by hand.
const LARGE: usize = 1000;

/// What a rule is made from. Every condition that is given must hold; a rule without conditions takes everything.
#[derive(Clone, Debug)]
pub struct RuleSpec {
    pub action: Action,
    /// Where the rule stands: `file:line`.
    pub origin: String,
    /// Names that the client asks for; of these and the next three, one must hold.
    pub host: Option<Arc<NameSet>>,
    /// Lists of names. Shared, since they are large.
    pub host_lists: Vec<Arc<NameSet>>,
    /// The client asks for no name.
    pub host_none: bool,
    /// The name is an address literal.
    pub host_address: bool,
    /// The name is hidden by Encrypted ClientHello, or is not.
    pub ech: Option<bool>,
    /// The client says another thing in its second hello than in its first, or does not.
    pub hello_retry: Option<bool>,
    /// Client addresses; empty, and no list: any.
    pub from: Vec<IpNet>,
    /// Lists of client addresses. Shared, since they are large.
    pub from_lists: Vec<Arc<Prefixes>>,
    /// Server addresses; empty, and no list: any.
    pub to: Vec<IpNet>,
    /// Lists of server addresses.
    pub to_lists: Vec<Arc<Prefixes>>,
    /// Server ports; empty: any.
    pub tcp: Vec<RangeInclusive<u16>>,
    /// ALPN protocol names of which the client must offer one; empty: any offer or none.
    pub alpn: Vec<String>,
    pub protocol: Option<Protocol>,
    /// The bandwidth of what it lets on; on the relay only.
    pub rates: Rates,
}

impl RuleSpec {
    /// A rule without conditions.
    pub fn new(action: Action) -> Self {
        Self {
            action,
            origin: String::new(),
            host: None,
            host_lists: Vec::new(),
            host_none: false,
            host_address: false,
            ech: None,
            hello_retry: None,
            from: Vec::new(),
            from_lists: Vec::new(),
            to: Vec::new(),
            to_lists: Vec::new(),
            tcp: Vec::new(),
            alpn: Vec::new(),
            protocol: None,
            rates: Rates::default(),
        }
    }

    /// Whether the rule says something of the name that the client asks for.
    pub fn by_host(&self) -> bool {
        self.host.is_some() || !self.host_lists.is_empty() || self.host_none || self.host_address
    }

    /// Whether clients of a family can meet the rule: of IPv4, or of IPv6.
    pub fn takes_from(&self, v4: bool) -> bool {
        takes(&self.from, &self.from_lists, v4)
    }

    /// Whether servers of a family can meet the rule.
    pub fn takes_to(&self, v4: bool) -> bool {
        takes(&self.to, &self.to_lists, v4)
    }

    /// Whether a list of addresses holds none, as one may that is filled later.
    pub fn has_empty_list(&self) -> bool {
        self.from_lists.iter().chain(&self.to_lists).any(|list| list.is_empty())
    }

    /// Whether the rule needs the client's first bytes, so that it cannot be judged at the SYN.
    pub fn by_content(&self) -> bool {
        self.by_host()
            || self.ech.is_some()
            || self.hello_retry.is_some()
            || !self.alpn.is_empty()
            || self.protocol.is_some()
    }
}

/// Whether some address of a family is among these; no prefix and no list means any address.
fn takes(written: &[IpNet], lists: &[Arc<Prefixes>], v4: bool) -> bool {
    (written.is_empty() && lists.is_empty())
        || written.iter().any(|prefix| prefix.addr().is_ipv4() == v4)
        || lists.iter().any(|list| if v4 { list.has_v4() } else { list.has_v6() })
}

/// One compiled rule.
#[derive(Clone, Debug)]
pub struct Rule {
    pub action: Action,
    /// Where the rule stands: `file:line`.
    pub origin: String,
    host: Option<Hosts>,
    ech: Option<bool>,
    hello_retry: Option<bool>,
    from: Option<Sets>,
    to: Option<Sets>,
    tcp: Option<TcpPorts>,
    alpn: Vec<Box<[u8]>>,
    protocol: Option<Protocol>,
    pace: Option<Arc<RulePace>>,
}

impl Rule {
    /// Compiles one rule.
    pub fn new(spec: RuleSpec) -> Self {
        let sets = spec.host.into_iter().chain(spec.host_lists).collect();
        let host = Hosts { sets, none: spec.host_none, address: spec.host_address };
        Self {
            action: spec.action,
            origin: spec.origin,
            host: Some(host).filter(|host| !host.is_empty()),
            ech: spec.ech,
            hello_retry: spec.hello_retry,
            from: Sets::new(spec.from, spec.from_lists),
            to: Sets::new(spec.to, spec.to_lists),
            tcp: (!spec.tcp.is_empty()).then(|| spec.tcp.into_iter().collect()),
            alpn: spec.alpn.into_iter().map(|name| name.into_bytes().into_boxed_slice()).collect(),
            protocol: spec.protocol,
            pace: RulePace::new(spec.rates),
        }
    }

    /// The bandwidth that its connections share.
    pub fn pace(&self) -> Option<&RulePace> {
        self.pace.as_deref()
    }

    /// Whether the rule needs the client's first bytes, so that it cannot be judged at the SYN.
    pub fn by_content(&self) -> bool {
        self.host.is_some()
            || self.ech.is_some()
            || self.hello_retry.is_some()
            || !self.alpn.is_empty()
            || self.protocol.is_some()
    }

    /// The rule without its conditions: what is left to be told of it when it has decided.
    pub(super) fn bare(&self) -> Self {
        let (origin, pace) = (self.origin.clone(), self.pace.clone());
        Self { origin, pace, ..Self::new(RuleSpec::new(self.action)) }
    }

    /// Whether it has a list, whose memory matters.
    pub(super) fn is_large(&self) -> bool {
        let names = self.host.iter().flat_map(|host| &host.sets).map(|set| set.len()).sum::<usize>();
        let prefixes = self.from.iter().chain(&self.to).flat_map(|sets| &sets.0).map(|set| set.len());
        names + prefixes.sum::<usize>() > LARGE
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
        let (known, alpn, protocol) = match facts.protocol {
            Some(seen @ (Protocol::Tls | Protocol::Http)) => (true, facts.alpn, seen),
            Some(Protocol::Other) | None => (false, [].as_slice(), Protocol::Other),
        };
        self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.hello_retry.is_none_or(|wanted| wanted == facts.hello_retry)
            && self.ech.is_none_or(|wanted| known && wanted == facts.ech)
            && self.host.as_ref().is_none_or(|hosts| known && hosts.matches(facts.host))
            && (self.alpn.is_empty() || alpn.iter().any(|o| self.alpn.iter().any(|wanted| **wanted == **o)))
    }

    /// Whether every connection that `later` would take is taken by this rule, so that `later`, behind it, is idle.
    /// True only where that is certain: sets are compared condition by condition.
    pub fn shadows(&self, later: &Self) -> bool {
        covers(&self.host, &later.host, Hosts::covers)
            && covers(&self.ech, &later.ech, |mine, theirs| mine == theirs)
            && covers(&self.hello_retry, &later.hello_retry, |mine, theirs| mine == theirs)
            && covers(&self.from, &later.from, Sets::covers)
            && covers(&self.to, &later.to, Sets::covers)
            && covers(&self.tcp, &later.tcp, TcpPorts::covers)
            && covers(&self.protocol, &later.protocol, |mine, theirs| mine == theirs)
            && (self.alpn.is_empty()
                || (!later.alpn.is_empty() && later.alpn.iter().all(|name| self.alpn.contains(name))))
    }
}

/// Prefixes written in the rule, and lists, which rules share: one of them must hold the address.
#[derive(Clone, Debug)]
struct Sets(Vec<Arc<Prefixes>>);

impl Sets {
    /// `None`: the rule says nothing of addresses.
    fn new(written: Vec<IpNet>, lists: Vec<Arc<Prefixes>>) -> Option<Self> {
        let written = (!written.is_empty()).then(|| Arc::new(written.into_iter().collect()));
        let sets: Vec<_> = written.into_iter().chain(lists).collect();
        (!sets.is_empty()).then_some(Self(sets))
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|set| set.contains(address))
    }

    /// True only where that is certain: sets are compared one by one.
    fn covers(&self, other: &Self) -> bool {
        let covers = |theirs: &Arc<Prefixes>| {
            self.0.iter().any(|mine| Arc::ptr_eq(mine, theirs) || mine.covers(theirs))
        };
        other.0.iter().all(covers)
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
