//! `weir run --replace`: one weir after the other, and nobody behind the box notices.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use weir_control::demo::client;
use weir_control::demo::stage::Family;
use weir_control::lab::Lab;

use crate::config::{ALLOWED, Settings};
use crate::express::{always, downloads_in_the_lane, into_the_lane, ready};
use crate::weir::{Weir, until};
use crate::world::{Download, HTTP, World, exchange_intact, fetch, fetch_intact, play, prepare};

const BODY: u64 = 12 << 20;
const RATE: u64 = 1 << 20;

/// Clients that connect and fetch, each one connection after the other, until they are told to stop.
pub struct Load<'scope> {
    threads: Vec<ScopedJoinHandle<'scope, Vec<String>>>,
}

impl<'scope> Load<'scope> {
    /// One of this family.
    pub fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        lab: &'env Lab,
        family: Family,
        told: (&'env AtomicBool, &'env AtomicU64),
    ) -> Self {
        Self::start_many(scope, lab, (family, 1), told)
    }

    /// As many at once.
    pub fn start_many<'env>(
        scope: &'scope Scope<'scope, 'env>,
        lab: &'env Lab,
        (family, clients): (Family, usize),
        (stop, done): (&'env AtomicBool, &'env AtomicU64),
    ) -> Self {
        let client = move || {
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let moment = done.load(Ordering::Relaxed);
                match once(lab, family) {
                    Ok(()) => drop(done.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => failures.push(format!("{family:?}, after {moment}: {error}")),
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            failures
        };
        Self { threads: (0..clients).map(|_| scope.spawn(client)).collect() }
    }

    #[track_caller]
    pub fn assert_served(self) {
        let joined = self.threads.into_iter().map(|thread| thread.join().expect("the clients do not panic"));
        let failures: Vec<String> = joined.flatten().collect();
        assert!(failures.is_empty(), "{} connections failed:\n{}", failures.len(), failures.join("\n"));
    }
}

/// Tells them when it goes, however a test ends.
pub struct Halt<'a>(pub &'a AtomicBool);

impl Drop for Halt<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn once(lab: &Lab, family: Family) -> io::Result<()> {
    let from = SocketAddr::new(family.addresses().client, 0);
    let mut stream = client::connect(&lab.client, from, family.origin(HTTP))?;
    let response = fetch(&mut stream, "www.example", 2000)?;
    if response.is_intact() && response.length == 2000 { Ok(()) } else { Err(io::Error::other("not intact")) }
}

/// Another weir takes the place of the one that runs, which is returned.
#[track_caller]
pub fn replace<'lab>(world: &mut World<'lab>, settings: &Settings) -> Weir<'lab> {
    let mut next = Weir::new(world.lab, &settings.to_string());
    let mut command = next.command("run");
    command.arg("--replace");
    next.spawn_as(&mut command);
    let pid = next.pid();
    until("the new weir answers", || {
        if let Some(status) = next.ended() {
            panic!("weir run --replace ended with {status}: {:?}", next.wait());
        }
        next.status_if_any().is_some_and(|status| status["pid"] == pid)
    });
    std::mem::replace(&mut world.weir, next)
}

/// Three weirs after the first, under load; with downloads that take longer than any of them.
fn replaced_three_times(settings: &Settings, clients: usize) {
    prepare(settings, |world| {
        world.weir.start();
        let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let lab = world.lab;
        let mut old = Vec::new();
        std::thread::scope(|scope| {
            let _halt = Halt(&stop);
            let told = (&stop, &done);
            let loads = Family::BOTH.map(|family| Load::start_many(scope, lab, (family, clients), told));
            for _ in 0..3 {
                let before = done.load(Ordering::Relaxed);
                until("clients are served", || done.load(Ordering::Relaxed) > before + 20);
                old.push(replace(world, settings));
            }
            let before = done.load(Ordering::Relaxed);
            until("clients are served by the last", || done.load(Ordering::Relaxed) > before + 20);
            stop.store(true, Ordering::Relaxed);
            loads.into_iter().for_each(Load::assert_served);
        });
        downloads.into_iter().for_each(Download::finish);
        for mut weir in old {
            let ended = weir.wait();
            assert_eq!(ended.code(), 0, "{ended:?}");
        }
        assert!(world.weir.status()["healthy"] == true);
    });
}

