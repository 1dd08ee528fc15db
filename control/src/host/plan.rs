//! What must be done to a host, and what of it is there already: a pure function of the wanted and the observed state.
//!
//! A plan's commands are what a person would type; a test pipes them into a shell and finds everything present. `apply`
//! executes the same steps over rtnetlink, /proc/sys and one nft transaction.

mod pins;
mod script;
mod sysctls;

use std::net::Ipv4Addr;

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

pub use script::{Line, write_script};
pub(crate) use sysctls::sysctl_steps;

use super::HostSpec;
use super::nft::{self, Ruleset, SeenTable, TABLE};
use super::observe::Observed;
use super::rule::{LocalRoute, MarkRule, SeenRoute, SeenRule};
use super::spec::Family;
use super::sysctl::Key;

/// The address of the TUN devices: the IPv4 dummy address of RFC 7600.
///
/// They need one. On a device without any, reverse path filtering takes no route for an answer, not even in its loose
/// form (fib_frontend.c, __fib_validate_source: `no_addr`), so where rp_filter is on, the kernel would drop what is punted.
pub const DUMMY_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// What is said of the table that a start begins with where it must not forward what it is to intercept.
const SHUT: &str = "all that is intercepted is dropped (fail = \"closed\"): a start has not come to its end";

/// The same, where that start was to intercept something else, or found other VLANs.
const SHUT_OTHERWISE: &str = "what a start with another configuration, or other VLANs, was to intercept is dropped (fail = \"closed\"): it has not come to its end";

/// What is said of the table of one that runs, where a port is lost.
const LOST: &str = "what comes on by ports that are lost is dropped (fail = \"closed\")";

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As wanted, and weir's (or nobody's, like most sysctls).
    Present,
    /// To be done.
    Missing,
    /// There is what is wanted, or something in its place, that weir did not install.
    Foreign,
    /// weir's own, of another configuration or damaged: to be replaced or removed; or a sysctl that somebody wants otherwise.
    Conflicting,
}

/// One change, or the proof that it is not needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub action: Action,
    pub status: Status,
    /// What is there instead, or what to know.
    pub note: Option<String>,
    /// Nothing can be applied until a person has decided.
    pub blocks: bool,
    /// It is about a device that is not there yet: one of weir's own TUN devices while weir does not run.
    pub waits: bool,
    /// How each command stands, where that is not as the step itself does.
    lines: Option<Vec<Line>>,
}

/// What steps are about, for those who count repairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Address,
    Sysctl,
    Route,
    Rule,
    /// The nft table.
    Table,
    /// The steering program on a device; no step of a plan.
    Xdp,
    /// One of weir's TUN devices; no step of a plan.
    Tun,
}

impl Kind {
    pub const ALL: [Self; 7] =
        [Self::Address, Self::Sysctl, Self::Route, Self::Rule, Self::Table, Self::Xdp, Self::Tun];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Sysctl => "sysctl",
            Self::Route => "route",
            Self::Rule => "rule",
            Self::Table => "table",
            Self::Xdp => "xdp",
            Self::Tun => "tun",
        }
    }

    /// What it means that one was repaired.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Address => "Addresses of weir's TUN devices that somebody removed, put back.",
            Self::Sysctl => "Sysctls that somebody changed, set again.",
            Self::Route => "Routes of weir's table that somebody removed, put back.",
            Self::Rule => "Policy rules of weir's that somebody removed, put back.",
            Self::Table => "Times that the nft table was removed or changed, and loaded again.",
            Self::Xdp => "Times that the steering program was taken off a device, and attached again.",
            Self::Tun => "TUN devices of weir's that somebody deleted or set down, made again.",
        }
    }
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    AddAddress {
        device: String,
    },
    SetSysctl {
        key: Key,
        value: String,
    },
    AddRoute(LocalRoute),
    AddRule(MarkRule),
    LoadTable(Ruleset),
    /// weir's own, of an earlier configuration.
    DeleteRule(SeenRule),
    DeleteRoute(SeenRoute),
}

impl Action {
    /// Commands that a shell takes as they are.
    pub fn commands(&self) -> Vec<String> {
        match self {
            Self::AddAddress { device } => {
                vec![format!("ip addr add {DUMMY_ADDRESS}/32 dev {device} scope link")]
            }
            Self::SetSysctl { key, value } => vec![key.command(value)],
            Self::AddRoute(route) => vec![route.command("add")],
            Self::AddRule(rule) => vec![rule.command("add")],
            Self::LoadTable(ruleset) => ruleset.commands().iter().map(|c| format!("nft '{c}'")).collect(),
            Self::DeleteRule(rule) => vec![rule.command("del")],
            Self::DeleteRoute(route) => vec![route.command("del")],
        }
    }

    /// Whether it switches off that a device merges segments.
    pub fn is_merging_offload(&self) -> bool {
        self.sysctl().is_some_and(Key::is_merging)
    }

    /// The sysctl that it sets.
    pub const fn sysctl(&self) -> Option<&Key> {
        match self {
            Self::SetSysctl { key, .. } => Some(key),
            _ => None,
        }
    }

