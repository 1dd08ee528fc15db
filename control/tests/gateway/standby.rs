//! Connections that their workers carry, and the XDP program when there is no worker.

use std::net::TcpStream;

use rustix::process::Signal;
use weir_control::demo::stage::Family;

use crate::config::{ALLOWED, Settings};
use crate::express::{assert_empty, open_wires};
use crate::idle::assert_idle;
use crate::replace::replace;
use crate::send::{POOLED, sending, servers};
use crate::survival::{count_resets, resets};
use crate::weir::until;
use crate::world::{Download, HTTP, World, exchange_intact, fetch, fetch_intact, play};

const MIB: u64 = 1 << 20;

fn standing_by(handshake: &'static str) -> Settings {
    Settings { express: "standby", ..sending(handshake, &servers(1, HTTP), "") }
}

#[track_caller]
fn fetch_whole(stream: &mut TcpStream, host: &str) {
    let response = fetch(stream, host, MIB).expect("an answer");
    assert!(response.is_intact(), "{response:?}");
}

/// A connection of each family and name that the program stands by for.
fn stood_by(world: &World<'_>) -> Vec<(TcpStream, &'static str)> {
    open_wires(world);
    world.meet_neighbours();
    let each = Family::BOTH.into_iter().flat_map(|family| [ALLOWED, POOLED].map(|host| (family, host)));
    let streams: Vec<_> = each
        .map(|(family, host)| {
            let mut stream = world.connect(family, HTTP);
            fetch_whole(&mut stream, host);
            (stream, host)
        })
        .collect();
    for (stream, _) in &streams {
        until("the program stands by", || {
            let flow = world.weir.flow(stream.local_addr().unwrap());
            flow["lane"] == "worker" && flow["lane_reason"] == "standby"
        });
    }
    streams
}

#[test]
fn workers_carry_what_the_program_stands_by_for_and_it_outlives_a_kill() {
    for handshake in ["answer", "through"] {
        play(&standing_by(handshake), |world| {
            let mut streams = stood_by(world);
            assert_eq!(world.weir.status()["flows_standby"], streams.len());
            streams.iter_mut().for_each(|(stream, host)| fetch_whole(stream, host));
            assert_eq!(world.weir.count("steering", "express"), 0, "workers carry");
            count_resets(world);
            world.weir.kill();
            // There is no weir.
            streams.iter_mut().for_each(|(stream, host)| fetch_whole(stream, host));
            world.weir.start();
            for (stream, host) in &mut streams {
                let flow = world.weir.flow(stream.local_addr().unwrap());
                assert_eq!(
                    (flow["lane"].as_str(), flow["lane_reason"].as_str(), flow["adopted"].as_bool()),
                    (Some("worker"), Some("standby"), Some(true)),
                    "{flow}"
                );
                exchange_intact(stream, host, MIB);
            }
            assert_eq!(world.weir.count("steering", "express"), 0, "workers carry again");
            assert_eq!(resets(world), [0, 0], "at the client and at the servers");
            drop(streams);
            until("nothing stands by", || world.weir.status()["flows_standby"] == 0);
            for family in Family::BOTH {
                fetch_intact(&mut world.connect(family, HTTP), MIB);
            }
            assert_empty(world);
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn downloads_go_on_while_weir_hangs_and_when_it_comes_back() {
    for handshake in ["answer", "through"] {
        let settings = Settings { heartbeat: "45ms", ..standing_by(handshake) };
        play(&settings, |world| {
            let streams = stood_by(world);
            count_resets(world);
            let downloads: Vec<Download> = streams
                .into_iter()
                .map(|(stream, host)| Download::start_from(stream, host, 24 * MIB, 2 * MIB))
                .collect();
            for _ in 0..2 {
                world.weir.signal(Signal::STOP);
                downloads.iter().for_each(|download| download.goes_on(MIB / 2));
                world.weir.signal(Signal::CONT);
                until("weir is back", || world.weir.status()["healthy"] == true);
                downloads.iter().for_each(|download| download.goes_on(MIB / 2));
            }
            downloads.into_iter().for_each(Download::finish);
            assert_eq!(resets(world), [0, 0], "at the client and at the servers");
            until("nothing stands by", || world.weir.status()["flows_standby"] == 0);
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn connections_stay_stood_by_for_while_weir_is_replaced_and_end_well() {
    for handshake in ["answer", "through"] {
        let settings = standing_by(handshake);
        play(&settings, |world| {
            let mut streams = stood_by(world);
            count_resets(world);
            let mut old = replace(world, &settings);
            for (stream, host) in &mut streams {
                fetch_whole(stream, host);
                let flow = world.weir.flow(stream.local_addr().unwrap());
                assert_eq!(
                    (&flow["lane_reason"], &flow["adopted"]),
                    (&"standby".into(), &true.into()),
                    "{flow}"
                );
            }
            let ended = old.wait();
            assert_eq!(ended.code(), 0, "{ended:?}");
            streams.iter_mut().for_each(|(stream, host)| exchange_intact(stream, host, MIB));
            drop(streams);
            until("nothing stands by", || world.weir.status()["flows_standby"] == 0);
            assert_eq!(resets(world), [0, 0], "at the client and at the servers");
            assert_idle(&world.weir);
        });
    }
}