#[test]
fn weir_of_the_relay_replaced_three_times_refuses_and_resets_nobody() {
    replaced_three_times(&Settings { handshake: "relay", ..Settings::default() }, 1);
}

#[test]
fn weir_replaced_among_many_clients_at_once_refuses_and_resets_nobody() {
    replaced_three_times(&Settings { handshake: "relay", ..Settings::default() }, 32);
}

#[test]
fn weir_of_the_fast_road_replaced_three_times_refuses_and_resets_nobody() {
    replaced_three_times(&Settings::default(), 1);
}

#[test]
fn closed_weir_replaced_three_times_refuses_and_resets_nobody() {
    replaced_three_times(&Settings { fail: "closed", ..Settings::default() }, 1);
}

#[test]
fn connections_in_the_express_lane_stay_there_while_weir_is_replaced() {
    for (handshake, fail) in [("answer", "open"), ("through", "open"), ("answer", "closed")] {
        let settings = Settings { handshake, fail, ..always() };
        play(&settings, |world| {
            ready(world);
            let mut streams = Family::BOTH.map(|family| world.connect(family, HTTP));
            streams.iter_mut().for_each(|stream| into_the_lane(world, stream, ALLOWED));
            let downloads = downloads_in_the_lane(world);
            let mut old = [replace(world, &settings), replace(world, &settings)];
            for stream in &mut streams {
                let client = stream.local_addr().unwrap();
                assert_eq!(world.weir.flow(client)["lane"], "express", "{handshake} {fail}");
                fetch_intact(stream, 1 << 20);
            }
            downloads.into_iter().for_each(Download::finish);
            for weir in &mut old {
                let ended = weir.wait();
                assert_eq!(ended.code(), 0, "{ended:?}");
            }
            // Those before have taken nothing with them.
            for stream in &mut streams {
                assert_eq!(world.weir.flow(stream.local_addr().unwrap())["lane"], "express");
                exchange_intact(stream, ALLOWED, 1 << 20);
            }
            drop(streams);
            let ended = world.weir.stop();
            assert_eq!(ended.code(), 0, "{ended:?}");
            world.assert_as_before();
        });
    }
}

#[test]
fn replacement_that_fails_leaves_the_express_lane_to_the_old_weir() {
    play(&Settings { handshake: "answer", ..always() }, |world| {
        ready(world);
        let pid = world.weir.status()["pid"].clone();
        let mut streams = Family::BOTH.map(|family| world.connect(family, HTTP));
        streams.iter_mut().for_each(|stream| into_the_lane(world, stream, ALLOWED));
        // Found out at the beginning, and when all else has been done.
        let failures = ["metrics = \"192.0.2.99:9470\"", "admin = \"/proc/none/admin.sock\""];
        // With a lane, without one, and without a fast road.
        for (handshake, express) in [("answer", "always"), ("answer", "never"), ("relay", "auto")] {
            for gateway in failures.map(str::to_owned) {
                let bad = Settings { gateway, handshake, express, ..Settings::default() };
                let next = Weir::new(world.lab, &bad.to_string());
                let mut command = next.command("run");
                command.arg("--replace");
                let ended = next.finish(command);
                assert_eq!(ended.code(), 3, "{bad:?}: {ended:?}");
                assert_eq!(world.weir.status()["pid"], pid);
                for stream in &mut streams {
                    fetch_intact(stream, 1 << 20);
                    assert_eq!(world.weir.flow(stream.local_addr().unwrap())["lane"], "express", "{bad:?}");
                }
            }
        }
        streams.iter_mut().for_each(|stream| exchange_intact(stream, ALLOWED, 1 << 20));
        ready(world);
    });
}

