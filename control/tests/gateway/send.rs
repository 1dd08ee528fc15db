//! `send`: a connection goes to a server of a pool, chosen by the name that the client asks for. The client notices nothing.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;

use etherparse::{SlicedPacket, TransportSlice};
use weir_control::demo::origin::{Authority, Origin};
use weir_control::demo::stage::Family;
use weir_control::lab::{CapturedFrame, Namespace};

use crate::answer::{MIB, hammer, to};
use crate::config::{ALLOWED, Settings};
use crate::idle::assert_idle;
use crate::weir::until;
use crate::world::{HTTP, World, exchange_intact, fetch, play, prepare, upload_intact, whoami};

/// The name that the pool of these tests takes.
pub const POOLED: &str = "pool.example";
/// Where nobody listens.
const NOBODY: u16 = 9;
/// Both ways to a pool: weir answers the client, or takes the connection from the server that did.
pub const HANDSHAKES: [&str; 2] = ["answer", "through"];

/// The lab's server with this number, of both families.
pub fn servers(number: usize, port: u16) -> Vec<String> {
    let of = |family: Family| SocketAddr::new(family.addresses().servers[number], port).to_string();
    Family::BOTH.map(of).to_vec()
}

/// Settings that send [`POOLED`] to a pool of these servers; `more` are further lines of the pool.
pub fn sending(handshake: &'static str, servers: &[String], more: &str) -> Settings {
    Settings {
        handshake,
        rules: r#"
            { host = ["denied.example"], action = "reset" },
            { host = ["pool.example"], action = "send", pool = "pool" },
        "#,
        more: format!("[[pool]]\nname = \"pool\"\nservers = {servers:?}\n{more}\n"),
        ..Settings::default()
    }
}

