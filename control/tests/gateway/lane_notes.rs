//! What a weir knows of connections that one before it has let into the express lane.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;
use weir_control::demo::client;
use weir_control::demo::stage::Family;

use crate::config::{ALLOWED, Settings};
use crate::express::{assert_empty, ready};
use crate::idle::assert_idle;
use crate::lane_changes::in_the_lane;
use crate::send::{POOLED, sending, servers};
use crate::world::{HTTP, World, exchange_intact, fetch, play};

/// What stays the same of a connection, whoever lists it.
const LASTING: [&str; 9] =
    ["client", "destination", "server", "host", "alpn", "protocol", "verdict", "rule", "reason"];
/// Packets; on a busy machine it is several batches.
const IN_HAND: u64 = 4 * 64;
/// What does not become less, but for what the worker had in hand when the program took the connection over.
const GROWING: [(&str, u64); 4] = [
    ("packets_to_server", IN_HAND),
    ("packets_to_client", IN_HAND),
    ("bytes_to_server", 0),
    ("bytes_to_client", IN_HAND * 1448),
];

fn flows_of(world: &World<'_>, streams: &[(TcpStream, &str)]) -> Vec<Value> {
    streams.iter().map(|(stream, _)| world.weir.flow(stream.local_addr().unwrap())).collect()
}

/// Ends weir without a chance to say anything, and starts another.
fn replace(world: &mut World<'_>) {
    world.weir.kill();
    world.weir.start();
}

#[test]
fn connections_of_a_killed_weir_are_known_by_name_rule_and_counts_and_judged_by_them() {
    for handshake in ["answer", "through"] {
        let settings = Settings { express: "always", ..sending(handshake, &servers(1, HTTP), "") };
        play(&settings, |world| {
            ready(world);
            let mut streams = in_the_lane(world, &[ALLOWED, POOLED]);
            let before = flows_of(world, &streams);
            replace(world);
            for (old, new) in before.iter().zip(flows_of(world, &streams)) {
                assert_eq!((&old["adopted"], &new["adopted"]), (&false.into(), &true.into()), "{new}");
                for key in LASTING {
                    assert_eq!(old[key], new[key], "{handshake} {key}: {old} {new}");
                }
                for (key, in_hand) in GROWING {
                    let [old, new] = [old, &new].map(|flow| flow[key].as_u64().expect("counted"));
                    assert!(old <= new + in_hand, "{handshake} {key}: {old} {new}");
                }
                assert!(old["age_ns"].as_u64() < new["age_ns"].as_u64(), "{old} {new}");
            }
            // One of the names is refused now, and the other's rule stands elsewhere.
            let rules = r#"

                { host = ["www.example"], action = "reset" },
                { host = ["pool.example"], action = "send", pool = "pool" },
            "#;
            world.weir.write_config(&Settings { rules, ..settings.clone() }.to_string());
            let mut reload = world.weir.command("reload");
            reload.arg("--reevaluate");
            let done = world.weir.finish(reload);
            assert_eq!(done.code(), 0, "{done:?}");
            streams.retain_mut(|(stream, host)| {
                if *host == POOLED {
                    return true;
                }
                let error = fetch(stream, host, 10).expect_err("it was ended");
                assert!(
                    [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()),
                    "{error}"
                );
                false
            });
            let judged = flows_of(world, &streams);
            assert!(judged.iter().all(|flow| flow["rule"] != before[1]["rule"]), "{judged:?}");
            replace(world);
            for (old, new) in judged.iter().zip(flows_of(world, &streams)) {
                assert_eq!((&old["rule"], &old["reason"]), (&new["rule"], &new["reason"]), "{new}");
            }
            for (stream, host) in &mut streams {
                exchange_intact(stream, host, 1 << 20);
            }
            drop(streams);
            assert_empty(world);
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn connections_of_a_killed_weir_count_with_their_sources() {
    let settings = Settings { express: "always", ..Settings::default() };
    play(&settings, |world| {
        ready(world);
        let mut streams = in_the_lane(world, &[ALLOWED, ALLOWED]);
        let more = "[limits]\nsource_flows = 2\nsource_over = \"reset\"\n".to_owned();
        world.weir.write_config(&Settings { more, ..settings.clone() }.to_string());
        replace(world);
        for family in Family::BOTH {
            let from = SocketAddr::new(family.addresses().client, 0);
            let error = client::connect(&world.lab.client, from, family.origin(HTTP)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{family:?}");
        }
        for (stream, host) in &mut streams {
            exchange_intact(stream, host, 1 << 20);
        }
        drop(streams);
        assert_empty(world);
        assert_idle(&world.weir);
    });
}
