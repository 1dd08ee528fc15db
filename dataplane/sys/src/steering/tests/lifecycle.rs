//! What changes while the gateway runs: heartbeat, kernel flows, sockets, intercepts, addresses, devices, pins.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use super::packets::{FAMILIES, Flags, ipv4_fragment};
use super::*;

const TO_WORKER: (u32, Outcome) = (REDIRECT, Outcome::Redirect);
const KERNEL: (u32, Outcome) = (PASS, Outcome::KernelFlow);

#[test]
fn heartbeat_stale_passes_all_and_fresh_again_redirects() {
    with_bench(|bench| {
        for family in FAMILIES {
            let syn = family.out(family.server, 80, Flags::Syn);
            let stray = family.out(family.elsewhere, 80, Flags::Syn);
            let own = family.out(family.own, 80, Flags::Syn);
            bench.stop_beating();
            bench.check("SYN", LAN, &syn, (PASS, Outcome::StalePass));
            bench.check("of no intercept", LAN, &stray, (PASS, Outcome::StalePass));
            bench.check("to the box", LAN, &own, (PASS, Outcome::OwnAddress));
            bench.beat();
            bench.check("SYN", LAN, &syn, TO_WORKER);
        }
        // A real beat, and a limit that it outlives.
        bench.steering.set_limits(20_000_000, false).unwrap();
        bench.steering.heartbeat(clock::monotonic_ns()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(40));
        let syn = FAMILIES[0].out(FAMILIES[0].server, 80, Flags::Syn);
        bench.check("SYN after 40 ms", LAN, &syn, (PASS, Outcome::StalePass));
    });
}

#[test]
fn heartbeat_stale_closed_drops_intercepts_alone() {
    with_bench(|bench| {
        bench.steering.set_limits(SECOND, true).unwrap();
        bench.stop_beating();
        for family in FAMILIES {
            let kernel = (family.at(family.client, 40_000), family.at(family.server, 443));
            bench.steering.kernel_flows().insert(kernel.0, kernel.1, 1).unwrap();
            let dropped = (DROP, Outcome::StaleDrop);
            let passed = (PASS, Outcome::StalePass);
            let rows = [
                ("SYN", LAN, family.out(family.server, 80, Flags::Syn), dropped),
                ("from the server", WAN, family.back(family.server, 80, Flags::Data), dropped),
                ("of no intercept", LAN, family.out(family.elsewhere, 80, Flags::Syn), passed),
                ("of a relay intercept", LAN, family.out(family.mail_server, 25, Flags::Syn), passed),
                ("of a kernel flow", LAN, family.out(family.server, 443, Flags::Data), passed),
                ("to the box", LAN, family.out(family.own, 80, Flags::Syn), (PASS, Outcome::OwnAddress)),
                ("by a device that is no port", STRAY, family.out(family.server, 80, Flags::Syn), passed),
            ];
            for (name, device, packet, expected) in rows {
                bench.check(&format!("{} {name}", family.name), device, &packet, expected);
            }
        }
        let [four, _] = FAMILIES;
        let fragment = ipv4_fragment(&four.out(four.server, 9, Flags::Data), 10, false);
        bench.check("fragment", LAN, &fragment, (DROP, Outcome::StaleDrop));
        bench.beat();
        bench.check("alive", LAN, &four.out(four.server, 80, Flags::Syn), TO_WORKER);
    });
}

