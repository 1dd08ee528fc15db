//! Two processes about one place: whatever becomes of either, one weir serves, and nobody behind the box notices.

use std::io::{BufRead as _, BufReader, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use serde_json::Value;
use weir_control::demo::stage::Family;
use weir_control::host::sockets::stream_to;

use crate::changes::{becomes_fast, behind, ip, settle_behind, usual};
use crate::config::Settings;
use crate::crash::next;
use crate::express::{always, ready};
use crate::replace::{Halt, Load, replace};
use crate::weir::{Finished, PATIENCE, Weir, until};
use crate::world::{Download, HTTP, World, fetch_intact, play, prepare};

const ADMIN: &str = "/run/weir/admin.sock";
const BODY: u64 = 4 << 20;
const RATE: u64 = 1 << 20;

/// A process that wants weir's place, played by the test.
struct Successor {
    stream: BufReader<UnixStream>,
}

impl Successor {
    /// Asks; the descriptors that come are let go of.
    fn ask(world: &World<'_>, request: &str) -> Self {
        let stream = world.lab.gateway.run(|| UnixStream::connect(ADMIN)).expect("weir listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut successor = Self { stream: BufReader::new(stream) };
        successor.say(request);
        successor
    }

    /// As [`Self::ask`], and takes what is offered.
    fn take(world: &World<'_>, request: &str) -> Self {
        let mut successor = Self::ask(world, request);
        let offer: Value = serde_json::from_str(&successor.hear()).expect("an offer");
        let descriptors = offer["descriptors"].as_array().unwrap_or_else(|| panic!("{offer}")).len();
        successor.stream.read_exact(&mut vec![0; descriptors]).expect("descriptors");
        successor
    }

    /// Gets the fast road.
    fn release(&mut self) {
        self.say("release");
        assert_eq!(self.hear(), "released");
    }

    fn say(&mut self, line: &str) {
        writeln!(self.stream.get_mut(), "{line}").expect("weir is there");
    }

    /// The next line; empty when weir has closed, whether or not it has read all that was said to it.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => String::new(),
            read => read.map(|_| line.trim_end().to_owned()).expect("an answer"),
        }
    }
}

fn try_to_replace(world: &World<'_>, settings: &Settings) -> Finished {
    let next = Weir::new(world.lab, &settings.to_string());
    let mut command = next.command("run");
    command.arg("--replace");
    next.finish(command)
}

fn exists(world: &World<'_>, path: &str) -> bool {
    world.lab.gateway.run(|| Path::new(path).exists())
}

