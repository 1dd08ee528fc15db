//! More SYNs than are anybody's: the steering program answers them where they come in, and nobody else notices.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use weir_control::demo::stage::Family;

use crate::config::Settings;
use crate::raw::RawClient;
use crate::weir::PATIENCE;
use crate::world::{Download, HTTP, World, fetch_intact, play};

/// SYNs between two pauses of 5 ms: some 40,000 a second.
const PACE: u32 = 250;
/// Connections of real clients in a flood.
const CLIENTS: usize = 20;

fn answering(intercept: &'static str, limits: &str) -> Settings {
    let more = format!("[limits]\n{limits}\n");
    Settings { handshake: "answer", intercept, rules: "", more, ..Settings::default() }
}

/// Whether the client's device takes XDP frames: a veth device does with GRO (drivers/net/veth.c, veth_xdp_xmit).
fn set_gro(world: &World<'_>, state: &str) {
    world.sh(&world.lab.client, &format!("ethtool -K client0 gro {state}"));
}

/// Runs `work` while SYNs of both families, each with another port and number, come from an address that answers nothing.
fn flooded<T>(world: &World<'_>, work: impl FnOnce() -> T) -> T {
    let ended = AtomicBool::new(false);
    let clients = Family::BOTH.map(|family| RawClient::new(world, family, 1024, HTTP));
    std::thread::scope(|scope| {
        let ended = &ended;
        scope.spawn(move || {
            let mut clients = clients;
            let mut number = 0_u32;
            while !ended.load(Relaxed) {
                if number.is_multiple_of(PACE) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                for client in &mut clients {
                    number += 1;
                    client.local.set_port(1024 + (number % 60_000) as u16);
                    client.next = number.wrapping_mul(2_654_435_761);
                    client.send_syn();
                }
            }
        });
        let done = work();
        ended.store(true, Relaxed);
        done
    })
}

/// Waits for a number to be reached.
fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < until, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn serves_real_clients(world: &World<'_>) {
    for _ in 0..CLIENTS / 2 {
        for family in Family::BOTH {
            fetch_intact(&mut world.connect(family, HTTP), 10_000);
        }
    }
}

/// Real clients come to be served without a cookie of the program's: what was under way is worked off first.
#[track_caller]
fn assert_worker_answers(world: &World<'_>) {
    wait_for("answers of the worker alone", || {
        let before = world.weir.count("steering", "cookie");
        serves_real_clients(world);
        world.weir.count("steering", "cookie") == before
    });
}

#[test]
fn flood_is_answered_by_the_steering_program_and_real_clients_are_served() {
    for (intercept, limits) in
        [("syn_cookies = \"always\"", ""), ("syn_cookies = \"auto\"", "half_open = 64")]
    {
        play(&answering(intercept, limits), |world| {
            set_gro(world, "on");
            let running = Family::BOTH.map(|family| Download::start(world, family, 2_000_000, 500_000));
            flooded(world, || {
                wait_for("cookies of the program", || world.weir.count("steering", "cookie") > 1000);
                let before = world.weir.count("flows", "cookies-accepted");
                serves_real_clients(world);
                world.weir.comes_to("flows", "cookies-accepted", before + CLIENTS as u64 / 2);
            });
            running.into_iter().for_each(Download::finish);
            // Calm for a second: the worker answers again.
            std::thread::sleep(Duration::from_secs(2));
            assert_worker_answers(world);
        });
    }
}

#[test]
fn device_that_loses_what_the_program_sends_leaves_the_answers_to_the_worker() {
    play(&answering("syn_cookies = \"always\"", ""), |world| {
        set_gro(world, "off");
        flooded(world, || {
            wait_for("cookies of the worker in the flood", || {
                world.weir.count("steering", "cookie") > 0 && world.weir.count("flows", "cookies-sent") > 1000
            });
            std::thread::sleep(Duration::from_millis(500));
            assert_worker_answers(world);
        });
    });
}

#[test]
fn intercept_whose_rules_decide_on_the_syn_has_its_worker_see_each() {
    let rules = "{ from = [\"10.99.0.0/16\", \"fd99::/16\"], action = \"relay\" }";
    play(&Settings { rules, ..answering("syn_cookies = \"always\"", "") }, |world| {
        set_gro(world, "on");
        flooded(world, || {
            wait_for("cookies of the worker", || world.weir.count("flows", "cookies-sent") > 5000);
            serves_real_clients(world);
        });
        assert_eq!(world.weir.count("steering", "cookie"), 0);
    });
}
