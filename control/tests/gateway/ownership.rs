//! The host after weir is the host before weir, by the kernel's own tools; and there is one weir in a namespace.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use weir_control::demo::stage::Family;
use weir_control::lab::differences;

use crate::config::Settings;
use crate::weir::{Weir, until, what_stays_wrong};
use crate::world::{HTTP, World, fetch_intact, prepare};

/// Whatever weir could leave something in. Ages, lifetimes and statistics are taken out.
const DUMPS: [&str; 13] = [
    "ip -j rule",
    "ip -j -6 rule",
    "ip -j -d route show table all | sort",
    "ip -j -d -6 route show table all",
    "ip -j -d addr",
    "ip -j -d link",
    "ip -j maddr",
    "nft -j list ruleset",
    "iptables-save; ip6tables-save",
    // A link of another test that is just being made cannot be looked at.
    "while net=$(bpftool -j net); echo \"$net\" | grep -q '\"error\"'; do sleep 0.02; done; echo \"$net\"",
    "find /sys/fs/bpf",
    "find /run",
    "grep -rs '' /proc/sys/net | sort",
];

/// Everything, a line for each fact.
pub fn dump(world: &World<'_>) -> String {
    let mut text = String::new();
    for line in DUMPS {
        let output = world.sh(&world.lab.gateway, line);
        // One fact a line: JSON objects are cut at their ends.
        for fact in output.replace("},{", "},\n{").lines() {
            let fact = without(fact, "valid_life_time");
            let fact = without(&without(&fact, "preferred_life_time"), "expires");
            if !["nf_conntrack_count", "tcp_fastopen_key", "# Generated", "# Completed", "\"metainfo\""]
                .iter()
                .any(|live| fact.contains(live))
            {
                text.push_str(&format!("{line}: {fact}\n"));
            }
        }
    }
    text
}

