//! `weir reload` and `weir check --against` on a gateway with traffic: no packet is lost, connections keep their verdict until
//! they are judged again, and what cannot be done changes nothing.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use weir_control::demo::stage::Family;
use weir_control::lab::{TcpFrame, host_state};

use crate::config::{ALLOWED, DENIED, Settings};
use crate::send::{POOLED, sending, servers};
use crate::weir::{Finished, until};
use crate::world::{Download, HTTP, Seen, World, fetch, fetch_intact, play};

/// All three ways to take a connection.
const HANDSHAKES: [&str; 3] = ["through", "answer", "relay"];
/// A rule that refuses the name of the usual downloads.
const REFUSE: &str = r#"{ host = ["www.example"], action = "reset" },"#;
const NOTHING: &str = r#"{ host = ["denied.example"], action = "reset" },"#;

fn run(world: &World<'_>, mut command: Command, more: &[&str]) -> Finished {
    command.args(more);
    world.weir.finish(command)
}

fn reload(world: &World<'_>, settings: &str, more: &[&str]) -> Finished {
    world.weir.write_config(settings);
    run(world, world.weir.command("reload"), more)
}

#[track_caller]
fn reloaded(world: &World<'_>, settings: &str, more: &[&str]) -> Value {
    let done = reload(world, settings, &[more, &["--json"]].concat());
    assert_eq!(done.code(), 0, "{done:?}");
    serde_json::from_str(&done.output).expect("JSON")
}

