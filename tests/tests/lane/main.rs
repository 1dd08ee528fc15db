//! The express lane of the steering program against weir-core's splice: what the program takes comes out as it does there, octet by
//! octet; it takes every plain segment; and all else goes to the worker as it came.

mod changing;
mod feeder;
mod random;
mod simulation;
mod strays;
mod table;

use std::net::{IpAddr, SocketAddr};

use weir_core::flow::key::Tuple;
use weir_core::frame::{Frame as _, HeapFrame};
use weir_core::ids::Nanos;
use weir_core::parse::{Meta, Parsed, parse};
use weir_core::tcp::seq::Seq;
use weir_core::tcp::translate::{TimestampMode, Translation};
use weir_core::wire::addr::Endpoint;
use weir_core::wire::edit;
use weir_sys::netns::Namespace;
use weir_sys::steering::{
    Express, ExpressBatch, ExpressFlow, ExpressHop, Outcome, Sizes, Splice, Steering, Trial,
};
use weir_sys::{clock, ethtool};
use weir_tests::bench::{client_of, server_of};
use weir_tests::packet::{ACK, Family, Seg};

const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;
const SECOND: u64 = 1_000_000_000;
const MTU: u16 = 1500;

/// The address that test frames are sent to (`weir_tests::packet::ethernet`), and those of the next stations.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const NEXT: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]];
const OWN: [[u8; 6]; 2] = [[2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 2, 2]];

/// Which way a packet goes: the number of the hop, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToServer = 0,
    ToClient,
}

const WAYS: [Way; 2] = [Way::ToServer, Way::ToClient];

/// A gateway with a lane, two devices, and sockets for its workers.
struct Lane {
    steering: Steering,
    express: Express,
    batch: ExpressBatch,
    /// Of the clients, of the servers.
    devices: [u32; 2],
    _sockets: Vec<std::os::fd::OwnedFd>,
}

/// Runs `work` with a lane, in a namespace of its own.
fn with_lane(work: impl FnOnce(&mut Lane) + Send) {
    Namespace::new().unwrap().run(|| work(&mut Lane::new())).unwrap();
}

impl Lane {
    fn new() -> Self {
        let steering = Steering::load(&Sizes { express_flows: 16, ..Sizes::default() }).unwrap();
        let express = steering.express();
        let mut sockets = Vec::new();
        let devices = ["lan", "wan"].map(|device| {
            let peer = format!("{device}-peer");
            let args = ["link", "add", device, "type", "veth", "peer", "name", &peer];
            let done = std::process::Command::new("ip").args(args).status();
            assert!(done.expect("install iproute2").success());
            ethtool::set_up(device, true).unwrap();
            ethtool::index_of(device).unwrap()
        });
        for (port, device) in devices.into_iter().enumerate() {
            steering.set_port(device, port as u32).unwrap();
            let family = rustix::net::AddressFamily::XDP;
            let socket = rustix::net::socket(family, rustix::net::SocketType::RAW, None).unwrap();
            steering.set_socket(port as u32, 0, &socket).unwrap();
            sockets.push(socket);
            assert_eq!(usize::from(express.set_link(device, MAC, false).unwrap()), port);
        }
        for hop in [0, 1] {
            let link = 1 - hop as u8;
            let at = ExpressHop { link, dst_mac: NEXT[hop], src_mac: OWN[hop], mtu: MTU, is_up: true };
            express.set_hop(hop as u16, &at).unwrap();
        }
        steering.set_limits(SECOND, false).unwrap();
        express.enable(true).unwrap();
        let lane = Self { steering, express, batch: ExpressBatch::new(16), devices, _sockets: sockets };
        lane.set_alive(true);
        lane
    }

    /// A heartbeat that stays fresh for the rest of the test, or none since the start of time.
    fn set_alive(&self, alive: bool) {
        let beat = if alive { clock::monotonic_ns() + 3600 * SECOND } else { 1 };
        self.steering.heartbeat(beat).unwrap();
    }

    fn put(&mut self, how: &Translation) -> ExpressFlow {
        let flow = flow_of(how);
        assert_eq!(self.express.insert(&mut self.batch, &[flow]).unwrap(), 1);
        flow
    }

    fn run(&mut self, way: Way, frame: &[u8]) -> Trial {
        self.steering.run_on(self.devices[way as usize], frame).unwrap()
    }

