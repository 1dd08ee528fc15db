//! `verify_host`: whether the destination is an address of the name. Asked of the running gateway, which remembers names for a
//! minute, and else of the system's resolver, as the gateway would ask it: for as long as the connection would be held.

use std::net::IpAddr;
use std::time::Duration;

use weir_core::policy::{Action, Decision, Intercept, Protocol, VerifyHost};
use weir_core::verify::{self, Need, Verified};

use super::gateway::Gateway;
use super::{Layer, Question, Source, Step, policy};
use crate::resolve;

/// What `decision` becomes by the name's addresses; none while it depends on a name that is not said.
pub fn verify(
    intercept: &Intercept,
    question: &Question,
    gateway: &Gateway,
    decision: Decision,
    steps: &mut Vec<Step>,
) -> Option<Decision> {
    let mode = intercept.verify_host;
    if mode == VerifyHost::Off || matches!(decision.action, Action::Reset | Action::Drop) {
        return Some(decision);
    }
    let asked = "is the destination an address of the name (verify_host)?";
    let named = question.host.as_deref().filter(|_| question.protocol != Some(Protocol::Other));
    let Some(name) = named else {
        if question.protocol.is_some() || mode == VerifyHost::Log {
            return Some(decision);
        }
        let answer = "it depends on the name: say --host";
        steps.push(Step::new(Layer::Policy, Source::Configuration, asked, answer));
        return None;
    };
    let destination = question.to.ip();
    let hidden = intercept.is_hidden(&policy::facts(question, question.protocol, &[]));
    let (verified, step) = match verify::need(mode, name, hidden, destination) {
        Need::Nothing => return Some(decision),
        Need::Known(verified) => {
            let what = match verified {
                Verified::Matches => "yes: the name is that address",
                Verified::Differs => "no: the name is another address",
                Verified::Unknown => "not known: Encrypted ClientHello hides the name",
            };
            (verified, Step::new(Layer::Policy, Source::Configuration, asked, what))
        }
        Need::Ask { .. } => {
            let found = Found::of(name, gateway, Duration::from_nanos(intercept.hold_time.0));
            let verified = resolve::verified(&found.addresses, destination);
            (
                verified,
                Step::new(Layer::Policy, found.source, asked, found.words(verified)).detail([found.said]),
            )
        }
    };
    let passes = (mode == VerifyHost::Log && verified != Verified::Matches)
        .then(|| "verify_host = \"log\": it is logged or counted, and goes on".to_owned());
    steps.push(step.detail(passes));
    Some(verify::rule(mode, verified, intercept.unidentified, decision))
}

/// A name's addresses, and who said so.
struct Found {
    addresses: Vec<IpAddr>,
    source: Source,
    said: String,
}

impl Found {
    fn of(name: &str, gateway: &Gateway, patience: Duration) -> Self {
        let known = gateway.seen.as_ref().and_then(|seen| seen.addresses.clone());
        if let Some(addresses) = known {
            let said = "the gateway has looked it up, and remembers it for a while".to_owned();
            return Self { addresses, source: Source::Gateway, said };
        }
        let (addresses, said) = match resolve::look_up_within(name, patience) {
            Some(addresses) => (addresses, format!("getent ahosts {name}")),
            None => {
                let held = patience.as_millis();
                (
                    Vec::new(),
                    format!(
                        "no answer in the {held} ms for which the connection is held: getent ahosts {name}"
                    ),
                )
            }
        };
        Self { addresses, source: Source::Resolver, said }
    }

    fn words(&self, verified: Verified) -> String {
        let list: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        match verified {
            Verified::Matches => "yes".to_owned(),
            Verified::Differs => format!("no: the name has {}", list.join(", ")),
            Verified::Unknown => "not known: the name has no address".to_owned(),
        }
    }
}
