//! Servers of pools: what they send is for the fast road, and to the box itself where the gateway is the source.

use super::packets::{Extension, FAMILIES, Family, Flags, ipv4_fragment, ipv6_extensions};
use super::*;

const TO_WORKER: (u32, Outcome) = (REDIRECT, Outcome::RedirectPool);
const TO_GATEWAY: (u32, Outcome) = (REDIRECT, Outcome::RedirectGateway);
const BY_ADDRESSES: (u32, Outcome) = (REDIRECT, Outcome::RedirectFragment);
const NO_INTERCEPT: (u32, Outcome) = (PASS, Outcome::NoIntercept);
const OWN: (u32, Outcome) = (PASS, Outcome::OwnAddress);

/// The ports that the gateway connects from.
pub const PORTS: std::ops::RangeInclusive<u16> = 20_000..=20_099;

/// A pool's server that sees clients, and one that sees the gateway; both on port 443 and of no intercept.
pub fn servers_of(family: Family) -> (&'static str, &'static str) {
    if family.is_v6() { ("2001:db9::7", "2001:db9::8") } else { ("198.51.100.7", "198.51.100.8") }
}

/// Both servers of both families.
pub fn pools() -> Vec<PoolServer> {
    let of = |family: Family| {
        let (plain, gateway) = servers_of(family);
        [(plain, None), (gateway, Some(PORTS))]
            .map(|(address, gateway_ports)| PoolServer { addr: family.at(address, 443), gateway_ports })
    };
    FAMILIES.into_iter().flat_map(of).collect()
}

fn fragment_of(family: Family, packet: &[u8], first: bool) -> Vec<u8> {
    let offset = if first { 0 } else { 10 };
    if family.is_v6() {
        ipv6_extensions(packet, &[Extension::Fragment(offset, true)])
    } else {
        ipv4_fragment(packet, offset, true)
    }
}

#[test]
fn packets_from_a_pools_server_are_for_the_fast_road() {
    use Flags::{Data, Fin, Rst, Syn, SynAck};
    with_bench(|bench| {
        bench.steering.set_pool_servers(&pools()).unwrap();
        for family in FAMILIES {
            let (plain, gateway) = servers_of(family);
            for (name, packet, expected) in [
                ("SYN-ACK", family.back(plain, 443, SynAck), TO_WORKER),
                ("data", family.back(plain, 443, Data), TO_WORKER),
                ("FIN", family.back(plain, 443, Fin), TO_WORKER),
                ("RST", family.back(plain, 443, Rst), TO_WORKER),
                ("to a client, of the gateway's server", family.back(gateway, 443, Data), TO_WORKER),
                ("SYN", family.back(plain, 443, Syn), NO_INTERCEPT),
                ("from another port", family.back(plain, 80, Data), NO_INTERCEPT),
                ("from port 0", family.back(plain, 0, Data), NO_INTERCEPT),
                ("from another address", family.back(family.elsewhere, 443, Data), NO_INTERCEPT),
                ("to the server", family.out(plain, 443, Data), NO_INTERCEPT),
                ("of an intercept", family.back(family.server, 443, Data), (REDIRECT, Outcome::Redirect)),
            ] {
                for device in [LAN, WAN] {
                    bench.check(&format!("{} {name}", family.name), device, &packet, expected);
                }
                bench.check(name, STRAY, &packet, (PASS, Outcome::UnknownPort));
            }
            for first in [true, false] {
                let of = |address| fragment_of(family, &family.back(address, 80, Data), first);
                bench.check("fragment", WAN, &of(plain), BY_ADDRESSES);
                bench.check("fragment of another", WAN, &of(family.elsewhere), NO_INTERCEPT);
            }
        }
    });
}

#[test]
fn nothing_to_own_addresses_is_redirected_but_answers_to_the_gateways_ports() {
    use Flags::{Data, Fin, Rst, Syn, SynAck};
    with_bench(|bench| {
        bench.steering.set_pool_servers(&pools()).unwrap();
        for family in FAMILIES {
            let (plain, gateway) = servers_of(family);
            let to = |from, port, flags| family.tcp(from, (family.own, port), flags);
            let own = |port, flags| to((gateway, 443), port, flags);
            for (name, packet, expected) in [
                ("SYN-ACK to the first port", own(20_000, SynAck), TO_GATEWAY),
                ("data to the last port", own(20_099, Data), TO_GATEWAY),
                ("FIN", own(20_050, Fin), TO_GATEWAY),
                ("RST", own(20_050, Rst), TO_GATEWAY),
                ("SYN", own(20_050, Syn), OWN),
                ("a port before", own(19_999, Data), OWN),
                ("a port after", own(20_100, Data), OWN),
                ("SSH", own(22, Data), OWN),
                ("port 0", own(0, Data), OWN),
                ("from another port of the server", to((gateway, 80), 20_000, Data), OWN),
                ("from port 0 of the server", to((gateway, 0), 20_000, Data), OWN),
                ("from a server that sees clients", to((plain, 443), 20_000, Data), OWN),
                ("from a server of an intercept", to((family.server, 443), 20_000, Data), OWN),
                ("from a client", to((family.client, 443), 20_000, Data), OWN),
                ("from elsewhere", to((family.elsewhere, 443), 20_000, Data), OWN),
            ] {
                for device in [LAN, WAN] {
                    bench.check(&format!("{} {name}", family.name), device, &packet, expected);
                }
            }
            bench.check(
                "by a device that is no port",
                STRAY,
                &own(20_000, Data),
                (PASS, Outcome::UnknownPort),
            );
            for first in [true, false] {
                let fragment = fragment_of(family, &own(20_000, Data), first);
                bench.check("fragment: its port is not known", WAN, &fragment, OWN);
            }
        }
    });
}

