//! Flows that no worker knows: a process before has left them, and this one has no room. A live weir is nobody to them.

use std::sync::atomic::{AtomicBool, Ordering};

use weir_core::express::{Adopted, Names};
use weir_core::flow::key::{FlowHasher, FlowKey, owner};
use weir_core::flow::table::Capacity;
use weir_core::pipeline::{Config, Pipeline};
use weir_dataplane::express::share_out;
use weir_tests::bench::{Setup, pool_server};
use weir_tests::packet::{BOTH, SYN};

use super::feeder::{directions, ways};
use super::table::{check, rows};
use super::*;

/// A flow that no worker knows.
fn stray(lane: &mut Lane, how: &Translation) -> ExpressFlow {
    let flow = lane.put(how);
    lane.express.set_stray(flow.client, flow.server, true).unwrap();
    flow
}

fn all() -> Vec<Translation> {
    BOTH.into_iter().flat_map(|family| [plain(family), spliced(family)]).collect()
}

#[test]
fn packets_of_a_stray_that_the_lane_cannot_carry_never_come_to_a_worker() {
    for (closed, alive) in [(false, true), (true, true), (false, false), (true, false)] {
        with_lane(|lane| {
            lane.steering.set_limits(SECOND, closed).unwrap();
            lane.set_alive(alive);
            for how in all() {
                let flow = stray(lane, &how);
                let is_spliced = how.client != how.server;
                let lost = if is_spliced || closed { Outcome::ExpressDrop } else { Outcome::KernelFlow };
                let becomes = |name: &str, outcome| match (name, outcome) {
                    ("FIN" | "RST" | "URG", _) => Outcome::ExpressAlone,
                    ("SYN", _) => Outcome::ExpressDrop,
                    (_, Outcome::ExpressOptions) if !is_spliced => Outcome::Express,
                    (_, Outcome::Express) => outcome,
                    _ => lost,
                };
                for way in WAYS {
                    // Those that are none of its flow are steered as all others.
                    let of_it = |row: &table::Row| row.1 != Outcome::NoIntercept || row.0 == "SYN";
                    for (name, outcome, frame) in rows(&how, way).into_iter().filter(of_it) {
                        // After an end a SYN would be another connection's.
                        if name != "FIN" && name != "RST" {
                            check(lane, &how, way, &(name, becomes(name, outcome), frame));
                        }
                    }
                    let hop = lane.express.hop(way as u16).unwrap();
                    lane.express.set_hop(way as u16, &ExpressHop { is_up: false, ..hop }).unwrap();
                    check(lane, &how, way, &("hop down", lost, segment(&how, way).frame()));
                    lane.express.set_hop(way as u16, &hop).unwrap();
                    lane.express.unset_link(1 - way as u8).unwrap();
                    check(lane, &how, way, &("no device", lost, segment(&how, way).frame()));
                    let device = lane.devices[1 - way as usize];
                    lane.express.set_link(device, MAC, false).unwrap();
                    let frame = segment(&how, way).frame();
                    let other = if way == Way::ToServer { Way::ToClient } else { Way::ToServer };
                    assert_eq!(lane.counted(other, &frame).1, lost, "by another device: {how:?}");
                    for (name, outcome, frame) in rows(&how, way) {
                        if name == "FIN" {
                            check(lane, &how, way, &(name, becomes(name, outcome), frame));
                        }
                    }
                }
                lane.express.take(flow.client, flow.server).unwrap();
            }
        });
    }
}

