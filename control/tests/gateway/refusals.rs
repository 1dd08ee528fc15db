//! What weir does when the system, the configuration or the command line will not do: one sentence that names the
//! culprit, the exit code that scripts rely on, and a host as it was.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::process::Command;

use weir_control::lab::{Namespace, skipped};
use weir_sys::ethtool;
use weir_sys::steering::{AttachMode, Sizes, Steering};

use crate::config::Settings;
use crate::weir::Finished;
use crate::world::{World, prepare};

/// The system is in the way of a start; `what` must be in the sentence.
#[track_caller]
fn assert_refused(world: &mut World<'_>, what: &[&str]) {
    world.weir.spawn();
    let ended = world.weir.wait();
    assert_sentence(&ended, 3, what);
    world.assert_as_before();
}

/// The exit code, and exactly one sentence beside lines of the log, which has every word of `what` and an end.
#[track_caller]
fn assert_sentence(ended: &Finished, code: i32, what: &[&str]) {
    assert_eq!(ended.code(), code, "{ended:?}");
    let lines: Vec<&str> = ended.errors.lines().filter(|line| !is_log(line)).collect();
    assert_eq!(lines.len(), 1, "one sentence, not: {lines:#?}");
    let sentence = lines[0].strip_prefix("weir: ").unwrap_or_else(|| panic!("who says {:?}", lines[0]));
    for word in what {
        assert!(sentence.contains(word), "no {word:?} in: {sentence}");
    }
    for sign in ["Error", "Os {", "Some(", "panicked", "os error 0"] {
        assert!(!sentence.contains(sign), "not for people: {sentence}");
    }
}

/// Log lines begin with the date.
fn is_log(line: &str) -> bool {
    line.starts_with(|first: char| first.is_ascii_digit())
}

#[test]
fn device_that_does_not_exist_is_named_with_those_that_do() {
    prepare(&Settings::default(), |world| {
        let config = Settings::default().to_string().replace("\"wan0\"", "\"wan7\"");
        world.weir.write_config(&config);
        assert_refused(world, &["test.toml:", "wan7", "lan0", "wan0"]);
    });
}

#[test]
fn device_with_a_program_of_somebody_else_is_left_to_him() {
    for (device, other) in [("lan0", "wan0"), ("wan0", "lan0")] {
        prepare(&Settings::default(), |world| {
            let foreign = attach(&world.lab.gateway, device);
            world.weir.spawn();
            let ended = world.weir.wait();
            assert_sentence(&ended, 3, &[device, "XDP"]);
            let links = world.sh(&world.lab.gateway, "ip -d link");
            let of = |name: &str| links.split("\n").find(|line| line.contains(&format!("{name}@"))).unwrap();
            assert!(of(device).contains("xdp"), "the other program is gone: {links}");
            assert!(!of(other).contains("xdp"), "weir's program is left on {other}: {links}");
            drop(foreign);
            world.assert_as_before();
            world.weir.start();
        });
    }
}

/// Another program that holds a device, as long as it lives.
fn attach(namespace: &Namespace, device: &str) -> Steering {
    namespace.run(|| {
        let mut steering = Steering::load(&Sizes::default()).unwrap();
        let index = ethtool::index_of(device).unwrap();
        steering.attach(device, index, AttachMode::Native).unwrap();
        steering
    })
}

#[test]
fn zero_copy_on_a_device_without_it_is_copy_and_a_warning() {
    prepare(&Settings { mode: "zero-copy", ..Settings::default() }, |world| {
        world.weir.start();
        let status = world.weir.status();
        for port in status["ports"].as_array().unwrap() {
            assert_eq!((&port["zero_copy"], &port["asked"]), (&false.into(), &"zero-copy".into()), "{port}");
        }
        let warnings = status["warnings"].to_string();
        for word in ["lan0", "wan0", "zero-copy", "copy mode"] {
            assert!(warnings.contains(word), "no {word:?} in {warnings}");
        }
    });
}

#[test]
fn device_without_native_xdp_is_refused_where_the_mode_needs_it() {
    for mode in ["copy", "zero-copy"] {
        prepare(&Settings { mode, queues: 2, ..Settings::default() }, |world| {
            // The kernel gives a veth no XDP whose other end sends by more queues than it receives on.
            world.sh(&world.lab.gateway, "ethtool -L wan0 rx 1 tx 1");
            assert_refused(world, &["wan0", "native", "generic"]);
        });
    }
}

