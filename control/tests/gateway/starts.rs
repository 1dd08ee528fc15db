//! A start that fails, whatever ends it: a box that fails open is as it was, and one that fails closed forwards nothing that it was
//! to intercept.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use rustix::process::Signal;
use weir_control::demo::stage::Family;
use weir_control::lab::Lab;

use crate::closed::{answers, assert_forwarded};
use crate::config::{ALLOWED, DENIED, Settings};
use crate::crash::{Greeter, stand_still};
use crate::express::{always, ready};
use crate::weir::{Finished, Weir, until};
use crate::world::{Download, HTTP, World, fetch_intact, play, prepare};

/// A port that no intercept has.
const OTHER: u16 = 9998;

pub fn closed() -> Settings {
    Settings { fail: "closed", ..Settings::default() }
}

/// Starts weir, which must end by itself, and say that the system refuses.
#[track_caller]
pub fn fails(world: &mut World<'_>) -> Finished {
    world.weir.spawn();
    let ended = world.weir.wait();
    assert_eq!(ended.code(), 3, "{ended:?}");
    ended
}

/// Whether requests of `host` are answered at once, which must be so of both families or of none.
#[track_caller]
pub fn is_forwarded(world: &World<'_>, host: &str) -> bool {
    let answered = std::thread::scope(|scope| {
        let asked = Family::BOTH.map(|family| scope.spawn(move || answers(world, family, host)));
        asked.map(|asked| asked.join().expect("the client does not panic"))
    });
    assert_eq!(answered[0], answered[1], "IPv4 and IPv6");
    answered[0]
}

/// It was said, and is so: what is of the intercept is dropped, and everything else is not.
#[track_caller]
pub fn assert_held_back(world: &World<'_>, ended: &Finished) {
    assert!(ended.errors.contains("is dropped until weir runs"), "{ended:?}");
    for host in [ALLOWED, DENIED] {
        assert!(!is_forwarded(world, host), "{host} was answered: {ended:?}");
    }
}

/// `weir clean` opens the box, and nothing is left.
#[track_caller]
pub fn assert_clean_opens(world: &World<'_>) {
    assert_eq!(world.weir.clean().code(), 0);
    world.assert_as_before();
    assert_forwarded(world, DENIED);
}

#[test]
fn first_start_that_fails_forwards_nothing_that_it_was_to_intercept_until_one_succeeds_or_clean() {
    prepare(&closed(), |world| {
        let text = closed().to_string();
        // Before anything is asked of the kernel, in the middle, and when the program is on the ports.
        let none = text.replace("\"wan0\"", "\"wan9\"");
        let queue = text.replace("device = \"wan0\"", "device = \"wan0\"\nqueues = [7]");
        for (broken, words) in [(&none, "wan9"), (&text, "12377"), (&queue, "queue")] {
            let taken = (*broken == text).then(|| take_listen(world));
            world.weir.write_config(broken);
            let ended = fails(world);
            assert!(ended.errors.contains(words), "{ended:?}");
            assert_held_back(world, &ended);
            drop(taken);
            world.until_gone(&world.lab.gateway, ":12377 ");
        }
        // The last one's place is taken by one that runs.
        world.weir.write_config(&text);
        world.weir.start();
        Family::BOTH.into_iter().for_each(|family| fetch_intact(&mut world.connect(family, HTTP), 1000));
        assert!(!is_forwarded(world, DENIED));
        assert_eq!(world.weir.stop().code(), 0);
        world.assert_as_before();
        world.weir.write_config(&none);
        fails(world);
        assert_clean_opens(world);
    });
}

#[test]
fn first_start_that_fails_holds_back_open_connections_and_leaves_everything_else_alone() {
    // The second fails when the relay is to start, and no program is on the ports.
    for handshake in ["through", "relay"] {
        let settings = Settings { handshake, ..closed() };
        prepare(&settings, |world| {
            let (rate, bytes) = (1 << 20, 8 << 20);
            let downloads = Family::BOTH.map(|family| Download::start(world, family, bytes, rate));
            let own = Family::BOTH.map(|family| {
                Greeter::start(world, true, SocketAddr::new(family.addresses().wan_gateway, HTTP))
            });
            let others = Family::BOTH.map(|family| Greeter::start(world, false, family.origin(OTHER)));
            let _taken = (handshake == "relay").then(|| take_listen(world));
            if handshake == "through" {
                world.weir.write_config(&settings.to_string().replace("\"wan0\"", "\"wan9\""));
            }
            let ended = fails(world);
            let stuck = stand_still(&downloads);
            assert!(stuck.iter().all(|seen| *seen < bytes), "not in the middle");
            assert_held_back(world, &ended);
            for (family, (own, other)) in Family::BOTH.into_iter().zip(own.iter().zip(&others)) {
                own.assert_greets(world, family);
                other.assert_greets(world, family);
                world.ping(family);
            }
            assert_eq!(downloads.each_ref().map(Download::progress), stuck, "they went on: {handshake}");
            assert_told(world);
            assert_clean_opens(world);
            downloads.into_iter().for_each(Download::finish);
        });
    }
}

