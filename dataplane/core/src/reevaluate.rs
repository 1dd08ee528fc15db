//! Live connections judged again by another policy, with what was found in their first bytes: what `weir reload
//! --reevaluate` carries out, and what `weir check --against` foretells. Both ask [`judge`], so that they agree.
//!
//! A connection that the new policy refuses is ended. One that it would give to another server keeps the one that it has:
//! a connection cannot be moved. One of which too little is known keeps its verdict; so does one that `verify_host` is about, when
//! nobody has asked for its name's addresses lately: no resolver is asked here.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{InterceptId, PortId};
use crate::policy::{Action, Cause, Decision, Facts, Handshake, Intercept, Policy, Protocol};
use crate::relay::find_intercept;
use crate::verify::{self, Need, Verified};
use crate::wire::addr::Endpoint;

/// Where a connection stands between its SYN and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It has no verdict yet.
    Undecided,
    /// A verdict let it pass.
    Judged,
    /// It passes by the kernel and was never judged: it is from before the intercept.
    Unjudged,
    /// Refused, or at its end.
    Over,
}

/// What is known of a connection's first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// What was found in them.
    Found,
    /// Nothing could be found: the server spoke first, or the hold was exhausted.
    Nothing,
    /// They were not looked at, or not all that was found is kept.
    Unknown,
}

/// One live connection.
#[derive(Clone, Copy, Debug)]
pub struct Live<'a> {
    /// The port that it comes in by; on the relay the one that leads back to the client, where that is known.
    pub port: Option<PortId>,
    pub on_relay: bool,
    pub client: SocketAddr,
    pub destination: SocketAddr,
    /// Where it goes.
    pub server: SocketAddr,
    /// Its SYN is signed: no other server knows with what.
    pub signed: bool,
    pub evidence: Evidence,
    pub protocol: Option<Protocol>,
    pub host: Option<&'a str>,
    pub ech: bool,
    pub alpn: &'a [&'a [u8]],
    /// What is known of its name and its destination, for `verify_host`.
    pub verified: Option<Verified>,
    /// All this is of a second hello that did not say what the first did.
    pub hello_retry: bool,
}

/// What a policy makes of a live connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It goes on.
    Kept,
    /// It is ended.
    Ended,
    /// It would go to another server, and keeps the one that it has.
    Elsewhere,
    /// Its first bytes would decide, and they are not known: it keeps its verdict.
    Unknown,
    /// The addresses of its name would decide (`verify_host`), and they are not known: it keeps its verdict.
    Unverified,
}

/// The outcome, and the verdict that it comes from: none where that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again {
    pub outcome: Outcome,
    /// None: no intercept of the policy takes it.
    pub intercept: Option<InterceptId>,
    pub decision: Option<Decision>,
}

/// How many connections came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub kept: u64,
    /// Ended with a reset, and in silence towards the client.
    pub reset: u64,
    pub dropped: u64,
    pub elsewhere: u64,
    pub unknown: u64,
    pub unverified: u64,
    /// No verdict yet: on the fast road the new policy takes it, on the relay that of their beginning.
    pub undecided: u64,
    /// Connections of the kernel, which were never judged.
    pub unjudged: u64,
}

impl Tally {
    pub fn count(&mut self, again: &Again) {
        let dropped = again.decision.is_some_and(|decision| decision.action == Action::Drop);
        let place = match again.outcome {
            Outcome::Kept => &mut self.kept,
            Outcome::Ended if dropped => &mut self.dropped,
            Outcome::Ended => &mut self.reset,
            Outcome::Elsewhere => &mut self.elsewhere,
            Outcome::Unknown => &mut self.unknown,
            Outcome::Unverified => &mut self.unverified,
        };
        *place += 1;
    }

    /// Counts a connection that is not judged, by where it stands.
    pub fn pass_over(&mut self, standing: Standing) {
        match standing {
            Standing::Undecided => self.undecided += 1,
            Standing::Unjudged => self.unjudged += 1,
            Standing::Judged | Standing::Over => {}
        }
    }

    pub fn add(&mut self, other: &Self) {
        let Self { kept, reset, dropped, elsewhere, unknown, unverified, undecided, unjudged } = other;
        self.kept += kept;
        self.reset += reset;
        self.dropped += dropped;
        self.elsewhere += elsewhere;
        self.unknown += unknown;
        self.unverified += unverified;
        self.undecided += undecided;
        self.unjudged += unjudged;
    }

