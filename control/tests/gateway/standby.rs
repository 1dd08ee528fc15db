//! Connections that their workers carry, and the XDP program when there is no worker.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

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
/// Longer than the age of a sign of life that is none any more.
const LATE: Duration = Duration::from_millis(400);

fn standing_by(handshake: &'static str) -> Settings {
    Settings { express: "standby", ..sending(handshake, &servers(1, HTTP), "") }
}

#[track_caller]
fn fetch_whole(stream: &mut TcpStream, host: &str) {
    let response = fetch(stream, host, MIB).expect("an answer");
    assert!(response.is_intact(), "{response:?}");
}

/// Both ends finish, after a last request.
#[track_caller]
fn end_well(stream: &mut TcpStream, host: &str) {
    let request = format!("GET /bytes/1000 HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it goes on");
    stream.shutdown(Shutdown::Write).expect("it goes on");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the answer, and the server's end");
    assert!(rest.len() > 1000, "{host}: {} octets", rest.len());
}

/// Connections that the program has and workers know, to be carried now or later.
fn in_map(world: &World<'_>) -> u64 {
    let status = world.weir.status();
    ["flows_standby", "flows_express"].iter().map(|key| status[*key].as_u64().expect("a number")).sum()
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
            until("they are counted", || world.weir.status()["flows_standby"] == streams.len());
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

/// The client has finished, and the server has much to send.
#[test]
fn half_closed_downloads_outlive_a_kill() {
    for handshake in ["answer", "through"] {
        for express in ["standby", "always"] {
            let settings = Settings { express, ..standing_by(handshake) };
            play(&settings, |world| {
                open_wires(world);
                world.meet_neighbours();
                until("the lane is there", || world.weir.logged().contains("express lane devices"));
                let each =
                    Family::BOTH.into_iter().flat_map(|family| [ALLOWED, POOLED].map(|host| (family, host)));
                let mut streams: Vec<_> =
                    each.map(|(family, host)| (world.connect(family, HTTP), host)).collect();
                streams.iter_mut().for_each(|(stream, host)| fetch_whole(stream, host));
                until("the program has them", || in_map(world) == streams.len() as u64);
                let downloads: Vec<Download> = streams
                    .into_iter()
                    .map(|(stream, host)| {
                        let client = stream.try_clone().expect("another descriptor");
                        let download = Download::start_from(stream, host, 24 * MIB, 4 * MIB);
                        client.shutdown(Shutdown::Write).expect("it is open");
                        download
                    })
                    .collect();
                for Download { client, .. } in &downloads {
                    until("its end is known", || {
                        let flow = world.weir.flow(*client);
                        flow["lane"] == "worker" && flow["lane_reason"] == "ending"
                    });
                }
                count_resets(world);
                world.weir.kill();
                downloads.iter().for_each(|download| download.goes_on(MIB));
                world.weir.start();
                for Download { client, .. } in &downloads {
                    let flow = world.weir.flow(*client);
                    assert_eq!(
                        (&flow["adopted"], &flow["lane_reason"]),
                        (&true.into(), &"ending".into()),
                        "{flow}"
                    );
                }
                downloads.into_iter().for_each(Download::finish);
                assert_eq!(resets(world), [0, 0], "at the client and at the servers");
                until("nothing is left", || in_map(world) == 0);
                assert_idle(&world.weir);
            });
        }
    }
}

/// While weir hangs the program sends on what ends a connection, and weir learns of it from there.
#[test]
fn connections_that_end_while_weir_hangs_are_over_when_it_is_back() {
    for handshake in ["answer", "through"] {
        let settings = Settings { heartbeat: "45ms", ..standing_by(handshake) };
        play(&settings, |world| {
            let mut streams = stood_by(world);
            count_resets(world);
            let stays = streams.pop().expect("one of them");
            world.weir.signal(Signal::STOP);
            // What comes before it is taken for late waits for it, and its ends would hear of it when they have ended.
            std::thread::sleep(LATE);
            for (stream, host) in &mut streams {
                end_well(stream, host);
            }
            world.weir.signal(Signal::CONT);
            for (stream, _) in &streams {
                let client = stream.local_addr().unwrap();
                until("its end is known", || {
                    world.weir.find_flow(client).is_none_or(|flow| flow["lane_reason"] == "ending")
                });
            }
            until("the other is stood by for", || world.weir.status()["flows_standby"] == 1);
            let (mut stream, host) = stays;
            exchange_intact(&mut stream, host, MIB);
            assert_eq!(resets(world), [0, 0], "at the client and at the servers");
        });
    }
}

/// Between what the next weir reads of the lane and its first sign of life the program sends on by itself what ends a connection.
#[test]
fn connections_that_end_while_the_next_weir_starts_are_over_when_it_has() {
    for handshake in ["answer", "through"] {
        play(&standing_by(handshake), |world| {
            let mut streams = stood_by(world);
            world.weir.kill();
            world.weir.spawn();
            until("the lane is read", || world.weir.logged().contains("taken over from an earlier weir"));
            world.weir.signal(Signal::STOP);
            std::thread::sleep(LATE);
            for (stream, host) in &mut streams {
                end_well(stream, host);
            }
            world.weir.signal(Signal::CONT);
            until("weir answers", || world.weir.status_if_any().is_some());
            until("nothing is left", || in_map(world) == 0);
            assert_idle(&world.weir);
        });
    }
}

/// The next weir is given less room than there are connections: what it cannot list goes on all the same, and is taken over by one that can.
#[test]
fn connections_that_the_next_weir_has_no_room_for_go_on_and_end_well() {
    const ROOM: u32 = 16;
    for handshake in ["answer", "through"] {
        for express in ["standby", "always"] {
            let settings = Settings { express, ..standing_by(handshake) };
            play(&settings, |world| {
                open_wires(world);
                world.meet_neighbours();
                until("the lane is there", || world.weir.logged().contains("express lane devices"));
                let mut streams: Vec<(TcpStream, &str)> = (0..3 * ROOM as usize)
                    .map(|n| (world.connect(Family::BOTH[n % 2], HTTP), [ALLOWED, POOLED][n / 2 % 2]))
                    .collect();
                streams.iter_mut().for_each(|(stream, host)| fetch_whole(stream, host));
                until("the program has them", || in_map(world) == streams.len() as u64);
                count_resets(world);
                world.weir.kill();
                world.weir.write_config(&Settings { flows: ROOM, ..settings.clone() }.to_string());
                world.weir.start();
                until("some are listed", || (1..=u64::from(ROOM)).contains(&in_map(world)));
                let told = "they go on there without being listed";
                until("that is said of the others", || world.weir.logged().contains(told));
                streams.iter_mut().for_each(|(stream, host)| fetch_whole(stream, host));
                assert_eq!(resets(world), [0, 0], "at the client and at the servers");
                // Some of them end, as connections do.
                let rest = streams.split_off(streams.len() / 2);
                for (mut stream, host) in streams {
                    end_well(&mut stream, host);
                }
                let is_listed = |(stream, _): &&(TcpStream, &str)| {
                    world.weir.find_flow(stream.local_addr().unwrap()).is_some()
                };
                // Of one that nobody saw the end of it would not be known that it is over.
                let listed = rest.iter().filter(is_listed).count() as u64;
                until("the ends are known", || in_map(world) == listed);
                // An acknowledgment that is sent again to one that is over gets an RST, with weir and without.
                let until_now = resets(world);
                world.weir.kill();
                world.weir.write_config(&settings.to_string());
                world.weir.start();
                for (mut stream, host) in rest {
                    let client = stream.local_addr().unwrap();
                    assert_eq!(world.weir.flow(client)["adopted"], true, "{client}");
                    exchange_intact(&mut stream, host, MIB / 8);
                }
                assert_eq!(resets(world), until_now, "at the client and at the servers");
                until("nothing is left", || in_map(world) == 0);
                assert_idle(&world.weir);
            });
        }
    }
}
