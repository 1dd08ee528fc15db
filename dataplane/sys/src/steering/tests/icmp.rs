//! ICMP errors that quote TCP: those about packets of the fast road are its own.

use etherparse::IpNumber;

use super::packets::{
    ETH, Extension, FAMILIES, Family, Flags, ip as ip_packet, ipv4_fragment, ipv4_options, ipv6_extensions,
    tagged_with, udp,
};
use super::pools::{pools, servers_of};
use super::*;

const TO_WORKER: (u32, Outcome) = (REDIRECT, Outcome::RedirectIcmp);
const PASSES: (u32, Outcome) = (PASS, Outcome::NotTcp);

/// Who sends the errors.
fn router(family: Family) -> &'static str {
    if family.is_v6() { "2001:dbb::1" } else { "203.0.113.1" }
}

/// The types that are errors.
fn errors(family: Family) -> &'static [u8] {
    if family.is_v6() { &[1, 2, 3, 4] } else { &[3, 11, 12] }
}

/// An error of this type to `to` that quotes these octets of an IP packet.
fn message(family: Family, to: &str, kind: u8, quote: &[u8]) -> Vec<u8> {
    let protocol = if family.is_v6() { IpNumber::IPV6_ICMP } else { IpNumber::ICMP };
    let payload = [&[kind, 0, 0, 0, 0, 0, 0, 0], quote].concat();
    let [from, to] = [router(family), to].map(|address| family.at(address, 0).ip());
    ip_packet(from, to, protocol, &payload)
}

/// What is quoted of a packet: its IP header and eight octets of TCP.
fn quote(packet: &[u8]) -> &[u8] {
    let header = match packet[ETH] >> 4 {
        4 => usize::from(packet[ETH] & 15) * 4,
        _ => 40,
    };
    &packet[ETH..ETH + header + 8]
}

/// An error about a packet between two endpoints, to its source.
fn about(family: Family, from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    message(family, from.0, errors(family)[0], quote(&family.tcp(from, to, Flags::Data)))
}

#[test]
fn errors_about_packets_of_the_fast_road_are_its_own() {
    with_bench(|bench| {
        bench.steering.set_pool_servers(&pools()).unwrap();
        for family in FAMILIES {
            let Family { server, mail_server, elsewhere, own, client, .. } = family;
            let (plain, gateway) = servers_of(family);
            for (name, from, to, expected) in [
                ("to a server", (client, 40_000), (server, 80), TO_WORKER),
                ("from a server", (server, 443), (client, 40_000), TO_WORKER),
                ("to a server of both intercepts", (client, 40_000), (mail_server, 80), TO_WORKER),
                ("to a pool's server", (client, 40_000), (plain, 443), TO_WORKER),
                ("from a pool's server", (plain, 443), (client, 40_000), TO_WORKER),
                ("from the gateway", (own, 20_000), (gateway, 443), TO_WORKER),
                ("from the gateway's last port", (own, 20_099), (gateway, 443), TO_WORKER),
                ("to another port", (client, 40_000), (server, 22), PASSES),
                ("from another port", (server, 22), (client, 40_000), PASSES),
                ("to port 0 of a pool's server", (client, 40_000), (plain, 0), PASSES),
                ("to another address", (client, 40_000), (elsewhere, 80), PASSES),
                ("to a server of the relay alone", (client, 40_000), (mail_server, 25), PASSES),
                ("from the box", (own, 22), (client, 40_000), PASSES),
                ("from the box to a server", (own, 40_000), (server, 80), PASSES),
                ("from the box to a pool's server", (own, 20_000), (plain, 443), PASSES),
                ("from another port of the box", (own, 19_999), (gateway, 443), PASSES),
                ("from the box to another port", (own, 20_000), (gateway, 80), PASSES),
            ] {
                let packet = about(family, from, to);
                for device in [LAN, WAN] {
                    bench.check(&format!("{} {name}", family.name), device, &packet, expected);
                }
                let stray =
                    if from.0 == own && expected == PASSES { PASSES } else { (PASS, Outcome::UnknownPort) };
                bench.check(name, STRAY, &packet, stray);
            }
        }
    });
}

#[test]
fn types_that_are_no_errors_pass() {
    with_bench(|bench| {
        for family in FAMILIES {
            let packet = family.out(family.server, 80, Flags::Data);
            for kind in 0..=255 {
                let expected = if errors(family).contains(&kind) { TO_WORKER } else { PASSES };
                let packet = message(family, family.client, kind, quote(&packet));
                bench.check(&format!("{} type {kind}", family.name), WAN, &packet, expected);
            }
        }
    });
}

#[test]
fn error_must_be_for_the_quoted_packets_source() {
    with_bench(|bench| {
        for family in FAMILIES {
            let packet = family.out(family.server, 80, Flags::Data);
            for to in [family.elsewhere, family.server, family.own] {
                let packet = message(family, to, errors(family)[0], quote(&packet));
                bench.check(&format!("{} to {to}", family.name), WAN, &packet, PASSES);
            }
        }
    });
}

