//! Installed, removed, crashed, cleaned: the host is as it was.

use std::fs;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use weir_control::host::{Fail, Lock, Paths, preflight};

use crate::space::{assert_same, dump, gateway, host, isolated, sh, spec};

isolated! {
    fn host_applied_then_removed_is_as_before() {
        gateway();
        let before = dump();
        let applied = host(async |h| h.apply(&spec()).await).unwrap();
        assert!(applied.commands.len() > 10, "{applied:#?}");
        assert_ne!(before, dump());
        assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"), "1\n1\n");
        assert!(sh("ip rule").contains("1077:\tfrom all fwmark 0x77/0xff lookup 177 proto 119"));
        assert!(sh("ip -6 rule").contains("1077:\tfrom all fwmark 0x77/0xff lookup 177 proto 119"));
        assert_eq!(sh("ip route show table 177"), "local default dev lo proto 119 scope host \n");
        assert!(sh("ip -6 route show table 177").starts_with("local default dev lo proto 119"));
        let removed = host(async |h| h.remove().await).unwrap();
        assert!(removed.commands.contains(&"sysctl -w net.ipv4.ip_forward=0".to_owned()), "{removed:#?}");
        assert_same(&before, &dump());
    }
}

isolated! {
    fn host_applied_then_crashed_is_cleaned_without_configuration() {
        gateway();
        // Devices that weir does not use have switches too, and the kernel turns them all when forwarding is turned on.
        sh("ip tuntap add other mode tun && sysctl -qw net.ipv6.conf.other.forwarding=1 net.ipv4.conf.wan.forwarding=1");
        sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.all.src_valid_mark=1");
        sh("nft add table inet other");
        let mut closed = spec();
        closed.fail = Fail::Closed;
        // A crashed process' TUN devices go with it; these stay, and are left-overs that clean removes as well.
        sh("ip link del weir-relay && ip link del weir-punt");
        let before = dump();
        sh("for d in weir-relay weir-punt; do ip tuntap add $d mode tun && ip link set $d up; done");
        host(async |h| h.apply(&closed).await).unwrap();
        let removed = host(async |h| h.clean().await).unwrap();
        assert!(removed.commands.contains(&"ip link del weir-relay".to_owned()), "{removed:#?}");
        assert_same(&before, &dump());
        let again = host(async |h| h.clean().await).unwrap();
        assert_eq!(again.commands, Vec::<String>::new());
    }
}

isolated! {
    fn pinned_folder_is_removed_and_that_of_another_namespace_stays() {
        sh("mount -t bpf bpf /sys/fs/bpf 2>/dev/null || mount -t tmpfs tmpfs /sys/fs/bpf");
        let pins = Paths::of_this_namespace().unwrap().pins;
        fs::create_dir_all(pins.join("maps")).unwrap();
        fs::create_dir_all("/sys/fs/bpf/weir/1").unwrap();
        let removed = host(async |h| h.clean().await).unwrap();
        assert_eq!(removed.commands, [format!("rm -r {}", pins.display())]);
        assert_eq!(sh("ls /sys/fs/bpf/weir"), "1\n");
    }
}

isolated! {
    fn host_applied_twice_changes_nothing() {
        gateway();
        host(async |h| h.apply(&spec()).await).unwrap();
        let once = dump();
        let again = host(async |h| h.apply(&spec()).await).unwrap();
        assert_eq!(again.commands, Vec::<String>::new());
        assert_same(&once, &dump());
    }
}

isolated! {
    fn host_with_another_configuration_is_replaced_and_removed() {
        gateway();
        let before = dump();
        host(async |h| h.apply(&spec()).await).unwrap();
        let mut other = spec();
        (other.mark, other.mask, other.table, other.priority, other.listen) = (0x1000, 0xf000, 1000, 999, 4000);
        other.intercepts.remove(0);
        host(async |h| h.apply(&other).await).unwrap();
        for rules in [sh("ip rule"), sh("ip -6 rule")] {
            assert!(rules.contains("999:\tfrom all fwmark 0x1000/0xf000 lookup 1000 proto 119"), "{rules}");
            assert!(!rules.contains("0x77"), "{rules}");
        }
        assert_eq!(sh("ip route show table 177 2>/dev/null; ip -6 route show table 177 2>/dev/null || true"), "");
        let table = sh("nft list table inet weir");
        assert!(table.contains(":4000") && !table.contains(":12377") && !table.contains("quoted"), "{table}");
        host(async |h| h.remove().await).unwrap();
        assert_same(&before, &dump());
    }
}

