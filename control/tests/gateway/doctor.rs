//! `weir doctor` on gateways that were broken on purpose: each fault is found by its id and subject, its command mends it,
//! and on the healthy gateway nothing is found that is not so.

mod machine;

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use weir_control::doctor::NoCommand;
use weir_control::lab::host_state;

use crate::config::Settings;
use crate::repair::{Manager, PROGRAM_MANAGER};
use crate::weir::{Finished, until};
use crate::world::{World, play, prepare};

/// What is this machine's, and no test may change: its free huge pages, and how fast its cores run. Tests that show another machine
/// look for these by themselves, and so does that of a healthy one.
const OF_THE_MACHINE: [&str; 2] = ["hugepages", "governor"];

/// What the doctor says, and whether it says that all is well.
fn examine(world: &World<'_>) -> (Value, bool) {
    let ended = run(world, &["--json"]);
    let report: Value =
        serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    assert_eq!(ended.code(), i32::from(report["healthy"] == false), "{ended:?}");
    assert_whole(&report);
    let healthy = report["healthy"] == true;
    (report, healthy)
}

/// Each finding says what is so; if that is not good, why it matters, and the command that mends it or why there is none.
#[track_caller]
fn assert_whole(report: &Value) {
    for finding in report["findings"].as_array().expect("a list") {
        assert_ne!(finding["what"], "", "{finding:#}");
        let says = (finding["mend"].is_string(), finding["by_hand"].is_string());
        match finding["severity"] == "good" {
            true => assert_eq!(says, (false, false), "{finding:#}"),
            false => assert!(finding["why"] != "" && says.0 != says.1, "{finding:#}"),
        }
        if let Some(reason) = finding["by_hand"].as_str() {
            assert!(NoCommand::ALL.iter().any(|of| of.sentence() == reason), "{finding:#}");
        }
    }
}

fn run(world: &World<'_>, more: &[&str]) -> Finished {
    let mut command = world.weir.command("doctor");
    command.args(more);
    world.weir.finish(command)
}

/// Findings that are not good: but for what is this machine's, and that veth devices have no zero-copy, which is so in every lab.
fn troubles(report: &Value) -> Vec<&Value> {
    let all = report["findings"].as_array().expect("a list");
    let is_so = |f: &Value| {
        OF_THE_MACHINE.iter().any(|id| f["id"] == *id) || f["id"] == "zero-copy" && f["severity"] == "note"
    };
    let trouble = |f: &&Value| f["severity"] != "good" && !is_so(f);
    all.iter().filter(trouble).collect()
}

/// A fault: what breaks the gateway, what is found, how bad it is, and a word of the subject.
struct Fault {
    broken: &'static str,
    id: &'static str,
    severity: &'static str,
    subject: &'static str,
    /// The command that is printed mends it.
    mendable: bool,
}

const fn bad(broken: &'static str, id: &'static str, subject: &'static str) -> Fault {
    Fault { broken, id, severity: "bad", subject, mendable: true }
}

const fn note(broken: &'static str, id: &'static str, subject: &'static str) -> Fault {
    Fault { severity: "note", ..bad(broken, id, subject) }
}

/// Breaks the gateway, looks, mends it by the commands that are printed, and looks again.
#[track_caller]
fn assert_found_and_mended(world: &World<'_>, fault: &Fault) {
    let Fault { broken, id, severity, subject, mendable } = fault;
    let gateway = &world.lab.gateway;
    world.sh(gateway, broken);
    let (report, _) = examine(world);
    let found: Vec<&Value> = troubles(&report).into_iter().filter(|f| f["id"] == *id).collect();
    let fits = |f: &&Value| {
        f["severity"] == *severity && f["subject"].as_str().is_some_and(|text| text.contains(subject))
    };
    assert!(found.iter().any(fits), "{broken}: no {severity} {id} of {subject} in {:#?}", troubles(&report));
    if !mendable {
        return assert!(found.iter().all(|f| f["by_hand"].is_string()), "{broken}: {found:#?}");
    }
    assert!(found.iter().all(|f| f["mend"].is_string()), "{broken}: no command in {found:#?}");
    // What else came of the fault may have no command of its own.
    for command in troubles(&report).iter().filter_map(|finding| finding["mend"].as_str()) {
        let command = command.replace("weir clean", &format!("{} clean", env!("CARGO_BIN_EXE_weir")));
        // One command may mend two findings, and then the second has nothing to do.
        let mut shell = Command::new("sh");
        shell.args(["-c", &command]);
        gateway.run(|| shell.output()).expect("sh");
    }
    let (report, healthy) = examine(world);
    let left = troubles(&report);
    assert!(healthy && left.is_empty(), "{broken}: after the commands there is left {left:#?}");
}

/// Plays the faults in one gateway, one after the other.
fn assert_all(faults: &[Fault]) {
    prepare(&Settings::default(), |world| {
        faults.iter().for_each(|fault| assert_found_and_mended(world, fault));
    });
}