/// What makes a device of the gateway unfit for a port, what is said of it, and what makes all well again.
const UNFIT: [(&str, &str, &[&str], &str); 9] = [
    (
        "ip link add br0 type bridge && ip link set lan0 master br0",
        "lan0",
        &["lan0 belongs to br0 (bridge)", "nomaster"],
        "ip link del br0",
    ),
    ("ip link add br0 type bridge", "br0", &["br0 is a bridge", "members"], "ip link del br0"),
    (
        "ip link add mv0 link lan0 type macvlan mode bridge",
        "mv0",
        &["mv0 is a macvlan", "below"],
        "ip link del mv0",
    ),
    ("ip link add mt0 link lan0 type macvtap", "mt0", &["mt0 is a macvtap", "below"], "ip link del mt0"),
    ("ip tuntap add tun7 mode tun", "tun7", &["tun7 is a tunnel (tun)", "relay"], "ip link del tun7"),
    (
        "ip link add vx0 type vxlan id 7 dstport 4789 local 10.77.1.1 dev lan0",
        "vx0",
        &["vx0 is a VXLAN", "relay"],
        "ip link del vx0",
    ),
    ("true", "lo", &["lo is the loopback"], "true"),
    // Where the kernel has them.
    (
        "ip link add link lan0 name lan0.5 type vlan id 5",
        "lan0.5",
        &["lan0.5 is a VLAN sub-interface", "vlan = [10]"],
        "ip link del lan0.5",
    ),
    ("ip link add bond7 type bond", "bond7", &["bond7 is a bond"], "ip link del bond7"),
];

/// Modules that not every kernel of a test machine has.
fn is_missing(world: &World<'_>, make: &str, unmake: &str) -> bool {
    let is_module = ["vlan", "bond"].iter().any(|kind| make.contains(&format!("type {kind}")));
    let trial = format!("({make} && {unmake}) 2>/dev/null || echo missing");
    is_module && world.sh(&world.lab.gateway, &trial).contains("missing")
}

#[test]
fn device_that_can_be_no_port_is_refused_by_run_check_and_doctor_with_what_to_do() {
    for (make, device, words, unmake) in UNFIT {
        prepare(&Settings::default(), |world| {
            if is_missing(world, make, unmake) {
                return skipped(&format!(
                    "this kernel has no {device} (`{make}`): its refusal is tried on invented devices alone (host::port_device), and \
                     for real in a guest that has the module (tests/nic/README.md)"
                ));
            }
            world.sh(&world.lab.gateway, make);
            let (usual, line) = ("device = \"lan0\"", format!("device = \"{device}\""));
            let config = Settings::default().to_string().replacen(usual, &line, 1);
            world.weir.write_config(&config);
            let changed = weir_control::lab::host_state(&world.lab.gateway).expect("looked at");
            let before = std::mem::replace(&mut world.before, changed);
            assert_refused(world, &[words, &["test.toml:5: "]].concat());
            let checked = world.weir.finish(world.weir.command("check"));
            assert_eq!(checked.code(), 1, "{checked:?}");
            for word in words.iter().chain(&["test.toml:5: error: ", "not valid: 1 error"]) {
                assert!(checked.output.contains(word), "no {word:?} in {}", checked.output);
            }
            let mut doctor = world.weir.command("doctor");
            doctor.arg("--json");
            let report = world.weir.finish(doctor);
            assert_eq!(report.code(), 1, "{report:?}");
            let report: serde_json::Value = serde_json::from_str(&report.output).expect("JSON");
            let found = report["findings"].as_array().expect("a list").iter();
            let mut bad = found.filter(|f| f["severity"] == "bad" && f["subject"] == device);
            let is_told = bad.any(|f| {
                let text = format!(
                    "{device} {} {}",
                    f["what"].as_str().unwrap_or(""),
                    f["why"].as_str().unwrap_or("")
                );
                words.iter().all(|word| text.contains(word))
            });
            assert!(is_told, "{device}: {report:#}");
            world.sh(&world.lab.gateway, unmake);
            world.before = before;
            world.assert_as_before();
        });
    }
}

