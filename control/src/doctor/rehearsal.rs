//! Netfilter rules of others, tried: would they let weir's packets through?
//!
//! The ruleset is copied into a network namespace of its own, with stand-ins for the ports and for weir's devices, weir's
//! table, rules and listener, and the packets that weir hands to the kernel are sent through it. What is lost there would be
//! lost here. The host sees nothing of it. Where a packet is lost, the tables are tried one by one to name the culprit.

mod packets;
mod place;
mod stage;
mod wrong_way;

use std::collections::BTreeSet;
use std::process::Command;

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use super::ruleset::{self, Chain};
use packets::cases;
pub use packets::{Case, first};
pub use place::{Place, relay};
use stage::{Change, Stage};

/// The questions: the hook that decides, and what is at stake.
pub(super) const FORWARD: &str = "forward-chain";
pub(super) const INPUT: &str = "input-chain";

/// A table of somebody else: what loads it, and with what.
#[derive(Clone, Debug)]
struct Table {
    /// `ip filter`.
    title: String,
    program: &'static str,
    text: String,
    /// iptables made it, under this name.
    iptables: Option<&'static str>,
}

impl Table {
    fn has(&self, chain: &Chain) -> bool {
        let is_legacy = self.iptables.is_some_and(|program| program.ends_with("-legacy"));
        format!("{} {}", chain.family, chain.table) == self.title && chain.legacy == is_legacy
    }
}

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    let skip = |found: &mut Findings, why: &str| {
        [FORWARD, INPUT, wrong_way::ID].into_iter().for_each(|id| found.skip(id, "netfilter", why));
    };
    let chains = match &ground.chains {
        Ok(chains) => chains,
        Err(why) => return skip(found, why),
    };
    if !chains.iter().any(|chain| chain.is_ip() && chain.hook.is_some()) {
        let none = |id| Finding::good(id, "netfilter", "there are no chains of others");
        return [FORWARD, INPUT, wrong_way::ID].into_iter().for_each(|id| found.push(none(id)));
    }
    let cases = cases(ground);
    if cases.is_empty() {
        return skip(found, "no intercept has a port with an address to send from");
    }
    let place = Place::of(ground);
    let played = tables().and_then(|tables| {
        let trial = Trial::begin(&place, &cases)?;
        let lost = trial.lost(&tables, UNCHANGED)?;
        Ok((trial, lost, tables))
    });
    let (trial, lost, tables) = match played {
        Ok(played) => played,
        Err(why) => {
            return skip(found, &format!("the ruleset cannot be tried in a namespace of its own: {why}"));
        }
    };
    let wrong_way = match lost.is_empty() {
        true => Vec::new(),
        false => wrong_way::losing(&trial, &tables, chains),
    };
    wrong_way::tell(&wrong_way, found);
    // What these lose is told, and their command mends it.
    let without: Change<'_> = &|| ruleset::delete(&wrong_way);
    let lost = match wrong_way.is_empty() {
        true => lost,
        false => trial.lost(&tables, without).unwrap_or(lost),
    };
    hooks(ground, &trial, (&tables, &lost), without, found);
}

/// Says which tables lose packets, and what mends that. `lost`: by all of them together, `without` some of their rules.
fn hooks(
    ground: &Ground<'_>,
    trial: &Trial<'_>,
    (tables, lost): (&[Table], &BTreeSet<usize>),
    without: Change<'_>,
    found: &mut Findings,
) {
    let alone: Vec<(&Table, BTreeSet<usize>)> = match lost.is_empty() {
        true => Vec::new(),
        // One that cannot be loaded without the others is not to be named.
        false => tables
            .iter()
            .filter_map(|t| Some((t, trial.lost(std::slice::from_ref(t), without).ok()?)))
            .collect(),
    };
    for id in [FORWARD, INPUT] {
        let of: BTreeSet<usize> = lost.iter().copied().filter(|at| trial.cases[*at].id == id).collect();
        if of.is_empty() {
            let good = "the rules of others let weir's packets through (tried)";
            found.push(Finding::good(id, "netfilter", good));
            continue;
        }
        let before = found.findings.len();
        for (table, lost) in &alone {
            let of: BTreeSet<usize> = lost.intersection(&of).copied().collect();
            if of.is_empty() {
                continue;
            }
            // It may be that packets are lost before they come to the hook.
            let helps = |command: &String| {
                let mended: Change<'_> =
                    &|| without().and_then(|()| ruleset::run("sh", &["-c", command]).map(drop));
                trial.lost(std::slice::from_ref(*table), mended).is_ok_and(|lost| lost.is_disjoint(&of))
            };
            let command = mend(ground, table, id).filter(helps);
            found.push(finding(trial.cases, &of, Some(table), id).mend_or(command, NoCommand::Choice));
        }
        if found.findings.len() == before {
            found.push(finding(trial.cases, &of, None, id).by_hand(NoCommand::Choice));
        }
    }
}