/// Somebody has the port of the relay's listeners.
fn take_listen(world: &World<'_>) -> TcpListener {
    let taken = || TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 12377)));
    world.lab.gateway.run(taken).expect("the port is free")
}

/// Whoever asks weir is told that the box is closed.
#[track_caller]
fn assert_told(world: &World<'_>) {
    let status = world.weir.finish(world.weir.command("status"));
    assert_eq!(status.code(), 3, "{status:?}");
    assert!(status.errors.contains("is dropped") && status.errors.contains("weir clean"), "{status:?}");
    world.weir.write_config(&closed().to_string());
    let plan = world.weir.finish(world.weir.command("plan"));
    assert_eq!(plan.code(), 1, "{plan:?}");
    let line = plan.output.lines().find(|line| line.contains("delete table")).expect("it is conflicting");
    assert!(line.contains("conflicting: all that is intercepted is dropped"), "{line}");
    let doctor = world.weir.finish(world.weir.command("doctor"));
    assert!(
        doctor.output.contains("BAD   leftovers") && doctor.output.contains("is dropped until"),
        "{doctor:?}"
    );
}

#[test]
fn start_that_fails_on_a_box_that_fails_open_or_has_no_valid_configuration_forwards() {
    prepare(&Settings::default(), |world| {
        world.weir.write_config(&Settings::default().to_string().replace("\"wan0\"", "\"wan9\""));
        fails(world);
        world.assert_as_before();
        assert_forwarded(world, DENIED);
        // What would be intercepted nobody knows; and who only checks a file changes nothing.
        for (config, code) in
            [(closed().to_string().replace("tcp = ", "pct = "), 1), (closed().to_string(), 0)]
        {
            world.weir.write_config(&config);
            let what = if code == 0 { "check" } else { "run" };
            assert_eq!(world.weir.finish(world.weir.command(what)).code(), code);
            world.assert_as_before();
        }
        assert_forwarded(world, DENIED);
    });
}

/// The gateway's nft does `first` before what it is asked for, or instead of it; it goes when this is dropped.
struct Nft<'lab> {
    lab: &'lab Lab,
}

/// Where it is.
const BIN: &str = "/run/bin";

impl<'lab> Nft<'lab> {
    fn make(world: &World<'lab>, first: &str) -> Self {
        let path = format!("PATH=${{PATH#{BIN}:}}");
        let script = format!("#!/bin/sh\n{path}\n{first}\nexec nft \"$@\"\n");
        world.sh(&world.lab.gateway, &format!("mount -o remount,exec /run && mkdir {BIN}"));
        let write = || std::fs::write(format!("{BIN}/draft"), script);
        world.lab.gateway.run(write).expect("the lab has a /run");
        // The kernel runs no file that somebody has open to write, as a child may have that some other test is about to start.
        world.sh(&world.lab.gateway, &format!("cp {BIN}/draft {BIN}/nft && chmod 755 {BIN}/nft"));
        Self { lab: world.lab }
    }

    /// The same command, with this nft.
    fn of(command: &Command) -> Command {
        let mut own = Command::new("env");
        own.arg(format!("PATH={BIN}:{}", std::env::var("PATH").expect("a path")));
        own.arg(command.get_program()).args(command.get_args());
        own
    }

    fn exists(&self, file: &str) -> bool {
        self.lab.gateway.run(|| std::path::Path::new(BIN).join(file).exists())
    }
}

impl Drop for Nft<'_> {
    fn drop(&mut self) {
        drop(self.lab.gateway.run(|| std::fs::remove_dir_all(BIN)));
    }
}

