//! One intercept: a set of destinations to take over, and what becomes of their connections.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Action, Cause, Decision, Facts, Full, Handshake, Midstream, NameSet, Prefixes, Protocol, Quic, Rule,
    RuleSpec, SynCookies, TcpPorts, VerifyHost, VlanChoice,
};
use crate::ids::{Nanos, PortId, PortSet, RuleId};

/// What an intercept is made from.
#[derive(Clone, Debug)]
pub struct InterceptSpec {
    pub name: String,
    /// Where the intercept stands: `file:line`.
    pub origin: String,
    /// Ports its SYNs come from.
    pub from: PortSet,
    /// And what of their frames.
    pub vlan: VlanChoice,
    /// Destination addresses.
    pub to: Vec<IpNet>,
    /// Destination ports.
    pub tcp: Vec<RangeInclusive<u16>>,
    pub handshake: Handshake,
    /// Only where the handshake is `answer`.
    pub syn_cookies: SynCookies,
    pub quic: Quic,
    pub verify_host: VerifyHost,
    /// The most client bytes held before there is a verdict.
    pub hold_bytes: u32,
    /// The longest that they are held.
    pub hold_time: Nanos,
    pub full: Full,
    pub otherwise: Action,
    pub unidentified: Action,
    pub midstream: Midstream,
    pub rules: Vec<RuleSpec>,
}

impl InterceptSpec {
    /// An intercept of nothing yet, with the defaults that a configuration file has too: `through`, SYN cookies under
    /// pressure, QUIC passed, names not verified, 16 KiB held for at most 3 s, `full = "kernel"`, everything allowed that no rule takes, and
    /// mid-stream packets reset after a grace time of 60 s.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            origin: String::new(),
            from: PortSet::default(),
            vlan: VlanChoice::default(),
            to: Vec::new(),
            tcp: Vec::new(),
            handshake: Handshake::Through,
            syn_cookies: SynCookies::Auto,
            quic: Quic::Pass,
            verify_host: VerifyHost::Off,
            hold_bytes: 16 * 1024,
            hold_time: Nanos::from_secs(3),
            full: Full::Kernel,
            otherwise: Action::Allow,
            unidentified: Action::Allow,
            midstream: Midstream { action: Action::Reset, grace: Nanos::from_secs(60) },
            rules: Vec::new(),
        }
    }

    /// Takes SYNs from this port, too.
    pub fn from_port(mut self, port: PortId) -> Self {
        self.from.insert(port);
        self
    }

    /// Takes these destination addresses, too.
    pub fn to(mut self, prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        self.to.extend(prefixes);
        self
    }

    /// Takes all destination addresses of both families.
    pub fn to_any(self) -> Self {
        self.to([IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())])
    }

    /// Takes these destination ports, too.
    pub fn tcp(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        self.tcp.extend(ports.into_iter().map(|port| port..=port));
        self
    }

    /// Adds a rule behind the others.
    pub fn rule(mut self, rule: RuleSpec) -> Self {
        self.rules.push(rule);
        self
    }
}

/// One configured set of destinations to take over.
#[derive(Clone, Debug)]
pub struct Intercept {
    pub name: String,
    /// Where the intercept stands: `file:line`.
    pub origin: String,
    /// Ports its SYNs come from.
    pub from: PortSet,
    /// And what of their frames.
    pub vlan: VlanChoice,
    pub handshake: Handshake,
    /// Only where the handshake is `answer`.
    pub syn_cookies: SynCookies,
    pub quic: Quic,
    pub verify_host: VerifyHost,
    /// The most client bytes held before there is a verdict.
    pub hold_bytes: u32,
    pub hold_time: Nanos,
    pub full: Full,
    pub otherwise: Action,
    pub unidentified: Action,
    pub midstream: Midstream,
    to: Prefixes,
    tcp: TcpPorts,
    rules: Vec<Rule>,
    /// Some rule says `relay` and can be judged at the SYN.
    relays_at_syn: bool,
    /// Some rule says `send`.
    sends: bool,
    /// Outer names of Encrypted ClientHellos that hide another.
    ech_public_names: Arc<NameSet>,
}

impl Intercept {
    pub(super) fn new(spec: InterceptSpec, ech_public_names: Arc<NameSet>) -> Self {
        let rules: Vec<Rule> = spec.rules.into_iter().map(Rule::new).collect();
        Self {
            name: spec.name,
            origin: spec.origin,
            from: spec.from,
            vlan: spec.vlan,
            handshake: spec.handshake,
            syn_cookies: spec.syn_cookies,
            quic: spec.quic,
            verify_host: spec.verify_host,
            hold_bytes: spec.hold_bytes,
            hold_time: spec.hold_time,
            full: spec.full,
            otherwise: spec.otherwise,
            unidentified: spec.unidentified,
            midstream: spec.midstream,
            to: spec.to.into_iter().collect(),
            tcp: spec.tcp.into_iter().collect(),
            relays_at_syn: rules.iter().any(|rule| rule.action == Action::Relay && !rule.by_content()),
            sends: rules.iter().any(|rule| matches!(rule.action, Action::Send(_))),
            rules,
            ech_public_names,
        }
    }