#[test]
fn quotes_cut_short_pass_at_every_length() {
    with_bench(|bench| {
        for family in FAMILIES {
            let packet = family.out(family.server, 80, Flags::Data);
            let (whole, kind) = (quote(&packet), errors(family)[0]);
            for len in 0..whole.len() {
                let name = format!("{} quote of {len}", family.name);
                let short = message(family, family.client, kind, &whole[..len]);
                bench.check(&name, WAN, &short, PASSES);
                // The frame has it, the IP packet has not: Ethernet's padding.
                let padded = [&short[..], &whole[len..]].concat();
                bench.check(&name, WAN, &padded, PASSES);
                // The IP packet says that it has it, and the frame has not.
                let cut = message(family, family.client, kind, whole);
                bench.check(&name, WAN, &cut[..cut.len() - whole.len() + len], PASSES);
            }
            let long = message(family, family.client, kind, &packet[ETH..]);
            bench.check("all of it", WAN, &long, TO_WORKER);
        }
    });
}

#[test]
fn quotes_of_something_else_pass() {
    with_bench(|bench| {
        for family in FAMILIES {
            let kind = errors(family)[0];
            let (client, server) = (family.at(family.client, 40_000), family.at(family.server, 80));
            let tcp = family.out(family.server, 80, Flags::Data);
            let mut odd =
                vec![udp(client, server), ip_packet(client.ip(), server.ip(), IpNumber(50), &[0; 32])];
            let mut version = tcp.clone();
            version[ETH] ^= 0x20;
            odd.push(version);
            if family.is_v6() {
                odd.push(ipv6_extensions(&tcp, &[Extension::Destination]));
                odd.push(ipv6_extensions(&tcp, &[Extension::Fragment(5, false)]));
            } else {
                odd.push(ipv4_fragment(&tcp, 5, true));
                let mut header = tcp.clone();
                header[ETH] = 0x44;
                odd.push(header);
            }
            for packet in odd {
                let packet = message(family, family.client, kind, &packet[ETH..]);
                bench.check(family.name, WAN, &packet, PASSES);
            }
        }
    });
}

#[test]
fn headers_before_and_in_the_quote_are_skipped() {
    with_bench(|bench| {
        let [four, six] = FAMILIES;
        let plain = |family: Family| family.out(family.server, 80, Flags::Data);
        let error =
            |family: Family, packet: &[u8]| message(family, family.client, errors(family)[0], quote(packet));
        for words in 1..=10 {
            let quoted = error(four, &ipv4_options(&plain(four), words));
            bench.check("options in the quote", WAN, &quoted, TO_WORKER);
            let mut fits = quoted.clone();
            fits.truncate(quoted.len() - 1);
            bench.check("options in the quote, cut", WAN, &fits, PASSES);
            let outer = ipv4_options(&error(four, &plain(four)), words);
            bench.check("options before it", WAN, &outer, TO_WORKER);
            let both = ipv4_options(&quoted, words);
            bench.check("options in both", WAN, &both, TO_WORKER);
        }
        bench.check(
            "first fragment quoted",
            WAN,
            &error(four, &ipv4_fragment(&plain(four), 0, true)),
            TO_WORKER,
        );
        let packet = error(six, &plain(six));
        for chain in
            [vec![Extension::HopByHop], vec![Extension::Destination; 8], vec![Extension::Routing(24)]]
        {
            bench.check("extension headers", WAN, &ipv6_extensions(&packet, &chain), TO_WORKER);
        }
        let long = ipv6_extensions(&packet, &[Extension::Destination; 9]);
        bench.check("a chain too long to follow, to no server", WAN, &long, (PASS, Outcome::NoIntercept));
        for family in FAMILIES {
            let tagged = tagged_with(&error(family, &plain(family)), 0x8100, 0xe000);
            bench.check("priority tag", WAN, &tagged, TO_WORKER);
        }
        for (offset, more) in [(0, true), (10, true), (10, false)] {
            let fragment = ipv4_fragment(&error(four, &plain(four)), offset, more);
            bench.check("an error in fragments", WAN, &fragment, PASSES);
            let fragment = ipv6_extensions(&packet, &[Extension::Fragment(offset, more)]);
            bench.check("an error in fragments", WAN, &fragment, PASSES);
        }
    });
}

#[test]
fn errors_about_flows_of_the_kernel_pass_and_are_no_sign_of_life() {
    with_bench(|bench| {
        for family in FAMILIES {
            let (client, server) = (family.at(family.client, 40_000), family.at(family.server, 80));
            let flows = bench.steering.kernel_flows();
            flows.insert(client, server, 1).unwrap();
            for (from, to) in [
                ((family.client, 40_000), (family.server, 80)),
                ((family.server, 80), (family.client, 40_000)),
            ] {
                bench.check(family.name, WAN, &about(family, from, to), (PASS, Outcome::KernelFlow));
            }
            let flow = flows.get(client, server).unwrap().unwrap();
            assert!(flow.last_seen == 1 && !flow.is_closed, "{flow:?}");
        }
    });
}

#[test]
fn errors_pass_where_there_is_no_worker_also_when_closed() {
    with_bench(|bench| {
        let packets = FAMILIES.map(|family| about(family, (family.client, 40_000), (family.server, 80)));
        bench.steering.set_limits(SECOND, true).unwrap();
        bench.stop_beating();
        for packet in &packets {
            bench.check("stale", WAN, packet, (PASS, Outcome::StalePass));
        }
        bench.beat();
        bench._sockets.clear();
        for packet in &packets {
            bench.check("no socket", WAN, packet, (PASS, Outcome::NoSocketPass));
        }
    });
}
