//! The intercept and the rule, by the compiled policy of weir-core: the code that workers and relay ask.

use weir_core::flow::key::Tuple;
use weir_core::ids::{InterceptId, PoolId, PortId};
use weir_core::policy::{
    Action, Cause, Decision, Facts, Handshake, Intercept, Limits, Policy, Pool, Protocol, Source as Address,
};

use super::gateway::Gateway;
use super::ingress::Ingress;
use super::{Layer, Question, Source, Step, names};

/// What the policy says of the connection.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// Why no intercept takes it, one sentence for each; empty when one does.
    pub misses: Vec<String>,
    /// Name and `file:line`.
    pub intercept: Option<(String, String)>,
    pub handshake: Option<Handshake>,
    /// Decided at the SYN: the relay takes it. The `file:line` of the rule, or of the intercept.
    pub relay: Option<String>,
    /// Whether the intercept may send what it answers to a pool, and so need not have a way to the destination.
    pub answers_and_sends: bool,
    /// The verdict; none while it depends on bytes that are not said.
    pub action: Option<Action>,
    /// The `file:line` of the rule.
    pub rule: Option<String>,
    /// What the verdict comes from, in words.
    pub cause: Option<String>,
    pub server: Option<std::net::SocketAddr>,
}

/// Asks the policy.
pub fn judge(
    policy: Option<&Policy>,
    ingress: &Ingress,
    gateway: &Gateway,
    question: &Question,
    steps: &mut Vec<Step>,
) -> Option<Judged> {
    let asked = "which intercept takes it?";
    let Some(policy) = policy else {
        let answer = "not asked: no configuration can be read; say -c FILE".to_owned();
        steps.push(step(asked, answer, Vec::new()));
        return None;
    };
    let found =
        ingress.number().and_then(|port| policy.intercept(port, question.to.ip(), question.to.port()));
    let Some((id, intercept)) = found.and_then(|id| policy.get(id).map(|intercept| (id, intercept))) else {
        let misses = misses(policy, ingress, question);
        steps.push(step(asked, "none".to_owned(), misses.clone()));
        return Some(Judged { misses, ..Judged::default() });
    };
    let answer = format!("{} ({})", intercept.name, intercept.origin);
    steps.push(step(asked, answer, settings(id, intercept, policy.limits)));
    let mut judged = Judged {
        intercept: Some((intercept.name.clone(), intercept.origin.clone())),
        handshake: Some(intercept.handshake),
        answers_and_sends: intercept.handshake == Handshake::Answer && intercept.sends(),
        ..Judged::default()
    };
    // A rule that took the SYN has decided.
    let decided = at_syn(intercept, question, &mut judged, steps);
    let decided = decided.or_else(|| by_content(intercept, question, steps));
    let decided = decided.and_then(|decision| names::verify(intercept, question, gateway, decision, steps));
    if let Some(decision) = decided {
        judged.action = Some(decision.action);
        judged.rule = rule_of(intercept, &decision);
        judged.cause = Some(words(intercept, &decision));
    }
    if let Some(Action::Send(pool)) = judged.action {
        let tuple = Tuple { src: question.from.into(), dst: question.to.into() };
        send(policy, pool, &tuple, gateway, &mut judged, steps);
    }
    Some(judged)
}

fn step(question: &str, answer: String, detail: Vec<String>) -> Step {
    Step::new(Layer::Policy, Source::Configuration, question, answer).detail(detail)
}

/// What each intercept lacks of the connection.
fn misses(policy: &Policy, ingress: &Ingress, question: &Question) -> Vec<String> {
    let of = |intercept: &Intercept| {
        let name = format!("intercept {} ({})", intercept.name, intercept.origin);
        let port = ingress.port.as_ref().filter(|(at, _)| intercept.from.contains(PortId(*at)));
        if port.is_none() {
            let from = ingress.port.as_ref().map_or("a device that is no port", |(_, name)| name);
            return format!("{name}: its `from` has not {from}");
        }
        if !ingress.is_of(intercept) {
            return match &ingress.vlan {
                Some(vlan) => format!("{name}: its `vlan` has not {}", vlan.sub.vlan),
                None => format!("{name}: its `vlan` has not what comes without a tag"),
            };
        }
        if !intercept.to().contains(question.to.ip()) {
            return format!("{name}: its `to` does not hold {}", question.to.ip());
        }
        let ports: Vec<String> = intercept.tcp().ranges().iter().map(range).collect();
        format!("{name}: its `tcp` has not {}, but {}", question.to.port(), ports.join(", "))
    };
    policy.intercepts().iter().map(of).collect()
}

