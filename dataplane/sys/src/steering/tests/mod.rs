//! The steering program against its table of packets, run by the kernel (BPF_PROG_TEST_RUN): for each packet the action
//! and exactly which counter moved.

mod chains;
mod express;
mod former;
mod icmp;
mod lifecycle;
mod local;
mod look;
mod packets;
mod pools;
mod table;
mod vlans;

use std::net::SocketAddr;

use super::*;
use crate::netns::Namespace;
use crate::{clock, ethtool};

/// `enum xdp_action` of linux/bpf.h.
const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

/// Ports of the bench, by the devices that stand for them; `stray` is no port.
const LAN: &str = "lan";
const WAN: &str = "wan";
const STRAY: &str = "stray";

/// Intercepts of the bench: `web` is for the fast road, `mail` for the relay; both have clients in the LAN.
const WEB: u32 = 0;
const MAIL: u32 = 1;

const SECOND: u64 = 1_000_000_000;

/// A loaded program with addresses, intercepts, sockets and a fresh heartbeat.
struct Bench {
    steering: Steering,
    /// AF_XDP sockets that are bound to nothing: enough for the map, and for XDP_REDIRECT as the answer.
    _sockets: Vec<std::os::fd::OwnedFd>,
}

/// Runs `work` with a bench, in a namespace of its own.
fn with_bench(work: impl FnOnce(&mut Bench) + Send) {
    with_bench_of(&Sizes::default(), work);
}

/// As [`with_bench`], with maps of other sizes.
fn with_bench_of(sizes: &Sizes, work: impl FnOnce(&mut Bench) + Send) {
    Namespace::new().unwrap().run(|| work(&mut Bench::of(sizes))).unwrap();
}

impl Bench {
    fn new() -> Self {
        Self::of(&Sizes::default())
    }

    fn of(sizes: &Sizes) -> Self {
        Self::devices();
        Self::with_devices(sizes)
    }

    fn devices() {
        for (device, peer) in [(LAN, "lan-peer"), (WAN, "wan-peer"), (STRAY, "stray-peer")] {
            ip(&["link", "add", device, "type", "veth", "peer", "name", peer]);
            ethtool::set_up(device, true).unwrap();
        }
    }

    /// With the devices that are there.
    fn with_devices(sizes: &Sizes) -> Self {
        let mut steering = Steering::load(sizes).unwrap();
        let mut sockets = Vec::new();
        for (port, device) in [LAN, WAN].into_iter().enumerate() {
            let port = port as u32;
            steering.set_port(ethtool::index_of(device).unwrap(), port).unwrap();
            let socket = xdp_socket();
            steering.set_socket(port, 0, &socket).unwrap();
            sockets.push(socket);
        }
        let own = ["10.1.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"];
        steering.set_own_addresses(&own.map(|address| address.parse().unwrap())).unwrap();
        steering.set_intercepts(&table()).unwrap();
        steering.set_limits(SECOND, false).unwrap();
        let bench = Self { steering, _sockets: sockets };
        bench.beat();
        bench
    }

    /// A heartbeat that stays fresh for the rest of the test, however slow the machine is.
    fn beat(&self) {
        self.steering.heartbeat(clock::monotonic_ns() + 3600 * SECOND).unwrap();
    }

    /// No heartbeat since the start of time.
    fn stop_beating(&self) {
        self.steering.heartbeat(1).unwrap();
    }

    /// Runs the program on a packet that came in by `device`: the action, and the one counter that moved.
    fn run(&mut self, device: &str, packet: &[u8]) -> (u32, Outcome) {
        let (trial, outcome) = self.run_any(device, packet);
        assert_eq!(trial.frame, packet, "steering changes nothing in the packet");
        (trial.action, outcome)
    }

    /// Also of the express lane: the one counter that moved.
    fn count_one(&mut self, device: &str, packet: &[u8]) -> Outcome {
        self.run_any(device, packet).1
    }

    fn run_any(&mut self, device: &str, packet: &[u8]) -> (Trial, Outcome) {
        let before = self.steering.counters().unwrap();
        let trial = self.steering.run_on(ethtool::index_of(device).unwrap(), packet).unwrap();
        let after = self.steering.counters().unwrap();
        let moved: Vec<(Outcome, u64)> = Outcome::ALL
            .map(|outcome| (outcome, after.of(outcome) - before.of(outcome)))
            .into_iter()
            .filter(|(_, by)| *by != 0)
            .collect();
        let [(outcome, 1)] = moved[..] else { panic!("counters moved: {moved:?}") };
        (trial, outcome)
    }

    fn check(&mut self, name: &str, device: &str, packet: &[u8], expected: (u32, Outcome)) {
        assert_eq!(self.run(device, packet), expected, "{name} by {device}: {packet:02x?}");
    }
}

/// `web`: ports 80 and 8000 to 8099 of two prefixes. `mail`: port 25 and 143 there and of a prefix within the first.
fn table() -> InterceptTable {
    let mut table = InterceptTable::default();
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    table.add(
        WEB,
        nets(&["192.0.2.0/24", "2001:db8::/32"]),
        [(80, 80), (443, 443), (8000, 8099)],
        [0],
        false,
    );
    table.add(MAIL, nets(&["192.0.2.128/25", "2001:db8:25::/48"]), [(25, 25), (80, 80)], [0], true);
    table
}

fn xdp_socket() -> std::os::fd::OwnedFd {
    let family = rustix::net::AddressFamily::XDP;
    rustix::net::socket_with(family, rustix::net::SocketType::RAW, rustix::net::SocketFlags::CLOEXEC, None)
        .unwrap()
}

fn ip(args: &[&str]) {
    let done =
        std::process::Command::new("ip").args(args).output().expect("install iproute2: `ip` is needed");
    assert!(done.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr));
}

fn endpoint(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