/// Shows what a machine has that is made for the work, by files of the lab's own over those of this one: free huge pages, and cores
/// that run at their highest frequency.
fn show_fit_machine(world: &World<'_>) {
    let lines = "set -e
        sed 's/^HugePages_Free:.*/HugePages_Free: 64/; s/^Hugepagesize:.*/Hugepagesize: 2048 kB/' /proc/meminfo > /run/meminfo
        mount --bind /run/meminfo /proc/meminfo; echo 64 > /run/free
        mount --bind /run/free /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages
        mkdir -p /run/work-cpu
        for core in /sys/devices/system/cpu/cpu[0-9]*; do
            mkdir -p /run/cpu/${core##*/}/cpufreq; echo performance > /run/cpu/${core##*/}/cpufreq/scaling_governor
        done
        mount -t overlay overlay -o lowerdir=/sys/devices/system/cpu,upperdir=/run/cpu,workdir=/run/work-cpu /sys/devices/system/cpu";
    world.sh(&world.lab.gateway, lines);
}

#[test]
fn healthy_gateway_has_nothing_to_mend_and_stays_as_it_is() {
    // veth devices have no zero-copy, and whoever says so in the configuration is not told of it.
    prepare(&Settings { mode: "copy", ..Settings::default() }, |world| {
        show_fit_machine(world);
        let before = host_state(&world.lab.gateway).expect("the gateway can be looked at");
        let (report, healthy) = examine(world);
        let findings = report["findings"].as_array().expect("a list");
        let not_good: Vec<&Value> = findings.iter().filter(|f| f["severity"] != "good").collect();
        assert!(healthy && not_good.is_empty(), "{not_good:#?}");
        for id in OF_THE_MACHINE.into_iter().chain([
            "open-files",
            "zero-copy",
            "napi",
            "coalescing",
            "shared",
            "rx-vlan",
        ]) {
            assert!(findings.iter().any(|f| f["id"] == id), "{id} was not looked for: {report:#}");
        }
        assert!(report["running"].is_null());
        world.assert_state(&before);
    });
}

#[test]
fn report_is_a_table_for_people_and_names_every_port() {
    prepare(&Settings::default(), |world| {
        let ended = run(world, &[]);
        assert_eq!(ended.code(), 0, "{ended:?}");
        for words in ["healthy: 0 bad", "weir does not run", "\nhost\n", "port lan (lan0)", "port wan (wan0)"]
        {
            assert!(ended.output.contains(words), "no {words:?} in\n{}", ended.output);
        }
        assert!(!ended.output.contains("is up"), "good findings are summed up:\n{}", ended.output);
        assert!(run(world, &["--verbose"]).output.contains("link: lan0: is up"));
    });
}

#[test]
fn json_says_of_each_finding_what_why_and_how_to_mend_it() {
    prepare(&Settings::default(), |world| {
        world.sh(&world.lab.gateway, "ip link set wan0 mtu 1400");
        let (report, _) = examine(world);
        let findings = report["findings"].as_array().expect("a list");
        let count = |severity: &str| findings.iter().filter(|f| f["severity"] == severity).count();
        for (severity, name) in [("bad", "bad"), ("note", "notes"), ("good", "good")] {
            assert_eq!(report[name], count(severity), "{report:#}");
        }
        for finding in findings {
            let keys: Vec<&String> = finding.as_object().expect("an object").keys().collect();
            let all = ["by_hand", "id", "mend", "port", "severity", "subject", "what", "why"];
            assert_eq!(keys, all, "{finding:#}");
        }
        for skipped in report["not_probed"].as_array().expect("a list") {
            assert!(skipped["id"].is_string() && skipped["why"] != "", "{skipped:#}");
        }
    });
}

#[test]
fn ports_that_are_not_fit_are_found() {
    assert_all(&[
        bad("ip link set lan0 down && ip addr add 10.77.1.1/24 dev lan0 2>/dev/null; true", "link", "lan0"),
        note("ip link set wan0 mtu 1400", "mtu-alike", "lan0, wan0"),
        bad("ip link set lan0 mtu 9000 && ip link set wan0 mtu 9000", "mtu", "lan0"),
        bad("ip link add br0 type bridge && ip link set lan0 master br0", "controller", "lan0"),
        // Interrupts put off by one of two settings.
        note("echo 2 > /sys/class/net/lan0/napi_defer_hard_irqs", "napi", "lan0"),
        note("echo 20000 > /sys/class/net/wan0/gro_flush_timeout", "napi", "wan0"),
        Fault { mendable: false, ..bad("ip link del wan0", "port", "wan0") },
    ]);
}

#[test]
fn sysctls_in_the_way_are_found_for_both_families() {
    let ra = "ip -6 route add default via 2001:db8:2::99 dev wan0 proto ra";
    assert_all(&[
        note("sysctl -qw net.ipv4.ip_forward=0", "forwarding-v4", "net.ipv4.ip_forward"),
        note("sysctl -qw net.ipv4.conf.wan0.forwarding=0", "forwarding-v4", "net.ipv4.conf.wan0.forwarding"),
        note("sysctl -qw net.ipv6.conf.all.forwarding=0", "forwarding-v6", "net.ipv6.conf.all.forwarding"),
        note("sysctl -qw net.ipv4.conf.all.src_valid_mark=1", "src-valid-mark", "net.ipv4.conf.all"),
        note("sysctl -qw net.ipv4.conf.lan0.src_valid_mark=1", "src-valid-mark", "net.ipv4.conf.lan0"),
        note("sysctl -qw net.ipv4.conf.lan0.rp_filter=1", "rp-filter", "net.ipv4.conf.lan0"),
        note("sysctl -qw net.ipv4.conf.all.rp_filter=1", "rp-filter", "net.ipv4.conf.wan0"),
        bad(ra, "accept-ra", "net.ipv6.conf.wan0.accept_ra"),
        note(
            "sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.wan0.accept_ra=1",
            "accept-ra",
            "net.ipv6.conf.wan0.accept_ra",
        ),
        bad("sysctl -qw net.ipv4.tcp_fwmark_accept=1", "tcp-fwmark-accept", "net.ipv4.tcp_fwmark_accept"),
        note("sysctl -qw net.ipv4.fwmark_reflect=1", "fwmark-reflect", "net.ipv4.fwmark_reflect"),
        note("sysctl -qw net.ipv6.fwmark_reflect=1", "fwmark-reflect", "net.ipv6.fwmark_reflect"),
        note("sysctl -qw net.ipv6.conf.lan0.disable_ipv6=1", "ipv6", "net.ipv6.conf.lan0"),
    ]);
}

#[test]
fn rules_and_routes_in_the_way_are_found_for_both_families() {
    assert_all(&[
        bad("ip rule add priority 100 lookup main", "ip-rule", "ip rule 100"),
        bad("ip -6 rule add priority 100 lookup main", "ip-rule", "ip -6 rule 100"),
        bad("ip rule add fwmark 0x1/0x1 priority 100 blackhole", "ip-rule", "ip rule 100"),
        note("ip rule add from 10.77.1.0/24 priority 100 lookup main", "ip-rule", "ip rule 100"),
        note("ip -6 rule add fwmark 0x10/0xff priority 2000 lookup 5", "ip-rule", "ip -6 rule 2000"),
        // One that goes past weir's.
        bad("ip rule add priority 100 goto 32766", "ip-rule", "ip rule 100"),
        bad("ip -6 rule add priority 100 goto 32766", "ip-rule", "ip -6 rule 100"),
        bad("ip route add 203.0.113.0/24 dev wan0 table 177", "table", "ip route table 177"),
        bad("ip -6 route add 2001:db8:9::/64 dev wan0 table 177", "table", "ip -6 route table 177"),
        note("ip route add local 203.0.113.0/24 dev lo", "route-to-self", "203.0.113.0/24"),
        note("ip -6 route add local 2001:db8:9::/64 dev lo", "route-to-self", "2001:db8:9::/64"),
    ]);
}

/// The kernel deletes the first rule that has all that it is told.
#[test]
fn command_against_a_rule_spares_the_others_of_its_priority() {
    prepare(&Settings::default(), |world| {
        for (ip, net) in [("ip", "10.9.0.0/16"), ("ip -6", "2001:db8:9::/48")] {
            // Neither is in the way: both are for packets of nobody, and come first.
            for other in [format!("from {net} lookup 5"), "iif lan0 lookup 254 fwmark 0x100/0x100".to_owned()]
            {
                world.sh(&world.lab.gateway, &format!("{ip} rule add priority 100 {other}"));
            }
            let rules = || world.sh(&world.lab.gateway, &format!("{ip} rule show"));
            let before = rules();
            world.sh(&world.lab.gateway, &format!("{ip} rule add priority 100 lookup 254"));
            let (report, _) = examine(world);
            let found = trouble_of(&report, "ip-rule");
            assert!(found.len() == 1 && found[0]["severity"] == "bad", "{report:#}");
            world.sh(&world.lab.gateway, found[0]["mend"].as_str().expect("a command"));
            assert_eq!(rules(), before);
            assert!(trouble_of(&examine(world).0, "ip-rule").is_empty());
        }
    });
}

#[test]
fn rules_of_other_proxies_are_found_for_both_families() {
    const PRE: &str =
        "nft 'add table inet fw; add chain inet fw pre { type filter hook prerouting priority -150; }";
    let rule = |text: &str| format!("{PRE}; add rule inet fw pre {text}'").leak() as &'static str;
    assert_all(&[
        bad(rule("meta nfproto ipv4 tcp dport 80 tproxy ip to :99"), "foreign-tproxy", "inet fw pre"),
        bad(rule("meta nfproto ipv6 tcp dport 80-90 tproxy ip6 to :99"), "foreign-tproxy", "inet fw pre"),
        bad(
            "iptables -t mangle -A PREROUTING -p tcp -j TPROXY --on-port 99 --tproxy-mark 0x100/0x100",
            "foreign-tproxy",
            "ip mangle PREROUTING",
        ),
        bad(
            "ip6tables -t mangle -A PREROUTING -p tcp -j TPROXY --on-port 99 --tproxy-mark 0x100/0x100",
            "foreign-tproxy",
            "ip6 mangle PREROUTING",
        ),
        bad(rule("tcp dport 9999 meta mark set 0x77"), "foreign-mark", "inet fw pre"),
        bad(
            "iptables -t mangle -A PREROUTING -j MARK --set-xmark 0x2/0x2",
            "foreign-mark",
            "ip mangle PREROUTING",
        ),
        bad(
            "ip6tables -t mangle -A PREROUTING -j MARK --set-xmark 0x2/0x2",
            "foreign-mark",
            "ip6 mangle PREROUTING",
        ),
        bad(
            "nft 'add table inet fw; add chain inet fw pre { type filter hook prerouting priority -150; }; add chain inet fw marks; \
             add rule inet fw marks meta mark set 0x100; add rule inet fw pre jump marks'",
            "foreign-mark",
            "inet fw marks",
        ),
        // Its bits are weir's, which writes its own after it; what is copied may have any.
        note(
            "nft 'add table inet fw; add chain inet fw early { type filter hook prerouting priority -200; }; \
             add rule inet fw early tcp dport 9999 meta mark set 0x10'",
            "foreign-mark",
            "inet fw early",
        ),
        note(
            "nft 'add table inet fw; add chain inet fw out { type route hook output priority -150; }; \
             add rule inet fw out tcp dport 9999 meta mark set 0x10'",
            "foreign-mark",
            "inet fw out",
        ),
        note(rule("meta mark set ct mark"), "foreign-mark", "inet fw pre"),
        note(
            "iptables -t mangle -A PREROUTING -j CONNMARK --restore-mark",
            "foreign-mark",
            "ip mangle PREROUTING",
        ),
        note(
            "ip6tables -t mangle -A PREROUTING -j CONNMARK --restore-mark",
            "foreign-mark",
            "ip6 mangle PREROUTING",
        ),
    ]);
}

/// Whether a rule drops by the way in is tried, with it and without it.
#[test]
fn rules_that_drop_by_the_way_in_are_found_for_both_families() {
    const PRE: &str =
        "nft 'add table inet fw; add chain inet fw pre { type filter hook prerouting priority -150; }";
    let rules = |text: &str| format!("{PRE}; {text}'").leak() as &'static str;
    let pre = |text: &str| rules(&format!("add rule inet fw pre {text}"));
    let id = "rpfilter-rule";
    assert_all(&[
        bad(pre("fib saddr . iif oif missing drop"), id, "inet fw pre"),
        bad(pre("fib saddr . iif oif vmap { 0 : drop }"), id, "inet fw pre"),
        bad("iptables -t raw -A PREROUTING -m rpfilter --invert -j DROP", id, "ip raw PREROUTING"),
        bad("ip6tables -t raw -A PREROUTING -m rpfilter --invert -j DROP", id, "ip6 raw PREROUTING"),
        // What drops is elsewhere, and so is what asks.
        bad(
            rules(
                "add chain inet fw gone; add rule inet fw gone drop; \
                 add rule inet fw pre fib saddr . iif oif missing jump gone",
            ),
            id,
            "inet fw pre",
        ),
        bad(
            rules(
                "add chain inet fw ask; add rule inet fw ask fib saddr . iif oif missing drop; add rule inet fw pre jump ask",
            ),
            id,
            "inet fw ask",
        ),
        // One device is excepted, and weir's other one is not.
        bad(pre("iifname != \"weir-punt\" fib saddr . iif oif missing drop"), id, "inet fw pre"),
    ]);
}

#[test]
fn rules_that_ask_for_the_way_in_and_drop_nothing_of_weirs_are_no_trouble() {
    prepare(&Settings::default(), |world| {
        let way = "fib saddr . iif oif missing";
        let to_chain = |chain: &str, rule: &str| format!("add rule inet fw {chain} {rule}");
        for rules in [
            to_chain("pre", &format!("{way} log prefix \"drop \"")),
            to_chain("pre", &format!("{way} counter comment \"drop\"")),
            to_chain("pre", &format!("iifname \"eth9\" {way} drop")),
            format!(
                "{}; {}",
                to_chain("pre", "iifname { \"weir-punt\", \"weir-relay\" } accept"),
                to_chain("pre", &format!("{way} drop"))
            ),
            // Nobody jumps there.
            format!("add chain inet fw idle; {}", to_chain("idle", &format!("{way} drop"))),
        ] {
            world.sh(
                &world.lab.gateway,
                &format!(
                    "nft 'add table inet fw; add chain inet fw pre {{ type filter hook prerouting priority -150; }}; {rules}'"
                ),
            );
            let (report, healthy) = examine(world);
            assert!(healthy && troubles(&report).is_empty(), "{rules}: {:#?}", troubles(&report));
            world.sh(&world.lab.gateway, "nft delete table inet fw");
        }
        let excepted = "for v in '' 6; do ip${v}tables -t raw -A PREROUTING -i weir-+ -j ACCEPT; \
                        ip${v}tables -t raw -A PREROUTING -m rpfilter --invert -j DROP; done";
        world.sh(&world.lab.gateway, excepted);
        let (report, healthy) = examine(world);
        assert!(healthy && troubles(&report).is_empty(), "{:#?}", troubles(&report));
    });
}

/// A rule that lets packets through where they are forwarded is of no use to those that are lost before.
#[test]
fn firewall_that_drops_before_its_forward_chain_has_no_command_that_does_not_help() {
    assert_all(&[Fault {
        mendable: false,
        ..bad(
            "nft 'add table inet early; add chain inet early pre { type filter hook prerouting priority -150; }; \
             add chain inet early through { type filter hook forward priority 0; }; \
             add rule inet early pre iifname \"weir-punt\" drop'",
            "forward-chain",
            "inet early",
        )
    }]);
}

#[test]
fn rule_for_ports_and_bits_of_nobody_is_no_trouble() {
    prepare(&Settings::default(), |world| {
        let rules = "add table inet fw; add chain inet fw pre { type filter hook prerouting priority -160; }; \
                     add rule inet fw pre tcp dport 9999 tproxy to :99; add rule inet fw pre udp dport 53 meta mark set 0x100; \
                     add rule inet fw pre tcp dport 99 counter comment \"tproxy, meta mark set 0x77\"; \
                     add chain inet fw usual { type filter hook prerouting priority -150; }; \
                     add rule inet fw usual udp dport 53 meta mark set 0x100; add rule inet fw usual tcp dport 9999 meta mark set 0x100; \
                     add chain inet fw idle; add rule inet fw idle tcp dport 80 tproxy to :99; add rule inet fw idle meta mark set 0x77; \
                     add chain inet fw through { type filter hook forward priority 0; policy drop; }; \
                     add rule inet fw through iifname { \"lan0\", \"wan0\", \"weir-punt\" } accept";
        world.sh(&world.lab.gateway, &format!("nft '{rules}'"));
        // What leaves has another address then, and is not lost for that.
        world.sh(
            &world.lab.gateway,
            "for v in '' 6; do ip${v}tables -t nat -A POSTROUTING -j MASQUERADE; done",
        );
        let (report, healthy) = examine(world);
        assert!(healthy && troubles(&report).is_empty(), "{:#?}", troubles(&report));
    });
}

#[test]
fn firewalls_that_drop_what_weir_hands_over_are_found_for_both_families() {
    const STATEFUL: &str = "nft 'add table inet stateful; add chain inet stateful through { type filter hook forward priority 0; policy drop; }; \
                            add rule inet stateful through ct state established,related accept; \
                            add rule inet stateful through iifname lan0 oifname wan0 accept'";
    const INPUT: &str = "nft 'add table inet closed; add chain inet closed in { type filter hook input priority 0; policy drop; }; \
                         add rule inet closed in tcp dport 22 accept'";
    const INVALID: &str = "nft 'add table inet strict; add chain inet strict through { type filter hook forward priority 0; }; \
                           add rule inet strict through ct state invalid drop'";
    const INVALID_BY_MAP: &str = "nft 'add table inet mapped; add chain inet mapped through { type filter hook forward priority 0; }; \
                                  add rule inet mapped through ct state vmap { invalid : drop, established : accept }'; \
                                  sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0";
    assert_all(&[
        bad("iptables -P FORWARD DROP", "forward-chain", "ip filter"),
        bad("ip6tables -P FORWARD DROP", "forward-chain", "ip6 filter"),
        bad("iptables -P INPUT DROP", "input-chain", "ip filter"),
        bad("ip6tables -P INPUT DROP", "input-chain", "ip6 filter"),
        bad(STATEFUL, "forward-chain", "inet stateful"),
        bad(INPUT, "input-chain", "inet closed"),
        bad(INVALID, "conntrack-invalid", "inet strict through"),
        bad(INVALID_BY_MAP, "conntrack-invalid", "inet mapped through"),
        bad(
            "iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP; \
             sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0",
            "conntrack-invalid",
            "ip filter FORWARD",
        ),
        bad(
            "ip6tables -A FORWARD -m conntrack --ctstate INVALID -j DROP; \
             sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0",
            "conntrack-invalid",
            "ip6 filter FORWARD",
        ),
    ]);
}

#[test]
fn listener_of_somebody_else_on_the_port_is_found_for_both_families() {
    prepare(&Settings::default(), |world| {
        for family in ["0.0.0.0:12377", "[::]:12377"] {
            let socket =
                world.lab.gateway.run(|| std::net::TcpListener::bind(family)).expect("the port is free");
            let killed = format!("kill {}", std::process::id());
            // A child that some other test is about to start has the socket, too, until it is another program.
            until("its process is named", || {
                let (report, healthy) = examine(world);
                let found = troubles(&report);
                assert!(
                    !healthy && found.len() == 1 && found[0]["id"] == "listen-port",
                    "{family}: {found:#?}"
                );
                found[0]["mend"] == killed.as_str()
            });
            drop(socket);
            world.until_gone(&world.lab.gateway, ":12377 ");
            assert!(examine(world).1);
        }
    });
}

#[test]
fn program_of_somebody_else_on_a_port_is_found_and_left_alone() {
    prepare(&Settings::default(), |world| {
        let foreign = world.lab.gateway.run(|| {
            let mut steering =
                weir_sys::steering::Steering::load(&weir_sys::steering::Sizes::default()).unwrap();
            let index = weir_sys::ethtool::index_of("lan0").unwrap();
            steering.attach("lan0", index, weir_sys::steering::AttachMode::Native).unwrap();
            steering
        });
        let (report, healthy) = examine(world);
        let found = troubles(&report);
        assert!(!healthy && found.len() == 1 && found[0]["id"] == "xdp-program", "{found:#?}");
        let skipped = report["not_probed"].as_array().expect("a list");
        assert!(skipped.iter().any(|s| s["id"] == "zero-copy" && s["subject"] == "lan0"), "{skipped:#?}");
        let links = world.sh(&world.lab.gateway, "ip link show dev lan0");
        assert!(links.contains("xdp"), "the program is gone: {links}");
        drop(foreign);
        until("the kernel takes the program off", || {
            !world.sh(&world.lab.gateway, "ip link show dev lan0").contains("xdp")
        });
        assert!(examine(world).1);
    });
}

/// A program that no process holds goes by the command, wherever it runs.
#[test]
fn program_that_nobody_holds_is_found_and_taken_off() {
    prepare(&Settings::default(), |world| {
        let gateway = &world.lab.gateway;
        world.sh(gateway, "ip link add spare0 type veth peer name spare1");
        let program = gateway.run(|| {
            let mut steering =
                weir_sys::steering::Steering::load(&weir_sys::steering::Sizes::default()).unwrap();
            let index = weir_sys::ethtool::index_of("spare0").unwrap();
            steering.attach("spare0", index, weir_sys::steering::AttachMode::Generic).unwrap();
            steering
        });
        let id = world.sh(gateway, "ip -d link show spare0 | sed -n 's,.*prog/xdp id \\([0-9]*\\).*,\\1,p'");
        for mode in ["xdpgeneric", "xdpdrv"] {
            let attach = format!("bpftool net attach {mode} id {} dev lan0", id.trim());
            assert_found_and_mended(world, &bad(attach.leak(), "xdp-program", "lan0"));
        }
        drop(program);
    });
}

#[test]
fn queues_that_do_not_fit_are_found() {
    prepare(&Settings { queues: 2, ..Settings::default() }, |world| {
        // The kernel gives a veth no XDP whose other end sends by more queues than it receives on.
        world.sh(&world.lab.client, "ethtool -L client0 rx 1 tx 1");
        world.sh(&world.lab.server, "ethtool -L server0 rx 1 tx 1");
        let faults = [
            note("ethtool -L wan0 rx 1 tx 1", "queues-alike", "lan0, wan0"),
            note("ip link set dev lan0 mtu 1499", "mtu-alike", "lan0, wan0"),
        ];
        faults.iter().for_each(|fault| assert_found_and_mended(world, fault));
        for (queues, severity) in [("[0, 3]", "bad"), ("[0]", "note")] {
            world.sh(&world.lab.gateway, "ethtool -L lan0 rx 2 tx 2; ethtool -L wan0 rx 2 tx 2; true");
            let config = Settings::default().to_string();
            let config =
                config.replace("device = \"lan0\"", &format!("device = \"lan0\"\nqueues = {queues}"));
            world.weir.write_config(&config);
            let (report, _) = examine(world);
            let found = troubles(&report);
            let of_port = found.iter().find(|f| f["id"] == "queues" && f["port"] == "lan0");
            let of_port = of_port.unwrap_or_else(|| panic!("{report:#}"));
            assert_eq!(of_port["severity"], severity, "{queues}");
            // No command gives a device more than it can have.
            let asks = (severity == "note").then_some("ethtool -L lan0 rx 1 tx 1");
            assert_eq!(of_port["mend"].as_str(), asks, "{of_port:#}");
            assert_eq!(of_port["what"].to_string().contains("can have 2"), severity == "bad", "{of_port:#}");
            if let Some(command) = asks {
                world.sh(&world.lab.gateway, command);
                assert!(trouble_of(&examine(world).0, "queues").is_empty());
            }
        }
    });
}

/// Ports whose other ends are in the gateway, too, as those of NICs that are cabled with each other.
#[test]
fn directions_of_connections_are_sent_to_ports_that_this_host_can_send_to() {
    prepare(&Settings { queues: 2, ..Settings::default() }, |world| {
        let gateway = &world.lab.gateway;
        let make = |device: &str, queues: u32| {
            let of = format!("numrxqueues {queues} numtxqueues {queues}");
            // Without addresses, which come when they like.
            let up =
                |device: &str| format!("ip link set {device} addrgenmode none; ip link set {device} up;");
            let ends = [up(device), up(&format!("{device}-end"))].concat();
            format!("ip link add {device} {of} type veth peer name {device}-end {of}; {ends}")
        };
        let symmetry = |report: &Value| {
            let found = report["findings"].as_array().expect("a list").iter();
            found
                .filter(|f| f["id"] == "rss-symmetry")
                .map(|f| f["what"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        // Only the other namespaces can send to these, and a veth device tells no hash.
        let (report, _) = examine(world);
        let skipped =
            report["not_probed"].as_array().expect("a list").iter().find(|s| s["id"] == "rss-symmetry");
        let why = skipped.unwrap_or_else(|| panic!("{report:#}"))["why"].to_string();
        assert!(why.contains("no frame that this host sends arrives at lan0"), "{why}");
        assert_eq!(symmetry(&report), Vec::<String>::new());
        let config =
            Settings::default().to_string().replace("\"lan0\"", "\"near1\"").replace("\"wan0\"", "\"near2\"");
        world.weir.write_config(&config);
        for (queues, words) in [
            (4, "both directions of each of 256 connections come to queues of one number"),
            (2, "have their directions on queues of different numbers"),
        ] {
            world.sh(gateway, &format!("{}{}", make("near1", 4), make("near2", queues)));
            until("both have a carrier", || {
                world.sh(gateway, "cat /sys/class/net/near1/operstate /sys/class/net/near2/operstate")
                    == "up\nup\n"
            });
            let before = host_state(gateway).expect("the gateway can be looked at");
            let what = symmetry(&examine(world).0);
            assert!(
                what.len() == 1 && what[0].starts_with("frames were sent: ") && what[0].contains(words),
                "{what:?}"
            );
            world.assert_state(&before);
            world.sh(gateway, "ip link del near1 && ip link del near2");
        }
    });
}

#[test]
fn queues_that_come_while_weir_runs_are_told_and_taken_back_by_the_command() {
    prepare(&Settings { queues: 2, ..Settings::default() }, |world| {
        world.sh(&world.lab.client, "ethtool -L client0 rx 1 tx 1");
        world.sh(&world.lab.gateway, "ethtool -L lan0 rx 1 tx 1");
        world.weir.start();
        assert!(trouble_of(&examine(world).0, "queues").is_empty());
        world.sh(&world.lab.gateway, "ethtool -L lan0 rx 2 tx 1");
        until("weir says so", || world.weir.logged().contains("have no worker"));
        let (report, healthy) = examine(world);
        let found = trouble_of(&report, "queues");
        assert!(healthy && found.len() == 1 && found[0]["port"] == "lan0", "{report:#}");
        world.sh(&world.lab.gateway, found[0]["mend"].as_str().expect("a command"));
        until("weir says that it is over", || world.weir.logged().contains("every queue is read again"));
        assert!(trouble_of(&examine(world).0, "queues").is_empty());
    });
}

#[test]
fn veth_without_native_xdp_is_found_with_the_kernels_reason() {
    prepare(&Settings { queues: 2, ..Settings::default() }, |world| {
        world.sh(&world.lab.gateway, "ethtool -L wan0 rx 1 tx 1");
        let (report, _) = examine(world);
        let found = troubles(&report);
        let generic = found.iter().find(|f| f["id"] == "xdp-mode").unwrap_or_else(|| panic!("{report:#}"));
        assert_eq!((&generic["port"], &generic["severity"]), (&"wan0".into(), &"note".into()));
        assert!(generic["what"].as_str().is_some_and(|what| what.contains("native mode")), "{generic:#}");
    });
}

#[test]
fn bpf_file_system_that_a_closed_box_needs_is_found_missing() {
    for (fail, severity) in [("closed", "bad"), ("open", "note")] {
        prepare(&Settings { fail, ..Settings::default() }, |world| {
            let fault = Fault { severity, ..bad("umount /sys/fs/bpf", "bpffs", "/sys/fs/bpf") };
            assert_found_and_mended(world, &fault);
        });
    }
}

#[test]
fn intercept_of_own_addresses_is_found_for_both_families() {
    prepare(&Settings::default(), |world| {
        let to = "to = [\"203.0.113.7/32\", \"2001:db8:77::7/128\"]";
        let config = Settings::default().to_string().replace("to = [\"0.0.0.0/0\", \"::/0\"]", to);
        world.weir.write_config(&config);
        assert!(examine(world).1);
        for fault in [
            bad("ip addr add 203.0.113.7/32 dev wan0", "route-to-self", "intercept web"),
            bad("ip addr add 2001:db8:77::7/128 dev wan0 nodad", "route-to-self", "intercept web"),
        ] {
            assert_found_and_mended(world, &fault);
        }
    });
}

#[test]
fn mode_that_the_driver_has_not_is_bad() {
    prepare(&Settings { mode: "zero-copy", ..Settings::default() }, |world| {
        let (report, healthy) = examine(world);
        let findings = report["findings"].as_array().expect("a list");
        let refused = findings.iter().filter(|f| f["id"] == "zero-copy" && f["severity"] == "bad");
        assert!(!healthy && refused.count() == 2, "{report:#}");
    });
}

#[test]
fn running_gateway_is_asked_and_not_disturbed() {
    play(&Settings::default(), |world| {
        world.meet_neighbours();
        let before = host_state(&world.lab.gateway).expect("the gateway can be looked at");
        let (report, healthy) = examine(world);
        assert!(healthy && troubles(&report).is_empty(), "{:#?}", troubles(&report));
        assert_eq!(report["running"], world.weir.status()["pid"]);
        let modes = report["findings"].as_array().expect("a list").iter().filter(|f| f["id"] == "xdp-mode");
        assert_eq!(modes.count(), 2, "{report:#}");
        world.assert_state(&before);
    });
}

#[test]
fn routes_of_somebody_else_in_the_table_of_a_running_weir_go_by_the_command_and_weirs_own_stays() {
    play(&Settings::default(), |world| {
        for (ip, net) in [("ip", "203.0.113.0/24"), ("ip -6", "2001:db8:9::/64")] {
            world.sh(&world.lab.gateway, &format!("{ip} route add {net} dev wan0 table 177"));
            let (report, healthy) = examine(world);
            let found = trouble_of(&report, "table");
            assert!(!healthy && found.len() == 1, "{report:#}");
            let log = world.sh(&world.lab.gateway, &format!("{ip} route show table 177"));
            world.sh(&world.lab.gateway, found[0]["mend"].as_str().expect("a command"));
            let left = world.sh(&world.lab.gateway, &format!("{ip} route show table 177"));
            assert!(
                log.contains(net) && !left.contains(net) && left.contains("local default"),
                "{log}{left}"
            );
            assert!(trouble_of(&examine(world).0, "table").is_empty());
        }
    });
}

#[test]
fn frames_that_cross_between_workers_are_counted_and_no_trouble() {
    play(&Settings { queues: 2, ..Settings::default() }, |world| {
        world.meet_neighbours();
        for family in weir_control::demo::stage::Family::BOTH {
            for _ in 0..8 {
                crate::world::fetch_intact(&mut world.connect(family, crate::world::HTTP), 50_000);
            }
        }
        until("frames crossed", || world.weir.count("flows", "handed-over") > 0);
        let (report, _) = examine(world);
        let about = |f: &&Value| f["id"] == "rss-symmetry";
        let found: Vec<&Value> =
            report["findings"].as_array().expect("a list").iter().filter(about).collect();
        assert_eq!(found.len(), 1, "{report:#}");
        assert_eq!(found[0]["severity"], "good", "{found:#?}");
        let what = found[0]["what"].as_str().unwrap_or_default();
        assert!(what.contains("frames crossed") && !what.starts_with("0 of"), "{what}");
    });
}

/// What is found under an id that is not good.
fn trouble_of<'a>(report: &'a Value, id: &str) -> Vec<&'a Value> {
    troubles(report).into_iter().filter(|finding| finding["id"] == id).collect()
}

#[test]
fn places_that_are_taken_are_found_with_who_has_them() {
    let gateway = "metrics = \"127.0.0.1:9470\"".to_owned();
    prepare(&Settings { gateway, ..Settings::default() }, |world| {
        let kill = format!("kill {}", std::process::id());
        let metrics = world.lab.gateway.run(|| std::net::TcpListener::bind("127.0.0.1:9470")).expect("free");
        until("its process is named", || {
            let (report, healthy) = examine(world);
            let found = trouble_of(&report, "metrics-port");
            assert!(!healthy && found.len() == 1, "{report:#}");
            found[0]["mend"] == kill.as_str()
        });
        drop(metrics);
        world.until_gone(&world.lab.gateway, ":9470 ");
        let admin = "/run/weir/admin.sock";
        let other = world.lab.gateway.run(|| std::os::unix::net::UnixListener::bind(admin)).expect("free");
        let (report, healthy) = examine(world);
        assert!(!healthy && trouble_of(&report, "admin-socket").len() == 1, "{report:#}");
        // Nobody listens there any more.
        drop(other);
        world.until_gone(&world.lab.gateway, &format!(" {admin} "));
        assert!(examine(world).1);
        world.sh(&world.lab.gateway, &format!("rm {admin} && echo mine > {admin}"));
        let (report, healthy) = examine(world);
        assert!(!healthy && trouble_of(&report, "admin-socket").len() == 1, "{report:#}");
        world.sh(&world.lab.gateway, &format!("rm {admin}"));
        assert!(examine(world).1);
    });
}

/// `weir doctor` without capabilities, and with these limits.
fn examine_as(world: &World<'_>, limits: &[&str], without: &str) -> Value {
    let doctor = world.weir.command("doctor");
    let mut command = Command::new("prlimit");
    command.args(limits).args(["setpriv", &format!("--bounding-set={without}"), "--inh-caps=-all"]);
    command.arg(doctor.get_program()).args(doctor.get_args()).arg("--json");
    let ended = world.weir.finish(command);
    let report: Value = serde_json::from_str(&ended.output).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
    assert_eq!(ended.code(), i32::from(report["healthy"] == false), "{ended:?}");
    report
}

#[test]
fn memory_that_may_not_be_locked_is_found_with_what_the_frames_need() {
    prepare(&Settings { queues: 2, ..Settings::default() }, |world| {
        let report = examine_as(world, &["--memlock=1048576:1048576"], "-ipc_lock,-sys_resource");
        let found = trouble_of(&report, "memlock");
        assert!(found.len() == 1 && found[0]["severity"] == "bad", "{report:#}");
        assert!(found[0]["what"].as_str().is_some_and(|what| what.contains("1048576 octets")), "{found:#?}");
        assert_eq!(found[0]["by_hand"], NoCommand::Starter.sentence(), "{found:#?}");
        // One that runs has its memory, whatever they may lock who look at it.
        world.weir.start();
        let report = examine_as(world, &["--memlock=1048576:1048576"], "-ipc_lock,-sys_resource");
        assert!(trouble_of(&report, "memlock").is_empty(), "{report:#}");
    });
}

#[test]
fn busy_workers_that_share_a_core_are_found() {
    prepare(&Settings { queues: 2, ..Settings::default() }, |world| {
        for (idle, severity) in [("busy", "bad"), ("adaptive", "note")] {
            let workers = format!("[workers]\ncores = [0]\nidle = \"{idle}\"\n");
            world.weir.write_config(&Settings::default().to_string().replace("[workers]\n", &workers));
            let (report, _) = examine(world);
            let found = trouble_of(&report, "workers");
            assert!(found.len() == 1 && found[0]["severity"] == severity, "{idle}: {report:#}");
        }
    });
}

#[test]
fn running_gateway_that_lost_a_port_says_so_itself() {
    prepare(&Settings::default(), |world| {
        world.weir.start();
        world.sh(&world.lab.gateway, "ip link del wan0");
        until("weir knows", || world.weir.status()["healthy"] == false);
        let (report, healthy) = examine(world);
        assert!(!healthy && trouble_of(&report, "port").len() == 1, "{report:#}");
        let told = trouble_of(&report, "gateway");
        assert!(
            told.iter().any(|f| f["severity"] == "bad" && f["what"].to_string().contains("wan0")),
            "{told:#?}"
        );
        // The other port is there, and goes on.
        world.weir.signal(rustix::process::Signal::TERM);
        assert_eq!(world.weir.wait().code(), 0);
    });
}

#[test]
fn weir_that_is_stopped_is_found_with_the_command_that_lets_it_go_on() {
    prepare(&Settings::default(), |world| {
        world.weir.start();
        world.weir.signal(rustix::process::Signal::STOP);
        let pid = world.weir.pid();
        assert_found_and_mended(world, &bad("true", "gateway", "process"));
        assert_eq!(world.weir.status()["pid"], pid);
        assert_eq!(world.weir.stop().code(), 0);
    });
}

#[test]
fn other_weir_in_the_namespace_is_found() {
    play(&Settings::default(), |world| {
        let gateway = "admin = \"/run/weir/other.sock\"".to_owned();
        world.weir.write_config(&Settings { gateway, ..Settings::default() }.to_string());
        let (report, healthy) = examine(world);
        let found = troubles(&report);
        let other = found.iter().find(|f| f["id"] == "instance").unwrap_or_else(|| panic!("{report:#}"));
        assert_eq!(other["mend"], format!("kill {}", world.weir.status()["pid"]));
        assert!(!healthy);
    });
}

#[test]
fn leftovers_of_a_killed_weir_are_found_and_cleaned() {
    for (fail, severity) in [("open", "note"), ("closed", "bad")] {
        prepare(&Settings { fail, ..Settings::default() }, |world| {
            world.weir.start();
            world.weir.kill();
            let fault = Fault { severity, ..bad("true", "leftovers", "this network namespace") };
            assert_found_and_mended(world, &fault);
            world.assert_as_before();
        });
    }
}

/// The kernel closes the sockets of a process that has ended in its own time, and a child that has not come to its exec has them too.
#[test]
fn weir_that_has_ended_and_whose_lock_is_held_a_moment_longer_is_no_other_weir() {
    prepare(&Settings::default(), |world| {
        world.weir.start();
        world.weir.kill();
        let name = SocketAddr::from_abstract_name("weir").expect("a name");
        let mut lock = None;
        until("the name is free", || {
            lock = world.lab.gateway.run(|| UnixListener::bind_addr(&name)).ok();
            lock.is_some()
        });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(500));
                drop(lock);
            });
            let (report, healthy) = examine(world);
            let found = troubles(&report);
            assert!(healthy && found.iter().any(|f| f["id"] == "leftovers"), "{found:#?}");
        });
        assert_eq!(world.weir.clean().code(), 0);
        world.assert_as_before();
    });
}