isolated! {
    fn route_refused_by_the_kernel_takes_everything_back() {
        gateway();
        sh("ip link set lo down");
        let before = dump();
        let error = host(async |h| h.apply(&spec()).await).unwrap_err().to_string();
        assert_eq!(
            error,
            "`ip -6 route add local default dev lo table 177 proto 119` failed: Network is down (os error 100): \
             the device lo is down; run `ip link set lo up`"
        );
        assert_same(&before, &dump());
    }
}

isolated! {
    fn device_missing_is_named_and_nothing_is_touched() {
        gateway();
        let before = dump();
        let mut missing = spec();
        missing.ports.push("eth7".into());
        let error = host(async |h| h.apply(&missing).await).unwrap_err().to_string();
        assert!(error.starts_with("no device named eth7 here; there are: lo, "), "{error}");
        assert_same(&before, &dump());
    }
}

isolated! {
    fn nft_missing_is_said_and_nothing_is_touched() {
        gateway();
        let before = dump();
        // An empty folder over nft's own, in this test's mount namespace.
        let folder = sh("dirname $(command -v nft)").trim().to_owned();
        sh(&format!("mkdir /run/empty && mount --bind /run/empty {folder}"));
        let error = host(async |h| h.apply(&spec()).await).unwrap_err().to_string();
        rustix::mount::unmount(&*folder, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(error, "the program nft is missing: install the package nftables");
        assert_same(&before, &dump());
    }
}

isolated! {
    fn sysctl_changed_by_somebody_else_since_is_left_alone() {
        gateway();
        sh("sysctl -qw net.ipv4.conf.all.src_valid_mark=1 net.ipv4.conf.all.rp_filter=1");
        host(async |h| h.apply(&spec()).await).unwrap();
        sh("sysctl -qw net.ipv4.conf.weir-relay.rp_filter=1 net.ipv6.conf.all.forwarding=2");
        let removed = host(async |h| h.remove().await).unwrap();
        for so in ["net.ipv4.conf.weir-relay.rp_filter is 1", "net.ipv6.conf.all.forwarding is 2"] {
            let told = format!("# {so} by somebody else's hand: left alone");
            assert!(removed.commands.contains(&told), "{removed:#?}");
        }
        assert_eq!(sh("cat /proc/sys/net/ipv6/conf/all/forwarding"), "2\n");
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/weir-relay/rp_filter"), "1\n");
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/all/src_valid_mark"), "1\n");
    }
}

isolated! {
    fn journal_of_another_boot_is_not_applied() {
        gateway();
        sh("sysctl -qw net.ipv4.conf.all.src_valid_mark=1");
        host(async |h| h.apply(&spec()).await).unwrap();
        sh("sed -i 's/\"boot_id\":\"[0-9a-f]*/\"boot_id\":\"0/' /run/weir/journal-*.json");
        host(async |h| h.clean().await).unwrap();
        assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"), "1\n1\n");
        assert_eq!(sh("find /run -type f"), "", "a journal about nothing is removed");
    }
}

isolated! {
    fn second_weir_in_a_namespace_is_refused_and_in_another_is_not() {
        let first = Lock::acquire().unwrap();
        let error = Lock::acquire().unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "another weir runs in this network namespace as process {}: stop it first (it holds the socket @weir)",
                std::process::id()
            )
        );
        sh("ip netns add elsewhere");
        let elsewhere = fs::File::open("/run/netns/elsewhere").unwrap();
        std::thread::spawn(move || {
            crate::space::enter(&elsewhere);
            Lock::acquire().unwrap();
        })
        .join()
        .unwrap();
        drop(first);
        Lock::acquire().unwrap();
    }
}

isolated! {
    fn preflight_finds_nothing_then_what_was_taken_away() {
        let sentences = || preflight().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(sentences(), Vec::<String>::new());
        assert_eq!(sh("nft list ruleset"), "");
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN | CapabilitySet::BPF);
        set_capabilities(None, sets).unwrap();
        assert_eq!(
            sentences(),
            ["CAP_NET_ADMIN is missing, which is needed for changing rules, routes and nft tables: \
              run weir as root, or give its service that capability"]
        );
    }
}
