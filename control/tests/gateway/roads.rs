//! Which road a connection takes, why, and that it arrives by it.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::AtomicU64;

use serde_json::Value;
use socket2::SockRef;
use weir_control::demo::client;
use weir_control::demo::stage::Family;
use weir_control::lab::CapturedFrame;

use crate::config::{ALLOWED, DENIED, Settings};
use crate::crash::Greeter;
use crate::idle::assert_idle;
use crate::weir::{PATIENCE, until};
use crate::world::{HTTP, HTTPS, World, fetch, fetch_intact, play, prepare, upload_intact, whoami};

/// A port that no intercept has.
const OTHER: u16 = 9999;

/// The flow of `client`, when it is on the road `road`.
#[track_caller]
fn assert_road(world: &World<'_>, client: SocketAddr, road: &str) -> Value {
    let flow = world.weir.flow(client);
    assert_eq!(flow["road"], road, "{flow}");
    flow
}

#[test]
fn relay_rule_takes_the_flow_over_with_both_ends_addresses_kept() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            let other = family.addresses().other_client;
            let mut stream = world.stage.connect_from(other, family, HTTP).unwrap();
            let client = stream.local_addr().unwrap();
            assert_eq!(whoami(&mut stream, ALLOWED).expect("an answer"), client.to_string());
            fetch_intact(&mut stream, 1 << 20);
            let flow = assert_road(world, client, "relay");
            assert!(flow["rule"].as_str().is_some_and(|rule| rule.contains("test.toml:")), "{flow}");
            assert!(flow["bytes_to_client"].as_u64().is_some_and(|bytes| bytes >= 1 << 20), "{flow}");
        }
        world.weir.assert_count("flows", "relayed", 2);
        assert_idle(&world.weir);
    });
}

#[test]
fn relay_handshake_needs_no_xdp_and_judges_by_name() {
    let rules = r#"{ host = ["denied.example"], action = "reset" }"#;
    play(&Settings { handshake: "relay", rules, ..Settings::default() }, |world| {
        let links = world.sh(&world.lab.gateway, "ip -d link");
        assert!(!links.contains("xdp"), "XDP is attached:\n{links}");
        for family in Family::BOTH {
            let mut stream = world.connect(family, HTTP);
            let client = stream.local_addr().unwrap();
            assert_eq!(whoami(&mut stream, ALLOWED).expect("an answer"), client.to_string());
            fetch_intact(&mut stream, 1 << 20);
            assert_road(world, client, "relay");
            let mut stream = world.connect(family, HTTPS);
            let client = stream.local_addr().unwrap();
            let mut tls = world.stage.start_tls(ALLOWED, stream.try_clone().unwrap()).unwrap();
            let answer = client::get(&mut tls, ALLOWED, "/bytes/100000", &AtomicU64::new(0)).unwrap();
            assert!(answer.is_intact());
            assert_eq!(assert_road(world, client, "relay")["host"], ALLOWED);
            stream = world.connect(family, HTTPS);
            let client = stream.local_addr().unwrap();
            let mut tls = world.stage.start_tls(DENIED, stream).unwrap();
            let error = client::get(&mut tls, DENIED, "/bytes/1", &AtomicU64::new(0)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{family:?}");
            assert_eq!(world.received_from(client), 0, "{family:?}");
        }
    });
}

#[test]
fn flow_older_than_weir_goes_on_in_the_grace_time_on_the_kernel_road() {
    prepare(&Settings::default(), |world| {
        let mut streams = Family::BOTH.map(|family| world.connect(family, HTTP));
        streams.iter_mut().for_each(|stream| fetch_intact(stream, 100_000));
        world.weir.start();
        for stream in &mut streams {
            fetch_intact(stream, 1 << 20);
            let flow = assert_road(world, stream.local_addr().unwrap(), "kernel");
            assert_eq!(flow["reason"], "midstream", "{flow}");
        }
        world.weir.assert_count("flows", "midstream", 2);
        // Only what is on the way before the map has its entry passes the worker.
        assert!(world.weir.count("punts", "midstream") < 100);
    });
}

#[test]
fn packet_of_an_unknown_flow_after_the_grace_time_is_reset() {
    prepare(&Settings { grace: "0s", ..Settings::default() }, |world| {
        let mut streams = Family::BOTH.map(|family| world.connect(family, HTTP));
        streams.iter_mut().for_each(|stream| fetch_intact(stream, 1000));
        world.weir.start();
        for stream in &mut streams {
            let error = fetch(stream, ALLOWED, 1000).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        Family::BOTH.into_iter().for_each(|family| fetch_intact(&mut world.connect(family, HTTP), 1000));
    });
}

#[test]
fn unresolved_next_hop_costs_time_and_nothing_else() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            for server in &family.addresses().servers[1..] {
                let target = SocketAddr::new(*server, HTTP);
                let version = if server.is_ipv4() { "-4" } else { "-6" };
                world.sh(&world.lab.gateway, &format!("ip {version} neigh flush all"));
                let watch = world.watch();
                let mut stream = world.connect_to(family, target).expect("the client can connect");
                let (near, _) = watch.stop(stream.local_addr().unwrap());
                let syns = near.tcp.iter().filter(|frame| frame.syn && !frame.ack).count();
                assert!(syns <= 2, "{family:?}: {syns} SYNs were sent");
                fetch_intact(&mut stream, 100_000);
                assert_road(world, stream.local_addr().unwrap(), "fast");
            }
        }
        world.weir.comes_to("punts", "no-neighbour", 1);
    });
}

