//! A process with network and mount namespaces of its own for a test, and what tests do in it.
//!
//! A test starts itself again below `unshare -n -m`: nothing that it does can reach the host's network, /run is an empty
//! tmpfs (so that `ip netns add` is private too), no file says what sysctls should be, and all of it is gone when the process is.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Signal, set_parent_process_death_signal};
use weir_control::host::{Host, HostError, HostSpec, InterceptSpec, Paths, wait};

/// Declares a test that runs in namespaces of its own.
macro_rules! isolated {
    ($(#[$meta:meta])* fn $name:ident() $body:block) => {
        $(#[$meta])*
        #[test]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            crate::space::run_isolated(path.split_once("::").map_or(path, |(_, rest)| rest), || $body);
        }
    };
}
pub(crate) use isolated;

const INSIDE: &str = "WEIR_TEST_INSIDE";

pub fn run_isolated(test: &str, body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
        return body();
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: {test} needs root to make network namespaces");
        assert!(env::var("CI").as_deref() != Ok("true"), "{test} was skipped, and CI skips nothing");
        return;
    }
    let output = Command::new("unshare")
        .args([
            "-n",
            "-m",
            "--",
            "sh",
            "-c",
            "mount -t tmpfs tmpfs /run && ip link set lo up
             for folder in /etc /usr/local/lib /usr/lib; do test ! -d $folder/sysctl.d || mount -t tmpfs tmpfs $folder/sysctl.d; done
             test ! -e /etc/sysctl.conf || mount --bind /dev/null /etc/sysctl.conf
             exec \"$@\"",
            "sh",
        ])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "no test was named {test}:\n{text}");
}

/// Runs a command line; returns what it printed. Panics when it fails.
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}\n{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A gateway's devices: `lan` and `wan` (with peers that nobody serves) and weir's two TUN devices.
pub fn gateway() {
    // Addresses are there at once, and no test is about duplicates of them.
    sh("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.dad_transmits=0");
    sh("ip link add lan type veth peer name lanp && ip link add wan type veth peer name wanp");
    sh("for d in lan lanp wan wanp; do ip link set $d up; done");
    sh("ip addr add 10.1.0.1/24 dev lan && ip addr add 10.2.0.1/24 dev wan");
    sh("ip addr add fd01::1/64 dev lan nodad && ip addr add fd02::1/64 dev wan nodad");
    sh("for d in weir-relay weir-punt; do ip tuntap add $d mode tun && ip link set $d up; done");
    settled();
}

/// Waits until the four devices have their link-local addresses, which come by themselves.
fn settled() {
    let there = "test $(ip -6 addr show scope link | grep -c inet6) = 4 && ! ip addr | grep -q tentative";
    sh(&format!("for i in $(seq 500); do if {there}; then exit 0; fi; sleep 0.02; done; exit 1"));
}

/// Everything intercepted from `lan`, and some of it twice.
pub fn spec() -> HostSpec {
    HostSpec {
        ports: vec!["lan".into(), "wan".into()],
        intercepts: vec![
            InterceptSpec {
                name: "some \"quoted\" name".into(),
                from: vec!["lan".into()],
                tagged: false,
                to: ["198.51.100.0/25", "198.51.100.128/25", "10.9.0.0/16", "10.9.1.0/24", "2001:db8:1::/48"]
                    .iter()
                    .map(|p| p.parse().unwrap())
                    .collect(),
                ports: vec![(8080, 8099), (8090, 8200), (443, 443)],
                reject_quic: true,
            },
            InterceptSpec {
                name: "web".into(),
                from: vec!["lan".into()],
                tagged: false,
                to: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
                ports: vec![(80, 80), (443, 443), (8000, 8099)],
                reject_quic: true,
            },
        ],
        ..HostSpec::default()
    }
}

/// Runs one piece of work on a host connection of its own.
pub fn host<T>(work: impl AsyncFnOnce(&Host) -> Result<T, HostError>) -> Result<T, HostError> {
    wait(async {
        let host = Host::open(Paths::of_this_namespace()?)?;
        work(&host).await
    })
}

/// Everything of this namespace that weir could leave something in.
pub fn dump() -> String {
    let mut text = String::new();
    for line in [
        "ip rule",
        "ip -6 rule",
        "ip route show table all | sort",
        "ip -6 route show table all | sort",
        "nft list ruleset",
        "ip -d link",
        "ip addr",
        "find /run -type f",
    ] {
        text.push_str(&format!("# {line}\n{}", sh(line)));
    }
    // Lifetimes of addresses and expiring routes count down; nothing here has one.
    sysctls(Path::new("/proc/sys/net/ipv4"), &mut text);
    sysctls(Path::new("/proc/sys/net/ipv6"), &mut text);
    text
}

fn sysctls(folder: &Path, text: &mut String) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sysctls(&path, text);
        } else if let Ok(value) = fs::read_to_string(&path) {
            text.push_str(&format!("{} = {value}", path.display()));
        }
    }
}

/// Compares two dumps and shows the lines that differ.
pub fn assert_same(before: &str, after: &str) {
    let only = |a: &str, b: &str| -> Vec<String> {
        let b: Vec<&str> = b.lines().collect();
        a.lines().filter(|l| !b.contains(l)).map(str::to_owned).collect()
    };
    assert!(before == after, "gone: {:#?}\nnew: {:#?}", only(before, after), only(after, before));
}

/// Moves the calling thread into a network namespace.
pub fn enter(namespace: &fs::File) {
    use std::os::fd::AsFd as _;
    let kind = rustix::thread::LinkNameSpaceType::Network;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind)).unwrap();
}
