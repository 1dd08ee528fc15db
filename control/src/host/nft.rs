//! The table `inet weir`: as text that nft reads, and as what nft says is there.
//!
//! The text is the only rendering: what `weir plan` prints is what `apply` feeds to `nft -f -` in one transaction. What is
//! there is nft's text as well ([`listing`]), and it is compared with what the same nft prints of the wanted table when that is
//! loaded into an empty namespace ([`kernel`]): so a rule that somebody rewrote is seen, however nft spells it. nft's JSON is
//! not used: it has no table comments, and the comment is weir's tag.
//!
//! The order in the chain matters. SYNs first, and of these the ones to own addresses: nothing below can lock the operator out,
//! and only a SYN costs the lookup of its address. tproxy looks for an established socket itself and, unlike the socket match,
//! gives a SYN that hits a TIME_WAIT socket to the listener. Then the sockets of the relay: the listener is a transparent socket too and, being bound to no address, would
//! match every packet to its port number anywhere; `socket wildcard 0` leaves it out, but cannot see sockets in SYN_RECV or
//! TIME_WAIT (net/netfilter/nft_socket.c), so only packets to that port number are asked.
//!
//! QUIC that is refused is in a chain of its own, at the forward hook: what is for the box itself never comes there.

mod kernel;
mod listing;
mod shut;

use std::fmt::Write as _;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::plan::{Line, Status};
use super::spec::Family;
use super::{Fail, HostSpec, InterceptSpec};

pub use kernel::{check, delete, list, read, rendered, run_script};
pub use listing::SeenTable;

/// Family and name of the table.
pub const TABLE: &str = "inet weir";

/// The table's comment begins with this word: the tag.
const TAG: &str = "weir ";

/// In the comments of rules that drop what weir is to intercept and cannot.
const FAIL_CLOSED: &str = "fail closed";

/// In those of them that are about ports which steering does not see.
const LOST: &str = "lost port";

/// In those about other devices that have the names of ports.
const OTHER: &str = "another device";

/// Matches what is not for the box itself.
const NOT_OWN: &str = "fib daddr type != { local, broadcast, anycast, multicast }";

/// Elements in one `add element` command.
const ELEMENTS_PER_COMMAND: usize = 256;

/// The UDP port of HTTP over QUIC.
const QUIC: u16 = 443;

/// Longest part of an intercept's name that goes into a comment (nft allows 128 octets in all).
const NAME_IN_COMMENT: usize = 60;

/// The wanted table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Eight hex digits that stand for everything below: in the table's comment, so that a later run knows its own rules.
    pub fingerprint: String,
    sets: Vec<(String, &'static str, Vec<IpNet>)>,
    rules: Vec<Rule>,
}

/// The chains in the order in which nft lists them: that of their making.
const CHAINS: [&str; 3] = ["prerouting", "syn", "forward"];

/// What one command makes.
enum Part<'a> {
    Table,
    /// A chain, by its heading in nft's listing.
    Section(String),
    /// A set and what is in it.
    Set(String),
    Rule(&'a Rule),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    chain: &'static str,
    text: String,
    comment: String,
}

impl Ruleset {
    /// The table that `spec` asks for.
    pub fn of(spec: &HostSpec) -> Self {
        let mut sets = Vec::new();
        let mut rules = own_rules(spec);
        for (index, intercept) in spec.intercepts.iter().enumerate() {
            for family in Family::BOTH {
                intercept_rules(spec, index, intercept, family, &mut sets, &mut rules);
            }
        }
        rules.extend(relay_rules(spec));
        rules.extend(unseen_rules(spec));
        Self::new(sets, rules)
    }