fn range(range: &std::ops::RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        return range.start().to_string();
    }
    format!("{}-{}", range.start(), range.end())
}

fn settings(id: InterceptId, intercept: &Intercept, limits: Limits) -> Vec<String> {
    let (hold, time) = (intercept.hold_bytes, intercept.hold_time.0 / 1_000_000);
    let mut lines = vec![
        format!(
            "number {}, handshake {}, {} rules, otherwise {}, unidentified {}, verify_host {}",
            id.0,
            intercept.handshake.name(),
            intercept.rules().len(),
            intercept.otherwise.name(),
            intercept.unidentified.name(),
            intercept.verify_host.name()
        ),
        format!(
            "holds at most {hold} octets for {time} ms; full: {:?}; half-open connections of the box: at most {}",
            intercept.full, limits.half_open
        )
        .to_lowercase(),
    ];
    if limits.source.any() {
        lines.push(format!(
            "each source has limits ({:?}); beyond them: {}",
            limits.source,
            limits.source_over.name()
        ));
    }
    lines
}

/// The decision of a rule that takes the SYN.
fn at_syn(
    intercept: &Intercept,
    question: &Question,
    judged: &mut Judged,
    steps: &mut Vec<Step>,
) -> Option<Decision> {
    let (client, server, port) = (question.from.ip(), question.to.ip(), question.to.port());
    let asked = "what is decided at the SYN?";
    if intercept.handshake == Handshake::Relay {
        judged.relay = Some(intercept.origin.clone());
        let answer = format!("the relay takes it: handshake = \"relay\" ({})", intercept.origin);
        steps.push(step(asked, answer, Vec::new()));
        return None;
    }
    let found = intercept.relay_at_syn(client, server, port);
    let Some((id, rule)) = found.and_then(|id| Some((id, intercept.rule(id)?))) else {
        let answer = format!("nothing: handshake {}", intercept.handshake.name());
        steps.push(step(asked, answer, Vec::new()));
        return None;
    };
    judged.relay = Some(rule.origin.clone());
    steps.push(step(asked, format!("the relay takes it: the rule at {}", rule.origin), Vec::new()));
    Some(Decision { action: Action::Relay, cause: Cause::Rule(id) })
}

/// What the client says, as the rules see it.
pub(super) fn facts<'a>(
    question: &'a Question,
    protocol: Option<Protocol>,
    alpn: &'a [&'a [u8]],
) -> Facts<'a> {
    Facts {
        client: question.from.ip(),
        server: question.to.ip(),
        server_port: question.to.port(),
        protocol,
        host: question.host.as_deref(),
        ech: question.ech,
        alpn,
        hello_retry: question.hello_retry,
    }
}

/// The decision on the client's first bytes; none while it depends on some that are not said.
fn by_content(intercept: &Intercept, question: &Question, steps: &mut Vec<Step>) -> Option<Decision> {
    let alpn: Vec<&[u8]> = question.alpn.iter().map(|name| name.as_bytes()).collect();
    let decide = |protocol| intercept.decide(&facts(question, protocol, &alpn));
    let asked = "what do the rules say?";
    let all = [None, Some(Protocol::Tls), Some(Protocol::Http)].map(decide);
    let decision = match question.protocol {
        Some(protocol) => decide(Some(protocol)),
        // Without a word on the content there is an answer only where no content could change it.
        None if all.iter().all(|decision| *decision == all[0]) && !is_by_content(intercept, &all[0]) => {
            all[0]
        }
        None => {
            let lines =
                [("unidentified", all[0]), ("TLS without a name", all[1]), ("HTTP without a name", all[2])];
            let line =
                |(what, decision): &(&str, Decision)| format!("{what}: {}", words(intercept, decision));
            let answer = "it depends on the first bytes: say --host, --alpn or --protocol".to_owned();
            steps.push(step(asked, answer, lines.iter().map(line).collect()));
            return None;
        }
    };
    let known = format!(
        "for protocol {}, host {}, ALPN {:?}",
        question.protocol.map_or("any", Protocol::name),
        question.host.as_deref().unwrap_or("none"),
        question.alpn
    );
    let passes = !matches!(decision.action, Action::Reset | Action::Drop);
    let second = (question.hello_retry && passes && intercept.sends()).then(|| {
        "if the first hello led to another server than this second one, both ends are reset (hello-refused)".to_owned()
    });
    steps.push(step(asked, words(intercept, &decision), [known].into_iter().chain(second).collect()));
    Some(decision)
}

