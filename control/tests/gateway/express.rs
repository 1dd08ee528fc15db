//! The express lane: connections that are decided run in the XDP program, between devices that send on what it redirects.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use socket2::SockRef;
use weir_control::demo::stage::Family;

use crate::config::{ALLOWED, Settings};
use crate::idle::assert_idle;
use crate::send::{POOLED, sending, servers};
use crate::weir::until;
use crate::world::{Download, HTTP, World, exchange_intact, fetch, fetch_intact, play};

const MIB: u64 = 1 << 20;

pub fn always() -> Settings {
    Settings { express: "always", ..Settings::default() }
}

/// From now on the far ends take frames that are redirected to them, and leave no checksum to a device.
pub fn open_wires(world: &World<'_>) {
    world.sh(&world.lab.client, "ethtool -K client0 gro on tx off");
    world.sh(&world.lab.server, "ethtool -K server0 gro on tx off");
}

/// Waits until a new connection of each family can take the lane, and both neighbours are known.
pub fn ready(world: &World<'_>) {
    open_wires(world);
    world.meet_neighbours();
    for family in Family::BOTH {
        until("the lane is open", || {
            let mut stream = world.connect(family, HTTP);
            fetch_intact(&mut stream, 200_000);
            let client = stream.local_addr().unwrap();
            world.weir.find_flow(client).is_some_and(|flow| flow["lane"] == "express")
        });
    }
}

/// Moves octets until the connection is in the lane.
pub fn into_the_lane(world: &World<'_>, stream: &mut TcpStream, host: &str) {
    let client = stream.local_addr().unwrap();
    until("the connection takes the lane", || {
        let response = fetch(stream, host, 100_000).expect("an answer");
        assert!(response.is_intact(), "{response:?}");
        world.weir.flow(client)["lane"] == "express"
    });
}

/// Packets that the program has sent on.
fn carried(world: &World<'_>) -> u64 {
    world.weir.count("steering", "express")
}

/// Nothing is left in the lane.
pub fn assert_empty(world: &World<'_>) {
    until("the lane is empty", || world.weir.status()["flows_express"] == 0);
}

#[test]
fn decided_connection_runs_in_the_lane_and_leaves_it_with_its_end() {
    play(&always(), |world| {
        ready(world);
        for family in Family::BOTH {
            let mut stream = world.connect(family, HTTP);
            let client = stream.local_addr().unwrap();
            into_the_lane(world, &mut stream, ALLOWED);
            let (before, packets) = (carried(world), world.weir.flow(client)["packets_to_client"].as_u64());
            exchange_intact(&mut stream, ALLOWED, 4 * MIB);
            assert!(carried(world) > before + 4000, "{family:?}: few packets took the lane");
            drop(stream);
            let flow = world.weir.find_flow(client).expect("it lingers");
            assert!(flow["packets_to_client"].as_u64() > packets.map(|n| n + 2000), "{flow}");
            assert!(flow["bytes_to_server"].as_u64() > Some(4 * MIB), "{flow}");
        }
        assert_empty(world);
        assert_idle(&world.weir);
    });
}