#[test]
fn heartbeat_late_for_a_moment_drops_what_the_kernel_would_reset() {
    with_bench(|bench| {
        bench.steering.set_intercepts(&InterceptTable { translated: 1 << WEB, ..table() }).unwrap();
        bench.steering.set_doubt(3600 * SECOND).unwrap();
        let late = || clock::monotonic_ns().checked_sub(2 * SECOND).expect("up for seconds");
        bench.steering.heartbeat(late()).unwrap();
        let passed = (PASS, Outcome::StalePass);
        let dropped = (DROP, Outcome::DoubtDrop);
        for family in FAMILIES {
            let kernel = (family.at(family.client, 40_000), family.at(family.server, 443));
            bench.steering.kernel_flows().insert(kernel.0, kernel.1, 1).unwrap();
            let rows = [
                ("SYN", LAN, family.out(family.server, 8000, Flags::Syn), passed),
                ("to the server", LAN, family.out(family.server, 80, Flags::Data), dropped),
                ("after the SYN", LAN, family.out(family.server, 8000, Flags::Data), passed),
                ("after the SYN", WAN, family.back(family.server, 8000, Flags::Data), passed),
                ("from the server", WAN, family.back(family.server, 80, Flags::Data), dropped),
                ("of a kernel flow", LAN, family.out(family.server, 443, Flags::Data), passed),
                ("of no intercept", LAN, family.out(family.elsewhere, 80, Flags::Data), passed),
                ("of a relay intercept", LAN, family.out(family.mail_server, 25, Flags::Data), passed),
                ("to the box", LAN, family.out(family.own, 80, Flags::Data), (PASS, Outcome::OwnAddress)),
            ];
            for (name, device, packet, expected) in &rows {
                bench.check(&format!("{} {name}", family.name), device, packet, *expected);
            }
            // Who knows that the process is gone says so; and after a while it is, whoever says nothing.
            for (heartbeat, doubt) in [(0, 3600 * SECOND), (late(), 1)] {
                bench.steering.set_doubt(doubt).unwrap();
                bench.steering.heartbeat(heartbeat).unwrap();
                bench.check("gone", LAN, &rows[1].2, passed);
            }
            bench.steering.set_doubt(3600 * SECOND).unwrap();
            // What is not translated, the kernel forwards as the worker would have.
            bench.steering.set_intercepts(&table()).unwrap();
            bench.steering.heartbeat(late()).unwrap();
            bench.check("through", LAN, &rows[1].2, passed);
            bench.steering.set_intercepts(&InterceptTable { translated: 1 << WEB, ..table() }).unwrap();
        }
    });
}

#[test]
fn steering_not_enabled_passes_all() {
    with_bench(|bench| {
        let syn = FAMILIES[0].out(FAMILIES[0].server, 80, Flags::Syn);
        bench.steering.disable().unwrap();
        bench.check("disabled", LAN, &syn, (PASS, Outcome::Disabled));
        bench.steering.set_limits(SECOND, false).unwrap();
        bench.check("enabled", LAN, &syn, TO_WORKER);
    });
}

#[test]
fn kernel_flow_passes_in_both_directions_and_notes_its_life() {
    with_bench(|bench| {
        let flows = bench.steering.kernel_flows();
        for family in FAMILIES {
            let (client, server) = (family.at(family.client, 40_000), family.at(family.server, 80));
            let out = |flags| family.out(family.server, 80, flags);
            let back = |flags| family.back(family.server, 80, flags);
            flows.insert(server, client, 1).unwrap();
            bench.check("its SYN again", LAN, &out(Flags::Syn), TO_WORKER);
            let seen = flows.get(client, server).unwrap().unwrap();
            assert!(seen.last_seen == 1 && !seen.has_gone_on, "{seen:?}");
            bench.check("to the server", LAN, &out(Flags::Data), KERNEL);
            let seen = flows.get(client, server).unwrap().unwrap();
            assert!(seen.last_seen > 1 && seen.has_gone_on && !seen.fin_seen && !seen.is_closed, "{seen:?}");
            bench.check("to the client", WAN, &back(Flags::Data), KERNEL);
            bench.check("FIN", LAN, &out(Flags::Fin), KERNEL);
            let seen = flows.get(client, server).unwrap().unwrap();
            assert!(seen.fin_seen && !seen.is_closed, "{seen:?}");
            bench.check("FIN again", LAN, &out(Flags::Fin), KERNEL);
            assert!(!flows.get(client, server).unwrap().unwrap().is_closed);
            bench.check("FIN of the other end", WAN, &back(Flags::Fin), KERNEL);
            assert!(flows.get(client, server).unwrap().unwrap().is_closed);
            bench.check("SYN of the same tuple", LAN, &out(Flags::Syn), TO_WORKER);
            let other = family.tcp((family.client, 40_001), (family.server, 80), Flags::Data);
            bench.check("another flow", LAN, &other, TO_WORKER);
            flows.insert(client, server, 2).unwrap();
            assert!(!flows.get(client, server).unwrap().unwrap().fin_seen, "it starts over");
            bench.check("RST", WAN, &back(Flags::Rst), KERNEL);
            let seen = flows.get(client, server).unwrap().unwrap();
            assert!(seen.rst_seen && seen.is_closed, "{seen:?}");
            flows.keep(server, client, 3, true).unwrap();
            let seen = flows.get(client, server).unwrap().unwrap();
            assert!(seen.last_seen == 3 && seen.has_gone_on && !seen.is_closed, "another begins: {seen:?}");
            bench.check("FIN", LAN, &out(Flags::Fin), KERNEL);
            let seen = flows.get(client, server).unwrap();
            for goes_on in [false, true] {
                flows.keep(client, server, 4, goes_on).unwrap();
                assert_eq!(flows.get(client, server).unwrap(), seen, "it goes on as it is");
            }
            assert!(flows.remove(client, server).unwrap());
            assert!(!flows.remove(server, client).unwrap());
            flows.keep(client, server, 5, false).unwrap();
            bench.check("RST", WAN, &back(Flags::Rst), KERNEL);
            let seen = flows.get(client, server).unwrap().unwrap();
            assert!(!seen.has_gone_on && seen.rst_seen, "{seen:?}");
            assert!(flows.remove(client, server).unwrap());
            assert!(!flows.contains(client, server).unwrap());
            bench.check("taken back", LAN, &out(Flags::Data), TO_WORKER);
        }
    });
}