/// What is noted under an id, be it true of the machine or not.
fn noted<'a>(report: &'a Value, id: &str) -> Vec<&'a Value> {
    let all = report["findings"].as_array().expect("a list").iter();
    all.filter(|finding| finding["id"] == id && finding["severity"] != "good").collect()
}

/// What a machine with NICs shows of them, laid over what this one shows: two NUMA nodes, a governor that saves power, and two
/// queues of lan0 whose interrupts are on one core.
fn show_hardware(world: &World<'_>) {
    let lines = "
        mkdir -p /run/cpu/cpu0/cpufreq /run/cpu/cpu1/cpufreq /run/lan0/device/msi_irqs /run/node/node0 /run/node/node1
        mkdir -p /run/irq/40 /run/irq/41 /run/work-cpu /run/work-lan0 /run/work-node
        for core in 0 1; do echo powersave > /run/cpu/cpu$core/cpufreq/scaling_governor; done
        echo 0-7 > /run/node/node0/cpulist; echo 8-15 > /run/node/node1/cpulist
        echo '10 21' > /run/node/node0/distance; echo '21 10' > /run/node/node1/distance
        echo 1 > /run/lan0/device/numa_node
        for irq in 40 41; do touch /run/lan0/device/msi_irqs/$irq; echo 1 > /run/irq/$irq/smp_affinity_list; done
        over() { mount -t overlay overlay -o lowerdir=$2,upperdir=/run/$1,workdir=/run/work-$1 $2; }
        over cpu /sys/devices/system/cpu; over node /sys/devices/system/node; over lan0 /sys/devices/virtual/net/lan0
        mount --bind /run/irq /proc/irq
        printf ' 40: 7 0 PCI-MSI 0-edge lan0-rx-0\\n 41: 0 7 PCI-MSI 1-edge lan0-rx-1\\n' > /run/interrupts
        mount --bind /run/interrupts /proc/interrupts";
    world.sh(&world.lab.gateway, lines);
}