#[test]
fn process_that_asks_for_the_place_and_falls_silent_holds_nothing_up() {
    play(&Settings::default(), |world| {
        settle_behind(world);
        let mut silent = Successor::take(world, r#"{"op":"replace"}"#);
        // Whoever may ask is told.
        let second = Successor::ask(world, r#"{"op":"replace"}"#).hear();
        assert!(second.contains("another process is about to take weir's place"), "{second}");
        for what in ["reload", "drain"] {
            let refused = world.weir.finish(world.weir.command(what));
            let said = refused.output.clone() + &refused.errors;
            assert!(refused.code() != 0 && said.contains("another process"), "{what}: {refused:?}");
        }
        // What changes at the host is followed.
        for family in Family::BOTH {
            let (network, address) = behind(family);
            let line = format!("{} route replace {network} via {}", ip(family), usual(family));
            world.sh(&world.lab.gateway, &line);
            becomes_fast(world, family, address);
        }
        for family in Family::BOTH {
            world.sh(&world.lab.gateway, &format!("{} route del {}", ip(family), behind(family).0));
        }
        // What it is told by a signal, it does.
        silent.release();
        let ended = world.weir.stop();
        assert_eq!(ended.code(), 0, "{ended:?}");
        assert_eq!(silent.hear(), "ends");
        world.assert_as_before();
    });
}

#[test]
fn start_that_takes_too_long_is_not_waited_for_and_does_not_serve() {
    for handshake in ["through", "relay"] {
        let settings = Settings { handshake, ..Settings::default() };
        play(&settings, |world| {
            let pid = world.weir.status()["pid"].clone();
            let mut slow = Successor::take(world, r#"{"op":"replace","patience_ms":200}"#);
            slow.release();
            let refusal = slow.hear();
            assert!(refusal.contains("waited too long"), "{refusal}");
            // Too late: it does not hear that it may serve.
            let _ = writeln!(slow.stream.get_mut(), "done");
            assert_eq!(slow.hear(), "");
            assert_eq!(world.weir.status()["pid"], pid);
            for family in Family::BOTH {
                match handshake {
                    "through" => becomes_fast(world, family, usual(family)),
                    _ => fetch_intact(&mut world.connect(family, HTTP), 1000),
                }
            }
            assert_eq!(world.weir.status()["healthy"], true);
        });
    }
}

#[test]
fn replacement_killed_at_any_moment_of_its_start_leaves_the_old_weir_serving() {
    for (handshake, fail, seed) in [("relay", "open", 5), ("through", "open", 6), ("relay", "closed", 7)] {
        let settings = Settings { handshake, fail, ..Settings::default() };
        // It never comes to its end: so it is always the old one that has to go on.
        let gateway = "admin = \"/proc/none/admin.sock\"".to_owned();
        let doomed = Settings { gateway, ..settings.clone() };
        prepare(&settings, |world| {
            world.weir.start();
            let pid = world.weir.status()["pid"].clone();
            let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
            let lab = world.lab;
            std::thread::scope(|scope| {
                let _halt = Halt(&stop);
                let loads = Family::BOTH.map(|family| Load::start(scope, lab, family, (&stop, &done)));
                let mut random = seed;
                for round in 1..=5 {
                    random = next(random);
                    let mut doomed = Weir::new(lab, &doomed.to_string());
                    let mut command = doomed.command("run");
                    command.arg("--replace");
                    doomed.spawn_as(&mut command);
                    let released = || world.weir.logged().matches("it gets the fast road").count() == round;
                    until("the old weir leaves the fast road", released);
                    // The moment itself is what varies; nothing is waited for.
                    std::thread::sleep(Duration::from_millis(random % 100));
                    doomed.kill();
                    let resumed = || world.weir.logged().matches("this one goes on").count() == round;
                    until("the old weir goes on", resumed);
                    let before = done.load(Ordering::Relaxed);
                    until("clients are served", || done.load(Ordering::Relaxed) > before + 20);
                }
                stop.store(true, Ordering::Relaxed);
                loads.into_iter().for_each(Load::assert_served);
            });
            assert_eq!(world.weir.status()["pid"], pid);
            assert_eq!(world.weir.status()["healthy"], true);
            if handshake == "through" {
                Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
            }
        });
    }
}

#[test]
fn socket_of_a_replacement_that_was_killed_is_removed() {
    let beside = format!("{ADMIN}.new");
    play(&Settings::default(), |world| {
        let mut killed = Successor::take(world, r#"{"op":"replace"}"#);
        killed.release();
        drop(world.lab.gateway.run(|| UnixListener::bind(&beside)).expect("bound"));
        world.until_gone(&world.lab.gateway, &format!(" {beside} "));
        drop(killed);
        until("the old weir goes on", || world.weir.logged().contains("this one goes on"));
        until("the socket is removed", || !exists(world, &beside));
        Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
    });
}

#[test]
fn weir_that_is_told_to_end_while_it_is_replaced_takes_the_new_one_with_it_and_leaves_nothing() {
    for fail in ["open", "closed"] {
        let settings = Settings { fail, ..Settings::default() };
        prepare(&settings, |world| {
            world.weir.start();
            let mut next = Weir::new(world.lab, &settings.to_string());
            let mut command = next.command("run");
            command.arg("--replace");
            next.spawn_as(&mut command);
            let released = || world.weir.logged().contains("it gets the fast road");
            until("the old weir leaves the fast road", released);
            let ended = world.weir.stop();
            assert_eq!(ended.code(), 0, "{ended:?}");
            if ended.errors.contains("replaced:") {
                // The place was the new one's before the signal came.
                until("the new weir serves", || next.status_if_any().is_some());
                assert_eq!(next.stop().code(), 0);
            } else {
                let failed = next.wait();
                assert_eq!(failed.code(), 3, "{failed:?}");
                assert!(failed.errors.contains("was told to end"), "{failed:?}");
            }
            world.assert_as_before();
        });
    }
}

#[test]
fn replaced_weir_that_says_it_has_left_accepts_nothing_any_more() {
    for handshake in ["relay", "through"] {
        play(&Settings { handshake, ..Settings::default() }, |world| {
            let mut streams = Family::BOTH.map(|family| world.connect(family, HTTP));
            streams.iter_mut().for_each(|stream| fetch_intact(stream, 1000));
            let mut next = Successor::take(world, r#"{"op":"replace"}"#);
            next.release();
            next.say("done");
            assert_eq!(next.hear(), "gone");
            let listens = || world.sh(&world.lab.gateway, "ss -Hltn sport = :12377");
            assert!(!listens().is_empty(), "it serves until the other does");
            next.say("serves");
            assert_eq!(next.hear(), "left");
            // This test has let go of those that it was given; a child that is about to be another program may have them a moment more.
            until("nobody listens", || listens().is_empty());
            drop((next, streams));
            assert_eq!(world.weir.wait().code(), 0);
            assert_eq!(world.weir.clean().code(), 0);
        });
    }
}

#[test]
fn replaced_weir_that_is_told_to_end_resets_what_it_has_and_nothing_of_the_new_one() {
    for signal in [Signal::TERM, Signal::INT] {
        let settings = Settings { handshake: "relay", ..Settings::default() };
        play(&settings, |world| {
            let mut streams = Family::BOTH.map(|family| world.connect(family, HTTP));
            streams.iter_mut().for_each(|stream| fetch_intact(stream, 1000));
            let mut old = replace(world, &settings);
            let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
            assert!(old.ended().is_none(), "its connections may finish");
            old.signal(signal);
            assert_eq!(old.wait().code(), 0);
            for mut stream in streams {
                let end = stream.read(&mut [0; 1]).map_err(|error| error.kind());
                assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
            }
            downloads.into_iter().for_each(Download::finish);
            assert!(exists(world, ADMIN));
            assert_eq!(world.weir.status()["healthy"], true);
        });
    }
}

#[test]
fn socket_of_another_program_is_not_taken_by_a_replacement() {
    const OTHER: &str = "/run/weir/other.sock";
    play(&Settings::default(), |world| {
        let other = world.lab.gateway.run(|| UnixListener::bind(OTHER)).expect("bound");
        let pid = world.weir.status()["pid"].clone();
        let gateway = format!("admin = \"{OTHER}\"");
        let ended = try_to_replace(world, &Settings { gateway, ..Settings::default() });
        assert_eq!(ended.code(), 3, "{ended:?}");
        assert!(ended.errors.contains("another process answers on the admin socket"), "{ended:?}");
        // The first that comes is the refused one's question; then it is still the same that listens.
        other.accept().expect("asked");
        world.lab.gateway.run(|| UnixStream::connect(OTHER)).expect("it still listens");
        other.accept().expect("here");
        assert_eq!(world.weir.status()["pid"], pid);
        drop(other);
        world.lab.gateway.run(|| std::fs::remove_file(OTHER)).expect("removed");
    });
}

/// The lock of the weir that runs, which it gives to whoever wants its place.
fn take_lock(world: &World<'_>) -> OwnedFd {
    let mut stream = world.lab.gateway.run(|| UnixStream::connect(ADMIN)).expect("weir listens");
    writeln!(stream, r#"{{"op":"replace"}}"#).expect("asked");
    let mut octet = [0; 1];
    while octet != *b"\n" {
        stream.read_exact(&mut octet).expect("an offer");
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut octet)];
    recvmsg(&stream, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC).expect("a descriptor");
    let rights = |message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    };
    ancillary.drain().find_map(rights).expect("the lock")
}

fn pins(world: &World<'_>) -> String {
    world.sh(&world.lab.gateway, "find /sys/fs/bpf")
}

#[test]
fn weir_that_is_told_to_end_while_the_lock_of_a_killed_one_is_held_leaves_nothing_of_that() {
    for fail in ["open", "closed"] {
        let settings = Settings { fail, ..always() };
        prepare(&settings, |world| {
            world.weir.start();
            ready(world);
            let lock = take_lock(world);
            world.weir.kill();
            assert!(pins(world).contains("express_flows"), "{}", pins(world));
            world.weir.spawn();
            let pid = world.weir.pid();
            until("it hears of signals", || {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
                let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
                let caught = u64::from_str_radix(caught.expect("a mask").trim(), 16).expect("a number");
                caught & 1 << (Signal::TERM.as_raw() - 1) != 0
            });
            world.weir.signal(Signal::TERM);
            drop(lock);
            assert_eq!(world.weir.wait().code(), 0);
            world.assert_as_before();
            assert!(!pins(world).contains("weir"), "{}", pins(world));
        });
    }
}

#[test]
fn weir_that_hangs_and_has_been_asked_by_many_holds_no_replacement_up() {
    prepare(&Settings::default(), |world| {
        // That few are many.
        world.sh(&world.lab.gateway, "sysctl -qw net.core.somaxconn=2");
        world.weir.start();
        world.weir.signal(Signal::STOP);
        let mut waiting = Vec::new();
        until("as many as can have asked", || {
            let asked = world.lab.gateway.run(|| stream_to(Path::new(ADMIN)));
            asked.map(|stream| waiting.push(stream)).is_err()
        });
        let ended = try_to_replace(world, &Settings::default());
        assert_eq!(ended.code(), 3, "{ended:?}");
        assert!(ended.errors.contains("does not give its place: it hangs"), "{ended:?}");
        world.weir.signal(Signal::CONT);
        drop(waiting);
        until("it answers again", || world.weir.status_if_any().is_some());
        world.sh(&world.lab.gateway, "sysctl -qw net.core.somaxconn=4096");
    });
}

#[test]
fn replacement_with_another_admin_socket_leaves_none_behind() {
    const SECOND: &str = "/run/weir/second.sock";
    prepare(&Settings { handshake: "relay", ..Settings::default() }, |world| {
        world.weir.start();
        let gateway = format!("admin = \"{SECOND}\"");
        let settings = Settings { gateway, handshake: "relay", ..Settings::default() };
        let mut next = Weir::new(world.lab, &settings.to_string());
        let mut command = next.command("run");
        command.arg("--replace");
        next.spawn_as(&mut command);
        assert_eq!(world.weir.wait().code(), 0);
        assert!(!exists(world, ADMIN) && exists(world, SECOND));
        assert_eq!(next.stop().code(), 0);
        assert!(!exists(world, SECOND));
        world.assert_as_before();
    });
}

#[test]
fn weir_that_drains_tells_a_replacement_so() {
    prepare(&Settings { handshake: "relay", ..Settings::default() }, |world| {
        world.weir.start();
        let downloads = Family::BOTH.map(|family| Download::start(world, family, 2 * BODY, RATE));
        let mut command = world.weir.command("drain");
        command.args(["--deadline", "60s"]);
        std::thread::scope(|scope| {
            let drain = scope.spawn(|| world.weir.finish(command));
            until("it drains", || world.weir.logged().contains("draining"));
            let ended = try_to_replace(world, &Settings { handshake: "relay", ..Settings::default() });
            assert_eq!(ended.code(), 3, "{ended:?}");
            assert!(ended.errors.contains("weir drains, and is about to end"), "{ended:?}");
            assert_eq!(drain.join().expect("the command ends").code(), 0);
        });
        downloads.into_iter().for_each(Download::finish);
        assert_eq!(world.weir.wait().code(), 0);
        world.assert_as_before();
    });
}

#[test]
fn weir_that_cannot_have_the_fast_road_back_relays_and_tries_again() {
    play(&Settings::default(), |world| {
        let mut gone = Successor::take(world, r#"{"op":"replace"}"#);
        gone.release();
        world.sh(&world.lab.gateway, "ip link set wan0 name aside");
        drop(gone);
        let alone = || world.weir.status()["unhealthy"].to_string().contains("the relay serves alone");
        until("it is said that the fast road is away", alone);
        Family::BOTH.into_iter().for_each(|family| fetch_intact(&mut world.connect(family, HTTP), 1000));
        world.sh(&world.lab.gateway, "ip link set aside name wan0");
        until("all is as before", || world.weir.status()["healthy"] == true);
        Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
    });
}
