//! What the watch makes of a real kernel's routes, neighbours, links and rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use weir_control::host::watch::Options;
use weir_control::host::{HostEvent, OwnAddresses, PortChange, Watch, wait};
use weir_core::fib::{Fib, NextHop, Way};
use weir_core::flow::key::{FlowKey, Tuple};
use weir_core::ids::PortId;

use crate::space::{gateway, host, isolated, sh, spec};

/// A watch on `lan` (port 0) and `wan` (port 1), in a thread of its own.
struct Watched {
    events: Receiver<HostEvent>,
    fib: Arc<Fib>,
    own: Arc<OwnAddresses>,
    warnings: Vec<String>,
    changes: Vec<(PortId, PortChange)>,
    fibs: usize,
    touched: usize,
}

impl Watched {
    fn start(keepalive: Duration) -> Self {
        let (sender, events) = channel();
        std::thread::spawn(move || {
            let ports = vec![(PortId(0), "lan".to_owned()), (PortId(1), "wan".to_owned())];
            wait(async {
                let options = Options { keepalive, ..Options::default() };
                let (_watch, mut receiver) = Watch::start(ports, options)?;
                while let Some(event) = receiver.recv().await {
                    if sender.send(event).is_err() {
                        break;
                    }
                }
                Ok(())
            })
            .unwrap();
        });
        let mut watched = Self {
            events,
            fib: Arc::default(),
            own: Arc::default(),
            warnings: Vec::new(),
            changes: Vec::new(),
            fibs: 0,
            touched: 0,
        };
        watched.soon("the first picture", |w| w.fibs > 0);
        watched
    }

    fn take(&mut self, event: HostEvent) {
        match event {
            HostEvent::Fib(fib) => (self.fib, self.fibs) = (fib, self.fibs + 1),
            HostEvent::Own(own) => self.own = own,
            HostEvent::Port { port, change, .. } => self.changes.push((port, change)),
            HostEvent::Vlans(_) => {}
            HostEvent::Warnings(warnings) => self.warnings = warnings,
            HostEvent::KernelSideTouched(_) => self.touched += 1,
            HostEvent::Ended(why) => panic!("the watch ended: {why}"),
        }
    }

    /// Takes events until `done`, and fails when that takes longer than `limit`.
    fn until(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + limit;
        while !done(self) {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => self.take(event),
                Err(e) => panic!("{what}: {e}; now {:#?}", self.fib),
            }
        }
    }

    fn soon(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        self.until(what, Duration::from_secs(30), done);
    }

    /// Everything that comes within a span.
    fn settle(&mut self, span: Duration) {
        let deadline = Instant::now() + span;
        while let Ok(event) = self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.take(event);
        }
    }

    /// The next hop in words: port and last octet of its address, or why there is none.
    fn hop(&self, to: &str) -> String {
        self.hop_of(to, 40_000)
    }

    /// The same, of a connection from a port.
    fn hop_of(&self, to: &str, port: u16) -> String {
        let to: IpAddr = to.parse().unwrap();
        match self.fib.next_hop(to, &flow(to, port)) {
            NextHop::Forward { port, dst_mac, mtu, .. } => format!("{}:{:02x} {mtu}", port.0, dst_mac[5]),
            NextHop::Unresolved(port) => format!("unresolved {}", port.0),
            NextHop::Kernel => "kernel".to_owned(),
        }
    }

    /// The next hops of many connections, and how many of 1,000 have each.
    fn hops(&self, to: &str) -> BTreeMap<String, u32> {
        let mut hops = BTreeMap::new();
        for port in 1..=1000 {
            *hops.entry(self.hop_of(to, port)).or_default() += 1;
        }
        hops
    }

    /// Whether there are just these.
    fn has_hops(&self, to: &str, wanted: &[&str]) -> bool {
        self.hops(to).keys().map(String::as_str).eq(wanted.iter().copied())
    }
}