#[test]
fn cores_and_interrupts_that_slow_a_nic_are_found_and_mended() {
    prepare(&Settings { queues: 2, ..Settings::default() }, |world| {
        let workers = "[workers]\ncores = [0, 1]\n";
        world.weir.write_config(
            &Settings { queues: 2, ..Settings::default() }.to_string().replace("[workers]\n", workers),
        );
        show_hardware(world);
        let (report, healthy) = examine(world);
        assert!(healthy, "weir works with all of that: {report:#}");
        for (id, subject, words) in [
            ("governor", "cpufreq", "cpu0 powersave"),
            ("numa", "lan0", "is on NUMA node 1; the cores [0, 1] of workers are not (distance 21"),
            ("irq-affinity", "lan0", "are on the cores {1}: 40 (lan0-rx-0) on 1, 41 (lan0-rx-1) on 1"),
        ] {
            let found = noted(&report, id);
            assert!(found.len() == 1 && found[0]["severity"] == "note", "{id}: {report:#}");
            assert_eq!(found[0]["subject"], subject);
            assert!(found[0]["what"].as_str().is_some_and(|what| what.contains(words)), "{found:#?}");
            if let Some(command) = found[0]["mend"].as_str() {
                // One for each queue.
                let irqs = ["/proc/irq/40/", "/proc/irq/41/"];
                assert!(id != "irq-affinity" || irqs.iter().all(|irq| command.contains(irq)), "{command}");
                world.sh(&world.lab.gateway, command);
            }
        }
        let (report, _) = examine(world);
        for id in ["governor", "irq-affinity"] {
            assert!(noted(&report, id).is_empty(), "{id}: {report:#}");
        }
        // No command moves a NIC: the cores are chosen for it.
        let (local, lan) = ("echo 0-15 > /sys/devices/system/node/node1/cpulist", noted(&report, "numa"));
        assert!(lan.len() == 1 && lan[0]["mend"].is_null(), "{lan:#?}");
        world.sh(&world.lab.gateway, local);
        assert!(noted(&examine(world).0, "numa").is_empty());
    });
}

