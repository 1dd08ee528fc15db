//! `weir check --against`: what a configuration would make of the connections that a running gateway has, before anyone
//! commits to it. Nothing in the gateway changes. The answer is that of `weir reload --reevaluate` at this moment: both ask
//! [`weir_core::reevaluate::judge`].

mod lists;
mod table;
mod vlans;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weir_core::fib::Vlans;
use weir_core::ids::PortId;
use weir_core::policy::{Cause, Policy, Protocol};
use weir_core::reevaluate::{Again, Evidence, Live, Outcome, Standing, Tally, judge};
use weir_core::verify::Verified;
use weir_core::vlan::Vlan;

use crate::admin::listing::{self, Incomplete};
use crate::exit::Failure;

pub use lists::kept;
pub use table::{counts, table};

/// Connections that are named of each group.
const SAMPLES: usize = 3;

/// A verdict, and the rule or the default that it comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Verdict {
    /// `allow`, `relay`, `send`, `reset`, `drop`; `unknown` where first bytes or a name's addresses would decide that are not known.
    pub verdict: String,
    /// `file:line`, or `otherwise`, `unidentified`, `not intercepted`.
    pub by: String,
}

/// Connections that come from one verdict to one verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    pub from: Verdict,
    pub to: Verdict,
    pub outcome: Outcome,
    /// Whether the verdict or what becomes of them is another.
    pub changes: bool,
    pub count: u64,
    pub samples: Vec<Sample>,
}

/// One connection of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sample {
    pub client: SocketAddr,
    pub destination: SocketAddr,
    pub host: Option<String>,
}

/// What would become of all live connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shadow {
    /// Live connections that were looked at.
    pub flows: u64,
    /// Whose connections are not among them; none: all are.
    pub incomplete: Option<Incomplete>,
    /// What a reload would do otherwise, a sentence each.
    pub notes: Vec<String>,
    /// As `weir reload --reevaluate` would count them.
    pub tally: Tally,
    /// How many would have another verdict, or another end.
    pub changed: u64,
    /// The largest changes first, then those that keep their verdict.
    pub groups: Vec<Group>,
}

/// A connection as `weir flows` tells of it.
#[derive(Debug, Deserialize)]
struct Flow {
    client: SocketAddr,
    destination: SocketAddr,
    port: Option<u8>,
    vlan: Option<String>,
    server: SocketAddr,
    host: Option<String>,
    alpn: Vec<String>,
    ech: bool,
    signed: bool,
    evidence: Evidence,
    standing: Standing,
    protocol: Option<Protocol>,
    host_known: Option<Verified>,
    hello_retry: Option<String>,
    verdict: Option<String>,
    rule: Option<String>,
    road: String,
    reason: String,
}

/// Runs `policy` over the flow list of a running gateway.
///
/// # Errors
/// The list is that of another version of weir.
pub fn compare(policy: &Policy, flows: &Value) -> Result<Shadow, Failure> {
    let (flows, incomplete) = listing::parts(flows);
    let flows: Vec<Flow> =
        flows.iter().map(Flow::deserialize).collect::<Result<_, _>>().map_err(|error| {
            Failure::refused(format!(
                "the running weir lists its flows otherwise than this one: {error}; restart it"
            ))
        })?;
    let vlans = vlans::of(flows.iter().filter_map(Flow::comes_by));
    let policy = &policy.with_vlans(&vlans);
    let mut shadow = Shadow {
        flows: 0,
        incomplete,
        notes: Vec::new(),
        tally: Tally::default(),
        changed: 0,
        groups: Vec::new(),
    };
    let mut groups: BTreeMap<(Verdict, Verdict, &'static str), Group> = BTreeMap::new();
    for flow in &flows {
        if flow.standing != Standing::Over {
            shadow.flows += 1;
        }
        if flow.standing != Standing::Judged {
            shadow.tally.pass_over(flow.standing);
            continue;
        }
        let again = flow.judge(policy, &vlans);
        shadow.tally.count(&again);
        let group = flow.group(policy, &again);
        let key = (group.from.clone(), group.to.clone(), name(group.outcome));
        let group = groups.entry(key).or_insert(group);
        group.count += 1;
        if group.samples.len() < SAMPLES {
            group.samples.push(flow.sample());
        }
    }
    shadow.groups = groups.into_values().collect();
    shadow.groups.sort_by_key(|group| (!group.changes, std::cmp::Reverse(group.count)));
    shadow.changed = shadow.groups.iter().filter(|group| group.changes).map(|group| group.count).sum();
    Ok(shadow)
}

impl Flow {
    /// The port and the VLAN of it that it comes in by, where it comes tagged.
    fn comes_by(&self) -> Option<(PortId, Vlan)> {
        Some((PortId(self.port?), vlans::parse(self.vlan.as_deref()?)?))
    }

    fn judge(&self, policy: &Policy, vlans: &Vlans) -> Again {
        let tagged = self.comes_by().and_then(|(port, vlan)| vlans.find(port, &vlan));
        let alpn: Vec<&[u8]> = self.alpn.iter().map(String::as_bytes).collect();
        let live = Live {
            port: tagged.or_else(|| self.port.map(PortId)),
            on_relay: self.road == "relay",
            client: self.client,
            destination: self.destination,
            server: self.server,
            signed: self.signed,
            evidence: self.evidence,
            protocol: self.protocol,
            host: self.host.as_deref(),
            ech: self.ech,
            alpn: &alpn,
            verified: self.host_known,
            hello_retry: self.hello_retry.as_deref() == Some("changed"),
        };
        judge(policy, &live)
    }

    /// Its group, with nobody in it yet.
    fn group(&self, policy: &Policy, again: &Again) -> Group {
        let from = Verdict {
            verdict: self.verdict.clone().unwrap_or_else(|| "allow".to_owned()),
            by: self.rule.clone().unwrap_or_else(|| self.reason.clone()),
        };
        let to = verdict(policy, again);
        let changes = again.outcome != Outcome::Kept || from.verdict != to.verdict;
        Group { from, to, outcome: again.outcome, changes, count: 0, samples: Vec::new() }
    }

    fn sample(&self) -> Sample {
        Sample { client: self.client, destination: self.destination, host: self.host.clone() }
    }
}

fn verdict(policy: &Policy, again: &Again) -> Verdict {
    let words = |verdict: &str, by: &str| Verdict { verdict: verdict.to_owned(), by: by.to_owned() };
    if again.outcome == Outcome::Unverified {
        return words("unknown", "verify_host");
    }
    let Some(decision) = again.decision else { return words("unknown", "its first bytes") };
    let verdict = decision.action.name();
    let Some(intercept) = again.intercept.and_then(|id| policy.get(id)) else {
        return words(verdict, "not intercepted");
    };
    match decision.cause {
        Cause::Rule(id) => words(verdict, intercept.rule(id).map_or("a rule", |rule| rule.origin.as_str())),
        Cause::Otherwise => words(verdict, "otherwise"),
        Cause::Unidentified => words(verdict, "unidentified"),
        Cause::HostMismatch => words(verdict, "host-mismatch"),
        Cause::HostUnknown => words(verdict, "host-unknown"),
        Cause::HelloRetry => words(verdict, "hello-retry"),
    }
}

/// What becomes of a connection, in a word.
const fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Kept => "goes on",
        Outcome::Ended => "is ended",
        Outcome::Elsewhere => "keeps its server",
        Outcome::Unknown | Outcome::Unverified => "keeps its verdict",
    }
}

#[cfg(test)]
mod tests;
