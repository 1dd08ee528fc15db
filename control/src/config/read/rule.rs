//! One of an intercept's `rules`.

use weir_core::ids::PoolId;
use weir_core::pace::Rates;
use weir_core::policy::{Action, Handshake, Protocol, RuleSpec};

use super::intercept::{Context, ports, prefixes};
use crate::config::section::{Item, Reader, Section};
use crate::config::values;

pub const KEYS: [&str; 15] = [
    "host",
    "host_file",
    "ech",
    "hello_retry",
    "from",
    "from_file",
    "to",
    "to_file",
    "tcp",
    "alpn",
    "protocol",
    "action",
    "pool",
    "rate",
    "connection_rate",
];
/// Those that look at what the client sends.
const CONTENT: [&str; 6] = ["host", "host_file", "ech", "hello_retry", "alpn", "protocol"];

/// Longest ALPN protocol name (RFC 7301, section 3.1), in octets.
const MAX_ALPN: usize = 255;

/// What a rule may look at where it says `relay` and the handshake is not `relay`.
const RELAY_HINT: &str = "`relay` is decided at the SYN, where there is no content yet: a rule that says so may match \
                          only on `from`, `from_file`, `to`, `to_file` and `tcp`, unless the intercept's handshake is \
                          `relay`";

/// Of all connections of a rule together, and of each.
const RATES: [&str; 2] = ["rate", "connection_rate"];

const RATE_HINT: &str = "the fast road stores nothing that could wait, so bandwidth is bounded on the relay only: write \
                         `handshake = \"relay\"` on the intercept, or let the rule say `action = \"relay\"`";

pub fn read(
    reader: &mut Reader<'_>,
    section: &Section<'_>,
    context: &mut Context<'_>,
    handshake: Handshake,
) -> RuleSpec {
    let mut rule = RuleSpec::new(action(reader, section, context).unwrap_or(Action::Allow));
    rule.origin = reader.origin(&section.span);
    context.lists.hosts(reader, section, &mut rule);
    rule.ech = section.get("ech").and_then(|item| reader.boolean(&item));
    rule.hello_retry = section.get("hello_retry").and_then(|item| reader.boolean(&item));
    rule.from = section.get("from").map(|item| prefixes(reader, &item)).unwrap_or_default();
    rule.from_lists = context.lists.prefixes(reader, section, "from_file");
    rule.to_lists = context.lists.prefixes(reader, section, "to_file");
    rule.to = section.get("to").map(|item| prefixes(reader, &item)).unwrap_or_default();
    rule.tcp = section.get("tcp").map(|item| ports(reader, &item)).unwrap_or_default();
    rule.alpn = section.get("alpn").map(|item| alpn(reader, &item)).unwrap_or_default();
    rule.protocol = section.get("protocol").and_then(|item| protocol(reader, &item));
    if rule.action == Action::Relay && handshake != Handshake::Relay {
        for item in CONTENT.iter().filter_map(|key| section.get(key)) {
            reader.error(&item.key, format!("{}: {RELAY_HINT}", item.what()));
        }
    }
    rule.rates = rates(reader, section, rule.action, handshake);
    contradictions(reader, section, &rule);
    rule
}

/// Bandwidth is kept on the relay: on the fast road nothing is stored that could wait.
fn rates(reader: &mut Reader<'_>, section: &Section<'_>, action: Action, handshake: Handshake) -> Rates {
    for key in RATES {
        let Some(item) = section.get(key) else { continue };
        let what = item.what();
        if matches!(action, Action::Reset | Action::Drop) {
            reader.error(&item.key, format!("{what}: a rule that lets nothing pass needs no bandwidth"));
        } else if handshake != Handshake::Relay && action != Action::Relay {
            reader.error(&item.key, format!("{what}: {RATE_HINT}"));
        }
    }
    let [rule, connection] =
        RATES.map(|key| section.get(key).and_then(|item| reader.parsed(&item, values::rate)));
    Rates { rule, connection }
}

