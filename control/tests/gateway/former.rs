//! A weir of another layout has left connections in the express lane: its program carries them on beside the lane of the weir that comes
//! after it. It is played by this version, whose pins are given another number when it has been killed; what is in them is read
//! no further than every layout allows (dataplane/sys/src/steering/former.rs).

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use socket2::SockRef;
use weir_control::demo::client;
use weir_control::demo::stage::Family;
use weir_control::host::Paths;

use crate::config::{ALLOWED, DENIED, Settings};
use crate::explain::explain;
use crate::express::{always, assert_empty, into_the_lane, ready};
use crate::idle::assert_idle;
use crate::replace::replace;
use crate::send::{POOLED, sending, servers};
use crate::survival::{count_resets, resets};
use crate::weir::until;
use crate::world::{Download, HTTP, World, exchange_intact, fetch, play};

const KIB: u64 = 1 << 10;
/// Octets of a download, and how many of them a second.
const BODY: u64 = 6000 * KIB;
const RATE: u64 = 600 * KIB;

/// Downloads of both families, where the client wanted and from a pool's server, that the program carries.
fn downloads(world: &World<'_>, hosts: &[&'static str]) -> Vec<Download> {
    let of = |(family, host)| {
        let mut stream = world.connect(family, HTTP);
        into_the_lane(world, &mut stream, host);
        Download::start_from(stream, host, BODY, RATE)
    };
    Family::BOTH
        .into_iter()
        .flat_map(|family| hosts.iter().map(move |host| (family, *host)))
        .map(of)
        .collect()
}

fn pins(world: &World<'_>) -> Vec<PathBuf> {
    let paths = world.lab.gateway.run(Paths::of_this_namespace).expect("a network namespace");
    world.lab.gateway.run(|| weir_sys::steering::pins(&paths.pins)).expect("the folder can be read")
}

fn of_another(world: &World<'_>) -> usize {
    pins(world).iter().filter(|pin| pin.to_str().is_some_and(|pin| pin.ends_with("-v99"))).count()
}

/// Kills weir; what it leaves is of another layout. Next hops and devices are those of both.
fn kill_as_another(world: &mut World<'_>) {
    world.weir.kill();
    for pin in pins(world) {
        let (what, _) = pin.to_str().and_then(|name| name.rsplit_once("-v")).expect("a pin's name");
        if !["hops", "links", "ports"].iter().any(|ways| what.ends_with(ways)) {
            world.lab.gateway.run(|| fs::rename(&pin, format!("{what}-v99"))).expect("renamed");
        }
    }
    assert!(of_another(world) >= 6);
}

/// Connections in the lane of another layout, with the name that each asks for, and downloads; and a weir that has found them.
fn left_by_another(world: &mut World<'_>) -> (Vec<(TcpStream, &'static str)>, Vec<Download>) {
    let mut streams: Vec<_> = [ALLOWED, POOLED]
        .into_iter()
        .flat_map(|host| Family::BOTH.map(|family| (world.connect(family, HTTP), host)))
        .collect();
    streams.iter_mut().for_each(|(stream, host)| into_the_lane(world, stream, host));
    let downloads = downloads(world, &[ALLOWED, POOLED]);
    count_resets(world);
    kill_as_another(world);
    world.weir.start();
    (streams, downloads)
}