fn refuses(world: &World<'_>, family: Family, host: &str) -> bool {
    match fetch(&mut world.connect(family, HTTP), host, 100) {
        Ok(response) => !response.is_intact(),
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// Payload segments of the usual server, in the order of their sequence numbers. On a busy machine TCP sends some again; what
/// came in at one end of the gateway must have come out at the other.
fn data(seen: &Seen) -> Vec<(u32, usize)> {
    let from_server =
        seen.tcp.iter().filter(|frame| frame.source.port() == HTTP && !frame.payload.is_empty());
    let mut data: Vec<_> = from_server.map(|frame| (frame.sequence, frame.payload.len())).collect();
    data.sort_unstable();
    data
}

#[test]
fn twenty_reloads_in_a_row_lose_no_packet_and_end_no_connection() {
    for handshake in HANDSHAKES {
        let settings = Settings { handshake, ..Settings::default() };
        play(&settings, |world| {
            world.meet_neighbours();
            let watches = Family::BOTH.map(|_| world.watch());
            let downloads = Family::BOTH.map(|family| Download::start(world, family, 3_000_000, 400_000));
            for round in 0..20 {
                let rules = if round % 2 == 0 { NOTHING } else { settings.rules };
                let tcp = if round % 3 == 0 { "tcp = [80, 443]" } else { "tcp = [80, 443, 7777, 8443]" };
                let text = Settings { rules, ..settings.clone() }.to_string();
                let answer = reloaded(world, &text.replace("tcp = [80, 443, 7777]", tcp), &[]);
                assert_eq!(
                    (&answer["ok"], &answer["epoch"]),
                    (&true.into(), &(round + 2).into()),
                    "{answer}"
                );
                downloads.iter().for_each(|download| download.goes_on(1000));
            }
            assert_eq!(world.weir.status()["epoch"], 21);
            let clients = Family::BOTH.map(|family| downloads[family as usize].client);
            downloads.into_iter().for_each(Download::finish);
            for (watch, client) in watches.into_iter().zip(clients) {
                let (near, far) = watch.stop(client);
                assert!(near.tcp.iter().chain(&far.tcp).all(|frame| !frame.rst), "{handshake}: RST");
                let (near, far) = (data(&near), data(&far));
                assert!(!near.is_empty());
                match handshake {
                    "through" => assert_eq!(near, far, "{handshake}: segments lost"),
                    // Its sequence numbers are translated.
                    "answer" => assert_eq!(near.len(), far.len(), "{handshake}: segments lost"),
                    _ => {}
                }
            }
            let status = world.weir.status();
            let drops = status["drops"].as_array().unwrap().iter().filter(|drop| drop["count"] != 0);
            // What is for weir itself, a SYN-ACK of a server that it called, is no loss.
            let lost: Vec<_> = drops.map(|drop| &drop["name"]).filter(|name| **name != "to-weir").collect();
            assert!(lost.is_empty(), "{handshake}: {lost:?}");
        });
    }
}

#[test]
fn new_refusal_ends_live_connections_only_when_they_are_judged_again_and_as_foretold() {
    for handshake in HANDSHAKES {
        let settings = Settings { handshake, rules: NOTHING, ..Settings::default() };
        play(&settings, |world| {
            world.meet_neighbours();
            let watches = Family::BOTH.map(|_| world.watch());
            let mut live = Family::BOTH.map(|family| {
                let mut stream = world.connect(family, HTTP);
                fetch_intact(&mut stream, 1000);
                stream
            });
            let refusing = Settings { rules: REFUSE, ..settings.clone() }.to_string();
            world.weir.write_config(&refusing);
            let check =
                |against: &str| run(world, world.weir.command("check"), &["--against", against, "--json"]);
            let shadow = check("running");
            assert_eq!(shadow.code(), 0, "{shadow:?}");
            let shadow: Value = serde_json::from_str(&shadow.output).expect("JSON");
            assert_eq!(world.weir.status()["epoch"], 1, "a shadow changes nothing");
            assert_eq!(reloaded(world, &refusing, &[])["epoch"], 2);
            for (family, stream) in Family::BOTH.into_iter().zip(&mut live) {
                assert!(refuses(world, family, ALLOWED), "{handshake}: new connections are refused");
                fetch_intact(stream, 1000);
                let flow = world.weir.flow(stream.local_addr().unwrap());
                assert_eq!((&flow["verdict"], &flow["epoch"]), (&"allow".into(), &1.into()), "{flow}");
            }
            let again: Value = serde_json::from_str(&check("/run/weir/admin.sock").output).expect("JSON");
            let answer = reloaded(world, &refusing, &["--reevaluate"]);
            let tally = &answer["reevaluated"];
            assert_eq!(tally, &again["against"]["tally"], "{handshake}");
            assert!(tally["reset"].as_u64() >= Some(2), "{handshake}: {answer}");
            assert!(shadow["against"]["changed"].as_u64() >= Some(2), "{shadow}");
            for (family, stream) in Family::BOTH.into_iter().zip(&mut live) {
                let client = stream.local_addr().unwrap();
                let error = fetch(stream, ALLOWED, 10).expect_err("it was ended");
                let reset = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind());
                assert!(reset, "{handshake} {family:?}: {error}");
                until("the server's socket is gone", || {
                    let line = format!("ss -tnH state established | grep -c ':{} ' || true", client.port());
                    world.sh(&world.lab.server, &line).trim() == "0"
                });
            }
            for (watch, stream) in watches.into_iter().zip(&live) {
                let client = stream.local_addr().unwrap();
                let (near, far) = watch.stop(client);
                for (seen, sender) in [(&near, None), (&far, Some(client))] {
                    assert_reset_where_it_stood(&seen.tcp, client, sender, handshake);
                }
            }
        });
    }
}

/// The RST of `sender`, or to `client`, has the number that follows what was sent before it.
#[track_caller]
fn assert_reset_where_it_stood(
    seen: &[TcpFrame],
    client: SocketAddr,
    sender: Option<SocketAddr>,
    handshake: &str,
) {
    let sent = |f: &&TcpFrame| match sender {
        Some(sender) => f.source == sender,
        None => f.destination == client,
    };
    // What is sent again may come last.
    let ends = seen.iter().filter(sent).filter(|f| !f.payload.is_empty());
    let ends = ends.map(|f| f.sequence.wrapping_add(f.payload.len() as u32));
    let end = ends.reduce(|last, end| if end.wrapping_sub(last) < 1 << 31 { end } else { last });
    let rst = seen.iter().filter(sent).find(|f| f.rst).map(|f| f.sequence);
    assert_eq!(rst, end, "{handshake}: the RST is exact");
}

#[test]
fn bad_file_and_what_needs_a_restart_change_nothing_and_are_told_with_their_line() {
    let settings = Settings::default();
    play(&settings, |world| {
        let text = settings.to_string();
        let before = host_state(&world.lab.gateway).expect("state");
        let rows = [
            (text.replace("action = \"drop\"", "action = \"dorp\""), "dorp"),
            (
                text.replace("flows = 4096", "flows = 8192"),
                "`flows` in [workers] cannot change while weir runs",
            ),
            (text.replace("listen = 12377", "listen = 12378"), "`listen` in [fallback] cannot change"),
            (text.replace("fail = \"open\"", "fail = \"closed\""), "`fail` in [gateway] cannot change"),
            (text.replace("\"wan0\"", "\"lo\""), "`device` of port wan (now wan0) cannot change"),
            (
                text.replacen("mode = \"auto\"", "mode = \"copy\"", 1),
                "`mode` of port lan (now auto) cannot change",
            ),
            (text.replace("\"through\"", "\"relay\""), "has a fast road"),
            (
                text.replace("[workers]", "[[port]]\nname = \"x\"\ndevice = \"lo\"\n[workers]"),
                "the number of ports",
            ),
        ];
        for (changed, words) in rows {
            assert_ne!(changed, text, "{words}");
            world.weir.write_config(&changed);
            let mut by_socket = Command::new(env!("CARGO_BIN_EXE_weir"));
            by_socket.arg("reload").args(["--admin", "/run/weir/admin.sock"]);
            let done = world.weir.finish(by_socket);
            assert_eq!(done.code(), 1, "{words}: {done:?}");
            assert!(
                done.output.contains(words) && done.output.contains("test.toml:"),
                "{words}: {}",
                done.output
            );
            assert_eq!(world.weir.status()["epoch"], 1);
        }
        world.assert_state(&before);
        for family in Family::BOTH {
            assert!(refuses(world, family, DENIED) && !refuses(world, family, ALLOWED));
        }
    });
}

#[test]
fn reload_that_the_kernel_refuses_changes_nothing_and_the_next_one_is_whole() {
    for handshake in HANDSHAKES {
        let settings = Settings { handshake, ..Settings::default() };
        play(&settings, |world| {
            let gateway = &world.lab.gateway;
            let downloads = Family::BOTH.map(|family| Download::start(world, family, 2_000_000, 500_000));
            let before = host_state(gateway).expect("state");
            let fallback = "[fallback]\nmark = \"0x55/0xff\"\ntable = 188\npriority = 1088";
            let text =
                Settings { rules: REFUSE, ..settings.clone() }.to_string().replace("[fallback]", fallback);
            // Rules and routes are accepted, and the table is not.
            let cover = "printf '#!/bin/sh\\ncase \"$*\" in *list*) exec /run/nft.real \"$@\";; esac; exit 1\\n' > /run/nft; \
                         chmod +x /run/nft; nft=$(readlink -f $(command -v nft)); cp $nft /run/nft.real; mount --bind /run/nft $nft";
            world.sh(gateway, cover);
            let refused = reload(world, &text, &[]);
            world.sh(gateway, "umount $(readlink -f $(command -v nft)); rm /run/nft /run/nft.real");
            assert_ne!(refused.code(), 0, "{refused:?}");
            assert_eq!(world.weir.status()["epoch"], 1);
            world.assert_state(&before);
            assert!(Family::BOTH.iter().all(|family| !refuses(world, *family, ALLOWED)));
            assert_eq!(reloaded(world, &text, &[])["epoch"], 2);
            for (tool, family) in [("ip", Family::V4), ("ip -6", Family::V6)] {
                let rules = world.sh(gateway, &format!("{tool} rule"));
                assert!(rules.contains("1088:") && !rules.contains("1077:"), "{rules}");
                assert!(refuses(world, family, ALLOWED));
            }
            downloads.into_iter().for_each(Download::finish);
        });
    }
}

#[test]
fn hangup_reloads_and_the_kernels_side_follows() {
    let settings = Settings::default();
    play(&settings, |world| {
        let downloads = Family::BOTH.map(|family| Download::start(world, family, 2_000_000, 500_000));
        let text = Settings { rules: REFUSE, ..settings.clone() }.to_string();
        let fallback = "[fallback]\nmark = \"0x55/0xff\"\ntable = 188\npriority = 1088";
        world.weir.write_config(&text.replace("[fallback]", fallback));
        world.weir.signal(Signal::HUP);
        until("weir has reloaded", || world.weir.status()["epoch"] == 2);
        for (tool, family) in [("ip", Family::V4), ("ip -6", Family::V6)] {
            until("the rules have followed", || {
                let rules = world.sh(&world.lab.gateway, &format!("{tool} rule"));
                rules.contains("1088:") && !rules.contains("1077:")
            });
            let route = world.sh(&world.lab.gateway, &format!("{tool} route show table 188"));
            assert!(route.contains("local default"), "{route}");
            assert!(refuses(world, family, ALLOWED));
        }
        downloads.into_iter().for_each(Download::finish);
    });
}

#[test]
fn intercept_that_is_removed_carries_its_connections_to_their_end_and_one_that_is_added_spares_those_before()
{
    for handshake in ["answer", "through"] {
        let settings = Settings { grace: "1s", ..sending(handshake, &servers(1, HTTP), "") };
        play(&settings, |world| {
            world.meet_neighbours();
            let text = settings.to_string();
            let mut sent = Family::BOTH.map(|family| {
                let mut stream = world.connect(family, HTTP);
                fetch(&mut stream, POOLED, 1000).expect("an answer");
                stream
            });
            // Neither the intercept nor the pool is there any more.
            let cut = text.find("[[pool]]").unwrap();
            let none = text[..cut].replace("tcp = [80, 443, 7777]", "tcp = [443]");
            let none = none.replace("{ host = [\"pool.example\"], action = \"send\", pool = \"pool\" },", "");
            reloaded(world, &none, &[]);
            let mut plain = Family::BOTH.map(|family| world.connect(family, HTTP));
            for (family, stream) in Family::BOTH.into_iter().zip(&mut plain) {
                assert!(!refuses(world, family, DENIED), "not intercepted any more");
                fetch_intact(stream, 1000);
            }
            for stream in &mut sent {
                let response = fetch(stream, POOLED, 200_000).expect("its server is still there");
                assert!(response.is_intact());
            }
            std::thread::sleep(std::time::Duration::from_secs(2));
            // The intercept is back; connections that the kernel forwarded meanwhile are left to it.
            reloaded(world, &text, &[]);
            for (family, stream) in Family::BOTH.into_iter().zip(&mut plain) {
                fetch_intact(stream, 200_000);
                assert!(refuses(world, family, DENIED), "{handshake} {family:?}");
            }
            for stream in &mut sent {
                assert!(fetch(stream, POOLED, 1000).expect("an answer").is_intact());
            }
        });
    }
}

#[test]
fn pools_and_lists_follow_and_drains_stay() {
    let (one, two) = (servers(1, HTTP), servers(2, HTTP));
    let both = [one.clone(), two.clone()].concat();
    let check = "check = { kind = \"tcp\", interval = \"100ms\" }";
    play(&sending("answer", &both, check), |world| {
        world.sh(&world.lab.gateway, "echo late.example > /run/weir/names.txt");
        let drained = run(world, world.weir.command("drain"), &["pool", &one[0]]);
        assert_eq!(drained.code(), 0, "{drained:?}");
        let more = sending("answer", &[two.clone(), one.clone()].concat(), check).to_string();
        let listed = "rules = [{ host_file = \"names.txt\", action = \"reset\" },";
        reloaded(world, &more.replace("rules = [", listed), &[]);
        let state = |server: &str| {
            let all = world.weir.status()["pools"][0]["servers"].as_array().unwrap().clone();
            all.into_iter().find(|s| s["address"] == server).map(|s| s["state"].clone()).unwrap()
        };
        assert_eq!(state(&one[0]), "draining");
        until("the other is up", || state(&two[0]) == "up");
        for family in Family::BOTH {
            assert!(refuses(world, family, "late.example"), "{family:?}");
        }
        world.sh(&world.lab.gateway, "echo later.example > /run/weir/names.txt");
        for family in Family::BOTH {
            until("the list of the new file is followed", || refuses(world, family, "later.example"));
            let mut stream = world.connect(family, HTTP);
            let client = stream.local_addr().unwrap();
            assert!(fetch(&mut stream, POOLED, 1000).expect("an answer").is_intact());
            let server: SocketAddr = world.weir.flow(client)["server"].as_str().unwrap().parse().unwrap();
            if family == Family::V4 {
                assert_eq!(server.to_string(), two[0]);
            }
        }
    });
}