/// The rules as they are.
const UNCHANGED: Change<'static> = &|| Ok(());

/// Packets, and where they are sent.
struct Trial<'a> {
    place: &'a Place,
    cases: &'a [Case],
    /// Those that are lost without any rules.
    bare: BTreeSet<usize>,
}

impl<'a> Trial<'a> {
    fn begin(place: &'a Place, cases: &'a [Case]) -> Result<Self, String> {
        let bare = Stage::play(place, cases, &[], UNCHANGED)?;
        if bare.len() == cases.len() {
            return Err("no packet comes through even without rules".to_owned());
        }
        Ok(Self { place, cases, bare })
    }

    /// The cases that are lost with these tables, and not without any.
    fn lost(&self, tables: &[Table], change: Change<'_>) -> Result<BTreeSet<usize>, String> {
        Ok(Stage::play(self.place, self.cases, tables, change)?.difference(&self.bare).copied().collect())
    }
}

/// Which chains of others lose a packet; empty: none does. They are named with their table where it loses the packet alone.
///
/// # Errors
/// A sentence: why that cannot be tried.
pub fn losing(place: &Place, case: &Case, chains: &[Chain]) -> Result<Vec<String>, String> {
    let tables = tables()?;
    let trial = Trial::begin(place, std::slice::from_ref(case))?;
    if trial.lost(&tables, UNCHANGED)?.is_empty() {
        return Ok(Vec::new());
    }
    let alone = |table: &&Table| {
        trial.lost(std::slice::from_ref(*table), UNCHANGED).is_ok_and(|lost| !lost.is_empty())
    };
    let found: Vec<&Table> = tables.iter().filter(alone).collect();
    let named = found.into_iter().flat_map(|table| {
        let of = chains.iter().filter(|chain| table.has(chain));
        let dropping: Vec<String> = on_the_way(of, chains, case).map(Chain::title).collect();
        if dropping.is_empty() { vec![table.title.clone()] } else { dropping }
    });
    let named: Vec<String> = named.collect();
    Ok(if named.is_empty() { vec!["netfilter, by several tables together".to_owned()] } else { named })
}

/// Of the chains of others, those on a packet's way that drop or refuse some.
pub fn suspects(chains: &[Chain], case: &Case) -> Vec<String> {
    on_the_way(chains.iter(), chains, case).map(Chain::title).collect()
}

fn on_the_way<'a>(
    of: impl Iterator<Item = &'a Chain>,
    all: &'a [Chain],
    case: &Case,
) -> impl Iterator<Item = &'a Chain> {
    let hooks = if case.is_answered {
        ["prerouting", "input", "input"]
    } else {
        ["prerouting", "forward", "postrouting"]
    };
    let family = if case.client.is_ipv4() { "ip" } else { "ip6" };
    of.filter(move |chain| {
        let is_met =
            hooks.iter().any(|hook| chain.hooks(hook)) && [family, "inet"].contains(&chain.family.as_str());
        is_met && (chain.drops || ruleset::reached(all, chain).iter().any(|rule| refuses(&rule.text)))
    })
}

fn refuses(rule: &str) -> bool {
    ruleset::words(rule).iter().any(|word| ["drop", "reject", "DROP", "REJECT"].contains(word))
}

fn finding(cases: &[Case], lost: &BTreeSet<usize>, table: Option<&Table>, id: &'static str) -> Finding {
    let words: Vec<&str> = lost.iter().map(|at| cases[*at].words.as_str()).collect();
    let subject = table.map_or("netfilter".to_owned(), |table| table.title.clone());
    let what = format!("its rules drop {} (tried)", words.join("; "));
    let why = if id == FORWARD {
        "these are packets that weir does not carry itself (no next hop yet, connections from before its start, fragments): \
         they are lost, and with them connections"
    } else {
        "connections that the relay should take are never answered"
    };
    Finding::bad(id, subject, what, why)
}