    pub const fn ended(&self) -> u64 {
        self.reset + self.dropped
    }
}

/// What `policy` says of a connection, as if it began now: a rule that gives connections to the relay at their SYN comes
/// before those on content.
pub fn judge(policy: &Policy, live: &Live<'_>) -> Again {
    let (client, server) = (live.client.ip().to_canonical(), live.destination.ip().to_canonical());
    let server_port = live.destination.port();
    let intercept = if live.on_relay {
        find_intercept(policy, live.port, live.destination)
    } else {
        live.port.and_then(|port| policy.intercept(port, server, server_port))
    };
    let Some((id, taken)) = intercept.and_then(|id| Some((id, policy.get(id)?))) else {
        // What is not intercepted passes.
        let decision = Decision { action: Action::Allow, cause: Cause::Otherwise };
        return Again { outcome: outcome(policy, live, decision), intercept: None, decision: Some(decision) };
    };
    let found = live.evidence == Evidence::Found;
    let facts = Facts {
        client,
        server,
        server_port,
        protocol: live.protocol.filter(|_| found),
        host: live.host.filter(|_| found),
        ech: live.ech && found,
        alpn: if found { live.alpn } else { &[] },
        hello_retry: live.hello_retry,
    };
    let relay = if taken.handshake == Handshake::Relay {
        None
    } else {
        taken.relay_at_syn(client, server, server_port)
    };
    let decision = match (relay, live.evidence) {
        (Some(rule), _) => Some(Decision { action: Action::Relay, cause: Cause::Rule(rule) }),
        (None, Evidence::Unknown) => taken.decide_by_addresses(&facts),
        (None, Evidence::Found | Evidence::Nothing) => Some(taken.decide(&facts)),
    };
    let decision = decision.map(|Decision { action, cause }| Decision {
        action: if live.signed && matches!(action, Action::Send(_)) { Action::Reset } else { action },
        cause,
    });
    let (decision, is_verified) = verified(taken, &facts, live.verified, decision);
    let outcome = match decision {
        None => Outcome::Unknown,
        Some(_) if !is_verified => Outcome::Unverified,
        Some(decision) => outcome(policy, live, decision),
    };
    Again { outcome, intercept: Some(id), decision }
}

/// What a decision that lets a connection on becomes by what is known of its name, and whether that is enough.
fn verified(
    intercept: &Intercept,
    facts: &Facts<'_>,
    known: Option<Verified>,
    decision: Option<Decision>,
) -> (Option<Decision>, bool) {
    let is_let_on = decision.is_some_and(|decision| !matches!(decision.action, Action::Reset | Action::Drop));
    let need = match facts.host {
        Some(name) if is_let_on => {
            verify::need(intercept.verify_host, name, intercept.is_hidden(facts), facts.server)
        }
        _ => Need::Nothing,
    };
    let verified = match (need, known) {
        (Need::Known(verified), _) | (Need::Ask { waits: true }, Some(verified)) => verified,
        (Need::Ask { waits: true }, None) => return (decision, false),
        (Need::Nothing | Need::Ask { waits: false }, _) => return (decision, true),
    };
    let ruled = |decision| verify::rule(intercept.verify_host, verified, intercept.unidentified, decision);
    (decision.map(ruled), true)
}

fn outcome(policy: &Policy, live: &Live<'_>, decision: Decision) -> Outcome {
    if matches!(decision.action, Action::Reset | Action::Drop) {
        return Outcome::Ended;
    }
    let stays = leads_to(policy, decision.action, live.server.into(), live.destination.into());
    if stays { Outcome::Kept } else { Outcome::Elsewhere }
}

/// Whether an action lets a connection to `destination` go to `server`.
pub(crate) fn leads_to(policy: &Policy, action: Action, server: Endpoint, destination: Endpoint) -> bool {
    match action {
        Action::Reset | Action::Drop => false,
        Action::Allow | Action::Relay => server == destination,
        Action::Send(pool) => policy
            .pool(pool)
            .is_some_and(|pool| pool.servers.iter().any(|of_pool| of_pool.endpoint() == server)),
    }
}

#[cfg(test)]
mod tests;
