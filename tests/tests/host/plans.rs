//! What `weir plan` says, and that it is true.

use weir_control::host::{HostError, Plan, Status, Step};

use crate::space::{assert_same, dump, gateway, host, isolated, sh, spec};

fn plan() -> Plan {
    host(async |h| h.plan(&spec()).await).unwrap()
}

fn find<'a>(plan: &'a Plan, begins: &str) -> &'a Step {
    let steps = plan.steps.iter();
    let mut found = steps.filter(|s| s.action.commands()[0].starts_with(begins));
    found.next().unwrap_or_else(|| panic!("no step {begins} in\n{plan}"))
}

isolated! {
    fn bare_host_plan_is_all_missing_and_changes_nothing() {
        gateway();
        let before = dump();
        let plan = plan();
        // Reverse path filtering is off here, which is as good as loose.
        let steps = plan.steps.iter().filter(|s| !s.action.title().contains("rp_filter"));
        assert!(steps.clone().count() > 8 && steps.clone().all(|s| s.status == Status::Missing), "{plan}");
        assert!(!plan.is_done());
        assert_same(&before, &dump());
    }
}

isolated! {
    fn plan_typed_into_a_shell_is_then_present_and_cleaned_like_weirs_own() {
        gateway();
        sh("sysctl -qw net.ipv4.conf.all.src_valid_mark=1 net.ipv4.conf.all.rp_filter=1");
        std::fs::write("/run/plan.sh", plan().to_string()).unwrap();
        sh("sh -e /run/plan.sh");
        let after = plan();
        assert!(after.is_done(), "{after}");
        assert!(after.steps.iter().all(|s| s.status == Status::Present), "{after}");
        let applied = host(async |h| h.apply(&spec()).await).unwrap();
        assert_eq!(applied.commands, Vec::<String>::new());
        host(async |h| h.clean().await).unwrap();
        assert_eq!(sh("nft list ruleset"), "");
        assert_eq!(sh("ip rule | wc -l; ip -6 rule | wc -l"), "3\n2\n");
    }
}

isolated! {
    fn every_line_of_the_table_is_marked_and_the_script_mends_what_differs() {
        gateway();
        host(async |h| h.apply(&spec()).await).unwrap();
        let handle = |comment: &str| {
            sh(&format!("nft -a list table inet weir | sed -n 's/.*\\\"{comment}\\\".*handle //p'")).trim().to_owned()
        };
        let syn = handle("web IPv6");
        for (change, line, status, note) in [
            (format!("nft delete rule inet weir syn handle {syn}"), "web IPv6\"", Status::Missing, "took something out"),
            (
                format!("nft replace rule inet weir prerouting handle {} accept comment '\"only TCP is intercepted\"'", handle("only TCP is intercepted")),
                "only TCP is intercepted",
                Status::Conflicting,
                "it has chain prerouting: accept",
            ),
            ("nft 'add element inet weir to_0_ipv4 { 10.99.0.0/16 }'".to_owned(), "10.9.0.0/16", Status::Conflicting, "10.99.0.0/16"),
            ("nft 'add rule inet weir syn drop'".to_owned(), "add table inet weir", Status::Present, "it has chain syn: drop"),
        ] {
            assert!(plan().is_done(), "before {change}");
            sh(&change);
            let now = plan();
            let step = find(&now, "nft ");
            let lines = step.lines();
            let of_line = lines.iter().find(|l| l.command.contains(line)).unwrap();
            assert_eq!((step.status, of_line.status), (Status::Conflicting, status), "after {change}:\n{now}");
            assert!(step.note.as_ref().unwrap().contains(note), "after {change}: {:?}", step.note);
            let others = lines.iter().filter(|l| l.status == Status::Present).count();
            assert!(others >= lines.len() - 4, "after {change}:\n{now}");
            std::fs::write("/run/plan.sh", now.to_string()).unwrap();
            sh("sh -e /run/plan.sh && rm /run/plan.sh");
        }
        assert!(plan().is_done());
    }
}

isolated! {
    fn devices_that_come_with_weir_are_comments_in_the_script() {
        gateway();
        sh("ip link del weir-relay && ip link del weir-punt && sysctl -qw net.ipv4.conf.all.rp_filter=1");
        let before = plan().to_string();
        assert!(before.contains("# ip addr add 192.0.0.8/32 dev weir-relay scope link  # missing: the device appears"), "{before}");
        std::fs::write("/run/plan.sh", before).unwrap();
        sh("sh -e /run/plan.sh");
        let after = plan().to_string();
        let commands: Vec<&str> = after.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(commands, Vec::<&str>::new(), "what is there is no command any more");
    }
}

