//! Sysctls of the network: what weir changes by itself is a note before it runs, and bad when it is missing while it runs.

use rtnetlink::packet_route::route::{RouteAttribute, RouteProtocol};

use super::finding::{Finding, Findings};
use super::ground::Ground;
use crate::host::spec::Family;
use crate::host::sysctl::{self, Key};

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    // Before what is said of forwarding: once that is on, the route is gone.
    accept_ra(ground, found);
    for family in Family::BOTH {
        if family == Family::V6 && !sysctl::has_ipv6() {
            continue;
        }
        forwarding(ground, family, found);
    }
    src_valid_mark(ground, found);
    rp_filter(ground, found);
    // Without an intercept nothing is marked.
    if !ground.spec.intercepts.is_empty() {
        tcp_fwmark_accept(found);
        fwmark_reflect(found);
    }
    disable_ipv6(ground, found);
}

fn read(key: &Key) -> Option<String> {
    key.read().ok().flatten()
}

fn forwarding(ground: &Ground<'_>, family: Family, found: &mut Findings) {
    let (id, general, version) = match family {
        Family::V4 => ("forwarding-v4", Key::new("net/ipv4/ip_forward"), 4),
        Family::V6 => ("forwarding-v6", Key::new("net/ipv6/conf/all/forwarding"), 6),
    };
    // The switches of single IPv6 devices say what the host does with router advertisements, not what it forwards.
    let devices = ground.config.ports.iter().filter(|_| version == 4);
    let keys = std::iter::once(general.clone())
        .chain(devices.map(|port| Key::of_device(4, &port.device, "forwarding")));
    let off: Vec<Key> = keys.filter(|key| read(key).as_deref() == Some("0")).collect();
    if off.is_empty() {
        return found.push(Finding::good(id, general.to_string(), "forwarding is on"));
    }
    // Written first, it switches every device's.
    for key in if off.contains(&general) { &off[..1] } else { &off[..] } {
        let finding = if ground.running.is_some() {
            Finding::bad(
                id,
                key.to_string(),
                "is 0 while weir runs",
                "what is not on the fast road is not forwarded",
            )
        } else {
            Finding::note(
                id,
                key.to_string(),
                "is 0",
                "weir switches it on while it runs and off again when it is stopped: then the clients are cut off, also with \
                 fail = \"open\"",
            )
        };
        found.push(finding.mend(key.command("1")));
    }
}

fn src_valid_mark(ground: &Ground<'_>, found: &mut Findings) {
    let id = "src-valid-mark";
    let before = found.findings.len();
    let devices = ground.spec.devices().map(String::as_str);
    for device in std::iter::once("all").chain(devices) {
        let key = Key::of_device(4, device, "src_valid_mark");
        if read(&key).is_none_or(|value| value == "0") {
            continue;
        }
        let finding = if ground.running.is_some() {
            Finding::bad(
                id,
                key.to_string(),
                "is 1 while weir runs",
                "the kernel takes the marked packets of the relay for martians and drops them",
            )
        } else {
            Finding::note(
                id,
                key.to_string(),
                "is 1 (wg-quick sets it)",
                "weir sets it to 0 while it runs; with strict rp_filter, WireGuard interfaces that route by mark may then drop \
                 answers",
            )
        };
        found.push(finding.mend(key.command("0")));
    }
    let good = Finding::good(id, "net.ipv4.conf.*.src_valid_mark", "is 0 where weir's packets come in");
    found.good_unless_found(before, good);
}

/// A listener whose connections take over the mark of their SYN (include/net/inet_sock.h, inet_request_mark; IPv6 asks the same
/// switch) answers by weir's own rule.
fn tcp_fwmark_accept(found: &mut Findings) {
    let id = "tcp-fwmark-accept";
    let key = Key::new("net/ipv4/tcp_fwmark_accept");
    let finding = match read(&key) {
        Some(value) if value != "0" => Finding::bad(
            id,
            key.to_string(),
            format!("is {value}: connections take over the marks of their SYNs"),
            "weir's rule leads what bears its mark to this host: no SYN-ACK of the relay gets to a client, by IPv4 or by IPv6",
        )
        .mend(key.command("0")),
        _ => Finding::good(id, key.to_string(), "connections do not take over the marks of their SYNs"),
    };
    found.push(finding);
}