    /// The same with rules that match everything: for those that they have decided.
    pub(super) fn bare(&self) -> Self {
        Self { rules: self.rules.iter().map(Rule::bare).collect(), ..self.clone() }
    }

    /// Whether a rule has a list, whose memory matters.
    pub(super) fn is_large(&self) -> bool {
        self.rules.iter().any(Rule::is_large)
    }

    /// Whether some rule sends connections to a pool.
    pub const fn sends(&self) -> bool {
        self.sends
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(usize::from(id.0))
    }

    /// Destination addresses.
    pub fn to(&self) -> &Prefixes {
        &self.to
    }

    /// Destination ports.
    pub fn tcp(&self) -> &TcpPorts {
        &self.tcp
    }

    /// Whether the destination is one of this intercept's.
    pub fn takes(&self, server: IpAddr, port: u16) -> bool {
        self.tcp.contains(port) && self.to.contains(server)
    }

    /// The `relay` rule that takes a SYN, if one does (DESIGN section 9).
    ///
    /// Rules that need the client's bytes are passed over, since at the SYN there are none. Of the rest the first match
    /// wins: an earlier rule on addresses alone that says something else keeps the connection off the relay.
    /// An intercept whose handshake is `relay` sends every SYN there; ask that first.
    pub fn relay_at_syn(&self, client: IpAddr, server: IpAddr, port: u16) -> Option<RuleId> {
        if !self.relays_at_syn {
            return None;
        }
        let facts = Facts::of_addresses(client, server, port);
        let first = self.enumerated().find(|(_, rule)| !rule.by_content() && rule.matches(&facts));
        first.filter(|(_, rule)| rule.action == Action::Relay).map(|(id, _)| id)
    }

    /// How SYNs may be answered with cookies by who has no rules: not at all where a rule decides on the SYN.
    pub fn cookies_without_worker(&self) -> Option<SynCookies> {
        (self.handshake == Handshake::Answer && !self.relays_at_syn).then_some(self.syn_cookies)
    }

    /// Whether connections may be translated: answered in the server's place, or given to another server.
    pub fn translates(&self) -> bool {
        let actions = self.rules().iter().map(|rule| rule.action).chain([self.otherwise, self.unidentified]);
        self.handshake == Handshake::Answer
            || actions.into_iter().any(|action| matches!(action, Action::Send(_)))
    }

    /// First match wins; then `unidentified` when `facts.protocol` is `None` or `Other`, else `otherwise`.
    ///
    /// What could not be identified has no name and no ALPN, whatever `facts` says: only rules on addresses and ports
    /// alone, or with `protocol = "other"`, take it. On the relay `Action::Relay` means: carry the connection. On the
    /// fast road it cannot come up, since [`Self::relay_at_syn`] of the same policy has taken the SYN; after a reload
    /// it is too late for the relay, and means the same.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        let facts = &Facts { ech: self.is_hidden(facts), ..*facts };
        if let Some((id, rule)) = self.enumerated().find(|(_, rule)| rule.matches(facts)) {
            return Decision { action: rule.action, cause: Cause::Rule(id) };
        }
        match facts.protocol {
            Some(Protocol::Tls | Protocol::Http) => {
                Decision { action: self.otherwise, cause: Cause::Otherwise }
            }
            Some(Protocol::Other) | None => {
                Decision { action: self.unidentified, cause: Cause::Unidentified }
            }
        }
    }

    /// Whether the name that a client shows is only the outer one of an Encrypted ClientHello: it offers the extension,
    /// and the name is a public one. With any other name the extension is taken for grease (RFC 9849, section 6.2), which
    /// browsers send to everybody; `*` among the public names says that none is.
    pub fn is_hidden(&self, facts: &Facts<'_>) -> bool {
        let names = &self.ech_public_names;
        facts.ech && (names.is_any() || facts.host.is_some_and(|host| names.contains(host)))
    }

    /// What addresses alone decide, whatever the client's bytes are. `None`: they matter.
    pub fn decide_by_addresses(&self, facts: &Facts<'_>) -> Option<Decision> {
        let mut known = self.enumerated().take_while(|(_, rule)| !rule.by_content());
        if let Some((id, rule)) = known.find(|(_, rule)| rule.matches(facts)) {
            return Some(Decision { action: rule.action, cause: Cause::Rule(id) });
        }
        let open = self.otherwise != self.unidentified || self.rules.iter().any(Rule::by_content);
        (!open).then_some(Decision { action: self.otherwise, cause: Cause::Otherwise })
    }

    /// Whether another hello of the same connection could be decided otherwise.
    pub fn depends_on_content(&self, facts: &Facts<'_>) -> bool {
        self.verify_host != VerifyHost::Off || self.decide_by_addresses(facts).is_none()
    }

    fn enumerated(&self) -> impl Iterator<Item = (RuleId, &Rule)> {
        // The builder refuses more rules than a RuleId counts.
        (0..=u16::MAX).map(RuleId).zip(&self.rules)
    }
}
