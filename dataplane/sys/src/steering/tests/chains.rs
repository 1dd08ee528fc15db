//! Options, extension headers and fragments: no header is a way around a policy.

use std::net::IpAddr;

use etherparse::IpNumber;

use super::packets::{
    ETH, Extension, FAMILIES, Flags, ip as ip_packet, ipv4_fragment, ipv4_options, ipv6_extensions, udp,
};
use super::*;

const TO_WORKER: (u32, Outcome) = (REDIRECT, Outcome::Redirect);
const BY_ADDRESSES: (u32, Outcome) = (REDIRECT, Outcome::RedirectFragment);
const NOT_TCP: (u32, Outcome) = (PASS, Outcome::NotTcp);
const NO_INTERCEPT: (u32, Outcome) = (PASS, Outcome::NoIntercept);
const MALFORMED: (u32, Outcome) = (PASS, Outcome::Malformed);

#[test]
fn ipv4_options_are_skipped() {
    with_bench(|bench| {
        let [family, _] = FAMILIES;
        let plain = family.out(family.server, 80, Flags::Syn);
        for words in 1..=10 {
            let packet = ipv4_options(&plain, words);
            bench.check(&format!("{words} words"), LAN, &packet, TO_WORKER);
            for cut in 1..=20 {
                let short = &packet[..packet.len() - cut];
                bench.check(&format!("{words} words, {cut} short"), LAN, short, MALFORMED);
            }
        }
        let packet = ipv4_options(&family.out(family.server, 22, Flags::Syn), 10);
        bench.check("of no intercept", LAN, &packet, NO_INTERCEPT);
    });
}

#[test]
fn ipv4_fragments_are_judged_by_addresses() {
    with_bench(|bench| {
        let [family, _] = FAMILIES;
        // Port 22 is of no intercept: the ports of a fragment say nothing.
        let (out, back) =
            (family.out(family.server, 22, Flags::Data), family.back(family.server, 22, Flags::Data));
        let stray = family.out(family.elsewhere, 80, Flags::Data);
        let own = family.out(family.own, 80, Flags::Data);
        let mail = family.out(family.mail_server, 25, Flags::Data);
        let datagram = udp(family.at(family.client, 1), family.at(family.server, 80));
        for (kind, offset, more) in [("first", 0, true), ("middle", 10, true), ("last", 10, false)] {
            let rows = [
                ("to a server", LAN, &out, BY_ADDRESSES),
                ("from a server", WAN, &back, BY_ADDRESSES),
                ("to a server, from another port", WAN, &out, NO_INTERCEPT),
                ("to another address", LAN, &stray, NO_INTERCEPT),
                ("to a server of both intercepts", LAN, &mail, BY_ADDRESSES),
                ("to the box", LAN, &own, (PASS, Outcome::OwnAddress)),
                ("of UDP", LAN, &datagram, NOT_TCP),
            ];
            for (name, device, packet, expected) in rows {
                let packet = ipv4_fragment(packet, offset, more);
                bench.check(&format!("{kind} fragment {name}"), device, &packet, expected);
                bench.check(&format!("tiny {kind} fragment {name}"), device, &packet[..ETH + 20], expected);
            }
        }
        let whole = ipv4_fragment(&family.out(family.server, 80, Flags::Data), 0, false);
        let mut unfragmentable = whole.clone();
        unfragmentable[ETH + 6] |= 0x40;
        bench.check("don't fragment", LAN, &unfragmentable, TO_WORKER);
    });
}

#[test]
fn fragments_between_addresses_of_relay_intercepts_alone_pass() {
    with_bench(|bench| {
        let mut table = InterceptTable::default();
        let all = ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        table.add(0, all, [(25, 25)], [0], true);
        bench.steering.set_intercepts(&table).unwrap();
        let [four, six] = FAMILIES;
        let packet = ipv4_fragment(&four.out(four.server, 25, Flags::Data), 0, true);
        bench.check("IPv4", LAN, &packet, NO_INTERCEPT);
        let chain = [Extension::Fragment(0, true)];
        let packet = ipv6_extensions(&six.out(six.server, 25, Flags::Data), &chain);
        bench.check("IPv6", LAN, &packet, NO_INTERCEPT);
    });
}