/// JSON without the values of a key.
fn without(text: &str, key: &str) -> String {
    let key = format!("\"{key}\":");
    let mut parts = text.split(&key);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |whole, part| whole + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// The gateway has, or has soon, what it had: the kernel takes programs off and frees devices in its own time.
#[track_caller]
pub fn assert_same(what: &str, before: &str, world: &World<'_>) {
    let difference = what_stays_wrong(|| differences(before, &dump(world)));
    assert!(difference.is_empty(), "{what}: left behind (+) or lost (-):\n{difference}");
}

/// Traffic on every road, so that what it creates is there too.
pub fn traffic(world: &World<'_>) {
    Family::BOTH.into_iter().for_each(|family| fetch_intact(&mut world.connect(family, HTTP), 10_000));
}

#[test]
fn stop_clean_and_a_start_after_a_crash_end_in_the_state_before() {
    for fail in ["open", "closed"] {
        prepare(&Settings { fail, ..Settings::default() }, |world| {
            // Sysctls that weir must change, those of devices that it does not use among them.
            world.sh(
                &world.lab.gateway,
                "ip tuntap add other mode tun && sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 \
                 net.ipv6.conf.other.forwarding=1 net.ipv4.conf.wan0.forwarding=1 net.ipv4.conf.all.rp_filter=1 \
                 net.ipv4.conf.all.src_valid_mark=1 net.ipv4.conf.lan0.src_valid_mark=1",
            );
            let before = dump(world);
            for round in 0..2 {
                world.weir.start();
                traffic(world);
                assert_ne!(before, dump(world));
                assert_eq!(world.weir.stop().code(), 0);
                assert_same(&format!("stop {round}"), &before, world);
            }
            world.weir.start();
            traffic(world);
            world.weir.kill();
            assert_eq!(world.weir.clean().code(), 0);
            assert_same("clean", &before, world);
            world.weir.start();
            world.weir.kill();
            world.weir.start();
            traffic(world);
            world.weir.kill();
            world.weir.start();
            assert_eq!(world.weir.stop().code(), 0);
            assert_same("killed twice, started and stopped", &before, world);
            world.sh(
                &world.lab.gateway,
                "ip link del other && sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.all.src_valid_mark=0 \
                 net.ipv4.conf.lan0.src_valid_mark=0 net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
            );
        });
    }
}

#[test]
fn journal_that_is_damaged_after_a_crash_is_told_and_the_rest_of_it_restored() {
    const OTHERWISE: &str = "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 net.ipv4.conf.lan0.src_valid_mark=1 \
         net.ipv6.conf.wan0.accept_ra=1";
    prepare(&Settings::default(), |world| {
        let gateway = &world.lab.gateway;
        world.sh(gateway, OTHERWISE);
        let before = dump(world);
        world.weir.start();
        world.weir.kill();
        // A torn line at the end, and a draft of a weir that was killed while it wrote.
        world.sh(gateway, "cd /run/weir; for j in journal-*.json; do printf '{\"key\":\"net/ipv4/co' >> $j; echo x > $j.new; done");
        let cleaned = world.weir.clean();
        assert_eq!(cleaned.code(), 0, "{cleaned:?}");
        let restored = ["sysctl -w net.ipv4.ip_forward=0", "sysctl -w net.ipv6.conf.all.forwarding=0"];
        for word in ["was damaged", "net/ipv4/co", "instance-"].into_iter().chain(restored) {
            assert!(cleaned.output.contains(word), "no {word:?} in {}", cleaned.output);
        }
        assert_same("cleaned", &before, world);
        // Nothing of it can be read: weir starts all the same, and says so.
        world.weir.start();
        world.weir.kill();
        world.sh(gateway, "for j in /run/weir/journal-*.json; do echo nonsense > $j; done");
        world.weir.start();
        let ended = world.weir.stop();
        assert!(
            ended.errors.contains("was damaged") && ended.errors.contains("nonsense"),
            "{}",
            ended.errors
        );
        world.sh(gateway, OTHERWISE);
        assert_same("after nonsense", &before, world);
        world.sh(gateway, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.lan0.src_valid_mark=0");
    });
}

#[test]
fn sysctl_that_somebody_changed_after_a_crash_is_his_and_told() {
    prepare(&Settings::default(), |world| {
        let gateway = &world.lab.gateway;
        world.sh(
            gateway,
            "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 net.ipv4.conf.wan0.forwarding=1 \
                            net.ipv4.conf.lan0.src_valid_mark=2",
        );
        let before = dump(world);
        world.weir.start();
        world.weir.kill();
        world.sh(gateway, "sysctl -qw net.ipv4.conf.lan0.src_valid_mark=1 net.ipv6.conf.all.forwarding=2");
        let cleaned = world.weir.clean();
        for so in ["net.ipv4.conf.lan0.src_valid_mark is 1", "net.ipv6.conf.all.forwarding is 2"] {
            let told = format!("{so} by somebody else's hand: left alone");
            assert!(cleaned.output.contains(&told), "{}", cleaned.output);
        }
        assert_eq!(world.sh(gateway, "cat /proc/sys/net/ipv4/conf/lan0/src_valid_mark"), "1\n");
        assert_eq!(world.sh(gateway, "cat /proc/sys/net/ipv6/conf/all/forwarding"), "2\n");
        world.sh(gateway, "sysctl -qw net.ipv4.conf.lan0.src_valid_mark=2 net.ipv6.conf.all.forwarding=0");
        assert_same("and everything else is restored", &before, world);
        world.sh(gateway, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.lan0.src_valid_mark=0");
    });
}

#[test]
fn second_weir_is_told_process_and_configuration_of_the_first() {
    prepare(&Settings::default(), |world| {
        world.weir.start();
        let pid = world.weir.status()["pid"].to_string();
        world.sh(&world.lab.gateway, "cp /run/weir/test.toml /run/second.toml");
        for what in [&["run", "-c", "/run/second.toml"][..], &["clean"]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
            command.args(what);
            let second = world.weir.finish(command);
            assert_eq!(second.code(), 3, "{second:?}");
            for word in [&format!("as process {pid} with"), "/run/weir/test.toml", "stop it first"] {
                assert!(second.errors.contains(word), "no {word:?} in {}", second.errors);
            }
        }
        traffic(world);
        assert_eq!(world.weir.status()["healthy"], true);
        world.sh(&world.lab.gateway, "rm /run/second.toml");
    });
}

#[test]
fn of_two_that_start_at_once_one_runs_and_the_other_is_refused() {
    prepare(&Settings::default(), |world| {
        for _ in 0..3 {
            let mut other = Weir::new(world.lab, &Settings::default().to_string());
            world.weir.spawn();
            other.spawn();
            until("one has given up", || world.weir.ended().is_some() || other.ended().is_some());
            if world.weir.ended().is_some() {
                std::mem::swap(&mut world.weir, &mut other);
            }
            let refused = other.wait();
            assert_eq!(refused.code(), 3, "{refused:?}");
            assert!(refused.errors.contains("another weir runs in this network namespace"), "{refused:?}");
            let pid = world.weir.pid();
            until("the other runs", || world.weir.status_if_any().is_some_and(|status| status["pid"] == pid));
            traffic(world);
            assert_eq!(world.weir.stop().code(), 0);
            world.assert_as_before();
        }
    });
}

#[test]
fn weir_in_another_namespace_with_the_same_mounts_disturbs_none_and_is_not_disturbed() {
    for fail in ["open", "closed"] {
        prepare(&Settings { fail, ..Settings::default() }, |world| {
            let gateway = &world.lab.gateway;
            let other = Settings {
                fail,
                gateway: "admin = \"/run/weir/other.sock\"".to_owned(),
                ..Settings::default()
            };
            gateway.run(|| std::fs::write("/run/other.toml", other.to_string())).unwrap();
            // Only the network is another: /run and bpffs are shared.
            world.sh(gateway, "touch /run/elsewhere && unshare --net=/run/elsewhere true");
            let inside = |line: &str| format!("nsenter --net=/run/elsewhere sh -c '{line}'");
            let links = "ip link add lan0 type veth peer name lanp && ip link add wan0 type veth peer name wanp && \
                 for d in lo lan0 wan0 lanp wanp; do ip link set $d addrgenmode none && ip link set $d up; done";
            world.sh(gateway, &inside(links));
            let state = inside(
                "ip rule; ip -6 rule; ip route show table all; nft list ruleset; ip -br link; cat /proc/sys/net/ipv4/ip_forward",
            );
            // The kernel says a little later that a link is up.
            until("the links are up", || {
                let links = world.sh(gateway, &inside("ip -br link"));
                links.lines().filter(|line| line.split_whitespace().nth(1) == Some("UP")).count() == 4
            });
            let untouched = world.sh(gateway, &state);
            let files = world.sh(gateway, "find /run /sys/fs/bpf");
            world.weir.start();
            let mut command = Command::new("nsenter");
            command.arg("--net=/run/elsewhere").arg(env!("CARGO_BIN_EXE_weir"));
            command.args(["run", "-c", "/run/other.toml"]).env_remove("NOTIFY_SOCKET");
            let mut second = gateway.spawn_command(command).expect("weir can be started");
            let asks = || {
                let socket = Path::new("/run/weir/other.sock");
                gateway.run(|| weir_control::admin::client::ask(socket, weir_control::admin::Request::Status))
            };
            until("the other weir answers", || asks().is_ok_and(|status| status["healthy"] == true));
            traffic(world);
            // The first is killed and cleaned: the other goes on.
            world.weir.kill();
            assert_eq!(world.weir.clean().code(), 0);
            std::thread::sleep(Duration::from_millis(300));
            assert!(asks().is_ok_and(|status| status["healthy"] == true));
            assert!(world.sh(gateway, &inside("nft list tables; ip rule")).contains("proto 119"));
            // The other is killed and cleaned: the first, started again, goes on.
            world.weir.start();
            second.kill().expect("killed");
            let clean = inside(&format!("{} clean", env!("CARGO_BIN_EXE_weir")));
            world.sh(gateway, &clean);
            until("its namespace is as it was", || world.sh(gateway, &state) == untouched);
            assert_eq!(world.weir.status()["healthy"], true);
            traffic(world);
            assert_eq!(world.weir.stop().code(), 0);
            until("its files are gone", || world.sh(gateway, "find /run /sys/fs/bpf") == files);
            world.sh(gateway, "umount /run/elsewhere && rm /run/elsewhere /run/other.toml");
            world.assert_as_before();
        });
    }
}
