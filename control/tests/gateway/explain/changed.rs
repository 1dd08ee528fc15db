//! The file and the devices are others than when weir began.

use std::time::Duration;

use weir_control::demo::stage::Family;

use super::*;
use crate::config::{ALLOWED, Settings};
use crate::weir::until;
use crate::world::{HTTP, play};

/// Whether it is doubted that the gateway runs with the file.
fn is_doubted(world: &World<'_>) -> bool {
    let doubts = Family::BOTH.map(|family| {
        let (from, to) = ends(family, 41_100, HTTP);
        let explained = explain(world, from, to, &["--host", ALLOWED]);
        explained.steps("policy").any(|step| step["question"].as_str().unwrap().contains("with this file"))
    });
    assert_eq!(doubts[0], doubts[1], "IPv4 and IPv6");
    doubts[0]
}

#[test]
fn file_that_is_newer_than_what_is_in_force_is_doubted_until_it_is_reloaded() {
    let settings = Settings::default();
    play(&settings, |world| {
        assert!(!is_doubted(world), "it was just read");
        // Ages are told in seconds.
        std::thread::sleep(Duration::from_millis(2100));
        world.weir.write_config(&settings.to_string());
        assert!(is_doubted(world), "it was written after the start");
        let reloaded = world.weir.finish(world.weir.command("reload"));
        assert_eq!(reloaded.code(), 0, "{reloaded:?}");
        assert!(!is_doubted(world), "it is in force");
    });
}

#[test]
fn port_that_is_off_the_fast_road_is_said_to_be_and_why() {
    play(&Settings::default(), |world| {
        let lost = |world: &World<'_>| world.weir.status()["ports"][0]["lost"] == true;
        world.sh(&world.lab.gateway, "ip link set lan0 mtu 3000");
        until("the port is off the fast road", || lost(world));
        for family in Family::BOTH {
            let (from, to) = ends(family, 41_110, HTTP);
            let explained = explain(world, from, to, &["--host", ALLOWED]);
            explained.assert_says("relay", &["the device has packets that do not fit", "MTU of 3000"]);
        }
        world.sh(&world.lab.gateway, "ip link set lan0 mtu 1500");
        until("the port is on the fast road", || !lost(world));
        for family in Family::BOTH {
            let (from, to) = ends(family, 41_120, HTTP);
            explain(world, from, to, &["--host", ALLOWED]).assert_says("fast", &["intercept web"]);
        }
    });
}