fn flow(to: IpAddr, port: u16) -> FlowKey {
    let from = if to.is_ipv4() { "10.1.0.5".parse().unwrap() } else { "fd01::5".parse().unwrap() };
    let (src, dst) = (SocketAddr::new(from, port), SocketAddr::new(to, 443));
    FlowKey::of(&Tuple { src: src.into(), dst: dst.into() })
}

const HOUR: Duration = Duration::from_secs(3600);

isolated! {
    fn routes_of_both_families_become_next_hops() {
        gateway();
        sh("ip link add mgmt type veth peer name mgmtp && ip link set mgmt up && ip link set mgmtp up");
        for line in [
            "neigh add 10.1.0.2 lladdr 02:00:00:00:00:02 dev lan nud permanent",
            "neigh add 10.2.0.3 lladdr 02:00:00:00:00:03 dev wan nud permanent",
            "neigh add 10.2.0.4 lladdr 02:00:00:00:00:04 dev wan nud stale",
            "neigh add 10.2.0.5 lladdr 02:00:00:00:00:05 dev wan nud failed",
            "-6 neigh add fd01::2 lladdr 02:00:00:00:00:12 dev lan nud permanent",
            "-6 neigh add fd02::3 lladdr 02:00:00:00:00:13 dev wan nud permanent",
            "-6 neigh add fe80::4 lladdr 02:00:00:00:00:14 dev wan nud permanent",
            "route add default via 10.2.0.3",
            "route add 10.10.0.0/16 via 10.2.0.4 metric 50",
            "route add 10.10.0.0/16 via 10.2.0.3 metric 100",
            "route add 10.11.0.0/16 dev mgmt",
            "route add blackhole 10.12.0.0/16",
            "route add unreachable 10.13.0.0/16",
            "route add prohibit 10.14.0.0/16",
            "route add 10.16.0.0/16 via 10.2.0.3 mtu 1300",
            "route add 10.17.0.0/16 via inet6 fe80::4 dev wan",
            "route add 10.18.0.0/16 via 172.16.0.1 dev wan onlink",
            "route add 10.19.0.0/16 tos 0x10 via 10.2.0.3",
            "route add 10.19.0.0/16 via 10.2.0.4",
            "route add local 10.20.0.0/16 dev lo",
            "route add 10.21.0.0/16 via 10.2.0.5",
            "nexthop add id 5 via 10.2.0.3 dev wan",
            "route add 10.22.0.0/16 nhid 5",
            "route add 10.23.0.0/16 via 10.2.0.3 table 99",
            "-6 route add default via fe80::4 dev wan",
            "-6 route add fd10::/16 via fd02::3 metric 10",
            "-6 route add fd10::/16 via fe80::4 dev wan metric 20",
            "-6 route add fd11::/16 dev mgmt",
            "-6 route add blackhole fd12::/16",
            "-6 route add unreachable fd13::/16",
            "-6 route add fd16::/16 via fd02::3 mtu 1300",
            "-6 route add local fd20::/16 dev lo",
            "-6 route add fd22::/16 via fd02::3 from fd01::/64",
        ] {
            sh(&format!("ip {line}"));
        }
        let watched = Watched::start(HOUR);
        for (to, hop) in [
            ("10.1.0.2", "0:02 1500"),
            ("10.1.0.9", "unresolved 0"),
            ("10.2.0.3", "1:03 1500"),
            ("8.8.8.8", "1:03 1500"),
            ("10.10.1.1", "1:04 1500"),
            ("10.11.1.1", "kernel"),
            ("10.12.1.1", "kernel"),
            ("10.13.1.1", "kernel"),
            ("10.14.1.1", "kernel"),
            ("10.16.1.1", "kernel"),
            ("10.17.1.1", "1:14 1500"),
            ("10.18.1.1", "unresolved 1"),
            ("10.19.1.1", "kernel"),
            ("10.20.1.1", "kernel"),
            ("10.21.1.1", "unresolved 1"),
            ("10.22.1.1", "1:03 1500"),
            ("10.23.1.1", "1:03 1500"),
            ("10.1.0.1", "kernel"),
            ("10.1.0.255", "kernel"),
            ("127.0.0.1", "kernel"),
            ("224.0.0.1", "kernel"),
            ("255.255.255.255", "kernel"),
            ("fd01::2", "0:12 1500"),
            ("fd01::9", "unresolved 0"),
            ("2001:db8::1", "1:14 1500"),
            ("fd10::1", "1:13 1500"),
            ("fd11::1", "kernel"),
            ("fd12::1", "kernel"),
            ("fd13::1", "kernel"),
            ("fd16::1", "kernel"),
            ("fd20::1", "kernel"),
            ("fd22::1", "kernel"),
            ("fd01::1", "kernel"),
            ("fe80::4", "kernel"),
            ("ff02::1", "kernel"),
            ("::1", "kernel"),
        ] {
            assert_eq!(watched.hop(to), hop, "{to}");
        }
    }
}