#[test]
fn device_that_can_be_no_port_is_good_enough_for_the_relay() {
    prepare(&Settings { handshake: "relay", ..Settings::default() }, |world| {
        // Clients behind a bridge: the relay does not ask what a device is.
        world.sh(
            &world.lab.gateway,
            "ip link add br0 type bridge && ip link set br0 addrgenmode none && ip link set lan0 master br0 &&
             ip addr del 10.77.1.1/24 dev lan0 && ip addr del fd77:1::1/64 dev lan0 && ip link set br0 up &&
             ip addr add 10.77.1.1/24 dev br0 && ip addr add fd77:1::1/64 dev br0 nodad",
        );
        let settings = Settings { handshake: "relay", ..Settings::default() };
        let is_on = "cat /proc/sys/net/bridge/bridge-nf-call-ip*tables 2>/dev/null | grep 1; true";
        let refused = !world.sh(&world.lab.gateway, is_on).is_empty();
        world.weir.write_config(&settings.to_string().replacen("device = \"lan0\"", "device = \"br0\"", 1));
        if refused {
            let words = ["br0 is a bridge", "sysctl -w net.bridge.bridge-nf-call-ip", "no answer"];
            world.weir.spawn();
            assert_sentence(&world.weir.wait(), 3, &words);
            assert_eq!(world.weir.finish(world.weir.command("check")).code(), 1);
            assert_eq!(world.weir.finish(world.weir.command("doctor")).code(), 1);
            let off = "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0";
            world.sh(&world.lab.gateway, off);
        }
        assert_eq!(world.weir.finish(world.weir.command("check")).code(), 0);
        world.weir.start();
        for family in weir_control::demo::stage::Family::BOTH {
            let mut stream = world.connect(family, crate::world::HTTP);
            crate::world::fetch_intact(&mut stream, 100_000);
            assert_eq!(world.weir.flow(stream.local_addr().expect("connected"))["road"], "relay");
        }
        // A bridge's timers go on: there is nothing to compare with.
        assert_eq!(world.weir.stop().code(), 0);
    });
}

#[test]
fn generic_mode_is_told_as_generic() {
    prepare(&Settings { mode: "generic", ..Settings::default() }, |world| {
        world.weir.start();
        let status = world.weir.status();
        let modes: Vec<_> = status["ports"].as_array().unwrap().iter().map(|port| &port["xdp"]).collect();
        assert_eq!(modes, ["generic", "generic"]);
        for family in weir_control::demo::stage::Family::BOTH {
            let mut stream = world.connect(family, crate::world::HTTP);
            crate::world::fetch_intact(&mut stream, 100_000);
        }
    });
}

#[test]
fn queue_that_a_device_has_not_is_refused_with_those_it_has() {
    prepare(&Settings::default(), |world| {
        let config = Settings::default().to_string().replacen("mode =", "queues = [0, 3]\nmode =", 1);
        world.weir.write_config(&config);
        assert_refused(world, &["test.toml:", "lan0", "3"]);
    });
}

#[test]
fn missing_capabilities_are_told_before_anything_is_done() {
    let cases: [(&str, &[&str]); 4] = [
        ("--bounding-set=-all", &["CAP_"]),
        ("--bounding-set=-net_admin", &["CAP_NET_ADMIN"]),
        ("--bounding-set=-bpf,-sys_admin,-perfmon", &["CAP_"]),
        ("--bounding-set=-net_raw", &["CAP_NET_RAW"]),
    ];
    for (drop, what) in cases {
        prepare(&Settings::default(), |world| {
            let mut command = Command::new("setpriv");
            let weir = world.weir.command("run");
            command.args([drop, "--inh-caps=-all"]).arg(weir.get_program()).args(weir.get_args());
            world.weir.spawn_as(&mut command);
            let ended = world.weir.wait();
            assert_sentence(&ended, 3, what);
            world.assert_as_before();
        });
    }
}

/// A question about a connection of the lab, for explain.
const CONNECTION: [&str; 4] = ["--from", "10.77.1.2:4000", "--to", "192.0.2.10:80"];

#[test]
fn host_without_nft_is_told_so_in_a_sentence_by_every_command() {
    prepare(&Settings::default(), |world| {
        let poor = |mut command: Command| {
            world.weir.finish({
                command.env("PATH", "/run/nowhere");
                command
            })
        };
        for what in ["run", "plan", "clean"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
            command.arg(what);
            if what != "clean" {
                command.args(["-c", "/run/weir/test.toml"]);
            }
            assert_sentence(&poor(command), 3, &["nft is missing", "install the package nftables"]);
        }
        let doctor = poor(world.weir.command("doctor"));
        assert_eq!(doctor.code(), 1, "{doctor:?}");
        assert!(doctor.output.contains("BAD   nft: nft: the program nft is missing"), "{}", doctor.output);
        let mut explain = world.weir.command("explain");
        explain.args(CONNECTION);
        let explained = poor(explain);
        assert_eq!(explained.code(), 0, "{explained:?}");
        assert!(explained.output.contains("nft's table could not be read"), "{}", explained.output);
        world.assert_as_before();
    });
}

