//! The recipe in the words of iptables: what `weir plan --iptables` prints for people who keep their rules there.
//!
//! It does what the table `inet weir` does (see `nft`), with the DIVERT chain and the socket match that every guide to
//! transparent proxying has. weir itself never runs it. Two things cannot be said in iptables: new connections that no listener
//! takes are dropped by the TPROXY target, whatever `fail` says; and a rule has no owner, so chains are known by their names
//! and weir's comment.
//!
//! What is there is known as with nft: the commands are run in an empty network namespace, and what iptables-save prints there is
//! compared with what it prints here.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use weir_sys::netns::Namespace;

use super::plan::{Line, Plan, Status, write_script};
use super::spec::Family;
use super::{Fail, HostError, HostSpec, InterceptSpec};

/// The UDP port of HTTP over QUIC.
const QUIC: u16 = 443;
/// Ports of one multiport match; a range counts twice.
const PORTS_PER_MATCH: usize = 15;
/// The comment on weir's rules.
const TAG: &str = "-m comment --comment weir";

/// What iptables-save printed: every table's chains and rules, the table's name before each.
pub type Saved = BTreeSet<String>;

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    family: Family,
    table: &'static str,
    /// `-N DIVERT`, `-A DIVERT -j ACCEPT`.
    text: String,
}

/// All commands, in an order in which nothing takes effect before it is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    entries: Vec<Entry>,
    fail: Fail,
}

/// A recipe in iptables' words, and how each line stands.
#[derive(Clone, Debug, serde::Serialize)]
pub struct IptablesPlan {
    pub lines: Vec<Line>,
    /// How to take it away again.
    pub removal: Vec<String>,
    pub warnings: Vec<String>,
    #[serde(skip)]
    is_done: bool,
}

impl Entry {
    fn command(&self) -> String {
        format!("{} -t {} {}", program(self.family), self.table, self.text)
    }

    /// The chain that it is about.
    fn chain(&self) -> &str {
        self.text.split(' ').nth(1).unwrap_or_default()
    }
}

const fn program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

impl Recipe {
    /// What `spec` asks for.
    pub fn of(spec: &HostSpec) -> Self {
        let mut entries = Vec::new();
        for family in Family::BOTH {
            divert(spec, family, &mut entries);
            for (index, intercept) in spec.intercepts.iter().enumerate() {
                intercept_entries(spec, index, intercept, family, &mut entries);
            }
            entries.extend(hooks(family));
        }
        Self { entries, fail: spec.fail }
    }