/// What the kernel answers without a socket may take over the mark of what it answers (net/ipv4/ip_output.c, ip_send_unicast_reply;
/// net/ipv4/icmp.c, icmp_send; net/ipv6/tcp_ipv6.c, tcp_v6_send_response; net/ipv6/icmp.c, icmp6_send).
fn fwmark_reflect(found: &mut Findings) {
    let id = "fwmark-reflect";
    let before = found.findings.len();
    for version in [4, 6] {
        let key = Key::new(format!("net/ipv{version}/fwmark_reflect"));
        if read(&key).is_none_or(|value| value == "0") {
            continue;
        }
        found.push(
            Finding::note(
                id,
                key.to_string(),
                "is on: the kernel's own answers take over the marks of what they answer",
                "weir's rule leads what bears its mark to this host: RSTs, last ACKs of connections that are over and ICMP errors for \
                 what is relayed never get to the clients, which wait until they give up",
            )
            .mend(key.command("0")),
        );
    }
    let good = Finding::good(id, "net.*.fwmark_reflect", "the kernel's own answers bear no marks");
    found.good_unless_found(before, good);
}

fn rp_filter(ground: &Ground<'_>, found: &mut Findings) {
    let id = "rp-filter";
    let before = found.findings.len();
    let all = read(&Key::of_device(4, "all", "rp_filter")).unwrap_or_default();
    for device in ground.spec.devices() {
        let key = Key::of_device(4, device, "rp_filter");
        let Some(own) = read(&key) else { continue };
        // The larger of the two is in force.
        if own.as_str().max(all.as_str()) != "1" {
            continue;
        }
        let what = format!("reverse path filtering is strict on {device}");
        if ground.spec.tuns().any(|tun| tun == device) {
            found.push(
                Finding::bad(
                    id,
                    key.to_string(),
                    what,
                    "packets come in by it whose senders are behind the ports: the kernel drops every one",
                )
                .mend(key.command("2")),
            );
        } else {
            found.push(
                Finding::note(
                    id,
                    key.to_string(),
                    what,
                    "the kernel's road drops packets whose way back leads through another device, and the fast road does not: \
                     with more than one way to a network, connections break when they change roads",
                )
                .on(device)
                .mend(key.command("2")),
            );
        }
    }
    if found.findings.len() == before {
        found.push(Finding::good(id, "net.ipv4.conf.*.rp_filter", "is not strict where packets come in"));
    }
}

/// A default route that was learned from a router's advertisements is forgotten when forwarding is switched on, unless accept_ra is 2
/// by then. Where it is 0 another program took the advertisements, whose routes stay.
fn accept_ra(ground: &Ground<'_>, found: &mut Findings) {
    let id = "accept-ra";
    let before = found.findings.len();
    let weir_forwards = read(&Key::new("net/ipv6/conf/all/forwarding")).as_deref() == Some("0");
    for (family, route) in &ground.routes {
        let learned = *family == Family::V6
            && route.header.protocol == RouteProtocol::Ra
            && route.header.destination_prefix_length == 0;
        let index = route.attributes.iter().find_map(|a| match a {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let link = ground.links.iter().find(|link| Some(link.ifindex) == index);
        let Some(link) = link.filter(|_| learned) else { continue };
        let key = Key::of_device(6, &link.name, "accept_ra");
        let told = found.findings.iter().skip(before).any(|f| f.subject == key.to_string());
        if told || matches!(read(&key).as_deref(), Some("0" | "2")) {
            continue;
        }
        let what = format!(
            "the IPv6 default route by {} comes from router advertisements, which a forwarding host ignores",
            link.name
        );
        let finding = if weir_forwards {
            Finding::note(
                id,
                key.to_string(),
                what,
                "weir sets it to 2 before it switches forwarding on, so that the route stays; whoever else does that loses it",
            )
        } else {
            Finding::bad(
                id,
                key.to_string(),
                what,
                "forwarding is on already: the kernel lets the route run out, and the box loses its way",
            )
        };
        found.push(finding.mend(key.command("2")));
    }
    found.good_unless_found(
        before,
        Finding::good(
            id,
            "net.ipv6.conf.*.accept_ra",
            "no route depends on advertisements that forwarding ignores",
        ),
    );
}

fn disable_ipv6(ground: &Ground<'_>, found: &mut Findings) {
    for (port, link) in ground.ports() {
        let key = Key::of_device(6, &link.name, "disable_ipv6");
        let Some(value) = read(&key) else { continue };
        found.push(
            if value == "0" {
                Finding::good("ipv6", key.to_string(), "IPv6 is on")
            } else {
                Finding::note(
                    "ipv6",
                    key.to_string(),
                    "IPv6 is switched off on the port",
                    "the kernel drops what arrives by IPv6: nothing of it takes the kernel's road or the relay",
                )
                .mend(key.command("0"))
            }
            .on(&port.device),
        );
    }
}
