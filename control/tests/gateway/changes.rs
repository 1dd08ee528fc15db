//! The host changes under traffic: devices, routes, neighbours, MTUs. weir follows without a restart.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use weir_control::demo::stage::Family;
use weir_control::lab::Namespace;
use weir_sys::steering::{AttachMode, Sizes, Steering};

use crate::config::{ALLOWED, DENIED, Settings};
use crate::express::open_wires;
use crate::idle::assert_idle;
use crate::weir::{PATIENCE, until};
use crate::world::{Download, HTTP, World, exchange_intact, fetch, fetch_intact, play, upload_intact};

/// A device's name before it has the one that weir waits for.
const UNBORN: &str = "unborn";
const BODY: u64 = 3 << 20;
const RATE: u64 = 1 << 20;

/// A network behind the usual server.
pub fn behind(family: Family) -> (&'static str, IpAddr) {
    match family {
        Family::V4 => ("198.51.100.0/24", "198.51.100.7".parse().expect("an address")),
        Family::V6 => ("2001:db8:7::/64", "2001:db8:7::7".parse().expect("an address")),
    }
}

pub fn ip(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip -6" }
}

/// The server answers on an address behind itself, too.
pub fn settle_behind(world: &World<'_>) {
    world.sh(
        &world.lab.server,
        "ip addr add 198.51.100.7/32 dev lo; ip addr add 2001:db8:7::7/128 dev lo nodad",
    );
}

/// Until a new connection to `target` is on the fast road.
#[track_caller]
pub fn becomes_fast(world: &World<'_>, family: Family, target: IpAddr) {
    until("a new connection is on the fast road", || {
        let Ok(mut stream) = world.connect_to(family, SocketAddr::new(target, HTTP)) else { return false };
        fetch_intact(&mut stream, 1000);
        let local = stream.local_addr().expect("connected");
        world.weir.find_flow(local).is_some_and(|flow| flow["road"] == "fast")
    });
}

/// Whether a new connection gets an answer. Where there is no route, the relay takes it, and resets it.
pub fn reaches(world: &World<'_>, family: Family, target: IpAddr) -> bool {
    let stream = world.connect_to(family, SocketAddr::new(target, HTTP));
    stream.is_ok_and(|mut stream| fetch(&mut stream, ALLOWED, 1000).is_ok())
}

pub fn usual(family: Family) -> IpAddr {
    family.addresses().servers[0]
}

#[test]
fn device_that_is_removed_and_made_again_is_taken_back() {
    for (device, fail) in [("lan0", "open"), ("wan0", "open"), ("lan0", "closed")] {
        play(&Settings { fail, ..Settings::default() }, |world| {
            Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
            let downloads = (device == "wan0")
                .then(|| Family::BOTH.map(|family| Download::start(world, family, BODY, RATE)));
            world.sh(&world.lab.gateway, &format!("ip link del {device}"));
            until("the port is lost", || lost(world, device));
            make_again(world, device);
            until("the port is back", || !lost(world, device));
            // What the server's side had sent on is sent again: the addresses are the same.
            downloads.into_iter().flatten().for_each(Download::finish);
            for family in Family::BOTH {
                becomes_fast(world, family, usual(family));
                exchange_intact(&mut world.connect(family, HTTP), ALLOWED, 100_000);
            }
            until("weir is well", || world.weir.status()["healthy"] == true);
            assert_idle(&world.weir);
            world.weir.stop();
        });
    }
}

