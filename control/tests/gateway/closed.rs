//! A box that fails closed stays so from a crash to the end of the start that follows.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use weir_control::demo::stage::Family;

use crate::changes::{lost, make_again};
use crate::config::{ALLOWED, DENIED, Settings};
use crate::crash::{Greeter, OTHER};
use crate::weir::until;
use crate::world::{Download, HTTP, World, fetch_intact, play};

/// How long a request of the hammer waits for its connection, and for its answer.
const SHORT: Duration = Duration::from_millis(40);
/// The same, of one that is to be answered: also on a machine that does other things.
const LONG: Duration = Duration::from_millis(400);
/// Connections that a family and name has under way at any time.
const HAMMERS: usize = 3;

fn closed() -> Settings {
    Settings { fail: "closed", ..Settings::default() }
}

#[test]
fn killed_and_started_again_no_denied_request_is_ever_answered() {
    for handshake in ["through", "relay"] {
        play(&Settings { handshake, ..closed() }, |world| {
            let hammers =
                Family::BOTH.map(|family| [DENIED, ALLOWED].map(|host| Hammer::start(world, family, host)));
            for round in 0..4 {
                world.weir.kill();
                // Not too long, so that many a start falls between two requests' retransmissions.
                std::thread::sleep(Duration::from_millis(50 + 70 * round));
                world.weir.start();
                for [_, allowed] in &hammers {
                    let before = allowed.answers();
                    until("allowed requests are answered again", || allowed.answers() > before);
                }
            }
            for [denied, allowed] in hammers {
                assert!(denied.tries.load(Ordering::Relaxed) > 20, "the hammer has not hit");
                assert_eq!(denied.stop(), 0, "denied requests were answered with handshake = {handshake}");
                assert!(allowed.stop() > 0);
            }
        });
    }
}

#[test]
fn device_that_is_removed_and_made_again_under_traffic_no_denied_request_is_ever_answered() {
    for (device, handshake) in [("wan0", "through"), ("wan0", "answer"), ("lan0", "through")] {
        play(&Settings { handshake, ..closed() }, |world| {
            world.meet_neighbours();
            // Whose own device goes too is left without addresses.
            let downloads = (device == "wan0")
                .then(|| Family::BOTH.map(|family| Download::start(world, family, 3 << 20, 1 << 20)));
            let hammers =
                Family::BOTH.map(|family| [DENIED, ALLOWED].map(|host| Hammer::start(world, family, host)));
            world.sh(&world.lab.gateway, &format!("ip link del {device}"));
            until("the port is lost", || lost(world, device));
            make_again(world, device);
            for [_, allowed] in &hammers {
                let before = allowed.answers();
                until("allowed requests are answered again", || allowed.answers() > before);
            }
            until("the port is back", || !lost(world, device));
            downloads.into_iter().flatten().for_each(Download::finish);
            for [denied, allowed] in hammers {
                assert!(denied.tries.load(Ordering::Relaxed) > 20, "the hammer has not hit");
                assert_eq!(denied.stop(), 0, "denied requests were answered: {device}, {handshake}");
                assert!(allowed.stop() > 0);
            }
            assert_eq!(world.weir.status()["healthy"], true);
            // The device is another one: there is nothing to compare with.
            world.weir.stop();
        });
    }
}

#[test]
fn killed_the_box_is_closed_until_clean() {
    play(&closed(), |world| {
        world.weir.kill();
        std::thread::sleep(Duration::from_millis(250));
        assert!(Family::BOTH.into_iter().all(|family| !answers(world, family, DENIED)));
        assert_eq!(world.weir.clean().code(), 0);
        world.assert_as_before();
        assert_forwarded(world, DENIED);
    });
}

#[test]
fn killed_and_its_network_cards_added_again_the_box_is_closed_until_start_or_clean() {
    const REQUEST: &[u8] = b"GET /bytes/10 HTTP/1.1\r\nhost: www.example\r\n\r\n";
    for (devices, end) in [(&["lan0"][..], "start"), (&["lan0", "wan0"], "start"), (&["lan0"], "clean")] {
        play(&Settings { express: "never", ..closed() }, |world| {
            world.meet_neighbours();
            let mut streams = Family::BOTH.map(|family| {
                let mut stream = world.connect(family, HTTP);
                fetch_intact(&mut stream, 1000);
                stream
            });
            let others = Family::BOTH.map(|family| Greeter::start(world, false, family.origin(OTHER)));
            world.weir.kill();
            for device in devices {
                world.sh(&world.lab.gateway, &format!("ip link del {device}"));
                make_again(world, device);
            }
            let received = streams.each_ref().map(|stream| world.received_from(stream.local_addr().unwrap()));
            for ((family, stream), other) in Family::BOTH.into_iter().zip(&mut streams).zip(&others) {
                until("the way is there", || world.connect_to(family, family.origin(OTHER)).is_ok());
                stream.write_all(REQUEST).expect("sent");
                assert!(!answers(world, family, DENIED), "{family:?}, {devices:?}: a new connection");
                // What was sent before this has come as far as it does.
                other.assert_greets(world, family);
            }
            let now = || streams.each_ref().map(|stream| world.received_from(stream.local_addr().unwrap()));
            assert_eq!(now(), received, "IPv4 and IPv6, {devices:?}: an open connection went on");
            if end == "start" {
                world.weir.start();
            } else {
                assert_eq!(world.weir.clean().code(), 0);
                assert!(!world.sh(&world.lab.gateway, "nft list ruleset").contains("weir"));
            }
            for (at, family) in Family::BOTH.into_iter().enumerate() {
                until("new connections are answered", || answers(world, family, ALLOWED));
                let client = streams[at].local_addr().unwrap();
                until("the open one goes on", || world.received_from(client) > received[at]);
                assert_eq!(answers(world, family, DENIED), end == "clean", "{family:?}");
            }
            if world.weir.is_running() {
                // The devices are others: there is nothing to compare with.
                world.weir.stop();
            }
        });
    }
}

