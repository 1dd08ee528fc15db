//! What is said of a packet without sending one is what becomes of it.

use super::packets::{FAMILIES, Family, Flags};
use super::*;
use crate::steering::express::{ExpressBatch, ExpressFlow, ExpressHop, Splice};
use crate::steering::look::{Maps, Packet};

/// Ports that a gateway connects from to the bench's pool.
const GATEWAY_PORTS: std::ops::RangeInclusive<u16> = 10_000..=10_009;

fn packet(device: &str, from: SocketAddr, to: SocketAddr) -> Packet {
    Packet { from, to, ifindex: ethtool::index_of(device).unwrap(), tags: None }
}

/// From, to, and the device that it comes in by.
fn rows(family: Family) -> Vec<(SocketAddr, SocketAddr, &'static str)> {
    let client = family.at(family.client, 40_000);
    let at = |address, port| family.at(address, port);
    vec![
        (client, at(family.server, 80), LAN),
        (client, at(family.server, 443), LAN),
        (client, at(family.server, 80), WAN),
        (client, at(family.server, 80), STRAY),
        (client, at(family.server, 81), LAN),
        (client, at(family.mail_server, 25), LAN),
        (client, at(family.mail_server, 80), LAN),
        (client, at(family.elsewhere, 80), LAN),
        (client, at(family.own, 80), LAN),
        (at(family.server, 80), client, WAN),
        (at(family.mail_server, 25), client, WAN),
        (at(family.elsewhere, 7000), client, WAN),
        (at(family.elsewhere, 7000), at(family.own, 10_001), WAN),
        (at(family.elsewhere, 7000), at(family.own, 22), WAN),
    ]
}

/// Each row, as a SYN and as a segment: the steps, the copy and the packet itself agree; asking moves no counter.
fn check_all(bench: &mut Bench, name: &str) {
    for family in FAMILIES {
        for (from, to, device) in rows(family) {
            let what = packet(device, from, to);
            for (flags, opens) in [(Flags::Syn, true), (Flags::Data, false)] {
                let frame = super::packets::tcp(from, to, flags);
                let before = bench.steering.counters().unwrap();
                let look = bench.steering.maps().unwrap().look(&what).unwrap();
                let [copy] = Maps::ask_program(&look, &what, [&frame]).unwrap();
                assert_eq!(bench.steering.counters().unwrap(), before, "asking counts");
                let becomes = bench.count_one(device, &frame);
                let place = format!("{name}: {from} -> {to} by {device}, SYN {opens}: {look:?}");
                assert_eq!(look.outcome(opens), becomes, "{place}");
                assert_eq!(copy, becomes, "the copy, {place}");
            }
        }
    }
}

fn with_pool(work: impl FnOnce(&mut Bench) + Send) {
    with_bench(|bench| {
        let server = |family: Family| PoolServer {
            addr: family.at(family.elsewhere, 7000),
            gateway_ports: Some(GATEWAY_PORTS),
        };
        bench.steering.set_pool_servers(&FAMILIES.map(server)).unwrap();
        work(bench);
    });
}

#[test]
fn packet_that_is_asked_about_becomes_what_was_said() {
    with_pool(|bench| check_all(bench, "alive"));
}

#[test]
fn flow_of_the_kernel_is_said_to_be_one() {
    with_pool(|bench| {
        for family in FAMILIES {
            for (from, to, _) in rows(family) {
                bench.steering.kernel_flows().insert(from, to, 1).unwrap();
            }
        }
        check_all(bench, "kernel flows");
    });
}

#[test]
fn box_without_a_sign_of_life_is_said_to_be_one() {
    for closed in [false, true] {
        with_pool(|bench| {
            bench.steering.set_limits(SECOND, closed).unwrap();
            bench.stop_beating();
            check_all(bench, if closed { "stale, closed" } else { "stale, open" });
        });
    }
}

