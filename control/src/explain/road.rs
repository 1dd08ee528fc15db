//! What it all comes to: the road, and the reason in one sentence.
//!
//! A connection that lives has its road already. For a new one the layers are followed as its SYN would meet them.

use rtnetlink::packet_route::route::RouteType;
use serde::Serialize;
use weir_core::fib::NextHop;
use weir_core::policy::Action;
use weir_sys::steering::Outcome;

use super::firewall::Filtered;
use super::nft::{Hit, Verdict};
use super::policy::Judged;
use super::{Source, Way};

/// The conclusion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Road {
    /// `fast`, `relay` or `kernel`; `none`: it is dropped on the way.
    pub road: &'static str,
    pub reason: String,
    /// The intercept that takes it.
    pub intercept: Option<String>,
    /// What the rules say; none while that is open.
    pub verdict: Option<String>,
    /// The `file:line` of the rule.
    pub rule: Option<String>,
    /// Where it ends up.
    pub server: Option<String>,
}

impl Road {
    /// The same by rules of others.
    pub fn through(self, filtered: &Filtered) -> Self {
        match filtered {
            Filtered::Lost(chains) => Self {
                road: "none",
                reason: format!("{}; but {} loses it (tried)", self.reason, chains.join(", ")),
                intercept: self.intercept,
                verdict: None,
                rule: None,
                server: None,
            },
            Filtered::Perhaps(chains, why) => Self {
                reason: format!(
                    "{}; if {} lets it through, which could not be tried ({why})",
                    self.reason,
                    chains.join(", ")
                ),
                ..self
            },
        }
    }
}