isolated! {
    fn plan_as_json_has_commands_and_statuses() {
        gateway();
        let json = serde_json::to_value(plan()).unwrap();
        let steps = json["steps"].as_array().unwrap();
        for ip in ["ip", "ip -6"] {
            let rule = format!("{ip} rule add fwmark 0x77/0xff lookup 177 priority 1077 protocol 119");
            let step = steps.iter().find(|s| s["commands"][0] == rule).unwrap();
            assert_eq!(step["status"], "missing");
        }
        assert!(json["warnings"].is_array());
    }
}

isolated! {
    fn states_of_a_host_are_told_apart() {
        gateway();
        // What is done before, the step that is asked, its status, whether a person must decide.
        let assert_state = |before: &str, step: &str, status: Status, blocks: bool| {
            sh(before);
            let plan = plan();
            let step = find(&plan, step);
            assert_eq!((step.status, step.blocks), (status, blocks), "after {before}:\n{plan}");
        };
        for (before, status, blocks) in [
            ("true", Status::Missing, false),
            ("nft add table inet weir", Status::Foreign, true),
            ("nft delete table inet weir; nft 'add table inet weir { comment \"weir 00000000\"; }'", Status::Conflicting, false),
        ] {
            assert_state(before, "nft ", status, blocks);
        }
        for (ip, net) in [("ip", "192.0.2.0/24"), ("ip -6", "2001:db8:2::/64")] {
            for (before, step, status, blocks) in [
                ("true", "rule add", Status::Missing, false),
                ("IP rule add fwmark 0x77/0xff lookup 177 priority 1077", "rule add", Status::Foreign, false),
                ("IP rule del priority 1077; IP rule add fwmark 0x77/0xff lookup 177 priority 1077 protocol 119", "rule add", Status::Present, false),
                ("IP rule add fwmark 0x78/0xff lookup 177 priority 1077 protocol 119", "rule del fwmark 0x78", Status::Conflicting, false),
                ("true", "route add", Status::Missing, false),
                ("IP route add local default dev lo table 177", "route add", Status::Foreign, false),
                ("IP route add NET dev lan table 177", "route add", Status::Foreign, true),
                ("IP route flush table 177; IP route add local default dev lo table 177 proto 119", "route add", Status::Present, false),
                ("IP route add NET dev lan table 177 proto 119", "route del NET table 177", Status::Conflicting, false),
                ("IP route add local default dev lo table 178 proto 119", "route del local default table 178", Status::Conflicting, false),
            ] {
                let of_family = |text: &str| text.replace("IP", ip).replace("NET", net);
                assert_state(&of_family(before), &of_family(&format!("IP {step}")), status, blocks);
            }
        }
        // Nothing of it is in weir's way.
        host(async |h| h.apply(&spec()).await).unwrap();
        assert!(plan().is_done(), "{}", plan());
        let routes = "ip route show table 178; ip -6 route show table 178; ip route show table 177; ip -6 route show table 177";
        assert_eq!(sh(routes).matches("proto 119").count(), 2, "{}", sh(routes));
    }
}

/// How the step for a sysctl stands, by `weir plan` and by `weir plan --iptables`, with its note.
fn state_of(key: &str) -> (Status, String) {
    let plan = plan();
    let step = find(&plan, &format!("sysctl -w {key}="));
    let lines = host(async |h| h.plan_iptables(&spec()).await).unwrap().lines;
    let line = lines.iter().find(|line| line.command == step.action.title()).unwrap();
    assert_eq!((line.status, &line.note), (step.status, &step.note));
    assert_eq!(line.runs, step.is_due());
    (step.status, step.note.clone().unwrap_or_default())
}

isolated! {
    fn sysctls_of_both_families_are_told_apart_by_who_wants_them_how() {
        gateway();
        let file = "mkdir -p /run/sysctl.d && echo 'LINE' > /run/sysctl.d/50-router.conf";
        let says = |line: &str| sh(&file.replace("LINE", line));
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            let assert_state = |status: Status, words: &str| {
                let (now, note) = state_of(key);
                assert!(now == status && note.contains(words), "{key}: {now} {note:?}, not {status} {words:?}");
            };
            assert_state(Status::Missing, "now 0");
            says(&format!("{key} = 0"));
            assert_state(Status::Conflicting, "now 0, as /run/sysctl.d/50-router.conf:1 says: change it there too");
            // As a script, too.
            assert!(plan().to_string().contains(&format!("\nsysctl -w {key}=1  # conflicting: now 0, as /run/")));
            host(async |h| h.apply(&spec()).await).unwrap();
            assert_state(Status::Present, "50-router.conf:1 says 0: so it is again after a reboot");
            sh("rm /run/sysctl.d/50-router.conf");
            assert_state(Status::Present, "");
            sh(&format!("sysctl -qw {key}=0"));
            assert_state(Status::Conflicting, "weir had set it to 1, and somebody has changed it since");
            std::fs::write("/run/plan.sh", plan().to_string()).unwrap();
            sh("sh -e /run/plan.sh");
            assert_state(Status::Present, "");
            host(async |h| h.remove().await).unwrap();
            assert_eq!(sh(&format!("sysctl -n {key}")), "0\n");
            // Somebody's own is left alone, now and when weir goes.
            says(&format!("{key}=1"));
            sh("sysctl -qp /run/sysctl.d/50-router.conf");
            assert_state(Status::Foreign, "50-router.conf:1 says 1: left as it is");
            host(async |h| h.apply(&spec()).await).unwrap();
            host(async |h| h.remove().await).unwrap();
            assert_eq!(sh(&format!("sysctl -n {key}")), "1\n");
            sh(&format!("rm /run/sysctl.d/50-router.conf && sysctl -qw {key}=0"));
        }
    }
}