#[test]
fn connections_of_a_lane_that_the_new_weir_has_not_got_go_on_by_the_kernel() {
    play(&always(), |world| {
        ready(world);
        let mut streams = Family::BOTH.map(|family| world.connect(family, HTTP));
        streams.iter_mut().for_each(|stream| into_the_lane(world, stream, ALLOWED));
        let downloads = downloads_in_the_lane(world);
        let mut old = replace(world, &Settings { express: "never", ..Settings::default() });
        streams.iter_mut().for_each(|stream| exchange_intact(stream, ALLOWED, 1 << 20));
        downloads.into_iter().for_each(Download::finish);
        let ended = old.wait();
        assert_eq!(ended.code(), 0, "{ended:?}");
        let ended = world.weir.stop();
        assert!(ended.errors.contains("express lane: there is none any more"), "{ended:?}");
        world.assert_as_before();
    });
}

#[test]
fn replacement_that_fails_leaves_the_old_weir_as_it_was() {
    play(&Settings::default(), |world| {
        let pid = world.weir.status()["pid"].clone();
        let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY / 2, 2 * RATE));
        // An address that the gateway has not got: found out when the old one has left the road.
        let gateway = "metrics = \"192.0.2.99:9470\"".to_owned();
        let bad = Settings { gateway, ..Settings::default() };
        let next = Weir::new(world.lab, &bad.to_string());
        let mut command = next.command("run");
        command.arg("--replace");
        let ended = next.finish(command);
        assert_eq!(ended.code(), 3, "{ended:?}");
        assert_eq!(world.weir.status()["pid"], pid);
        world.meet_neighbours();
        for family in Family::BOTH {
            let mut stream = world.connect(family, HTTP);
            fetch_intact(&mut stream, 10_000);
            assert_eq!(world.weir.flow(stream.local_addr().unwrap())["road"], "fast");
        }
        downloads.into_iter().for_each(Download::finish);
    });
}

#[test]
fn replacement_that_fails_at_its_very_end_refuses_and_resets_nobody() {
    for (handshake, fail) in [("relay", "open"), ("through", "open"), ("relay", "closed")] {
        let settings = Settings { handshake, fail, ..Settings::default() };
        prepare(&settings, |world| {
            world.weir.start();
            let pid = world.weir.status()["pid"].clone();
            // Found out when all else has been done.
            let gateway = "admin = \"/proc/none/admin.sock\"".to_owned();
            let bad = Settings { gateway, ..settings.clone() };
            let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
            let lab = world.lab;
            std::thread::scope(|scope| {
                let _halt = Halt(&stop);
                let loads = Family::BOTH.map(|family| Load::start(scope, lab, family, (&stop, &done)));
                for _ in 0..3 {
                    let before = done.load(Ordering::Relaxed);
                    until("clients are served", || done.load(Ordering::Relaxed) > before + 20);
                    let next = Weir::new(lab, &bad.to_string());
                    let mut command = next.command("run");
                    command.arg("--replace");
                    let ended = next.finish(command);
                    assert_eq!(ended.code(), 3, "{ended:?}");
                }
                let before = done.load(Ordering::Relaxed);
                until("clients are served as before", || done.load(Ordering::Relaxed) > before + 20);
                stop.store(true, Ordering::Relaxed);
                loads.into_iter().for_each(Load::assert_served);
            });
            assert_eq!(world.weir.status()["pid"], pid);
        });
    }
}

#[test]
fn without_a_weir_to_replace_a_start_is_a_start() {
    prepare(&Settings::default(), |world| {
        let mut command = world.weir.command("run");
        command.arg("--replace");
        world.weir.spawn_as(&mut command);
        until("weir answers", || world.weir.status_if_any().is_some());
        Family::BOTH.into_iter().for_each(|family| fetch_intact(&mut world.connect(family, HTTP), 1000));
    });
}

#[test]
fn replacement_with_another_listener_is_refused_and_nothing_changes() {
    play(&Settings::default(), |world| {
        let next = Weir::new(world.lab, &Settings { listen: 12399, ..Settings::default() }.to_string());
        let mut command = next.command("run");
        command.arg("--replace");
        let ended = next.finish(command);
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.errors.contains("`listen` in [fallback] cannot change"), "{ended:?}");
        world.weir.write_config(&Settings::default().to_string());
        assert!(world.weir.status()["healthy"] == true);
    });
}
