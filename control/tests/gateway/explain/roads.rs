//! New connections on every road.

use std::io::ErrorKind;
use std::net::SocketAddr;

use weir_control::demo::stage::Family;

use super::*;
use crate::config::{ALLOWED, DENIED, DROPPED, Settings};
use crate::crash::Greeter;
use crate::weir::until;
use crate::world::{HTTP, HTTPS, fetch, fetch_intact, play, prepare, whoami};

/// A port that no intercept has.
const OTHER: u16 = 9999;

#[test]
fn allowed_connection_is_said_to_take_the_fast_road_and_does() {
    for handshake in ["through", "answer"] {
        play(&Settings { handshake, ..Settings::default() }, |world| {
            world.meet_neighbours();
            for family in Family::BOTH {
                let (from, to) = ends(family, 41_001, HTTP);
                // The ends of the connections before are over first.
                let mut before = Value::Null;
                until("nothing is counted for a while", || {
                    let earlier = std::mem::replace(&mut before, world.weir.status()["steering"].clone());
                    std::thread::sleep(std::time::Duration::from_millis(500));
                    earlier == before && before == world.weir.status()["steering"]
                });
                let explained = explain(world, from, to, &["--host", ALLOWED]);
                explained.assert_says("fast", &["intercept web", "otherwise", "allow"]);
                assert!(explained.answer("steering", "does it say").contains("redirect"), "{explained:?}");
                assert!(explained.answer("flow", "live").starts_with("no"), "{explained:?}");
                let room = explained.steps("flow").next().unwrap()["detail"].to_string();
                assert!(room.contains("of 4096 flows"), "{room}");
                assert!(explained.answer("ingress", "by which port").contains("port lan, device lan0"));
                assert_plain_route(world, &explained, from, to);
                assert_next_hop(world, &explained, "server", to.ip());
                assert_next_hop(world, &explained, "client", from.ip());
                let ran = explained.steps("steering").last().unwrap()["detail"].to_string();
                assert!(ran.contains("BPF_PROG_TEST_RUN"), "{ran}");
                let redirected = |status: &Value| {
                    let counts = status.as_array().unwrap();
                    counts.iter().find(|count| count["name"] == "redirect").unwrap()["count"]
                        .as_u64()
                        .unwrap()
                };
                assert_eq!(
                    redirected(&world.weir.status()["steering"]),
                    redirected(&before),
                    "asking counts"
                );
                let watch = world.watch();
                let mut stream = connect(world, from, to);
                fetch_intact(&mut stream, 1000);
                // What leaves has the neighbour's address that was said.
                let (_, far) = watch.stop(from);
                let sent =
                    far.raw.iter().zip(&far.tcp).find(|(_, tcp)| tcp.source == from).expect("frames").0;
                let mac: Vec<String> = sent.bytes[..6].iter().map(|octet| format!("{octet:02x}")).collect();
                assert!(explained.answer("next-hop", "fast road").contains(&mac.join(":")), "{explained:?}");
                let flow = world.weir.flow(from);
                assert_eq!((&flow["road"], &flow["verdict"]), (&"fast".into(), &"allow".into()), "{flow}");
                assert!(redirected(&world.weir.status()["steering"]) > redirected(&before));
            }
        });
    }
}

#[test]
fn refused_names_are_said_to_meet_their_rules_and_do() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            for (port, name, action) in [(41_010, DENIED, "reset"), (41_011, DROPPED, "drop")] {
                let (from, to) = ends(family, port, HTTP);
                let explained = explain(world, from, to, &["--host", name]);
                explained.assert_says("fast", &["the rule at", action]);
                assert_eq!(explained.text("verdict"), action);
                let watch = world.watch();
                let mut stream = connect(world, from, to);
                if action == "reset" {
                    let error = fetch(&mut stream, name, 10).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                } else {
                    std::io::Write::write_all(
                        &mut stream,
                        format!("GET / HTTP/1.1\r\nhost: {name}\r\n\r\n").as_bytes(),
                    )
                    .unwrap();
                }
                until("the flow has its verdict", || world.weir.flow(from)["verdict"] == action);
                let flow = world.weir.flow(from);
                assert_eq!(flow["rule"], explained.0["rule"], "{flow}");
                let (_, far) = watch.stop(from);
                assert!(far.tcp.iter().all(|tcp| tcp.payload.is_empty()), "{name}: octets crossed");
                let again = explain(world, from, to, &["--host", name]);
                again.assert_says("fast", &["lives there"]);
                assert_eq!(again.0["rule"], flow["rule"]);
            }
        }
    });
}