#[test]
fn kernel_flows_beyond_the_bound_push_out_the_oldest() {
    let steering = Steering::load(&Sizes { kernel_flows: 256, ..Sizes::default() }).unwrap();
    let flows = steering.kernel_flows();
    let server = endpoint("[2001:db8::10]:80");
    for port in 1..=2000 {
        flows.insert(endpoint(&format!("10.1.0.2:{port}")), server, port).unwrap();
    }
    let listed = flows.list(10_000).unwrap();
    assert!(!listed.is_empty() && listed.len() <= 256, "{}", listed.len());
    assert!(flows.contains(endpoint("10.1.0.2:2000"), server).unwrap());
    assert_eq!(flows.expire(2001, 10_000).unwrap(), listed.len());
    assert!(flows.list(10).unwrap().is_empty());
}

#[test]
fn socket_missing_passes_or_drops_when_closed() {
    with_bench(|bench| {
        let [family, _] = FAMILIES;
        let syn = family.out(family.server, 80, Flags::Syn);
        // Dropping the sockets takes them out of the map: what happens when the process dies.
        bench._sockets.clear();
        bench.check("open", LAN, &syn, (PASS, Outcome::NoSocketPass));
        bench.steering.set_limits(SECOND, true).unwrap();
        bench.check("closed", LAN, &syn, (DROP, Outcome::NoSocketDrop));
        let stray = family.out(family.elsewhere, 80, Flags::Syn);
        bench.check("closed, of no intercept", LAN, &stray, (PASS, Outcome::NoIntercept));
        let socket = xdp_socket();
        bench.steering.set_socket(0, 0, socket.as_fd()).unwrap();
        bench.check("again", LAN, &syn, TO_WORKER);
    });
}

#[test]
fn intercepts_changed_hold_all_at_once() {
    with_bench(|bench| {
        for round in 0..4u16 {
            let mut table = InterceptTable::default();
            let port = 1000 + round;
            for (bit, family) in FAMILIES.iter().enumerate() {
                let net = format!("{}/{}", family.elsewhere, if family.is_v6() { 64 } else { 24 });
                table.add(bit as u32 + 40, [net.parse().unwrap()], [(port, port)], [1], false);
            }
            bench.steering.set_intercepts(&table).unwrap();
            for family in FAMILIES {
                let rows = [
                    ("new", WAN, family.out(family.elsewhere, port, Flags::Syn), TO_WORKER),
                    (
                        "other port",
                        LAN,
                        family.out(family.elsewhere, port, Flags::Syn),
                        (PASS, Outcome::NoIntercept),
                    ),
                    (
                        "before",
                        WAN,
                        family.out(family.elsewhere, port - 1, Flags::Syn),
                        (PASS, Outcome::NoIntercept),
                    ),
                    (
                        "at first",
                        LAN,
                        family.out(family.server, 80, Flags::Syn),
                        (PASS, Outcome::NoIntercept),
                    ),
                ];
                for (name, device, packet, expected) in rows {
                    bench.check(&format!("round {round}: {name}"), device, &packet, expected);
                }
            }
        }
        bench.steering.set_intercepts(&InterceptTable::default()).unwrap();
        let syn = FAMILIES[1].out(FAMILIES[1].elsewhere, 1003, Flags::Syn);
        bench.check("none", WAN, &syn, (PASS, Outcome::NoIntercept));
    });
}

