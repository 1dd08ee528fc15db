//! The order of steering, one row per packet.

use etherparse::IpNumber;

use super::packets::{ETH, FAMILIES, Family, Flags, ip, other, tagged, tagged_with, udp};
use super::*;

const TO_WORKER: (u32, Outcome) = (REDIRECT, Outcome::Redirect);
const PASSES: fn(Outcome) -> (u32, Outcome) = |outcome| (PASS, outcome);

#[test]
fn packets_of_no_ip_pass() {
    with_bench(|bench| {
        let rows = [
            ("ARP", 0x0806, Outcome::NotIp),
            ("LLDP", 0x88cc, Outcome::NotIp),
            ("MPLS", 0x8847, Outcome::NotIp),
            ("PPPoE", 0x8864, Outcome::NotIp),
            ("802.1Q priority, no IP", 0x8100, Outcome::NotIp),
            ("802.1ad priority, no IP", 0x88a8, Outcome::NotIp),
        ];
        for (name, ethertype, outcome) in rows {
            bench.check(name, LAN, &other(ethertype), (PASS, outcome));
        }
        for family in FAMILIES {
            for tpid in [0x8100, 0x88a8] {
                let packet = tagged(&family.out(family.server, 80, Flags::Syn), tpid);
                bench.check(family.name, LAN, &packet, (PASS, Outcome::Vlan));
                // VLAN 0 is a priority and no VLAN: what is behind it is judged, or it would be a way around the rules.
                let syn = family.out(family.server, 80, Flags::Syn);
                let priority = tagged_with(&syn, tpid, 0xe000);
                bench.check("priority tag", LAN, &priority, TO_WORKER);
                let nested = tagged_with(&priority, 0x8100, 0);
                bench.check("two priority tags", LAN, &nested, (DROP, Outcome::NestedTagDrop));
                let inner = tagged_with(&packet, 0x8100, 0);
                bench.check("a VLAN behind a priority tag", LAN, &inner, (PASS, Outcome::Vlan));
            }
        }
    });
}

#[test]
fn frames_for_another_station_pass() {
    with_bench(|bench| {
        for family in FAMILIES {
            let syn = family.out(family.server, 80, Flags::Syn);
            let index = crate::ethtool::index_of(LAN).unwrap();
            bench.steering.set_mac(index, [6; 6]).unwrap();
            bench.check("for another", LAN, &syn, (PASS, Outcome::OtherHost));
            let mac = syn.first_chunk::<6>().copied().unwrap();
            bench.steering.set_mac(index, mac).unwrap();
            bench.check("for the port", LAN, &syn, TO_WORKER);
        }
    });
}

#[test]
fn packets_of_no_tcp_pass() {
    with_bench(|bench| {
        for family in FAMILIES {
            let (client, server) = (family.at(family.client, 40_000), family.at(family.server, 80));
            let icmp = if family.is_v6() { IpNumber::IPV6_ICMP } else { IpNumber::ICMP };
            let carried = |protocol| ip(client.ip(), server.ip(), protocol, &[0; 32]);
            let rows = [
                ("UDP to an intercepted port", udp(client, server)),
                ("ICMP echo", ip(client.ip(), server.ip(), icmp, &[8, 0, 0, 0, 0, 1, 0, 1])),
                ("ND", ip(client.ip(), server.ip(), icmp, &[135; 24])),
                ("SCTP", carried(IpNumber::SCTP)),
                ("ESP", carried(IpNumber(50))),
                ("GRE", carried(IpNumber(47))),
                ("no next header", carried(IpNumber(59))),
            ];
            for (name, packet) in rows {
                bench.check(name, LAN, &packet, PASSES(Outcome::NotTcp));
            }
        }
    });
}

#[test]
fn tcp_behind_an_authentication_header_is_intercepted() {
    with_bench(|bench| {
        let six = FAMILIES.into_iter().find(|family| family.is_v6()).unwrap();
        let syn = six.out(six.server, 80, Flags::Syn);
        // RFC 4302: TCP follows, four words and two; the rest is identifiers.
        let mut behind = vec![6, 4, 0, 0];
        behind.resize(24, 0);
        behind.extend(&syn[ETH + 40..]);
        let (client, server) = (six.at(six.client, 40_000), six.at(six.server, 80));
        let packet = ip(client.ip(), server.ip(), IpNumber(51), &behind);
        bench.check("AH before TCP", LAN, &packet, TO_WORKER);
    });
}

/// Name, packet, device, action and counter, with the bench as it starts.
type Row = (&'static str, Vec<u8>, &'static str, u32, Outcome);