#[test]
fn whoever_is_not_root_is_told_so_in_a_sentence_by_every_command() {
    prepare(&Settings::default(), |world| {
        // The tests' own folder need not be open to everybody.
        let open = "mount -o remount,exec /run && cp $0 /run/weir-binary && chmod 755 /run/weir-binary /run /run/weir";
        world.sh(&world.lab.gateway, &open.replace("$0", env!("CARGO_BIN_EXE_weir")));
        let nobody = |world: &World<'_>, what: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
            command.args(["--bounding-set=-all", "/run/weir-binary", what]);
            if what != "clean" {
                command.args(["-c", "/run/weir/test.toml"]);
            }
            if what == "explain" {
                command.args(CONNECTION);
            }
            world.weir.finish(command)
        };
        for what in ["run", "plan", "clean"] {
            assert_sentence(&nobody(world, what), 3, &["CAP_NET_ADMIN is missing", "root"]);
        }
        let checked = nobody(world, "check");
        assert_eq!(checked.code(), 0, "{checked:?}");
        let doctor = nobody(world, "doctor");
        assert!(doctor.code() <= 1 && doctor.errors.is_empty(), "{doctor:?}");
        assert!(
            doctor.output.contains("permissions: this process: CAP_NET_ADMIN is missing"),
            "{}",
            doctor.output
        );
        let explained = nobody(world, "explain");
        assert_eq!(explained.code(), 0, "{explained:?}");
        assert!(explained.output.contains("nft shows no tables"), "{}", explained.output);
        // What runs is weir's, though this user may not ask it.
        world.weir.start();
        let beside = nobody(world, "doctor");
        assert!(beside.output.contains("only root may ask"), "{beside:?}");
        for wrong in ["another weir runs in", "somebody listens", "of somebody else"] {
            assert!(!beside.output.contains(wrong), "{wrong}: {beside:?}");
        }
        assert_eq!(world.weir.stop().code(), 0);
        world.sh(&world.lab.gateway, "rm /run/weir-binary");
        world.assert_as_before();
    });
}

#[test]
fn host_without_a_bpf_file_system_is_served_unless_it_must_fail_closed() {
    prepare(&Settings::default(), |world| {
        world.sh(&world.lab.gateway, "umount /sys/fs/bpf");
        let cleaned = world.weir.clean();
        assert_eq!((cleaned.code(), cleaned.errors.as_str()), (0, ""), "{cleaned:?}");
        let mut explain = world.weir.command("explain");
        explain.args(CONNECTION);
        assert_eq!(world.weir.finish(explain).code(), 0);
        world.weir.start();
        assert_eq!(world.weir.stop().code(), 0);
        world.weir.write_config(&Settings { fail: "closed", ..Settings::default() }.to_string());
        world.weir.spawn();
        let ended = world.weir.wait();
        assert_sentence(&ended, 3, &["/sys/fs/bpf", "mount -t bpf"]);
        assert_eq!(world.weir.clean().code(), 0);
        world.assert_as_before();
        world.sh(&world.lab.gateway, "mount -t bpf bpf /sys/fs/bpf");
    });
}

#[test]
fn occupied_addresses_are_named() {
    let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let metrics = || "metrics = \"127.0.0.1:9470\"".to_owned();
    let cases: [(Settings, SocketAddr, &[&str]); 4] = [
        (Settings::default(), any(12377), &["12377"]),
        (Settings::default(), "0.0.0.0:12377".parse().unwrap(), &["12377"]),
        (Settings { listen: 15000, ..Settings::default() }, any(15000), &["15000"]),
        (
            Settings { gateway: metrics(), ..Settings::default() },
            "127.0.0.1:9470".parse().unwrap(),
            &["127.0.0.1:9470", "metrics"],
        ),
    ];
    for (settings, address, what) in cases {
        prepare(&settings, |world| {
            let taken = world.lab.gateway.run(|| TcpListener::bind(address)).unwrap();
            assert_refused(world, what);
            drop(taken);
            world.until_gone(&world.lab.gateway, &format!(":{} ", address.port()));
            world.weir.start();
        });
    }
}