#[test]
fn irqbalance_that_moves_the_interrupts_is_found_by_its_process() {
    prepare(&Settings::default(), |world| {
        show_hardware(world);
        world.sh(&world.lab.gateway, "ln -s \"$(command -v sleep)\" /run/irqbalance");
        let mut command = Command::new("/run/irqbalance");
        command.arg("60");
        let mut mover = world.lab.gateway.spawn_command(command).expect("a process");
        let (report, _) = examine(world);
        let found = noted(&report, "irqbalance");
        let process = format!("runs as process {}", mover.inner().id());
        assert!(found.len() == 1 && found[0]["what"] == process.as_str(), "{report:#}");
        mover.kill().expect("it runs");
        drop(mover);
        assert!(noted(&examine(world).0, "irqbalance").is_empty());
    });
}

/// The other ends of the ports are in other namespaces.
#[test]
fn link_that_is_up_and_has_no_carrier_is_found_to_be_the_far_ends_matter() {
    prepare(&Settings::default(), |world| {
        for (end, far, device) in
            [(&world.lab.client, "client0", "lan0"), (&world.lab.server, "server0", "wan0")]
        {
            world.sh(end, &format!("ip link set {far} down"));
            let mut report = Value::Null;
            until("the carrier is gone", || {
                report = examine(world).0;
                !trouble_of(&report, "link").is_empty()
            });
            let found = trouble_of(&report, "link");
            assert!(found.len() == 1 && found[0]["subject"] == device, "{report:#}");
            assert_eq!(
                (&found[0]["severity"], &found[0]["what"]),
                (&"bad".into(), &"is up and has no carrier".into())
            );
            assert_eq!(found[0]["by_hand"], NoCommand::FarEnd.sentence());
            world.sh(end, &format!("ip link set {far} up"));
            until("the carrier is back", || trouble_of(&examine(world).0, "link").is_empty());
        }
    });
}

