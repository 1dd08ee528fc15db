use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

fn forwarding() -> LabOptions {
    LabOptions { queues: 2, forwarding: Some(true), ..LabOptions::default() }
}

/// Both families with a name for messages.
const FAMILIES: [(&str, Addresses); 2] = [("IPv4", IPV4), ("IPv6", IPV6)];

#[test]
fn client_reaches_every_server_address_through_gateway() {
    let Some(lab) = Lab::for_test(&forwarding()) else { return };
    for (family, addresses) in FAMILIES {
        for server in addresses.servers {
            let listener = lab.server.run(|| TcpListener::bind((server, 0))).expect(family);
            let target = listener.local_addr().expect("bound");
            let limit = Duration::from_secs(30);
            let mut client = lab.client.run(|| TcpStream::connect_timeout(&target, limit)).expect(family);
            let (mut accepted, peer) = listener.accept().expect(family);
            assert_eq!(peer.ip(), addresses.client, "{family}");
            client.write_all(b"over the weir").expect(family);
            drop(client);
            let mut text = String::new();
            accepted.read_to_string(&mut text).expect(family);
            assert_eq!(text, "over the weir");
        }
    }
}

#[test]
fn gateway_without_forwarding_passes_nothing() {
    let Some(lab) =
        Lab::for_test(&LabOptions { queues: 1, forwarding: Some(false), ..LabOptions::default() })
    else {
        return;
    };
    for (family, addresses) in FAMILIES {
        let listener = lab.server.run(|| TcpListener::bind((addresses.servers[0], 0))).expect(family);
        let target = listener.local_addr().expect("bound");
        let limit = Duration::from_millis(300);
        assert!(lab.client.run(|| TcpStream::connect_timeout(&target, limit)).is_err(), "{family}");
    }
}

#[test]
fn devices_have_the_queues_that_were_asked_for() {
    let Some(lab) = Lab::for_test(&LabOptions { queues: 3, forwarding: None, ..LabOptions::default() })
    else {
        return;
    };
    // The gateway has its own /sys, where each queue of a device is a folder.
    for device in [LAN_DEVICE, WAN_DEVICE] {
        for (kind, expected) in [("rx-", 3), ("tx-", 3)] {
            let count = lab.gateway.run(|| queue_folders(device, kind));
            assert_eq!(count, expected, "{device} {kind}");
        }
    }
}

fn queue_folders(device: &str, kind: &str) -> usize {
    let folder = std::fs::read_dir(format!("/sys/class/net/{device}/queues")).expect("queues in /sys");
    folder.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(kind)).count()
}

#[test]
fn capture_on_both_links_shows_addresses_ttl_and_checksums() {
    let Some(lab) = Lab::for_test(&forwarding()) else { return };
    for (family, addresses) in FAMILIES {
        let before = lab.capture(&lab.gateway, LAN_DEVICE).expect(family);
        let after = lab.capture(&lab.gateway, WAN_DEVICE).expect(family);
        let listener = lab.server.run(|| TcpListener::bind((addresses.servers[0], 0))).expect(family);
        let target = listener.local_addr().expect("bound");
        let limit = Duration::from_secs(30);
        let mut client = lab.client.run(|| TcpStream::connect_timeout(&target, limit)).expect(family);
        client.write_all(b"over the weir").expect(family);
        // When it has come, both devices have had it.
        let (mut accepted, _) = listener.accept().expect(family);
        accepted.read_exact(&mut [0; 13]).expect(family);
        let source = client.local_addr().expect("connected");
        for (capture, outgoing, ttl) in [(before, false, 64), (after, true, 63)] {
            let frames: Vec<TcpFrame> = capture.stop().iter().filter_map(CapturedFrame::tcp).collect();
            let from_client: Vec<_> = frames.iter().filter(|frame| frame.source == source).collect();
            assert!(from_client[0].syn && !from_client[0].ack, "{family}");
            assert!(from_client.iter().any(|frame| frame.payload == b"over the weir"), "{family}");
            for frame in from_client {
                assert_eq!(
                    (frame.destination, frame.ttl, frame.outgoing),
                    (target, ttl, outgoing),
                    "{family}"
                );
                assert_ne!(frame.checksums, Checksums::Wrong, "{family} {frame:?}");
            }
        }
    }
}