#[test]
fn connection_of_a_relay_rule_is_said_to_arrive_locally_and_does() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            let from = SocketAddr::new(family.addresses().other_client, 41_020);
            let to = family.origin(HTTP);
            let explained = explain(world, from, to, &["--host", DENIED]);
            explained.assert_says("relay", &["the rule at", "decided at the SYN"]);
            assert_local_delivery(world, &explained, "weir-relay", from, to);
            let local = explained.because("local");
            for word in
                ["marks it with 0x77", "fwmark 0x77/0xff", "local default dev lo", "LISTEN", "transparent"]
            {
                assert!(local.contains(word), "no {word:?} in {local}");
            }
            assert!(!local.contains("FAILS"), "{local}");
            let mut stream = connect(world, from, to);
            assert_eq!(whoami(&mut stream, ALLOWED).unwrap(), from.to_string());
            let flow = world.weir.flow(from);
            assert_eq!((&flow["road"], &flow["rule"]), (&"relay".into(), &explained.0["rule"]), "{flow}");
            let text = told(world, from, to, &["--why", "local"]);
            assert!(text.contains("why does it arrive at a local address"), "{text}");
        }
    });
}

#[test]
fn handshake_of_the_relay_is_explained_without_a_steering_program() {
    let rules = r#"{ host = ["denied.example"], action = "reset" }"#;
    play(&Settings { handshake: "relay", rules, ..Settings::default() }, |world| {
        for family in Family::BOTH {
            let (from, to) = ends(family, 41_030, HTTP);
            let explained = explain(world, from, to, &["--host", DENIED]);
            explained.assert_says("relay", &["nft's rule", "the rule at"]);
            assert_eq!(explained.text("verdict"), "reset");
            assert_local_delivery(world, &explained, "lan0", from, to);
            let mut stream = connect(world, from, to);
            let error = fetch(&mut stream, DENIED, 10).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let (from, to) = ends(family, 41_031, HTTP);
            let allowed = explain(world, from, to, &["--host", ALLOWED]);
            assert_eq!((allowed.road(), allowed.text("verdict")), ("relay", "allow"));
            fetch_intact(&mut connect(world, from, to), 1000);
        }
    });
}

#[test]
fn connection_that_is_sent_is_said_to_reach_the_server_that_it_reaches() {
    let [_, a4, b4] = Family::V4.addresses().servers;
    let [_, a6, b6] = Family::V6.addresses().servers;
    let more = format!(
        "[[pool]]\nname = \"others\"\nservers = [\"{a4}:80\", \"{b4}:80\", \"[{a6}]:80\", \"[{b6}]:80\"]\nhash = \"flow\"\n"
    );
    let rules = r#"{ host = ["www.example"], action = "send", pool = "others" }"#;
    play(&Settings { rules, more, ..Settings::default() }, |world| {
        world.meet_neighbours();
        for family in Family::BOTH {
            for port in 41_040..41_044 {
                let (from, to) = ends(family, port, HTTP);
                let explained = explain(world, from, to, &["--host", ALLOWED]);
                explained.assert_says("fast", &["says send"]);
                let mut stream = connect(world, from, to);
                fetch_intact(&mut stream, 1000);
                let flow = world.weir.flow(from);
                assert_eq!(flow["server"], explained.0["server"], "{flow}");
                assert_eq!(flow["verdict"], "send", "{flow}");
            }
        }
    });
}

#[test]
fn connection_of_no_intercept_is_said_to_be_forwarded_and_why() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            let (from, to) = ends(family, 41_050, OTHER);
            let explained = explain(world, from, to, &[]);
            explained.assert_says("kernel", &["no_intercept", "forwards it"]);
            let why = explained.because("not_intercepted");
            for word in ["its `tcp` has not 9999", "80, 443, 7777", "test.toml:"] {
                assert!(why.contains(word), "no {word:?} in {why}");
            }
            assert_plain_route(world, &explained, from, to);
            let turned = explain(world, from, family.origin(HTTP), &["--in", "wan"]);
            assert!(turned.because("not_intercepted").contains("its `from` has not wan"), "{turned:?}");
            assert!(turned.answer("steering", "does it say").contains("no_intercept"), "{turned:?}");
            let before = world.weir.count("steering", "no_intercept");
            let greeter = Greeter::start(world, false, to);
            let client = greeter.assert_greets(world, family);
            assert!(world.weir.count("steering", "no_intercept") > before);
            assert!(world.weir.find_flow(client).is_none());
            let text = told(world, from, to, &["--why", "not-intercepted"]);
            assert!(text.contains("mend: add"), "{text}");
        }
    });
}

#[test]
fn own_address_is_said_never_to_be_intercepted() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            let addresses = family.addresses();
            let own = SocketAddr::new(addresses.wan_gateway, 41_061);
            let explained = explain(world, own, family.origin(HTTP), &[]);
            explained.assert_says("kernel", &["the client is this box itself"]);
            assert!(explained.because("not_intercepted").contains("only what comes in by a port"));
            for (address, port) in [(addresses.lan_gateway, HTTP), (addresses.wan_gateway, HTTPS)] {
                let (from, to) = (ends(family, 41_060, HTTP).0, SocketAddr::new(address, port));
                let explained = explain(world, from, to, &["--host", DENIED]);
                explained.assert_says("kernel", &["own_address", "this box itself"]);
                let why = explained.because("not_intercepted");
                assert!(why.contains("is an address of this box"), "{why}");
                assert_plain_route(world, &explained, from, to);
                let greeter = Greeter::start(world, true, to);
                let client = greeter.assert_greets(world, family);
                assert!(world.weir.find_flow(client).is_none());
            }
        }
    });
}