    /// Runs a frame: what became of it, and the one counter that moved.
    fn counted(&mut self, way: Way, frame: &[u8]) -> (Trial, Outcome) {
        let before = self.steering.counters().unwrap();
        let trial = self.run(way, frame);
        let after = self.steering.counters().unwrap();
        let moved: Vec<Outcome> =
            Outcome::ALL.into_iter().filter(|outcome| after.of(*outcome) != before.of(*outcome)).collect();
        let [outcome] = moved[..] else { panic!("counters moved: {moved:?}") };
        (trial, outcome)
    }
}

fn ends(tuple: &Tuple) -> (SocketAddr, SocketAddr) {
    (tuple.src.socket_addr(), tuple.dst.socket_addr())
}

/// The translation as it is told to the lane.
fn flow_of(how: &Translation) -> ExpressFlow {
    let clock = match how.timestamps {
        TimestampMode::Both { offset, .. } => offset,
        TimestampMode::None => 0,
        TimestampMode::ClientOnly { .. } => panic!("has no place in the lane"),
    };
    assert!(how.acked, "has no place in the lane yet");
    ExpressFlow {
        client: ends(&how.client),
        server: ends(&how.server),
        client_link: 0,
        server_link: 1,
        server_hop: 0,
        client_hop: 1,
        stands_by: false,
        from: None,
        splice: Splice {
            delta: how.delta,
            start: how.start.0,
            prefix: how.prefix as u16,
            base: how.base.0,
            clock,
            sack: how.sack,
            shift_to_client: how.shift_to_client,
            shift_to_server: how.shift_to_server,
            ecn: how.ecn,
        },
    }
}

fn tuple(src: (IpAddr, u16), dst: (IpAddr, u16)) -> Tuple {
    let end = |(ip, port)| Endpoint::from(SocketAddr::new(ip, port));
    Tuple { src: end(src), dst: end(dst) }
}

/// A connection that nothing is changed of.
fn plain(family: Family) -> Translation {
    let client = tuple((client_of(family), 40_000), (server_of(family), 443));
    Translation {
        client,
        server: client,
        delta: 0,
        start: Seq(1_000),
        prefix: 0,
        base: Seq(5_000),
        timestamps: TimestampMode::None,
        sack: true,
        server_scale: 7,
        shift_to_client: 0,
        shift_to_server: 0,
        ecn: true,
        acked: true,
    }
}

/// One that all is changed of.
fn spliced(family: Family) -> Translation {
    let server: (SocketAddr, SocketAddr) = match family {
        Family::V4 => ("172.16.0.9:1025".parse().unwrap(), "172.16.255.1:8443".parse().unwrap()),
        Family::V6 => ("[fd00::f:1]:1025".parse().unwrap(), "[fd00:7::9]:8443".parse().unwrap()),
    };
    Translation {
        server: Tuple { src: server.0.into(), dst: server.1.into() },
        delta: 0x8765_4321,
        prefix: 100,
        timestamps: TimestampMode::Both { offset: 70_000, first: 900 },
        shift_to_client: -2,
        shift_to_server: 3,
        ecn: false,
        ..plain(family)
    }
}

/// A segment with data, as it comes in.
fn segment(how: &Translation, way: Way) -> Seg {
    let from = match way {
        Way::ToServer => how.client,
        Way::ToClient => how.server.reversed(),
    };
    let end = |end: Endpoint| (end.addr.ip(), end.port);
    Seg::new(end(from.src), end(from.dst), ACK, 7_000, 9_000).payload(b"payload!")
}

fn meta_of(frame: &[u8]) -> Option<Meta> {
    match parse(frame) {
        Ok(Parsed::Tcp(meta)) => Some(meta),
        _ => None,
    }
}

/// The frame as a worker sends it on, without octets behind the packet.
fn by_worker(how: &Translation, way: Way, bytes: &[u8]) -> Vec<u8> {
    let mut how = *how;
    let mut frame = HeapFrame::from_packet(bytes, bytes.len());
    let meta = meta_of(bytes).unwrap();
    let out = match way {
        Way::ToServer => how.to_server(&mut frame, &meta, Nanos(0)),
        Way::ToClient => how.to_client(&mut frame, &meta, Nanos(0)),
    };
    let out = out.unwrap();
    frame.set_len(usize::from(out.end));
    edit::decrement_ttl(frame.data_mut(), out.v6);
    edit::set_macs(frame.data_mut(), &[NEXT[way as usize], OWN[way as usize]]);
    frame.data().to_vec()
}
