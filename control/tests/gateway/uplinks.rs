//! A second uplink beside the first, and routes by both: multipath on the fast road.
//!
//! ```text
//!   gateway namespace                                     server namespace
//!   wan0  192.0.2.1, 2001:db8:2::1 ---------------- server0  192.0.2.10, 2001:db8:2::10
//!   wan1  203.0.113.1, fd77:2::1   ---------------- server1  203.0.113.10, fd77:2::10
//!                                                   lo       198.51.100.7, 2001:db8:7::7
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;

use serde_json::Value;
use weir_control::demo::client;
use weir_control::demo::stage::Family;
use weir_control::lab::{Capture, CapturedFrame, host_state};

use crate::changes::{becomes_fast, behind, ip, lost, make_again, reaches, settle_behind};
use crate::config::{ALLOWED, DENIED, Settings};
use crate::idle::assert_idle;
use crate::send::POOLED;
use crate::weir::{PATIENCE, until};
use crate::world::{Download, HTTP, World, exchange_intact, fetch, fetch_intact, prepare, whoami};

const BODY: u64 = 4 << 20;
const RATE: u64 = 1 << 19;

/// Plays a test with both uplinks.
fn play(mut settings: Settings, test: impl FnOnce(&mut World<'_>)) {
    settings.more += "[[port]]\nname = \"wan1\"\ndevice = \"wan1\"\n";
    beside(&settings, test);
}

/// As [`play`], where the second uplink is a port only if `settings` say so.
fn beside(settings: &Settings, test: impl FnOnce(&mut World<'_>)) {
    prepare(settings, |world| {
        let file = format!("/proc/{}/fd/{}", std::process::id(), world.lab.server.net_fd().as_raw_fd());
        world.sh(
            &world.lab.gateway,
            &format!(
                "set -e; ip link add wan1 type veth peer name server1; ip link set server1 netns {file}
                 ip addr add 203.0.113.1/24 dev wan1; ip addr add fd77:2::1/64 dev wan1 nodad; ip link set wan1 up"
            ),
        );
        connect_uplink(world);
        settle_behind(world);
        world.sh(
            &world.lab.server,
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
        );
        // The kernel tells of a new carrier up to a second later (linkwatch); IPv6 takes up its work only then.
        until("the second uplink is usable", || {
            let text =
                world.sh(&world.lab.gateway, "ip addr show dev wan1 up; ip -6 addr show dev wan1 scope link");
            text.contains("state UP") && text.contains("fe80::") && !text.contains("tentative")
        });
        world.before = host_state(&world.lab.gateway).expect("the gateway can be looked at");
        world.weir.start();
        test(world);
        if world.weir.is_running() {
            assert_idle(&world.weir);
        }
        // Routes of a test are not weir's.
        for family in Family::BOTH {
            world.sh(&world.lab.gateway, &format!("{} route flush {}", ip(family), behind(family).0));
        }
    });
}

/// The far end of the second uplink comes up, with its addresses.
fn connect_uplink(world: &World<'_>) {
    world.sh(
        &world.lab.server,
        "ip link set server1 up; ip addr replace 203.0.113.10/24 dev server1; ip addr replace fd77:2::10/64 dev server1 nodad",
    );
}

/// Its routers, by the first uplink and by the second.
fn routers(family: Family) -> [IpAddr; 2] {
    let second = match family {
        Family::V4 => "203.0.113.10",
        Family::V6 => "fd77:2::10",
    };
    [family.addresses().servers[0], second.parse().expect("an address")]
}

/// Leads what goes to `net` over both uplinks, and waits until connections do.
fn lead_over_both(world: &World<'_>, family: Family, net: &str) {
    let [first, second] = routers(family);
    world.sh(
        &world.lab.gateway,
        &format!("{} route add {net} nexthop via {first} dev wan0 nexthop via {second} dev wan1", ip(family)),
    );
    until("connections take both uplinks", || {
        let ways: BTreeSet<u64> = (0..8)
            .filter_map(|_| {
                let target = SocketAddr::new(behind(family).1, HTTP);
                let mut stream = world.connect_to(family, target).ok()?;
                fetch(&mut stream, ALLOWED, 1000).ok()?;
                way(world, &stream)
            })
            .collect();
        ways.len() == 2
    });
}

fn connect(world: &World<'_>, family: Family) -> TcpStream {
    let mut stream =
        world.connect_to(family, SocketAddr::new(behind(family).1, HTTP)).expect("there is a route");
    fetch_intact(&mut stream, 1000);
    stream
}

/// The port that a connection leaves by.
fn way(world: &World<'_>, stream: &TcpStream) -> Option<u64> {
    way_of(world, stream.local_addr().expect("connected"))
}

fn way_of(world: &World<'_>, client: SocketAddr) -> Option<u64> {
    let flow = world.weir.find_flow(client)?;
    (flow["road"] == "fast").then(|| flow["way"]["port"].as_u64())?
}

/// What comes to the servers by either uplink.
struct Far([Capture; 2]);

impl Far {
    fn watch(world: &World<'_>) -> Self {
        Self(
            ["server0", "server1"]
                .map(|device| world.lab.capture(&world.lab.server, device).expect("a capture")),
        )
    }

    /// The uplinks (1, 2: the numbers of their ports) that each client's packets to `target` came by.
    fn stop(self, target: IpAddr) -> BTreeMap<SocketAddr, BTreeSet<u64>> {
        let mut seen = BTreeMap::<SocketAddr, BTreeSet<u64>>::new();
        let of = |frame: &CapturedFrame| {
            frame.tcp().filter(|tcp| !frame.outgoing && tcp.destination.ip() == target)
        };
        for (port, capture) in (1..).zip(self.0) {
            for tcp in capture.stop().iter().filter_map(of) {
                seen.entry(tcp.source).or_default().insert(port);
            }
        }
        seen
    }
}

/// `weir explain` of a connection: all that it says of next hops.
fn explained(world: &World<'_>, from: SocketAddr, to: SocketAddr) -> String {
    let mut command = world.weir.command("explain");
    command.args(["--json", "--from", &from.to_string(), "--to", &to.to_string()]);
    let told = world.weir.finish(command);
    assert_eq!(told.code(), 0, "{told:?}");
    let told: Value = serde_json::from_str(&told.output).expect("JSON");
    assert_eq!(told["road"], "fast", "{told:#}");
    let steps = told["steps"].as_array().expect("steps").iter();
    let asked = "which of the route's ways does it take?";
    let step = steps.into_iter().find(|step| step["question"] == asked);
    step.unwrap_or_else(|| panic!("nothing is said of ways: {told:#}")).to_string()
}

#[test]
fn connections_spread_over_both_uplinks_and_answers_come_by_either() {
    for handshake in ["through", "answer"] {
        play(Settings { handshake, ..Settings::default() }, |world| {
            for family in Family::BOTH {
                let ((net, target), clients) = (behind(family), family.addresses().client);
                lead_over_both(world, family, net);
                // The servers' own choice: half of the answers come by the other uplink.
                let (back, gateways) = match family {
                    Family::V4 => ("10.77.1.0/24", ["192.0.2.1", "203.0.113.1"]),
                    Family::V6 => ("fd77:1::/64", ["2001:db8:2::1", "fd77:2::1"]),
                };
                let hash = if family == Family::V4 { "net.ipv4" } else { "net.ipv6" };
                world.sh(
                    &world.lab.server,
                    &format!(
                        "sysctl -qw {hash}.fib_multipath_hash_policy=1; {} route add {back} src {target} nexthop via {} dev server0 nexthop via {} dev server1",
                        ip(family), gateways[0], gateways[1]
                    ),
                );
                let relayed = world.weir.count("flows", "relayed");
                let (far, mut told) = (Far::watch(world), BTreeMap::new());
                for n in 0..24 {
                    let (from, to) = (SocketAddr::new(clients, 20_000 + n), SocketAddr::new(target, HTTP));
                    let before = explained(world, from, to);
                    let mut stream = client::connect(&world.lab.client, from, to).expect("there is a route");
                    fetch_intact(&mut stream, 20_000);
                    let port = way(world, &stream).expect("it is on the fast road");
                    let device = format!(" on wan{} of 2: ", port - 1);
                    assert!(before.contains(&device), "{device} {before}");
                    assert!(before.contains("the kernel would choose "), "{before}");
                    assert!(explained(world, from, to).contains(&device));
                    told.insert(from, BTreeSet::from([port]));
                    exchange_intact(&mut stream, ALLOWED, 20_000);
                }
                let mut seen = far.stop(target);
                // Those that found out whether the routes are known may still be ending.
                seen.retain(|from, _| told.contains_key(from));
                assert_eq!(seen, told, "{family:?}");
                let used: BTreeSet<u64> = seen.values().flatten().copied().collect();
                assert_eq!(used, [1, 2].into(), "only one uplink was used: {seen:?}");
                assert_eq!(world.weir.count("flows", "relayed"), relayed, "{family:?}");
                world.sh(&world.lab.gateway, &format!("{} route del {net}", ip(family)));
            }
            assert_eq!(world.weir.count("drops", "wrong-port"), 0);
        });
    }
}

#[test]
fn uplink_that_goes_down_under_transfers_moves_its_own_and_they_stay_when_it_is_back() {
    play(Settings::default(), |world| {
        for family in Family::BOTH {
            let (net, target) = behind(family);
            lead_over_both(world, family, net);
            let world = &*world;
            let start = || Download::start_on(connect(world, family), BODY, RATE);
            let downloads: Vec<Download> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..12).map(|_| scope.spawn(start)).collect();
                all.into_iter().map(|one| one.join().expect("it begins")).collect()
            });
            let ways = || -> Vec<Option<u64>> { downloads.iter().map(|d| way_of(world, d.client)).collect() };
            let before = ways();
            assert!(before.contains(&Some(1)) && before.contains(&Some(2)), "{before:?}");
            world.sh(&world.lab.server, "ip link set server1 down");
            until("all go by the first uplink", || ways().iter().all(|way| *way == Some(1)));
            downloads.iter().for_each(|download| download.goes_on(BODY / 16));
            let far = Far::watch(world);
            connect_uplink(world);
            until("new connections take the second one again", || {
                way(world, &connect(world, family)) == Some(2)
            });
            downloads.iter().for_each(|download| download.goes_on(BODY / 16));
            let clients: BTreeSet<SocketAddr> = downloads.iter().map(|download| download.client).collect();
            downloads.into_iter().for_each(Download::finish);
            for (client, uplinks) in
                far.stop(target).into_iter().filter(|(client, _)| clients.contains(client))
            {
                assert_eq!(uplinks, [1].into(), "{client} has moved back");
            }
            world.sh(&world.lab.gateway, &format!("{} route del {net}", ip(family)));
        }
    });
}