#[test]
fn state_of_gateway_changes_with_a_sysctl_and_a_rule_and_comes_back() {
    let Some(lab) = Lab::for_test(&forwarding()) else { return };
    let before = host_state(&lab.gateway).expect("state");
    for needle in ["lan0", "rule IPv6", "route IPv4 table 255", "sysctl net/ipv6/conf/all/forwarding = 1"] {
        assert!(before.contains(needle), "{needle} is missing in\n{before}");
    }
    lab.gateway.write_sysctl("net/ipv4/conf/lan0/rp_filter", "2").expect("sysctl");
    let with_rule = |add: bool| {
        lab.gateway.run(|| {
            links::with_netlink(async |handle| {
                let mut rule = handle.rule().add().v6().fw_mark(0x77).priority(1077).table_id(177);
                let message = rule.message_mut().clone();
                let done =
                    if add { rule.execute().await } else { handle.rule().del(message).execute().await };
                done.map_err(links::refused("change a rule"))
            })
        })
    };
    with_rule(true).expect("rule added");
    let difference = differences(&before, &host_state(&lab.gateway).expect("state"));
    assert_eq!(difference.matches("rp_filter").count(), 2, "{difference}");
    assert!(difference.contains("+ rule IPv6") && difference.contains("177"), "{difference}");
    with_rule(false).expect("rule removed");
    lab.gateway.write_sysctl("net/ipv4/conf/lan0/rp_filter", "0").expect("sysctl");
    assert_eq!(differences(&before, &host_state(&lab.gateway).expect("state")), "");
}

#[test]
fn gateway_mounts_are_its_own() {
    let Some(lab) = Lab::for_test(&LabOptions::default()) else { return };
    let mark = "/run/weir/lab-test-mark";
    lab.gateway.run(|| std::fs::write(mark, "here")).expect("/run/weir of the gateway");
    assert!(!Path::new(mark).exists(), "the host sees the gateway's /run");
    let devices: Vec<_> =
        lab.gateway.run(|| std::fs::read_dir("/sys/class/net").expect("/sys").flatten().collect());
    assert!(devices.iter().any(|entry| entry.file_name() == LAN_DEVICE));
    assert!(!Path::new("/sys/class/net/lan0").exists(), "the host sees the gateway's devices");
}

#[test]
fn dropped_lab_ends_its_children() {
    let Some(lab) = Lab::for_test(&LabOptions::default()) else { return };
    let mut child = lab.gateway.spawn_command(sleeper()).expect("a child");
    let id = child.inner().id();
    // Without the value's own kill: the end of the keeper thread must be enough.
    std::mem::forget(child);
    drop(lab);
    wait_until("the child is gone", || !is_running(id));
}

const HOLD: &str = "WEIR_TEST_HOLD_A_LAB";

/// Not a test by itself: the process that `killed_process_leaves_no_namespace_and_no_child` kills.
#[test]
fn process_that_holds_a_lab() {
    if std::env::var_os(HOLD).is_none() {
        return;
    }
    let lab = Lab::new(&forwarding()).expect("a lab");
    let mut child = lab.gateway.spawn_command(sleeper()).expect("a child");
    for namespace in [&lab.client, &lab.gateway, &lab.server] {
        println!("namespace {}", namespace.run(own_network));
    }
    println!("child {}", child.inner().id());
    println!("ready");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn killed_process_leaves_no_namespace_and_no_child() {
    if Lab::for_test(&LabOptions::default()).is_none() {
        return;
    }
    let before = current_state().expect("state of the host");
    let mut holder = Command::new(std::env::current_exe().expect("this test"));
    holder.args(["--exact", "lab::tests::process_that_holds_a_lab", "--nocapture"]).env(HOLD, "1");
    let mut holder = holder.stdout(Stdio::piped()).spawn().expect("the holder");
    let output = BufReader::new(holder.stdout.take().expect("piped"));
    let lines: Vec<String> =
        output.lines().map_while(Result::ok).take_while(|line| line != "ready").collect();
    let told = |what: &str| -> Vec<String> {
        lines.iter().filter_map(|line| line.rsplit_once(what)).map(|(_, rest)| rest.to_owned()).collect()
    };
    let (namespaces, children) = (told("namespace "), told("child "));
    assert_eq!((namespaces.len(), children.len()), (3, 1), "{lines:?}");
    let child: u32 = children[0].parse().expect("a process id");
    assert!(is_running(child));
    holder.kill().expect("killed");
    holder.wait().expect("waited");
    wait_until("the child is gone", || !is_running(child));
    wait_until("no task is in the lab's namespaces", || {
        namespaces.iter().all(|name| !networks_in_use().contains(name))
    });
    wait_until("the host is as before", || {
        differences(&before, &current_state().expect("state of the host")).is_empty()
    });
}

fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("60");
    command
}

