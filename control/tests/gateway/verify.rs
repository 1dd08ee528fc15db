//! `verify_host`: connections whose destination is no address of the name that they ask for, with a resolver that the test
//! controls (the gateway's own mounts of `/etc/hosts` and what belongs to it).

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_control::demo::client;
use weir_control::demo::stage::Family;

use crate::config::{ALLOWED, Settings};
use crate::explain::explain;
use crate::weir::{PATIENCE, until};
use crate::world::{HTTP, World, fetch, prepare};

/// A name with other addresses than the servers'.
const ELSEWHERE: &str = "elsewhere.example";
/// A name without any.
const UNKNOWN: &str = "unknown.example";
const HANDSHAKES: [&str; 3] = ["through", "answer", "relay"];

/// The files of a resolver: names come from `hosts`, and where `asks` says so from a server on the gateway.
fn resolver(world: &World<'_>, asks: bool) {
    let known = Family::BOTH.map(|family| format!("{} {ALLOWED}\n", family.addresses().servers[0])).concat();
    let hosts = format!("{known}203.0.113.9 {ELSEWHERE}\n2001:db8:ffff::9 {ELSEWHERE}\n");
    let files = [
        ("hosts", hosts.as_str()),
        ("nsswitch.conf", if asks { "hosts: files dns\n" } else { "hosts: files\n" }),
        // It is waited for longer than this test waits for anything.
        ("resolv.conf", "nameserver 10.77.1.1\noptions timeout:30 attempts:2\n"),
    ];
    for (name, content) in files {
        let path = format!("/run/{name}");
        world.lab.gateway.run(|| std::fs::write(&path, content)).expect("the lab has a /run");
        world.sh(&world.lab.gateway, &format!("mount --bind {path} /etc/{name}"));
    }
}

/// `weir explain` says what becomes of a request, and who knows the name's addresses.
#[track_caller]
fn assert_foretold(
    world: &World<'_>,
    handshake: &str,
    from: SocketAddr,
    host: &str,
    (verdict, why, source): (&str, &str, &str),
) {
    let family = if from.is_ipv4() { Family::V4 } else { Family::V6 };
    let explained = explain(world, from, family.origin(HTTP), &["--host", host]);
    explained.assert_says(if handshake == "relay" { "relay" } else { "fast" }, &[why]);
    assert_eq!(explained.text("verdict"), verdict, "{host}: {explained:?}");
    let mut steps = explained.steps("policy");
    let step = steps.find(|step| step["question"].as_str().expect("text").contains("verify_host"));
    assert_eq!(step.expect("it is asked")["source"], source, "{host}: {explained:?}");
}

#[test]
fn check_of_the_name_is_foretold_before_and_after_it_is_known() {
    let intercept = "verify_host = \"reset\"\nunidentified = \"drop\"";
    for handshake in HANDSHAKES {
        prepare(&settings(handshake, intercept), |world| {
            resolver(world, false);
            world.weir.start();
            let clients = Family::BOTH.map(|family| SocketAddr::new(family.addresses().client, 41_400));
            let mismatch = |source| ("reset", "host-mismatch", source);
            for from in clients {
                let said = |host, said| assert_foretold(world, handshake, from, host, said);
                said(ALLOWED, ("allow", "otherwise", "resolver"));
                said(ELSEWHERE, mismatch("resolver"));
                said(UNKNOWN, ("drop", "host-unknown", "resolver"));
                let own = if from.is_ipv4() { Family::V4 } else { Family::V6 }.addresses().servers[0];
                let literal = if own.is_ipv6() { format!("[{own}]") } else { own.to_string() };
                said(&literal, ("allow", "otherwise", "configuration"));
                said("203.0.113.9", mismatch("configuration"));
                said("[2001:db8:ffff::9]", mismatch("configuration"));
            }
            assert_eq!(
                world.weir.count("flows", "host-asked"),
                0,
                "who asks about a connection asks no worker"
            );
            for family in Family::BOTH {
                assert!(ask(world, family, ALLOWED).0 && !ask(world, family, ELSEWHERE).0, "{handshake}");
            }
            // What the gateway remembers holds, whatever the resolver would say meanwhile.
            let servers =
                Family::BOTH.map(|family| format!("{} {ELSEWHERE}\n", family.addresses().servers[0]));
            world
                .lab
                .gateway
                .run(|| std::fs::write("/run/hosts", servers.concat()))
                .expect("the lab has a /run");
            for (family, from) in Family::BOTH.into_iter().zip(clients) {
                assert_foretold(world, handshake, from, ALLOWED, ("allow", "otherwise", "gateway"));
                assert_foretold(world, handshake, from, ELSEWHERE, mismatch("gateway"));
                assert!(!ask(world, family, ELSEWHERE).0, "{handshake}: as it was foretold");
                // A rule that takes the SYN lets it on, and its name is looked at all the same.
                let from = SocketAddr::new(family.addresses().other_client, 41_401);
                assert_foretold(world, "relay", from, ELSEWHERE, mismatch("gateway"));
                let stream = client::connect(&world.lab.client, from, family.origin(HTTP));
                let error =
                    fetch(&mut stream.expect("the relay answers"), ELSEWHERE, 1000).expect_err("refused");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            }
        });
    }
}