const STATIONS: [&str; 6] = [
    "neigh add 10.1.0.2 lladdr 02:00:00:00:00:02 dev lan nud permanent",
    "neigh add 10.2.0.3 lladdr 02:00:00:00:00:03 dev wan nud permanent",
    "neigh add 10.2.0.4 lladdr 02:00:00:00:00:04 dev wan nud permanent",
    "-6 neigh add fd01::2 lladdr 02:00:00:00:00:12 dev lan nud permanent",
    "-6 neigh add fd02::3 lladdr 02:00:00:00:00:13 dev wan nud permanent",
    "-6 neigh add fe80::4 lladdr 02:00:00:00:00:14 dev wan nud permanent",
];

isolated! {
    fn multipath_routes_of_every_form_share_out_connections() {
        gateway();
        sh("ip link add mgmt type veth peer name mgmtp && ip link set mgmt up && ip link set mgmtp up");
        sh("ip addr add 10.3.0.1/24 dev mgmt");
        for line in STATIONS.into_iter().chain([
            "route add 10.30.0.0/16 nexthop via 10.2.0.3 nexthop via 10.1.0.2",
            "route add 10.31.0.0/16 nexthop via 10.2.0.3 weight 1 nexthop via 10.2.0.4 weight 3",
            "route add 10.32.0.0/16 nexthop via inet6 fe80::4 dev wan nexthop via 10.1.0.2",
            "route add 10.33.0.0/16 nexthop via 10.2.0.3 nexthop via 10.3.0.9",
            "route add 10.34.0.0/16 mtu 1300 nexthop via 10.2.0.3 nexthop via 10.1.0.2",
            "nexthop add id 1 via 10.2.0.3 dev wan",
            "nexthop add id 2 via 10.1.0.2 dev lan",
            "nexthop add id 3 via 10.3.0.9 dev mgmt",
            "nexthop add id 4 blackhole",
            "nexthop add id 10 group 1,1/2,3",
            "nexthop add id 11 group 1/2 type resilient buckets 32",
            "nexthop add id 12 group 1/3",
            "nexthop add id 13 group 2",
            "route add 10.40.0.0/16 nhid 10",
            "route add 10.41.0.0/16 nhid 11",
            "route add 10.42.0.0/16 nhid 12",
            "route add 10.43.0.0/16 nhid 13",
            "route add 10.44.0.0/16 nhid 1",
            "route add 10.45.0.0/16 nhid 4",
            "-6 route add fd30::/16 nexthop via fd02::3 dev wan nexthop via fd01::2 dev lan",
            "-6 route add fd31::/16 nexthop via fd02::3 weight 1 nexthop via fe80::4 dev wan weight 3",
            "-6 route append fd32::/16 via fd02::3 metric 7",
            "-6 route append fd32::/16 via fd01::2 metric 7",
            "-6 route add fd33::/16 nexthop via fd02::3 nexthop via fe80::9 dev mgmt",
            "-6 route add fd34::/16 mtu 1300 nexthop via fd02::3 nexthop via fd01::2",
            "-6 nexthop add id 21 via fd02::3 dev wan",
            "-6 nexthop add id 22 via fd01::2 dev lan",
            "-6 nexthop add id 24 blackhole",
            "nexthop add id 20 group 21,1/22,3",
            "nexthop add id 23 group 21/22 type resilient buckets 32",
            "-6 route add fd40::/16 nhid 20",
            "-6 route add fd41::/16 nhid 23",
            "-6 route add fd44::/16 nhid 21",
            "-6 route add fd45::/16 nhid 24",
        ]) {
            sh(&format!("ip {line}"));
        }
        // Without it the kernel does not spell objects out in the routes that name them.
        for compat in [1, 0] {
            sh(&format!("sysctl -qw net.ipv4.nexthop_compat_mode={compat}"));
            let watched = Watched::start(HOUR);
            for (to, wanted) in [
                ("10.30.1.1", &["0:02 1500", "1:03 1500"][..]),
                ("10.31.1.1", &["1:03 1500", "1:04 1500"]),
                ("10.32.1.1", &["0:02 1500", "1:14 1500"]),
                ("10.33.1.1", &["kernel"]),
                ("10.34.1.1", &["kernel"]),
                ("10.40.1.1", &["0:02 1500", "1:03 1500"]),
                ("10.41.1.1", &["0:02 1500", "1:03 1500"]),
                ("10.42.1.1", &["kernel"]),
                ("10.43.1.1", &["0:02 1500"]),
                ("10.44.1.1", &["1:03 1500"]),
                ("10.45.1.1", &["kernel"]),
                ("fd30::1", &["0:12 1500", "1:13 1500"]),
                ("fd31::1", &["1:13 1500", "1:14 1500"]),
                ("fd32::1", &["0:12 1500", "1:13 1500"]),
                ("fd33::1", &["kernel"]),
                ("fd34::1", &["kernel"]),
                ("fd40::1", &["0:12 1500", "1:13 1500"]),
                ("fd41::1", &["0:12 1500", "1:13 1500"]),
                ("fd44::1", &["1:13 1500"]),
                ("fd45::1", &["kernel"]),
            ] {
                assert!(watched.has_hops(to, wanted), "{compat} {to}: {:?}", watched.hops(to));
            }
            for (to, heavy) in [
                ("10.31.1.1", "1:04 1500"),
                ("10.40.1.1", "0:02 1500"),
                ("fd31::1", "1:14 1500"),
                ("fd40::1", "0:12 1500"),
            ] {
                let share = watched.hops(to)[heavy];
                assert!((680..820).contains(&share), "{to}: {share} of 1000, where 750 are due");
            }
            // The kernel chooses among the same.
            sh("sysctl -qw net.ipv4.fib_multipath_hash_policy=1 net.ipv6.fib_multipath_hash_policy=1");
            for (to, routers) in [("10.40.1.1", ["10.1.0.2", "10.2.0.3"]), ("fd40::1", ["fd01::2", "fd02::3"])] {
                let gets = (1..=64).map(|port| sh(&format!("ip route get {to} ipproto tcp sport {port} dport 443"))).collect::<String>();
                assert!(routers.iter().all(|router| gets.contains(&format!(" via {router} "))), "{gets}");
            }
        }
    }
}

