//! Rules of others that lose what the kernel would have forwarded or delivered.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use weir_control::demo::stage::Family;

use super::*;
use crate::config::{ALLOWED, Settings};
use crate::weir::PATIENCE;
use crate::world::{HTTP, World, play};

/// A port that no intercept has, and that nobody listens on.
const OTHER: u16 = 9999;

/// What iptables calls the family, and nft.
fn tools(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("iptables", "ip"),
        Family::V6 => ("ip6tables", "ip6"),
    }
}

/// Asked by somebody who may make no namespace to try a ruleset in.
fn explain_without_namespaces(world: &World<'_>, from: SocketAddr, to: SocketAddr) -> Explained {
    let weir = world.weir.command("explain");
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-sys_admin", "--inh-caps=-all"])
        .arg(weir.get_program())
        .args(weir.get_args());
    command.args(["--json", "--from", &from.to_string(), "--to", &to.to_string()]);
    let told = world.weir.finish(command);
    assert_eq!(told.code(), 0, "{told:?}");
    Explained(serde_json::from_str(&told.output).expect("JSON"))
}

/// Whether a client gets as far as a server or this box: it is let in, or refused. One that waits in vain need not wait long.
#[track_caller]
fn assert_gets_through(world: &World<'_>, to: SocketAddr, expected: bool) {
    let patience = if expected { PATIENCE } else { Duration::from_millis(400) };
    let tried = world.lab.client.run(|| TcpStream::connect_timeout(&to, patience));
    let is_through = tried.map_or_else(|error| error.kind() == ErrorKind::ConnectionRefused, |_| true);
    assert_eq!(is_through, expected, "{to}: not as it was said");
}

#[test]
fn packets_that_a_firewall_loses_are_not_said_to_arrive() {
    play(&Settings::default(), |world| {
        world.meet_neighbours();
        for family in Family::BOTH {
            let (iptables, table) = tools(family);
            let (forward, input) = (format!("{table} filter FORWARD"), format!("{table} filter INPUT"));
            let policy = |chain: &str, policy: &str| {
                world.sh(&world.lab.gateway, &format!("{iptables} -P {chain} {policy}"));
            };
            let (client, other) = (ends(family, 41_300, OTHER).0, family.origin(OTHER));
            let relayed = SocketAddr::new(family.addresses().other_client, 41_301);
            let own = SocketAddr::new(family.addresses().lan_gateway, OTHER);
            // To a server that the fast road has no neighbour for, the kernel sends the first packets.
            let far = SocketAddr::new(family.addresses().servers[2], HTTP);
            let named = ["--host", ALLOWED];
            explain(world, client, other, &[]).assert_says("kernel", &["forwards it"]);
            policy("FORWARD", "DROP");
            let lost = explain(world, client, other, &[]);
            lost.assert_says("none", &["no_intercept", &forward, "loses it"]);
            assert!(lost.answer("nft", "rules of others").starts_with("no: "), "{lost:?}");
            assert!(lost.because("not_intercepted").contains("its `tcp` has not"), "{lost:?}");
            assert_gets_through(world, other, false);
            let untried = explain_without_namespaces(world, client, other);
            untried.assert_says("kernel", &[&format!("if {forward} lets it through"), "could not be tried"]);
            explain(world, client, far, &named).assert_says("none", &["no-neighbour", &forward]);
            // What has no use for the kernel does not meet its chains.
            explain(world, client, family.origin(HTTP), &named).assert_says("fast", &["otherwise"]);
            explain(world, relayed, family.origin(HTTP), &named).assert_says("relay", &["at the SYN"]);
            explain(world, client, own, &[]).assert_says("kernel", &["this box itself"]);
            policy("FORWARD", "ACCEPT");
            policy("INPUT", "DROP");
            explain(world, client, own, &[]).assert_says("none", &["this box itself", &input]);
            assert_gets_through(world, own, false);
            let lost = explain(world, relayed, family.origin(HTTP), &named);
            lost.assert_says("none", &["at the SYN", &input]);
            let local = lost.because("local");
            assert!(local.contains("FAILS") && local.contains(&input), "{local}");
            assert!(lost.because("not_intercepted").contains(&input), "{lost:?}");
            explain(world, client, other, &[]).assert_says("kernel", &["forwards it"]);
            policy("INPUT", "ACCEPT");
            world.sh(&world.lab.gateway, &format!("nft delete table {table} filter"));
        }
    });
}

#[test]
fn firewall_that_lets_a_connection_through_is_said_to() {
    play(&Settings::default(), |world| {
        let rules = "add table inet fw; add chain inet fw through { type filter hook forward priority 0; policy drop; }; \
                     add rule inet fw through ct state established,related accept; \
                     add rule inet fw through iifname lan0 oifname wan0 tcp dport 9999 accept; \
                     add chain inet fw nat { type nat hook postrouting priority 100; }; \
                     add rule inet fw nat oifname wan0 masquerade";
        world.sh(&world.lab.gateway, &format!("nft '{rules}'"));
        for family in Family::BOTH {
            let client = ends(family, 41_310, OTHER).0;
            let through = explain(world, client, family.origin(OTHER), &[]);
            through.assert_says("kernel", &["forwards it"]);
            assert!(through.answer("nft", "rules of others").starts_with("yes: "), "{through:?}");
            let closed = explain(world, client, family.origin(OTHER + 1), &[]);
            closed.assert_says("none", &["inet fw through"]);
            for (port, is_open) in [(OTHER, true), (OTHER + 1, false)] {
                assert_gets_through(world, family.origin(port), is_open);
            }
        }
        world.sh(&world.lab.gateway, "nft delete table inet fw");
    });
}
