//! What a reload put in force is followed and repaired as what the start did: other numbers, other ports, other rules.

use std::net::SocketAddr;

use serde_json::Value;
use weir_control::demo::stage::Family;

use crate::changes::{becomes_fast, behind, ip, is_served, lost, make_again, reaches, settle_behind, usual};
use crate::config::{ALLOWED, Settings};
use crate::idle::assert_idle;
use crate::lost::{keep_addresses, restore_routes};
use crate::weir::until;
use crate::world::{Download, HTTP, World, exchange_intact, fetch_intact, play, upload_intact};

const BODY: u64 = 3 << 20;
const RATE: u64 = 1 << 20;

/// Other numbers on the kernel's side, another TCP port, another rule.
fn other() -> String {
    let text = Settings {
        rules: r#"{ host = ["denied.example"], action = "reset" },
            { from = ["10.77.1.9/32", "fd77:1::9/128"], action = "relay" },"#,
        ..Settings::default()
    }
    .to_string();
    text.replace("[fallback]", "[fallback]\nmark = \"0x3000/0xf000\"\ntable = 3000\npriority = 300")
        .replace("tcp = [80, 443, 7777]", "tcp = [80, 443, 8443]")
}

fn reload(world: &World<'_>) {
    world.weir.write_config(&other());
    let done = world.weir.finish(world.weir.command("reload"));
    assert_eq!(done.code(), 0, "{done:?}");
    assert!(world.sh(&world.lab.gateway, "ip rule").contains("fwmark 0x3000/0xf000 lookup 3000"));
}

/// Nothing of the reloaded configuration is missing, and nothing of the first is left.
#[track_caller]
fn is_whole(world: &World<'_>) {
    until("weir plan finds nothing to do", || world.weir.finish(world.weir.command("plan")).code() == 0);
    // Link-local addresses are drawn by lot: one of them may have any of these.
    let text = "ip rule; ip -6 rule; ip route show table all | grep -v fe80:; nft list ruleset";
    let text = world.sh(&world.lab.gateway, text);
    for trace in ["0x77", "lookup 177", "table 177", "7777"] {
        assert!(!text.contains(trace), "{trace} of the first configuration is there:\n{text}");
    }
    until("weir is well", || world.weir.status()["healthy"] == true);
}

/// A connection on the fast road, and one that the relay carries, of both families.
#[track_caller]
fn all_roads(world: &World<'_>) {
    for family in Family::BOTH {
        becomes_fast(world, family, usual(family));
        let client = SocketAddr::new(family.addresses().other_client, 0);
        until("the relay carries a connection", || {
            let stream = weir_control::demo::client::connect(&world.lab.client, client, family.origin(HTTP));
            let mut stream = stream.expect("the client can connect");
            fetch_intact(&mut stream, 10_000);
            let flow = world.weir.find_flow(stream.local_addr().expect("connected"));
            flow.is_some_and(|flow| flow["road"] == "relay")
        });
    }
}

/// What somebody takes of what the reload made, and as what it is counted.
const REMOVALS: [(&str, &str); 9] = [
    ("ip rule del priority 300", "rule"),
    ("ip -6 rule del priority 300", "rule"),
    ("ip route flush table 3000", "route"),
    ("ip -6 route flush table 3000", "route"),
    ("nft flush ruleset", "table"),
    ("nft flush chain inet weir prerouting", "table"),
    ("sysctl -qw net.ipv4.ip_forward=0", "sysctl"),
    ("ip addr flush dev weir-punt", "address"),
    ("ip link del weir-relay", "tun"),
];

#[test]
fn what_a_reload_installed_is_put_back_when_somebody_removes_it() {
    play(&Settings::default(), |world| {
        reload(world);
        for (removal, kind) in REMOVALS {
            let before = world.weir.count("repairs", kind);
            world.sh(&world.lab.gateway, removal);
            until(&format!("{removal} is counted as {kind}"), || world.weir.count("repairs", kind) > before);
            until("nothing is contested", || world.weir.status()["contested"] == Value::Array(Vec::new()));
            is_whole(world);
            all_roads(world);
        }
        // As the file was, so that the values before weir are known again.
        world.before = weir_control::lab::host_state(&world.lab.gateway).expect("looked at");
        assert_eq!(world.weir.stop().code(), 0);
    });
}

