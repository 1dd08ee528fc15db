//! Addresses that the box got a moment ago: the kernel has them, and nobody has told the program yet.

use std::process::Command;
use std::time::{Duration, Instant};

use super::packets::{FAMILIES, Family, Flags};
use super::*;

/// A box that forwards, has a network at each side, and does not know of new addresses.
fn route_between() {
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/{key}"), "1").unwrap();
    }
    // A rule of somebody's: from then on the tables `local` and `main` are two. weir's own rules do that too.
    ip(&["rule", "add", "fwmark", "0x77", "lookup", "177"]);
    let addresses =
        [(LAN, "10.1.0.1/24"), (WAN, "192.0.2.1/24"), (LAN, "fd00::1/64"), (WAN, "2001:db8::1/64")];
    for (device, address) in addresses {
        let nodad = if address.contains("::") { &["nodad"][..] } else { &[] };
        ip(&[&["addr", "add", address, "dev", device], nodad].concat());
    }
}

fn new_address(family: &Family) -> &'static str {
    if family.is_v6() { "2001:db8::5e" } else { "192.0.2.94" }
}

fn change(what: &str, family: &Family) {
    let address = format!("{}/{}", new_address(family), if family.is_v6() { 128 } else { 32 });
    let nodad = if family.is_v6() && what == "add" { &["nodad"][..] } else { &[] };
    ip(&[&["addr", what, &address, "dev", WAN], nodad].concat());
    // An IPv6 address is the kernel's own when a work queue has come to it (net/ipv6/addrconf.c, addrconf_dad_work).
    let is_local = || {
        let found = Command::new("ip").args(["route", "get", new_address(family)]).output().unwrap();
        found.stdout.starts_with(b"local")
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_local() != (what == "add") {
        assert!(Instant::now() < deadline, "{what} {address}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn connection_to_an_address_that_nobody_has_told_the_program_of_is_the_boxs() {
    with_bench(|bench| {
        route_between();
        for family in FAMILIES {
            let address = new_address(&family);
            bench.check(
                "a server's address",
                LAN,
                &family.out(address, 80, Flags::Syn),
                (REDIRECT, Outcome::Redirect),
            );
            change("add", &family);
            bench.check("the box's", LAN, &family.out(address, 80, Flags::Syn), (PASS, Outcome::OwnAddress));
            // What follows is the kernel's, be the address known by then or not.
            bench.check("the box's", LAN, &family.out(address, 80, Flags::Data), (PASS, Outcome::KernelFlow));
            change("del", &family);
            bench.check(
                "a server's again",
                LAN,
                &family.out(address, 80, Flags::Syn),
                (REDIRECT, Outcome::Redirect),
            );
        }
    });
}

#[test]
fn destination_without_a_route_is_not_taken_for_the_boxs() {
    with_bench(|bench| {
        route_between();
        // The intercept has more than the network that is there.
        for (family, far) in FAMILIES.into_iter().zip(["192.0.2.9", "2001:db8:ff::9"]) {
            if family.is_v6() {
                bench.check("no route", LAN, &family.out(far, 80, Flags::Syn), (REDIRECT, Outcome::Redirect));
                continue;
            }
            ip(&["route", "del", "192.0.2.0/24", "dev", WAN]);
            bench.check("no route", LAN, &family.out(far, 80, Flags::Syn), (REDIRECT, Outcome::Redirect));
            ip(&["route", "add", "192.0.2.0/24", "dev", WAN]);
        }
    });
}

#[test]
fn box_that_does_not_forward_intercepts_all_the_same() {
    with_bench(|bench| {
        route_between();
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/{key}"), "0").unwrap();
        }
        for family in FAMILIES {
            bench.check(
                "not forwarded",
                LAN,
                &family.out(family.server, 80, Flags::Syn),
                (REDIRECT, Outcome::Redirect),
            );
        }
    });
}