/// Leads what goes to `net` by the first uplink, and by the second when that is gone; answers likewise.
fn prefer_first(world: &World<'_>, family: Family) {
    let ((net, _), ip, [first, second]) = (behind(family), ip(family), routers(family));
    world.sh(
        &world.lab.gateway,
        &format!(
            "set -e; {ip} route add {net} via {first} dev wan0 metric 10; {ip} route add {net} via {second} dev wan1 metric 20"
        ),
    );
    let gateway = if family == Family::V4 { "203.0.113.1" } else { "fd77:2::1" };
    world.sh(&world.lab.server, &format!("{ip} route replace default via {gateway} dev server1 metric 2000"));
}

#[test]
fn uplink_that_is_removed_from_a_closed_box_lets_nothing_unjudged_out_by_another_and_is_used_again_when_it_is_back()
 {
    for is_port in [true, false] {
        let port = if is_port { "[[port]]\nname = \"wan1\"\ndevice = \"wan1\"\n" } else { "" };
        beside(&Settings { fail: "closed", more: port.to_owned(), ..Settings::default() }, |world| {
            Family::BOTH.into_iter().for_each(|family| prefer_first(world, family));
            Family::BOTH.into_iter().for_each(|family| becomes_fast(world, family, behind(family).1));
            let downloads = Family::BOTH.map(|family| Download::start_on(connect(world, family), BODY, RATE));
            // They are open, and their clients have said nothing yet.
            let silent = Family::BOTH.map(|family| {
                world.connect_to(family, SocketAddr::new(behind(family).1, HTTP)).expect("there is a route")
            });
            world.sh(&world.lab.gateway, "ip link del wan0");
            until("the port is lost", || lost(world, "wan0"));
            let clients = silent.each_ref().map(|stream| stream.local_addr().expect("connected"));
            for mut stream in silent {
                let request = format!("GET / HTTP/1.1\r\nhost: {DENIED}\r\n\r\n");
                stream.write_all(request.as_bytes()).expect("it is open");
                // It is judged, and refused.
                stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                assert!(stream.read(&mut [0; 1]).is_err(), "port {is_port}: {:?}", stream.local_addr());
            }
            for family in Family::BOTH {
                let target = behind(family).1;
                until("new connections go by the other uplink", || reaches(world, family, target));
                let denied = world.connect_to(family, SocketAddr::new(target, HTTP));
                let answer = denied.and_then(|mut stream| fetch(&mut stream, DENIED, 100));
                assert!(answer.is_err(), "port {is_port}, {family:?}: {answer:?}");
            }
            downloads.iter().for_each(|download| download.goes_on(BODY / 16));
            assert_eq!(clients.map(|client| world.received_from(client)), [0, 0], "port {is_port}");
            make_again(world, "wan0");
            for family in Family::BOTH {
                let ((net, _), first) = (behind(family), routers(family)[0]);
                let ip = ip(family);
                world.sh(&world.lab.gateway, &format!("{ip} route add {net} via {first} dev wan0 metric 10"));
            }
            until("the port is back", || !lost(world, "wan0"));
            downloads.into_iter().for_each(Download::finish);
            for family in Family::BOTH {
                let target = behind(family).1;
                becomes_fast(world, family, target);
                let (far, mut stream) = (Far::watch(world), connect(world, family));
                let client = stream.local_addr().expect("connected");
                exchange_intact(&mut stream, ALLOWED, 20_000);
                assert_eq!(far.stop(target)[&client], [1].into(), "it takes the first uplink again");
            }
            assert_eq!(world.weir.status()["healthy"], true);
            assert_idle(&world.weir);
            // The device is another one: there is nothing to compare with.
            world.weir.stop();
        });
    }
}