#[test]
fn prefixes_of_the_box_are_own_addresses_whoever_sends() {
    with_bench(|bench| {
        bench.steering.set_pool_servers(&pools()).unwrap();
        let exempt = ["203.0.113.0/24", "2001:dba::/32"].map(|net| net.parse().unwrap()).to_vec();
        bench.steering.set_intercepts(&InterceptTable { exempt, ..table() }).unwrap();
        for family in FAMILIES {
            let (plain, gateway) = servers_of(family);
            let own = if family.is_v6() { "2001:dba::5" } else { "203.0.113.5" };
            for (name, from, port, expected) in [
                ("from the gateway's server", (gateway, 443), 20_000, TO_GATEWAY),
                ("from the gateway's server, another port", (gateway, 443), 19_999, OWN),
                ("from a server that sees clients", (plain, 443), 20_000, OWN),
                ("from a server of an intercept", (family.server, 443), 40_000, OWN),
                ("from a client", (family.client, 40_000), 443, OWN),
            ] {
                let packet = family.tcp(from, (own, port), Flags::Data);
                bench.check(&format!("{} {name}", family.name), WAN, &packet, expected);
            }
        }
    });
}

#[test]
fn pools_traffic_passes_or_drops_as_an_intercepts_without_a_sign_of_life() {
    with_bench(|bench| {
        bench.steering.set_pool_servers(&pools()).unwrap();
        let rows_of = |family: Family| {
            let (plain, gateway) = servers_of(family);
            let own = |port| family.tcp((gateway, 443), (family.own, port), Flags::Data);
            [(family.back(plain, 443, Flags::Data), true), (own(20_000), true), (own(22), false)]
        };
        bench.stop_beating();
        for closed in [false, true] {
            bench.steering.set_limits(SECOND, closed).unwrap();
            for (packet, of_pool) in FAMILIES.into_iter().flat_map(rows_of) {
                let expected = match (of_pool, closed) {
                    (true, true) => (DROP, Outcome::StaleDrop),
                    (true, false) => (PASS, Outcome::StalePass),
                    (false, _) => OWN,
                };
                bench.check(&format!("closed {closed}"), WAN, &packet, expected);
            }
        }
        bench.beat();
        bench._sockets.clear();
        for (packet, of_pool) in FAMILIES.into_iter().flat_map(rows_of) {
            let expected = if of_pool { (DROP, Outcome::NoSocketDrop) } else { OWN };
            bench.check("closed, no socket", WAN, &packet, expected);
        }
        bench.steering.disable().unwrap();
        for (packet, of_pool) in FAMILIES.into_iter().flat_map(rows_of) {
            let expected = if of_pool { (PASS, Outcome::Disabled) } else { OWN };
            bench.check("disabled", WAN, &packet, expected);
        }
    });
}

#[test]
fn kernel_flow_of_a_pools_server_passes() {
    with_bench(|bench| {
        bench.steering.set_pool_servers(&pools()).unwrap();
        for family in FAMILIES {
            let (plain, _) = servers_of(family);
            let packet = family.back(plain, 443, Flags::Data);
            let flows = bench.steering.kernel_flows();
            flows.insert(family.at(family.client, 40_000), family.at(plain, 443), 1).unwrap();
            bench.check(family.name, WAN, &packet, (PASS, Outcome::KernelFlow));
        }
    });
}

#[test]
fn servers_changed_are_added_and_removed() {
    with_bench(|bench| {
        for family in FAMILIES {
            let (plain, _) = servers_of(family);
            let server = |port, gateway_ports| PoolServer { addr: family.at(plain, port), gateway_ports };
            let from = |port| family.back(plain, port, Flags::Data);
            let own = |port| family.tcp((plain, 443), (family.own, port), Flags::Data);
            let fragment = fragment_of(family, &from(443), true);
            bench.steering.set_pool_servers(&[server(443, None), server(80, None)]).unwrap();
            bench.check("added", WAN, &from(443), TO_WORKER);
            bench.check("added", WAN, &from(80), TO_WORKER);
            bench.check("address", WAN, &fragment, BY_ADDRESSES);
            bench.check("without the gateway", WAN, &own(20_000), OWN);
            bench.steering.set_pool_servers(&[server(443, Some(PORTS))]).unwrap();
            bench.check("removed", WAN, &from(80), NO_INTERCEPT);
            bench.check("the address stays", WAN, &fragment, BY_ADDRESSES);
            bench.check("with the gateway", WAN, &own(20_000), TO_GATEWAY);
            bench.steering.set_pool_servers(&[server(443, Some(30_000..=30_000))]).unwrap();
            bench.check("other ports", WAN, &own(20_000), OWN);
            bench.check("other ports", WAN, &own(30_000), TO_GATEWAY);
            let apart = [server(443, Some(PORTS)), server(443, Some(30_000..=30_000))];
            let error = bench.steering.set_pool_servers(&apart).unwrap_err();
            assert!(matches!(error, SteeringError::PoolPorts { .. }), "{error}");
            bench.check("as before", WAN, &own(30_000), TO_GATEWAY);
            bench.steering.set_pool_servers(&[]).unwrap();
            bench.check("none", WAN, &from(443), NO_INTERCEPT);
            bench.check("none", WAN, &fragment, NO_INTERCEPT);
            bench.check("none", WAN, &own(30_000), OWN);
        }
    });
}