#[test]
fn box_that_is_late_for_a_moment_is_said_to_be_one() {
    for translated in [0, u64::MAX] {
        with_pool(|bench| {
            bench.steering.set_intercepts(&InterceptTable { translated, ..table() }).unwrap();
            bench.steering.set_doubt(3600 * SECOND).unwrap();
            bench.steering.heartbeat(clock::monotonic_ns() - 2 * SECOND).unwrap();
            check_all(bench, "in doubt");
        });
    }
}

#[test]
fn box_that_is_not_enabled_is_said_to_be_one() {
    with_pool(|bench| {
        bench.steering.disable().unwrap();
        check_all(bench, "disabled");
    });
}

#[test]
fn prefix_of_the_box_is_said_to_be_its_own() {
    with_pool(|bench| {
        let exempt = ["192.0.2.0/28", "2001:db8::/64"].map(|net| net.parse().unwrap()).to_vec();
        bench.steering.set_intercepts(&InterceptTable { exempt, ..table() }).unwrap();
        check_all(bench, "own prefix");
    });
}

#[test]
fn look_at_a_flow_is_not_a_sign_of_its_life() {
    with_bench(|bench| {
        for family in FAMILIES {
            let (from, to) = (family.at(family.client, 40_000), family.at(family.server, 80));
            bench.steering.kernel_flows().insert(from, to, 7).unwrap();
            let what = packet(LAN, from, to);
            let look = bench.steering.maps().unwrap().look(&what).unwrap();
            let frames = [Flags::Data, Flags::Syn].map(|flags| super::packets::tcp(from, to, flags));
            let said = Maps::ask_program(&look, &what, [&frames[0], &frames[1]]).unwrap();
            assert_eq!(said, [Outcome::KernelFlow, Outcome::Redirect], "{}", family.name);
            assert_eq!(look.kernel_flow.map(|flow| flow.last_seen), Some(7));
            assert_eq!(bench.steering.kernel_flows().get(from, to).unwrap().map(|f| f.last_seen), Some(7));
        }
    });
}

#[test]
fn maps_of_an_attached_program_are_found_by_its_id() {
    with_bench(|bench| {
        let index = ethtool::index_of(LAN).unwrap();
        bench.steering.attach(LAN, index, AttachMode::Auto).unwrap();
        let id = xdp(&mut bench.steering.ebpf, PROGRAM).unwrap().info().unwrap().id();
        for family in FAMILIES {
            let what = packet(LAN, family.at(family.client, 40_000), family.at(family.server, 80));
            let maps = Maps::of_program(id).unwrap().expect("weir's");
            let (found, own) =
                (maps.look(&what).unwrap(), bench.steering.maps().unwrap().look(&what).unwrap());
            assert_eq!(found, super::super::Look { now: found.now, ..own });
        }
        assert!(Maps::of_program(u32::MAX).unwrap().is_none());
    });
}

/// Connections of the client to the servers, on port 80: of IPv4 and IPv6, translated and not. The links are LAN and WAN.
fn fill_lane(bench: &Bench, (stands_by, is_up): (bool, bool), delta: u32) {
    let express = bench.steering.express();
    let links = [LAN, WAN].map(|device| {
        let index = ethtool::index_of(device).unwrap();
        express.set_link(index, [2; 6], false).unwrap()
    });
    for (hop, link) in [(7, links[1]), (8, links[0])] {
        let to = ExpressHop { link, dst_mac: [8; 6], src_mac: [4; 6], mtu: 1500, is_up };
        express.set_hop(hop, &to).unwrap();
    }
    let flows = FAMILIES.map(|family| {
        let ends = (family.at(family.client, 40_000), family.at(family.server, 80));
        ExpressFlow {
            client: ends,
            server: ends,
            client_link: links[0],
            server_link: links[1],
            server_hop: 7,
            client_hop: 8,
            stands_by,
            from: None,
            splice: Splice { delta, ..Splice::default() },
        }
    });
    assert_eq!(express.insert(&mut ExpressBatch::new(2), &flows).unwrap(), 2);
    express.enable(true).unwrap();
}