isolated! {
    fn ways_that_die_come_back_and_change_are_followed() {
        gateway();
        for line in STATIONS.into_iter().chain([
            // Routes whose objects the kernel says nothing about when these change.
            "nexthop add id 1 via 10.2.0.3 dev wan",
            "nexthop add id 2 via 10.1.0.2 dev lan",
            "nexthop add id 10 group 1/2",
            "route add 10.40.0.0/16 nhid 10",
            "route add 10.30.0.0/16 nexthop via 10.2.0.3 nexthop via 10.1.0.2",
            "route add 10.30.0.0/16 via 10.2.0.4 metric 100",
            "-6 nexthop add id 21 via fd02::3 dev wan",
            "-6 nexthop add id 22 via fd01::2 dev lan",
            "nexthop add id 20 group 21/22",
            "-6 route add fd40::/16 nhid 20",
            "-6 route add fd30::/16 nexthop via fd02::3 nexthop via fd01::2",
            "-6 route add fd30::/16 via fe80::4 dev wan metric 2000",
        ]) {
            sh(&format!("ip {line}"));
        }
        sh("sysctl -qw net.ipv4.nexthop_compat_mode=0");
        let mut watched = Watched::start(HOUR);
        const V4: [&str; 2] = ["0:02 1500", "1:03 1500"];
        const V6: [&str; 2] = ["0:12 1500", "1:13 1500"];
        let all = |w: &Watched, v4: &[&str], v6: &[&str]| {
            ["10.30.1.1", "10.40.1.1"].iter().all(|to| w.has_hops(to, v4))
                && ["fd30::1", "fd40::1"].iter().all(|to| w.has_hops(to, v6))
        };
        assert!(all(&watched, &V4, &V6));
        let before: Vec<String> = (1..200).map(|port| watched.hop_of("10.40.1.1", port)).collect();
        sh("ip link set lanp down");
        watched.soon("one link down", |w| all(w, &V4[1..], &V6[1..]));
        sh("ip link set lanp up");
        // The kernel forgets the objects of a device without a carrier.
        sh("ip nexthop add id 2 via 10.1.0.2 dev lan && ip nexthop replace id 10 group 1/2");
        sh("ip -6 nexthop add id 22 via fd01::2 dev lan && ip nexthop replace id 20 group 21/22");
        watched.soon("it is up", |w| all(w, &V4, &V6));
        assert_eq!((1..200).map(|port| watched.hop_of("10.40.1.1", port)).collect::<Vec<_>>(), before);
        sh("ip neigh del 10.2.0.3 dev wan && ip -6 neigh del fd02::3 dev wan");
        watched.soon("one router lost", |w| all(w, &V4[..1], &V6[..1]));
        sh(&format!("ip {} && ip {}", STATIONS[1], STATIONS[4]));
        watched.soon("it is back", |w| all(w, &V4, &V6));
        sh("ip nexthop replace id 1 via 10.2.0.4 dev wan && ip -6 nexthop replace id 21 via fe80::4 dev wan");
        watched.soon("another router", |w| {
            w.has_hops("10.40.1.1", &["0:02 1500", "1:04 1500"]) && w.has_hops("fd40::1", &["0:12 1500", "1:14 1500"])
        });
        sh("ip nexthop replace id 10 group 2 && ip nexthop replace id 20 group 22");
        watched.soon("a smaller group", |w| w.has_hops("10.40.1.1", &["0:02 1500"]) && w.has_hops("fd40::1", &["0:12 1500"]));
        sh("ip route del 10.30.0.0/16 metric 0 && ip -6 route del fd30::/16 metric 1024");
        sh("ip nexthop del id 2 && ip nexthop del id 22");
        watched.soon("withdrawn", |w| {
            w.hop("10.30.1.1") == "1:04 1500"
                && w.hop("fd30::1") == "1:14 1500"
                && w.hop("10.40.1.1") == "kernel"
                && w.hop("fd40::1") == "kernel"
        });
        sh("ip route add default nexthop via 10.2.0.3 nexthop via 10.1.0.2");
        sh("ip -6 route add default nexthop via fd02::3 nexthop via fd01::2");
        watched.soon("a default route that appears later", |w| w.has_hops("10.40.1.1", &V4) && w.has_hops("fd40::1", &V6));
    }
}