#[test]
fn closed_box_lets_nothing_unjudged_through_a_device_that_is_back_and_not_yet_on_the_fast_road() {
    play(&Settings { fail: "closed", ..Settings::default() }, |world| {
        Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
        // They are open, and their clients have said nothing yet.
        let silent = Family::BOTH.map(|family| world.connect(family, HTTP));
        let received =
            silent.each_ref().map(|stream| world.received_from(stream.local_addr().expect("connected")));
        assert_eq!(received, [0, 0]);
        world.sh(&world.lab.gateway, "ip link del lan0");
        until("the port is lost", || lost(world, "lan0"));
        // Somebody else's program is on it: weir's cannot be, and the kernel has what comes by it.
        let mut foreign = None;
        make_with(world, "lan0", "", "", || foreign = Some(attach_foreign(world, UNBORN)));
        let seen = || world.weir.status().to_string().contains("taken by another XDP program");
        until("weir has seen it", seen);
        for mut stream in silent {
            let client = stream.local_addr().expect("connected");
            let request = format!("GET / HTTP/1.1\r\nhost: {DENIED}\r\n\r\n");
            stream.write_all(request.as_bytes()).expect("it is open");
            std::thread::sleep(Duration::from_millis(700));
            assert_eq!(
                world.received_from(client),
                0,
                "{client}: octets of a refused name reached the server"
            );
        }
        // New connections are the relay's, and judged.
        for family in Family::BOTH {
            until("the relay serves", || reaches(world, family, usual(family)));
            let mut stream = world.connect(family, HTTP);
            assert!(fetch(&mut stream, DENIED, 100).is_err(), "{family:?}");
        }
        drop(foreign);
        until("the port is back", || !lost(world, "lan0"));
        Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
        let rules = world.sh(&world.lab.gateway, "nft list table inet weir");
        assert!(!rules.contains("lost port"), "{rules}");
        world.weir.stop();
    });
}

/// A steering program that lets everything pass, and is not weir's.
fn attach_foreign(world: &World<'_>, device: &str) -> Steering {
    world.lab.gateway.run(|| {
        let mut steering = Steering::load(&Sizes::default()).expect("root");
        let index = weir_sys::ethtool::index_of(device).expect("it is there");
        steering.attach(device, index, AttachMode::Native).expect("nobody else's is on it");
        steering
    })
}

pub fn lost(world: &World<'_>, device: &str) -> bool {
    let status = world.weir.status();
    let ports = status["ports"].as_array().expect("ports");
    ports.iter().any(|port| port["device"] == device && port["lost"] == true)
}

/// As the lab made it.
pub fn make_again(world: &World<'_>, device: &str) {
    make_as(world, device, "", "");
}

/// As the lab made it, but for what `ip link add` is told of the device and of its other end.
pub fn make_as(world: &World<'_>, device: &str, of_device: &str, of_peer: &str) {
    make_with(world, device, of_device, of_peer, || ());
}

/// As [`make_as`]; `first` is called while the device has another name, [`UNBORN`].
fn make_with(world: &World<'_>, device: &str, of_device: &str, of_peer: &str, first: impl FnOnce()) {
    let (peer, namespace): (_, &Namespace) = match device {
        "lan0" => ("client0", &world.lab.client),
        _ => ("server0", &world.lab.server),
    };
    let (inner, outer) = if device == "lan0" { (2, 1) } else { (3, 4) };
    let file = format!("/proc/{}/fd/{}", std::process::id(), namespace.net_fd().as_raw_fd());
    let (own, others, default) = match device {
        "lan0" => (
            "10.77.1.1/24 fd77:1::1/64",
            "10.77.1.2/24 10.77.1.9/24 fd77:1::2/64 fd77:1::9/64",
            "ip route add default via 10.77.1.1 src 10.77.1.2; ip -6 route add default via fd77:1::1 src fd77:1::2",
        ),
        _ => (
            "192.0.2.1/24 2001:db8:2::1/64",
            "192.0.2.10/24 192.0.2.11/24 192.0.2.12/24 2001:db8:2::10/64 2001:db8:2::11/64 2001:db8:2::12/64",
            "ip route add default via 192.0.2.1 src 192.0.2.10; ip -6 route add default via 2001:db8:2::1 src 2001:db8:2::10",
        ),
    };
    let add = |addresses: &str, device: &str| -> String {
        addresses.split(' ').map(|a| format!("ip addr add {a} dev {device}; ")).collect()
    };
    world.sh(
        &world.lab.gateway,
        &format!(
            "set -e; ip link add {UNBORN} address 02:77:00:00:00:0{inner} {of_device} type veth \
             peer name {peer} address 02:77:00:00:00:0{outer} {of_peer}
             ip link set {peer} netns {file}"
        ),
    );
    first();
    let born =
        format!("set -e; ip link set {UNBORN} name {device}; {}ip link set {device} up", add(own, device));
    world.sh(&world.lab.gateway, &born);
    world.sh(namespace, &format!("set -e; {}ip link set {peer} up", add(others, peer)));
    // IPv6 takes routes once the link is up, and sources once they are no longer tentative.
    let wait = format!(
        "for i in $(seq 2000); do ip -6 addr show dev {peer} scope link | grep -q fe80 && \
         ! ip -6 addr show dev {peer} tentative | grep -q inet6 && break; sleep 0.01; done"
    );
    world.sh(namespace, &format!("{wait}; {default}"));
}