fn action(reader: &mut Reader<'_>, section: &Section<'_>, context: &Context<'_>) -> Option<Action> {
    let item = reader.require(section, "action");
    let pool = section.get("pool");
    let send = Action::Send(PoolId(0));
    let choices = [Action::Allow, Action::Reset, Action::Drop, send, Action::Relay]
        .map(|action| (action.name(), action));
    let action = item.as_ref().and_then(|item| reader.choice(item, &choices));
    match (action, pool) {
        (Some(Action::Send(_)), Some(pool)) => find_pool(reader, &pool, context).map(Action::Send),
        (Some(Action::Send(_)), None) => {
            reader
                .error(&section.span, "a rule with `action = \"send\"` has no `pool`, which must be written");
            None
        }
        (Some(_), Some(pool)) => {
            reader.error(&pool.key, "`pool` in a rule is only for `action = \"send\"`");
            action
        }
        (action, _) => action,
    }
}

fn find_pool(reader: &mut Reader<'_>, item: &Item<'_>, context: &Context<'_>) -> Option<PoolId> {
    let name = reader.string(item)?;
    match (0..).map(PoolId).zip(context.pools).find(|(_, pool)| pool.spec.name == name) {
        Some((id, _)) => Some(id),
        None => {
            let names: Vec<&str> = context.pools.iter().map(|pool| pool.spec.name.as_str()).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            reader.wrong(item, &format!("no [[pool]] is named `{name}`; there are: {there}"))
        }
    }
}

fn alpn(reader: &mut Reader<'_>, item: &Item<'_>) -> Vec<String> {
    let name = |text: &str| match text.len() {
        1..=MAX_ALPN => Ok(text.to_owned()),
        octets => Err(format!("an ALPN name has 1 to {MAX_ALPN} octets, `{text}` has {octets}")),
    };
    let elements = reader.list(item);
    elements.iter().filter_map(|element| reader.parsed(element, name)).collect()
}

fn protocol(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Protocol> {
    reader.choice(
        item,
        &[Protocol::Tls, Protocol::Http, Protocol::Other].map(|protocol| (protocol.name(), protocol)),
    )
}

/// Conditions that no connection meets together.
fn contradictions(reader: &mut Reader<'_>, section: &Section<'_>, rule: &RuleSpec) {
    let never = "so the rule would never match";
    if rule.protocol == Some(Protocol::Other) && rule.by_host() {
        reader
            .error(&section.span, format!("a rule with `protocol = \"other\"` cannot have a host, {never}"));
    }
    if rule.protocol.is_some_and(|protocol| protocol != Protocol::Tls) && !rule.alpn.is_empty() {
        reader.error(&section.span, format!("`alpn` is found in TLS only, {never}"));
    }
    let hidden = rule.ech == Some(true);
    if hidden && rule.protocol.is_some_and(|protocol| protocol != Protocol::Tls) {
        reader.error(&section.span, format!("`ech = true` is found in TLS only, {never}"));
    }
    if rule.protocol == Some(Protocol::Other) && rule.ech == Some(false) {
        reader.error(&section.span, format!("a rule with `protocol = \"other\"` cannot have `ech`, {never}"));
    }
    let second = rule.hello_retry == Some(true);
    if second && rule.protocol == Some(Protocol::Http) {
        reader.error(&section.span, format!("`hello_retry = true` is found in TLS only, {never}"));
    }
    if second && matches!(rule.action, Action::Send(_)) {
        reader.error(
            &section.span,
            "a connection cannot be given to another server after its first hello: with `hello_retry = true` a rule says \
             `allow`, `reset` or `drop`",
        );
    }
    let common = [true, false].iter().any(|v4| rule.takes_from(*v4) && rule.takes_to(*v4));
    if !common && !rule.has_empty_list() {
        reader.error(
            &section.span,
            format!("`from` and `to` of the rule have no address family in common, {never}"),
        );
    }
}
