//! The table `inet weir`: as text that nft reads, and as what nft says is there.
//!
//! The text is the only rendering: what `weir plan` prints is what `apply` feeds to `nft -f -` in one transaction. The
//! nftables crate reads nft's JSON back; its writing half is not used, because the JSON of nft 1.0 has no table comments,
//! and the comment is weir's tag.
//!
//! The order in the chain matters. Own addresses first: nothing below can lock the operator out. Then SYNs: tproxy looks
//! for an established socket itself and, unlike the socket match, gives a SYN that hits a TIME_WAIT socket to the
//! listener. Then the sockets of the relay: the listener is a transparent socket too and, being bound to no address, would
//! match every packet to its port number anywhere; `socket wildcard 0` leaves it out, but cannot see sockets in SYN_RECV or
//! TIME_WAIT (net/netfilter/nft_socket.c), so only packets to that port number are asked.
//!
//! QUIC that is refused is in a chain of its own, at the forward hook: what is for the box itself never comes there.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use ipnet::IpNet;
use nftables::helper::{self, NftablesError};
use nftables::schema::{NfListObject, NfObject};
use sha2::{Digest as _, Sha256};
use weir_sys::process::die_with_parent;

use super::spec::Family;
use super::{Fail, HostError, HostSpec, InterceptSpec};

/// Family and name of the table.
pub const TABLE: &str = "inet weir";

/// The table's comment begins with this word: the tag.
const TAG: &str = "weir ";

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

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    chain: &'static str,
    text: String,
    comment: String,
}

/// A table `inet weir` as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenTable {
    pub comment: Option<String>,
    /// `chain: comment` of every rule, in order.
    pub rules: Vec<String>,
    pub sets: Vec<String>,
}

impl SeenTable {
    /// Whether weir made it.
    pub fn is_ours(&self) -> bool {
        self.comment.as_deref().is_some_and(|c| c.starts_with(TAG))
    }
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
        let mut commands = vec![
            format!("add table {TABLE} {{ comment \"{TAG}{}\"; }}", self.fingerprint),
            format!(
                "add chain {TABLE} prerouting {{ type filter hook prerouting priority mangle; policy accept; }}"
            ),
            format!("add chain {TABLE} syn"),
        ];
        if self.rules.iter().any(|rule| rule.chain == "forward") {
            commands.push(format!(
                "add chain {TABLE} forward {{ type filter hook forward priority filter; policy accept; }}"
            ));
        }
        for (name, kind, prefixes) in &self.sets {
            commands.push(format!("add set {TABLE} {name} {{ type {kind}; flags interval; auto-merge; }}"));
            for chunk in prefixes.chunks(ELEMENTS_PER_COMMAND) {
                commands.push(format!("add element {TABLE} {name} {{ {} }}", join(chunk)));
            }
        }
        for rule in &self.rules {
            commands
                .push(format!("add rule {TABLE} {} {} comment \"{}\"", rule.chain, rule.text, rule.comment));
        }
        commands
    }

    /// Whether `seen` is this very table. Rules are known by their comments and the fingerprint: somebody who rewrites a
    /// rule and keeps both goes unnoticed.
    pub fn matches(&self, seen: &SeenTable) -> bool {
        let chain = |name| self.rules.iter().filter(move |r| r.chain == name);
        let rules: Vec<String> =
            CHAINS.into_iter().flat_map(chain).map(|r| format!("{}: {}", r.chain, r.comment)).collect();
        let mut seen_rules = seen.rules.clone();
        seen_rules.sort_by_key(|r| CHAINS.iter().position(|c| r.starts_with(&format!("{c}: "))));
        let mut sets: Vec<&str> = self.sets.iter().map(|(name, ..)| name.as_str()).collect();
        let mut seen_sets: Vec<&str> = seen.sets.iter().map(String::as_str).collect();
        sets.sort_unstable();
        seen_sets.sort_unstable();
        seen.comment.as_deref() == Some(&format!("{TAG}{}", self.fingerprint))
            && rules == seen_rules
            && sets == seen_sets
    }

    /// Replaces the table, whatever was in it, in one transaction.
    pub fn load(&self) -> Result<(), String> {
        nft_script(&self.transaction(), &[]).map_err(|e| e.to_string())
    }

    /// What `nft -f -` reads to get from any table `inet weir`, or none, to this one.
    pub fn transaction(&self) -> String {
        format!("add table {TABLE}\ndelete table {TABLE}\n{}\n", self.commands().join("\n"))
    }
}