#[test]
fn connections_that_another_version_left_finish_and_then_its_program_is_gone() {
    for handshake in ["answer", "through"] {
        let settings = Settings { express: "always", ..sending(handshake, &servers(1, HTTP), "") };
        play(&settings, |world| {
            ready(world);
            let (mut streams, downloads) = left_by_another(world);
            let left = |world: &World<'_>| world.weir.status()["flows_former"].as_u64();
            // Those that are open, at least: how far the downloads are depends on the machine.
            until("those of the other version are counted", || left(world) >= Some(4));
            until("that is said", || world.weir.logged().contains("go on in its own program until they end"));
            // New connections have the lane of the weir that runs.
            let mut own = Family::BOTH.map(|family| world.connect(family, HTTP));
            own.iter_mut().for_each(|stream| into_the_lane(world, stream, ALLOWED));
            downloads.iter().for_each(|download| download.goes_on(100 * KIB));
            // It is killed, too, and taken over.
            world.weir.kill();
            downloads.iter().for_each(|download| download.goes_on(100 * KIB));
            world.weir.start();
            until("they are counted", || left(world) >= Some(4));
            downloads.into_iter().for_each(Download::finish);
            streams.iter_mut().for_each(|(stream, host)| exchange_intact(stream, host, 1000 * KIB));
            drop(streams);
            own.iter_mut().for_each(|stream| exchange_intact(stream, ALLOWED, 1000 * KIB));
            drop(own);
            assert_eq!(resets(world), [0, 0], "{handshake}");
            until("nothing of the other version is left", || {
                left(world) == Some(0) && of_another(world) == 0
            });
            until("it is said", || {
                world.weir.logged().contains("another version of weir has left has ended")
            });
            assert_empty(world);
            assert_idle(&world.weir);
        });
    }
}

/// The lane of another layout drains while one weir takes the place of another.
#[test]
fn weir_that_is_replaced_leaves_the_lane_of_another_layout_to_the_next_one_which_goes_on() {
    for handshake in ["answer", "through"] {
        let settings = Settings { express: "always", ..sending(handshake, &servers(1, HTTP), "") };
        play(&settings, |world| {
            ready(world);
            let (mut streams, downloads) = left_by_another(world);
            let mut own = Family::BOTH.map(|family| world.connect(family, HTTP));
            own.iter_mut().for_each(|stream| into_the_lane(world, stream, ALLOWED));
            let mut old = replace(world, &settings);
            let left = |world: &World<'_>| world.weir.status()["flows_former"].as_u64();
            // It is counted in the first look at its health.
            until("those of the other version are counted", || left(world) >= Some(4));
            assert_explained(world, &streams);
            let ended = old.wait();
            assert_eq!(ended.code(), 0, "{ended:?}");
            for stream in &own {
                let flow = world.weir.flow(stream.local_addr().unwrap());
                assert_eq!((&flow["lane"], &flow["adopted"]), (&"express".into(), &true.into()), "{flow}");
            }
            downloads.into_iter().for_each(Download::finish);
            // Explained also when nobody is there to be asked.
            world.weir.kill();
            assert_explained(world, &streams);
            world.weir.start();
            streams.iter_mut().for_each(|(stream, host)| exchange_intact(stream, host, 1000 * KIB));
            drop(streams);
            own.iter_mut().for_each(|stream| exchange_intact(stream, ALLOWED, 1000 * KIB));
            drop(own);
            assert_eq!(resets(world), [0, 0], "{handshake}");
            until("nothing of the other version is left", || {
                left(world) == Some(0) && of_another(world) == 0
            });
            assert_empty(world);
            assert_idle(&world.weir);
        });
    }
}

/// `weir explain` finds connections that are in no table of the weir that runs.
#[track_caller]
fn assert_explained(world: &World<'_>, streams: &[(TcpStream, &str)]) {
    for (stream, host) in streams {
        let (client, server) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let explained = explain(world, client, server, &["--host", host]);
        explained.assert_says("fast", &["another version of weir has left"]);
        let answer = explained.answer("steering", "another version of weir has left");
        assert!(answer.contains(&format!("from {client} to")), "{answer}");
    }
}

#[test]
fn stop_and_clean_end_the_lane_of_another_version_with_everything_else() {
    for is_stopped in [true, false] {
        play(&always(), |world| {
            ready(world);
            let downloads = downloads(world, &[ALLOWED]);
            kill_as_another(world);
            world.weir.start();
            assert!(of_another(world) > 0 || world.weir.status()["flows_former"] == 0);
            if is_stopped {
                assert_eq!(world.weir.stop().code(), 0);
            } else {
                world.weir.kill();
                downloads.iter().for_each(|download| download.goes_on(100 * KIB));
                assert_eq!(world.weir.clean().code(), 0);
            }
            assert_eq!(pins(world), Vec::<PathBuf>::new());
            world.assert_as_before();
            // Nothing of them is translated: the kernel carries them.
            downloads.into_iter().for_each(Download::finish);
        });
    }
}

