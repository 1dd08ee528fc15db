//! `fail` is real when weir hangs: what is not served is forwarded, or dropped, in time, and nobody's handshake is completed by a
//! process that does not serve it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use weir_control::demo::stage::Family;

use crate::config::{ALLOWED, DENIED, Settings};
use crate::idle::assert_idle;
use crate::send::{HANDSHAKES, sending, servers};
use crate::traffic::connect_from;
use crate::weir::{PATIENCE, until};
use crate::world::{Download, HTTP, World, fetch, fetch_intact, play, prepare, whoami};

/// Bytes of a download during which a thread hangs.
const BODY: u64 = 3 << 20;
/// One worker of the fast road, and one thread of the relay.
const WORKER: &str = "weir-worker-0";
const RELAY: &str = "weir-relay-0";
/// How long a connection is waited for that nobody is to answer.
const SHORT: Duration = Duration::from_millis(400);
/// Longer than a sign of life counts.
const STALE: Duration = Duration::from_millis(100);

/// Opens a connection and asks; what the origin answered, if it did.
fn asks(world: &World<'_>, family: Family, host: &str, patience: Duration) -> Option<String> {
    asks_from(world, family.addresses().client, host, patience)
}

/// As [`asks`], from this address of the client's.
fn asks_from(world: &World<'_>, client: IpAddr, host: &str, patience: Duration) -> Option<String> {
    let family = if client.is_ipv4() { Family::V4 } else { Family::V6 };
    let connect = || connect_from(client, family.origin(HTTP), patience);
    whoami(&mut world.lab.client.run(connect).ok()?, host).ok()
}

#[test]
fn hung_box_that_fails_open_forwards_new_connections_to_their_server() {
    for handshake in ["through", "answer", "relay"] {
        play(&Settings { handshake, ..Settings::prompt() }, |world| {
            for family in Family::BOTH {
                fetch_intact(&mut world.connect(family, HTTP), 1000);
            }
            world.weir.signal(Signal::STOP);
            std::thread::sleep(STALE);
            for family in Family::BOTH {
                // Nobody looks at what is asked for, either.
                for host in [ALLOWED, DENIED] {
                    let answer = asks(world, family, host, PATIENCE);
                    let answer = answer.unwrap_or_else(|| panic!("{handshake}, {family:?}: no answer"));
                    let client = family.addresses().client.to_string();
                    assert!(answer.contains(&client), "{handshake}: the server sees {answer}");
                }
            }
            world.weir.signal(Signal::CONT);
            for family in Family::BOTH {
                until("denied requests are refused again", || {
                    asks(world, family, DENIED, PATIENCE).is_none()
                });
                fetch_intact(&mut world.connect(family, HTTP), 1000);
            }
            let counted =
                if handshake == "relay" { ("relay", "passed-by") } else { ("steering", "stale_pass") };
            world.weir.comes_to(counted.0, counted.1, 1);
            world.weir.comes_to("relay", "stalls", 1);
        });
    }
}

#[test]
fn hung_box_that_fails_closed_drops_until_it_lives_again() {
    for handshake in ["through", "answer", "relay"] {
        play(&Settings { handshake, fail: "closed", ..Settings::prompt() }, |world| {
            for family in Family::BOTH {
                fetch_intact(&mut world.connect(family, HTTP), 1000);
            }
            world.weir.signal(Signal::STOP);
            std::thread::sleep(STALE);
            for family in Family::BOTH {
                for host in [ALLOWED, DENIED] {
                    let answer = asks(world, family, host, SHORT);
                    assert_eq!(answer, None, "{handshake}, {family:?}");
                }
            }
            world.weir.signal(Signal::CONT);
            for family in Family::BOTH {
                until("allowed requests are answered again", || {
                    asks(world, family, ALLOWED, PATIENCE).is_some()
                });
                assert_eq!(asks(world, family, DENIED, PATIENCE), None);
            }
        });
    }
}

