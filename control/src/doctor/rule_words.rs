//! Policy rules of others in the words of ip-rule(8), and the command that deletes one of them and no other.

use std::collections::BTreeSet;

use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use crate::host::rule::SeenRule;
use crate::host::spec::Family;

/// What a rule selects by and what it does, a part for each word and its value.
struct Words {
    parts: Vec<String>,
    /// It has nothing besides.
    is_whole: bool,
}

impl Words {
    fn of(family: Family, message: &RuleMessage) -> Self {
        let header = &message.header;
        let not = header.flags.contains(RuleFlags::Invert).then(|| "not".to_owned());
        let tos = (header.tos != 0).then(|| format!("tos {:#x}", header.tos));
        let mut words = Self { parts: not.into_iter().chain(tos).collect(), is_whole: true };
        let seen = SeenRule::of(family, message);
        if seen.mark != 0 || seen.mask != 0 {
            words.parts.push(format!("fwmark {:#x}/{:#x}", seen.mark, seen.mask));
        }
        message.attributes.iter().for_each(|attribute| words.add(message, attribute));
        words.parts.extend(does(&seen, message));
        words.parts.push(format!("priority {}", seen.priority));
        if seen.protocol != 0 {
            words.parts.push(format!("protocol {}", seen.protocol));
        }
        words
    }

    fn add(&mut self, message: &RuleMessage, attribute: &RuleAttribute) {
        let header = &message.header;
        self.parts.push(match attribute {
            RuleAttribute::Source(address) => format!("from {address}/{}", header.src_len),
            RuleAttribute::Destination(address) => format!("to {address}/{}", header.dst_len),
            RuleAttribute::Iifname(name) => format!("iif {name}"),
            RuleAttribute::Oifname(name) => format!("oif {name}"),
            RuleAttribute::UidRange(range) => format!("uidrange {}-{}", range.start, range.end),
            RuleAttribute::IpProtocol(protocol) => format!("ipproto {}", u8::from(*protocol)),
            RuleAttribute::SourcePortRange(range) => format!("sport {}-{}", range.start, range.end),
            RuleAttribute::DestinationPortRange(range) => format!("dport {}-{}", range.start, range.end),
            RuleAttribute::TunId(id) if *id != 0 => format!("tun_id {id}"),
            RuleAttribute::Realm(realm) => format!("realms {}/{}", realm.source, realm.destination),
            RuleAttribute::SuppressPrefixLen(length) if *length != u32::MAX => {
                format!("suppress_prefixlength {length}")
            }
            RuleAttribute::SuppressIfGroup(group) if *group != u32::MAX => {
                format!("suppress_ifgroup {group}")
            }
            RuleAttribute::Other(_) => return self.is_whole = false,
            // Said elsewhere, or nothing.
            _ => return,
        });
    }

    /// What the kernel compares when it is to delete a rule (net/core/fib_rules.c, rule_find): of what it is told all but the
    /// inversion, a mark of 0, and where a rule goes on.
    fn compared(&self) -> BTreeSet<String> {
        let compared = |part: &String| match part.split_once(' ') {
            None if part == "not" => Vec::new(),
            Some(("goto", _)) => vec!["goto".to_owned()],
            Some(("fwmark", of)) => {
                let (mark, mask) = of.split_once('/').unwrap_or((of, ""));
                let mark = (mark != "0x0").then(|| format!("mark {mark}"));
                mark.into_iter().chain([format!("mask {mask}")]).collect()
            }
            _ => vec![part.clone()],
        };
        self.parts.iter().flat_map(compared).collect()
    }

    fn command(&self, family: Family, verb: &str) -> String {
        format!("{} rule {verb} {}", family.ip(), self.parts.join(" "))
    }
}

/// What a rule does with what it selects.
fn does(seen: &SeenRule, message: &RuleMessage) -> Option<String> {
    let said = |attribute: &RuleAttribute| match attribute {
        RuleAttribute::L3MDev(true) => Some("l3mdev".to_owned()),
        RuleAttribute::Goto(priority) => Some(format!("goto {priority}")),
        _ => None,
    };
    match message.header.action {
        RuleAction::Blackhole => Some("blackhole".to_owned()),
        RuleAction::Prohibit => Some("prohibit".to_owned()),
        RuleAction::Unreachable => Some("unreachable".to_owned()),
        RuleAction::Nop => Some("nop".to_owned()),
        _ => {
            let table = seen.table.filter(|table| *table != 0).map(|table| format!("lookup {table}"));
            message.attributes.iter().find_map(said).or(table)
        }
    }
}

/// A rule as `ip rule` takes it.
pub fn text(family: Family, message: &RuleMessage) -> String {
    format!("{} rule {}", family.ip(), Words::of(family, message).parts.join(" "))
}

