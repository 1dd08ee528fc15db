//! The table of a box that fails closed, from the first moment of a start to its end: nobody looks at anything yet, and all that is
//! intercepted is dropped.
//!
//! Nothing but drops, of what a weir that runs would intercept: before the box changes a destination itself (DNAT), and never what is for
//! the box. A kernel that cannot tell own addresses gets the same at the forward hook, where what is for the box never comes: it lacks
//! nothing that these need, but what it changes is judged by the new destination.

use super::{FAIL_CLOSED, Match, NOT_OWN, QUIC, Rule, Ruleset, match_of, name_of, of_devices};
use crate::host::spec::{Family, device_name};
use crate::host::{HostSpec, LinkInfo};

/// In the comments of its rules.
pub(super) const SHUT: &str = "not started";

impl Ruleset {
    /// What clients send to what `spec` intercepts is dropped, of open connections too. Where an intercept takes tagged frames, that
    /// holds of VLANs as well that have no sub-interface among `links` yet.
    pub fn shut(spec: &HostSpec, links: &[LinkInfo]) -> Self {
        Self::shut_at("prerouting", &format!(" {NOT_OWN}"), spec, links)
    }

    /// The same for a kernel that cannot tell its own addresses.
    pub fn shut_late(spec: &HostSpec, links: &[LinkInfo]) -> Self {
        Self::shut_at("forward", "", spec, links)
    }

    /// `not_own`: what follows a match of packets, so that none of the box's own is dropped in that chain.
    fn shut_at(chain: &'static str, not_own: &str, spec: &HostSpec, links: &[LinkInfo]) -> Self {
        let vlans: Vec<&String> = links.iter().filter(|link| is_vlan(link)).map(|link| &link.name).collect();
        let (mut sets, mut rules) = (Vec::new(), Vec::new());
        for (index, intercept) in spec.intercepts.iter().enumerate() {
            let mut devices = Vec::new();
            if !intercept.from.is_empty() {
                devices.push((of_devices(intercept.from.iter()), ""));
            }
            if intercept.tagged {
                let known = match vlans.is_empty() {
                    true => String::new(),
                    false => of_devices(vlans.iter().copied()).replacen("iifname", " iifname !=", 1),
                };
                devices.push((format!("meta iifkind \"vlan\"{known}"), ", new VLANs"));
            }
            for (family, words) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
                let Some(Match { daddr, set, ports }) = match_of(index, intercept, family) else { continue };
                if devices.is_empty() {
                    continue;
                }
                sets.extend(set);
                for (from, which) in &devices {
                    let mut drop = |chain, what: &str, protocol| {
                        let name = name_of(intercept);
                        rules.push(Rule {
                            chain,
                            text: format!("{from} {daddr} {what} drop"),
                            comment: format!("{name} {words}{protocol}{which}, {SHUT}: {FAIL_CLOSED}"),
                        });
                    };
                    drop(chain, &format!("{ports}{not_own}"), "");
                    if intercept.reject_quic {
                        // Where a weir that runs rejects it, too.
                        drop("forward", &format!("udp dport {QUIC}"), ", QUIC");
                    }
                }
            }
        }
        Self::new(sets, rules)
    }
}

fn is_vlan(link: &LinkInfo) -> bool {
    link.kind.as_deref() == Some("vlan") && device_name(&link.name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::InterceptSpec;

    fn web(from: &[&str], tagged: bool) -> HostSpec {
        let intercept = InterceptSpec {
            name: "web".into(),
            from: from.iter().map(ToString::to_string).collect(),
            tagged,
            to: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            ports: vec![(80, 80)],
            reject_quic: true,
        };
        HostSpec { intercepts: vec![intercept], ..HostSpec::default() }
    }

    #[test]
    fn table_of_a_start_needs_nothing_but_own_addresses_and_for_a_kernel_that_lacks_these_nothing() {
        let spec = web(&["lan0"], false);
        let own = "fib daddr type != { local, broadcast, anycast, multicast } drop";
        for (table, ends, chain) in [
            (Ruleset::shut(&spec, &[]), own, "prerouting"),
            (Ruleset::shut_late(&spec, &[]), "drop", "forward"),
        ] {
            let text = table.transaction();
            for word in ["tproxy", "socket", "mark", "reject", "vlan", "jump"] {
                assert!(!text.contains(word), "{word} is in\n{text}");
            }
            for word in ["fib", "prerouting"] {
                assert_eq!(text.contains(word), ends == own, "{word}\n{text}");
            }
            let from = "iifname { \"lan0\" }";
            for rule in [
                format!("{chain} {from} ip daddr @to_0_ipv4 tcp dport {{ 80 }} {ends}"),
                format!("{chain} {from} ip6 daddr @to_0_ipv6 tcp dport {{ 80 }} {ends}"),
                format!("forward {from} ip6 daddr @to_0_ipv6 udp dport 443 drop"),
            ] {
                assert!(text.contains(&rule), "{rule} is not in\n{text}");
            }
        }
    }

    #[test]
    fn vlans_without_a_sub_interface_are_shut_out_where_tagged_frames_are_taken() {
        let link = |name: &str, kind: &str| LinkInfo {
            name: name.into(),
            kind: Some(kind.into()),
            ..LinkInfo::default()
        };
        let links = [link("lan0.10", "vlan"), link("eth9.7", "vlan"), link("br0", "bridge")];
        let of = |from: &[&str], links: &[LinkInfo]| Ruleset::shut(&web(from, true), links).transaction();
        let text = of(&["lan0.10"], &links);
        assert!(text.contains("prerouting iifname { \"lan0.10\" } ip6 daddr"), "{text}");
        let beyond =
            "meta iifkind \"vlan\" iifname != { \"lan0.10\", \"eth9.7\" } ip daddr @to_0_ipv4 tcp dport";
        assert!(text.contains(beyond), "{text}");
        let none = of(&[], &[]);
        assert!(none.contains("prerouting meta iifkind \"vlan\" ip6 daddr"), "{none}");
        assert!(!none.contains("iifname"), "{none}");
    }
}