#[test]
fn own_addresses_changed_are_added_and_removed() {
    with_bench(|bench| {
        for family in FAMILIES {
            let to = |address| family.out(address, 80, Flags::Syn);
            let own = |address: &str| family.at(address, 0).ip();
            bench.steering.set_own_addresses(&[own(family.server)]).unwrap();
            bench.check("added", LAN, &to(family.server), (PASS, Outcome::OwnAddress));
            bench.check("removed", LAN, &to(family.own), TO_WORKER);
        }
    });
}

#[test]
fn own_addresses_above_the_maps_room_are_exempt_by_the_table() {
    with_bench(|bench| {
        let v4 = (0..2500u32).map(|n| IpAddr::from(Ipv4Addr::from(0x0a63_0000 + n)));
        let v6 = (0..2500u128).map(|n| IpAddr::from(Ipv6Addr::from((0xfd99_u128 << 112) + n)));
        let mut own: Vec<IpAddr> = v4.chain(v6).collect();
        let mut all = table();
        all.add(WEB, ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()), [], [], false);
        // Whatever the order, and when one is replaced in a full map: nothing fails.
        for round in 0..3 {
            let rest = bench.steering.set_own_addresses(&own).unwrap();
            assert_eq!(rest.len(), 5000 - 4096, "round {round}");
            bench.steering.set_intercepts(&InterceptTable { exempt: rest.clone(), ..all.clone() }).unwrap();
            for (at, address) in own.iter().enumerate().filter(|(at, _)| at % 100 == 99 || *at == 0) {
                let family = &FAMILIES[usize::from(address.is_ipv6())];
                let syn = family.out(&address.to_string(), 80, Flags::Syn);
                bench.check(&format!("round {round}, address {at}"), LAN, &syn, (PASS, Outcome::OwnAddress));
            }
            own[0] = IpAddr::from(Ipv4Addr::new(10, 98, 0, round));
            own.rotate_left(1);
        }
    });
}

#[test]
fn pins_of_devices_that_are_no_ports_any_more_are_removed() {
    with_pins(|folder| {
        let mut bench = Bench::new();
        let [lan, wan] = [LAN, WAN].map(|device| ethtool::index_of(device).unwrap());
        bench.steering.attach(LAN, lan, AttachMode::Auto).unwrap();
        bench.steering.attach(WAN, wan, AttachMode::Auto).unwrap();
        bench.steering.pin(folder).unwrap();
        drop(bench);
        let adopt = Some(folder.to_path_buf());
        let mut second = Steering::load(&Sizes { adopt, ..Sizes::default() }).unwrap();
        second.attach(LAN, lan, AttachMode::Auto).unwrap();
        second.pin(folder).unwrap();
        assert_eq!(second.unpin_others(folder).unwrap(), [pin::link_path(folder, wan)]);
        assert_eq!(pins(folder).unwrap().len(), 2, "of the LAN and of the kernel flows");
        comes_off(wan);
        assert_ne!(attach::attached_to(lan).unwrap(), 0);
        unpin(folder).unwrap();
    });
}

#[test]
fn numbers_out_of_range_are_refused() {
    with_bench(|bench| {
        let socket = xdp_socket();
        let steering = &bench.steering;
        assert!(matches!(steering.set_port(1, 32), Err(SteeringError::PortNumber { port: 32, .. })));
        assert!(matches!(steering.set_socket(32, 0, &socket), Err(SteeringError::PortNumber { .. })));
        assert!(matches!(steering.set_socket(0, 64, &socket), Err(SteeringError::QueueNumber { queue: 64 })));
        steering.set_socket(31, 63, &socket).unwrap();
        let no_socket = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(steering.set_socket(0, 0, &no_socket), Err(SteeringError::Map { .. })));
    });
}

