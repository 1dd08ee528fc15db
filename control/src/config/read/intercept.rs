//! `[[intercept]]`.

use std::ops::RangeInclusive;

use ipnet::IpNet;
use weir_core::ids::{MAX_INTERCEPTS, Nanos, PortId, PortSet};
use weir_core::policy::{
    Action, Full, Handshake, InterceptSpec, MAX_RULES, Midstream, Quic, SynCookies, VerifyHost, VlanChoice,
};
use weir_core::vlan::IDS;

use super::lists::ListFiles;
use super::{InterceptSpans, Seen, name, rule, sections, within};
use crate::config::model::{Pool, Port};
use crate::config::section::{Item, Reader, Section};
use crate::config::{check, values};

const KEYS: [&str; 15] = [
    "name",
    "from",
    "vlan",
    "to",
    "tcp",
    "handshake",
    "syn_cookies",
    "hold",
    "full",
    "quic",
    "verify_host",
    "otherwise",
    "unidentified",
    "midstream",
    "rules",
];

/// Fewest octets hold a small ClientHello; more than the most cannot come, since the window that a SYN-ACK grants is
/// never scaled (RFC 7323, section 2.2) and the server says nothing more before the verdict.
const HOLD_BYTES: RangeInclusive<u64> = 512..=64 * 1024;
const HOLD_TIME: RangeInclusive<u64> = 10_000_000..=60_000_000_000;
/// The port of HTTPS, and of QUIC for HTTP/3.
const HTTPS: u16 = 443;
const GRACE: RangeInclusive<u64> = 0..=24 * 3_600_000_000_000;

/// What intercepts refer to.
#[derive(Debug)]
pub struct Context<'c> {
    pub ports: &'c [Port],
    pub pools: &'c [Pool],
    pub lists: ListFiles,
}

/// All intercepts, and where each stands.
pub fn read_all(
    reader: &mut Reader<'_>,
    top: &Section<'_>,
    context: &mut Context<'_>,
) -> (Vec<InterceptSpec>, Vec<InterceptSpans>) {
    let mut names = Seen::default();
    let sections = sections(reader, top, "intercept", MAX_INTERCEPTS, &KEYS);
    sections.iter().map(|section| read(reader, section, context, &mut names)).unzip()
}

fn read(
    reader: &mut Reader<'_>,
    section: &Section<'_>,
    context: &mut Context<'_>,
    names: &mut Seen,
) -> (InterceptSpec, InterceptSpans) {
    let before = reader.report.errors();
    let mut spec = InterceptSpec::new(&name(reader, section, names));
    spec.origin = reader.origin(&section.span);
    if let Some(item) = reader.require(section, "from") {
        spec.from = from(reader, &item, context.ports);
    }
    if let Some(item) = section.get("vlan") {
        spec.vlan = vlan(reader, &item);
    }
    if let Some(item) = reader.require(section, "to") {
        spec.to = prefixes(reader, &item);
    }
    let mut spans = InterceptSpans { section: section.span.clone(), tcp: 0..0, rules: Vec::new() };
    if let Some(item) = reader.require(section, "tcp") {
        spec.tcp = ports(reader, &item);
        spans.tcp = item.span;
    }
    handshake(reader, section, &mut spec);
    hold(reader, section, &mut spec);
    quic(reader, section, &mut spec);
    verify_host(reader, section, &mut spec);
    verdicts(reader, section, &mut spec);
    if let Some(item) = section.get("rules") {
        let sections = reader.tables(&item, "a rule", &rule::KEYS);
        if let Some(first) = sections.get(MAX_RULES) {
            let message = format!("{} rules; at most {MAX_RULES} are allowed", sections.len());
            reader.error(&first.span, message + " (`host_file` holds long lists of names)");
        }
        spec.rules = sections.iter().map(|rule| rule::read(reader, rule, context, spec.handshake)).collect();
        spans.rules = sections.into_iter().map(|rule| rule.span).collect();
    }
    if reader.report.errors() == before {
        check::intercept(reader, &spec, &spans);
    }
    (spec, spans)
}

/// `handshake`, `syn_cookies`.
fn handshake(reader: &mut Reader<'_>, section: &Section<'_>, spec: &mut InterceptSpec) {
    if let Some(item) = section.get("handshake") {
        let choices = [Handshake::Through, Handshake::Answer, Handshake::Relay]
            .map(|handshake| (handshake.name(), handshake));
        spec.handshake = reader.choice(&item, &choices).unwrap_or(spec.handshake);
    }
    if let Some(item) = section.get("syn_cookies") {
        let choices = [("auto", SynCookies::Auto), ("always", SynCookies::Always), ("off", SynCookies::Off)];
        spec.syn_cookies = reader.choice(&item, &choices).unwrap_or(spec.syn_cookies);
        if spec.handshake != Handshake::Answer && spec.syn_cookies != SynCookies::Auto {
            let message = "only `handshake = \"answer\"` answers SYNs, so this changes nothing";
            reader.warn(&item.span, format!("{}: {message}", item.what()));
        }
    }
}

/// `hold`, `full`.
fn hold(reader: &mut Reader<'_>, section: &Section<'_>, spec: &mut InterceptSpec) {
    if let Some(item) = section.get("hold")
        && let Some(hold) = reader.table(&item, "hold", &["bytes", "time"])
    {
        if let Some(item) = hold.get("bytes") {
            let size =
                reader.parsed(&item, |text| within(text, values::size(text)?, HOLD_BYTES, "512B to 64KiB"));
            spec.hold_bytes = size.and_then(|size| u32::try_from(size).ok()).unwrap_or(spec.hold_bytes);
        }
        if let Some(item) = hold.get("time") {
            let time = |text: &str| within(text, values::time(text)?.0, HOLD_TIME, "10ms to 60s").map(Nanos);
            spec.hold_time = reader.parsed(&item, time).unwrap_or(spec.hold_time);
        }
    }
    if let Some(item) = section.get("full") {
        let full = reader.choice(&item, &[("kernel", Full::Kernel), ("drop", Full::Drop)]);
        spec.full = full.unwrap_or(spec.full);
    }
}