fn settings(handshake: &'static str, intercept: &'static str) -> Settings {
    Settings { handshake, intercept, ..Settings::default() }
}

/// What becomes of a request: whether it is answered, and what `weir flows` shows of it on the fast road.
fn ask(world: &World<'_>, family: Family, host: &str) -> (bool, Option<Value>) {
    let mut stream = world.connect(family, HTTP);
    let client = stream.local_addr().expect("connected");
    let answered = match fetch(&mut stream, host, 1000) {
        Ok(response) => {
            assert!(response.is_intact() && response.length == 1000);
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{host}: {error}");
            assert_eq!(world.received_from(client), 0, "{host}: octets reached the server");
            false
        }
    };
    (answered, world.weir.find_flow(client))
}

/// A counter of the road that the handshake takes.
fn count(world: &World<'_>, handshake: &str, name: &str) -> u64 {
    world.weir.count(family(handshake), name)
}

/// As [`count`]: it comes to this.
#[track_caller]
fn assert_counted(world: &World<'_>, handshake: &str, name: &str, expected: u64) {
    world.weir.assert_count(family(handshake), name, expected);
}

fn family(handshake: &str) -> &str {
    if handshake == "relay" { "relay" } else { "flows" }
}

#[test]
fn destination_that_is_not_the_names_is_reset_at_both_ends() {
    for handshake in HANDSHAKES {
        prepare(&settings(handshake, "verify_host = \"reset\"\nunidentified = \"reset\""), |world| {
            resolver(world, false);
            world.weir.start();
            world.meet_neighbours();
            for family in Family::BOTH {
                // The first connection waits for the resolver, the second is answered from memory.
                for _ in 0..2 {
                    let (answered, flow) = ask(world, family, ALLOWED);
                    assert!(answered, "{handshake} {family:?}");
                    if let Some(flow) = flow {
                        assert_eq!(
                            (&flow["host_check"], &flow["verdict"]),
                            (&"matches".into(), &"allow".into())
                        );
                    }
                    let before = count(world, handshake, "host-mismatch");
                    let watch = world.watch();
                    let mut stream = world.connect(family, HTTP);
                    let client = stream.local_addr().expect("connected");
                    let error = fetch(&mut stream, ELSEWHERE, 1000).expect_err("refused");
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
                    assert_counted(world, handshake, "host-mismatch", before + 1);
                    let (near, far) = watch.stop(client);
                    assert!(near.tcp.iter().any(|frame| frame.rst && frame.destination == client));
                    assert!(far.tcp.iter().all(|frame| frame.payload.is_empty()), "{handshake}: payload");
                    let told = far.tcp.iter().any(|frame| frame.rst && frame.source == client);
                    assert_eq!(
                        told,
                        handshake != "answer",
                        "{handshake}: the server is freed where there is one"
                    );
                    if handshake != "relay" {
                        let flow = world.weir.flow(client);
                        assert_eq!((&flow["verdict"], &flow["stage"]), (&"reset".into(), &"refused".into()));
                        assert_eq!(flow["reason"], "host-mismatch", "{flow}");
                        assert_eq!(flow["host_check"], "differs", "{flow}");
                    }
                    let before = count(world, handshake, "host-unknown");
                    let (answered, flow) = ask(world, family, UNKNOWN);
                    assert!(!answered, "{handshake} {family:?}: `unidentified` resets it");
                    if handshake != "relay" {
                        assert_eq!(flow.expect("it is remembered")["reason"], "host-unknown");
                    }
                    assert_counted(world, handshake, "host-unknown", before + 1);
                }
                // Names that are addresses are compared without a resolver.
                let asked = count(world, handshake, "host-asked");
                let own = family.addresses().servers[0];
                let literal = if own.is_ipv6() { format!("[{own}]") } else { own.to_string() };
                assert!(ask(world, family, &literal).0);
                assert!(!ask(world, family, "203.0.113.9").0 && !ask(world, family, "[2001:db8:ffff::9]").0);
                assert_eq!(count(world, handshake, "host-asked"), asked);
            }
        });
    }
}

