//! A port's device that comes back as another one, or is taken by another: it is judged again, left to the kernel with the reason
//! while it does not fit, and on the fast road as soon as it does.

use weir_control::demo::stage::Family;

use crate::changes::{becomes_fast, lost, make_again, make_as, usual};
use crate::config::Settings;
use crate::idle::assert_idle;
use crate::weir::until;
use crate::world::{Download, HTTP, World, fetch_intact, play};

const BODY: u64 = 3 << 20;
const RATE: u64 = 1 << 20;

/// weir says that the device is not on the fast road, for this reason.
#[track_caller]
fn is_told(world: &World<'_>, device: &str, words: &[&str]) {
    let mut told = String::new();
    until(&format!("weir says of {device}: {words:?}"), || {
        let status = world.weir.status();
        told = status["unhealthy"].to_string();
        lost(world, device) && words.iter().all(|word| told.contains(word))
    });
    assert!(told.contains(&format!("device {device} ")), "{told}");
}

#[track_caller]
fn all_is_well(world: &World<'_>, device: &str) {
    until("the port is back", || !lost(world, device));
    Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
    until("weir is well", || world.weir.status()["healthy"] == true);
    assert_idle(&world.weir);
}

#[test]
fn device_that_comes_back_as_one_that_is_no_port_waits_for_one_that_is() {
    for (make, words) in [
        ("ip link add lan0 type bridge && ip link set lan0 up", ["is a bridge", "is back"]),
        ("ip tuntap add lan0 mode tun && ip link set lan0 up", ["is a tunnel (tun)", "is back"]),
        ("ip link add lan0 link wan0 type macvlan && ip link set lan0 up", ["is a macvlan", "is back"]),
    ] {
        play(&Settings::default(), |world| {
            Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
            world.sh(&world.lab.gateway, "ip link del lan0");
            until("the port is lost", || lost(world, "lan0"));
            world.sh(&world.lab.gateway, make);
            is_told(world, "lan0", &words);
            let links = world.sh(&world.lab.gateway, "ip -d link show dev lan0");
            assert!(!links.contains("xdp"), "the program is on it: {links}");
            world.sh(&world.lab.gateway, "ip link del lan0");
            make_again(world, "lan0");
            all_is_well(world, "lan0");
            world.weir.stop();
        });
    }
}

#[test]
fn device_that_comes_back_too_large_or_without_native_xdp_waits_until_it_fits() {
    for (mode, of_device, of_peer, words, mend) in [
        ("auto", "mtu 3000", "mtu 3000", ["MTU of 3000", "lan0"], "ip link set lan0 mtu 1500"),
        // The kernel gives a veth no XDP whose other end sends by more queues than it receives on.
        ("copy", "numrxqueues 1 numtxqueues 1", "numrxqueues 2 numtxqueues 2", ["native", "is back"], ""),
    ] {
        play(&Settings { mode, ..Settings::default() }, |world| {
            world.sh(&world.lab.gateway, "ip link del lan0");
            until("the port is lost", || lost(world, "lan0"));
            make_as(world, "lan0", of_device, of_peer);
            is_told(world, "lan0", &words);
            // The kernel road carries what comes in.
            Family::BOTH
                .into_iter()
                .for_each(|family| fetch_intact(&mut world.connect(family, HTTP), 10_000));
            if mend.is_empty() {
                world.sh(&world.lab.gateway, "ip link del lan0");
                make_again(world, "lan0");
            } else {
                world.sh(&world.lab.gateway, mend);
            }
            all_is_well(world, "lan0");
            world.weir.stop();
        });
    }
}

#[test]
fn port_that_a_bridge_takes_is_left_to_it_until_it_is_free_again() {
    for device in ["lan0", "wan0"] {
        play(&Settings::default(), |world| {
            Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
            let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
            let gateway = &world.lab.gateway;
            world.sh(gateway, &format!("ip link add br0 type bridge && ip link set br0 addrgenmode none up && ip link set {device} master br0"));
            is_told(world, device, &["belongs to br0 (bridge)", "nomaster"]);
            world.sh(gateway, &format!("ip link set {device} nomaster && ip link del br0"));
            all_is_well(world, device);
            downloads.into_iter().for_each(Download::finish);
        });
    }
}
