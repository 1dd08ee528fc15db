//! What somebody takes from a running gateway is put back, counted and told; who keeps taking it is named and backed off from.

use std::time::{Duration, Instant};

use serde_json::Value;
use weir_control::demo::stage::Family;
use weir_control::lab::{NamespaceChild, host_state};

use crate::config::{ALLOWED, Settings};
use crate::traffic::Traffic;
use crate::weir::until;
use crate::world::{HTTP, World, fetch, fetch_intact, play, prepare};

const PORTS: [&str; 2] = ["lan0", "wan0"];
/// weir's program is on both ports.
const PROGRAMS: &str = "test $(ip -d link show | grep -c 'prog/xdp id') = 2";

/// What somebody does, what it is counted as, and what must be true again.
const REMOVALS: [(&str, &str, &str); 21] = [
    ("ip rule del priority 1077", "rule", "ip rule | grep -q '^1077:.*0x77/0xff lookup 177 proto 119'"),
    ("ip -6 rule del priority 1077", "rule", "ip -6 rule | grep -q '^1077:.*0x77/0xff lookup 177 proto 119'"),
    ("ip rule flush && ip rule add priority 32766 lookup main", "rule", "ip rule | grep -q ^1077:"),
    (
        "ip route flush table 177",
        "route",
        "ip route show table 177 | grep -q '^local default dev lo proto 119'",
    ),
    (
        "ip -6 route flush table 177",
        "route",
        "ip -6 route show table 177 | grep -q '^local default dev lo proto 119'",
    ),
    ("nft flush ruleset", "table", "nft list table inet weir | grep -q 'tproxy ip6 to :12377'"),
    ("nft delete table inet weir", "table", "nft list table inet weir | grep -q 'tproxy ip to :12377'"),
    (
        "nft flush chain inet weir prerouting",
        "table",
        "nft list table inet weir | grep -q 'flows of the relay\"'",
    ),
    (
        "printf 'flush ruleset\\ntable inet mine {\\n chain c { }\\n}\\n' | nft -f -",
        "table",
        "nft list table inet weir | grep -q tproxy && nft list table inet mine | grep -q 'chain c'",
    ),
    // A rule that keeps its comment and means something else.
    (
        "nft replace rule inet weir prerouting handle $(nft -a list chain inet weir prerouting | sed -n 's/.*only TCP.*handle //p') \
         accept comment '\"only TCP is intercepted\"'",
        "table",
        "nft list table inet weir | grep -q 'meta l4proto != tcp return'",
    ),
    ("nft add table inet weir '{ flags dormant; }'", "table", "! nft list table inet weir | grep -q dormant"),
    ("ip addr del 192.0.0.8/32 dev weir-relay", "address", "ip addr show weir-relay | grep -q 192.0.0.8/32"),
    ("ip addr flush dev weir-punt", "address", "ip addr show weir-punt | grep -q 192.0.0.8/32"),
    ("ip link set weir-relay down", "tun", "ip link show weir-relay | grep -q LOWER_UP"),
    (
        "ip link del weir-punt",
        "tun",
        "ip addr show weir-punt | grep -q 192.0.0.8/32 && ip link show weir-punt | grep -q 'LOWER_UP.*mtu 65535'",
    ),
    ("sysctl -qw net.ipv4.ip_forward=0", "sysctl", "test $(cat /proc/sys/net/ipv4/ip_forward) = 1"),
    (
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "sysctl",
        "test $(cat /proc/sys/net/ipv6/conf/all/forwarding) = 1",
    ),
    (
        "sysctl -qw net.ipv4.conf.lan0.src_valid_mark=1",
        "sysctl",
        "test $(cat /proc/sys/net/ipv4/conf/lan0/src_valid_mark) = 0",
    ),
    (
        "sysctl -qw net.ipv6.conf.weir-relay.disable_ipv6=1",
        "sysctl",
        "test $(cat /proc/sys/net/ipv6/conf/weir-relay/disable_ipv6) = 0",
    ),
    (
        "sysctl -qw net.ipv6.conf.weir-punt.disable_ipv6=1",
        "sysctl",
        "test $(cat /proc/sys/net/ipv6/conf/weir-punt/disable_ipv6) = 0",
    ),
    // In one step: between two, weir would put back what the first has done.
    ("ip link set weir-relay down name x", "tun", "ip addr show up | grep '8/32.*relay' && ! ip link show x"),
];