/// The command that deletes a rule of the kernel's list, and leaves every other; none: it selects by what there are no words for.
///
/// The kernel deletes the first rule that has all that it is told, whatever else that one has. Where others come before, these are
/// taken away first and put back after it.
pub fn delete(rules: &[(Family, RuleMessage)], family: Family, message: &RuleMessage) -> Option<String> {
    let wanted = Words::of(family, message);
    let asked = wanted.compared();
    let before = rules.iter().take_while(|(_, other)| !std::ptr::eq(other, message));
    let hit: Vec<Words> = before
        .filter(|(of, _)| *of == family)
        .map(|(_, other)| Words::of(family, other))
        .filter(|words| asked.is_subset(&words.compared()))
        .collect();
    if !wanted.is_whole || hit.iter().any(|words| !words.is_whole) {
        return None;
    }
    let away = hit.iter().map(|words| words.command(family, "del"));
    let back = hit.iter().map(|words| words.command(family, "add"));
    Some(away.chain([wanted.command(family, "del")]).chain(back).collect::<Vec<_>>().join(" && "))
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::RouteProtocol;
    use rtnetlink::packet_route::rule::{RulePortRange, RuleUidRange};

    use super::*;

    fn rule(table: u32, attributes: &[RuleAttribute]) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![RuleAttribute::Priority(100), RuleAttribute::Table(table)];
        message.attributes.extend(attributes.iter().cloned());
        message
    }

    #[test]
    fn command_says_all_that_a_rule_selects_by() {
        let mut message = rule(
            5,
            &[
                RuleAttribute::Source("10.77.0.0".parse().unwrap()),
                RuleAttribute::FwMark(0x10),
                RuleAttribute::FwMask(0xff),
                RuleAttribute::Iifname("lan0".to_owned()),
                RuleAttribute::Oifname("wan0".to_owned()),
                RuleAttribute::UidRange(RuleUidRange { start: 3, end: 4 }),
                RuleAttribute::DestinationPortRange(RulePortRange { start: 80, end: 90 }),
                RuleAttribute::SuppressPrefixLen(u32::MAX),
                RuleAttribute::SuppressIfGroup(u32::MAX),
                RuleAttribute::Protocol(RouteProtocol::Other(99)),
            ],
        );
        (message.header.src_len, message.header.tos) = (16, 0x10);
        let rules = [(Family::V4, message)];
        let wanted = "ip rule del tos 0x10 fwmark 0x10/0xff from 10.77.0.0/16 iif lan0 oif wan0 uidrange 3-4 dport 80-90 lookup 5 \
                      priority 100 protocol 99";
        assert_eq!(delete(&rules, Family::V4, &rules[0].1).as_deref(), Some(wanted));
        let mut message = rule(0, &[RuleAttribute::Source("2001:db8::".parse().unwrap())]);
        (message.header.src_len, message.header.action) = (32, RuleAction::Blackhole);
        message.header.flags = RuleFlags::Invert;
        let rules = [(Family::V6, message)];
        let wanted = "ip -6 rule del not from 2001:db8::/32 blackhole priority 100";
        assert_eq!(delete(&rules, Family::V6, &rules[0].1).as_deref(), Some(wanted));
    }

    #[test]
    fn rules_that_the_kernel_would_take_for_it_are_put_back() {
        let narrow = rule(254, &[RuleAttribute::Iifname("lan0".to_owned())]);
        let (wide, other) = (rule(254, &[]), rule(5, &[]));
        for family in Family::BOTH {
            let rules = [&narrow, &other, &wide].map(|message| (family, message.clone()));
            let ip = family.ip();
            let alone = format!("{ip} rule del iif lan0 lookup 254 priority 100");
            assert_eq!(delete(&rules, family, &rules[0].1), Some(alone.clone()));
            assert_eq!(
                delete(&rules, family, &rules[2].1),
                Some(format!(
                    "{alone} && {ip} rule del lookup 254 priority 100 && {ip} rule add iif lan0 lookup 254 priority 100"
                ))
            );
        }
        // The other family's rules are another list.
        let rules = [(Family::V4, narrow), (Family::V6, wide)];
        assert_eq!(
            delete(&rules, Family::V6, &rules[1].1).as_deref(),
            Some("ip -6 rule del lookup 254 priority 100")
        );
    }

    #[test]
    fn inversion_and_a_mark_of_zero_are_nothing_that_the_kernel_compares() {
        let mut inverted = rule(254, &[RuleAttribute::FwMark(0x1), RuleAttribute::FwMask(0xff)]);
        inverted.header.flags = RuleFlags::Invert;
        let zero = rule(254, &[RuleAttribute::FwMask(0xff)]);
        let rules = [inverted, zero].map(|message| (Family::V4, message));
        let command = delete(&rules, Family::V4, &rules[1].1).unwrap();
        assert!(
            command.starts_with("ip rule del not fwmark 0x1/0xff lookup 254 priority 100 && "),
            "{command}"
        );
        assert!(
            command.ends_with(" && ip rule add not fwmark 0x1/0xff lookup 254 priority 100"),
            "{command}"
        );
    }
}
