//! What a machine lacks, and what a process may not: shown by files of the lab's own over those of this machine, by limits and by
//! capabilities that are taken away.

use std::net::SocketAddr;

use rustix::io::Errno;
use seccompiler::{BpfMap, BpfProgram, apply_filter, compile_from_json};
use serde_json::json;
use weir_control::demo::stage::Family;

use super::*;
use crate::world::{HTTP, fetch_intact};

/// The one finding under an id that is not good: how bad it is, and what is so.
#[track_caller]
fn assert_noted(report: &Value, id: &str, severity: &str, words: &str) {
    let found = noted(report, id);
    assert!(found.len() == 1 && found[0]["severity"] == severity, "{id}: {report:#}");
    assert!(found[0]["what"].as_str().is_some_and(|what| what.contains(words)), "{id}: {found:#?}");
    assert_ne!(found[0]["why"], "", "{id}: {found:#?}");
}

/// Shows a machine on which much is wrong, by files of the lab's own over those that this machine shows.
fn show_poor_machine(world: &World<'_>) {
    let lines = r#"set -e
        cover() { mount --bind "/run/$1" "$2"; }
        mkdir -p /run/core /run/boot; echo 0 > /run/core/bpf_jit_enable; cover core /proc/sys/net/core
        sed 's/^HugePages_Free:.*/HugePages_Free: 0/; s/^Hugepagesize:.*/Hugepagesize: 2048 kB/' /proc/meminfo > /run/meminfo
        echo 3 > /run/pages; echo 0 > /run/free; cover free /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages
        cover pages /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
        cover meminfo /proc/meminfo; cover pages /proc/sys/vm/nr_hugepages
        echo 950 > /run/count; cover count /proc/sys/net/netfilter/nf_conntrack_count
        echo 1000 > /run/most; cover most /proc/sys/net/netfilter/nf_conntrack_max
        options=/boot/config-$(uname -r); [ -e /proc/config.gz ] && options=/proc/config.gz
        zcat -f "$options" | sed 's/^CONFIG_NFT_TPROXY=.*//; s/^CONFIG_XDP_SOCKETS=.*//' > /run/options
        if [ -e /proc/config.gz ]; then gzip < /run/options > /run/options.gz; cover options.gz /proc/config.gz
        else cover options "$options"; fi
        for tool in ethtool sysctl; do readlink -f "$(command -v $tool)"; done > /run/hidden
        for path in $(cat /run/hidden); do mount --bind /dev/null "$path"; done"#;
    world.sh(&world.lab.gateway, lines);
}

#[test]
fn machine_that_lacks_what_weir_needs_is_found_and_mended() {
    prepare(&Settings::default(), |world| {
        show_poor_machine(world);
        let (report, healthy) = examine(world);
        assert!(!healthy, "{report:#}");
        assert_noted(&report, "kernel-options", "bad", "without CONFIG_XDP_SOCKETS, CONFIG_NFT_TPROXY");
        assert_noted(&report, "bpf-jit", "note", "is 0");
        assert_noted(&report, "hugepages", "note", "0 huge pages of 2 MiB are free");
        assert_noted(&report, "conntrack-table", "bad", "950 of 1000");
        let tools = noted(&report, "tools");
        let missing: Vec<(&Value, &Value)> =
            tools.iter().map(|tool| (&tool["subject"], &tool["mend"])).collect();
        let wanted: [(Value, Value); 2] = [
            ("sysctl".into(), "apt-get install procps".into()),
            ("ethtool".into(), "apt-get install ethtool".into()),
        ];
        assert_eq!(missing, wanted.iter().map(|(tool, mend)| (tool, mend)).collect::<Vec<_>>());
        // On other hosts other commands install them, and of some none is known.
        for (os_release, mend, by_hand) in [
            ("ID=rocky\\nID_LIKE=\"rhel centos fedora\"", json!("dnf install ethtool"), Value::Null),
            ("ID=nobodys", Value::Null, json!(NoCommand::Packages.sentence())),
        ] {
            let shown = format!(
                "printf '{os_release}\\n' > /run/os-release; mount --bind /run/os-release /etc/os-release"
            );
            world.sh(&world.lab.gateway, &shown);
            let (report, _) = examine(world);
            let tools = noted(&report, "tools");
            let ethtool = tools.iter().find(|tool| tool["subject"] == "ethtool").expect("it is missing");
            assert_eq!((&ethtool["mend"], &ethtool["by_hand"]), (&mend, &by_hand), "{ethtool:#}");
            world.sh(&world.lab.gateway, "umount /etc/os-release");
        }
        // The tools are there again, and the commands do what they say, to the files that the lab shows.
        world.sh(
            &world.lab.gateway,
            "for path in $(cat /run/hidden); do umount $path; done; umount /proc/config.gz || umount /boot/config-*",
        );
        for id in ["bpf-jit", "hugepages", "conntrack-table"] {
            world.sh(&world.lab.gateway, noted(&report, id)[0]["mend"].as_str().expect("a command"));
        }
        let pages = "set -e; pages=$(cat /run/pages); [ $pages -gt 3 ]; echo $((pages - 3)) > /run/free";
        world.sh(&world.lab.gateway, pages);
        let (report, healthy) = examine(world);
        for id in ["kernel-options", "bpf-jit", "hugepages", "conntrack-table", "tools"] {
            assert!(noted(&report, id).is_empty(), "{id}: {report:#}");
        }
        assert!(healthy && troubles(&report).is_empty(), "{:#?}", troubles(&report));
    });
}