#[test]
fn whatever_is_removed_under_traffic_is_back_within_a_second_and_counted_once_and_no_byte_is_lost() {
    play(&Settings::default(), |world| {
        let traffic = Traffic::start(world);
        for removal in REMOVALS {
            within_a_second(removal.0, || mend(world, &traffic, removal));
        }
        traffic.stop();
        assert_eq!(world.weir.status()["healthy"], true);
        let kinds = ["rule", "route", "table", "address", "tun", "sysctl", "xdp"];
        let repairs: u64 = kinds.iter().map(|kind| world.weir.count("repairs", kind)).sum();
        world.sh(&world.lab.gateway, "nft delete table inet mine");
        // What is somebody's wish by now stays when weir goes: these were other values before.
        world.before = host_state(&world.lab.gateway).expect("looked at");
        let ended = world.weir.stop();
        assert_eq!(ended.code(), 0, "{ended:?}");
        // One line for each repair, and none for anything else.
        let told = ended.errors.lines().filter(|line| line.contains("it is put back")).count() as u64;
        assert_eq!(told, repairs, "{}", ended.errors);
    });
}

/// Somebody takes something away under traffic; how long it took until weir says that it puts that back.
fn mend(world: &World<'_>, traffic: &Traffic, (removal, kind, whole): (&str, &str, &str)) -> Duration {
    let before = world.weir.count("repairs", kind);
    let (told, start) = (world.weir.logged().len(), time_of_day());
    world.sh(&world.lab.gateway, removal);
    is_mended(world, removal, whole);
    until(&format!("{removal} is counted as {kind}"), || world.weir.count("repairs", kind) > before);
    assert_eq!(world.weir.count("repairs", kind), before + 1, "{removal}");
    until("it is told", || world.weir.logged()[told..].contains("it is put back"));
    traffic.goes_on();
    // So that the next of its kind is no part of a quarrel.
    until("nothing is contested", || world.weir.status()["contested"] == Value::Array(Vec::new()));
    all_roads(world);
    repaired_at(&world.weir.logged()[told..]).saturating_sub(start)
}

/// A machine that does other things too may be late, but not always.
#[track_caller]
fn within_a_second(what: &str, mut event: impl FnMut() -> Duration) {
    let mut all = Vec::new();
    while all.len() < 8 {
        let took = event();
        if took < Duration::from_secs(1) {
            return;
        }
        all.push(took);
    }
    panic!("{what}: mended after {all:?}");
}

/// Since midnight, UTC.
fn time_of_day() -> Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    Duration::new(now.as_secs() % 86_400, now.subsec_nanos())
}

/// The time of day that the first repair of a log has: `2026-11-30T15:52:16.123456Z  WARN ...`.
#[track_caller]
fn repaired_at(log: &str) -> Duration {
    let line = log.lines().find(|line| line.contains("it is put back")).expect("a repair is told");
    let stamp = line.split(['T', 'Z']).nth(1).expect("a time");
    let seconds = stamp.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().expect("a number"));
    Duration::from_secs_f64(seconds)
}