/// Starts weir with this nft, and waits for its end.
#[track_caller]
fn fails_with(world: &mut World<'_>, first: &str) -> Finished {
    let _nft = Nft::make(world, first);
    let command = world.weir.command("run");
    world.weir.spawn_as(&mut Nft::of(&command));
    let ended = world.weir.wait();
    assert_eq!(ended.code(), 3, "{ended:?}");
    ended
}

#[test]
fn kernel_without_what_the_relay_needs_keeps_a_box_closed_that_is_to_fail_so() {
    let lacks = r#"
        case "$*" in
        *"-f -")
            script=$(cat)
            case "$script" in
            *tproxy* | *"socket transparent"* | *"fib daddr"*)
                echo "Error: Could not process rule: No such file or directory" >&2
                exit 1
            esac
            printf '%s\n' "$script" | nft "$@"
            exit
        esac
    "#;
    for handshake in ["through", "relay"] {
        prepare(&Settings { handshake, ..closed() }, |world| {
            let ended = fails_with(world, lacks);
            assert!(ended.errors.contains("Could not process rule"), "{ended:?}");
            assert_held_back(world, &ended);
            assert_clean_opens(world);
        });
    }
}

#[test]
fn weir_that_is_told_to_end_in_the_first_moments_of_a_start_opens_the_box() {
    let waits = waiting(r#""-f -")"#);
    // Also where the start comes to nothing.
    for (signal, code) in [(Signal::TERM, 0), (Signal::INT, 0), (Signal::TERM, 3)] {
        prepare(&closed(), |world| {
            let taken = (code == 3).then(|| take_listen(world));
            let nft = Nft::make(world, &waits);
            let command = world.weir.command("run");
            world.weir.spawn_as(&mut Nft::of(&command));
            until("the box is closed", || nft.exists("loaded"));
            assert!(!is_forwarded(world, DENIED));
            world.weir.signal(signal);
            world.sh(&world.lab.gateway, &format!("touch {BIN}/go"));
            let ended = world.weir.wait();
            assert_eq!(ended.code(), code, "{ended:?}");
            assert!(!ended.errors.contains("is dropped until"), "{ended:?}");
            drop((nft, taken));
            world.assert_as_before();
            assert_forwarded(world, DENIED);
        });
    }
}

/// What `nft` does, with which command, and waits until `go` is there: the test has seen `loaded` meanwhile.
fn waiting(when: &str) -> String {
    format!(
        r#"case "$*" in {when}
            nft "$@"
            code=$?
            touch {BIN}/loaded
            while ! [ -e {BIN}/go ]; do sleep 0.02; done
            exit $code
        esac"#
    )
}

#[test]
fn weir_that_is_told_to_end_while_a_failed_start_closes_the_box_opens_it() {
    // The start closes it, and closes it again when it has failed.
    let again = format!(
        r#""-f -")
            script=$(cat)
            case "$script" in *"not started"*) echo >>{BIN}/closed; esac
            exec <<SCRIPT
$script
SCRIPT
            [ "$(wc -l <{BIN}/closed)" = 2 ] || exec nft "$@""#
    );
    for signal in [Signal::TERM, Signal::INT] {
        prepare(&closed(), |world| {
            let taken = take_listen(world);
            let nft = Nft::make(world, &waiting(&again));
            let command = world.weir.command("run");
            world.weir.spawn_as(&mut Nft::of(&command));
            until("the start has failed", || nft.exists("loaded"));
            until("that is said", || world.weir.logged().contains("relay: more connections"));
            world.weir.signal(signal);
            world.sh(&world.lab.gateway, &format!("touch {BIN}/go"));
            let ended = world.weir.wait();
            // It has failed before it was told.
            assert_eq!(ended.code(), 3, "{ended:?}");
            assert!(!ended.errors.contains("is dropped until"), "{ended:?}");
            drop((nft, taken));
            world.assert_as_before();
            assert_forwarded(world, DENIED);
        });
    }
}

