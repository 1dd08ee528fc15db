//! A gateway that does not run, was killed, or hangs.

use std::time::Duration;

use rustix::process::Signal;
use weir_control::demo::stage::Family;

use super::*;
use crate::config::{ALLOWED, DENIED, Settings};
use crate::weir::{PATIENCE, until};
use crate::world::{HTTP, fetch_intact, play, prepare};

#[test]
fn gateway_that_does_not_run_is_explained_from_its_configuration() {
    prepare(&Settings::default(), |world| {
        for family in Family::BOTH {
            let (from, to) = ends(family, 41_200, HTTP);
            let explained = explain(world, from, to, &["--host", DENIED]);
            explained.assert_says("kernel", &["weir does not run", "once it runs: fast road", "reset"]);
            assert!(explained.answer("nft", "takes its SYN").contains("no such table"), "{explained:?}");
            let expected = explained.steps("steering").last().unwrap();
            assert_eq!(expected["source"], "configuration", "{expected}");
            assert!(explained.because("not_intercepted").contains("weir run -c"), "{explained:?}");
            assert_plain_route(world, &explained, from, to);
            // The kernel forwards even what a rule would refuse.
            let answer = crate::world::fetch(&mut connect(world, from, to), DENIED, 1000).expect("an answer");
            assert!(answer.is_intact());
        }
    });
}

#[test]
fn gateway_that_was_killed_is_explained_with_what_it_left() {
    for (fail, road) in [("open", "kernel"), ("closed", "none")] {
        play(&Settings { fail, ..Settings::default() }, |world| {
            world.meet_neighbours();
            world.weir.kill();
            std::thread::sleep(Duration::from_millis(300));
            until("a program that nothing keeps is off", || {
                fail == "closed" || !world.sh(&world.lab.gateway, "ip link show").contains("xdp")
            });
            for family in Family::BOTH {
                let (from, to) = ends(family, 41_210, HTTP);
                let explained = explain(world, from, to, &["--host", ALLOWED]);
                assert_eq!(explained.road(), road, "{:#}", explained.0);
                assert!(explained.because("not_intercepted").contains("weir does not run"), "{explained:?}");
                assert!(explained.answer("socket", "listener").starts_with("none"), "{explained:?}");
                let patience = if road == "kernel" { PATIENCE } else { Duration::from_secs(1) };
                let opens = world.lab.client.run(|| TcpStream::connect_timeout(&to, patience));
                assert_eq!(opens.is_ok(), road == "kernel", "{family:?}, {fail}");
                if fail == "closed" {
                    let says = explained.answer("steering", "does it say");
                    assert!(says.contains("stale_drop"), "{says}");
                }
            }
            assert_eq!(world.weir.clean().code(), 0);
            world.assert_as_before();
        });
    }
}

#[test]
fn gateway_that_hangs_is_explained_from_the_maps_of_its_program() {
    play(&Settings::prompt(), |world| {
        world.meet_neighbours();
        world.weir.signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(400));
        for family in Family::BOTH {
            let (from, to) = ends(family, 41_220, HTTP);
            let explained = explain(world, from, to, &["--host", ALLOWED]);
            assert!(
                explained.answer("steering", "sign of life").starts_with("no: heartbeat"),
                "{explained:?}"
            );
            let says = explained.steps("steering").last().unwrap();
            assert!(says["answer"].as_str().unwrap().contains("stale_pass"), "{says}");
            assert_eq!(says["source"], "kernel", "{says}");
            // The relay's listener is there still, and the kernel does not find it: it forwards.
            explained.assert_says("kernel", &["stale_pass", "weir hangs", "forwards it"]);
            let mut stream = connect(world, from, to);
            fetch_intact(&mut stream, 100);
        }
        world.weir.signal(Signal::CONT);
        for family in Family::BOTH {
            until("weir breathes", || {
                let mut stream = world.connect(family, HTTP);
                fetch_intact(&mut stream, 100);
                world.weir.find_flow(stream.local_addr().unwrap()).is_some_and(|flow| flow["road"] == "fast")
            });
        }
    });
}

#[test]
fn rule_that_somebody_removes_while_weir_hangs_is_in_nobodys_way() {
    let settings = Settings { handshake: "relay", rules: "", ..Settings::prompt() };
    play(&settings, |world| {
        // Frozen, it repairs nothing, and nothing is given to its listener.
        world.weir.signal(Signal::STOP);
        for version in ["-4", "-6"] {
            world.sh(&world.lab.gateway, &format!("ip {version} rule del fwmark 0x77/0xff priority 1077"));
        }
        for family in Family::BOTH {
            let (from, to) = ends(family, 41_240, HTTP);
            until("its sign of life is old", || {
                explain(world, from, to, &["--host", ALLOWED]).text("reason").contains("weir hangs")
            });
            let explained = explain(world, from, to, &["--host", ALLOWED]);
            explained.assert_says("kernel", &["weir hangs", "forwards it"]);
            let opens = world.lab.client.run(|| TcpStream::connect_timeout(&to, PATIENCE));
            assert!(opens.is_ok(), "{family:?}: it is not forwarded");
        }
        world.weir.signal(Signal::CONT);
        until("weir has put its rules back", || {
            Family::BOTH.into_iter().all(|family| {
                let (from, to) = ends(family, 41_241, HTTP);
                explain(world, from, to, &[]).road() == "relay"
            })
        });
    });
}

/// As root, and without any capability.
fn without_rights(world: &World<'_>, family: Family) -> Explained {
    let (from, to) = ends(family, 41_230, HTTP);
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-all", "--inh-caps", "-all"]);
    let weir = world.weir.command("explain");
    command.arg(weir.get_program()).args(weir.get_args());
    command.args(["--json", "--from", &from.to_string(), "--to", &to.to_string(), "--host", DENIED]);
    let told = world.weir.finish(command);
    assert_eq!(told.code(), 0, "{told:?}");
    Explained(serde_json::from_str(&told.output).expect("JSON"))
}

#[test]
fn what_may_not_be_asked_is_said_and_the_rest_is_answered() {
    play(&Settings { fail: "closed", ..Settings::default() }, |world| {
        for family in Family::BOTH {
            let explained = without_rights(world, family);
            explained.assert_says("fast", &["the rule at", "reset"]);
            assert!(explained.answer("nft", "takes its SYN").starts_with("not known: "), "{explained:?}");
            assert!(explained.answer("route", "without a mark").contains("dev wan0"), "{explained:?}");
        }
        world.weir.kill();
        for family in Family::BOTH {
            let explained = without_rights(world, family);
            let steering = explained.answer("steering", "is the steering program there");
            assert!(steering.contains("cannot be read"), "{steering}");
            assert!(explained.text("reason").contains("may say otherwise"), "{explained:?}");
        }
        assert_eq!(world.weir.clean().code(), 0);
    });
}

#[test]
fn question_that_makes_no_sense_is_a_usage_error() {
    prepare(&Settings::default(), |world| {
        for args in [
            ["--from", "10.77.1.2:1", "--to", "[2001:db8::1]:80"].as_slice(),
            &["--from", "10.77.1.2:1", "--to", "192.0.2.10:80", "--in", "nowhere"],
            &["--from", "10.77.1.2:1", "--to", "192.0.2.10:80", "--protocol", "smtp"],
        ] {
            let mut command = world.weir.command("explain");
            command.args(args);
            let told = world.weir.finish(command);
            assert_eq!(told.code(), 2, "{told:?}");
            assert!(!told.errors.is_empty());
        }
    });
}