#[test]
fn flow_of_the_express_lane_is_said_to_be_one() {
    let sizes = Sizes { express_flows: 4, ..Sizes::default() };
    for (alive, is_up, delta) in [
        (true, true, 0),
        (true, true, 5),
        (true, false, 5),
        (false, true, 0),
        (false, true, 5),
        (false, false, 0),
        (false, false, 5),
    ] {
        with_bench_of(&sizes, |bench| {
            fill_lane(bench, (false, is_up), delta);
            if !alive {
                bench.stop_beating();
            }
            let name = format!("alive {alive}, next hop up {is_up}, delta {delta}");
            check_all(bench, &name);
            for family in FAMILIES {
                let what = packet(LAN, family.at(family.client, 40_000), family.at(family.server, 80));
                let look = bench.steering.maps().unwrap().look(&what).unwrap();
                let lane = look.lane.expect("it is in the lane");
                assert_eq!((lane.goes, lane.is_translated), ((what.from, what.to), delta != 0), "{name}");
                assert_eq!(look.outcome(false) == Outcome::Express, is_up, "{name}");
            }
            bench.steering.express().enable(false).unwrap();
            check_all(bench, &format!("closed, {name}"));
        });
    }
}

#[test]
fn syn_of_a_flow_that_is_over_is_said_to_end_its_lane() {
    let sizes = Sizes { express_flows: 4, ..Sizes::default() };
    with_bench_of(&sizes, |bench| {
        fill_lane(bench, (false, true), 5);
        bench.stop_beating();
        for family in FAMILIES {
            let ends = (family.at(family.client, 40_000), family.at(family.server, 80));
            for (device, from, to) in [(LAN, ends.0, ends.1), (WAN, ends.1, ends.0)] {
                bench.count_one(device, &super::packets::tcp(from, to, Flags::Fin));
            }
        }
        check_all(bench, "over");
    });
}

#[test]
fn flow_that_is_stood_by_for_and_one_that_no_worker_knows_are_said_to_be_so() {
    let sizes = Sizes { express_flows: 4, ..Sizes::default() };
    for (alive, delta) in [(true, 0), (true, 5), (false, 0), (false, 5)] {
        with_bench_of(&sizes, |bench| {
            fill_lane(bench, (true, true), delta);
            if !alive {
                bench.stop_beating();
            }
            let name = format!("alive {alive}, delta {delta}");
            check_all(bench, &format!("stands by, {name}"));
            let express = bench.steering.express();
            let ends =
                FAMILIES.map(|family| (family.at(family.client, 40_000), family.at(family.server, 80)));
            for ends in ends {
                express.set_stray(ends, ends, true).unwrap();
            }
            check_all(bench, &format!("stray, {name}"));
            for hop in [7, 8] {
                let up = express.hop(hop).unwrap();
                express.set_hop(hop, &ExpressHop { is_up: false, ..up }).unwrap();
            }
            check_all(bench, &format!("stray without a way, {name}"));
            for hop in [7, 8] {
                let down = express.hop(hop).unwrap();
                express.set_hop(hop, &ExpressHop { is_up: true, ..down }).unwrap();
            }
            for (from, to) in ends {
                let what = packet(LAN, from, to);
                let look = bench.steering.maps().unwrap().look(&what).unwrap();
                assert_eq!(look.outcome(false), Outcome::Express, "{name}");
                assert_eq!(look.outcome(true), Outcome::ExpressDrop, "{name}: a SYN");
                let fin = super::packets::tcp(from, to, Flags::Fin);
                assert_eq!(bench.count_one(LAN, &fin), Outcome::ExpressAlone, "{name}");
                express.set_stray((from, to), (from, to), false).unwrap();
                let becomes = bench.count_one(LAN, &fin);
                assert_eq!(
                    becomes,
                    if alive { Outcome::ExpressFlags } else { Outcome::ExpressAlone },
                    "{name}"
                );
            }
        });
    }
}