/// `quic`, once the ports are known.
fn quic(reader: &mut Reader<'_>, section: &Section<'_>, spec: &mut InterceptSpec) {
    let Some(item) = section.get("quic") else { return };
    let quic = reader.choice(&item, &[("reject", Quic::Reject), ("pass", Quic::Pass)]);
    spec.quic = quic.unwrap_or(spec.quic);
    if spec.quic == Quic::Reject && !spec.tcp.iter().any(|range| range.contains(&HTTPS)) {
        let message =
            format!("`tcp` has no {HTTPS}, so clients fall back to connections that are not intercepted");
        reader.warn(&item.span, format!("{}: {message}", item.what()));
    }
}

/// `verify_host`.
fn verify_host(reader: &mut Reader<'_>, section: &Section<'_>, spec: &mut InterceptSpec) {
    if let Some(item) = section.get("verify_host") {
        let choices = [VerifyHost::Off, VerifyHost::Log, VerifyHost::Reset].map(|mode| (mode.name(), mode));
        spec.verify_host = reader.choice(&item, &choices).unwrap_or(spec.verify_host);
    }
}

/// `otherwise`, `unidentified`, `midstream`.
fn verdicts(reader: &mut Reader<'_>, section: &Section<'_>, spec: &mut InterceptSpec) {
    if let Some(item) = section.get("otherwise") {
        spec.otherwise = verdict(reader, &item).unwrap_or(spec.otherwise);
    }
    if let Some(item) = section.get("unidentified") {
        spec.unidentified = verdict(reader, &item).unwrap_or(spec.unidentified);
    }
    if let Some(item) = section.get("midstream")
        && let Some(table) = reader.table(&item, "midstream", &["action", "grace"])
    {
        spec.midstream = midstream(reader, &table, spec.midstream);
    }
}

fn midstream(reader: &mut Reader<'_>, table: &Section<'_>, default: Midstream) -> Midstream {
    let mut midstream = default;
    if let Some(item) = table.get("action") {
        midstream.action = verdict(reader, &item).unwrap_or(default.action);
        if midstream.action == Action::Allow {
            let message = "packets of connections that weir has not seen begin will pass without a verdict";
            reader.warn(&item.span, format!("`action` in midstream: `allow`: {message}"));
        }
    }
    if let Some(item) = table.get("grace") {
        let grace = |text: &str| within(text, values::time(text)?.0, GRACE, "0s to 24h").map(Nanos);
        midstream.grace = reader.parsed(&item, grace).unwrap_or(default.grace);
    }
    midstream
}

/// An action where there is no rule to carry a pool, and where the SYN is long gone.
fn verdict(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Action> {
    let choices = [Action::Allow, Action::Reset, Action::Drop].map(|action| (action.name(), action));
    reader.choice(item, &choices)
}

fn from(reader: &mut Reader<'_>, item: &Item<'_>, ports: &[Port]) -> PortSet {
    let mut set = PortSet::default();
    for element in reader.list(item) {
        let Some(name) = reader.string(&element) else { continue };
        match (0..).zip(ports).find(|(_, port)| port.name == name) {
            Some((place, _)) => set.insert(PortId(place)),
            None => {
                let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
                let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                reader.wrong::<()>(&element, &format!("no [[port]] is named `{name}`; there are: {there}"));
            }
        }
    }
    set
}

/// VLANs of the ports: numbers, ranges of them, stacks of two, `untagged`; or `any`.
fn vlan(reader: &mut Reader<'_>, item: &Item<'_>) -> VlanChoice {
    let mut choice = VlanChoice::NONE;
    for element in reader.list(item) {
        if element.is_integer() {
            let id = reader.integer(&element, u32::from(*IDS.start())..=u32::from(*IDS.end()));
            choice.ids.extend(id.and_then(|id| u16::try_from(id).ok()).map(|id| id..=id));
            continue;
        }
        if !element.is_string() {
            reader.wrong_type::<()>(
                &element,
                "a VLAN like 10, \"100-199\", \"100.10\", \"untagged\", or \"any\"",
            );
            continue;
        }
        match reader.parsed(&element, values::vlan) {
            Some(values::Vlans::Ids(ids)) => choice.ids.push(ids),
            Some(values::Vlans::Stacked(outer, inner)) => choice.stacked.push((outer, inner)),
            Some(values::Vlans::Untagged) => choice.untagged = true,
            Some(values::Vlans::Any) => (choice.untagged, choice.all) = (true, true),
            None => {}
        }
    }
    choice
}

/// A list of prefixes.
pub fn prefixes(reader: &mut Reader<'_>, item: &Item<'_>) -> Vec<IpNet> {
    let elements = reader.list(item);
    elements.iter().filter_map(|element| reader.parsed(element, values::prefix)).collect()
}

/// A list of TCP ports and ranges of them.
pub fn ports(reader: &mut Reader<'_>, item: &Item<'_>) -> Vec<RangeInclusive<u16>> {
    let mut ranges = Vec::new();
    for element in reader.list(item) {
        let range = if element.is_integer() {
            let port = reader.integer(&element, 1..=65535).and_then(|port| u16::try_from(port).ok());
            port.map(|port| port..=port)
        } else if element.is_string() {
            reader.parsed(&element, values::ports)
        } else {
            reader.wrong_type(&element, "a port or a range like \"8000-8099\"")
        };
        ranges.extend(range);
    }
    ranges
}