#[test]
fn running_gateway_in_plain_pages_is_told_of_huge_ones_that_are_free_by_now() {
    play(&Settings::default(), |world| {
        show_fit_machine(world);
        let pid = world.weir.status()["pid"].clone();
        let plain = format!(
            "sed 's/^HugetlbPages:.*/HugetlbPages: 0 kB/' /proc/{pid}/status > /run/status; mount --bind /run/status /proc/{pid}/status"
        );
        world.sh(&world.lab.gateway, &plain);
        let (report, healthy) = examine(world);
        assert!(healthy, "{report:#}");
        assert_noted(&report, "hugepages", "note", "64 huge pages are free now");
        assert_eq!(noted(&report, "hugepages")[0]["by_hand"], NoCommand::Nothing.sentence());
        world.sh(&world.lab.gateway, &format!("umount /proc/{pid}/status"));
    });
}

#[test]
fn kernel_that_is_too_old_is_found() {
    prepare(&Settings::default(), |world| {
        let doctor = world.weir.command("doctor");
        let mut command = Command::new("setarch");
        // The kernel says then that it is a Linux 2.6.
        command.args(["--uname-2.6", "--"]).arg(doctor.get_program()).args(doctor.get_args()).arg("--json");
        let ended = world.weir.finish(command);
        let report: Value = serde_json::from_str(&ended.output).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
        assert_eq!(ended.code(), 1);
        assert_noted(&report, "kernel-version", "bad", "is older than 5.19");
    });
}

/// BPF_PROG_LOAD (linux/bpf.h) and AF_XDP (linux/socket.h).
const PROG_LOAD: u64 = 5;
const AF_XDP: u64 = 44;

/// A kernel that answers one system call with an error (linux/seccomp.h), be it for one value of an argument alone.
fn kernel_without(call: &str, argument: Option<(u8, u64)>, errno: Errno) -> BpfProgram {
    let args =
        argument.map(|(index, val)| json!([{ "index": index, "type": "dword", "op": "eq", "val": val }]));
    let rule = match args {
        Some(args) => json!({ "syscall": call, "args": args }),
        None => json!({ "syscall": call }),
    };
    let filter = json!({
        "mismatch_action": "allow", "match_action": { "errno": errno.raw_os_error() }, "filter": [rule],
    });
    let text = json!({ "weir": filter }).to_string();
    let arch = std::env::consts::ARCH.try_into().expect("an architecture that the filter knows");
    let mut filters: BpfMap = compile_from_json(text.as_bytes(), arch).expect("a filter");
    filters.remove("weir").expect("the filter")
}

