//! What weir cannot put back, since somebody is in the way: it says so, does the rest, and what the box is to do with traffic
//! meanwhile, open or closed, holds.

use std::io::Write as _;
use std::time::Duration;

use serde_json::Value;
use weir_control::demo::stage::Family;
use weir_sys::steering::{AttachMode, Sizes, Steering};

use crate::changes::{becomes_fast, reaches, usual};
use crate::config::{DENIED, Settings};
use crate::repair::{Manager, oldest_link_of};
use crate::weir::until;
use crate::world::{HTTP, World, fetch, fetch_intact, play};

fn gives_up(world: &World<'_>, what: &str) -> bool {
    let status = world.weir.status();
    let contested = status["contested"].as_array().expect("a list").iter();
    status["healthy"] == false
        && contested.clone().any(|one| one["what"].as_str().is_some_and(|of| of.contains(what)))
}

/// Has another's program on a port, in the place of weir's, before weir has looked.
fn replace_program(world: &World<'_>, device: &str) -> Steering {
    let gateway = &world.lab.gateway;
    let mut steering = gateway.run(|| Steering::load(&Sizes::default())).expect("root");
    until("the other's program is on it", || {
        if let Some(link) = oldest_link_of(world, device) {
            world.sh(gateway, &format!("bpftool link detach id {link} 2>/dev/null || true"));
        }
        gateway.run(|| {
            let index = weir_sys::ethtool::index_of(device).expect("it is there");
            steering.attach(device, index, AttachMode::Native).is_ok()
        })
    });
    steering
}

#[test]
fn closed_box_lets_nothing_unjudged_through_a_port_whose_program_somebody_has_replaced() {
    for handshake in ["through", "answer"] {
        play(&Settings { handshake, fail: "closed", ..Settings::default() }, |world| {
            let gateway = &world.lab.gateway;
            Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
            // They are open, and their clients have said nothing yet.
            let silent = Family::BOTH.map(|family| world.connect(family, HTTP));
            let received =
                silent.each_ref().map(|stream| world.received_from(stream.local_addr().expect("connected")));
            // Somebody else's program at once in the place of weir's, on both ports.
            let foreign = ["lan0", "wan0"].map(|device| replace_program(world, device));
            until("weir is told that it is in the way", || gives_up(world, "attach XDP to"));
            until("what comes by these ports is dropped", || {
                let rules = world.sh(gateway, "nft list table inet weir");
                rules.matches("lost port").count() > 0
            });
            for (mut stream, received) in silent.into_iter().zip(received) {
                let client = stream.local_addr().expect("connected");
                let request = format!("GET / HTTP/1.1\r\nhost: {DENIED}\r\n\r\n");
                stream.write_all(request.as_bytes()).expect("it is open");
                std::thread::sleep(Duration::from_millis(700));
                assert_eq!(
                    world.received_from(client),
                    received,
                    "{client}: a refused name reached the server"
                );
            }
            // New connections are the relay's, and judged.
            for family in Family::BOTH {
                until("the relay serves", || reaches(world, family, usual(family)));
                assert!(fetch(&mut world.connect(family, HTTP), DENIED, 100).is_err(), "{family:?}");
            }
            drop(foreign);
            until("weir is well again", || world.weir.status()["healthy"] == true);
            Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
            let rules = world.sh(gateway, "nft list table inet weir");
            assert!(!rules.contains("lost port"), "{rules}");
            world.weir.stop();
        });
    }
}

#[test]
fn route_of_somebody_else_in_weirs_table_keeps_nothing_from_being_put_back() {
    for fail in ["open", "closed"] {
        play(&Settings { handshake: "relay", fail, ..Settings::default() }, |world| {
            let gateway = &world.lab.gateway;
            for ip in ["ip", "ip -6"] {
                world.sh(gateway, &format!("{ip} route add unreachable default metric 4096 table 177"));
            }
            for removal in
                ["ip rule del priority 1077", "ip -6 rule del priority 1077", "nft delete table inet weir"]
            {
                world.sh(gateway, removal);
                until(removal, || {
                    let has = |line: &str| !world.sh(gateway, &format!("{line} || true")).is_empty();
                    has("ip rule | grep ^1077:")
                        && has("ip -6 rule | grep ^1077:")
                        && has("nft list table inet weir 2>/dev/null | grep tproxy")
                });
                until("nothing is contested", || {
                    world.weir.status()["contested"] == Value::Array(Vec::new())
                });
                for family in Family::BOTH {
                    let mut stream = world.connect(family, HTTP);
                    fetch_intact(&mut stream, 10_000);
                    assert_eq!(world.weir.flow(stream.local_addr().unwrap())["road"], "relay", "{removal}");
                }
            }
            // Where weir's own is missing too, it is told what is in the way, and the rest is put back.
            world.sh(gateway, "ip route del local default dev lo table 177; ip rule del priority 1077");
            until("it is told", || world.weir.status().to_string().contains("table 177 is somebody else's"));
            until("the rule is back", || !world.sh(gateway, "ip rule | grep ^1077: || true").is_empty());
            for family in Family::BOTH {
                // Forwarded; or dropped, where there is no way to the relay.
                let served = reaches(world, family, usual(family));
                assert_eq!(served, fail == "open" || family == Family::V6, "{family:?}, {fail}");
            }
            for ip in ["ip", "ip -6"] {
                world.sh(gateway, &format!("{ip} route del unreachable default metric 4096 table 177"));
            }
            until("weir is well again", || world.weir.status()["healthy"] == true);
            for family in Family::BOTH {
                let mut stream = world.connect(family, HTTP);
                fetch_intact(&mut stream, 10_000);
                assert_eq!(world.weir.flow(stream.local_addr().unwrap())["road"], "relay");
            }
            assert_eq!(world.weir.stop().code(), 0);
            world.assert_as_before();
        });
    }
}

#[test]
fn reload_during_a_quarrel_leaves_no_table_whose_rule_is_missing() {
    play(&Settings { handshake: "relay", ..Settings::default() }, |world| {
        let body = "while test ! -e /run/give-up; do echo 'rule del priority 1077'; sleep 0.05; done | ip -force -batch -";
        let manager = Manager::start(world, "bad-manager", body);
        let is_out = || !world.sh(&world.lab.gateway, "nft list tables").contains("inet weir");
        until("the rule is given up for now", || {
            let status = world.weir.status();
            status["contested"].as_array().unwrap().iter().any(|one| one["repairs"].as_u64() >= Some(7))
                && is_out()
        });
        for _ in 0..2 {
            let mut reload = world.weir.command("reload");
            reload.arg("--json");
            assert_eq!(world.weir.finish(reload).code(), 0);
            // The rule goes again within 50 ms.
            std::thread::sleep(Duration::from_secs(1));
            until("the table does not mark for a rule that is missing", is_out);
            for family in Family::BOTH {
                until("connections are forwarded", || {
                    let mut stream = world.connect(family, HTTP);
                    fetch_intact(&mut stream, 10_000);
                    world.weir.find_flow(stream.local_addr().unwrap()).is_none()
                });
            }
        }
        Manager::give_up([manager], world);
        until("weir is well again", || world.weir.status()["healthy"] == true);
        world.sh(&world.lab.gateway, "rm /run/bad-manager /run/give-up");
    });
}
