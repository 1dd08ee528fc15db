//! When traffic stops nothing is in use: every frame is free, however the connections went and whoever's they were.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use weir_control::demo::stage::Family;

use crate::config::{ALLOWED, DENIED, Settings};
use crate::weir::{Weir, until, what_stays_wrong};
use crate::world::{HTTP, HTTPS, World, fetch, fetch_intact, play};

#[test]
fn two_hundred_short_connections_leave_all_frames_free() {
    for queues in [1, 2] {
        play(&Settings { queues, ..Settings::default() }, |world| {
            assert_eq!(world.weir.status()["workers"], queues);
            for at in 0..200 {
                short_connection(world, Family::BOTH[at % 2], at);
            }
            assert_idle(&world.weir);
            // On a machine too busy to let the workers breathe steering lets packets pass, and the relay takes those.
            if world.weir.count("steering", "stale_pass") == 0 {
                world.weir.assert_count("flows", "opened", 200);
                world.weir.assert_count("flows", "reset", 50);
            }
        });
    }
}

/// One of four kinds.
fn short_connection(world: &World<'_>, family: Family, at: usize) {
    let host = if at / 2 % 4 == 1 { DENIED } else { ALLOWED };
    match at / 2 % 4 {
        // Closed without a word.
        3 => drop(world.connect(family, HTTPS)),
        _ => {
            let mut stream = world.connect(family, HTTP);
            match fetch(&mut stream, host, 10_000) {
                Ok(response) => assert!(response.is_intact() && host == ALLOWED),
                Err(error) => {
                    assert!(error.kind() == ErrorKind::ConnectionReset && host == DENIED, "{error}")
                }
            }
        }
    }
}

#[test]
fn connection_that_comes_after_a_rest_is_served_at_once() {
    for handshake in ["through", "answer", "relay"] {
        play(&Settings { queues: 2, handshake, ..Settings::default() }, |world| {
            world.meet_neighbours();
            // Who waits for a thread to wake by itself waits for half of its sleep in the middle, which is 25 ms. A machine that does
            // other things too may be late, but not always.
            until(&format!("half of the connections are served at once, {handshake}"), || {
                let mut times: Vec<Duration> =
                    (0..20).map(|at| time_after_rest(world, Family::BOTH[at % 2])).collect();
                times.sort();
                times[times.len() / 2] < Duration::from_millis(10)
            });
        });
    }
}

/// How long a connection takes that all have slept before.
fn time_after_rest(world: &World<'_>, family: Family) -> Duration {
    std::thread::sleep(Duration::from_millis(150));
    let from = Instant::now();
    fetch_intact(&mut world.connect(family, HTTP), 10);
    from.elapsed()
}

#[test]
fn two_workers_carry_many_downloads_and_hand_frames_over() {
    play(&Settings { queues: 2, ..Settings::default() }, |world| {
        let world = &*world;
        std::thread::scope(|scope| {
            for at in 0..64 {
                scope.spawn(move || {
                    let mut stream = world.connect(Family::BOTH[at % 2], HTTP);
                    fetch_intact(&mut stream, 200_000);
                });
            }
        });
        assert!(world.weir.count("flows", "handed-over") > 0, "no frame crossed from worker to worker");
        assert_idle(&world.weir);
    });
}

#[test]
fn gateway_before_any_traffic_has_all_frames_free() {
    play(&Settings::default(), |world| assert_idle(&world.weir));
}

/// No frame is in use any more, and none was ever lost.
#[track_caller]
pub fn assert_idle(weir: &Weir<'_>) {
    let used = what_stays_wrong(|| {
        let frames = weir.status()["frames"].clone();
        let free = frames["free"] == frames["total"] && frames["total"] != 0;
        let idle = free && frames["held"] == 0 && frames["lost"] == 0 && frames["sending"] == 0;
        if idle { String::new() } else { frames.to_string() }
    });
    assert!(used.is_empty(), "frames are in use: {used}");
}