#[test]
fn packets_larger_than_the_way_out_are_answered_with_icmp() {
    for (device, direction) in [("wan0", "up"), ("lan0", "down")] {
        prepare(&Settings::default(), |world| {
            world.sh(&world.lab.gateway, &format!("ip link set {device} mtu 1400"));
            world.weir.start();
            world.meet_neighbours();
            for family in Family::BOTH {
                let mut stream = world.connect(family, HTTP);
                match direction {
                    "up" => upload_intact(&mut stream, ALLOWED, 300_000),
                    _ => fetch_intact(&mut stream, 300_000),
                }
                assert_road(world, stream.local_addr().unwrap(), "fast");
            }
            world.weir.comes_to("punts", "mtu-exceeded", 2);
            world.weir.stop();
            world.sh(&world.lab.gateway, &format!("ip link set {device} mtu 1500"));
            world.assert_as_before();
        });
    }
}

#[test]
fn packet_whose_ttl_runs_out_is_answered_with_icmp() {
    play(&Settings::default(), |world| {
        world.meet_neighbours();
        for family in Family::BOTH {
            let target = family.origin(HTTP);
            let watch = world.watch();
            let socket = world.lab.client.run(|| {
                socket2::Socket::new(socket2::Domain::for_address(target), socket2::Type::STREAM, None)
            });
            let socket = socket.unwrap();
            match family {
                Family::V4 => socket.set_ttl_v4(1).unwrap(),
                Family::V6 => socket.set_unicast_hops_v6(1).unwrap(),
            }
            let error = socket.connect_timeout(&target.into(), PATIENCE).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{family:?}");
            let (near, far) = watch.stop_all();
            let gateway = family.addresses().lan_gateway;
            assert!(near.iter().any(|frame| is_time_exceeded(frame, gateway)), "{family:?}: no ICMP came");
            let crossed = far.iter().filter_map(CapturedFrame::tcp).any(|frame| frame.destination == target);
            assert!(!crossed, "{family:?}: the packet went on");
        }
        world.weir.assert_count("punts", "ttl-expired", 2);
    });
}

