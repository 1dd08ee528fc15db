//! A gateway whose IPv6 default route comes from a router's advertisements (RFC 4861): it has it while weir runs, and afterwards.

use std::net::Ipv6Addr;

use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv6FlowLabel, Ipv6Header};
use weir_sys::packet::PacketSocket;

use crate::config::Settings;
use crate::ownership::{assert_same, dump, traffic};
use crate::weir::until;
use crate::world::{World, prepare};

const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);
const ROUTER_MAC: [u8; 6] = [0x02, 0x77, 0, 0, 0, 0x99];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ICMPV6: u8 = 58;

/// The frame of an advertisement (section 4.2) whose default route holds for `lifetime` seconds, with the router's link-layer
/// address and nothing else.
fn advertisement(lifetime: u16) -> Vec<u8> {
    let [high, low] = lifetime.to_be_bytes();
    let mut message = vec![134, 0, 0, 0, 0, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
    message.extend(ROUTER_MAC);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let ip = Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: message.len() as u16,
        next_header: IpNumber(ICMPV6),
        // No router has forwarded it.
        hop_limit: 255,
        source: ROUTER.octets(),
        destination: ALL_NODES.octets(),
    };
    let ether_type = EtherType::IPV6;
    let ethernet = Ethernet2Header { source: ROUTER_MAC, destination: ALL_NODES_MAC, ether_type };
    [ethernet.to_bytes().as_slice(), &ip.to_bytes(), &message].concat()
}

/// ICMPv6's checksum (RFC 8200, section 8.1) of a message of an even length.
fn checksum(message: &[u8]) -> u16 {
    let (source, destination) = (ROUTER.octets(), ALL_NODES.octets());
    let length = [0, 0, 0, message.len() as u8, 0, 0, 0, ICMPV6];
    let all = [&source[..], &destination, &length, message].concat();
    let words = all.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let once = (sum & 0xffff) + (sum >> 16);
    !((once & 0xffff) + (once >> 16)) as u16
}

/// The servers' router advertises itself.
fn advertise(world: &World<'_>, lifetime: u16) {
    let socket = world.lab.server.run(|| PacketSocket::open("server0")).expect("a packet socket");
    socket.send(&advertisement(lifetime)).expect("the link is up");
}

/// For how many seconds the gateway still has the default route; none when it has not.
fn seconds_left(world: &World<'_>) -> Option<u64> {
    let routes = world.sh(&world.lab.gateway, "ip -6 route show default");
    let learned = routes.lines().find(|line| line.contains("proto ra"))?;
    let (_, left) = learned.split_once("expires ")?;
    let digits: String = left.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn accept_ra(world: &World<'_>) -> String {
    accept_ra_of(world, "wan0")
}

fn accept_ra_of(world: &World<'_>, device: &str) -> String {
    world.sh(&world.lab.gateway, &format!("cat /proc/sys/net/ipv6/conf/{device}/accept_ra"))
}

#[test]
fn default_route_that_a_router_advertises_after_the_start_of_weir_comes() {
    prepare(&Settings::default(), |world| {
        let gateway = &world.lab.gateway;
        world.sh(
            gateway,
            "sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.wan0.accept_ra=1 net.ipv6.conf.lan0.accept_ra=1",
        );
        let before = dump(world);
        assert!(!world.sh(gateway, "ip -6 route show default").contains("default"), "the lab has one");
        for killed in [false, true] {
            world.weir.start();
            let clients_side = accept_ra_of(world, "lan0");
            assert_eq!((accept_ra(world).as_str(), clients_side.as_str()), ("2\n", "1\n"));
            advertise(world, 1800);
            until("the default route is learned", || seconds_left(world).is_some());
            traffic(world);
            if killed {
                world.weir.kill();
                assert_eq!(world.weir.clean().code(), 0);
            } else {
                assert_eq!(world.weir.stop().code(), 0);
            }
            assert!(seconds_left(world).is_some(), "weir's end has taken the route along");
            world.sh(&world.lab.gateway, "ip -6 route flush proto ra");
            assert_same(&format!("killed: {killed}"), &before, world);
        }
        world.sh(&world.lab.gateway, "sysctl -qw net.ipv6.conf.all.forwarding=1");
    });
}

#[test]
fn default_route_that_a_router_advertised_is_there_while_weir_runs_and_afterwards() {
    prepare(&Settings::default(), |world| {
        let gateway = &world.lab.gateway;
        world.sh(gateway, "sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.wan0.accept_ra=1");
        advertise(world, 1800);
        until("the default route is learned", || seconds_left(world).is_some());
        let before = dump(world);
        for (round, lifetime) in [(0, 3000), (1, 6000)] {
            world.weir.start();
            assert!(seconds_left(world).is_some(), "the kernel has deleted the route");
            assert_eq!(accept_ra(world), "2\n");
            traffic(world);
            advertise(world, lifetime);
            let least = u64::from(lifetime) - 1000;
            until("an advertisement renews the route", || seconds_left(world) > Some(least));
            if round == 0 {
                // Still weir's to keep.
                world.sh(gateway, "sysctl -qw net.ipv6.conf.wan0.accept_ra=1");
                until("accept_ra is set again", || accept_ra(world) == "2\n");
                assert_eq!(world.weir.stop().code(), 0);
            } else {
                world.weir.kill();
                assert_eq!(world.weir.clean().code(), 0);
            }
            assert_eq!(accept_ra(world), "1\n");
            assert!(seconds_left(world).is_some(), "weir's end has taken the route along");
            assert_same(&format!("round {round}"), &before, world);
        }
        world.sh(gateway, "ip -6 route flush proto ra && sysctl -qw net.ipv6.conf.all.forwarding=1");
    });
}