#[test]
fn device_that_is_made_again_while_weir_runs_is_known_to_the_table_that_outlives_it() {
    play(&closed(), |world| {
        let table = || world.sh(&world.lab.gateway, "nft list table inet weir");
        let index = || world.sh(&world.lab.gateway, "ip -o link show dev lan0 | cut -d: -f1");
        let before = index();
        assert!(table().contains("iif != {"), "{}", table());
        world.sh(&world.lab.gateway, "ip link del lan0");
        until("the port is lost", || lost(world, "lan0"));
        make_again(world, "lan0");
        until("the port is back", || !lost(world, "lan0"));
        assert_ne!(index(), before);
        until("the table knows both devices of now", || {
            let table = table();
            let known = table.lines().find(|line| line.contains("another device"));
            known.is_some_and(|line| line.contains("iif != { \"lan0\"") || line.contains(", \"lan0\" }"))
        });
        until("all is as planned", || world.weir.finish(world.weir.command("plan")).code() == 0);
        Family::BOTH.into_iter().for_each(|family| fetch_intact(&mut world.connect(family, HTTP), 1000));
        world.weir.stop();
    });
}

#[test]
fn killed_and_a_start_that_fails_the_box_stays_closed() {
    // A queue that the device has not got is noticed late in a start, memory that is not there before anything is done.
    let queue = closed().to_string().replace("device = \"wan0\"", "device = \"wan0\"\nqueues = [7]");
    let memory = Settings { flows: 1 << 26, ..closed() }.to_string();
    play(&closed(), |world| {
        world.weir.kill();
        for (broken, words) in [(queue, "wan0"), (memory, "memory")] {
            world.weir.write_config(&broken);
            let mut start = std::process::Command::new("sh");
            start.args(["-c", "ulimit -v 2097152; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_weir")]);
            start.args(world.weir.command("run").get_args());
            world.weir.spawn_as(&mut start);
            let ended = world.weir.wait();
            assert_eq!(ended.code(), 3, "{ended:?}");
            assert!(
                ended.errors.contains(words) && ended.errors.contains("is dropped until weir runs"),
                "{ended:?}"
            );
            std::thread::sleep(Duration::from_millis(250));
            assert!(Family::BOTH.into_iter().all(|family| !answers(world, family, ALLOWED)), "{words}");
        }
        world.weir.write_config(&closed().to_string());
        world.weir.start();
        Family::BOTH.into_iter().for_each(|family| fetch_intact(&mut world.connect(family, HTTP), 1000));
    });
}

#[test]
fn killed_and_started_as_one_that_fails_open_nothing_stays_pinned() {
    play(&closed(), |world| {
        world.weir.kill();
        world.weir.write_config(&Settings::default().to_string());
        world.weir.start();
        world.weir.kill();
        // A SYN that meets the programs on their way out is sent again only after a second.
        assert_forwarded(world, DENIED);
        assert_eq!(world.weir.clean().code(), 0);
        world.assert_as_before();
    });
}

/// Requests of `host` come to be answered by the server, of both families.
#[track_caller]
pub fn assert_forwarded(world: &World<'_>, host: &str) {
    for family in Family::BOTH {
        until("what is asked for is answered", || answers(world, family, host));
    }
}

/// Whether a request of `host` is answered by the server, without waiting long for a connection.
pub fn answers(world: &World<'_>, family: Family, host: &str) -> bool {
    let target = family.origin(HTTP);
    let connect = || TcpStream::connect_timeout(&target, Duration::from_millis(400));
    world.lab.client.run(connect).is_ok_and(|stream| is_answered(stream, host, Duration::from_secs(5)))
}

fn is_answered(mut stream: TcpStream, host: &str, patience: Duration) -> bool {
    let request = format!("GET /bytes/10 HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let mut start = [0; 12];
    stream.set_read_timeout(Some(patience)).is_ok()
        && stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut start).is_ok()
        && start.starts_with(b"HTTP/1.1 200")
}

/// Asks for a name again and again, each time on a connection of its own.
struct Hammer {
    answered: Arc<AtomicU64>,
    tries: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Hammer {
    fn start(world: &World<'_>, family: Family, host: &'static str) -> Self {
        let target: SocketAddr = family.origin(HTTP);
        let patience = if host == ALLOWED { LONG } else { SHORT };
        let (answered, tries, end) =
            (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default(), Arc::default());
        let work = {
            let (answered, tries, end) =
                (Arc::clone(&answered), Arc::clone(&tries), Arc::<AtomicBool>::clone(&end));
            move || {
                while !end.load(Ordering::Relaxed) {
                    tries.fetch_add(1, Ordering::Relaxed);
                    let stream = TcpStream::connect_timeout(&target, patience);
                    if stream.is_ok_and(|stream| is_answered(stream, host, patience)) {
                        answered.fetch_add(1, Ordering::Relaxed);
                    } else {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            }
        };
        // A thread stays in the network namespace of the one that starts it.
        let threads =
            world.lab.client.run(|| (0..HAMMERS).map(|_| std::thread::spawn(work.clone())).collect());
        Self { answered, tries, end, threads }
    }

    fn answers(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends it; how many requests were answered.
    fn stop(self) -> u64 {
        self.end.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("the hammer does not panic"));
        self.answered.load(Ordering::Relaxed)
    }
}