#[test]
fn neighbour_that_moves_under_a_download_is_followed() {
    play(&Settings::default(), |world| {
        Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
        let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
        world.sh(&world.lab.server, "ip link set server0 address 02:77:00:00:00:99");
        // What a gratuitous ARP reply and an unsolicited advertisement do.
        for address in [Family::V4, Family::V6].map(usual) {
            world.sh(
                &world.lab.gateway,
                &format!("ip neigh replace {address} lladdr 02:77:00:00:00:99 dev wan0 nud reachable"),
            );
        }
        downloads.into_iter().for_each(Download::finish);
        for family in Family::BOTH {
            becomes_fast(world, family, usual(family));
        }
    });
}

#[test]
fn default_route_that_appears_later_is_used_and_one_that_is_withdrawn_is_not() {
    play(&Settings::default(), |world| {
        settle_behind(world);
        for family in Family::BOTH {
            let (ip, router, (_, target)) = (ip(family), usual(family), behind(family));
            let add = format!("{ip} route add default via {router}");
            assert!(!reaches(world, family, target), "there is no route");
            world.sh(&world.lab.gateway, &add);
            becomes_fast(world, family, target);
            let mut stream = world.connect_to(family, SocketAddr::new(target, HTTP)).expect("a route");
            fetch_intact(&mut stream, 1000);
            world.sh(&world.lab.gateway, &format!("{ip} route del default"));
            until("the route is gone", || !reaches(world, family, target));
            // The connection waits, and goes on when there is a way again.
            world.sh(&world.lab.gateway, &add);
            fetch_intact(&mut stream, 100_000);
            world.sh(&world.lab.gateway, &format!("{ip} route del default"));
        }
    });
}

#[test]
fn route_that_changes_under_a_connection_is_followed() {
    play(&Settings::default(), |world| {
        settle_behind(world);
        for family in Family::BOTH {
            let ((net, target), ip, servers) = (behind(family), ip(family), family.addresses().servers);
            world.sh(&world.lab.gateway, &format!("{ip} route add {net} via {}", servers[0]));
            becomes_fast(world, family, target);
            let mut stream = world.connect_to(family, SocketAddr::new(target, HTTP)).expect("a route");
            fetch_intact(&mut stream, 1000);
            for router in [servers[1], servers[2], servers[0]] {
                world.sh(&world.lab.gateway, &format!("{ip} route replace {net} via {router}"));
                fetch_intact(&mut stream, 100_000);
            }
            world.sh(&world.lab.gateway, &format!("{ip} route del {net}"));
        }
    });
}