fn rows_of(family: Family) -> Vec<Row> {
    let Family { server, mail_server, elsewhere, own, client, .. } = family;
    let out = |server, port, flags| family.out(server, port, flags);
    let back = |server, port, flags| family.back(server, port, flags);
    use Flags::{Data, Fin, Rst, Syn, SynAck};
    use Outcome::{NoIntercept, OwnAddress, Redirect, UnknownPort};
    vec![
        ("SYN of an intercept", out(server, 80, Syn), LAN, REDIRECT, Redirect),
        ("its first port of a range", out(server, 8000, Syn), LAN, REDIRECT, Redirect),
        ("its last port of a range", out(server, 8099, Syn), LAN, REDIRECT, Redirect),
        ("one port past the range", out(server, 8100, Syn), LAN, PASS, NoIntercept),
        ("one port before the range", out(server, 7999, Syn), LAN, PASS, NoIntercept),
        ("established packet", out(server, 80, Data), LAN, REDIRECT, Redirect),
        ("FIN", out(server, 443, Fin), LAN, REDIRECT, Redirect),
        ("RST", out(server, 443, Rst), LAN, REDIRECT, Redirect),
        ("SYN-ACK from the server", back(server, 80, SynAck), WAN, REDIRECT, Redirect),
        ("packet from the server", back(server, 443, Data), WAN, REDIRECT, Redirect),
        ("from the server by the clients' port", back(server, 80, Data), LAN, REDIRECT, Redirect),
        ("SYN from a port that is not `from`", out(server, 80, Syn), WAN, PASS, NoIntercept),
        ("SYN to another address", out(elsewhere, 80, Syn), LAN, PASS, NoIntercept),
        ("SYN to another TCP port", out(server, 22, Syn), LAN, PASS, NoIntercept),
        ("packet from another address", back(elsewhere, 80, Data), WAN, PASS, NoIntercept),
        ("packet from another TCP port", back(server, 22, Data), WAN, PASS, NoIntercept),
        ("SYN of a relay intercept", out(mail_server, 25, Syn), LAN, PASS, NoIntercept),
        ("answer of a relay intercept", back(mail_server, 25, Data), WAN, PASS, NoIntercept),
        ("both match: the first decides", out(mail_server, 80, Syn), LAN, REDIRECT, Redirect),
        ("both match, from the server", back(mail_server, 80, Data), WAN, REDIRECT, Redirect),
        ("SYN to the box, intercepted port", out(own, 80, Syn), LAN, PASS, OwnAddress),
        ("packet to the box", out(own, 443, Data), WAN, PASS, OwnAddress),
        ("from a server to the box", family.tcp((server, 80), (own, 40_000), Data), WAN, PASS, OwnAddress),
        (
            "client port that is an intercepted one, towards the client",
            family.tcp((elsewhere, 5000), (client, 80), Data),
            WAN,
            PASS,
            NoIntercept,
        ),
        ("by a device that is no port", out(server, 80, Syn), STRAY, PASS, UnknownPort),
    ]
}

#[test]
fn packets_of_tcp_take_their_road() {
    with_bench(|bench| {
        for family in FAMILIES {
            for (name, packet, device, action, outcome) in rows_of(family) {
                bench.check(&format!("{} {name}", family.name), device, &packet, (action, outcome));
            }
        }
    });
}

#[test]
fn relay_intercept_before_another_takes_its_flows_from_it() {
    with_bench(|bench| {
        let mut table = InterceptTable::default();
        let all = ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        table.add(3, all, [(80, 80)], [0], true);
        table.add(5, all, [(80, 90)], [0], false);
        bench.steering.set_intercepts(&table).unwrap();
        for family in FAMILIES {
            let relayed = family.out(family.server, 80, Flags::Syn);
            bench.check("the relay's, which comes first", LAN, &relayed, (PASS, Outcome::NoIntercept));
            let fast = family.out(family.server, 81, Flags::Syn);
            bench.check("the other's", LAN, &fast, (REDIRECT, Outcome::Redirect));
        }
    });
}

#[test]
fn packets_cut_short_pass_at_every_length() {
    with_bench(|bench| {
        for family in FAMILIES {
            let packet = family.out(family.server, 80, Flags::Syn);
            assert_eq!(packet.len(), ETH + if family.is_v6() { 60 } else { 40 });
            for len in ETH..packet.len() {
                let name = format!("{} of {len} bytes", family.name);
                bench.check(&name, LAN, &packet[..len], (PASS, Outcome::Malformed));
            }
            bench.check(family.name, LAN, &packet, (REDIRECT, Outcome::Redirect));
        }
    });
}

#[test]
fn headers_that_cannot_be_pass() {
    with_bench(|bench| {
        let [four, six] = FAMILIES.map(|family| family.out(family.server, 80, Flags::Syn));
        let edited = |packet: &[u8], place: usize, value: u8| {
            let mut packet = packet.to_vec();
            packet[ETH + place] = value;
            packet
        };
        let rows = [
            ("IPv4 with version 6", edited(&four, 0, 0x65)),
            ("IPv4 header of 16 bytes", edited(&four, 0, 0x44)),
            ("IPv4 header longer than the packet", edited(&four, 0, 0x4f)),
            ("IPv4 total length below the TCP header", edited(&four, 3, 39)),
            ("IPv4 total length 0", edited(&four, 3, 0)),
            ("IPv6 with version 4", edited(&six, 0, 0x40)),
            ("IPv6 payload length below the TCP header", edited(&six, 5, 19)),
            ("IPv6 payload length 0", edited(&six, 5, 0)),
        ];
        for (name, packet) in rows {
            bench.check(name, LAN, &packet, (PASS, Outcome::Malformed));
        }
        // The opposite: Ethernet pads short packets, and that is nothing wrong.
        for packet in [four, six] {
            let padded = [&packet[..], &[0; 6]].concat();
            bench.check("padding", LAN, &padded, (REDIRECT, Outcome::Redirect));
        }
    });
}
