//! The admin socket and the metrics: whoever asks, or asks nothing, does not change what the gateway does.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::Value;
use weir_control::demo::stage::Family;

use crate::config::Settings;
use crate::weir::until;
use crate::world::{HTTP, World, fetch_intact, play, prepare};

const ADMIN: &str = "/run/weir/admin.sock";
const METRICS: &str = "127.0.0.1:9470";

#[test]
fn open_admin_and_metrics_connections_do_not_defeat_an_ordered_stop() {
    let gateway = format!("metrics = \"{METRICS}\"");
    play(&Settings { gateway, ..Settings::default() }, |world| {
        let silent = world.lab.gateway.run(|| UnixStream::connect(ADMIN)).expect("weir listens");
        let scraper = world.lab.gateway.run(|| TcpStream::connect(METRICS)).expect("weir listens");
        // Answered, so those before it were accepted.
        let _ = world.weir.status();
        let ended = world.weir.stop();
        assert_eq!(ended.code(), 0, "{ended:?}");
        assert!(!ended.errors.contains("ERROR"), "{}", ended.errors);
        assert!(ended.errors.contains("stopped"), "{}", ended.errors);
        world.assert_as_before();
        drop((silent, scraper));
    });
}

#[test]
fn metrics_are_served_while_a_peer_is_silent() {
    let gateway = format!("metrics = \"{METRICS}\"");
    play(&Settings { gateway, ..Settings::default() }, |world| {
        let scrape = || {
            let _silent = TcpStream::connect(METRICS).expect("weir listens");
            let mut stream = TcpStream::connect(METRICS).expect("weir listens");
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("taken");
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        };
        let text = world.lab.gateway.run(scrape).expect("an answer");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("\nweir_healthy 1\n"), "{text}");
    });
}

#[test]
fn admin_that_names_a_file_is_refused_and_the_file_is_left() {
    for make in ["echo precious > /run/weir/precious", "ln -s /run/weir/test.toml /run/weir/precious"] {
        let gateway = "admin = \"/run/weir/precious\"".to_owned();
        prepare(&Settings { gateway, ..Settings::default() }, |world| {
            world.sh(&world.lab.gateway, make);
            let before = world.sh(&world.lab.gateway, "ls -l /run/weir/precious; cat /run/weir/precious");
            world.weir.spawn();
            let ended = world.weir.wait();
            assert_eq!(ended.code(), 3, "{ended:?}");
            for word in ["/run/weir/precious", "no socket", "`admin` in [gateway]"] {
                assert!(ended.errors.contains(word), "no {word:?} in: {}", ended.errors);
            }
            let after = world.sh(&world.lab.gateway, "ls -l /run/weir/precious; cat /run/weir/precious");
            assert_eq!(after, before);
            world.assert_as_before();
        });
    }
}

#[test]
fn socket_that_took_the_place_of_weirs_is_left() {
    play(&Settings::default(), |world| {
        let place = "mv /run/weir/admin.sock /run/weir/old.sock && echo other > /run/weir/admin.sock";
        world.sh(&world.lab.gateway, place);
        let ended = world.weir.stop();
        assert_eq!(ended.code(), 0, "{ended:?}");
        assert_eq!(world.sh(&world.lab.gateway, "cat /run/weir/admin.sock"), "other\n");
    });
}

#[test]
fn port_that_is_gone_makes_status_unhealthy_with_the_reason_first() {
    prepare(&Settings::default(), |world| {
        world.weir.start();
        world.sh(&world.lab.gateway, "ip link del wan0");
        until("weir says that it is not healthy", || world.weir.status()["healthy"] == false);
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.args(["status", "--admin", ADMIN]);
        let told = world.weir.finish(command);
        assert_eq!(told.code(), 1, "{told:?}");
        let first: Vec<&str> = told.output.lines().take(2).collect();
        assert!(first[0].contains("NOT HEALTHY") && first[1].contains("wan0 went away"), "{}", told.output);
        assert_eq!(world.weir.stop().code(), 0);
    });
}

#[test]
fn flow_on_the_relay_shows_octets_and_no_packets() {
    play(&Settings { handshake: "relay", ..Settings::default() }, |world| {
        for family in Family::BOTH {
            let mut stream = world.connect(family, HTTP);
            fetch_intact(&mut stream, 10_000);
            let flow = world.weir.flow(stream.local_addr().expect("connected"));
            assert_eq!(
                (&flow["road"], flow["packets_to_client"].is_null()),
                (&"relay".into(), true),
                "{flow}"
            );
            assert!(flow["bytes_to_client"].as_u64() >= Some(10_000), "{flow}");
        }
    });
}

/// What `weir flows` prints.
fn listed(world: &World<'_>, more: &[&str]) -> String {
    let mut command = world.weir.command("flows");
    command.args(more);
    let told = world.weir.finish(command);
    assert_eq!(told.code(), 0, "{told:?}");
    told.output
}

#[test]
fn list_without_the_flows_of_a_thread_that_hangs_says_that_it_is_incomplete() {
    for (thread, of, who) in [
        ("weir-worker-0", "workers", "1 of 2 workers"),
        ("weir-relay-0", "relay_threads", "threads of the relay"),
    ] {
        play(&Settings { queues: 2, ..Settings::default() }, |world| {
            world.meet_neighbours();
            for family in Family::BOTH {
                fetch_intact(&mut world.connect(family, HTTP), 1000);
            }
            assert!(!listed(world, &[]).contains("incomplete"));
            let frozen = world.weir.freeze(thread);
            let text = listed(world, &[]);
            assert!(text.contains("\nincomplete: ") && text.contains(who), "{thread}: {text}");
            let json: Value = serde_json::from_str(&listed(world, &["--json"])).expect("JSON");
            let last = json.as_array().and_then(|list| list.last()).expect("an object at the end");
            assert_eq!(last["incomplete"][of], 1, "{thread}: {last}");
            let mut check = world.weir.command("check");
            check.args(["--against", "running", "--json"]);
            let told = world.weir.finish(check);
            let shadow: Value = serde_json::from_str(&told.output).expect("JSON");
            assert_eq!(shadow["against"]["incomplete"][of], 1, "{thread}: {told:?}");
            drop(frozen);
            until("all are listed", || !listed(world, &[]).contains("incomplete"));
        });
    }
}