    /// The commands.
    pub fn commands(&self) -> impl Iterator<Item = String> + '_ {
        self.entries.iter().map(Entry::command)
    }

    /// The commands that take it away, as often as one likes.
    pub fn removal(&self) -> Vec<String> {
        let quiet = "2>/dev/null || true";
        let mut commands = Vec::new();
        for entry in self.entries.iter().rev() {
            let Entry { family, table, text } = entry;
            let hook = text.strip_prefix("-A PREROUTING ").map(|rule| ("PREROUTING", rule));
            let hook = hook.or_else(|| text.strip_prefix("-I FORWARD ").map(|rule| ("FORWARD", rule)));
            if let Some((chain, rule)) = hook {
                commands.push(format!("{} -t {table} -D {chain} {rule} {quiet}", program(*family)));
            }
        }
        for verb in ["-F", "-X"] {
            for entry in self.entries.iter().rev().filter(|entry| entry.text.starts_with("-N ")) {
                let Entry { family, table, .. } = entry;
                commands.push(format!("{} -t {table} {verb} {} {quiet}", program(*family), entry.chain()));
            }
        }
        commands
    }

    /// How each command stands. `wanted`: what iptables-save prints of this very recipe; without it nothing can be compared.
    fn lines(
        &self,
        seen: &BTreeMap<Family, Saved>,
        wanted: Option<&BTreeMap<Family, Vec<String>>>,
    ) -> Vec<Line> {
        let mut taken: BTreeMap<(Family, String), usize> = BTreeMap::new();
        let nothing = Saved::new();
        let mut lines = Vec::new();
        for entry in &self.entries {
            let seen = seen.get(&entry.family).unwrap_or(&nothing);
            let is_rule = !entry.text.starts_with("-N ");
            let expected = wanted.and_then(|wanted| {
                let start = format!("{} -A {} ", entry.table, entry.chain());
                let mut of_chain = wanted.get(&entry.family)?.iter().filter(|line| line.starts_with(&start));
                if entry.text.starts_with("-I ") {
                    // The last is the first: known by where it leads.
                    let target = entry.text.rsplit(' ').next()?;
                    return of_chain.find(|line| line.ends_with(target));
                }
                // The n-th rule that is added to a chain is the n-th that it has.
                let place = taken.entry((entry.family, start.clone())).or_default();
                if is_rule { of_chain.nth(std::mem::replace(place, *place + 1)) } else { None }
            });
            let exists = seen.contains(&format!("{} :{}", entry.table, entry.chain()));
            let strange = wanted.and_then(|wanted| strange_rule(entry, seen, wanted.get(&entry.family)?));
            let mut line = Line::new(entry.command(), Status::Missing);
            line.status = match (is_rule, expected, exists) {
                (true, Some(expected), _) if seen.contains(expected) => Status::Present,
                (false, _, true) if strange.is_none() => Status::Present,
                (false, _, true) if entry.chain() == "DIVERT" => Status::Foreign,
                (false, _, true) => Status::Conflicting,
                _ => Status::Missing,
            };
            line.note = strange
                .filter(|_| line.status != Status::Missing && !is_rule)
                .map(|rule| format!("it has {rule}: a chain of this name must be weir's alone"));
            line.runs = line.status == Status::Missing;
            lines.push(line);
        }
        self.with_conflicts_removed(lines)
    }

    /// Chains of another configuration are taken away first, and everything is made again.
    fn with_conflicts_removed(&self, mut lines: Vec<Line>) -> Vec<Line> {
        if lines.iter().any(|line| line.status == Status::Foreign) {
            // Somebody's own DIVERT chain must not get weir's rules.
            lines.iter_mut().for_each(|line| line.runs = false);
            return lines;
        }
        if !lines.iter().any(|line| line.status == Status::Conflicting) {
            return lines;
        }
        let removal = self.removal().into_iter().map(|command| Line::new(command, Status::Conflicting));
        lines.iter_mut().for_each(|line| line.runs = true);
        removal.chain(lines).collect()
    }
}

/// A rule in a chain of the recipe's that the recipe does not have.
fn strange_rule<'a>(entry: &Entry, seen: &'a Saved, wanted: &[String]) -> Option<&'a String> {
    let start = format!("{} -A {} ", entry.table, entry.chain());
    seen.iter().find(|line| line.starts_with(&start) && !wanted.contains(line))
}

/// Packets of the relay's sockets.
fn divert(spec: &HostSpec, family: Family, entries: &mut Vec<Entry>) {
    let mark = format!("{:#x}/{:#x}", spec.mark, spec.mask);
    for text in [
        "-N DIVERT".to_owned(),
        format!("-A DIVERT {TAG} -j MARK --set-xmark {mark}"),
        format!("-A DIVERT {TAG} -j ACCEPT"),
        "-N WEIR_SYN".to_owned(),
    ] {
        entries.push(Entry { family, table: "mangle", text });
    }
    entries.extend(own_addresses(family));
}

fn intercept_entries(
    spec: &HostSpec,
    index: usize,
    intercept: &InterceptSpec,
    family: Family,
    entries: &mut Vec<Entry>,
) {
    let (prefixes, ports) = (intercept.prefixes(family), intercept.port_ranges());
    if prefixes.is_empty() || ports.is_empty() {
        return;
    }
    let mut add = |table, text| entries.push(Entry { family, table, text });
    let to = |prefix: &ipnet::IpNet| match prefix.prefix_len() {
        0 => String::new(),
        _ => format!("-d {prefix} "),
    };
    let chain = format!("WEIR_{index}");
    add("mangle", format!("-N {chain}"));
    for prefix in &prefixes {
        let mark = format!("{:#x}/{:#x}", spec.mark, spec.mask);
        let target = format!("-j TPROXY --on-port {} --tproxy-mark {mark}", spec.listen);
        add("mangle", format!("-A {chain} {}-p tcp {TAG} {target}", to(prefix)));
    }
    for device in intercept.from.iter().chain(&spec.relay_tun) {
        for ports in port_lists(&ports) {
            let matches = format!("-i {device} -p tcp -m multiport --dports {ports}");
            add("mangle", format!("-A WEIR_SYN {matches} {TAG} -j {chain}"));
        }
    }
    if intercept.reject_quic && !intercept.from.is_empty() {
        let quic = format!("WEIR_QUIC_{index}");
        let unreachable = match family {
            Family::V4 => "icmp-port-unreachable",
            Family::V6 => "icmp6-port-unreachable",
        };
        add("filter", format!("-N {quic}"));
        for device in &intercept.from {
            for prefix in &prefixes {
                let matches = format!("{}-i {device} -p udp -m udp --dport {QUIC}", to(prefix));
                add("filter", format!("-A {quic} {matches} {TAG} -j REJECT --reject-with {unreachable}"));
            }
        }
        add("filter", format!("-I FORWARD -p udp -m udp --dport {QUIC} {TAG} -j {quic}"));
    }
}

