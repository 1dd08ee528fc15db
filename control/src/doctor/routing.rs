//! Rules and routes: who takes weir's marked packets before weir's rule does, what is in its table, and what of the
//! intercepts is the box's own.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use super::rule_words;
use crate::host::Status;
use crate::host::rule::{SeenRoute, SeenRule, table_of};
use crate::host::spec::Family;

/// The kernel's table of what is local.
const LOCAL: u32 = 255;

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    let before = found.findings.len();
    for (family, rule) in &ground.rules {
        foreign_rule(ground, *family, rule, found);
    }
    let good = Finding::good("ip-rule", "ip rule", "no rule of others takes weir's marked packets");
    found.good_unless_found(before, good);
    table(ground, found);
    kernel_side(ground, found);
    own_addresses(ground, found);
}

/// What a rule does with what it matches; none when that is nothing.
fn does(ground: &Ground<'_>, family: Family, rule: &SeenRule, message: &RuleMessage) -> Option<String> {
    match message.header.action {
        RuleAction::Blackhole | RuleAction::Prohibit | RuleAction::Unreachable => Some("drops it".to_owned()),
        // Of one whose target is not there the kernel goes on to the next.
        RuleAction::Goto if !message.header.flags.contains(RuleFlags::Unresolved) => {
            let target = message.attributes.iter().find_map(|attribute| match attribute {
                RuleAttribute::Goto(target) => Some(*target),
                _ => None,
            })?;
            (target > ground.spec.priority).then(|| format!("goes on behind that, at {target}"))
        }
        RuleAction::ToTable => {
            let table = rule.table?;
            let in_table = |(of, route): &&(Family, RouteMessage)| {
                *of == family && table_of(route) == table && route.header.kind != RouteType::Throw
            };
            ground
                .routes
                .iter()
                .any(|route| in_table(&route))
                .then(|| format!("looks it up in table {table}"))
        }
        _ => None,
    }
}

/// Whether weir's marked packets match, when no bit but weir's is set.
const fn takes_mark(rule: &SeenRule, mark: u32, mask: u32) -> bool {
    (rule.mark ^ mark) & rule.mask & mask == 0 && rule.mark & rule.mask & !mask == 0
}

fn foreign_rule(ground: &Ground<'_>, family: Family, message: &RuleMessage, found: &mut Findings) {
    let rule = SeenRule::of(family, message);
    let (mark, mask, priority) = (ground.spec.mark, ground.spec.mask, ground.spec.priority);
    // Own addresses are not marked, so the local table may come first.
    if rule.is_ours() || rule.only_own || rule.table == Some(LOCAL) {
        return;
    }
    let id = "ip-rule";
    let (subject, text) =
        (format!("{} rule {}", family.ip(), rule.priority), rule_words::text(family, message));
    let mend = |finding: Finding| {
        finding.mend_or(rule_words::delete(&ground.rules, family, message), NoCommand::Selector)
    };
    let taken = rule.priority < priority && takes_mark(&rule, mark, mask);
    if let Some(does) = does(ground, family, &rule, message).filter(|_| taken) {
        let what = format!("`{text}` comes before weir's rule ({priority}) and {does}");
        let why = "what weir marks must be delivered to its relay, and goes another way: choose a smaller `priority` in \
                   [fallback], or take the rule away";
        return found.push(mend(match rule.narrower {
            true => Finding::note(id, subject, format!("{what} (for some packets only)"), why),
            false => Finding::bad(id, subject, what, why),
        }));
    }
    if rule.mask & mask != 0 && rule.mark & rule.mask & mask != 0 {
        let what = format!("`{text}` selects by bits of the mark that weir writes ({mask:#x})");
        let why = "what it is for is lost for packets that weir marks: choose another `mark` in [fallback]";
        found.push(mend(Finding::note(id, subject, what, why)));
    }
}

/// Somebody else's routes in weir's table.
fn table(ground: &Ground<'_>, found: &mut Findings) {
    let (id, table) = ("table", ground.spec.table);
    let before = found.findings.len();
    for family in Family::BOTH {
        let in_table = ground.routes.iter().filter(|(of, route)| *of == family && table_of(route) == table);
        let seen = in_table.map(|(_, route)| SeenRoute::of(family, route));
        let (ours, foreign): (Vec<SeenRoute>, Vec<SeenRoute>) = seen.partition(SeenRoute::is_ours);
        if foreign.is_empty() {
            continue;
        }
        let finding = Finding::bad(
            id,
            format!("{} route table {table}", family.ip()),
            format!("holds {} routes of somebody else", foreign.len()),
            "what weir marks would take them: weir does not start; choose another `table` in [fallback], or empty it",
        );
        found.push(finding.mend(match ours.is_empty() {
            true => format!("{} route flush table {table}", family.ip()),
            // weir's own stays.
            false => foreign.iter().map(|route| route.command("del")).collect::<Vec<_>>().join(" && "),
        }));
    }
    found.good_unless_found(before, Finding::good(id, format!("table {table}"), "is free for weir"));
}