#[test]
fn routes_over_both_uplinks_that_are_withdrawn_and_a_default_route_that_appears_are_followed() {
    play(Settings::default(), |world| {
        for family in Family::BOTH {
            let ((net, target), ip, [first, second]) = (behind(family), ip(family), routers(family));
            lead_over_both(world, family, net);
            let mut streams: Vec<TcpStream> = (0..24).map(|_| connect(world, family)).collect();
            let ways = |streams: &[TcpStream]| -> BTreeSet<Option<u64>> {
                streams.iter().map(|stream| way(world, stream)).collect()
            };
            assert_eq!(ways(&streams), [Some(1), Some(2)].into());
            world.sh(&world.lab.gateway, &format!("{ip} route del {net}"));
            until("there is no route", || !reaches(world, family, target));
            // One way, and then a default route by both, of nexthop objects.
            world.sh(&world.lab.gateway, &format!("{ip} route add {net} via {second} dev wan1"));
            streams.iter_mut().for_each(|stream| fetch_intact(stream, 20_000));
            world.sh(
                &world.lab.gateway,
                &format!(
                    "set -e; {ip} nexthop add id 1 via {first} dev wan0; {ip} nexthop add id 2 via {second} dev wan1
                     ip nexthop add id 3 group 1/2; {ip} route add default nhid 3; {ip} route del {net}"
                ),
            );
            streams.iter_mut().for_each(|stream| fetch_intact(stream, 20_000));
            until("the default route is followed", || ways(&streams) == [Some(1), Some(2)].into());
            becomes_fast(world, family, target);
            streams.iter_mut().for_each(|stream| exchange_intact(stream, ALLOWED, 20_000));
            world.sh(&world.lab.gateway, &format!("{ip} route del default; ip nexthop flush"));
        }
    });
}

