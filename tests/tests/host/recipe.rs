//! The recipe in iptables' words: a script that works, and knows what of it is there.

use std::io::Write as _;
use std::process::{Command, Stdio};

use weir_control::host::{IptablesPlan, Status};

use crate::space::{assert_same, dump, gateway, host, isolated, sh, spec};
use crate::tproxy::{V4, V6, assert_roads, at, echo, everything, lab, web};

fn plan(of: &weir_control::host::HostSpec) -> IptablesPlan {
    host(async |h| h.plan_iptables(of).await).unwrap()
}

/// Pipes text into a shell that ends at the first error.
fn pipe(script: &str) {
    let mut shell =
        Command::new("sh").arg("-e").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn count(plan: &IptablesPlan, status: Status) -> usize {
    plan.lines.iter().filter(|line| line.status == status).count()
}

isolated! {
    fn script_piped_into_a_shell_carries_connections_of_both_families_to_a_transparent_listener() {
        lab();
        sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.all.src_valid_mark=1");
        let mut spec = web();
        spec.intercepts[0].to = ["10.2.0.0/24", "198.51.100.0/24", "fd02::/64"].iter().map(|p| p.parse().unwrap()).collect();
        spec.intercepts[0].reject_quic = true;
        let before = plan(&spec);
        assert!(!before.is_done() && count(&before, Status::Present) == 0, "{before}");
        pipe(&before.to_string());
        let after = plan(&spec);
        assert!(after.is_done(), "{after}");
        for of in [&V4, &V6] {
            everything(of);
            assert_roads(of);
            echo(Some("server"), at(of.server, 443));
            assert_eq!(crate::tproxy::send("client", at(of.client, 0), at(of.server, 443)), "refused");
        }
        // A second time there is nothing left to do, and the same script does nothing.
        pipe(&after.to_string());
        assert!(plan(&spec).is_done());
        for of in [&V4, &V6] {
            assert_roads(of);
        }
    }
}

isolated! {
    fn what_is_taken_out_is_missing_and_the_script_mends_it() {
        gateway();
        let spec = spec();
        pipe(&plan(&spec).to_string());
        let whole = sh("iptables-save; ip6tables-save").lines().filter(|l| !l.starts_with('#')).count();
        for (ip, tables, forwarding) in
            [("ip", "iptables", "net.ipv4.ip_forward"), ("ip -6", "ip6tables", "net.ipv6.conf.all.forwarding")]
        {
            for line in [
                format!("{ip} rule del priority 1077"),
                format!("{ip} route flush table 177"),
                format!("{tables} -t mangle -D WEIR 1"),
                format!("{tables} -t mangle -F PREROUTING"),
                format!("{tables} -t filter -F FORWARD"),
                format!("sysctl -qw {forwarding}=0"),
            ] {
                sh(&line);
                let now = plan(&spec);
                assert!(count(&now, Status::Missing) >= 1 && count(&now, Status::Foreign) == 0, "{line}:\n{now}");
                // Of the other family nothing is said to be so.
                let due = now.lines.iter().filter(|of| of.runs).map(|of| &of.command);
                let other = |of: &&String| [ip, tables, "sysctl"].iter().all(|begin| !of.starts_with(&format!("{begin} ")));
                assert_eq!(due.filter(other).count(), 0, "{line}:\n{now}");
                pipe(&now.to_string());
                assert!(plan(&spec).is_done(), "{line}");
            }
        }
        let again = sh("iptables-save; ip6tables-save").lines().filter(|l| !l.starts_with('#')).count();
        assert_eq!(whole, again);
    }
}

isolated! {
    fn chains_of_another_configuration_are_conflicting_and_replaced_and_those_of_somebody_else_foreign() {
        gateway();
        let bare = dump();
        let spec = spec();
        pipe(&plan(&spec).to_string());
        let mut other = spec.clone();
        other.listen = 4000;
        let change = plan(&other);
        assert!(count(&change, Status::Conflicting) > 0 && !change.is_done(), "{change}");
        pipe(&change.to_string());
        assert!(plan(&other).is_done() && !plan(&spec).is_done());
        assert!(!sh("iptables-save; ip6tables-save").contains("12377"));
        let removal: String = plan(&other).removal.iter().map(|line| format!("{line}\n")).collect();
        pipe(&removal);
        assert!(!sh("iptables-save; ip6tables-save").contains("WEIR"));
        for tables in ["iptables", "ip6tables"] {
            sh(&format!("{tables} -t mangle -N DIVERT && {tables} -t mangle -A DIVERT -j MARK --set-mark 1"));
            let foreign = plan(&spec);
            let line = foreign.lines.iter().find(|line| line.status == Status::Foreign).unwrap();
            assert_eq!(line.command, format!("{tables} -t mangle -N DIVERT"));
            assert!(line.note.as_ref().unwrap().contains("-A DIVERT -j MARK"), "{foreign}");
            let save = "iptables-save; ip6tables-save";
            let theirs = sh(save);
            pipe(&foreign.to_string());
            let rules = |text: &str| text.lines().filter(|l| l.starts_with('-')).collect::<Vec<_>>().join("\n");
            assert_eq!(rules(&sh(save)), rules(&theirs), "somebody's chain has got weir's rules");
            sh(&format!("{tables} -t mangle -F; {tables} -t mangle -X"));
        }
        host(async |h| h.clean().await).unwrap();
        // Tables of iptables that are empty stay: rules, routes and the rest are as before.
        let text = |dump: &str| dump.split("# nft list ruleset").next().unwrap().to_owned();
        sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
        assert_same(&text(&bare), &text(&dump()));
    }
}

isolated! {
    fn rule_of_somebody_elses_that_does_the_same_is_as_good_as_weirs() {
        gateway();
        let spec = spec();
        sh("for v in -4 -6; do ip $v rule add priority 1077 fwmark 0x77/0xff lookup 177; done");
        let before = plan(&spec);
        assert!(!before.is_done() && count(&before, Status::Foreign) == 2, "{before}");
        pipe(&before.to_string());
        let after = plan(&spec);
        assert!(after.is_done() && count(&after, Status::Foreign) == 2, "{after}");
        // What is to do is said all the same.
        sh("iptables -t mangle -F PREROUTING");
        assert!(!plan(&spec).is_done());
    }
}