/// What a chain of extension headers before TCP comes to.
fn chains() -> Vec<(Vec<Extension>, (u32, Outcome))> {
    use Extension::{Destination, Fragment, HopByHop, Routing};
    vec![
        (vec![HopByHop], TO_WORKER),
        (vec![Routing(8)], TO_WORKER),
        (vec![Routing(24)], TO_WORKER),
        (vec![Destination], TO_WORKER),
        (vec![HopByHop, Destination, Routing(24), Destination], TO_WORKER),
        // An atomic fragment (RFC 6946) is a whole packet.
        (vec![Fragment(0, false)], TO_WORKER),
        (vec![HopByHop, Fragment(0, false), Destination], TO_WORKER),
        (vec![Destination; 8], TO_WORKER),
        // Too long to follow: not passed for that.
        (vec![Destination; 9], BY_ADDRESSES),
        (vec![Destination; 40], BY_ADDRESSES),
        (vec![Fragment(0, true)], BY_ADDRESSES),
        (vec![Fragment(5, true)], BY_ADDRESSES),
        (vec![Fragment(5, false)], BY_ADDRESSES),
        (vec![HopByHop, Fragment(5, false)], BY_ADDRESSES),
        (vec![Fragment(0, true), Destination], BY_ADDRESSES),
        // What follows a non-first fragment header is no header, though it is called one.
        (vec![Fragment(5, false), Destination], BY_ADDRESSES),
    ]
}

#[test]
fn ipv6_extension_headers_are_followed() {
    with_bench(|bench| {
        let [_, family] = FAMILIES;
        let rows = [
            ("to a server", LAN, family.out(family.server, 80, Flags::Syn), None),
            ("from a server", WAN, family.back(family.server, 80, Flags::Data), None),
            ("to another address", LAN, family.out(family.elsewhere, 80, Flags::Syn), Some(NO_INTERCEPT)),
            ("to the box", LAN, family.out(family.own, 80, Flags::Syn), Some((PASS, Outcome::OwnAddress))),
        ];
        for (chain, expected) in chains() {
            for (name, device, packet, instead) in &rows {
                let packet = ipv6_extensions(packet, &chain);
                bench.check(&format!("{chain:?} {name}"), device, &packet, instead.unwrap_or(expected));
            }
        }
    });
}

#[test]
fn ipv6_extension_headers_before_something_else_pass() {
    with_bench(|bench| {
        use Extension::{Destination, Fragment, HopByHop};
        let [_, family] = FAMILIES;
        let (client, server) = (family.at(family.client, 1), family.at(family.server, 80));
        let (from, to): (IpAddr, IpAddr) = (client.ip(), server.ip());
        let packets = [udp(client, server), ip_packet(from, to, IpNumber::IPV6_ICMP, &[135; 24])];
        for packet in packets {
            for chain in [
                vec![HopByHop],
                vec![HopByHop, Destination],
                vec![Fragment(0, true)],
                vec![Fragment(5, false)],
                vec![Fragment(0, true), Destination],
            ] {
                let packet = ipv6_extensions(&packet, &chain);
                bench.check(&format!("{chain:?}"), LAN, &packet, NOT_TCP);
            }
        }
    });
}

#[test]
fn ipv6_chain_cut_short_passes_unless_it_is_a_fragment() {
    with_bench(|bench| {
        use Extension::{Destination, Fragment, HopByHop, Routing};
        let [_, family] = FAMILIES;
        let plain = family.out(family.server, 80, Flags::Syn);
        let chain = [HopByHop, Routing(24), Destination];
        let packet = ipv6_extensions(&plain, &chain);
        for len in ETH + 40..packet.len() {
            bench.check(&format!("{len} bytes"), LAN, &packet[..len], MALFORMED);
        }
        // A routing header said to be larger than the packet, and than any packet.
        let mut long = ipv6_extensions(&plain, &[Routing(8)]);
        for words in [3, 100, 255] {
            long[ETH + 41] = words;
            bench.check("routing header past the end", LAN, &long, MALFORMED);
        }
        // A first fragment need not hold the whole chain, whatever RFC 7112 asks of senders.
        let packet = ipv6_extensions(&plain, &[Fragment(0, true), Destination, Destination]);
        for len in ETH + 48..packet.len() {
            bench.check(&format!("first fragment of {len} bytes"), LAN, &packet[..len], BY_ADDRESSES);
        }
    });
}