#[test]
fn occupied_admin_socket_is_named() {
    prepare(&Settings::default(), |world| {
        let path = "/run/weir/admin.sock";
        let taken = world.lab.gateway.run(|| std::os::unix::net::UnixListener::bind(path)).unwrap();
        assert_refused(world, &[path, "admin"]);
        // One that nobody listens on any more is what a crash leaves.
        drop(taken);
        world.until_gone(&world.lab.gateway, &format!(" {path} "));
        world.weir.start();
    });
    let gateway = "admin = \"/proc/weir/admin.sock\"".to_owned();
    prepare(&Settings { gateway, ..Settings::default() }, |world| {
        assert_refused(world, &["/proc/weir/admin.sock", "admin"]);
    });
}

#[test]
fn second_weir_in_a_namespace_is_refused_and_the_first_lives_on() {
    prepare(&Settings::default(), |world| {
        world.weir.start();
        let first = world.weir.status()["pid"].to_string();
        // The second would hold everything back.
        world.weir.write_config(&Settings { fail: "closed", ..Settings::default() }.to_string());
        for what in ["run", "clean"] {
            let command = match what {
                "run" => world.weir.command("run"),
                _ => {
                    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
                    command.arg("clean");
                    command
                }
            };
            let second = world.weir.finish(command);
            assert_sentence(&second, 3, &["another weir", &first]);
        }
        assert_eq!(world.weir.status()["healthy"], true);
        for family in weir_control::demo::stage::Family::BOTH {
            let mut stream = world.connect(family, crate::world::HTTP);
            crate::world::fetch_intact(&mut stream, 1000);
        }
    });
}

#[test]
fn nft_table_of_somebody_else_is_left_to_him() {
    prepare(&Settings::default(), |world| {
        world.sh(&world.lab.gateway, "nft add table inet weir");
        world.weir.spawn();
        let ended = world.weir.wait();
        assert_sentence(&ended, 3, &["inet weir"]);
        world.sh(&world.lab.gateway, "nft delete table inet weir");
        world.assert_as_before();
    });
}

#[test]
fn wrong_configuration_is_told_with_file_and_line() {
    prepare(&Settings::default(), |world| {
        let good = Settings::default().to_string();
        let cases = [
            (good.replace("fail = \"open\"", "fail = \"ajar\""), "test.toml:2"),
            (good.replace("fail = ", "fial = "), "test.toml:2"),
            (good.replace("from = \"lan\"", "from = \"lam\""), "`lam`"),
            (good.replace("[gateway]", "[gateway"), "test.toml:1"),
            (String::new(), "test.toml"),
        ];
        for (config, what) in cases {
            world.weir.write_config(&config);
            for command in ["run", "check", "plan"] {
                let ended = world.weir.finish(world.weir.command(command));
                let text = format!("{}{}", ended.output, ended.errors);
                assert_eq!(ended.code(), 1, "weir {command}: {text}");
                assert!(text.contains("test.toml") && text.contains(what), "weir {command}: {text}");
                assert!(text.ends_with('\n'), "weir {command}: its last line has no end: {text:?}");
            }
        }
        world.assert_as_before();
    });
}

#[test]
fn commands_without_a_running_weir_or_a_file_are_refused() {
    prepare(&Settings::default(), |world| {
        for what in ["status", "flows"] {
            let ended = world.weir.finish(world.weir.command(what));
            assert_sentence(&ended, 3, &["/run/weir/admin.sock", "weir run"]);
        }
        for what in ["run", "check", "plan"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
            command.args([what, "-c", "/run/weir/none.toml"]);
            let ended = world.weir.finish(command);
            let text = format!("{}{}", ended.output, ended.errors);
            assert_eq!(ended.code(), 1, "weir {what}: {text}");
            assert!(text.contains("/run/weir/none.toml"), "{text}");
        }
        for usage in [&["run"][..], &["status"], &["walk"], &[], &["run", "-c"], &["demo", "--workers", "0"]]
        {
            let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
            command.args(usage);
            let ended = world.weir.finish(command);
            assert_eq!(ended.code(), 2, "weir {usage:?}: {ended:?}");
        }
        world.assert_as_before();
    });
}

/// Each that is refused asks the lock who has it, and nobody takes these questions: the kernel keeps so many of them.
#[test]
fn however_many_are_refused_because_a_weir_runs_each_is_told_which() {
    prepare(&Settings::default(), |world| {
        world.sh(&world.lab.gateway, "sysctl -qw net.core.somaxconn=8");
        world.weir.start();
        let process = format!("process {}", world.weir.pid());
        for _ in 0..20 {
            assert_sentence(&world.weir.clean(), 3, &["another weir runs", &process]);
        }
        assert_eq!(world.weir.stop().code(), 0);
        world.sh(&world.lab.gateway, "sysctl -qw net.core.somaxconn=4096");
        world.assert_as_before();
    });
}