/// A road and its reason.
type Taken = (&'static str, String);

/// Draws the conclusion.
pub fn conclude(way: &Way) -> Road {
    if let Some(flow) = &way.flow {
        let road = match flow.road.as_str() {
            "fast" => "fast",
            "relay" => "relay",
            _ => "kernel",
        };
        return Road {
            road,
            reason: format!("the connection lives there: {}", flow.sentence()),
            intercept: intercept(way),
            verdict: flow.verdict.clone(),
            rule: flow.rule.clone(),
            server: flow.server.clone(),
        };
    }
    if let Some(former) =
        way.steered.as_ref().and_then(|steered| steered.look.former).filter(|at| !at.is_over)
    {
        let reason = "the connection lives there: in the express lane that another version of weir has left, whose program carries it on until \
                      it ends";
        return Road {
            road: "fast",
            reason: reason.into(),
            intercept: None,
            verdict: None,
            rule: None,
            server: Some(former.goes.1.to_string()),
        };
    }
    let (road, reason) = taken(way);
    let judged = way.judged.as_ref().filter(|_| road == "fast" || road == "relay");
    let server = judged.and_then(|judged| judged.server).unwrap_or(way.question.to);
    Road {
        road,
        reason,
        intercept: judged.and_then(|_| intercept(way)),
        verdict: judged.and_then(|judged| judged.action).map(|action| action.name().to_owned()),
        rule: judged.and_then(|judged| judged.rule.clone()),
        server: (road != "none").then(|| server.to_string()),
    }
}

fn intercept(way: &Way) -> Option<String> {
    way.judged.as_ref()?.intercept.as_ref().map(|(name, origin)| format!("{name} ({origin})"))
}

/// The road of a new connection.
fn taken(way: &Way) -> Taken {
    if way.ingress.local {
        return (
            "kernel",
            "the client is this box itself, and only what comes in by a port is intercepted".into(),
        );
    }
    let Some(steered) = &way.steered else {
        let why = match (way.gateway.is_running(), way.ingress.link.is_some()) {
            (_, false) => "the kernel has no route to the client",
            (true, _) => "no steering program is where it comes in",
            (false, _) => "weir does not run",
        };
        return match &way.unasked {
            Some(unasked) => {
                kernel_road(way, &format!("{why}; the program on the device may say otherwise: {unasked}"))
            }
            None => kernel_road(way, why),
        };
    };
    if steered.source == Source::Configuration {
        return not_running(way, steered.syn);
    }
    match steered.syn {
        Outcome::StaleDrop | Outcome::NoSocketDrop | Outcome::ExpressDrop => {
            ("none", format!("the steering program drops it: {}", steered.syn.sentence()))
        }
        outcome if outcome.is_redirect() => worker(way),
        outcome => kernel_road(way, &format!("steering says {}: {}", outcome.name(), outcome.sentence())),
    }
}

/// Nothing of weir's is on the device: what is now, and what would be.
fn not_running(way: &Way, outcome: Outcome) -> Taken {
    let (road, reason) = kernel_road(way, "weir does not run");
    let then = if outcome.is_redirect() {
        let (road, reason) = worker(way);
        format!("once it runs: {road} road, {reason}")
    } else if way.judged.as_ref().is_some_and(|judged| judged.relay.is_some()) {
        "once it runs: relay road, by its intercept".to_owned()
    } else {
        format!("once it runs: the kernel's, too, {}", outcome.sentence())
    };
    (road, format!("{reason}; {then}"))
}

/// What a worker does with a SYN that steering gives it.
fn worker(way: &Way) -> Taken {
    let Some(judged) = &way.judged else {
        return (
            "fast",
            "steering gives it to a worker; which rule it meets is not known without the file".into(),
        );
    };
    let Some((name, _)) = &judged.intercept else {
        let why = "a SYN that no intercept has (from the servers' side, or the like): the worker gives it to plain forwarding";
        return ("kernel", why.into());
    };
    if let Some(origin) = &judged.relay {
        let mut reason =
            format!("intercept {name}: the rule at {origin} says relay, which is decided at the SYN");
        if judged.action != Some(Action::Relay) {
            reason += &format!("; then {}", said(judged));
        }
        return relayed(way, reason);
    }
    let hop = way.next_hop.server;
    if hop == NextHop::Kernel && !judged.answers_and_sends {
        let why = "the route to the server leaves by no port of the dataplane, so that the relay takes it (no-port)";
        return relayed(way, format!("intercept {name}: {why}"));
    }
    let mut reason = format!("intercept {name}: {}", said(judged));
    if let NextHop::Unresolved(_) = hop {
        reason += "; the next hop is not resolved yet, so the kernel sends the first packets and resolves it (no-neighbour)";
    }
    ("fast", reason)
}

/// What a worker gives to the relay must find its listener.
fn relayed(way: &Way, reason: String) -> Taken {
    match &way.nft.hit {
        Some(Hit { verdict: Verdict::Tproxy(_), .. }) => delivered(way, reason),
        Some(Hit { verdict: Verdict::Drop, handle, .. }) => {
            ("none", format!("{reason}; but nft's rule {handle} drops it"))
        }
        // It does not run, or could not be looked at: what is missing comes with the start.
        None if !way.nft.table || way.nft.unknown.is_some() => ("relay", reason),
        _ => (
            "kernel",
            format!("{reason}; but no rule of nft gives it to the relay's listener, so that it is forwarded"),
        ),
    }
}

fn said(judged: &Judged) -> String {
    let Some(cause) = &judged.cause else {
        return "which rule decides depends on the client's first bytes".to_owned();
    };
    match (judged.action, judged.server) {
        (Some(Action::Send(_)), Some(server)) => format!("{cause}, to {server}"),
        (Some(Action::Send(_)), None) => format!("{cause}, and the pool has no server for it: it is reset"),
        _ => cause.clone(),
    }
}

/// What the kernel does: its table of weir's first, then its routes. `why` it has it, as half a sentence.
fn kernel_road(way: &Way, why: &str) -> Taken {
    let unread =
        way.nft.unknown.as_ref().map(|error| format!("{why}; nft's table could not be read ({error})"));
    let why = unread.as_deref().unwrap_or(why);
    let hangs = way.gateway.is_stuck();
    let hangs =
        hangs.then(|| format!("{why}; weir hangs, and the relay's listeners are not found meanwhile"));
    let why = hangs.as_deref().unwrap_or(why);
    let lost = way.gateway.seen.as_ref().and_then(|seen| seen.lost.as_ref());
    let lost = lost.map(|lost| format!("{why}; the device {lost}"));
    let why = lost.as_deref().unwrap_or(why);
    if let Some(Hit { verdict, handle, .. }) = &way.nft.direct {
        match verdict {
            Verdict::Tproxy(port) => {
                let what = way.judged.as_ref().map_or("the intercept".to_owned(), said_by_relay);
                return delivered(
                    way,
                    format!(
                        "{why}; nft's rule {handle} gives it to the relay's listener on port {port}: {what}"
                    ),
                );
            }
            Verdict::Drop => return ("none", format!("{why}; nft's rule {handle} drops it")),
            Verdict::Accept | Verdict::Leave | Verdict::Return => {}
        }
    }
    match &way.routes.plain {
        Some(Ok(chosen)) => match chosen.kind {
            RouteType::Local => ("kernel", format!("{why}; the kernel delivers it to this box itself")),
            RouteType::Unicast => ("kernel", format!("{why}; the kernel forwards it by {}", chosen.text)),
            kind => ("none", format!("{why}; the kernel's route says {kind:?}").to_lowercase()),
        },
        Some(Err(error)) => ("none", format!("{why}; and the kernel does not forward it: {error}")),
        None => ("kernel", why.to_owned()),
    }
}

/// What is marked must come to a local route, too.
fn delivered(way: &Way, reason: String) -> Taken {
    match &way.routes.marked {
        Some(Ok(chosen)) if chosen.kind == RouteType::Local => ("relay", reason),
        Some(Ok(chosen)) => (
            "none",
            format!("{reason}; but with the mark it is routed by {}, and not to a local socket", chosen.text),
        ),
        Some(Err(error)) => ("none", format!("{reason}; but with the mark it has no route: {error}")),
        None => ("relay", reason),
    }
}

fn said_by_relay(judged: &Judged) -> String {
    match (&judged.intercept, &judged.relay) {
        (Some((name, _)), Some(origin)) => {
            format!("intercept {name} is for the relay ({origin}), {}", said(judged))
        }
        (Some((name, _)), None) => format!("intercept {name}, {}", said(judged)),
        (None, _) => "of an intercept that this file has not".to_owned(),
    }
}
