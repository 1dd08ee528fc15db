//! However weir ends, traffic goes on as `fail` says, and what is left is found and removed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use weir_control::demo::stage::Family;

use crate::changes::{becomes_fast, usual};
use crate::config::Settings;
use crate::idle::assert_idle;
use crate::weir::{PATIENCE, until};
use crate::world::{Download, HTTP, World, fetch_intact, play, prepare};

/// Bytes of a download that is interrupted, and bytes per second.
const BODY: u64 = 8 << 20;
const RATE: u64 = 2 << 20;
/// A port that no intercept has.
pub const OTHER: u16 = 9999;

#[test]
fn killed_at_any_moment_of_the_start_clean_restores_the_host() {
    for (fail, seed) in [("open", 1), ("closed", 2)] {
        prepare(&Settings { fail, ..Settings::default() }, |world| {
            let mut random = seed;
            for round in 0..10 {
                random = next(random);
                let moment = Duration::from_millis(random % 300);
                world.weir.spawn();
                // The moment itself is what varies; nothing is waited for.
                std::thread::sleep(moment);
                world.weir.kill();
                let cleaned = world.weir.clean();
                assert_eq!(cleaned.code(), 0, "round {round}, killed after {moment:?}: {cleaned:?}");
                world.assert_as_before();
            }
        });
    }
}

/// Knuth's MMIX generator, its better half.
pub fn next(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407).rotate_right(29)
}

#[test]
fn killed_weir_is_followed_by_one_that_removes_its_traces() {
    for fail in ["open", "closed"] {
        play(&Settings { fail, ..Settings::default() }, |world| {
            world.weir.kill();
            world.weir.start();
            for family in Family::BOTH {
                let mut stream = world.connect(family, HTTP);
                fetch_intact(&mut stream, 10_000);
                let flow = world.weir.flow(stream.local_addr().unwrap());
                assert_eq!(flow["road"], "fast", "{flow}");
            }
        });
    }
}

#[test]
fn stopped_under_a_download_the_kernel_carries_it_to_its_end() {
    for signal in [Signal::TERM, Signal::INT] {
        play(&Settings::default(), |world| {
            let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
            world.weir.signal(signal);
            assert_eq!(world.weir.wait().code(), 0);
            assert!(downloads.iter().all(|download| download.progress() < BODY), "not in the middle");
            world.assert_as_before();
            downloads.into_iter().for_each(Download::finish);
        });
    }
}

#[test]
fn killed_under_a_download_the_kernel_carries_it_to_its_end() {
    play(&Settings::default(), |world| {
        let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
        world.weir.kill();
        assert!(downloads.iter().all(|download| download.progress() < BODY), "not in the middle");
        downloads.into_iter().for_each(Download::finish);
        assert_eq!(world.weir.clean().code(), 0);
        world.assert_as_before();
    });
}

#[test]
fn closed_box_drops_what_it_would_intercept_and_nothing_else() {
    play(&Settings { fail: "closed", ..Settings::default() }, |world| {
        let own = Family::BOTH.map(|family| {
            let address = SocketAddr::new(family.addresses().wan_gateway, HTTP);
            Greeter::start(world, true, address)
        });
        let others = Family::BOTH.map(|family| Greeter::start(world, false, family.origin(OTHER)));
        let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
        world.weir.kill();
        let stuck = stand_still(&downloads);
        assert!(stuck.iter().all(|seen| *seen < BODY), "not in the middle");
        for (family, (own, other)) in Family::BOTH.into_iter().zip(own.iter().zip(&others)) {
            own.assert_greets(world, family);
            other.assert_greets(world, family);
            world.ping(family);
            assert!(!opens(world, family, Duration::from_millis(400)), "{family:?}: a connection opened");
        }
        for (download, stuck) in downloads.iter().zip(stuck) {
            assert_eq!(download.progress(), stuck, "a flow of an intercept went on");
        }
        let cleaned = world.weir.clean();
        assert_eq!(cleaned.code(), 0, "{cleaned:?}");
        world.assert_as_before();
        assert!(Family::BOTH.into_iter().all(|family| opens(world, family, PATIENCE)));
        downloads.into_iter().for_each(Download::finish);
    });
}

#[test]
fn closed_box_that_is_stopped_as_asked_opens() {
    play(&Settings { fail: "closed", ..Settings::default() }, |world| {
        assert_eq!(world.weir.stop().code(), 0);
        world.assert_as_before();
        Family::BOTH.into_iter().for_each(|family| fetch_intact(&mut world.connect(family, HTTP), 1000));
    });
}

#[test]
fn frozen_weir_is_passed_by_and_takes_its_flows_again_when_thawed() {
    play(&Settings::prompt(), |world| {
        let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
        world.weir.signal(Signal::STOP);
        downloads.iter().for_each(|download| download.goes_on(BODY / 4));
        world.weir.signal(Signal::CONT);
        downloads.into_iter().for_each(Download::finish);
        assert!(world.weir.status()["healthy"] == true);
        Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
        assert_idle(&world.weir);
    });
}

/// Returns when nothing more of these downloads comes; what has come by then.
#[track_caller]
pub fn stand_still(downloads: &[Download; 2]) -> [u64; 2] {
    let now = || downloads.each_ref().map(Download::progress);
    let mut seen = now();
    until("the downloads stand still", || {
        std::thread::sleep(Duration::from_millis(500));
        let before = std::mem::replace(&mut seen, now());
        before == seen
    });
    seen
}

/// Whether the client can open a connection of the intercept within `patience`.
fn opens(world: &World<'_>, family: Family, patience: Duration) -> bool {
    let target = family.origin(HTTP);
    world.lab.client.run(|| TcpStream::connect_timeout(&target, patience)).is_ok()
}

/// A listener that says a word to whoever comes.
#[derive(Debug)]
pub struct Greeter {
    address: SocketAddr,
}

impl Greeter {
    /// In the gateway, or in the server's namespace.
    pub fn start(world: &World<'_>, gateway: bool, address: SocketAddr) -> Self {
        let namespace = if gateway { &world.lab.gateway } else { &world.lab.server };
        let listener = namespace.run(|| TcpListener::bind(address)).expect("the address is free");
        // Ends with the process: nothing but the lab's clients can reach it.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let _ = stream.write_all(format!("hello from {address}").as_bytes());
            }
        });
        Self { address }
    }

    /// The client can reach it, and it is the one that answers.
    #[track_caller]
    pub fn assert_greets(&self, world: &World<'_>, family: Family) -> SocketAddr {
        let mut stream = world.connect_to(family, self.address).expect("the client can connect");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("a greeting");
        assert_eq!(text, format!("hello from {}", self.address));
        stream.local_addr().expect("connected")
    }
}

#[test]
fn heartbeat_is_back_after_a_freeze() {
    play(&Settings::prompt(), |world| {
        for family in Family::BOTH {
            world.weir.signal(Signal::STOP);
            std::thread::sleep(Duration::from_millis(200));
            world.weir.signal(Signal::CONT);
            becomes_fast(world, family, usual(family));
        }
    });
}