isolated! {
    fn sysctls_of_devices_that_a_pattern_of_somebodys_is_for_are_conflicting() {
        gateway();
        sh("mkdir /run/sysctl.d");
        for (line, key) in [
            ("net.ipv4.conf.*.src_valid_mark = 1", "net.ipv4.conf.lan.src_valid_mark"),
            ("net/ipv4/conf/weir-*/rp_filter = 1", "net.ipv4.conf.weir-punt.rp_filter"),
            ("net.ipv6.conf.weir-*.disable_ipv6 = 1", "net.ipv6.conf.weir-relay.disable_ipv6"),
        ] {
            let value = sh(&format!("sysctl -n {key}"));
            sh(&format!("echo '{line}' > /run/sysctl.d/a.conf && sysctl -qw {key}=1"));
            let (status, note) = state_of(key);
            assert!(status == Status::Conflicting && note.contains("/run/sysctl.d/a.conf:1 says"), "{key}: {status} {note}");
            assert!(!plan().is_done());
            sh(&format!("sysctl -qw {key}={value}"));
        }
    }
}

isolated! {
    fn table_of_somebody_else_is_refused_and_left_alone() {
        gateway();
        sh("nft add table inet weir && nft add chain inet weir mine");
        let before = dump();
        let error = host(async |h| h.apply(&spec()).await).unwrap_err();
        assert!(matches!(error, HostError::Foreign(_)), "{error}");
        assert_eq!(error.to_string(), "a table inet weir is there that weir did not make: rename it or delete it");
        host(async |h| h.clean().await).unwrap();
        assert!(sh("nft list ruleset").contains("chain mine"));
        sh("ip tuntap add weir-relay mode tun && ip tuntap add weir-punt mode tun");
        let rules = |text: &str| text.split("# ip -d link").next().unwrap().to_owned();
        assert_same(&rules(&before), &rules(&dump()));
    }
}

isolated! {
    fn rule_removed_by_a_network_manager_is_missing_and_repaired() {
        gateway();
        host(async |h| h.apply(&spec()).await).unwrap();
        let whole = dump();
        sh("nft flush ruleset; for v in -4 -6; do ip $v rule del priority 1077; ip $v route flush table 177; done");
        let due: Vec<String> =
            plan().steps.iter().filter(|s| s.is_due()).map(|s| s.action.title()).collect();
        assert_eq!(
            due,
            [
                "ip route add local default dev lo table 177 proto 119",
                "ip -6 route add local default dev lo table 177 proto 119",
                "ip rule add fwmark 0x77/0xff lookup 177 priority 1077 protocol 119",
                "ip -6 rule add fwmark 0x77/0xff lookup 177 priority 1077 protocol 119",
                "nft add table inet weir ...",
            ]
        );
        host(async |h| h.apply(&spec()).await).unwrap();
        assert_same(&whole, &dump());
        sh("nft flush chain inet weir prerouting");
        assert!(!plan().is_done());
        host(async |h| h.apply(&spec()).await).unwrap();
        assert_same(&whole, &dump());
    }
}

isolated! {
    fn warnings_name_what_weir_does_not_change() {
        gateway();
        sh("sysctl -qw net.ipv4.conf.all.src_valid_mark=1");
        sh("for v in -4 -6; do ip $v rule add fwmark 0x4/0x4 lookup 99 priority 50; done");
        let mut missing = spec();
        missing.ports.push("eth7".into());
        let plan = host(async |h| h.plan(&missing).await).unwrap();
        for part in [
            "wg-quick",
            "`ip rule add fwmark 0x4/0x4 lookup 99 priority 50` selects by bits",
            "`ip -6 rule add fwmark 0x4/0x4 lookup 99 priority 50` selects by bits",
            "no device named eth7 here",
        ] {
            assert!(plan.warnings.iter().any(|w| w.contains(part)), "{part}: {:#?}", plan.warnings);
        }
    }
}