/// A rule that lets weir's packets through, before all others of the chain that drops them.
fn mend(ground: &Ground<'_>, table: &Table, id: &str) -> Option<String> {
    let chains = ground.chains.as_ref().ok()?;
    let hook = if id == FORWARD { "forward" } else { "input" };
    let of_table = |chain: &&Chain| table.has(chain) && chain.hooks(hook);
    let (mark, mask) = (ground.spec.mark, ground.spec.mask);
    let commands: Vec<String> = chains
        .iter()
        .filter(of_table)
        .map(|chain| match (table.iptables, id == FORWARD) {
            (Some(program), true) => {
                format!("{program} -t {} -I {} -i weir-+ -j ACCEPT", chain.table, chain.name)
            }
            (Some(program), false) => {
                format!(
                    "{program} -t {} -I {} -m mark --mark {mark:#x}/{mask:#x} -j ACCEPT",
                    chain.table, chain.name
                )
            }
            (None, true) => {
                format!(
                    "nft 'insert rule {} {} {} iifname \"weir-*\" accept'",
                    chain.family, chain.table, chain.name
                )
            }
            (None, false) => format!(
                "nft 'insert rule {} {} {} meta mark & {mask:#x} == {mark:#x} accept'",
                chain.family, chain.table, chain.name
            ),
        })
        .collect();
    (!commands.is_empty()).then(|| commands.join(" && "))
}

/// The tables of others that judge IP, each as what loads it again.
fn tables() -> Result<Vec<Table>, String> {
    let output = Command::new("nft").args(["-s", "list", "ruleset"]).output();
    let output = output.map_err(|error| format!("cannot run nft: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let warnings = String::from_utf8_lossy(&output.stderr).into_owned() + &text;
    let mut tables = Vec::new();
    for block in blocks(&text) {
        let title = block.lines().next().unwrap_or_default();
        let title = title.trim_start_matches("table ").split(" {").next().unwrap_or_default().to_owned();
        let judges = ["ip ", "ip6 ", "inet "].iter().any(|family| title.starts_with(family));
        if title == "inet weir" || !judges {
            continue;
        }
        if !warnings.contains(&format!("table {title} is managed by iptables-nft")) {
            tables.push(Table { title, program: "nft", text: block, iptables: None });
            continue;
        }
        let (save, restore, iptables) = match title.split_once(' ') {
            Some(("ip6", _)) => ("ip6tables-nft-save", "ip6tables-nft-restore", "ip6tables"),
            _ => ("iptables-nft-save", "iptables-nft-restore", "iptables"),
        };
        let name = title.split(' ').nth(1).unwrap_or_default();
        let text = saved(save, name)?;
        tables.push(Table { title, program: restore, text, iptables: Some(iptables) });
    }
    tables.extend(legacy()?);
    Ok(tables)
}

fn saved(program: &str, table: &str) -> Result<String, String> {
    let output = Command::new(program).args(["-t", table]).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Tables of the old iptables.
fn legacy() -> Result<Vec<Table>, String> {
    let mut tables = Vec::new();
    for (family, names, save, restore, iptables) in [
        ("ip", "ip_tables_names", "iptables-legacy-save", "iptables-legacy-restore", "iptables-legacy"),
        ("ip6", "ip6_tables_names", "ip6tables-legacy-save", "ip6tables-legacy-restore", "ip6tables-legacy"),
    ] {
        let names = std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
        for name in names.lines() {
            let text = saved(save, name)?;
            tables.push(Table {
                title: format!("{family} {name}"),
                program: restore,
                text,
                iptables: Some(iptables),
            });
        }
    }
    Ok(tables)
}

/// The blocks of nft's text that begin at its margin.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        if line.starts_with("table ") {
            open = true;
            blocks.push(String::new());
        }
        if let (true, Some(block)) = (open, blocks.last_mut()) {
            block.push_str(line);
            block.push('\n');
        }
        open &= line != "}";
    }
    blocks
}