fn own_rules(spec: &HostSpec) -> Vec<Rule> {
    let rule = |text: &str, comment: &str| Rule {
        chain: "prerouting",
        text: text.to_owned(),
        comment: comment.to_owned(),
    };
    let mut rules = vec![
        rule("meta l4proto != tcp return", "only TCP is intercepted"),
        rule(
            "fib daddr type { local, broadcast, anycast, multicast } return",
            "own addresses are left alone",
        ),
    ];
    if !spec.intercepts.is_empty() {
        rules.push(rule("tcp flags & (fin | syn | rst | ack) == syn jump syn", "new connections"));
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
    let (prefixes, ports) = (intercept.prefixes(family), intercept.port_ranges());
    if prefixes.is_empty() || ports.is_empty() {
        return;
    }
    let (ip, nfproto, kind, words) = match family {
        Family::V4 => ("ip", "ipv4", "ipv4_addr", "IPv4"),
        Family::V6 => ("ip6", "ipv6", "ipv6_addr", "IPv6"),
    };
    // An interval set cannot hold the whole of a family in every nft: everything needs no set.
    let daddr = if prefixes.iter().any(|p| p.prefix_len() == 0) {
        format!("meta nfproto {nfproto}")
    } else {
        let name = format!("to_{index}_{nfproto}");
        sets.push((name.clone(), kind, prefixes));
        format!("{ip} daddr @{name}")
    };
    let quoted = |device: &String| format!("\"{device}\"");
    let clients: Vec<String> = intercept.from.iter().map(quoted).collect();
    let devices: Vec<String> = clients.iter().cloned().chain(spec.relay_tun.iter().map(quoted)).collect();
    let ports: Vec<String> =
        ports.iter().map(|&(l, h)| if l == h { l.to_string() } else { format!("{l}-{h}") }).collect();
    let matches =
        format!("iifname {{ {} }} {daddr} tcp dport {{ {} }}", devices.join(", "), ports.join(", "));
    let name: String = intercept
        .name
        .chars()
        .take(NAME_IN_COMMENT)
        .map(|c| if c.is_ascii_alphanumeric() || "-_. ".contains(c) { c } else { '_' })
        .collect();
    let rule = |text, comment| Rule { chain: "syn", text, comment };
    // Without a listener the tproxy expression ends its rule, and the next one decides.
    rules.push(rule(
        format!("{matches} tproxy {ip} to :{} {} accept", spec.listen, set_mark(spec)),
        format!("{name} {words}"),
    ));
    if spec.fail == Fail::Closed {
        rules.push(rule(format!("{matches} drop"), format!("{name} {words}, no listener: fail closed")));
    }
    if intercept.reject_quic && !clients.is_empty() {
        let text = format!(
            "iifname {{ {} }} {daddr} udp dport {QUIC} counter reject with icmpx type port-unreachable",
            clients.join(", ")
        );
        rules.push(Rule { chain: "forward", text, comment: format!("{name} {words}, QUIC") });
    }
}

fn join(prefixes: &[IpNet]) -> String {
    prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The table of this namespace, if there is one.
pub fn read() -> Result<Option<SeenTable>, HostError> {
    let args = ["list", "table", "inet", "weir"];
    let listing = match helper::get_current_ruleset_with_args(helper::DEFAULT_NFT, args) {
        Ok(listing) => Some(listing),
        Err(NftablesError::NftExecution { inner, .. }) if inner.kind() == io::ErrorKind::NotFound => {
            return Err(HostError::NftMissing);
        }
        Err(NftablesError::NftFailed { stderr, .. }) if stderr.contains("No such file or directory") => {
            return Ok(None);
        }
        // Somebody else's table may hold what the crate cannot read; its comment still tells whose it is.
        Err(NftablesError::NftInvalidJson(_)) => None,
        Err(NftablesError::NftFailed { stderr, .. }) => return Err(read_failed(&stderr)),
        Err(other) => return Err(read_failed(&other.to_string())),
    };
    let mut seen = SeenTable { comment: read_comment()?, ..SeenTable::default() };
    for object in listing.iter().flat_map(|l| l.objects.iter()) {
        match object {
            NfObject::ListObject(NfListObject::Rule(rule)) => {
                seen.rules.push(format!("{}: {}", rule.chain, rule.comment.as_deref().unwrap_or("")));
            }
            NfObject::ListObject(NfListObject::Set(set)) => seen.sets.push(set.name.to_string()),
            _ => {}
        }
    }
    Ok(Some(seen))
}

fn read_failed(reason: &str) -> HostError {
    HostError::Command { command: format!("nft list table {TABLE}"), reason: one_line(reason) }
}

/// The comment of the table, from nft's text: its JSON leaves it out.
fn read_comment() -> Result<Option<String>, HostError> {
    let output = Command::new("nft").args(["list", "table", "inet", "weir"]).output().map_err(cannot_run)?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().find_map(|line| {
        let comment = line.strip_prefix("\tcomment \"")?.strip_suffix('"')?;
        Some(comment.to_owned())
    }))
}

/// Removes the table.
pub fn delete() -> Result<(), HostError> {
    nft_script(&format!("delete table {TABLE}\n"), &[]).map_err(|reason| HostError::Command {
        command: format!("nft delete table {TABLE}"),
        reason: reason.to_string(),
    })
}

/// Whether this kernel would take `script`; nothing is changed (`nft --check` stops before the commit).
pub fn check(script: &str) -> Result<(), HostError> {
    nft_script(script, &["--check"])
}

fn nft_script(script: &str, args: &[&str]) -> Result<(), HostError> {
    let mut command = Command::new("nft");
    command.args(args).args(["-f", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A weir that is killed must not install a table afterwards, behind the back of `weir clean`.
    let mut child = die_with_parent(&mut command).spawn().map_err(cannot_run)?;
    let fed = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(cannot_run)?;
    if output.status.success() {
        return fed.map_err(cannot_run);
    }
    Err(HostError::Kernel(one_line(&String::from_utf8_lossy(&output.stderr))))
}

fn cannot_run(error: io::Error) -> HostError {
    match error.kind() {
        io::ErrorKind::NotFound => HostError::NftMissing,
        _ => HostError::Kernel(format!("cannot run nft: {error}")),
    }
}

/// nft's complaints take several lines with a drawing of carets; the first says what is wrong.
fn one_line(stderr: &str) -> String {
    let line =
        stderr.lines().find(|l| l.contains("Error")).or(stderr.lines().next()).unwrap_or("no reason given");
    line.rsplit_once("Error: ").map_or(line, |(_, reason)| reason).trim().to_owned()
}