#[test]
fn lane_of_another_version_of_which_something_is_missing_is_removed_and_that_is_said() {
    play(&always(), |world| {
        ready(world);
        let downloads = downloads(world, &[ALLOWED]);
        kill_as_another(world);
        let next = pins(world).into_iter().find(|pin| pin.ends_with("express_next-v99")).expect("pinned");
        world.lab.gateway.run(|| fs::remove_file(next)).expect("removed");
        world.weir.start();
        assert_eq!((world.weir.status()["flows_former"].as_u64(), of_another(world)), (Some(0), 0));
        until("that is said", || world.weir.logged().contains("that of another version of weir is gone"));
        downloads.into_iter().for_each(Download::finish);
    });
}

/// Drops what would tell the other end of a socket that is gone.
const MUTE: &str = "nft 'add table inet mute; add chain inet mute out { type filter hook output priority 0; }; \
                    add rule inet mute out tcp flags & rst == rst drop'";

/// Clients forget these connections, and so do servers where that is `all`; nobody is told. Whose they were.
fn forget(world: &World<'_>, streams: [TcpStream; 2], all: bool) -> [(SocketAddr, SocketAddr); 2] {
    let ends = [&world.lab.client, &world.lab.server];
    ends.iter().for_each(|end| drop(world.sh(end, MUTE)));
    let forgotten = streams.map(|stream| {
        let (client, server) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        if all {
            world.sh(&world.lab.server, &format!("ss -K dst '{client}' >/dev/null"));
        }
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
        world.until_gone(&world.lab.client, &format!(" {client} "));
        (client, server)
    });
    ends.iter().for_each(|end| drop(world.sh(end, "nft delete table inet mute")));
    forgotten
}

/// A connection of each family that the program of another version carries, beside a weir that runs.
fn left_in_another_versions_lane(world: &mut World<'_>) -> [TcpStream; 2] {
    ready(world);
    let streams = Family::BOTH.map(|family| {
        let mut stream = world.connect(family, HTTP);
        into_the_lane(world, &mut stream, ALLOWED);
        stream
    });
    kill_as_another(world);
    world.weir.start();
    streams
}

/// Its server, which still has the connection, says so, and is told that nobody else has.
#[test]
fn client_that_has_forgotten_a_connection_in_another_versions_lane_may_use_its_port_again() {
    for handshake in ["through", "answer"] {
        play(&Settings { handshake, ..always() }, |world| {
            let streams = left_in_another_versions_lane(world);
            for (from, to) in forget(world, streams, false) {
                let mut stream = client::connect(&world.lab.client, from, to).expect("it is let in");
                exchange_intact(&mut stream, ALLOWED, 100 * KIB);
                assert_eq!(world.weir.flow(from)["adopted"], false, "{handshake}: {from}");
            }
            world.weir.comes_to("drops", "unexpected-syn", 2);
        });
    }
}

/// The other version's program would carry it, and nobody look at what it asks for.
#[test]
fn port_that_a_client_uses_again_opens_nothing_behind_the_verdict_of_a_connection_in_another_versions_lane() {
    for handshake in ["through", "answer"] {
        play(&Settings { handshake, ..always() }, |world| {
            let streams = left_in_another_versions_lane(world);
            let (client, ends) = (&world.lab.client, forget(world, streams, true));
            let before = world.weir.count("drops", "unexpected-syn");
            std::thread::scope(|scope| {
                for (from, to) in ends {
                    scope.spawn(move || {
                        let again = client::connect(client, from, to);
                        let answered = again.and_then(|mut stream| fetch(&mut stream, DENIED, 100));
                        assert!(answered.is_err(), "{handshake}: {from} was answered");
                    });
                }
            });
            world.weir.comes_to("drops", "unexpected-syn", before + 2);
            // From another port it is a connection like any other.
            for family in Family::BOTH {
                assert!(fetch(&mut world.connect(family, HTTP), DENIED, 100).is_err());
                exchange_intact(&mut world.connect(family, HTTP), ALLOWED, 100 * KIB);
            }
        });
    }
}