#[test]
fn devices_that_are_made_without_ipv6_get_it_and_the_relay_serves_both_families() {
    prepare(&Settings::default(), |world| {
        world.sh(&world.lab.gateway, "sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
        world.before = host_state(&world.lab.gateway).expect("looked at");
        world.weir.start();
        world.meet_neighbours();
        all_roads(world);
    });
}

#[test]
fn host_without_ipv6_is_served_by_ipv4_and_by_both_once_it_has_it() {
    let settings = Settings { express: "never", ..Settings::default() };
    prepare(&settings, |world| {
        let gateway = &world.lab.gateway;
        let addresses = world.sh(gateway, "ip -6 -o addr show scope global | awk '{print $2, $4}'");
        world.sh(gateway, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        world.before = host_state(gateway).expect("looked at");
        world.weir.start();
        let mut stream = world.connect(Family::V4, HTTP);
        fetch_intact(&mut stream, 10_000);
        world.sh(gateway, "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0");
        for line in addresses.lines() {
            let (device, address) = line.split_once(' ').expect("two words");
            world.sh(gateway, &format!("ip addr add {address} dev {device} nodad"));
        }
        until("IPv6 is served", || {
            let stream = world.connect_to(Family::V6, Family::V6.origin(HTTP));
            stream.is_ok_and(|mut stream| fetch(&mut stream, ALLOWED, 1000).is_ok())
        });
        world.meet_neighbours();
        all_roads(world);
        world.weir.stop();
        let left = world.sh(gateway, "ip -6 rule; ip -6 route show table 177");
        assert!(!left.contains("177"), "{left}");
    });
}

/// The state of the gateway comes to be `whole` again after `what`.
#[track_caller]
fn is_mended(world: &World<'_>, what: &str, whole: &str) {
    let line = format!("if {whole}; then echo yes; fi");
    until(&format!("{what} is mended"), || world.sh(&world.lab.gateway, &line).contains("yes"));
}

/// A connection on the fast road, and one that the relay carries, of both families.
#[track_caller]
fn all_roads(world: &World<'_>) {
    for family in Family::BOTH {
        let relayed = match family {
            Family::V4 => "10.77.1.9",
            Family::V6 => "fd77:1::9",
        };
        let relayed = std::net::SocketAddr::new(relayed.parse().unwrap(), 0);
        for client in [std::net::SocketAddr::new(family.addresses().client, 0), relayed] {
            let road = if client == relayed { "relay" } else { "fast" };
            // While a sign of life is late, as on a machine that does other things too, the relay has those that begin.
            until(&format!("{client} has the road {road}"), || {
                let stream =
                    weir_control::demo::client::connect(&world.lab.client, client, family.origin(HTTP));
                let mut stream = stream.expect("the client can connect");
                fetch_intact(&mut stream, 10_000);
                let flow = world.weir.find_flow(stream.local_addr().unwrap());
                flow.is_some_and(|flow| flow["road"] == road)
            });
        }
    }
}

#[test]
fn program_that_is_detached_is_attached_again_within_a_second_and_one_that_is_held_by_a_link_cannot_be_removed()
 {
    for fail in ["open", "closed"] {
        play(&Settings { fail, ..Settings::default() }, |world| {
            let gateway = &world.lab.gateway;
            let traffic = Traffic::start(world);
            for device in PORTS {
                for line in [
                    format!("ip link set dev {device} xdp off"),
                    format!("ip link set dev {device} xdpdrv off"),
                    format!("bpftool net detach xdp dev {device}"),
                ] {
                    // Refused by the kernel: a link holds it.
                    world.sh(gateway, &format!("! {line} 2>/dev/null && {PROGRAMS}"));
                }
            }
            let mut detached = 0;
            for _ in PORTS {
                within_a_second(&format!("bpftool link detach, {fail}"), || {
                    detached += 1;
                    let removal = format!("bpftool link detach id {}", oldest_link(world));
                    mend(world, &traffic, (&removal, "xdp", PROGRAMS))
                });
            }
            traffic.stop();
            let log = if fail == "closed" {
                world.weir.kill();
                // The pins are of the links that hold now.
                world.sh(gateway, PROGRAMS);
                world.weir.logged()
            } else {
                let ended = world.weir.stop();
                world.assert_as_before();
                ended.errors
            };
            let told = |device: &str| {
                let command = format!("attach XDP to {device}");
                let of_it = |line: &&str| line.contains(&command) && line.contains("it is put back");
                log.lines().filter(of_it).count()
            };
            let [lan, wan] = PORTS.map(told);
            assert!(lan > 0 && wan > 0 && lan + wan == detached, "{detached}: {log}");
            if fail == "closed" {
                world.weir.start();
            }
        });
    }
}

/// Without its pins, a box that fails closed would be open as soon as weir is killed, and the express lane would end with it.
#[test]
fn pins_that_are_removed_are_back_within_a_second_and_keep_the_box_closed_when_weir_is_killed() {
    play(&Settings { fail: "closed", ..Settings::default() }, |world| {
        let gateway = &world.lab.gateway;
        let paths = gateway.run(weir_control::host::Paths::of_this_namespace).expect("its paths");
        let folder = paths.pins.display().to_string();
        let all = world.sh(gateway, &format!("ls {folder}"));
        let whole = format!("test \"$(ls {folder})\" = '{}'", all.trim_end());
        let traffic = Traffic::start(world);
        for removal in
            [format!("rm -r {folder}"), format!("rm {folder}/link-*"), format!("rm {folder}/kernel_flows-*")]
        {
            within_a_second(&removal, || mend(world, &traffic, (&removal, "xdp", &whole)));
        }
        traffic.stop();
        world.weir.kill();
        world.sh(gateway, PROGRAMS);
        world.weir.start();
        assert_eq!(world.weir.stop().code(), 0);
        world.assert_as_before();
    });
    // What is gone when weir stops is no reason to fail.
    prepare(&Settings { fail: "closed", ..Settings::default() }, |world| {
        world.weir.start();
        let paths = world.lab.gateway.run(weir_control::host::Paths::of_this_namespace).expect("its paths");
        world.sh(&world.lab.gateway, &format!("rm -r {}", paths.pins.display()));
        let ended = world.weir.stop();
        assert_eq!(ended.code(), 0, "{ended:?}");
        world.assert_as_before();
    });
}

/// The id of the BPF link that holds weir's program on a port, and has done so longer than that on the other.
fn oldest_link(world: &World<'_>) -> u64 {
    oldest_link_of(world, "lan0").expect("weir's program is on a port")
}

/// Of the program that is on this device: the BPF link that holds it longest, on whichever.
pub fn oldest_link_of(world: &World<'_>, device: &str) -> Option<u64> {
    let json = |line: &str| -> Value { serde_json::from_str(&world.sh(&world.lab.gateway, line)).unwrap() };
    let device = &json(&format!("ip -j -d link show {device}"))[0];
    // A link of another test that is just being made cannot be looked at, and then there is no list.
    let links = json(
        "for i in $(seq 500); do links=$(bpftool -j link show) && break; sleep 0.02; done; echo \"$links\"",
    );
    let is_ours = |link: &&Value| link["type"] == "xdp" && link["prog_id"] == device["xdp"]["prog"]["id"];
    let ours = links.as_array().unwrap().iter().filter(is_ours).map(|link| link["id"].as_u64().unwrap());
    ours.min()
}

/// A program that removes something of weir's twenty times a second, until it is dropped.
pub struct Manager(NamespaceChild);

impl Manager {
    pub fn start(world: &World<'_>, name: &str, body: &str) -> Self {
        let path = format!("/run/{name}");
        world
            .lab
            .gateway
            .run(|| std::fs::write(&path, format!("#!/bin/sh\n{body}\n")))
            .expect("the lab has a /run");
        let mut command = std::process::Command::new("sh");
        command.arg(&path).stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        Self(world.lab.gateway.spawn_command(command).expect("sh"))
    }

    /// They give up, with everything that they started.
    pub fn give_up(managers: impl IntoIterator<Item = Self>, world: &World<'_>) {
        world.sh(&world.lab.gateway, "touch /run/give-up");
        for mut manager in managers {
            until("the manager ends", || manager.0.inner().try_wait().expect("a child").is_some());
        }
    }
}

/// Somebody who keeps removing something: what he does each time, what weir puts back, and how he is told.
pub struct Quarrel {
    /// A loop without its body, so that what it starts may be one program that lives as long.
    pub body: &'static str,
    what: &'static str,
    by: &'static str,
    /// The kernel tells of whom the change was, so that the script which started him can be named.
    is_named: bool,
}

const fn quarrel(body: &'static str, what: &'static str, by: &'static str) -> Quarrel {
    Quarrel { body, what, by, is_named: true }
}

/// What removes the rules and the routes, of both families.
const ROUTING_MANAGERS: [Quarrel; 4] = [
    quarrel(
        "while test ! -e /run/give-up; do echo 'rule del priority 1077'; sleep 0.05; done | ip -force -batch -",
        "ip rule add fwmark 0x77/0xff",
        "ip (process",
    ),
    quarrel(
        "while test ! -e /run/give-up; do echo 'rule del priority 1077'; sleep 0.05; done | ip -6 -force -batch -",
        "ip -6 rule add fwmark 0x77/0xff",
        "ip (process",
    ),
    quarrel(
        "while test ! -e /run/give-up; do echo 'route flush table 177'; sleep 0.05; done | ip -force -batch -",
        "ip route add local default dev lo table 177",
        "ip (process",
    ),
    quarrel(
        "while test ! -e /run/give-up; do echo 'route flush table 177'; sleep 0.05; done | ip -6 -force -batch -",
        "ip -6 route add local default dev lo table 177",
        "ip (process",
    ),
];

/// What removes the rest of what the kernel has to be told.
const OTHER_MANAGERS: [Quarrel; 4] = [
    quarrel(
        "while test ! -e /run/give-up; do nft flush ruleset; sleep 0.05; done",
        "nft add table inet weir ...",
        "nft (process",
    ),
    Quarrel {
        is_named: false,
        ..quarrel(
            "while test ! -e /run/give-up; do ip addr flush dev weir-punt; sleep 0.05; done",
            "ip addr add 192.0.0.8/32 dev weir-punt",
            "process",
        )
    },
    Quarrel {
        is_named: false,
        ..quarrel(
            "while test ! -e /run/give-up; do sysctl -qw net.ipv4.ip_forward=0; sleep 0.05; done",
            "sysctl -w net.ipv4.ip_forward=1",
            "process",
        )
    },
    Quarrel {
        is_named: false,
        ..quarrel(
            // By the script itself, which lives as long as it does so.
            "while test ! -e /run/give-up; do echo 0 > /proc/sys/net/ipv6/conf/all/forwarding; sleep 0.05; done",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
            "bad-manager-3 (process",
        )
    },
];

/// What takes the program off a port, by the link that weir has there now: others of this machine's kernel are not looked at.
pub const PROGRAM_MANAGER: Quarrel = Quarrel {
    is_named: false,
    ..quarrel(
        "while test ! -e /run/give-up; do
            program=$(ip -d link show lan0 | sed -n 's,.*prog/xdp id \\([0-9]*\\).*,\\1,p')
            test -z \"$program\" || bpftool link show | sed -n \"s/^\\([0-9]*\\): xdp  prog $program .*/\\1/p\" |
                while read link; do bpftool link detach id $link; done
            sleep 0.05
        done",
        "attach XDP to lan0",
        "somebody",
    )
};

/// Everything that a quarrel is about is there.
const ALL_WHOLE: [usize; 8] = [0, 1, 3, 4, 6, 12, 15, 16];

/// Plays quarrels at the same time: each is named and backed off from, told once, and over when the manager gives up.
fn assert_backed_off(quarrels: &[Quarrel]) {
    play(&Settings::default(), |world| {
        world.meet_neighbours();
        let names = (0..quarrels.len()).map(|number| format!("bad-manager-{number}"));
        let managers: Vec<Manager> =
            names.zip(quarrels).map(|(name, of)| Manager::start(world, &name, of.body)).collect();
        let repairs = |status: &Value, what: &str| {
            let contested = status["contested"].as_array().unwrap().iter();
            let of_it = |one: &&Value| one["what"].as_str().unwrap().contains(what);
            contested.filter(of_it).map(|one| one["repairs"].as_u64().unwrap()).max().unwrap_or(0)
        };
        let mut status = Value::Null;
        until("weir says who removes what", || {
            status = world.weir.status();
            // Enough quarrel for a pause of two seconds.
            quarrels.iter().all(|of| repairs(&status, of.what) >= 6)
        });
        let from = Instant::now();
        let said = world.weir.finish(world.weir.command("status"));
        assert_eq!(said.code(), 1);
        for (number, Quarrel { what, by, is_named, .. }) in quarrels.iter().enumerate() {
            let sentence = format!("`{what}");
            let reasons =
                status["unhealthy"].as_array().unwrap().iter().map(|reason| reason.as_str().unwrap());
            let reason = reasons.into_iter().find(|reason| reason.starts_with(&sentence)).unwrap_or_default();
            assert!(reason.contains(by) && reason.contains("was removed"), "{what}: {status:#}");
            let script = format!("started by bad-manager-{number} (");
            // Two of one kind may be taken for each other.
            let script = if quarrels.len() > 1 { "started by bad-manager-" } else { &script };
            assert!(!is_named || reason.contains(script), "{reason}");
            assert!(said.output.contains(&format!("NOT HEALTHY: {sentence}")), "{}", said.output);
        }
        std::thread::sleep(Duration::from_millis(900));
        let later = world.weir.status();
        for Quarrel { what, .. } in quarrels {
            let more = repairs(&later, what) - repairs(&status, what);
            let most = 1 + from.elapsed().as_secs() / 2;
            assert!(more <= most, "{what} is not backed off from: {more} more in {:?}", from.elapsed());
        }
        // What goes by the fast road, or is forwarded, does not care.
        Family::BOTH.into_iter().for_each(|family| fetch_intact(&mut world.connect(family, HTTP), 10_000));
        Manager::give_up(managers, world);
        until("weir is well again", || world.weir.status()["healthy"] == true);
        for whole in ALL_WHOLE.map(|removal| REMOVALS[removal].2).into_iter().chain([PROGRAMS]) {
            world.sh(&world.lab.gateway, whole);
        }
        all_roads(world);
        let ended = world.weir.stop();
        for Quarrel { what, .. } in quarrels {
            for once in ["is removed again and again", "holds again"] {
                let told = ended.errors.lines().filter(|line| line.contains(what) && line.contains(once));
                assert_eq!(told.count(), 1, "{what} {once}: {}", ended.errors);
            }
        }
        // What they have set the sysctls to is their wish by now, and stays when weir goes.
        world.sh(&world.lab.gateway, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        world.assert_as_before();
    });
}

#[test]
fn managers_that_keep_removing_rules_and_routes_are_named_and_backed_off_from_until_they_give_up() {
    assert_backed_off(&ROUTING_MANAGERS);
}

#[test]
fn managers_that_keep_changing_tables_addresses_and_sysctls_are_told_and_backed_off_from() {
    assert_backed_off(&OTHER_MANAGERS);
}

#[test]
fn manager_that_keeps_detaching_the_program_is_told_and_backed_off_from() {
    assert_backed_off(&[PROGRAM_MANAGER]);
}

/// Changes as fast as it can what weir must look at, and counts.
const STORM: &str = "n=0; while test ! -e /run/give-up; do
    ip rule add priority 7 lookup 7; nft add table inet storm; ip route add 203.0.113.0/24 dev lo table 7
    ip rule del priority 7; nft delete table inet storm; ip route del 203.0.113.0/24 table 7
    n=$((n + 6)); echo $n > /run/changes
done";

#[test]
fn changes_in_a_loop_cost_a_few_rounds_a_second_and_what_is_removed_meanwhile_is_back() {
    play(&Settings::default(), |world| {
        let (start, rounds) = (Instant::now(), world.weir.status()["repair_rounds"].as_u64().unwrap());
        let manager = Manager::start(world, "storm", STORM);
        for round in 0..3 {
            for (removal, kind, whole) in [REMOVALS[0], REMOVALS[4], REMOVALS[6], REMOVALS[11]] {
                let before = world.weir.count("repairs", kind);
                world.sh(&world.lab.gateway, removal);
                is_mended(world, removal, whole);
                until(&format!("{removal} is counted, {round}"), || {
                    world.weir.count("repairs", kind) > before
                });
            }
            // So that the next removal is no part of a quarrel.
            until("nothing is contested", || world.weir.status()["contested"] == Value::Array(Vec::new()));
        }
        let rounds = world.weir.status()["repair_rounds"].as_u64().unwrap() - rounds;
        let seconds = start.elapsed().as_secs_f64();
        let changes = world.sh(&world.lab.gateway, "cat /run/changes");
        assert!(rounds as f64 <= 3.0 * seconds + 10.0, "{rounds} rounds in {seconds} s of {changes} changes");
        Manager::give_up([manager], world);
        // In the calm after it, too.
        let before = world.weir.status()["repair_rounds"].as_u64().unwrap();
        let calm = Instant::now();
        all_roads(world);
        std::thread::sleep(Duration::from_secs(2));
        let rounds = world.weir.status()["repair_rounds"].as_u64().unwrap() - before;
        assert!(rounds as f64 <= 3.0 * calm.elapsed().as_secs_f64() + 10.0, "{rounds} rounds in a calm");
        world.sh(&world.lab.gateway, "rm /run/storm /run/give-up /run/changes");
    });
}

#[test]
fn kernel_road_of_a_box_that_fails_open_is_forwarded_while_its_rule_or_route_is_missing() {
    for Quarrel { body, what, .. } in &ROUTING_MANAGERS {
        play(&Settings { handshake: "relay", ..Settings::default() }, |world| {
            let manager = Manager::start(world, "bad-manager", body);
            until(&format!("{what} is given up for now"), || {
                let status = world.weir.status();
                status["contested"].as_array().unwrap().iter().any(|one| one["repairs"].as_u64() >= Some(7))
                    && !world.sh(&world.lab.gateway, "nft list tables").contains("inet weir")
            });
            for family in Family::BOTH {
                until(&format!("connections are forwarded without {what}"), || {
                    let mut stream = world.connect(family, HTTP);
                    fetch_intact(&mut stream, 10_000);
                    world.weir.find_flow(stream.local_addr().unwrap()).is_none()
                });
            }
            Manager::give_up([manager], world);
            until("weir is well again", || world.weir.status()["healthy"] == true);
            for family in Family::BOTH {
                let mut stream = world.connect(family, HTTP);
                fetch_intact(&mut stream, 10_000);
                assert_eq!(world.weir.flow(stream.local_addr().unwrap())["road"], "relay", "{what}");
            }
        });
    }
}

#[test]
fn repairs_are_in_the_metrics() {
    let gateway = "metrics = \"127.0.0.1:9470\"".to_owned();
    play(&Settings { gateway, ..Settings::default() }, |world| {
        world.sh(&world.lab.gateway, "ip -6 rule del priority 1077");
        until("it is counted", || {
            let text = world.lab.gateway.run(|| scrape().unwrap_or_default());
            text.contains("weir_repairs_total{kind=\"rule\"} 1\n")
                && text.contains("weir_repairs_total{kind=\"xdp\"} 0\n")
                && text.contains("# TYPE weir_repairs_total counter")
                && text.contains("weir_contested 0\n")
        });
    });
}

fn scrape() -> std::io::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect("127.0.0.1:9470")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
