//! `fail` is real when weir hangs: what is not served is forwarded, or dropped, in time, and nobody's handshake is completed by a
//! process that does not serve it.

use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;
use weir_control::demo::stage::Family;

use crate::config::{ALLOWED, DENIED, Settings};
use crate::send::{HANDSHAKES, sending, servers};
use crate::weir::{PATIENCE, until};
use crate::world::{Download, HTTP, World, fetch, fetch_intact, play, prepare, whoami};

/// Longer than a sign of life counts.
const STALE: Duration = Duration::from_millis(100);

/// Opens a connection and asks; what the origin answered, if it did.
fn asks(world: &World<'_>, family: Family, host: &str, patience: Duration) -> Option<String> {
    let target = family.origin(HTTP);
    let connect = || TcpStream::connect_timeout(&target, patience);
    let mut stream = world.lab.client.run(connect).ok()?;
    stream.set_read_timeout(Some(patience)).expect("a timeout");
    whoami(&mut stream, host).ok()
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
            assert!(world.weir.count(counted.0, counted.1) > 0);
            assert!(world.weir.count("relay", "stalls") > 0);
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
                    let answer = asks(world, family, host, Duration::from_millis(400));
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
fn box_that_was_continued_does_not_flap() {
    play(&Settings::prompt(), |world| {
        world.meet_neighbours();
        world.weir.signal(Signal::STOP);
        std::thread::sleep(STALE * 3);
        world.weir.signal(Signal::CONT);
        until("the stall is counted", || world.weir.count("steering", "stalls") > 0);
        let stalls = world.weir.count("steering", "stalls");
        for family in Family::BOTH {
            let mut stream = world.connect(family, HTTP);
            assert!(fetch(&mut stream, ALLOWED, 1 << 20).expect("an answer").is_intact());
        }
        // One for the stop; a busy test machine may add its own, but not one for each packet.
        assert!(world.weir.count("steering", "stalls") - stalls < 3);
    });
}

#[test]
fn memory_that_is_not_there_is_refused_with_its_size_and_nothing_is_installed() {
    for fail in ["open", "closed"] {
        prepare(&Settings { fail, ..Settings::default() }, |world| {
            let text = Settings { fail, ..Settings::default() }.to_string();
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
                let running = Family::BOTH.map(|family| Download::start(world, family, 2_000_000, 2_000_000));
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