#[test]
fn replacement_that_is_told_to_end_before_it_has_the_place_leaves_it_to_the_weir_that_runs() {
    for (fail, handshake, signal) in [
        ("open", "through", Signal::TERM),
        ("closed", "through", Signal::INT),
        ("closed", "relay", Signal::TERM),
    ] {
        let settings = Settings { fail, handshake, ..Settings::default() };
        play(&settings, |world| {
            let pid = world.weir.pid();
            let nft = Nft::make(world, &waiting("*list*)"));
            let mut next = Weir::new(world.lab, &settings.to_string());
            let mut command = Nft::of(&next.command("run"));
            command.arg("--replace");
            next.spawn_as(&mut command);
            until("the place is about to be given", || nft.exists("loaded"));
            until("that is said", || world.weir.logged().contains("it gets the fast road"));
            next.signal(signal);
            world.sh(&world.lab.gateway, &format!("touch {BIN}/go"));
            let ended = next.wait();
            assert_eq!(ended.code(), 0, "{ended:?}");
            assert!(ended.errors.contains("told to end before it took the place"), "{ended:?}");
            drop(nft);
            until("the weir that runs is well", || {
                world
                    .weir
                    .status_if_any()
                    .is_some_and(|status| status["pid"] == pid && status["healthy"] == true)
            });
            Family::BOTH.into_iter().for_each(|family| fetch_intact(&mut world.connect(family, HTTP), 1000));
            assert!(!is_forwarded(world, DENIED));
            assert_eq!(world.weir.stop().code(), 0);
            world.assert_as_before();
        });
    }
}

#[test]
fn weir_that_dies_while_one_that_fails_closed_fails_to_take_its_place_leaves_the_box_closed() {
    for handshake in ["through", "relay"] {
        play(&Settings { handshake, ..Settings::default() }, |world| {
            let pid = world.weir.pid();
            let dies = format!(
                r#"case "$*" in *list*)
                    mkdir {BIN}/once 2>/dev/null && {{
                        kill -9 {pid}
                        until grep -q "^State:.Z" /proc/{pid}/status; do sleep 0.02; done
                        echo "Error: refused" >&2
                        exit 1
                    }}
                esac"#
            );
            let nft = Nft::make(world, &dies);
            world.weir.write_config(&Settings { handshake, ..closed() }.to_string());
            let mut replace = Nft::of(&world.weir.command("run"));
            replace.arg("--replace");
            let ended = world.weir.finish(replace);
            assert_eq!(ended.code(), 3, "{ended:?}");
            assert!(ended.errors.contains("has ended by itself"), "{ended:?}");
            assert_eq!(world.weir.wait().status.signal(), Some(9));
            assert_held_back(world, &ended);
            drop(nft);
            assert_clean_opens(world);
        });
    }
}

#[test]
fn box_that_cannot_be_closed_is_said_to_be_open_though_a_lane_is_left() {
    play(&always(), |world| {
        ready(world);
        world.weir.kill();
        let plan = world.weir.finish(world.weir.command("plan"));
        assert!(plan.output.contains("the express lane"), "{plan:?}");
        world.weir.write_config(&Settings { fail: "closed", ..always() }.to_string());
        let refuses = r#"case "$*" in *"-f -") echo "Error: refused" >&2; exit 1; esac"#;
        let ended = fails_with(world, refuses);
        assert!(ended.errors.contains("what is to be intercepted is forwarded: "), "{ended:?}");
        for wrong in ["stays closed", "is dropped until"] {
            assert!(!ended.errors.contains(wrong), "{ended:?}");
        }
        assert_forwarded(world, DENIED);
        assert_clean_opens(world);
    });
}

#[test]
fn whoever_may_not_see_whether_the_box_is_closed_says_so() {
    prepare(&closed(), |world| {
        world.weir.write_config(&closed().to_string().replace("\"wan0\"", "\"wan9\""));
        let ended = fails(world);
        let open = "mount -o remount,exec /run && cp $0 /run/weir-binary && chmod 755 /run/weir-binary /run /run/weir";
        world.sh(&world.lab.gateway, &open.replace("$0", env!("CARGO_BIN_EXE_weir")));
        let nobody = |what: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
            command.args(["--bounding-set=-all", "/run/weir-binary", what, "-c", "/run/weir/test.toml"]);
            world.weir.finish(command)
        };
        for (what, words) in
            [("run", "unless an earlier weir has left the box closed"), ("status", "ask as root")]
        {
            let said = nobody(what);
            assert_eq!(said.code(), 3, "{said:?}");
            assert!(said.errors.contains(words), "{what}: {said:?}");
            assert!(!said.errors.contains("is dropped until"), "{what}: {said:?}");
        }
        let doctor = nobody("doctor");
        assert!(doctor.output.contains("whether an earlier weir has left the box closed"), "{doctor:?}");
        assert!(!doctor.output.contains("nothing of an earlier weir is left"), "{doctor:?}");
        world.sh(&world.lab.gateway, "rm /run/weir-binary");
        assert_held_back(world, &ended);
        assert_clean_opens(world);
    });
}