#[test]
fn destination_that_is_not_the_names_passes_and_is_logged() {
    for handshake in HANDSHAKES {
        prepare(&settings(handshake, "verify_host = \"log\"\nunidentified = \"reset\""), |world| {
            resolver(world, false);
            world.weir.start();
            world.meet_neighbours();
            for family in Family::BOTH {
                let before = ["host-mismatch", "host-unknown"].map(|name| count(world, handshake, name));
                for host in [ALLOWED, ELSEWHERE, ELSEWHERE, UNKNOWN] {
                    assert!(ask(world, family, host).0, "{handshake} {family:?} {host}");
                }
                until("the names are looked up", || {
                    let now = ["host-mismatch", "host-unknown"].map(|name| count(world, handshake, name));
                    now == [before[0] + 2, before[1] + 1]
                });
            }
            for family in Family::BOTH {
                let from = SocketAddr::new(family.addresses().client, 41_410);
                assert_foretold(world, handshake, from, ELSEWHERE, ("allow", "otherwise", "gateway"));
            }
            let ended = world.weir.stop();
            world.assert_as_before();
            let lines: Vec<&str> = ended.errors.lines().filter(|line| line.contains("verify_host")).collect();
            assert_eq!(lines.len(), 4, "{}", ended.errors);
            for family in Family::BOTH {
                let addresses = family.addresses();
                let client = format!("client={}", SocketAddr::new(addresses.client, 0));
                let client = client.strip_suffix('0').expect("the port");
                let destination = format!("destination={}", family.origin(HTTP));
                let of = |line: &&&str| line.contains(client) && line.contains(&destination);
                let of: Vec<&&str> = lines.iter().filter(of).collect();
                assert_eq!(of.len(), 2, "{lines:#?}");
                for line in of {
                    assert!(line.contains(ELSEWHERE) && line.contains("203.0.113.9"), "{line}");
                    assert!(line.contains("2001:db8:ffff::9") && line.contains("WARN"), "{line}");
                }
            }
        });
    }
}

/// A resolver that never answers: the connection waits as long as `hold` says, and weir's end does not wait for it.
#[test]
fn name_that_is_not_answered_for_in_time_takes_the_verdict_of_the_unidentified() {
    for (unidentified, intercept) in [
        ("reset", "hold = { time = \"700ms\" }\nverify_host = \"reset\"\nunidentified = \"reset\""),
        ("allow", "hold = { time = \"700ms\" }\nverify_host = \"reset\"\nunidentified = \"allow\""),
    ] {
        for handshake in HANDSHAKES {
            prepare(&settings(handshake, intercept), |world| {
                resolver(world, true);
                let silent = world.lab.gateway.run(|| UdpSocket::bind("10.77.1.1:53")).expect("free");
                world.weir.start();
                world.meet_neighbours();
                for family in Family::BOTH {
                    let (begun, before) = (Instant::now(), count(world, handshake, "host-unknown"));
                    let (answered, _) = ask(world, family, UNKNOWN);
                    assert_eq!(answered, unidentified == "allow", "{handshake} {family:?}");
                    let took = begun.elapsed();
                    assert!(took > Duration::from_millis(650) && took < PATIENCE, "{took:?}");
                    assert_counted(world, handshake, "host-unknown", before + 1);
                    // Nobody else waits.
                    assert!(ask(world, family, ALLOWED).0);
                }
                assert!(silent.recv(&mut [0; 512]).expect("asked") > 0);
                let begun = Instant::now();
                let ended = world.weir.stop();
                assert!(begun.elapsed() < PATIENCE, "{:?} to stop", begun.elapsed());
                assert_eq!(ended.code(), 0);
                world.assert_as_before();
            });
        }
    }
}

#[test]
fn verify_host_that_a_reload_turns_on_ends_what_is_known_to_differ_as_foretold() {
    for handshake in HANDSHAKES {
        prepare(&settings(handshake, "verify_host = \"log\""), |world| {
            resolver(world, false);
            world.weir.start();
            world.meet_neighbours();
            let open = |family, host| {
                let mut stream = world.connect(family, HTTP);
                assert!(fetch(&mut stream, host, 1000).expect("it is only logged").is_intact());
                stream
            };
            let mut right = Family::BOTH.map(|family| open(family, ALLOWED));
            let mut wrong = Family::BOTH.map(|family| open(family, ELSEWHERE));
            world.weir.write_config(&settings(handshake, "verify_host = \"reset\"").to_string());
            let told = |command: &str, args: &[&str]| {
                let mut command = world.weir.command(command);
                command.args(args).arg("--json");
                let told = world.weir.finish(command);
                assert_eq!(told.code(), 0, "{handshake}: {told:?}");
                serde_json::from_str::<Value>(&told.output).expect("JSON")
            };
            let foretold = told("check", &["--against", "running"])["against"]["tally"].clone();
            assert_eq!(foretold["reset"], 2, "{handshake}: {foretold}");
            assert_eq!(foretold["unverified"], 0, "{handshake}: {foretold}");
            for stream in &mut wrong {
                assert!(fetch(stream, ELSEWHERE, 1000).expect("nobody has reloaded").is_intact());
            }
            assert_eq!(told("reload", &["--reevaluate"])["reevaluated"], foretold, "{handshake}");
            for stream in &mut wrong {
                let error = fetch(stream, ELSEWHERE, 1000).expect_err("it was ended");
                assert!(
                    [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()),
                    "{error}"
                );
            }
            for stream in &mut right {
                assert!(fetch(stream, ALLOWED, 1000).expect("it goes on").is_intact(), "{handshake}");
            }
        });
    }
}