/// Waits until no program is on the device. A child that another test has just forked holds the link until it becomes another program.
#[track_caller]
fn comes_off(index: u32) {
    let until = clock::monotonic_ns() + 30 * SECOND;
    while attach::attached_to(index).unwrap() != 0 {
        assert!(clock::monotonic_ns() < until, "the program is still on the device");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn program_attached_is_seen_taken_and_goes_with_its_owner() {
    with_bench(|bench| {
        let index = ethtool::index_of(LAN).unwrap();
        for (mode, expected) in [
            (AttachMode::Auto, AttachedMode::Native),
            (AttachMode::Native, AttachedMode::Native),
            (AttachMode::Generic, AttachedMode::Generic),
        ] {
            assert_eq!(bench.steering.attach(LAN, index, mode).unwrap(), expected);
            let mut second = Steering::load(&Sizes::default()).unwrap();
            let error = second.attach(LAN, index, mode).unwrap_err();
            assert!(matches!(error, SteeringError::AlreadyTaken { .. }), "{error}");
            let sentence = error.to_string();
            assert!(sentence.contains("device lan is") && sentence.contains("weir_steer"), "{sentence}");
            assert!(bench.steering.detach(index).unwrap());
            assert!(!bench.steering.detach(index).unwrap());
            comes_off(index);
        }
        let mut second = Steering::load(&Sizes::default()).unwrap();
        second.attach(LAN, index, AttachMode::Auto).unwrap();
        drop(second);
        comes_off(index);
        let error = bench.steering.attach("none", 9999, AttachMode::Auto).unwrap_err();
        assert!(matches!(error, SteeringError::NoDevice { .. }), "{error}");
    });
}

#[test]
fn device_without_native_xdp_takes_generic_and_says_so_when_asked_for_native() {
    with_bench(|bench| {
        // Loopback has none in any kernel.
        let index = ethtool::index_of("lo").unwrap();
        let error = bench.steering.attach("lo", index, AttachMode::Native).unwrap_err();
        assert!(matches!(error, SteeringError::NoXdp { .. }), "{error}");
        assert!(error.to_string().contains("device lo has no XDP in native mode"), "{error}");
        assert_eq!(bench.steering.attach("lo", index, AttachMode::Auto).unwrap(), AttachedMode::Generic);
    });
}

/// A BPF file system of the thread's own, so that nothing of the host's is touched.
pub fn with_pins(work: impl FnOnce(&Path) + Send) {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                crate::netns::enter_new_with_mounts().unwrap();
                let flags = rustix::mount::MountFlags::empty();
                rustix::mount::mount("bpf", "/sys/fs/bpf", "bpf", flags, None).unwrap();
                work(Path::new("/sys/fs/bpf/weir"));
            })
            .join()
            .unwrap();
    });
}

#[test]
fn program_pinned_outlives_its_process_and_is_taken_over() {
    with_pins(|folder| {
        let mut bench = Bench::new();
        let index = ethtool::index_of(LAN).unwrap();
        let (client, server) = (endpoint("10.1.0.2:40000"), endpoint("192.0.2.10:80"));
        bench.steering.attach(LAN, index, AttachMode::Auto).unwrap();
        bench.steering.kernel_flows().insert(client, server, 7).unwrap();
        bench.steering.pin(folder).unwrap();
        bench.steering.pin(folder).unwrap();
        assert_eq!(pins(folder).unwrap().len(), 2);
        let first = attach::attached_to(index).unwrap();
        drop(bench);
        assert_eq!(attach::attached_to(index).unwrap(), first, "pinned");

        let adopt = Some(folder.to_path_buf());
        let mut second = Steering::load(&Sizes { adopt, ..Sizes::default() }).unwrap();
        assert_eq!(second.kernel_flows().get(client, server).unwrap().unwrap().last_seen, 7);
        assert_eq!(second.attach(LAN, index, AttachMode::Auto).unwrap(), AttachedMode::Native);
        let now = attach::attached_to(index).unwrap();
        assert!(now != 0 && now != first, "replaced");
        second.pin(folder).unwrap();
        drop(second);
        assert_eq!(attach::attached_to(index).unwrap(), now);

        // Of a version with another layout the link is as good as ever; its maps are not.
        let of_another = folder.join(format!("link-{index}-v1"));
        std::fs::rename(pin::link_path(folder, index), of_another).unwrap();
        std::fs::rename(pin::map_path(folder, "kernel_flows"), folder.join("kernel_flows-v1")).unwrap();
        let adopt = Some(folder.to_path_buf());
        let mut third = Steering::load(&Sizes { adopt, ..Sizes::default() }).unwrap();
        assert!(third.kernel_flows().get(client, server).unwrap().is_none());
        third.attach(LAN, index, AttachMode::Auto).unwrap();
        assert_ne!(attach::attached_to(index).unwrap(), now, "replaced");
        third.pin(folder).unwrap();
        assert_eq!(third.unpin_others(folder).unwrap(), [folder.join("kernel_flows-v1")]);
        let now = attach::attached_to(index).unwrap();
        drop(third);
        assert_eq!(attach::attached_to(index).unwrap(), now);

        assert_eq!(unpin(folder).unwrap().len(), 2);
        assert!(!folder.exists());
        comes_off(index);
        assert!(unpin(folder).unwrap().is_empty());
    });
}