#[test]
fn worker_that_hangs_in_a_box_that_fails_open_is_passed_by_until_it_goes_on() {
    for handshake in ["through", "answer"] {
        play(&Settings { queues: 2, handshake, ..Settings::prompt() }, |world| {
            world.meet_neighbours();
            // What is translated does not outlive a second of it, unless there is a lane.
            let downloads = (handshake != "answer")
                .then(|| Family::BOTH.map(|family| Download::start(world, family, BODY, BODY / 3)));
            let before = ["stale_pass", "stalls"].map(|name| world.weir.count("steering", name));
            let frozen = world.weir.freeze(WORKER);
            std::thread::sleep(STALE);
            downloads.iter().flatten().for_each(|download| download.goes_on(BODY / 4));
            let mut meanwhile = Family::BOTH.map(|family| world.connect(family, HTTP));
            for (family, stream) in Family::BOTH.into_iter().zip(&mut meanwhile) {
                let seen = whoami(stream, ALLOWED).expect("an answer");
                let client = stream.local_addr().unwrap().to_string();
                assert!(seen.contains(&client), "{handshake}, {family:?}: the server sees {seen}");
            }
            // The relay lives, and takes what the workers would: the rules hold.
            for family in Family::BOTH {
                until("denied requests are refused", || asks(world, family, DENIED, PATIENCE).is_none());
            }
            world.weir.comes_to("steering", "stale_pass", before[0] + 1);
            drop(frozen);
            world.weir.comes_to("steering", "stalls", before[1] + 1);
            downloads.into_iter().flatten().for_each(Download::finish);
            meanwhile.iter_mut().for_each(|stream| fetch_intact(stream, 10_000));
            for family in Family::BOTH {
                until("connections take their road again", || {
                    let mut stream = world.connect(family, HTTP);
                    fetch_intact(&mut stream, 10_000);
                    let flow = world.weir.find_flow(stream.local_addr().unwrap());
                    flow.is_some_and(|flow| flow["road"] == "fast")
                });
                until("denied requests are refused again", || {
                    asks(world, family, DENIED, PATIENCE).is_none()
                });
            }
            assert_eq!(world.weir.status()["healthy"], true);
            drop(meanwhile);
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn worker_that_hangs_in_a_box_that_fails_closed_lets_nothing_through_until_it_goes_on() {
    play(&Settings { queues: 2, fail: "closed", ..Settings::prompt() }, |world| {
        world.meet_neighbours();
        let frozen = world.weir.freeze(WORKER);
        until("its sign of life is old", || {
            for family in Family::BOTH {
                let _ = asks(world, family, ALLOWED, STALE);
            }
            world.weir.count("steering", "stale_drop") > 0
        });
        for family in Family::BOTH {
            for host in [ALLOWED, DENIED] {
                let answer = asks(world, family, host, SHORT);
                assert_eq!(answer, None, "{family:?}");
            }
        }
        drop(frozen);
        for family in Family::BOTH {
            until("allowed requests are answered again", || asks(world, family, ALLOWED, PATIENCE).is_some());
            assert_eq!(asks(world, family, DENIED, PATIENCE), None);
        }
        assert_eq!(world.weir.status()["healthy"], true);
    });
}

#[test]
fn relay_thread_that_hangs_in_a_box_that_fails_open_is_passed_by_by_all_new_connections_until_it_goes_on() {
    play(&Settings { handshake: "relay", ..Settings::prompt() }, |world| {
        // Enough for every thread to have some.
        let downloads: Vec<Download> =
            (0..12).map(|at| Download::start(world, Family::BOTH[at % 2], BODY, BODY / 3)).collect();
        let frozen = world.weir.freeze(RELAY);
        for family in Family::BOTH {
            // None is given to the thread that hangs, and none to the others.
            until("denied requests are forwarded", || asks(world, family, DENIED, SHORT).is_some());
            let answer = asks(world, family, ALLOWED, PATIENCE).expect("it is forwarded");
            assert!(answer.contains(&family.addresses().client.to_string()), "{answer}");
        }
        drop(frozen);
        downloads.into_iter().for_each(Download::finish);
        for family in Family::BOTH {
            until("denied requests are refused again", || asks(world, family, DENIED, PATIENCE).is_none());
            fetch_intact(&mut world.connect(family, HTTP), 1000);
        }
        world.weir.comes_to("relay", "passed-by", 1);
        world.weir.comes_to("relay", "stalls", 1);
        assert_eq!(world.weir.status()["healthy"], true);
    });
}

#[test]
fn relay_thread_that_hangs_is_not_the_fast_roads_concern() {
    for fail in ["open", "closed"] {
        play(&Settings { fail, ..Settings::prompt() }, |world| {
            world.meet_neighbours();
            let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, BODY / 2));
            let frozen = world.weir.freeze(RELAY);
            // A thread that sleeps is late only when its sleep is over.
            until("its sign of life is old", || {
                let passed = world.weir.count("relay", "passed-by");
                let _ = asks_from(world, Family::V4.addresses().other_client, ALLOWED, STALE);
                world.weir.count("relay", "passed-by") > passed
            });
            for family in Family::BOTH {
                // A rule gives all that this one asks for to the relay.
                let relayed = family.addresses().other_client;
                let passed = world.weir.count("relay", "passed-by");
                let answer =
                    asks_from(world, relayed, ALLOWED, if fail == "open" { PATIENCE } else { SHORT });
                assert_eq!(answer.is_some(), fail == "open", "{fail}, {family:?}: {answer:?}");
                world.weir.comes_to("relay", "passed-by", passed + 1);
                assert!(asks(world, family, ALLOWED, PATIENCE).is_some(), "{fail}, {family:?}");
                until("denied requests are refused", || asks(world, family, DENIED, PATIENCE).is_none());
            }
            drop(frozen);
            downloads.into_iter().for_each(Download::finish);
            for family in Family::BOTH {
                let relayed = family.addresses().other_client;
                until("the relay serves again", || asks_from(world, relayed, ALLOWED, PATIENCE).is_some());
            }
            assert_eq!(world.weir.status()["healthy"], true);
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn box_that_was_continued_does_not_flap() {
    play(&Settings::prompt(), |world| {
        world.meet_neighbours();
        world.weir.signal(Signal::STOP);
        std::thread::sleep(STALE * 3);
        world.weir.signal(Signal::CONT);
        until("the stall is counted", || world.weir.count("steering", "stalls") > 0);
        let (stalls, from) = (world.weir.count("steering", "stalls"), Instant::now());
        for family in Family::BOTH {
            let mut stream = world.connect(family, HTTP);
            assert!(fetch(&mut stream, ALLOWED, 1 << 20).expect("an answer").is_intact());
        }
        // One for the stop; a busy test machine may add its own, each of which takes a while, but not one for each packet.
        let (more, took) = (world.weir.count("steering", "stalls") - stalls, from.elapsed());
        assert!(u128::from(more) < 3 + took.as_millis() / STALE.as_millis(), "{more} in {took:?}");
    });
}

#[test]
fn memory_that_is_not_there_is_refused_with_its_size_and_nothing_is_installed() {
    prepare(&Settings::default(), |world| {
        let text = Settings::default().to_string();
        let plain = world.weir.command("run");
        let config = plain.get_args().last().expect("a file").to_owned();
        for flows in [1 << 20, 1 << 26] {
            world.weir.write_config(&text.replace("flows = 4096", &format!("flows = {flows}")));
            let mut small = std::process::Command::new("sh");
            let line = format!("ulimit -v 262144; exec {} run -c \"$0\"", env!("CARGO_BIN_EXE_weir"));
            small.arg("-c").arg(line).arg(&config);
            world.weir.spawn_as(&mut small);
            refused(world, &format!("lower `flows` in [workers] (it is {flows})"));
        }
        for family in Family::BOTH {
            fetch_intact(&mut world.connect(family, HTTP), 1000);
        }
    });
}

#[track_caller]
fn refused(world: &mut World<'_>, why: &str) {
    let ended = world.weir.wait();
    assert_eq!(ended.code(), 3, "{ended:?}");
    let sentence = ended.errors.lines().last().expect("a sentence");
    assert!(sentence.contains(why) && (sentence.contains("GiB") || sentence.contains("MiB")), "{sentence}");
    world.assert_as_before();
}

#[test]
fn box_that_hangs_for_a_moment_loses_none_of_the_connections_it_translates() {
    for handshake in HANDSHAKES {
        for source in ["client", "gateway"] {
            let pool = format!("source = \"{source}\"\n");
            let rules = r#"{ host = ["www.example"], action = "send", pool = "pool" }"#;
            let settings = Settings {
                rules,
                heartbeat: Settings::prompt().heartbeat,
                ..sending(handshake, &servers(1, HTTP), &pool)
            };
            play(&settings, |world| {
                let running = Family::BOTH.map(|family| Download::start(world, family, 4_000_000, 2_000_000));
                for _ in 0..2 {
                    world.weir.signal(Signal::STOP);
                    std::thread::sleep(STALE * 3);
                    world.weir.signal(Signal::CONT);
                    std::thread::sleep(STALE);
                }
                for download in running {
                    download.finish();
                }
                assert!(world.weir.count("steering", "doubt_drop") > 0);
            });
        }
    }
}