#[test]
fn device_that_goes_and_comes_around_a_reload_is_on_the_fast_road_by_the_new_rules() {
    for (device, fail) in [("lan0", "open"), ("wan0", "open"), ("lan0", "closed")] {
        for gone_while_reloading in [true, false] {
            play(&Settings { fail, ..Settings::default() }, |world| {
                let fail_line = |text: String| text.replace("fail = \"open\"", &format!("fail = \"{fail}\""));
                if !gone_while_reloading {
                    world.weir.write_config(&fail_line(other()));
                    assert_eq!(world.weir.finish(world.weir.command("reload")).code(), 0);
                }
                world.sh(&world.lab.gateway, &format!("ip link del {device}"));
                until("the port is lost", || lost(world, device));
                if gone_while_reloading {
                    world.weir.write_config(&fail_line(other()));
                    let done = world.weir.finish(world.weir.command("reload"));
                    assert_eq!(done.code(), 0, "{done:?}");
                }
                make_again(world, device);
                until("the port is back", || !lost(world, device));
                all_roads(world);
                is_whole(world);
                for family in Family::BOTH {
                    exchange_intact(&mut world.connect(family, HTTP), ALLOWED, 100_000);
                }
                assert_idle(&world.weir);
                world.weir.stop();
            });
        }
    }
}

#[test]
fn link_that_goes_down_and_up_after_a_reload_holds_a_download_up_and_no_more() {
    for device in ["lan0", "wan0"] {
        play(&Settings::default(), |world| {
            keep_addresses(world);
            let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
            reload(world);
            world.sh(&world.lab.gateway, &format!("ip link set {device} down"));
            // The moment itself: nothing is waited for.
            std::thread::sleep(std::time::Duration::from_millis(100));
            world.sh(&world.lab.gateway, &format!("ip link set {device} up"));
            restore_routes(world);
            downloads.into_iter().for_each(Download::finish);
            all_roads(world);
            is_whole(world);
            assert_idle(&world.weir);
            world.before = weir_control::lab::host_state(&world.lab.gateway).expect("looked at");
            world.weir.stop();
        });
    }
}

#[test]
fn address_that_is_added_after_a_reload_is_not_intercepted() {
    play(&Settings::default(), |world| {
        reload(world);
        let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
        for (family, address) in [(Family::V4, "192.0.2.200"), (Family::V6, "2001:db8:2::200")] {
            let own: SocketAddr = SocketAddr::new(address.parse().expect("an address"), HTTP);
            let (length, how) = if own.is_ipv4() { (32, "") } else { (128, "nodad") };
            world.sh(&world.lab.gateway, &format!("ip addr add {address}/{length} dev wan0 {how}"));
            let listener = world.lab.gateway.run(|| std::net::TcpListener::bind(own)).expect("its own");
            for _ in 0..2 {
                assert!(is_served(world, family, &listener), "{own}");
            }
            world.sh(&world.lab.gateway, &format!("ip addr del {address}/{length} dev wan0"));
        }
        downloads.into_iter().for_each(Download::finish);
    });
}

#[test]
fn routes_neighbours_and_mtus_that_change_after_a_reload_are_followed_under_downloads() {
    play(&Settings::default(), |world| {
        settle_behind(world);
        Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
        let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
        reload(world);
        for family in Family::BOTH {
            let ((net, target), ip, servers) = (behind(family), ip(family), family.addresses().servers);
            let gateway = &world.lab.gateway;
            // A default route that appears, one that changes under a connection, and one that is withdrawn.
            assert!(!reaches(world, family, target), "there is no route");
            world.sh(gateway, &format!("{ip} route add default via {}", servers[0]));
            becomes_fast(world, family, target);
            let mut stream = world.connect_to(family, SocketAddr::new(target, HTTP)).expect("a route");
            fetch_intact(&mut stream, 1000);
            world.sh(gateway, &format!("{ip} route add {net} via {}", servers[1]));
            fetch_intact(&mut stream, 100_000);
            world.sh(gateway, &format!("{ip} route del {net}; {ip} route del default"));
            until("the route is gone", || !reaches(world, family, target));
            world.sh(gateway, &format!("{ip} route add default via {}", servers[2]));
            fetch_intact(&mut stream, 100_000);
            world.sh(gateway, &format!("{ip} route del default"));
            // A neighbour that moves, as its own announcement would say.
            let (mac, usual) = ("02:77:00:00:00:99", usual(family));
            world.sh(&world.lab.server, &format!("ip link set server0 address {mac}"));
            for family in Family::BOTH {
                let moved = format!(
                    "ip neigh replace {} lladdr {mac} dev wan0 nud reachable",
                    crate::changes::usual(family)
                );
                world.sh(gateway, &moved);
            }
            becomes_fast(world, family, usual);
            world.sh(gateway, "ip link set wan0 mtu 1400");
            upload_intact(&mut world.connect(family, HTTP), ALLOWED, 200_000);
            world.sh(gateway, "ip link set wan0 mtu 1500");
        }
        downloads.into_iter().for_each(Download::finish);
    });
}