#[test]
fn joined_connections_run_in_the_lane_and_their_ends_notice_nothing() {
    for handshake in ["answer", "through"] {
        let settings = Settings { express: "always", ..sending(handshake, &servers(1, HTTP), "") };
        play(&settings, |world| {
            ready(world);
            for family in Family::BOTH {
                for host in [ALLOWED, POOLED] {
                    let mut stream = world.connect(family, HTTP);
                    let client = stream.local_addr().unwrap();
                    into_the_lane(world, &mut stream, host);
                    let before = carried(world);
                    exchange_intact(&mut stream, host, 4 * MIB);
                    assert!(carried(world) > before + 4000, "{family:?} {handshake} {host}");
                    drop(stream);
                    until("it has ended", || {
                        world.weir.find_flow(client).is_none_or(|flow| flow["lane"] == "worker")
                    });
                }
            }
            assert_empty(world);
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn reset_and_half_closed_connections_leave_the_lane() {
    play(&always(), |world| {
        ready(world);
        for family in Family::BOTH {
            // Half closed: what the server still has to say comes.
            let mut stream = world.connect(family, HTTP);
            into_the_lane(world, &mut stream, ALLOWED);
            stream
                .write_all(
                    format!("GET /bytes/{MIB} HTTP/1.1\r\nhost: {ALLOWED}\r\nconnection: close\r\n\r\n")
                        .as_bytes(),
                )
                .unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).expect("the rest");
            assert!(rest.len() as u64 > MIB, "{family:?}: {} octets", rest.len());
            // Reset: the server hears of it.
            let mut stream = world.connect(family, HTTP);
            let client = stream.local_addr().unwrap();
            into_the_lane(world, &mut stream, ALLOWED);
            SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            drop(stream);
            until("the reset connection is over", || {
                world.weir.find_flow(client).is_none_or(|flow| flow["stage"] == "closed")
            });
        }
        assert_empty(world);
    });
}

#[test]
fn lane_is_where_the_configuration_and_the_devices_have_it() {
    for (express, wires, lane, why) in
        [("never", true, "worker", None), ("auto", false, "worker", None), ("auto", true, "express", None)]
    {
        play(&Settings { express, ..Settings::default() }, |world| {
            if wires && lane == "express" {
                ready(world);
            } else {
                world.meet_neighbours();
            }
            let mut stream = world.connect(Family::V6, HTTP);
            let client = stream.local_addr().unwrap();
            fetch_intact(&mut stream, MIB);
            fetch_intact(&mut stream, MIB);
            if lane == "express" {
                // It changes over in a pause of its own.
                into_the_lane(world, &mut stream, ALLOWED);
            }
            let flow = world.weir.flow(client);
            assert_eq!(
                (flow["lane"].as_str(), flow["lane_reason"].as_str()),
                (Some(lane), why),
                "{express} {wires}"
            );
        });
    }
}

#[test]
fn wires_that_take_no_frames_any_more_give_the_connection_back_to_its_worker() {
    play(&always(), |world| {
        ready(world);
        let downloads = Family::BOTH.map(|family| Download::start(world, family, 8 * MIB, 2 * MIB));
        for download in &downloads {
            until("in the lane", || world.weir.flow(download.client)["lane"] == "express");
        }
        world.sh(&world.lab.client, "ethtool -K client0 gro off");
        downloads.into_iter().for_each(Download::finish);
    });
}

#[test]
fn killed_weir_breaks_nothing_in_the_lane_and_the_next_one_takes_it_over() {
    for handshake in ["answer", "through"] {
        let settings = Settings { express: "always", ..sending(handshake, &servers(1, HTTP), "") };
        play(&settings, |world| {
            ready(world);
            let hosts = [ALLOWED, POOLED];
            let of = |(family, host)| {
                let mut stream = world.connect(family, HTTP);
                into_the_lane(world, &mut stream, host);
                (stream, host)
            };
            let each = Family::BOTH.into_iter().flat_map(|family| hosts.map(|host| (family, host)));
            let mut streams: Vec<(TcpStream, &str)> = each.map(of).collect();
            world.weir.kill();
            for (stream, host) in &mut streams {
                let response = fetch(stream, host, MIB).expect("an answer while there is no weir");
                assert!(response.is_intact(), "{response:?}");
            }
            world.weir.start();
            for (stream, host) in &mut streams {
                let flow = world.weir.flow(stream.local_addr().unwrap());
                assert_eq!(
                    (flow["lane"].as_str(), flow["adopted"].as_bool()),
                    (Some("express"), Some(true)),
                    "{flow}"
                );
                exchange_intact(stream, host, MIB);
            }
            drop(streams);
            assert_empty(world);
            for family in Family::BOTH {
                fetch_intact(&mut world.connect(family, HTTP), MIB);
            }
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn what_is_in_the_lane_ends_well_without_any_weir_and_clean_removes_its_traces() {
    for handshake in ["answer", "through"] {
        play(&Settings { handshake, ..always() }, |world| {
            ready(world);
            let downloads = downloads_in_the_lane(world);
            assert_pins_are_listed(world);
            world.weir.kill();
            downloads.into_iter().for_each(Download::finish);
            assert_pins_are_listed(world);
            let cleaned = world.weir.clean();
            assert_eq!(cleaned.code(), 0, "{cleaned:?}");
            let plan = world.weir.finish(world.weir.command("plan"));
            assert!(!plan.output.contains("bpftool"), "{plan:?}");
            world.assert_as_before();
        });
    }
}

/// `weir plan` tells of what is pinned, as something to know and not to do.
fn assert_pins_are_listed(world: &World<'_>) {
    for arguments in [&["--json"][..], &[], &["--iptables"]] {
        let mut command = world.weir.command("plan");
        let plan = world.weir.finish({
            command.args(arguments);
            command
        });
        for what in [
            "the steering program on lan0",
            "the steering program on wan0",
            "connections that are the kernel's",
            "the express lane: its connections",
            "the express lane: its next hops",
            "the express lane: its devices",
        ] {
            assert!(plan.output.contains(what), "{what}: {plan:?}");
        }
        let mut commands = plan.output.lines().filter(|line| line.contains("bpftool"));
        let is_comment = |line: &str| line.starts_with("# ") && line.contains("# present: ");
        assert!(arguments == ["--json"] || commands.all(is_comment), "{plan:?}");
    }
}

/// Downloads of both families that the program carries.
pub fn downloads_in_the_lane(world: &World<'_>) -> Vec<Download> {
    let each = [Family::V4, Family::V6, Family::V4, Family::V6];
    let downloads = each.map(|family| Download::start(world, family, 8 * MIB, 2 * MIB));
    for download in &downloads {
        until("it is in the lane", || world.weir.flow(download.client)["lane"] == "express");
    }
    downloads.into()
}