#[test]
fn program_put_on_again_that_cannot_be_pinned_stays_on_and_is_pinned_later() {
    with_pins(|folder| {
        let mount = |kind| {
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount(kind, "/sys/fs/bpf", kind, flags, None).unwrap();
        };
        let mut bench = Bench::new();
        let index = ethtool::index_of(LAN).unwrap();
        bench.steering.attach(LAN, index, AttachMode::Auto).unwrap();
        bench.steering.pin(folder).unwrap();
        let link = pin::open_object(&pin::link_path(folder, index)).unwrap();
        // SAFETY: the kernel checks the descriptor.
        assert_eq!(unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) }, 0);
        comes_off(index);
        mount("tmpfs");
        bench.steering.reattach(index).unwrap();
        let is_on = || attach::attached_to(index).unwrap() != 0;
        assert!(is_on() && bench.steering.detached().unwrap().is_empty());
        assert_eq!(bench.steering.misses_pins(), Some(folder));
        bench.steering.restore_pins().unwrap_err();
        assert!(is_on());
        mount("bpf");
        bench.steering.restore_pins().unwrap();
        assert_eq!(bench.steering.misses_pins(), None);
        drop(bench);
        assert!(is_on(), "pinned");
        unpin(folder).unwrap();
        comes_off(index);
    });
}

#[test]
fn pins_removed_by_their_owner_leave_the_program_with_it() {
    with_pins(|folder| {
        let mut bench = Bench::new();
        let index = ethtool::index_of(LAN).unwrap();
        bench.steering.attach(LAN, index, AttachMode::Auto).unwrap();
        bench.steering.pin(folder).unwrap();
        bench.steering.unpin().unwrap();
        assert!(!folder.exists());
        assert_ne!(attach::attached_to(index).unwrap(), 0);
        drop(bench);
        comes_off(index);
    });
}

#[test]
fn pin_of_a_device_that_went_is_not_taken_over() {
    with_pins(|folder| {
        let mut bench = Bench::new();
        let index = ethtool::index_of(LAN).unwrap();
        bench.steering.attach(LAN, index, AttachMode::Auto).unwrap();
        bench.steering.pin(folder).unwrap();
        drop(bench);
        ip(&["link", "del", LAN]);
        let index = index.to_string();
        ip(&["link", "add", LAN, "index", &index, "type", "veth", "peer", "name", "other"]);
        let index = ethtool::index_of(LAN).unwrap();
        let adopt = Some(folder.to_path_buf());
        let mut second = Steering::load(&Sizes { adopt, ..Sizes::default() }).unwrap();
        second.attach(LAN, index, AttachMode::Auto).unwrap();
        assert_ne!(attach::attached_to(index).unwrap(), 0);
        second.pin(folder).unwrap();
    });
}

#[test]
fn pin_outside_a_bpf_file_system_says_so() {
    with_bench(|bench| {
        let folder = std::env::temp_dir().join(format!("weir-pin-{}", std::process::id()));
        let error = bench.steering.pin(&folder).unwrap_err();
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert!(!folder.exists());
    });
}