#[test]
fn server_behind_no_port_is_said_to_be_reached_by_the_relay() {
    play(&Settings::default(), |world| {
        let make = "ip link add other0 type veth peer name other1; ip link set other0 up; ip link set other1 up; \
            ip addr add 203.0.113.1/24 dev other0; ip -6 addr add 2001:db8:f::1/64 dev other0 nodad; \
            ip neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev other0; \
            ip -6 neigh add 2001:db8:f::9 lladdr 02:00:00:00:00:09 dev other0";
        world.sh(&world.lab.gateway, make);
        for (family, server) in Family::BOTH.into_iter().zip(["203.0.113.9:80", "[2001:db8:f::9]:80"]) {
            let (from, to) = (ends(family, 41_070, HTTP).0, server.parse().unwrap());
            let explained = explain(world, from, to, &["--host", ALLOWED]);
            explained.assert_says("relay", &["no-port"]);
            assert!(explained.answer("next-hop", "has the server").contains("on other0"), "{explained:?}");
            // Nobody is there; that a SYN came is enough.
            let lab = &world.lab.client;
            let syn = lab.run(|| {
                let socket =
                    socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
                socket.bind(&from.into())?;
                socket.set_nonblocking(true)?;
                drop(socket.connect(&to.into()));
                std::io::Result::Ok(socket)
            });
            let flow = world.weir.flow(from);
            assert_eq!(flow["reason"], "no-port", "{flow}");
            drop(syn);
        }
        world.sh(&world.lab.gateway, "ip link del other0");
    });
}

#[test]
fn unresolved_next_hop_is_said_to_cost_the_first_packets_the_kernel() {
    play(&Settings::default(), |world| {
        for (family, version) in Family::BOTH.into_iter().zip(["-4", "-6"]) {
            world.sh(&world.lab.gateway, &format!("ip {version} neigh flush all"));
            let (from, _) = ends(family, 41_080, HTTP);
            let to = SocketAddr::new(family.addresses().servers[2], HTTP);
            let explained = explain(world, from, to, &["--host", ALLOWED]);
            explained.assert_says("fast", &["no-neighbour"]);
            let before = world.weir.count("punts", "no-neighbour");
            fetch_intact(&mut connect(world, from, to), 1000);
            world.weir.comes_to("punts", "no-neighbour", before + 1);
        }
    });
}

#[test]
fn second_hello_that_differs_is_asked_about_by_its_own_option() {
    let rules = r#"{ hello_retry = true, action = "reset" }, { host = ["www.example"], action = "drop" }"#;
    prepare(&Settings { rules, ..Settings::default() }, |world| {
        for family in Family::BOTH {
            let (from, to) = ends(family, 41_090, HTTPS);
            let ask = |more: &[&str]| explain(world, from, to, more).text("reason").to_owned();
            let second = ask(&["--host", ALLOWED, "--hello-retry"]);
            assert!(second.contains("says reset"), "{second}");
            let (alone, first) = (ask(&["--hello-retry"]), ask(&["--host", ALLOWED]));
            assert!(alone.contains("says reset") && first.contains("says drop"), "{alone}; {first}");
            let mut command = world.weir.command("explain");
            command.args(["--from", &from.to_string(), "--to", &to.to_string()]);
            command.args(["--hello-retry", "--protocol", "http"]);
            let refused = world.weir.finish(command);
            assert!(refused.code() == 2 && refused.errors.contains("only TLS"), "{refused:?}");
        }
    });
}

#[test]
fn route_of_several_ways_is_said_with_all_of_them() {
    prepare(&Settings::default(), |world| {
        let make =
            "ip link add other0 type veth peer name other1; ip link set other0 up; ip link set other1 up
            ip addr add 203.0.113.1/24 dev other0; ip -6 addr add 2001:db8:f::1/64 dev other0 nodad";
        world.sh(&world.lab.gateway, make);
        for (family, version, net, server, second) in [
            (Family::V4, "-4", "198.51.100.0/24", "198.51.100.7:80", "203.0.113.9"),
            (Family::V6, "-6", "2001:db8:7::/64", "[2001:db8:7::7]:80", "2001:db8:f::9"),
        ] {
            let first = family.addresses().servers[0];
            let add = format!(
                "ip {version} route add {net} nexthop via {first} dev wan0 nexthop via {second} dev other0 weight 3"
            );
            world.sh(&world.lab.gateway, &add);
            let (from, to) = (ends(family, 41_095, HTTP).0, server.parse().unwrap());
            let explained = explain(world, from, to, &[]);
            let answer = explained.answer("route", "without a mark");
            for way in [
                format!("nexthop via {first} dev wan0 weight 1"),
                format!("nexthop via {second} dev other0 weight 3"),
            ] {
                assert!(answer.contains(&way) && answer.starts_with(net), "no {way:?} in {answer}");
            }
        }
    });
}