#[test]
fn driver_that_nobody_has_notes_on_is_told_and_what_the_kernel_says_of_it_is_asked() {
    prepare(&Settings::default(), |world| {
        world.sh(&world.lab.gateway, "ip link add odd0 type ifb && ip link set odd0 up");
        world.weir.write_config(&Settings::default().to_string().replace("\"wan0\"", "\"odd0\""));
        let (report, _) = examine(world);
        let found = trouble_of(&report, "driver");
        assert!(found.len() == 1 && found[0]["severity"] == "note", "{report:#}");
        assert_eq!(
            (&found[0]["port"], &found[0]["by_hand"]),
            (&"odd0".into(), &NoCommand::Nothing.sentence().into())
        );
        assert!(found[0]["what"].to_string().contains("driver ifb"), "{found:#?}");
    });
}

#[test]
fn vlan_of_an_intercept_that_has_no_sub_interface_is_found() {
    prepare(&Settings { intercept: "vlan = [10, \"100.20\"]", ..Settings::default() }, |world| {
        let (report, _) = examine(world);
        let found = trouble_of(&report, "vlan");
        assert!(found.len() == 1 && found[0]["port"] == "lan0", "{report:#}");
        assert_eq!(
            (&found[0]["severity"], &found[0]["by_hand"]),
            (&"note".into(), &NoCommand::Configuration.sentence().into())
        );
        let what = found[0]["what"].to_string();
        assert!(
            what.contains("intercept web names VLANs that have no sub-interface on it: 10, 100.20"),
            "{what}"
        );
        world.weir.write_config(&Settings::default().to_string());
        assert!(trouble_of(&examine(world).0, "vlan").is_empty());
    });
}