/// The way in: new connections first, and of these the ones to own addresses; then connections of the relay.
fn hooks(family: Family) -> Vec<Entry> {
    let mut texts = vec!["-N WEIR".to_owned()];
    texts.push(format!("-A WEIR -p tcp --syn {TAG} -j WEIR_SYN"));
    // The match leaves sockets that are bound to no address out by itself: the listener is one.
    texts.push(format!("-A WEIR -p tcp -m socket --transparent {TAG} -j DIVERT"));
    texts.push(format!("-A PREROUTING -p tcp {TAG} -j WEIR"));
    texts.into_iter().map(|text| Entry { family, table: "mangle", text }).collect()
}

/// Own addresses are left alone, by whatever chain comes later.
fn own_addresses(family: Family) -> Vec<Entry> {
    // IPv6 has no broadcast.
    let broadcast = (family == Family::V4).then_some("BROADCAST");
    let kinds = ["LOCAL", "ANYCAST", "MULTICAST"].into_iter().chain(broadcast);
    let text = |kind| format!("-A WEIR_SYN -m addrtype --dst-type {kind} {TAG} -j ACCEPT");
    kinds.map(|kind| Entry { family, table: "mangle", text: text(kind) }).collect()
}

/// `80,443,8000:8099`, as many as a match takes in each.
fn port_lists(ports: &[(u16, u16)]) -> Vec<String> {
    let mut lists: Vec<(usize, String)> = Vec::new();
    for &(low, high) in ports {
        let (size, text) = if low == high { (1, low.to_string()) } else { (2, format!("{low}:{high}")) };
        match lists.last_mut() {
            Some((taken, list)) if *taken + size <= PORTS_PER_MATCH => {
                *taken += size;
                list.push(',');
                list.push_str(&text);
            }
            _ => lists.push((size, text)),
        }
    }
    lists.into_iter().map(|(_, list)| list).collect()
}

/// The plan with iptables in the place of nft.
///
/// # Errors
/// [`HostError::Kernel`]: iptables-save is there and fails.
pub fn iptables_plan(spec: &HostSpec, plan: &Plan) -> Result<IptablesPlan, HostError> {
    let recipe = Recipe::of(spec);
    let mut warnings = plan.warnings.clone();
    let mut seen = BTreeMap::new();
    for family in Family::BOTH {
        match save(family)? {
            Some(lines) => drop(seen.insert(family, lines.into_iter().collect())),
            None => warnings.push(format!(
                "{}-save is not here: what is there already cannot be told; install the package iptables",
                program(family)
            )),
        }
    }
    let wanted = if seen.is_empty() { None } else { rendered(&recipe) };
    if spec.fail == Fail::Open {
        warnings.push(
            "the TPROXY target of iptables drops new connections while no listener is there: fail = \"open\" is only true of nft's"
                .to_owned(),
        );
    }
    let is_table = |step: &&super::Step| step.action.kind() == super::Kind::Table;
    let at = plan.steps.iter().position(|step| is_table(&step)).unwrap_or(plan.steps.len());
    let (before, after) = plan.steps.split_at(at);
    let of_steps =
        |steps: &[super::Step]| -> Vec<Line> { steps.iter().flat_map(super::Step::lines).collect() };
    let after = after.get(1..).unwrap_or_default();
    let of_recipe = recipe.lines(&seen, wanted.as_ref());
    // A rule or route of somebody else's that does the same is as good as weir's own.
    let is_due = |step: &super::Step| step.is_due() || step.blocks;
    let is_done = !before.iter().chain(after).any(is_due)
        && of_recipe.iter().all(|line| line.status == Status::Present);
    let mut lines = of_steps(before);
    lines.extend(of_recipe);
    lines.extend(of_steps(after));
    lines.extend(plan.pins.iter().cloned());
    if plan.steps.get(at).is_some_and(|step| step.status == Status::Present) {
        warnings.push("weir's own nft table is there as well: one of the two is enough".to_owned());
    }
    Ok(IptablesPlan { lines, removal: recipe.removal(), warnings, is_done })
}

