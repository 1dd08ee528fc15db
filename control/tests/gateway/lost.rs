//! Devices come and go under traffic: weir lives, and carries what can still be carried.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use weir_control::demo::stage::Family;

use crate::config::Settings;
use crate::crash::Greeter;
use crate::idle::assert_idle;
use crate::weir::{until, what_stays_wrong};
use crate::world::{Download, HTTP, World, fetch_intact, play, prepare};

const BODY: u64 = 3 << 20;
const RATE: u64 = 2 << 20;

#[test]
fn link_that_goes_down_and_up_holds_a_download_up_and_no_more() {
    // IPv6 loses its addresses with the link; keep_addr_on_down keeps them, and the routes come back with it.
    for (namespace, device) in [("server", "server0"), ("gateway", "wan0"), ("gateway", "lan0")] {
        play(&Settings::default(), |world| {
            keep_addresses(world);
            let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
            let of = if namespace == "server" { &world.lab.server } else { &world.lab.gateway };
            world.sh(of, &format!("ip link set {device} down"));
            std::thread::sleep(Duration::from_millis(100));
            world.sh(of, &format!("ip link set {device} up"));
            restore_routes(world);
            downloads.into_iter().for_each(Download::finish);
            until("weir is well", || world.weir.status()["healthy"] == true);
            assert_fast_again(world);
            assert_idle(&world.weir);
            world.before = weir_control::lab::host_state(&world.lab.gateway).expect("looked at");
            world.weir.stop();
        });
    }
}

pub fn keep_addresses(world: &World<'_>) {
    for namespace in [&world.lab.client, &world.lab.gateway, &world.lab.server] {
        namespace.write_sysctl("net/ipv6/conf/all/keep_addr_on_down", "1").expect("a sysctl of IPv6");
    }
}

/// Default routes go with their link.
pub fn restore_routes(world: &World<'_>) {
    world.sh(
        &world.lab.server,
        "ip route replace default via 192.0.2.1; ip -6 route replace default via 2001:db8:2::1",
    );
    world.sh(
        &world.lab.client,
        "ip route replace default via 10.77.1.1; ip -6 route replace default via fd77:1::1",
    );
}

/// New connections are on the fast road as soon as the neighbours are known again.
#[track_caller]
fn assert_fast_again(world: &World<'_>) {
    for family in Family::BOTH {
        until("a new connection is on the fast road", || {
            let mut stream = world.connect(family, HTTP);
            fetch_intact(&mut stream, 10_000);
            let flow = world.weir.find_flow(stream.local_addr().unwrap());
            flow.is_some_and(|flow| flow["road"] == "fast")
        });
    }
}

#[test]
fn device_that_is_deleted_is_told_and_the_other_port_lives_on() {
    for device in ["lan0", "wan0"] {
        prepare(&Settings::default(), |world| {
            world.weir.start();
            let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
            world.sh(&world.lab.gateway, &format!("ip link del {device}"));
            until("weir says that the port is gone", || {
                if let Some(status) = world.weir.ended() {
                    panic!("weir ended with {status}");
                }
                port_of(world, device)["lost"] == true
            });
            let other = if device == "lan0" { "wan0" } else { "lan0" };
            assert_eq!(port_of(world, other)["lost"], false);
            assert_eq!(world.weir.status()["healthy"], false);
            for family in Family::BOTH {
                reach_over(world, other, family);
            }
            assert_idle(&world.weir);
            // What somebody removes is put back as before.
            world.sh(&world.lab.gateway, "nft delete table inet weir");
            until("the table is back", || {
                world.sh(&world.lab.gateway, "nft list tables").contains("inet weir")
            });
            drop(downloads);
            world.weir.signal(Signal::TERM);
            let ended = world.weir.wait();
            assert_eq!(ended.code(), 0, "{ended:?}");
            assert!(!ended.errors.contains("ERROR"), "{}", ended.errors);
            let left = what_stays_wrong(|| {
                let text = world.sh(
                    &world.lab.gateway,
                    "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list ruleset; ip -d link",
                );
                let traces = ["proto 119", "0x77", "table inet weir", "weir-", "xdp"];
                if traces.iter().any(|trace| text.contains(trace)) { text } else { String::new() }
            });
            assert!(left.is_empty(), "something is left:\n{left}");
            assert_eq!(world.weir.clean().output, "nothing of weir's is left on this host\n");
        });
    }
}

fn port_of(world: &World<'_>, device: &str) -> Value {
    let status = world.weir.status();
    let ports = status["ports"].as_array().expect("ports").clone();
    ports.into_iter().find(|port| port["device"] == device).expect("the port is listed")
}

/// Who is on the link that is left reaches the gateway over it, on a port that is intercepted elsewhere.
fn reach_over(world: &World<'_>, device: &str, family: Family) {
    let addresses = family.addresses();
    if device == "lan0" {
        let address = std::net::SocketAddr::new(addresses.lan_gateway, HTTP);
        Greeter::start(world, true, address).assert_greets(world, family);
    } else {
        let target = std::net::SocketAddr::new(addresses.wan_gateway, HTTP);
        let _listener = world.lab.gateway.run(|| std::net::TcpListener::bind(target)).expect("free");
        let connect = || std::net::TcpStream::connect_timeout(&target, crate::weir::PATIENCE);
        world.lab.server.run(connect).expect("the gateway can be reached");
    }
}