/// Where the rules stand that decide, `file:line`: the one that takes the SYN, or one for each content that is possible. None: no rule
/// does.
pub fn deciding(policy: &Policy, ingress: &Ingress, question: &Question) -> Vec<Option<String>> {
    let (client, server, port) = (question.from.ip(), question.to.ip(), question.to.port());
    let found = ingress.number().and_then(|from| policy.intercept(from, server, port));
    let Some(intercept) = found.and_then(|id| policy.get(id)) else { return Vec::new() };
    if intercept.handshake != Handshake::Relay
        && let Some(rule) = intercept.relay_at_syn(client, server, port)
    {
        return vec![intercept.rule(rule).map(|rule| rule.origin.clone())];
    }
    let alpn: Vec<&[u8]> = question.alpn.iter().map(|name| name.as_bytes()).collect();
    let decide = |protocol| rule_of(intercept, &intercept.decide(&facts(question, protocol, &alpn)));
    match question.protocol {
        Some(protocol) => vec![decide(Some(protocol))],
        None => [None, Some(Protocol::Tls), Some(Protocol::Http)].map(decide).into(),
    }
}

/// Whether a rule before the one that decided looks at content, so that a name could make another of it.
fn is_by_content(intercept: &Intercept, decision: &Decision) -> bool {
    let before = match decision.cause {
        Cause::Rule(id) => usize::from(id.0),
        _ => intercept.rules().len(),
    };
    intercept.rules().iter().take(before).any(|rule| rule.by_content())
}

fn rule_of(intercept: &Intercept, decision: &Decision) -> Option<String> {
    match decision.cause {
        Cause::Rule(id) => intercept.rule(id).map(|rule| rule.origin.clone()),
        _ => None,
    }
}

fn words(intercept: &Intercept, decision: &Decision) -> String {
    let action = decision.action.name();
    match decision.cause {
        Cause::Rule(_) => {
            let origin = rule_of(intercept, decision).unwrap_or_default();
            format!("the rule at {origin} says {action}")
        }
        Cause::Otherwise => format!("no rule takes it, and `otherwise` of {} says {action}", intercept.name),
        Cause::Unidentified => {
            format!("no rule takes it, and `unidentified` of {} says {action}", intercept.name)
        }
        Cause::HelloRetry => format!("its second hello would lead it elsewhere: {action}"),
        Cause::HostMismatch => {
            format!(
                "host-mismatch: the destination is not an address of the name, and `verify_host` of {} says {action}",
                intercept.name
            )
        }
        Cause::HostUnknown => {
            format!(
                "host-unknown: the name has no known address, and with `verify_host` the `unidentified` of {} says {action}",
                intercept.name
            )
        }
    }
}

fn send(
    policy: &Policy,
    id: PoolId,
    tuple: &Tuple,
    gateway: &Gateway,
    judged: &mut Judged,
    steps: &mut Vec<Step>,
) {
    let Some(pool) = policy.pool(id) else { return };
    let picked = pool.pick(tuple, None).and_then(|id| pool.server(id));
    judged.server = picked.map(|server| server.addr);
    let state = |server: &weir_core::policy::Server| match gateway.is_running() {
        true => server.effective().name(),
        false => "state not known",
    };
    let answer = match picked {
        Some(server) => format!("{} ({}) of pool {}", server.addr, state(server), pool.name),
        None => format!("none: pool {} has no server of the client's address family", pool.name),
    };
    let server = |server: &weir_core::policy::Server| {
        format!("{}: weight {}, {}", server.addr, server.weight, state(server))
    };
    let lines = pool.servers.iter().map(server).chain([how(pool)]).collect();
    steps.push(step("which server does the pool pick?", answer, lines));
}

fn how(pool: &Pool) -> String {
    let source = match pool.source {
        Address::Client => "the server sees the client's address".to_owned(),
        Address::Gateway => format!("the server sees the gateway's, from ports {}", range(&pool.ports)),
    };
    let proxy = pool.proxy.map_or("no PROXY header", |proxy| proxy.name());
    format!("balance {:?} by {:?}; {source}; PROXY: {proxy}", pool.balance, pool.hash)
}