    /// What it is about.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::AddAddress { .. } => Kind::Address,
            Self::SetSysctl { .. } => Kind::Sysctl,
            Self::AddRoute(_) | Self::DeleteRoute(_) => Kind::Route,
            Self::AddRule(_) | Self::DeleteRule(_) => Kind::Rule,
            Self::LoadTable(_) => Kind::Table,
        }
    }

    /// The action in one line, for errors.
    pub fn title(&self) -> String {
        match self {
            Self::LoadTable(_) => format!("nft add table {TABLE} ..."),
            other => other.commands().join("; "),
        }
    }
}

impl Step {
    fn new(action: Action, status: Status) -> Self {
        Self { action, status, note: None, blocks: false, waits: false, lines: None }
    }

    /// Notes that the device is not there, if so.
    fn wait_for(&mut self, device: &str, seen: &Observed) {
        if !seen.links.iter().any(|l| l.name == device) {
            self.waits = true;
            self.note = Some("the device appears when weir runs".to_owned());
        }
    }

    /// Whether `apply` has something to do here.
    pub fn is_due(&self) -> bool {
        matches!(self.status, Status::Missing | Status::Conflicting)
    }

    /// Its commands, each with how it stands.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = match &self.lines {
            Some(lines) => lines.clone(),
            None => self.action.commands().into_iter().map(|c| Line::new(c, self.status)).collect(),
        };
        for line in &mut lines {
            // The table is replaced as a whole: what is right in it is loaded again too.
            line.runs = self.is_due() && !self.waits && !self.blocks;
        }
        if let Some(first) = lines.first_mut() {
            first.note.clone_from(&self.note);
        }
        lines
    }
}

impl Serialize for Step {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut step = serializer.serialize_struct("Step", 4)?;
        step.serialize_field("commands", &self.action.commands())?;
        step.serialize_field("status", &self.status)?;
        step.serialize_field("note", &self.note)?;
        step.serialize_field("lines", &self.lines())?;
        step.end()
    }
}

/// Steps in the order in which they are applied.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// What is pinned on the BPF file system.
    pub pins: Vec<Line>,
    /// Things that weir does not change and that a person should know.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Whether the host is as wanted.
    pub fn is_done(&self) -> bool {
        !self.steps.iter().any(Step::is_due) && self.blocker().is_none()
    }

    /// The first step that a person must decide about.
    pub fn blocker(&self) -> Option<&Step> {
        self.steps.iter().find(|s| s.blocks)
    }
}

/// Compares. Order: what packets need to be accepted, then routes, rules, and the table that sets the marks last; what is
/// left of an earlier configuration goes after that.
pub fn plan(spec: &HostSpec, seen: &Observed) -> Plan {
    let mut steps = address_steps(spec, seen);
    steps.extend(sysctl_steps(spec, seen));
    let families: &[Family] = if seen.ipv6 { &Family::BOTH } else { &[Family::V4] };
    steps.extend(families.iter().map(|&f| route_step(spec, seen, f)));
    steps.extend(families.iter().map(|&f| rule_step(spec, seen, f)));
    steps.push(table_step(spec, seen));
    steps.extend(stale_steps(spec, seen));
    Plan { steps, pins: pins::lines(seen), warnings: warnings(spec, seen) }
}

fn address_steps(spec: &HostSpec, seen: &Observed) -> Vec<Step> {
    let step = |device: &String| {
        let status = match seen.with_dummy_address.contains(device) {
            true => Status::Present,
            false => Status::Missing,
        };
        let mut step = Step::new(Action::AddAddress { device: device.clone() }, status);
        step.wait_for(device, seen);
        step
    };
    spec.tuns().map(step).collect()
}

fn route_step(spec: &HostSpec, seen: &Observed, family: Family) -> Step {
    let route = LocalRoute { family, table: spec.table };
    let mut step = Step::new(Action::AddRoute(route), Status::Missing);
    let in_table = || seen.routes.iter().filter(|r| r.family == family && r.table == spec.table);
    let foreign = in_table().find(|r| !r.is_ours() && !r.local_default);
    if in_table().any(|r| r.local_default && r.is_ours()) {
        step.status = Status::Present;
        step.note = foreign.map(|foreign| format!("somebody has put there as well: {}", foreign.text));
    } else if let Some(foreign) = foreign {
        step.status = Status::Foreign;
        step.blocks = true;
        step.note =
            Some(format!("table {} is somebody else's: it has {}; choose another", spec.table, foreign.text));
    } else if in_table().any(|r| r.local_default) {
        step.status = Status::Foreign;
        step.note = Some("the same route is there without weir's protocol number: left as it is".to_owned());
    }
    step
}

fn rule_step(spec: &HostSpec, seen: &Observed, family: Family) -> Step {
    let rule = MarkRule::of(spec, family);
    let same = || seen.rules.iter().filter(|r| rule.same_effect(r));
    let mut step = Step::new(Action::AddRule(rule), Status::Missing);
    if same().any(SeenRule::is_ours) {
        step.status = Status::Present;
    } else if same().next().is_some() {
        step.status = Status::Foreign;
        step.note = Some("the same rule is there without weir's protocol number: left as it is".to_owned());
    }
    step
}