#[test]
fn mtu_that_shrinks_is_told_to_senders_and_one_that_grows_takes_the_port_off_the_fast_road() {
    play(&Settings::default(), |world| {
        Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
        world.sh(&world.lab.gateway, "ip link set wan0 mtu 1400");
        for family in Family::BOTH {
            let mut stream = world.connect(family, HTTP);
            upload_intact(&mut stream, ALLOWED, 200_000);
        }
        world.sh(&world.lab.gateway, "ip link set wan0 mtu 1500");
        world.sh(&world.lab.gateway, "ip link set lan0 mtu 3000");
        until("the port is off the fast road", || lost(world, "lan0"));
        let status = world.weir.status();
        assert!(status["unhealthy"].to_string().contains("MTU of 3000"), "{status}");
        for family in Family::BOTH {
            fetch_intact(&mut world.connect(family, HTTP), 1000);
        }
        world.sh(&world.lab.gateway, "ip link set lan0 mtu 1500");
        until("the port is on the fast road", || !lost(world, "lan0"));
        Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, usual(family)));
    });
}

#[test]
fn mtu_that_shrinks_to_the_least_of_ipv6_lets_downloads_go_on_whose_server_does_no_timestamps() {
    play(&Settings { handshake: "answer", express: "always", ..Settings::default() }, |world| {
        world.sh(&world.lab.server, "sysctl -qw net.ipv4.tcp_timestamps=0");
        // Where there is a lane, it is told why a connection is not in it.
        open_wires(world);
        world.meet_neighbours();
        // Of this server nothing is known yet: clients are promised timestamps, and weir makes them.
        let downloads = Family::BOTH.map(|family| {
            let target = SocketAddr::new(family.addresses().servers[1], HTTP);
            Download::start_on(world.connect_to(family, target).expect("the client can connect"), BODY, RATE)
        });
        for download in &downloads {
            until("weir makes its timestamps", || {
                world.weir.flow(download.client)["lane_reason"] == "own-clock"
            });
        }
        world.sh(&world.lab.gateway, "ip link set lan0 mtu 1280");
        downloads.into_iter().for_each(Download::finish);
        world.sh(&world.lab.gateway, "ip link set lan0 mtu 1500");
    });
}

/// Whether a connection to an address of the gateway, and what is said in it, comes to the gateway's own listener there.
pub fn is_served(world: &World<'_>, family: Family, listener: &TcpListener) -> bool {
    let Ok(mut stream) = world.connect_to(family, listener.local_addr().expect("bound")) else {
        return false;
    };
    let client = stream.local_addr().expect("connected");
    let request = format!("GET / HTTP/1.1\r\nhost: {DENIED}\r\n\r\n");
    if stream.write_all(request.as_bytes()).is_err() {
        return false;
    }
    listener.set_nonblocking(true).expect("an option");
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match listener.accept() {
            Ok((mut served, peer)) if peer == client => {
                served.set_nonblocking(false).expect("an option");
                served.set_read_timeout(Some(PATIENCE)).expect("an option");
                let mut word = [0; 4];
                return served.read_exact(&mut word).is_ok() && &word == b"GET ";
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    false
}

#[test]
fn address_that_is_added_is_not_intercepted() {
    play(&Settings::default(), |world| {
        for (family, address) in [(Family::V4, "192.0.2.200"), (Family::V6, "2001:db8:2::200")] {
            let own: SocketAddr = SocketAddr::new(address.parse().expect("an address"), HTTP);
            let (length, how) = if own.is_ipv4() { (32, "") } else { (128, "nodad") };
            world.weir.signal(Signal::STOP);
            world.sh(&world.lab.gateway, &format!("ip addr add {address}/{length} dev wan0 {how}"));
            let listener = world.lab.gateway.run(|| std::net::TcpListener::bind(own)).expect("its own");
            // Nobody tells steering of it: it asks the kernel.
            for _ in 0..2 {
                assert!(is_served(world, family, &listener), "{own}");
            }
            world.weir.signal(Signal::CONT);
            for _ in 0..2 {
                assert!(is_served(world, family, &listener), "{own}");
            }
            let opened = world.weir.count("flows", "opened");
            world.connect_to(family, own).expect("the box answers");
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert_eq!(world.weir.count("flows", "opened"), opened);
            world.sh(&world.lab.gateway, &format!("ip addr del {address}/{length} dev wan0"));
        }
    });
}