#[test]
fn packets_that_pass_while_a_flow_is_marked_are_noted() {
    const PACKETS: u64 = 3000;
    with_lane(|lane| {
        lane.set_alive(false);
        for how in all() {
            let flow = lane.put(&how);
            let (express, done) = (lane.express.clone(), AtomicBool::new(false));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        for is_stray in [true, false] {
                            express.set_stray(flow.client, flow.server, is_stray).unwrap();
                        }
                    }
                });
                for way in WAYS {
                    let frame = segment(&how, way).frame();
                    for _ in 0..PACKETS {
                        lane.run(way, &frame);
                    }
                }
                done.store(true, Ordering::Relaxed);
            });
            let seen = lane.express.take(flow.client, flow.server).unwrap().map(Option::unwrap);
            assert_eq!(seen.map(|seen| (seen.packets, seen.is_stray)), [(PACKETS, false); 2]);
            lane.express.set_stray(flow.client, flow.server, true).unwrap();
            assert_eq!(directions(lane), 0, "one that is gone does not come back");
        }
    });
}

#[test]
fn connection_that_enters_with_the_addresses_of_a_stray_that_has_ended_is_none() {
    with_lane(|lane| {
        for how in all() {
            let ways = ways(lane);
            lane.put(&how);
            ways.strays().add(ways.express(), Names { client: how.client, server: how.server }).unwrap();
            for way in WAYS {
                lane.run(way, &segment(&how, way).flags(weir_tests::packet::FIN | ACK).frame());
            }
            lane.run(Way::ToServer, &segment(&how, Way::ToServer).flags(SYN).frame());
            let flow = lane.put(&how);
            let now = Nanos(clock::monotonic_ns() + 3600 * 24 * SECOND);
            ways.strays().look(ways.express(), now).unwrap();
            assert_eq!((ways.strays().count(), directions(lane)), (0, 2), "{how:?}");
            lane.express.take(flow.client, flow.server).unwrap();
        }
    });
}

/// Workers of which one has room for a few only.
fn workers() -> Vec<Pipeline<HeapFrame>> {
    let setup = Setup::answer();
    let policy = std::sync::Arc::new(weir_tests::bench::policy(1, [setup.spec]));
    let fib = std::sync::Arc::new(setup.fib);
    let of = |worker| {
        let flows = Capacity { fast: [64, 5][worker], kernel: 16 };
        let config = Config { flows, worker, workers: 2, ..setup.config };
        Pipeline::new(&config, policy.clone(), fib.clone(), Nanos(SECOND))
    };
    (0..2).map(of).collect()
}

#[test]
fn connection_of_a_process_before_is_known_to_all_its_workers_or_to_none() {
    for family in BOTH {
        let of = |port| {
            let client = tuple((client_of(family), port), (server_of(family), 443));
            let server = tuple((client_of(family), port), pool_server(family, 0));
            let up = Translation { client, server, ..plain(family) };
            let names = Names { client, server };
            let fins = (false, false);
            Adopted { names, up: Some(up), seen: Nanos(SECOND), fins, stands_by: false, note: None }
        };
        let adopted: Vec<_> = (40_000..40_040).map(of).collect();
        let hasher = FlowHasher::new(Setup::answer().config.seed);
        let mut workers = workers();
        let left = share_out(&mut workers, &adopted, &hasher, Nanos(SECOND));
        let owner = |tuple: &Tuple| owner(hasher.hash(&FlowKey::of(tuple)), 2);
        let (mut expected, mut kinds) = ([0; 2], [0; 4]);
        for Names { client, server } in adopted.iter().map(|adopted| adopted.names) {
            let (of, to) = (owner(&client), owner(&server));
            if left.iter().any(|names| names.client == client) {
                kinds[2 * of + to] += 1;
                continue;
            }
            expected[of] += 1;
            expected[to] += usize::from(of != to);
        }
        let [none, claims, adoptions, both] = kinds;
        assert!(none == 0 && claims > 0 && adoptions > 0 && both > 0, "{family:?}: {kinds:?}");
        assert_eq!([0, 1].map(|worker| workers[worker].flow_counts().0), expected, "{family:?}");
        let listed: usize = workers.iter().map(|worker| worker.views(Nanos(SECOND), 0, 100).0.len()).sum();
        assert_eq!(listed, adopted.len() - left.len());
    }
}