isolated! {
    fn connections_of_its_own_come_from_the_address_that_the_kernel_would_take() {
        gateway();
        for line in [
            "addr add 10.2.0.9/24 dev wan",
            "addr add 10.3.0.1/24 dev wan",
            "addr add 169.254.7.7/16 dev wan scope link",
            "addr add 192.0.2.77/32 dev lo",
            "-6 addr add fd03::1/64 dev wan nodad",
            "-6 addr add fd04::1/64 dev wan nodad preferred_lft 0",
            "-6 addr add 2001:db8::77/128 dev lo",
            "route add default via 10.2.0.3",
            "route add 10.10.0.0/16 via 10.3.0.3",
            "route add 10.11.0.0/16 via 10.2.0.3 src 192.0.2.77",
            "route add 10.12.0.0/16 via 10.2.0.3 src 10.1.0.1",
            "-6 route add default via fe80::4 dev wan",
            "-6 route add fd10::/16 via fd02::3",
            "-6 route add fd11::/16 via fd02::3 src 2001:db8::77",
            "-6 route add blackhole fd12::/16",
            "route add blackhole 10.13.0.0/16",
        ] {
            sh(&format!("ip {line}"));
        }
        let mut watched = Watched::start(HOUR);
        let source = |w: &Watched, to: &str| {
            let to: IpAddr = to.parse().unwrap();
            w.fib.source(to, &flow(to, 40_000), Way::NONE).map(|a| a.to_string())
        };
        for (to, from) in [
            ("10.1.0.5", "10.1.0.1"),
            ("10.2.0.5", "10.2.0.1"),
            ("10.3.0.5", "10.3.0.1"),
            ("8.8.8.8", "10.2.0.1"),
            ("10.10.0.1", "10.3.0.1"),
            ("10.11.0.1", "192.0.2.77"),
            ("10.12.0.1", "10.1.0.1"),
            ("fd01::5", "fd01::1"),
            ("fd11::1", "2001:db8::77"),
        ] {
            assert_eq!(source(&watched, to).as_deref(), Some(from), "{to}");
            let route = sh(&format!("ip route get {to}"));
            assert!(route.contains(&format!(" src {from} ")), "{to}: {route}");
        }
        // Which of two that are as good does not matter; that it is none of the others does.
        for to in ["fd02::5", "fd10::1", "2001:db8:9::1"] {
            let from = source(&watched, to).unwrap();
            assert!(["fd02::1", "fd03::1"].contains(&from.as_str()), "{to}: {from}");
        }
        for to in ["10.13.0.1", "fd12::1", "10.2.0.1", "127.0.0.1"] {
            assert_eq!(source(&watched, to), None, "{to}");
        }
        sh("ip route replace 10.11.0.0/16 via 10.2.0.3 src 10.3.0.1 && ip -6 addr del fd01::1/64 dev lan");
        watched.soon("the route's new source", |w| source(w, "10.11.0.1").as_deref() == Some("10.3.0.1"));
        watched.soon("the address is gone", |w| w.fib.links[0].is_some_and(|link| link.v6.is_none() && link.v4.is_some()));
    }
}

