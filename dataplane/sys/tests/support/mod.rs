//! A box and a peer in namespaces of their own, joined by veth, with the steering program on the box's end.
#![allow(dead_code)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;

use weir_sys::netns::Namespace;
use weir_sys::steering::{AttachMode, AttachedMode, InterceptTable, Steering};
use weir_sys::xsk::{Area, Frame, Mode, Queue, RingSizes};
use weir_sys::{clock, ethtool};

/// How long anything may take before a test gives up, in ns.
pub const PATIENCE: u64 = 5_000_000_000;

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const BOX_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Two namespaces and the veth between them: `port` in the box, `peer` in the peer.
pub struct Link {
    pub inside: Namespace,
    pub outside: Namespace,
}

impl Link {
    pub fn new(queues: u32) -> Self {
        let (inside, outside) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        inside
            .run(|| {
                // `ip` takes a namespace by path; a descriptor of this process has one.
                let there = format!("/proc/{}/fd/{}", std::process::id(), raw(&outside));
                let (rx, tx) = (queues.to_string(), queues.to_string());
                ip(&[
                    "link",
                    "add",
                    "port",
                    "address",
                    "02:00:00:00:00:02",
                    "numrxqueues",
                    &rx,
                    "numtxqueues",
                    &tx,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "peer",
                    "address",
                    "02:00:00:00:00:01",
                    "numrxqueues",
                    &rx,
                    "numtxqueues",
                    &tx,
                    "netns",
                    &there,
                ]);
                std::fs::write("/proc/sys/net/ipv6/conf/port/disable_ipv6", "1").unwrap();
                ethtool::set_up("port", true).unwrap();
            })
            .unwrap();
        outside
            .run(|| {
                std::fs::write("/proc/sys/net/ipv6/conf/peer/disable_ipv6", "1").unwrap();
                ethtool::set_up("peer", true).unwrap();
            })
            .unwrap();
        Self { inside, outside }
    }
}

fn raw(namespace: &Namespace) -> i32 {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    namespace.as_fd().as_raw_fd()
}

pub fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().expect("the command ip is needed: install iproute2");
    assert!(done.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr));
}

/// Everything to TCP port 80 from `port` (number 0), both families. Call in the box's namespace.
pub fn steer(mode: AttachMode) -> (Steering, AttachedMode) {
    let mut steering = Steering::load(&Default::default()).unwrap();
    let index = ethtool::index_of("port").unwrap();
    let attached = steering.attach("port", index, mode).unwrap();
    steering.set_port(index, 0).unwrap();
    let mut table = InterceptTable::default();
    table.add(0, ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()], [(80, 80)], [0], false);
    steering.set_intercepts(&table).unwrap();
    steering.set_limits(60_000_000_000, false).unwrap();
    steering.heartbeat(clock::monotonic_ns()).unwrap();
    (steering, attached)
}

/// Opens a queue of `port`, gives it frames, and puts it in the steering program's map.
pub fn open(
    area: &std::sync::Arc<Area>,
    free: &mut Vec<Frame>,
    steering: &Steering,
    queue: u32,
    entries: u32,
) -> Queue {
    open_with(area, free, steering, queue, RingSizes::all(entries))
}

/// The same, with rings of unlike sizes.
pub fn open_with(
    area: &std::sync::Arc<Area>,
    free: &mut Vec<Frame>,
    steering: &Steering,
    queue: u32,
    sizes: RingSizes,
) -> Queue {
    let index = ethtool::index_of("port").unwrap();
    let opened = Queue::open(area, "port", index, queue, Mode::Auto, sizes, free).unwrap();
    steering.set_socket(0, queue, opened.fd()).unwrap();
    opened
}

/// A SYN to port 80 from client port `number`, with the number in its payload too; IPv6 when odd.
pub fn syn(number: u16) -> Vec<u8> {
    let link = etherparse::PacketBuilder::ethernet2(CLIENT_MAC, BOX_MAC);
    let mut frame = Vec::new();
    if number.is_multiple_of(2) {
        let (client, server) = (Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(192, 0, 2, 10));
        let packet = link.ipv4(client.octets(), server.octets(), 64).tcp(number, 80, 1, 1000).syn();
        packet.write(&mut frame, &number.to_be_bytes()).unwrap();
    } else {
        let client: Ipv6Addr = "fd00::2".parse().unwrap();
        let server: Ipv6Addr = "2001:db8::10".parse().unwrap();
        let packet = link.ipv6(client.octets(), server.octets(), 64).tcp(number, 80, 1, 1000).syn();
        packet.write(&mut frame, &number.to_be_bytes()).unwrap();
    }
    frame
}

/// The number that `syn` put at the frame's end.
pub fn number_of(frame: &[u8]) -> Option<u16> {
    let [.., high, low] = frame else { return None };
    Some(u16::from_be_bytes([*high, *low]))
}

/// Turns a frame round: it goes back to where it came from.
pub fn turn_round(frame: &mut Frame) {
    let data = frame.data_mut();
    let (destination, source) = data.split_at_mut(6);
    destination.swap_with_slice(&mut source[..6]);
}