fn table_step(spec: &HostSpec, seen: &Observed) -> Step {
    let ruleset = Ruleset::of(spec);
    let wanted = seen.nft_wanted.as_ref();
    let (status, note) = match &seen.nft {
        None => (Status::Missing, None),
        Some(table) if !table.is_ours() => (Status::Foreign, Some(nft::foreign())),
        Some(table) if ruleset.matches(table, wanted) => (Status::Present, None),
        Some(table) if table.is_shut() => {
            let of_this = [Ruleset::shut, Ruleset::shut_late].map(|shut| shut(spec, &seen.links));
            let is_of_this = of_this.iter().any(|shut| shut.matches(table, None));
            (Status::Conflicting, Some(if is_of_this { SHUT } else { SHUT_OTHERWISE }.to_owned()))
        }
        Some(table) if table.has_lost_ports() => (Status::Conflicting, Some(LOST.to_owned())),
        Some(table) => (Status::Conflicting, Some(difference(&ruleset, table, wanted))),
    };
    let mut lines = ruleset.lines(seen.nft.as_ref(), wanted);
    if status == Status::Conflicting {
        lines.insert(0, Line::new(format!("nft 'delete table {TABLE}'"), Status::Conflicting));
    }
    let blocks = status == Status::Foreign;
    Step { note, blocks, lines: Some(lines), ..Step::new(Action::LoadTable(ruleset), status) }
}

/// In what weir's own table is not the wanted one.
fn difference(ruleset: &Ruleset, table: &SeenTable, wanted: Option<&SeenTable>) -> String {
    if !table.comment.as_ref().is_some_and(|comment| comment.ends_with(&ruleset.fingerprint)) {
        return format!("weir's table {TABLE} is of another configuration");
    }
    let beyond: Vec<String> = wanted.into_iter().flat_map(|wanted| table.beyond(wanted)).collect();
    match (beyond.first(), table.flags.first()) {
        (Some(line), _) => format!("somebody changed weir's table {TABLE}; it has {line}"),
        (None, Some(flag)) => format!("somebody changed weir's table {TABLE}: it has {flag}"),
        (None, None) => format!("somebody took something out of weir's table {TABLE}"),
    }
}

fn stale_steps(spec: &HostSpec, seen: &Observed) -> Vec<Step> {
    let stale = |action| {
        let mut step = Step::new(action, Status::Conflicting);
        step.note = Some("left by an earlier configuration".to_owned());
        step
    };
    let mut kept = Vec::new();
    let mut steps = Vec::new();
    for rule in seen.rules.iter().filter(|r| r.is_ours()) {
        // The kernel takes the same rule twice when anything differs; one of each is wanted.
        if MarkRule::of(spec, rule.family).same_effect(rule) && !kept.contains(&rule.family) {
            kept.push(rule.family);
        } else {
            steps.push(stale(Action::DeleteRule(rule.clone())));
        }
    }
    let routes = seen.routes.iter().filter(|r| r.is_ours() && !(r.table == spec.table && r.local_default));
    steps.extend(routes.map(|r| stale(Action::DeleteRoute(r.clone()))));
    steps
}

fn warnings(spec: &HostSpec, seen: &Observed) -> Vec<String> {
    let mut warnings = Vec::new();
    let value = |key: Key| seen.sysctls.get(&key).map(String::as_str);
    if value(Key::of_device(4, "all", "src_valid_mark")) == Some("1") {
        warnings.push(
            "net.ipv4.conf.all.src_valid_mark is 1 (wg-quick sets it) and cannot stay so: with strict rp_filter, WireGuard \
             interfaces that route by mark may then drop answers"
                .to_owned(),
        );
    }
    let accepts_marks = value(Key::new("net/ipv4/tcp_fwmark_accept")).is_some_and(|v| v != "0");
    if accepts_marks && !spec.intercepts.is_empty() {
        warnings.push(
            "net.ipv4.tcp_fwmark_accept is on: connections of both families take over the mark by which weir hands them to \
             its relay, and their SYN-ACKs come back to this host: nothing that is relayed is answered; run `sysctl -w \
             net.ipv4.tcp_fwmark_accept=0`"
                .to_owned(),
        );
    }
    for rule in seen.rules.iter().filter(|r| !r.is_ours() && r.mark & r.mask & spec.mask != 0) {
        if MarkRule::of(spec, rule.family).same_effect(rule) {
            continue;
        }
        warnings.push(format!(
            "`{}` selects by bits of the mark that weir uses ({:#x}): choose another fallback mark",
            rule.command("add"),
            spec.mask
        ));
    }
    for port in spec.ports.iter().filter(|p| !seen.links.iter().any(|l| l.name == **p)) {
        let links: Vec<&str> = seen.links.iter().map(|l| l.name.as_str()).collect();
        warnings.push(format!("no device named {port} here; there are: {}", links.join(", ")));
    }
    warnings
}

#[cfg(test)]
mod tests;