isolated! {
    fn own_addresses_include_every_device_and_local_prefixes() {
        gateway();
        sh("ip link add idle type veth peer name idlep && ip addr add 192.0.2.77/24 dev idle && ip addr add 2001:db8::77/64 dev idle");
        sh("ip route add local 198.51.100.0/24 dev lo && sysctl -qw net.ipv6.conf.all.forwarding=1");
        let mut watched = Watched::start(HOUR);
        let has = |w: &Watched, a: &str| w.own.addresses.contains(&a.parse::<IpAddr>().unwrap());
        for address in ["127.0.0.1", "::1", "10.1.0.1", "10.1.0.255", "10.2.0.1", "fd01::1", "fd01::", "192.0.2.77", "2001:db8::77"] {
            assert!(has(&watched, address), "{address}: {:#?}", watched.own);
        }
        assert!(watched.own.addresses.iter().any(|a| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local())));
        for prefix in ["127.0.0.0/8", "198.51.100.0/24"] {
            assert!(watched.own.prefixes.contains(&prefix.parse().unwrap()), "{prefix}: {:#?}", watched.own);
        }
        sh("ip addr add 10.1.0.7/24 dev lan && ip addr del fd02::1/64 dev wan");
        watched.soon("the new address", |w| has(w, "10.1.0.7") && !has(w, "fd02::1"));
        watched.soon("the new address", |w| w.hop("10.1.0.7") == "kernel");
    }
}