    fn new(sets: Vec<(String, &'static str, Vec<IpNet>)>, rules: Vec<Rule>) -> Self {
        let mut ruleset = Self { fingerprint: String::new(), sets, rules };
        let mut digest = Sha256::new();
        for command in ruleset.commands() {
            digest.update(command.as_bytes());
            digest.update(b"\n");
        }
        for octet in digest.finalize().iter().take(4) {
            let _ = write!(ruleset.fingerprint, "{octet:02x}");
        }
        ruleset
    }

    /// One command of nft each, without the word `nft`.
    pub fn commands(&self) -> Vec<String> {
        self.parts().into_iter().map(|(_, command)| command).collect()
    }

    /// Every command and the part of the table that it makes.
    fn parts(&self) -> Vec<(Part<'_>, String)> {
        let chain = |name, head: &str| {
            (Part::Section(format!("chain {name}")), format!("add chain {TABLE} {name}{head}"))
        };
        let table = format!("add table {TABLE} {{ comment \"{TAG}{}\"; }}", self.fingerprint);
        let mut parts = vec![(Part::Table, table)];
        let has = |name| self.rules.iter().any(|rule| rule.chain == name);
        if has("prerouting") {
            parts.push(chain(
                "prerouting",
                " { type filter hook prerouting priority mangle; policy accept; }",
            ));
        }
        if has("syn") {
            parts.push(chain("syn", ""));
        }
        if has("forward") {
            parts.push(chain("forward", " { type filter hook forward priority filter; policy accept; }"));
        }
        for (name, kind, prefixes) in &self.sets {
            let part = || Part::Set(format!("set {name}"));
            parts.push((
                part(),
                format!("add set {TABLE} {name} {{ type {kind}; flags interval; auto-merge; }}"),
            ));
            for chunk in prefixes.chunks(ELEMENTS_PER_COMMAND) {
                parts.push((part(), format!("add element {TABLE} {name} {{ {} }}", join(chunk))));
            }
        }
        for rule in &self.rules {
            let command =
                format!("add rule {TABLE} {} {} comment \"{}\"", rule.chain, rule.text, rule.comment);
            parts.push((Part::Rule(rule), command));
        }
        parts
    }

    /// How each command stands. `wanted`: what nft makes of this very table; without it, rules are known by their comments.
    pub fn lines(&self, seen: Option<&SeenTable>, wanted: Option<&SeenTable>) -> Vec<Line> {
        let all = |status| move |_: &Part<'_>| status;
        let statuses: Box<dyn Fn(&Part<'_>) -> Status> = match seen {
            None => Box::new(all(Status::Missing)),
            Some(seen) if !seen.is_ours() => Box::new(all(Status::Foreign)),
            Some(seen) if self.matches(seen, wanted) => Box::new(all(Status::Present)),
            Some(seen) => Box::new(move |part| self.part_status(part, seen, wanted)),
        };
        self.parts()
            .into_iter()
            .map(|(part, command)| Line::new(format!("nft '{command}'"), statuses(&part)))
            .collect()
    }

    fn part_status(&self, part: &Part<'_>, seen: &SeenTable, wanted: Option<&SeenTable>) -> Status {
        let found = |is_same: bool, is_there: bool| match (is_same, is_there) {
            (true, _) => Status::Present,
            (false, true) => Status::Conflicting,
            (false, false) => Status::Missing,
        };
        match part {
            Part::Table => found(seen.comment == Some(format!("{TAG}{}", self.fingerprint)), true),
            Part::Section(name) => {
                let head = |table: &SeenTable| table.head_of(name).map(str::to_owned);
                let there = seen.sections.contains_key(name);
                found(there && wanted.is_none_or(|wanted| head(wanted) == head(seen)), there)
            }
            Part::Set(name) => {
                let there = seen.sections.contains_key(name);
                found(there && wanted.is_none_or(|w| w.sections.get(name) == seen.sections.get(name)), there)
            }
            Part::Rule(rule) => {
                let of = |table: &SeenTable| table.rule(rule.chain, &rule.comment).map(str::to_owned);
                let now = of(seen);
                found(now.is_some() && wanted.is_none_or(|wanted| of(wanted) == now), now.is_some())
            }
        }
    }

    /// Whether `seen` is this very table. Without `wanted` (see [`Self::lines`]) somebody who rewrites a rule and keeps its
    /// comment goes unnoticed.
    pub fn matches(&self, seen: &SeenTable, wanted: Option<&SeenTable>) -> bool {
        if let Some(wanted) = wanted {
            return wanted.is_same(seen);
        }
        let chain = |name| self.rules.iter().filter(move |r| r.chain == name);
        let rules: Vec<String> =
            CHAINS.into_iter().flat_map(chain).map(|r| format!("{}: {}", r.chain, r.comment)).collect();
        let seen_rules: Vec<String> = CHAINS.into_iter().flat_map(|name| seen.comments(name)).collect();
        let mut sets: Vec<String> = self.sets.iter().map(|(name, ..)| format!("set {name}")).collect();
        sets.sort_unstable();
        seen.comment.as_deref() == Some(&format!("{TAG}{}", self.fingerprint))
            && rules == seen_rules
            && seen.sections.keys().filter(|name| name.starts_with("set ")).eq(sets.iter())
    }

    /// Replaces the table, whatever was in it, in one transaction. Returns the process id of the nft that did it: the kernel
    /// announces the change under it.
    ///
    /// # Errors
    /// Why nft or the kernel refused.
    pub fn load(&self) -> Result<u32, String> {
        run_script(&self.transaction(), &[]).map_err(|e| e.to_string())
    }

    /// What `nft -f -` reads to get from any table `inet weir`, or none, to this one.
    pub fn transaction(&self) -> String {
        format!("add table {TABLE}\ndelete table {TABLE}\n{}\n", self.commands().join("\n"))
    }
}

/// What is said of a table of that name without weir's tag.
pub fn foreign() -> String {
    format!("a table {TABLE} is there that weir did not make: rename it or delete it")
}

fn own_rules(spec: &HostSpec) -> Vec<Rule> {
    let rule =
        |chain, text: &str, comment: &str| Rule { chain, text: text.to_owned(), comment: comment.to_owned() };
    let mut rules = vec![rule("prerouting", "meta l4proto != tcp return", "only TCP is intercepted")];
    if !spec.intercepts.is_empty() {
        let syn = "tcp flags & (fin | syn | rst | ack) == syn jump syn";
        rules.push(rule("prerouting", syn, "new connections"));
        let own = "fib daddr type { local, broadcast, anycast, multicast } accept";
        rules.push(rule("syn", own, "own addresses are left alone"));
    }
    rules
}

/// Established flows of the relay, both legs.
fn relay_rules(spec: &HostSpec) -> Vec<Rule> {
    let (mark, port) = (set_mark(spec), spec.listen);
    let rule = |text: String, comment: &str| Rule { chain: "prerouting", text, comment: comment.to_owned() };
    vec![
        rule(format!("tcp dport != {port} socket transparent 1 {mark} accept"), "flows of the relay"),
        rule(
            format!("tcp dport {port} socket transparent 1 socket wildcard 0 {mark} accept"),
            "flows of the relay, but not its listener",
        ),
    ]
}

/// Sets the bits of the mask and keeps the others.
fn set_mark(spec: &HostSpec) -> String {
    if spec.mask == u32::MAX {
        return format!("meta mark set {:#010x}", spec.mark);
    }
    format!("meta mark set meta mark & {:#010x} | {:#010x}", !spec.mask, spec.mark)
}

fn intercept_rules(
    spec: &HostSpec,
    index: usize,
    intercept: &InterceptSpec,
    family: Family,
    sets: &mut Vec<(String, &'static str, Vec<IpNet>)>,
    rules: &mut Vec<Rule>,
) {
    let Some(Match { daddr, set, ports }) = match_of(index, intercept, family) else { return };
    let (ip, words, icmp) = match family {
        Family::V4 => ("ip", "IPv4", "icmp"),
        Family::V6 => ("ip6", "IPv6", "icmpv6"),
    };
    let clients: Vec<&String> = intercept.from.iter().collect();
    if clients.is_empty() && spec.relay_tun.is_none() {
        // Its VLANs have no sub-interface yet.
        return;
    }
    sets.extend(set);
    let devices = clients.iter().copied().chain(&spec.relay_tun);
    let matches = format!("{} {daddr} {ports}", of_devices(devices));
    let name = name_of(intercept);
    let rule = |text, comment| Rule { chain: "syn", text, comment };
    // Without a listener the tproxy expression ends its rule, and the next one decides.
    rules.push(rule(
        format!("{matches} tproxy {ip} to :{} {} accept", spec.listen, set_mark(spec)),
        format!("{name} {words}"),
    ));
    if spec.fail == Fail::Closed {
        rules.push(rule(format!("{matches} drop"), format!("{name} {words}, no listener: {FAIL_CLOSED}")));
    }
    if intercept.reject_quic && !clients.is_empty() {
        let text = format!(
            "{} {daddr} udp dport {QUIC} counter reject with {icmp} type port-unreachable",
            of_devices(clients.into_iter())
        );
        rules.push(Rule { chain: "forward", text, comment: format!("{name} {words}, QUIC") });
    }
}

/// On a box that fails closed: what comes on of connections by a device that steering does not see, after those of the relay. That is a
/// port that is lost, and another device of a port's name: while no weir runs, nobody tells of a network card that is removed and added
/// again. No worker looks at it, and what their clients have yet to say was not judged.
fn unseen_rules(spec: &HostSpec) -> Vec<Rule> {
    let mut rules = Vec::new();
    let indexes = spec.indexes.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    for (index, intercept) in spec.intercepts.iter().enumerate().filter(|_| spec.fail == Fail::Closed) {
        let lost: Vec<&String> = intercept.from.iter().filter(|device| spec.lost.contains(device)).collect();
        for (family, words) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
            let Some(Match { daddr, ports, .. }) = match_of(index, intercept, family) else { continue };
            let mut drop = |from: String, what: &str| {
                let text = format!("{from} {daddr} {ports} {NOT_OWN} drop");
                let comment = format!("{} {words}, {what}: {FAIL_CLOSED}", name_of(intercept));
                rules.push(Rule { chain: "prerouting", text, comment });
            };
            if !lost.is_empty() {
                drop(of_devices(lost.iter().copied()), LOST);
            }
            if !indexes.is_empty() && !intercept.from.is_empty() {
                drop(format!("{} iif != {{ {indexes} }}", of_devices(intercept.from.iter())), OTHER);
            }
        }
    }
    rules
}

/// How packets to an intercept's servers are told, but for where they come in.
struct Match {
    daddr: String,
    set: Option<(String, &'static str, Vec<IpNet>)>,
    ports: String,
}

/// None: nothing of this family is intercepted.
fn match_of(index: usize, intercept: &InterceptSpec, family: Family) -> Option<Match> {
    let (prefixes, ports) = (intercept.prefixes(family), intercept.port_ranges());
    if prefixes.is_empty() || ports.is_empty() {
        return None;
    }
    let (ip, nfproto, kind) = match family {
        Family::V4 => ("ip", "ipv4", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6", "ipv6_addr"),
    };
    let ports: Vec<String> =
        ports.iter().map(|&(l, h)| if l == h { l.to_string() } else { format!("{l}-{h}") }).collect();
    let ports = format!("tcp dport {{ {} }}", ports.join(", "));
    // An interval set cannot hold the whole of a family in every nft: everything needs no set.
    if prefixes.iter().any(|p| p.prefix_len() == 0) {
        return Some(Match { daddr: format!("meta nfproto {nfproto}"), set: None, ports });
    }
    let name = format!("to_{index}_{nfproto}");
    Some(Match { daddr: format!("{ip} daddr @{name}"), set: Some((name, kind, prefixes)), ports })
}

fn of_devices<'a>(devices: impl Iterator<Item = &'a String>) -> String {
    let quoted: Vec<String> = devices.map(|device| format!("\"{device}\"")).collect();
    format!("iifname {{ {} }}", quoted.join(", "))
}

/// As a comment of nft's may have it.
fn name_of(intercept: &InterceptSpec) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_. ".contains(c) { c } else { '_' };
    intercept.name.chars().take(NAME_IN_COMMENT).map(plain).collect()
}

fn join(prefixes: &[IpNet]) -> String {
    prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