impl IptablesPlan {
    /// Whether everything is as wanted.
    pub fn is_done(&self) -> bool {
        self.is_done
    }
}

impl std::fmt::Display for IptablesPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write_script(f, &self.lines, &self.warnings)?;
        writeln!(f, "# to take the rules of iptables away again:")?;
        self.removal.iter().try_for_each(|command| writeln!(f, "#   {command}"))
    }
}

/// Chains (`mangle :DIVERT`) and rules (`mangle -A DIVERT ...`) of a family; none without the program.
fn save(family: Family) -> Result<Option<Vec<String>>, HostError> {
    let name = format!("{}-save", program(family));
    let output = match Command::new(&name).stdin(Stdio::null()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| HostError::Kernel(format!("cannot run {name}: {error}")))?,
    };
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(HostError::Command { command: name, reason });
    }
    let mut table = String::new();
    let mut lines = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match line.split_at_checked(1) {
            Some(("*", name)) => name.clone_into(&mut table),
            Some((":", rest)) => lines.push(format!("{table} :{}", rest.split(' ').next().unwrap_or(rest))),
            Some(("-", _)) => lines.push(format!("{table} {line}")),
            _ => {}
        }
    }
    Ok(Some(lines))
}

/// How this iptables prints the recipe: it is run in an empty network namespace, which is gone when this returns.
fn rendered(recipe: &Recipe) -> Option<BTreeMap<Family, Vec<String>>> {
    let script: String = recipe.commands().map(|command| command + "\n").collect();
    let saved = Namespace::new().ok()?.run(|| {
        let done = Command::new("sh").args(["-ec", &script]).stdin(Stdio::null()).output().ok()?;
        if !done.status.success() {
            return None;
        }
        Family::BOTH.into_iter().map(|family| Some((family, save(family).ok()??))).collect()
    });
    saved.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_cut_into_what_one_match_takes() {
        let single: Vec<(u16, u16)> = (1..=16).map(|port| (port, port)).collect();
        assert_eq!(port_lists(&single), ["1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "16"]);
        let ranges: Vec<(u16, u16)> = (1..=8).map(|port| (port * 10, port * 10 + 5)).collect();
        assert_eq!(port_lists(&ranges), ["10:15,20:25,30:35,40:45,50:55,60:65,70:75", "80:85"]);
        assert_eq!(port_lists(&[(80, 80), (443, 443), (8000, 8099)]), ["80,443,8000:8099"]);
    }

    #[test]
    fn recipe_is_the_same_for_both_families_and_hooks_in_last() {
        let intercept = InterceptSpec {
            name: "web".into(),
            from: vec!["lan".into()],
            tagged: false,
            to: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            ports: vec![(80, 80)],
            reject_quic: true,
        };
        let recipe = Recipe::of(&HostSpec { intercepts: vec![intercept], ..HostSpec::default() });
        let of = |family| -> Vec<String> {
            let entries = recipe.entries.iter().filter(|entry| entry.family == family);
            entries
                .filter(|entry| !entry.text.contains("BROADCAST"))
                .map(|entry| entry.text.replace("2001:db8::/32", "192.0.2.0/24").replace("icmp6", "icmp"))
                .collect()
        };
        assert_eq!(of(Family::V4), of(Family::V6));
        assert_eq!(of(Family::V4).last().unwrap(), &format!("-A PREROUTING -p tcp {TAG} -j WEIR"));
        let text = recipe.commands().collect::<Vec<_>>().join("\n");
        for part in [
            "iptables -t mangle -A DIVERT -m comment --comment weir -j MARK --set-xmark 0x77/0xff",
            "ip6tables -t mangle -A WEIR -p tcp -m socket --transparent -m comment --comment weir -j DIVERT",
            "ip6tables -t mangle -A WEIR_0 -d 2001:db8::/32 -p tcp -m comment --comment weir -j TPROXY --on-port 12377 --tproxy-mark 0x77/0xff",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