isolated! {
    fn neighbour_resolved_changed_and_lost_is_seen() {
        gateway();
        let mut watched = Watched::start(HOUR);
        for (neigh, to) in [("neigh", "10.1.0.2"), ("-6 neigh", "fd01::2")] {
            assert_eq!(watched.hop(to), "unresolved 0");
            sh(&format!("ip {neigh} add {to} lladdr 02:00:00:00:00:02 dev lan nud reachable"));
            watched.soon("resolved", |w| w.hop(to) == "0:02 1500");
            sh(&format!("ip {neigh} replace {to} lladdr 02:00:00:00:00:03 dev lan nud reachable"));
            watched.soon("moved", |w| w.hop(to) == "0:03 1500");
            sh(&format!("ip {neigh} del {to} dev lan"));
            watched.soon("lost", |w| w.hop(to) == "unresolved 0");
        }
    }
}

isolated! {
    fn port_down_changed_removed_and_back_is_told() {
        gateway();
        for (to, router) in [("10.9.0.0/16", "10.1.0.2"), ("fd09::/16", "fd01::2")] {
            sh(&format!("ip neigh add {router} lladdr 02:00:00:00:00:02 dev lan nud permanent"));
            sh(&format!("ip route add {to} via {router}"));
        }
        let hops = |w: &Watched| [w.hop("10.9.0.1"), w.hop("fd09::1")];
        let mut watched = Watched::start(HOUR);
        assert_eq!(hops(&watched), ["0:02 1500", "0:02 1500"]);
        watched.changes.clear();
        sh("ip link set lan mtu 1400");
        watched.soon("mtu", |w| hops(w) == ["0:02 1400", "0:02 1400"]);
        sh("ip link set lanp down");
        watched.soon("no carrier", |w| w.changes.last() == Some(&(PortId(0), PortChange::Down)));
        watched.soon("no carrier", |w| hops(w) == ["unresolved 0", "unresolved 0"]);
        sh("ip link set lanp up");
        watched.soon("carrier", |w| w.changes.last() == Some(&(PortId(0), PortChange::Up)));
        watched.soon("carrier", |w| hops(w) == ["0:02 1400", "0:02 1400"]);
        // IPv4 says nothing about the routes that go with a device.
        sh("ip link set lan down");
        watched.soon("down", |w| hops(w) == ["kernel", "kernel"]);
        sh("ip link del lan");
        watched.soon("removed", |w| w.changes.last() == Some(&(PortId(0), PortChange::Removed)));
        sh("ip link add lan type veth peer name lanp");
        watched.soon("back", |w| {
            matches!(w.changes.as_slice(), [.., (PortId(0), PortChange::Appeared { link, unfit: None }), (PortId(0), PortChange::Down)]
                if link.kind.as_deref() == Some("veth"))
        });
    }
}

isolated! {
    fn burst_of_routes_yields_few_pictures_and_the_last_is_right() {
        gateway();
        for router in ["10.2.0.3", "fd02::3"] {
            sh(&format!("ip neigh add {router} lladdr 02:00:00:00:00:03 dev wan nud permanent"));
        }
        let mut watched = Watched::start(HOUR);
        watched.settle(Duration::from_millis(200));
        let before = watched.fibs;
        // Far more than the socket's buffer holds, should the watch fall behind.
        let mut batch = String::new();
        for n in 0..10_000 {
            batch.push_str(&format!("route add 172.16.{}.{}/32 via 10.2.0.3\n", n / 256, n % 256));
            batch.push_str(&format!("route add fd16::{n:x}/128 via fd02::3\n"));
        }
        std::fs::write("/run/batch", batch).unwrap();
        sh("ip -batch /run/batch");
        let is = |w: &Watched, hop: &str| ["172.16.39.15", "fd16::270f"].iter().all(|last| w.hop(last) == hop);
        watched.soon("the last routes", |w| is(w, "1:03 1500"));
        watched.settle(Duration::from_millis(500));
        assert_eq!(watched.fib.v4.iter().filter(|(p, _)| p.prefix_len() == 32 && p.addr().octets()[0] == 172).count(), 10_000);
        assert_eq!(watched.fib.v6.iter().filter(|(p, _)| p.prefix_len() == 128 && p.addr().segments()[0] == 0xfd16).count(), 10_000);
        let pictures = watched.fibs - before;
        assert!(pictures < 100, "{pictures} pictures");
        sh("sed -i s/add/del/ /run/batch && ip -batch /run/batch");
        watched.soon("all gone", |w| is(w, "kernel") && w.hop("172.16.0.0") == "kernel" && w.hop("fd16::") == "kernel");
    }
}