#[test]
fn host_whose_ipv6_is_switched_off_is_found_and_mended() {
    assert_all(&[
        note("sysctl -qw net.ipv6.conf.lo.disable_ipv6=1", "ipv6", "kernel"),
        note(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
            "ipv6",
            "kernel",
        ),
    ]);
}

/// Somebody takes it away again and again, and weir does not put it back as often.
#[test]
fn what_a_running_weir_lacks_of_the_kernel_is_found_with_the_commands_that_put_it_there() {
    play(&Settings::default(), |world| {
        let manager = Manager::start(
            world,
            "remover",
            "while test ! -e /run/give-up; do ip rule del priority 1077; ip -6 rule del priority 1077
                 ip route flush table 177; ip -6 route flush table 177; nft delete table inet weir; sleep 0.05; done",
        );
        let mut missing = std::collections::BTreeSet::from([
            "ip rule add fwmark 0x77/0xff",
            "ip -6 rule add fwmark 0x77/0xff",
            "ip route add local default dev lo table 177",
            "ip -6 route add local default dev lo table 177",
            "nft 'add table inet weir",
        ]);
        until("all of it is found", || {
            let (report, healthy) = examine(world);
            for finding in trouble_of(&report, "kernel-side") {
                assert!(!healthy && finding["severity"] == "bad", "{finding:#}");
                assert!(finding["what"].to_string().contains("while weir runs"), "{finding:#}");
                let mend = finding["mend"].as_str().expect("a command");
                missing.retain(|command| !mend.starts_with(*command));
            }
            missing.is_empty()
        });
        Manager::give_up([manager], world);
        until("weir is well again", || world.weir.status()["healthy"] == true);
        until("nothing is missing", || trouble_of(&examine(world).0, "kernel-side").is_empty());
    });
}