#[test]
fn kernel_without_a_feature_is_found_and_weir_refuses_it() {
    for (filter, id, subject, words, mend) in [
        (
            kernel_without("io_uring_setup", None, Errno::PERM),
            "io-uring",
            "kernel",
            "not permitted",
            // It is no sysctl that forbids it.
            Value::Null,
        ),
        (
            kernel_without("io_uring_setup", None, Errno::NOSYS),
            "io-uring",
            "kernel",
            "CONFIG_IO_URING",
            Value::Null,
        ),
        (
            kernel_without("socket", Some((0, AF_XDP)), Errno::AFNOSUPPORT),
            "af-xdp",
            "kernel",
            "gives no AF_XDP socket",
            Value::Null,
        ),
        (
            kernel_without("bpf", Some((0, PROG_LOAD)), Errno::INVAL),
            "steering-program",
            "kernel",
            "syscall returned Invalid argument (os error 22); weir needs",
            Value::Null,
        ),
    ] {
        prepare(&Settings::default(), |world| {
            let run = |what: &str, more: &[&str]| {
                let command = world.weir.command(what);
                let mut bounded = Command::new("timeout");
                bounded
                    .args(["-k", "1", "20"])
                    .arg(command.get_program())
                    .args(command.get_args())
                    .args(more);
                // Of this one thread, and of what it starts.
                world.lab.gateway.run(|| {
                    apply_filter(&filter).expect("a filter of one's own");
                    bounded.output().expect("a command of weir's")
                })
            };
            let ended = run("doctor", &["--json"]);
            let report: Value =
                serde_json::from_slice(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
            assert_eq!(ended.status.code(), Some(1), "{report:#}");
            assert_noted(&report, id, "bad", words);
            let found = &noted(&report, id)[0];
            assert_eq!((&found["subject"], &found["mend"]), (&subject.into(), &mend), "{found:#}");
            assert_eq!(found["why"].to_string().contains("weir does not start"), id != "af-xdp", "{found:#}");
            let ended = run("run", &[]);
            assert_eq!(ended.status.code(), Some(3), "{id}: {ended:?}");
            world.assert_as_before();
            let (_, healthy) = examine(world);
            assert!(healthy, "with a kernel that has it");
        });
    }
}

#[test]
fn tun_device_that_is_missing_or_another_is_found() {
    prepare(&Settings::default(), |world| {
        world.sh(&world.lab.gateway, "mount --bind /dev/null /dev/net/tun");
        assert_noted(&examine(world).0, "tun", "bad", "is not the TUN device");
        world.sh(&world.lab.gateway, "umount /dev/net/tun; mkdir /run/none; mount --bind /run/none /dev/net");
        assert_noted(&examine(world).0, "tun", "bad", "cannot be opened");
        world.sh(&world.lab.gateway, "umount /dev/net");
        assert!(examine(world).1);
    });
}

#[test]
fn user_who_may_not_and_few_open_files_are_found() {
    prepare(&Settings { flows: 512, ..Settings::default() }, |world| {
        let report = examine_as(world, &["--nofile=1100:1100"], "-net_raw,-sys_resource");
        assert_noted(&report, "permissions", "note", "CAP_NET_RAW is missing");
        assert_noted(&report, "open-files", "note", "the relay takes 38 connections of the 512");
        let skipped = report["not_probed"].as_array().expect("a list");
        assert!(skipped.iter().any(|skipped| skipped["id"] == "af-xdp"), "{skipped:#?}");
        // Nobody in here may raise it, root neither: that takes a capability that the process may not even be given.
        let limits = &noted(&report, "open-files")[0];
        assert_eq!(limits["by_hand"], NoCommand::Starter.sentence(), "{limits:#}");
        let report = examine_as(world, &["--nofile=2048:2048"], "-sys_resource");
        assert!(noted(&report, "open-files").is_empty(), "{report:#}");
        assert!(noted(&report, "permissions").is_empty(), "{report:#}");
    });
}

#[test]
fn cores_ports_and_tables_that_are_not_there_for_weir_are_found() {
    let list = Family::BOTH.map(|family| SocketAddr::new(family.addresses().servers[1], 80).to_string());
    let more = format!("[[pool]]\nname = \"own\"\nservers = {list:?}\nsource = \"gateway\"\n");
    let rules = r#"{ host = ["www.example"], action = "send", pool = "own" }"#;
    let settings = Settings { rules, more, ..Settings::default() };
    prepare(&settings, |world| {
        let faults = [
            bad(
                "sysctl -qw net.ipv4.ip_local_port_range='1024 60999'",
                "gateway-ports",
                "ip_local_port_range",
            ),
            bad("nft 'add table inet weir; add chain inet weir mine'", "kernel-side", "weir plan"),
        ];
        faults.iter().for_each(|fault| assert_found_and_mended(world, fault));
        world
            .weir
            .write_config(&settings.to_string().replace("[workers]\n", "[workers]\ncores = [0, 999]\n"));
        let (report, healthy) = examine(world);
        assert!(!healthy);
        assert_noted(&report, "cores", "bad", "`cores` names [999]");
    });
}

#[test]
fn connections_whose_checksums_nobody_finished_are_found_and_mended() {
    play(&Settings { express: "always", ..Settings::default() }, |world| {
        world.sh(&world.lab.client, "ethtool -K client0 gro on tx on");
        world.sh(&world.lab.server, "ethtool -K server0 gro on tx on");
        world.meet_neighbours();
        for family in Family::BOTH {
            let mut stream = world.connect(family, HTTP);
            let client = stream.local_addr().expect("connected");
            until("the connection stays out of the lane", || {
                fetch_intact(&mut stream, 100_000);
                world.weir.flow(client)["lane_reason"] == "unsummed"
            });
            let (report, healthy) = examine(world);
            assert!(healthy, "{report:#}");
            assert_noted(&report, "checksums", "note", "leaves to a NIC");
            assert!(noted(&report, "checksums")[0]["why"].to_string().contains("ethtool -K DEV tx off"));
            drop(stream);
            until("only connections that end are left", || noted(&examine(world).0, "checksums").is_empty());
        }
    });
}
