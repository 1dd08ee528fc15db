//! The file and the devices are others than when weir began.

use weir_control::demo::stage::Family;

use super::*;
use crate::config::{ALLOWED, Settings};
use crate::weir::until;
use crate::world::{HTTP, play, prepare};

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
        // A file that was prepared, and is older than the start.
        let prepared =
            "cp -p /run/weir/test.toml /run/weir/new.toml && mv /run/weir/new.toml /run/weir/test.toml";
        let rewritten = || world.weir.write_config(&settings.to_string());
        for put in [&rewritten as &dyn Fn(), &|| drop(world.sh(&world.lab.gateway, prepared))] {
            put();
            assert!(is_doubted(world), "it was put there after it was read");
            let reloaded = world.weir.finish(world.weir.command("reload"));
            assert_eq!(reloaded.code(), 0, "{reloaded:?}");
            assert!(!is_doubted(world), "it is in force");
        }
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

/// What is doubted of a connection of each family.
fn doubts(world: &World<'_>, host: &str) -> [String; 2] {
    Family::BOTH.map(|family| {
        let (from, to) = ends(family, 41_130, HTTP);
        explain(world, from, to, &["--host", host]).0["doubts"].to_string()
    })
}

/// What is in force is not what is on the disk, or there is nothing on it: what is left is explained, and what is not known told.
#[test]
fn list_that_is_empty_or_missing_is_told_with_its_rule_and_what_stays_in_force() {
    let rules =
        r#"{ host = ["denied.example"], action = "reset" }, { host_file = "names.txt", action = "drop" }"#;
    prepare(&Settings { rules, ..Settings::default() }, |world| {
        world.sh(&world.lab.gateway, "echo listed.example > /run/weir/names.txt");
        world.weir.start();
        assert_eq!(doubts(world, ALLOWED), ["[]", "[]"]);
        let kept = "the 1 names of before stay in force";
        for line in ["truncate -s 0 /run/weir/names.txt", "rm /run/weir/names.txt"] {
            world.sh(&world.lab.gateway, line);
            until("weir keeps the list", || world.weir.status()["warnings"].to_string().contains(kept));
            for doubts in doubts(world, ALLOWED) {
                assert!(doubts.contains("names.txt") && doubts.contains(kept), "{line}: {doubts}");
                assert!(
                    doubts.contains("the verdict is not certain: whether the rule at "),
                    "{line}: {doubts}"
                );
            }
            // The rule before it has decided.
            for doubts in doubts(world, "denied.example") {
                assert!(doubts.contains(kept) && !doubts.contains("not certain"), "{line}: {doubts}");
            }
        }
    });
}

#[test]
fn list_that_has_never_been_there_keeps_nobody_from_an_explanation() {
    let rules = r#"{ host_file = "names.txt", action = "drop" }"#;
    prepare(&Settings { rules, ..Settings::default() }, |world| {
        for doubts in doubts(world, ALLOWED) {
            assert!(doubts.contains("names.txt cannot be read: No such file"), "{doubts}");
            assert!(doubts.contains("the verdict is not certain"), "{doubts}");
        }
        for family in Family::BOTH {
            let (from, to) = ends(family, 41_140, HTTP);
            let explained = explain(world, from, to, &["--host", ALLOWED]);
            assert!(explained.answer("policy", "which intercept takes it").starts_with("web "));
        }
    });
}
