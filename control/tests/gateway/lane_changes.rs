//! Connections of the express lane when something changes: the rules, the devices; and with several workers.

use std::io::ErrorKind;
use std::net::TcpStream;

use serde_json::Value;
use weir_control::demo::stage::Family;

use crate::changes::{lost, make_again};
use crate::config::{ALLOWED, Settings};
use crate::express::{always, assert_empty, into_the_lane, open_wires, ready};
use crate::idle::assert_idle;
use crate::send::{POOLED, sending, servers};
use crate::weir::until;
use crate::world::{HTTP, World, exchange_intact, fetch, play};

/// A connection of each family and name that the program carries.
pub fn in_the_lane<'a>(world: &World<'_>, hosts: &[&'a str]) -> Vec<(TcpStream, &'a str)> {
    let each = Family::BOTH.into_iter().flat_map(|family| hosts.iter().map(move |host| (family, *host)));
    each.map(|(family, host)| {
        let mut stream = world.connect(family, HTTP);
        into_the_lane(world, &mut stream, host);
        (stream, host)
    })
    .collect()
}

#[test]
fn connections_in_the_lane_that_new_rules_refuse_end_when_they_are_judged_again_and_the_others_stay() {
    for handshake in ["answer", "through"] {
        let settings = Settings { express: "always", ..sending(handshake, &servers(1, HTTP), "") };
        play(&settings, |world| {
            ready(world);
            let mut streams = in_the_lane(world, &[ALLOWED, POOLED]);
            let rules = r#"
                { host = ["www.example"], action = "reset" },
                { host = ["pool.example"], action = "send", pool = "pool" },
            "#;
            world.weir.write_config(&Settings { rules, ..settings.clone() }.to_string());
            let reload = |more: &[&str]| -> Value {
                let mut command = world.weir.command("reload");
                command.arg("--json").args(more);
                let done = world.weir.finish(command);
                assert_eq!(done.code(), 0, "{done:?}");
                serde_json::from_str(&done.output).expect("JSON")
            };
            reload(&[]);
            for (stream, host) in &mut streams {
                let response = fetch(stream, host, 100_000).expect("it keeps its verdict");
                assert!(response.is_intact(), "{response:?}");
                assert_eq!(world.weir.flow(stream.local_addr().unwrap())["lane"], "express");
            }
            let answer = reload(&["--reevaluate"]);
            assert!(answer["reevaluated"]["reset"].as_u64() >= Some(2), "{handshake}: {answer}");
            for (stream, host) in &mut streams {
                let client = stream.local_addr().unwrap();
                if *host == POOLED {
                    assert_eq!(world.weir.flow(client)["lane"], "express");
                    exchange_intact(stream, host, 1 << 20);
                    continue;
                }
                let error = fetch(stream, host, 10).expect_err("it was ended");
                let is_reset = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind());
                assert!(is_reset, "{handshake} {client}: {error}");
                until("the server's socket is gone", || {
                    let line = format!("ss -tnH state established | grep -c ':{} ' || true", client.port());
                    world.sh(&world.lab.server, &line).trim() == "0"
                });
            }
            drop(streams);
            assert_empty(world);
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn connections_of_several_workers_run_in_the_lane_and_are_taken_over_by_those_of_the_next_weir() {
    let settings = Settings { queues: 2, express: "always", ..sending("answer", &servers(1, HTTP), "") };
    play(&settings, |world| {
        ready(world);
        let mut streams = Vec::new();
        for _ in 0..4 {
            streams.extend(in_the_lane(world, &[ALLOWED, POOLED]));
        }
        let carried = world.weir.count("steering", "express");
        for (stream, host) in &mut streams {
            let response = fetch(stream, host, 1 << 20).expect("an answer");
            assert!(response.is_intact(), "{response:?}");
        }
        assert!(world.weir.count("steering", "express") > carried + 8000, "few packets took the lane");
        world.weir.kill();
        world.weir.start();
        for (stream, host) in &mut streams {
            let flow = world.weir.flow(stream.local_addr().unwrap());
            assert_eq!((&flow["lane"], &flow["adopted"]), (&"express".into(), &true.into()), "{flow}");
            exchange_intact(stream, host, 1 << 20);
        }
        drop(streams);
        assert_empty(world);
        assert_idle(&world.weir);
    });
}

#[test]
fn connections_in_the_lane_outlive_the_loss_of_a_device() {
    for (handshake, device) in [("answer", "wan0"), ("through", "wan0"), ("answer", "lan0")] {
        play(&Settings { handshake, ..always() }, |world| {
            ready(world);
            let mut streams = in_the_lane(world, &[ALLOWED]);
            world.sh(&world.lab.gateway, &format!("ip link del {device}"));
            until("the port is lost", || lost(world, device));
            make_again(world, device);
            open_wires(world);
            until("the port is back", || !lost(world, device));
            for (stream, _) in &mut streams {
                exchange_intact(stream, ALLOWED, 1 << 20);
            }
            ready(world);
            drop(streams);
            assert_idle(&world.weir);
            world.weir.stop();
        });
    }
}