/// What is in weir's table beside it goes with the table: the command begins with that.
#[test]
fn table_of_a_running_weir_that_somebody_keeps_changing_is_found_with_a_command_that_replaces_it() {
    play(&Settings::default(), |world| {
        let manager = Manager::start(
            world,
            "changer",
            "while test ! -e /run/give-up; do nft add chain inet weir mine; sleep 0.05; done",
        );
        until("it is found", || {
            let (report, _) = examine(world);
            let found = trouble_of(&report, "kernel-side");
            let damaged =
                |finding: &&&Value| finding["what"].to_string().contains("is damaged while weir runs");
            found.iter().find(damaged).is_some_and(|finding| {
                let mend = finding["mend"].as_str().expect("a command");
                assert!(
                    mend.starts_with("nft 'delete table inet weir' && nft 'add table inet weir"),
                    "{mend}"
                );
                true
            })
        });
        Manager::give_up([manager], world);
        until("weir is well again", || world.weir.status()["healthy"] == true);
        until("nothing is missing", || trouble_of(&examine(world).0, "kernel-side").is_empty());
    });
}

#[test]
fn program_that_somebody_keeps_off_a_port_of_a_running_weir_is_found() {
    play(&Settings::default(), |world| {
        let manager = Manager::start(world, "detacher", PROGRAM_MANAGER.body);
        until("it is found", || {
            let (report, healthy) = examine(world);
            let found = trouble_of(&report, "xdp-program");
            // It takes the program off all devices that it finds it on.
            for finding in &found {
                assert!(
                    !healthy && ["lan0", "wan0"].contains(&finding["port"].as_str().unwrap()),
                    "{found:#?}"
                );
                assert_eq!(finding["severity"], "bad");
                assert_eq!(finding["by_hand"], NoCommand::Weir.sentence());
                assert!(finding["what"].to_string().contains("took the steering program"), "{finding:#}");
            }
            found.iter().any(|finding| finding["port"] == "lan0")
        });
        Manager::give_up([manager], world);
        until("weir is well again", || world.weir.status()["healthy"] == true);
        until("it is back", || trouble_of(&examine(world).0, "xdp-program").is_empty());
    });
}