#[test]
fn pools_server_sees_the_gateways_address_of_the_uplink_that_the_connection_takes() {
    let servers = Family::BOTH.map(|family| SocketAddr::new(behind(family).1, HTTP).to_string());
    let settings = Settings {
        rules: r#"{ host = ["pool.example"], action = "send", pool = "pool" }"#,
        more: format!("[[pool]]\nname = \"pool\"\nservers = {servers:?}\nsource = \"gateway\"\n"),
        ..Settings::default()
    };
    for handshake in ["answer", "through"] {
        play(Settings { handshake, ..settings.clone() }, |world| {
            for family in Family::BOTH {
                let (net, target) = behind(family);
                lead_over_both(world, family, net);
                let own: [IpAddr; 2] = match family {
                    Family::V4 => ["192.0.2.1", "203.0.113.1"].map(|ip| ip.parse().unwrap()),
                    Family::V6 => ["2001:db8:2::1", "fd77:2::1"].map(|ip| ip.parse().unwrap()),
                };
                let (far, mut peers) = (Far::watch(world), BTreeSet::new());
                for _ in 0..16 {
                    let mut stream = world.connect(family, HTTP);
                    let peer: SocketAddr = whoami(&mut stream, POOLED).expect("an answer").parse().unwrap();
                    exchange_intact(&mut stream, POOLED, 20_000);
                    peers.insert(peer);
                }
                let seen = far.stop(target);
                for peer in &peers {
                    let uplink =
                        own.iter().position(|own| *own == peer.ip()).expect("an address of an uplink");
                    assert_eq!(seen[peer], [uplink as u64 + 1].into(), "{peer}");
                }
                let used: BTreeSet<IpAddr> = peers.iter().map(SocketAddr::ip).collect();
                assert_eq!(used, own.into(), "only one uplink was used");
                world.sh(&world.lab.gateway, &format!("{} route del {net}", ip(family)));
            }
        });
    }
}
