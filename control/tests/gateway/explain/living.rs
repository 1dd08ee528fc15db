//! Connections that live.

use weir_control::demo::stage::Family;

use super::*;
use crate::config::{ALLOWED, Settings};
use crate::express::{always, into_the_lane, ready};
use crate::weir::until;
use crate::world::{HTTP, exchange_intact, fetch_intact, play, prepare};

#[test]
fn flow_from_before_the_start_is_said_to_be_the_kernels() {
    prepare(&Settings::default(), |world| {
        let mut streams = Family::BOTH.map(|family| world.connect(family, HTTP));
        streams.iter_mut().for_each(|stream| fetch_intact(stream, 10_000));
        world.weir.start();
        for stream in &mut streams {
            fetch_intact(stream, 10_000);
            let (from, to) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            assert_eq!(world.weir.flow(from)["road"], "kernel");
            let explained = explain(world, from, to, &["--host", ALLOWED]);
            explained.assert_says("kernel", &["lives there", "midstream"]);
            assert!(explained.answer("steering", "map of kernel flows").starts_with("yes"), "{explained:?}");
            let says = explained.steps("steering").last().unwrap()["detail"].to_string();
            assert!(says.contains("a packet that follows: kernel_flow"), "{says}");
            let why = explained.because("not_intercepted");
            assert!(
                why.contains("was given to the kernel") && why.contains("open a new connection"),
                "{why}"
            );
            assert_plain_route(world, &explained, from, to);
        }
    });
}

#[test]
fn flow_of_the_express_lane_is_shown_with_its_way_out() {
    play(&Settings { handshake: "answer", ..always() }, |world| {
        ready(world);
        for family in Family::BOTH {
            let mut stream = world.connect(family, HTTP);
            into_the_lane(world, &mut stream, ALLOWED);
            let (from, to) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            for (from, to, device) in [(from, to, "wan0"), (to, from, "lan0")] {
                let ingress = if device == "wan0" { "lan0" } else { "wan0" };
                let way = format!("yes: its packets leave from {from} to {to} by {device} to ");
                // Each direction changes over in a pause of its own.
                until("this direction is in the lane", || {
                    fetch_intact(&mut stream, 100);
                    let explained = explain(world, from, to, &["--in", ingress]);
                    explained.answer("steering", "in the express lane").starts_with(&way)
                });
                let explained = explain(world, from, to, &["--in", ingress]);
                explained.assert_says("fast", &["lives there"]);
                let answer = explained.answer("steering", "in the express lane");
                assert!(answer.starts_with(&way), "{answer}");
                let says = explained.steps("steering").last().unwrap()["detail"].to_string();
                assert!(says.contains("a packet that follows: express: "), "{says}");
                assert!(says.contains("said by the program itself"), "{says}");
            }
            exchange_intact(&mut stream, ALLOWED, 1 << 20);
            let other = SocketAddr::new(from.ip(), 1);
            assert_eq!(explain(world, other, to, &[]).answer("steering", "in the express lane"), "no");
        }
    });
}

#[test]
fn relayed_flow_is_shown_with_the_sockets_of_both_legs() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            let from = SocketAddr::new(family.addresses().other_client, 41_100);
            let to = family.origin(HTTP);
            let mut stream = connect(world, from, to);
            fetch_intact(&mut stream, 10_000);
            let explained = explain(world, from, to, &[]);
            explained.assert_says("relay", &["lives there"]);
            for (question, local, remote) in [("client's leg", to, from), ("server's leg", from, to)] {
                let answer = explained.answer("socket", question);
                assert!(answer.starts_with(&format!("ESTAB {local} <- {remote}, transparent")), "{answer}");
                let line = format!("ss -Htne 'src {local} and dst {remote}'");
                let ss = world.sh(&world.lab.gateway, &line);
                let inode = answer.rsplit_once("inode ").unwrap().1;
                assert!(ss.contains(&format!("ino:{inode}")), "{answer}\n{ss}");
            }
            let following = explained.answer("nft", "a packet that follows");
            assert!(following.contains("socket transparent 1"), "{following}");
            // The other way round it is the same connection.
            explain(world, to, from, &[]).assert_says("relay", &["lives there"]);
        }
    });
}

#[test]
fn table_for_people_begins_with_the_road() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            let (from, to) = ends(family, 41_110, HTTP);
            fetch_intact(&mut connect(world, from, to), 1000);
            let text = told(world, from, to, &["--host", ALLOWED]);
            let lines: Vec<&str> = text.lines().take(2).collect();
            assert_eq!(lines, [&format!("{from} -> {to} ({ALLOWED})"), "road       fast"]);
            for layer in
                ["ingress", "steering", "flow", "policy", "nft", "rule", "route", "socket", "next-hop"]
            {
                assert!(text.lines().any(|line| line.starts_with(layer)), "no {layer} in\n{text}");
            }
            let order: Vec<usize> =
                ["ingress ", "steering ", "flow ", "policy ", "nft ", "rule ", "socket ", "next-hop "]
                    .map(|layer| text.find(&format!("\n{layer}")).unwrap())
                    .to_vec();
            assert!(order.is_sorted(), "{text}");
        }
    });
}

#[test]
fn file_that_the_gateway_does_not_run_with_is_pointed_out() {
    play(&Settings::default(), |world| {
        world.sh(&world.lab.gateway, "cp /run/weir/test.toml /run/weir/other.toml");
        for family in Family::BOTH {
            let (from, to) = ends(family, 41_120, HTTP);
            let doubt = |explained: &Explained| {
                explained
                    .steps("policy")
                    .any(|step| step["question"].as_str().unwrap().contains("with this file"))
            };
            assert!(!doubt(&explain(world, from, to, &[])));
            let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
            command.args(["explain", "-c", "/run/weir/other.toml", "--json"]);
            command.args(["--from", &from.to_string(), "--to", &to.to_string()]);
            let told = world.weir.finish(command);
            let explained = Explained(serde_json::from_str(&told.output).unwrap());
            assert!(doubt(&explained), "{told:?}");
        }
        world.sh(&world.lab.gateway, "rm /run/weir/other.toml");
    });
}