/// While weir runs, everything that it needs of the kernel must be there; before, nothing may block it.
fn kernel_side(ground: &Ground<'_>, found: &mut Findings) {
    let (id, subject) = ("kernel-side", "weir plan");
    let plan = match &ground.plan {
        Ok(plan) => plan,
        Err(why) => return found.skip(id, subject, why),
    };
    let before = found.findings.len();
    for step in &plan.steps {
        // Also what clears the way for them.
        let commands: Vec<String> =
            step.lines().into_iter().filter(|line| line.runs).map(|line| line.command).collect();
        let note = step.note.clone().unwrap_or_default();
        let title = step.action.title();
        let due = ground.running.is_some() && step.is_due();
        let already_told =
            ["sysctl ", "ip route ", "ip -6 route "].iter().any(|begin| title.starts_with(begin));
        if due && !title.starts_with("sysctl ") {
            let missing = if step.status == Status::Missing { "is missing" } else { "is damaged" };
            found.push(
                Finding::bad(
                    id,
                    subject,
                    format!("`{title}` {missing} while weir runs"),
                    "connections that take the kernel's road are not delivered to the relay",
                )
                // A device of weir's that is gone only weir can make.
                .mend_or((!commands.is_empty()).then(|| commands.join(" && ")), NoCommand::Weir),
            );
        } else if step.blocks && !already_told {
            found.push(
                Finding::bad(
                    id,
                    subject,
                    note,
                    "weir does not touch what is not its own, and does not start",
                )
                .mend("nft delete table inet weir"),
            );
        }
    }
    let good = match ground.running {
        Some(_) => "everything that weir installed is there",
        None => "nothing is in the way of what weir installs",
    };
    found.good_unless_found(before, Finding::good(id, subject, good));
}

/// The destination of a local route that is more than an address of a device.
fn local_prefix(route: &RouteMessage) -> Option<IpNet> {
    if route.header.kind != RouteType::Local || table_of(route) != LOCAL {
        return None;
    }
    let address = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    let net = IpNet::new(address?, route.header.destination_prefix_length).ok()?;
    (!net.addr().is_loopback()).then_some(net)
}

/// Own addresses are never intercepted: an intercept of nothing else does nothing.
fn own_addresses(ground: &Ground<'_>, found: &mut Findings) {
    let id = "route-to-self";
    let before = found.findings.len();
    let own: Vec<IpNet> = ground.routes.iter().filter_map(|(_, route)| local_prefix(route)).collect();
    for intercept in &ground.config.intercepts {
        for to in &intercept.to {
            let Some(local) = own.iter().find(|local| local.contains(to)) else { continue };
            let finding = Finding::bad(
                id,
                format!("intercept {}", intercept.name),
                format!("`to` has {to}, which is this box's own ({local} is local)"),
                "what is for the box itself is never intercepted: correct `to`, or take the address off the box",
            );
            let device = ground.own.iter().find(|(address, ..)| *address == local.addr() && is_host(local));
            let command = match device {
                Some((address, index, length)) => ground
                    .links
                    .iter()
                    .find(|link| link.ifindex == *index)
                    .map(|link| format!("ip addr del {address}/{length} dev {}", link.name)),
                None => Some(format!("ip route del local {local} table local")),
            };
            found.push(finding.mend_or(command, NoCommand::Configuration));
        }
    }
    for local in own.iter().filter(|local| !is_host(local) && !is_multicast(local)) {
        let covers = |to: &IpNet| to.contains(local) && to != local;
        if ground.config.intercepts.iter().any(|intercept| intercept.to.iter().any(covers)) {
            found.push(
                Finding::note(
                    id,
                    local.to_string(),
                    "the whole prefix is local to this box, and within an intercept",
                    "connections to it end here, or nowhere: they are the box's own, and not intercepted",
                )
                .mend(format!("ip route del local {local} table local")),
            );
        }
    }
    found.good_unless_found(
        before,
        Finding::good(id, "intercepts", "none is for the box's own addresses alone"),
    );
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

fn is_multicast(net: &IpNet) -> bool {
    net.addr().is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_takes_the_mark_when_no_bit_stands_against_it() {
        for (mark, mask, takes) in [
            (0, 0, true),
            (0x77, 0xff, true),
            (0x77, 0xffff_ffff, true),
            (0x1, 0x1, true),
            (0x8, 0x8, false),
            (0x100, 0x100, false),
            (0x76, 0xff, false),
        ] {
            let rule = SeenRule {
                family: Family::V4,
                priority: 1,
                mark,
                mask,
                table: Some(1),
                protocol: 0,
                narrower: false,
                only_own: false,
            };
            assert_eq!(takes_mark(&rule, 0x77, 0xff), takes, "{mark:#x}/{mask:#x}");
        }
    }
}