#[test]
fn connection_goes_to_the_pools_server_and_shows_it_the_client() {
    for handshake in HANDSHAKES {
        play(&sending(handshake, &servers(1, HTTP), ""), |world| {
            for family in Family::BOTH {
                let watch = world.watch();
                let mut stream = world.connect(family, HTTP);
                let client = stream.local_addr().unwrap();
                assert_eq!(whoami(&mut stream, POOLED).expect("an answer"), client.to_string());
                exchange_intact(&mut stream, POOLED, MIB);
                let server = SocketAddr::new(family.addresses().servers[1], HTTP);
                assert_eq!(world.stage.records().of(client).last().map(|r| r.local), Some(server));
                let flow = world.weir.flow(client);
                assert_eq!(flow["verdict"], "send", "{flow}");
                assert_eq!(flow["server"], server.to_string(), "{flow}");
                drop(stream);
                let (near, far) = watch.stop(client);
                near.assert_clean();
                let asked = family.origin(HTTP);
                assert!(near.tcp.iter().all(|f| f.source == asked || f.destination == asked), "{family:?}");
                // The connection to where the client wanted to go ends with a reset, and got no byte.
                let (old, new): (Vec<_>, Vec<_>) =
                    far.tcp.iter().partition(|f| f.source == asked || f.destination == asked);
                assert_eq!(old.iter().any(|frame| frame.rst), handshake == "through", "{family:?} {old:?}");
                assert!(old.iter().all(|frame| frame.payload.is_empty()), "{family:?} {old:?}");
                assert!(new.iter().all(|frame| !frame.rst), "{family:?}");
            }
            world.weir.assert_count("flows", "sent", 2);
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn destination_that_is_nobodys_and_has_no_route_is_answered_and_sent() {
    play(&sending("answer", &servers(1, HTTP), ""), |world| {
        for target in ["203.0.113.80:80", "[2001:db8:4::80]:80"] {
            let target: SocketAddr = target.parse().unwrap();
            let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
            let mut stream = world.connect_to(family, target).expect("weir answers");
            exchange_intact(&mut stream, POOLED, 100_000);
        }
    });
}

#[test]
fn other_names_are_not_sent() {
    for handshake in HANDSHAKES {
        play(&sending(handshake, &servers(1, HTTP), ""), |world| {
            for family in Family::BOTH {
                let mut stream = world.connect(family, HTTP);
                let client = stream.local_addr().unwrap();
                exchange_intact(&mut stream, ALLOWED, 100_000);
                assert_eq!(world.stage.records().of(client)[0].local, family.origin(HTTP));
            }
            assert_eq!(world.weir.count("flows", "sent"), 0);
        });
    }
}

#[test]
fn server_sees_the_gateways_address_and_a_port_of_the_range() {
    for handshake in HANDSHAKES {
        let more = "source = \"gateway\"\nports = \"20000-20099\"";
        play(&sending(handshake, &servers(1, HTTP), more), |world| {
            for family in Family::BOTH {
                let mut stream = world.connect(family, HTTP);
                let seen: SocketAddr =
                    whoami(&mut stream, POOLED).expect("an answer").parse().expect("an address");
                assert_eq!(seen.ip(), family.addresses().wan_gateway, "{handshake}");
                assert!((20_000..=20_099).contains(&seen.port()), "{handshake}: {seen}");
                exchange_intact(&mut stream, POOLED, MIB);
            }
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn gateways_ports_that_are_all_taken_reset_the_next_client_until_one_is_free() {
    let more = "source = \"gateway\"\nports = \"20000-20001\"";
    play(&sending("answer", &servers(1, HTTP), more), |world| {
        for family in Family::BOTH {
            let mut both = [world.connect(family, HTTP), world.connect(family, HTTP)];
            both.iter_mut().for_each(|stream| {
                assert_eq!(fetch(stream, POOLED, 10).map(|response| response.length).ok(), Some(10));
            });
            let mut third = world.connect(family, HTTP);
            let error = fetch(&mut third, POOLED, 10).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let reason = world.weir.flow(third.local_addr().unwrap())["reason"].clone();
            assert_eq!(reason, "no-server");
        }
    });
}

#[test]
fn server_that_refuses_is_replaced_before_the_client_hears_of_it() {
    for handshake in HANDSHAKES {
        let list = [servers(1, NOBODY), servers(2, HTTP)].concat();
        play(&sending(handshake, &list, "hash = \"flow\""), |world| {
            for family in Family::BOTH {
                // A server that has failed three times is left out.
                until("a connection was tried on two servers", || {
                    let before = world.weir.count("flows", "retried");
                    let mut stream = world.connect(family, HTTP);
                    let client = stream.local_addr().unwrap();
                    exchange_intact(&mut stream, POOLED, 10_000);
                    let server = SocketAddr::new(family.addresses().servers[2], HTTP);
                    assert_eq!(world.stage.records().of(client).last().map(|r| r.local), Some(server));
                    world.weir.count("flows", "retried") > before
                });
            }
            assert_eq!(world.weir.count("flows", "failed"), 0);
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn servers_that_all_refuse_reset_the_client() {
    for handshake in HANDSHAKES {
        let list = [servers(1, NOBODY), servers(2, NOBODY)].concat();
        play(&sending(handshake, &list, ""), |world| {
            for family in Family::BOTH {
                let mut stream = world.connect(family, HTTP);
                let client = stream.local_addr().unwrap();
                let error = fetch(&mut stream, POOLED, 10).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{handshake} {family:?}");
                assert_eq!(world.weir.flow(client)["reason"], "server-refused");
            }
            world.weir.assert_count("flows", "failed", 2);
            world.weir.assert_count("flows", "retried", 2);
            assert_idle(&world.weir);
        });
    }
}

/// Of connections that all go well, one comes to be tried on two servers.
fn assert_one_is_retried(world: &World<'_>, family: Family) {
    until("a connection was tried on two servers", || {
        let before = world.weir.count("flows", "retried");
        exchange_intact(&mut world.connect(family, HTTP), POOLED, 10_000);
        world.weir.count("flows", "retried") > before
    });
}

#[test]
fn server_without_an_answer_is_replaced() {
    let list = [servers(1, HTTP), servers(2, HTTP)].concat();
    play(&sending("answer", &list, "hash = \"flow\""), |world| {
        // It drops every SYN.
        for family in Family::BOTH {
            let server = SocketAddr::new(family.addresses().servers[1], HTTP);
            world.filter_at_server(&format!("{} tcp flags & (syn | ack) == syn drop", to(server)));
        }
        for family in Family::BOTH {
            assert_one_is_retried(world, family);
        }
        assert_idle(&world.weir);
    });
}

#[test]
fn server_that_is_not_on_its_link_is_replaced() {
    for (handshake, more) in [("answer", ""), ("through", "source = \"gateway\"")] {
        let absent = ["192.0.2.99:80".to_owned(), "[2001:db8:2::99]:80".to_owned()];
        let list = [absent.to_vec(), servers(2, HTTP)].concat();
        play(&sending(handshake, &list, &format!("hash = \"flow\"\n{more}")), |world| {
            for family in Family::BOTH {
                assert_one_is_retried(world, family);
            }
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn legs_of_other_workers_carry_many_clients() {
    for (handshake, more) in [("answer", ""), ("through", ""), ("answer", "source = \"gateway\"")] {
        let more = format!("hash = \"flow\"\n{more}");
        let list = [servers(1, HTTP), servers(2, HTTP)].concat();
        play(&Settings { queues: 2, ..sending(handshake, &list, &more) }, |world| {
            hammer(world, POOLED, 64, 200_000);
            world.weir.comes_to("flows", "handed-over", 1);
            world.weir.assert_count("flows", "sent", 64);
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn packet_too_big_for_a_way_behind_the_gateway_is_told_to_the_client_in_its_own_words() {
    let far = Family::BOTH.map(|family| SocketAddr::new(far_server(family), HTTP).to_string());
    for (handshake, more) in [("answer", ""), ("through", ""), ("answer", "source = \"gateway\"")] {
        prepare(&sending(handshake, &far, more), |world| {
            let namespace = narrow_way(world);
            let authority = Authority::new().expect("a key");
            let origin = Origin::start(&namespace, &authority).expect("the ports are free");
            world.weir.start();
            for family in Family::BOTH {
                let watch = world.watch();
                let mut stream = world.connect(family, HTTP);
                let what = format!("{handshake} {more} {family:?}");
                let response =
                    fetch(&mut stream, POOLED, MIB).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(response.is_intact(), "{what}: {response:?}");
                upload_intact(&mut stream, POOLED, MIB);
                let (near, _) = watch.stop_all();
                assert!(near.iter().any(|frame| is_too_big(frame, family)), "{what}: no ICMP came");
            }
            assert_idle(&world.weir);
            world.weir.stop();
            drop(origin);
            for family in ["-4", "-6"] {
                world
                    .sh(&world.lab.gateway, &format!("ip {family} route del {}", far_prefix(family == "-6")));
            }
            world.assert_as_before();
        });
    }
}

fn far_prefix(v6: bool) -> &'static str {
    if v6 { "2001:db8:3::/64" } else { "198.51.100.0/24" }
}

fn far_server(family: Family) -> IpAddr {
    let address = if family == Family::V4 { "198.51.100.10" } else { "2001:db8:3::10" };
    address.parse().expect("an address")
}

/// A server behind the lab's, at the end of a link with an MTU of 1,400 octets.
fn narrow_way(world: &World<'_>) -> Namespace {
    let far = Namespace::new("far").expect("a namespace");
    let place = format!("/proc/{}/fd/{}", std::process::id(), far.net_fd().as_raw_fd());
    let link = format!("ip link add near0 mtu 1400 type veth peer name far0 mtu 1400 netns {place}");
    world.sh(
        &world.lab.server,
        &format!(
            "{link}; ip addr add 198.51.100.1/24 dev near0; ip addr add 2001:db8:3::1/64 dev near0 nodad
             ip link set near0 up; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
        ),
    );
    world.sh(
        &far,
        "ip addr add 198.51.100.10/24 dev far0; ip addr add 2001:db8:3::10/64 dev far0 nodad
         ip link set lo up; ip link set far0 up
         ip route add default via 198.51.100.1; ip -6 route add default via 2001:db8:3::1",
    );
    for family in Family::BOTH {
        let router = family.addresses().servers[0];
        let prefix = far_prefix(family == Family::V6);
        world.sh(&world.lab.gateway, &format!("ip route add {prefix} via {router} dev wan0"));
    }
    far
}

/// ICMP fragmentation needed (RFC 1191), or ICMPv6's packet too big.
fn is_too_big(frame: &CapturedFrame, family: Family) -> bool {
    let packet = SlicedPacket::from_ethernet(&frame.bytes).ok().and_then(|packet| packet.transport);
    match (packet, family) {
        (Some(TransportSlice::Icmpv4(icmp)), Family::V4) => (icmp.type_u8(), icmp.code_u8()) == (3, 4),
        (Some(TransportSlice::Icmpv6(icmp)), Family::V6) => icmp.type_u8() == 2,
        _ => false,
    }
}

#[test]
fn packet_too_big_for_the_way_out_is_told_to_the_client_in_its_own_words() {
    for more in ["", "source = \"gateway\""] {
        prepare(&sending("through", &servers(1, HTTP), more), |world| {
            world.sh(&world.lab.gateway, "ip link set wan0 mtu 1400");
            world.weir.start();
            for family in Family::BOTH {
                upload_intact(&mut world.connect(family, HTTP), POOLED, MIB);
            }
            assert_idle(&world.weir);
            world.weir.stop();
            world.sh(&world.lab.gateway, "ip link set wan0 mtu 1500");
            world.assert_as_before();
        });
    }
}

#[test]
fn neighbour_that_is_not_known_costs_time_and_nothing_else() {
    for (handshake, more) in [("answer", ""), ("through", ""), ("answer", "source = \"gateway\"")] {
        prepare(&sending(handshake, &servers(1, HTTP), more), |world| {
            world.weir.start();
            for family in Family::BOTH {
                let version = if family == Family::V4 { "-4" } else { "-6" };
                world.sh(&world.lab.gateway, &format!("ip {version} neigh flush all"));
                let mut stream = world.connect(family, HTTP);
                exchange_intact(&mut stream, POOLED, 100_000);
            }
            world.weir.comes_to("punts", "no-neighbour", 1);
        });
    }
}