/// ICMP time exceeded (RFC 792), or ICMPv6's (RFC 4443), of `from`.
fn is_time_exceeded(frame: &CapturedFrame, from: IpAddr) -> bool {
    use etherparse::{InternetSlice, SlicedPacket, TransportSlice};
    let Ok(packet) = SlicedPacket::from_ethernet(&frame.bytes) else { return false };
    let source = match &packet.net {
        Some(InternetSlice::Ipv4(ip)) => IpAddr::V4(ip.header().source_addr()),
        Some(InternetSlice::Ipv6(ip)) => IpAddr::V6(ip.header().source_addr()),
        _ => return false,
    };
    let kind = match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => icmp.type_u8() == 11,
        Some(TransportSlice::Icmpv6(icmp)) => icmp.type_u8() == 3,
        _ => false,
    };
    kind && source == from
}

#[test]
fn gateways_own_addresses_are_never_intercepted() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            let addresses = family.addresses();
            for (address, port) in [(addresses.lan_gateway, HTTP), (addresses.wan_gateway, HTTPS)] {
                let greeter = Greeter::start(world, true, SocketAddr::new(address, port));
                let client = greeter.assert_greets(world, family);
                assert!(world.weir.find_flow(client).is_none(), "{address} was intercepted");
            }
        }
        assert_eq!(world.weir.count("flows", "opened"), 0);
    });
}

#[test]
fn address_that_the_gateway_gets_later_is_not_intercepted_either() {
    play(&Settings::default(), |world| {
        for (family, address) in Family::BOTH.into_iter().zip(["192.0.2.77/32", "2001:db8:2::77/128"]) {
            world.sh(&world.lab.gateway, &format!("ip addr add {address} dev lo nodad"));
            let address = address.split('/').next().unwrap().parse::<IpAddr>().unwrap();
            let greeter = Greeter::start(world, true, SocketAddr::new(address, HTTP));
            // IPv6 makes the route a moment after the address.
            until("the kernel takes the address for its own", || {
                let routes = "ip route show table local; ip -6 route show table local";
                world.sh(&world.lab.gateway, routes).contains(&format!("local {address} "))
            });
            until("the steering program knows the address", || {
                let before = world.weir.count("flows", "opened");
                greeter.assert_greets(world, family);
                world.weir.count("flows", "opened") == before
            });
        }
        world.sh(
            &world.lab.gateway,
            "ip addr del 192.0.2.77/32 dev lo; ip addr del 2001:db8:2::77/128 dev lo",
        );
    });
}

#[test]
fn what_no_intercept_has_is_forwarded_by_the_kernel() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            world.ping(family);
            udp_echo(world, family);
            let greeter = Greeter::start(world, false, family.origin(OTHER));
            let client = greeter.assert_greets(world, family);
            assert!(world.weir.find_flow(client).is_none(), "port {OTHER} was intercepted");
        }
        let moved: u64 = world.weir.status()["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["rx_packets"].as_u64().unwrap())
            .sum();
        assert_eq!(moved, 0, "the dataplane got packets that are not its own");
    });
}

#[test]
fn connection_of_a_server_towards_the_clients_is_forwarded_by_the_kernel() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            let addresses = family.addresses();
            let target = SocketAddr::new(addresses.client, HTTP);
            let listener = world.lab.client.run(|| std::net::TcpListener::bind(target)).unwrap();
            let stream = world.lab.server.run(|| TcpStream::connect_timeout(&target, PATIENCE)).unwrap();
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer, stream.local_addr().unwrap());
        }
        assert_eq!(world.weir.count("flows", "opened"), 0);
    });
}

fn udp_echo(world: &World<'_>, family: Family) {
    let target = family.origin(HTTPS);
    let server = world.lab.server.run(|| UdpSocket::bind(target)).unwrap();
    let client = SocketAddr::new(family.addresses().client, 0);
    let client = world.lab.client.run(|| UdpSocket::bind(client)).unwrap();
    for socket in [&server, &client] {
        SockRef::from(socket).set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.send_to(b"ping", target).unwrap();
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(&buffer[..length], from).unwrap();
    assert_eq!(client.recv_from(&mut buffer).unwrap(), (4, target), "{family:?}");
    assert_eq!(from, client.local_addr().unwrap());
}