fn own_network() -> String {
    std::fs::read_link("/proc/thread-self/ns/net").expect("/proc").display().to_string()
}

/// The network namespaces of all tasks on this machine.
fn networks_in_use() -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let tasks = processes.filter_map(|entry| std::fs::read_dir(entry.path().join("task")).ok());
    let links = tasks.flat_map(|tasks| tasks.flatten()).map(|task| task.path().join("ns/net"));
    links.filter_map(|link| std::fs::read_link(link).ok()).map(|name| name.display().to_string()).collect()
}

/// Whether the process lives; one that only waits to be reaped does not.
fn is_running(id: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn unknown_device_is_named_with_its_namespace() {
    let Some(lab) = Lab::for_test(&LabOptions::default()) else { return };
    let error = lab.capture(&lab.server, "eth9").expect_err("no such device").to_string();
    assert_eq!(error, "lab: no device eth9 in the server namespace");
}

#[test]
fn work_in_namespace_may_borrow_and_its_sockets_stay_there() {
    let Some(lab) = Lab::for_test(&forwarding()) else { return };
    let target: SocketAddr = (IPV4.servers[1], 4000).into();
    let listener = lab.server.run(|| TcpListener::bind(target)).expect("bound");
    assert!(TcpListener::bind(target).is_err(), "the host has no such address");
    assert_eq!(listener.local_addr().expect("bound"), target);
}

/// Over bad links everything arrives all the same, and the wires tell what they did.
#[test]
fn bad_links_lose_and_reorder_and_the_ends_mend_it() {
    let bad = Badness {
        loses: 100,
        copies: 200,
        damages: 200,
        reorders: 50,
        kept_back: Duration::from_millis(3),
        delay: Duration::ZERO,
        seed: 5,
    };
    let other = Badness { seed: 6, ..bad };
    let Some(mut lab) = Lab::with_bad_links_for_test(&forwarding(), bad, other) else { return };
    let sent: Vec<u8> = (0..2_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (family, addresses) in FAMILIES {
        let listener = lab.server.run(|| TcpListener::bind((addresses.servers[0], 0))).expect(family);
        let target = listener.local_addr().expect("bound");
        let limit = Duration::from_secs(30);
        let mut client = lab.client.run(|| TcpStream::connect_timeout(&target, limit)).expect(family);
        let (mut accepted, _) = listener.accept().expect(family);
        let octets = sent.clone();
        let sender = std::thread::spawn(move || {
            client.write_all(&octets).expect("sent");
            drop(client);
        });
        let mut received = Vec::new();
        accepted.read_to_end(&mut received).expect(family);
        sender.join().expect("sent");
        assert!(received == sent, "{family}: {} octets", received.len());
    }
    for carried in lab.stop_wires().expect("bad links have wires") {
        let Carried { frames, bytes, lost, copied, damaged, reordered, resets, .. } = carried;
        assert!(frames > 3000 && bytes > 4 << 20, "{carried:?}");
        assert!(bytes / frames < 1515, "whole frames, no segments to be cut later: {carried:?}");
        assert!(lost > 0 && copied > 0 && damaged > 0 && reordered > 0 && resets == 0, "{carried:?}");
    }
}

#[test]
fn devices_that_were_lent_come_home_with_their_names_and_mtu() {
    let Some(host) = Lab::for_test(&forwarding()) else { return };
    host.client.run(|| {
        for (one, other) in [("eth0", "eth1"), ("eth2", "eth3")] {
            let made =
                Command::new("ip").args(["link", "add", one, "type", "veth", "peer", "name", other]).status();
            assert!(made.expect("ip").success());
        }
        let name = str::to_owned;
        let devices =
            Devices { client: name("eth0"), lan: name("eth1"), wan: name("eth2"), server: name("eth3") };
        let lab = Lab::over(&LabOptions { mtu: Some(3000), ..forwarding() }, &devices).expect("a lab");
        let mtu = |device: &str| weir_sys::ethtool::mtu_of(device).expect("it is there");
        assert_eq!(lab.gateway.run(|| [LAN_DEVICE, WAN_DEVICE].map(mtu)), [3000; 2]);
        drop(lab);
        assert_eq!(["eth0", "eth1", "eth2", "eth3"].map(mtu), [1500; 4]);
    });
}