isolated! {
    fn foreign_rule_is_warned_about_and_the_warning_taken_back() {
        gateway();
        host(async |h| h.apply(&spec()).await).unwrap();
        sh("ip rule add from all iif lo lookup 98 priority 40");
        let mut watched = Watched::start(HOUR);
        assert_eq!(watched.warnings, Vec::<String>::new());
        sh("ip -6 rule add from fd01::/64 lookup 99 priority 50");
        watched.soon("a warning", |w| w.warnings.len() == 1);
        assert!(watched.warnings[0].starts_with("the rule with priority 50 (lookup 99) may route"), "{:?}", watched.warnings);
        assert!(watched.warnings[0].ends_with("`ip -6 rule show`"), "{:?}", watched.warnings);
        sh("ip -6 rule del priority 50");
        watched.soon("no warning", |w| w.warnings.is_empty());
    }
}

isolated! {
    fn installation_touched_by_others_is_told() {
        gateway();
        host(async |h| h.apply(&spec()).await).unwrap();
        let mut watched = Watched::start(HOUR);
        watched.settle(Duration::from_millis(100));
        assert_eq!(watched.touched, 0);
        for line in ["sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv6.conf.all.forwarding=0", "nft flush ruleset", "ip rule del priority 1077", "ip -6 rule flush", "ip route flush table 177", "ip -6 route flush table 177"] {
            let before = watched.touched;
            sh(line);
            watched.soon(line, |w| w.touched > before);
            watched.settle(Duration::from_millis(50));
        }
    }
}

isolated! {
    /// Takes ten seconds: the kernel's own times for probing are what it is about.
    fn station_moved_silently_to_another_address_is_found_again() {
        gateway();
        sh("ip netns add client && ip link set lanp netns client");
        sh("ip -n client addr add 10.1.0.2/24 dev lanp && ip -n client addr add fd01::2/64 dev lanp nodad");
        sh("ip -n client link set lanp address 02:00:00:00:00:02 up");
        for (neigh, name) in [("ipv4", "lan"), ("ipv6", "lan")] {
            let folder = format!("net.{neigh}.neigh.{name}");
            sh(&format!("sysctl -qw {folder}.base_reachable_time_ms=500 {folder}.delay_first_probe_time=1 {folder}.retrans_time_ms=200"));
        }
        // Routers: known to be in use.
        sh("ip route add 10.9.0.0/16 via 10.1.0.2 && ip -6 route add fd09::/16 via fd01::2");
        let mut watched = Watched::start(Duration::from_millis(500));
        // Nobody has sent anything: the watch itself has them resolved.
        watched.soon("resolved", |w| w.hop("10.9.0.1") == "0:02 1500" && w.hop("fd09::1") == "0:02 1500");
        let quiet = "sysctl -qw net.ipv4.conf.lanp.arp_notify=0 net.ipv6.conf.lanp.ndisc_notify=0";
        sh(&format!("ip netns exec client {quiet}"));
        sh("ip -n client link set lanp address 02:00:00:00:00:03");
        watched.soon("found again", |w| {
            w.hop("10.9.0.1") == "0:03 1500" && w.hop("fd09::1") == "0:03 1500"
        });
    }
}
