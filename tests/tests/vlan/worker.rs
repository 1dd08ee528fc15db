//! A worker whose ports are queues in memory: `lan`, with VLANs 10, 20 and 10 in 100, and `wan`, with VLAN 20.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;
use weir_core::drop::{Counters, DropReason};
use weir_core::express::Lanes;
use weir_core::fib::{Fib, Link, Route, VlanLink};
use weir_core::flow::key::FlowHasher;
use weir_core::frame::{Frame, HeapFrame};
use weir_core::ids::{MAX_PORTS, Nanos, PortId};
use weir_core::pipeline::Pipeline;
use weir_core::policy::{Policy, VlanChoice};
use weir_core::vlan::{self, Vlan};
use weir_dataplane::driver::{Crossed, Driver, RingFrames};
use weir_dataplane::gateway::largest_packet;
use weir_dataplane::handoff::Handoff;
use weir_dataplane::punt::Punt;
use weir_dataplane::snapshot::{Publisher, Snapshot};
use weir_dataplane::stats::{Summary, WorkerStats};
use weir_dataplane::worker::{Parts, Worker};
use weir_sys::netns::Namespace;
use weir_sys::steering::{Sizes, Steering};
use weir_sys::tun::Tun;
use weir_sys::waiter::Waiter;
use weir_tests::bench::{
    CLIENT_MAC, LAN, LAN_MAC, SERVER_MAC, START, Setup, WAN, WAN_MAC, client_of, gateway_of, policy,
    server_of,
};
use weir_tests::packet::{ACK, Family, SYN, Seg};

/// VLANs of `lan`: 10, 20, and 10 in 100.
pub const LINKS: [PortId; 3] = [PortId(32), PortId(33), PortId(34)];
/// VLAN 20 of `wan`.
pub const TRUNK_LINK: PortId = PortId(35);

const FRAMES: usize = 64;
/// As a UMEM chunk of 4096 octets.
const CAPACITY: usize = largest_packet(4096, 1) + 14 + 8;
/// After the grace time.
pub const NOW: Nanos = Nanos(START.0 + 61_000_000_000);

/// The Ethernet address of a link.
pub fn link_mac(link: PortId) -> [u8; 6] {
    match link {
        LAN => LAN_MAC,
        WAN => WAN_MAC,
        PortId(number) => [2, 0, 0, 0, 9, number],
    }
}

/// The frame with these tags, the outermost first.
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|(protocol, tci)| [protocol.to_be_bytes(), tci.to_be_bytes()].concat());
    frame[..12].iter().copied().chain(tags).chain(frame[12..].iter().copied()).collect()
}

/// Queues in memory.
#[derive(Debug, Default)]
pub struct Memory {
    came: VecDeque<(PortId, HeapFrame)>,
    left: Vec<(PortId, Vec<u8>)>,
    sent: Vec<HeapFrame>,
}

impl Driver for Memory {
    type Frame = HeapFrame;

    fn ports(&self) -> &[PortId] {
        &[LAN, WAN]
    }

    fn receive(&mut self, port: PortId, batch: &mut Vec<HeapFrame>, max: usize) -> usize {
        let mut got = 0;
        while got < max && self.came.front().is_some_and(|(at, _)| *at == port) {
            batch.extend(self.came.pop_front().map(|(_, frame)| frame));
            got += 1;
        }
        got
    }

    fn can_send(&self, port: PortId) -> bool {
        self.ports().contains(&port)
    }

    fn send(&mut self, port: PortId, frames: &mut Vec<HeapFrame>) -> usize {
        let count = frames.len();
        for frame in frames.drain(..) {
            self.left.push((port, frame.data().to_vec()));
            self.sent.push(frame);
        }
        count
    }

    fn supply(&mut self, free: &mut Vec<HeapFrame>) {
        free.append(&mut self.sent);
    }

    fn in_rings(&self) -> RingFrames {
        RingFrames::default()
    }

    fn crossed(&self) -> Crossed {
        Crossed::default()
    }
}

/// The worker, and the two ends of a connection by it.
pub struct Bed {
    pub fib: Fib,
    worker: Worker<Memory>,
    stats: Arc<WorkerStats>,
    handoff: Arc<Handoff<HeapFrame>>,
    publisher: Publisher,
    policy: Arc<Policy>,
    client: (std::net::IpAddr, u16),
    server: (std::net::IpAddr, u16),
    /// As looked at last.
    before: Counters,
}

impl Bed {
    /// A client behind `from`, a server behind `to`, and an intercept with clients in these VLANs of `lan`.
    pub fn new(family: Family, from: PortId, to: PortId, vlan: VlanChoice) -> Self {
        Self::with(family, from, to, vlan, Setup::new())
    }

    pub fn with(family: Family, from: PortId, to: PortId, vlan: VlanChoice, setup: Setup) -> Self {
        let fib = fib(family, from, to);
        let mut spec = setup.spec;
        spec.vlan = vlan;
        let policy = Arc::new(policy(1, [spec]).with_vlans(&fib.vlans));
        let (stats, mut publisher) = (Arc::new(WorkerStats::default()), Publisher::new());
        let pipeline = Pipeline::new(&setup.config, policy.clone(), Arc::new(fib.clone()), START);
        let waiter = Waiter::new().expect("a waiter");
        let handoff = Handoff::new(vec![waiter.waker()], 8, FRAMES);
        let parts = Parts {
            id: 0,
            driver: Memory::default(),
            pipeline,
            hasher: FlowHasher::new(setup.config.seed),
            handoff: handoff.clone(),
            punt: punt(),
            snapshots: publisher.subscribe(),
            commands: Arc::new(ArrayQueue::new(1)),
            stats: stats.clone(),
            failures: Arc::new(ArrayQueue::new(1)),
            cookies_until: Arc::default(),
            gaps: Arc::default(),
            rooms: None,
            questions: None,
            answers: Arc::new(ArrayQueue::new(1)),
            express: None,
            frames: (0..FRAMES).map(|_| HeapFrame::new(CAPACITY)).collect(),
            senders: [0; MAX_PORTS],
        };
        let mut bed = Self {
            fib,
            worker: Worker::new(parts),
            stats,
            handoff,
            publisher,
            policy,
            client: (client_of(family), 40_000),
            server: (server_of(family), 443),
            before: Counters::default(),
        };
        bed.worker.breathe(NOW);
        bed
    }

    pub fn syn(&self) -> Seg {
        Seg::new(self.client, self.server, SYN, 1000, 0).options(&[2, 4, 5, 0xb4])
    }
    pub fn syn_ack(&self) -> Seg {
        Seg::new(self.server, self.client, SYN | ACK, 9000, 1001).options(&[2, 4, 5, 0xb4])
    }
    /// The client's first after the handshake.
    pub fn ack(&self) -> Seg {
        Seg::new(self.client, self.server, ACK, 1001, 9001)
    }

    /// A segment comes in by a link, with these tags. What leaves: by which link, as its tags say, and the frame.
    pub fn sends(&mut self, link: PortId, tags: &[(u16, u16)], segment: &Seg) -> Vec<(PortId, Vec<u8>)> {
        self.sends_at(NOW, link, tags, segment)
    }

    /// The same, at that time.
    pub fn sends_at(
        &mut self,
        now: Nanos,
        link: PortId,
        tags: &[(u16, u16)],
        segment: &Seg,
    ) -> Vec<(PortId, Vec<u8>)> {
        let bytes = tagged(&segment.frame(), tags);
        let port = if link == WAN || link == TRUNK_LINK { WAN } else { LAN };
        let (driver, pool) = self.worker.driver_and_pool();
        let mut frame = pool.pop().expect("a frame");
        frame.set_priority(0);
        frame.set_len(bytes.len());
        frame.data_mut().copy_from_slice(&bytes);
        driver.came.push_back((port, frame));
        self.worker.breathe(now);
        let left = std::mem::take(&mut self.worker.driver_and_pool().0.left);
        left.into_iter().map(|(port, bytes)| (self.link_of(port, &bytes), bytes)).collect()
    }

    fn link_of(&self, port: PortId, bytes: &[u8]) -> PortId {
        let found = vlan::take(&mut HeapFrame::from_packet(bytes, bytes.len())).expect("two tags at most");
        found.map_or(port, |vlan| self.fib.vlans.find(port, &vlan).expect("a link"))
    }

    /// Other routes from now on.
    pub fn publish(&mut self, fib: Fib) {
        self.fib = fib;
        let snapshot = Snapshot {
            policy: Arc::new(self.policy.with_vlans(&self.fib.vlans)),
            fib: Arc::new(self.fib.clone()),
            lanes: Lanes::NONE,
        };
        self.publisher.publish(&Arc::new(snapshot));
    }

    fn counters(&self) -> Counters {
        self.worker.publish();
        let mut sum = Summary::default();
        self.stats.add_to(&mut sum);
        sum.counters
    }

    /// Reasons of what was dropped since the last look.
    pub fn dropped(&mut self) -> Vec<(DropReason, u64)> {
        let (now, before) = (self.counters(), std::mem::take(&mut self.before));
        self.before = now.clone();
        let count = |reason: &DropReason| now.dropped[*reason as usize] - before.dropped[*reason as usize];
        DropReason::ALL.iter().map(|reason| (*reason, count(reason))).filter(|(_, n)| *n != 0).collect()
    }

    /// Packets that the kernel got.
    pub fn punted(&self) -> u64 {
        self.counters().punted.iter().sum()
    }

    /// Whether all frames lie free.
    pub fn owns_all_frames(&mut self) -> bool {
        let (driver, pool) = self.worker.driver_and_pool();
        pool.len() + driver.sent.len() + self.handoff.in_reservoir() == FRAMES
    }
}

fn fib(family: Family, from: PortId, to: PortId) -> Fib {
    let mut fib = Fib::default();
    for (number, port, vlan) in [
        (LINKS[0], LAN, Vlan::new(10)),
        (LINKS[1], LAN, Vlan::new(20)),
        (LINKS[2], LAN, Vlan::stacked(100, 10)),
        (TRUNK_LINK, WAN, Vlan::new(20)),
    ] {
        fib.vlans.insert(number, VlanLink { port, vlan, link: link(number, port) });
    }
    for port in [LAN, WAN] {
        fib.links[usize::from(port.0)] = Some(link(port, port));
    }
    for (net, by) in [("10.1.0.0/16", from), ("192.0.2.0/24", to)] {
        fib.v4.insert(net.parse().expect("a prefix"), Route::OnLink(by));
    }
    for (net, by) in [("2001:db8:1::/64", from), ("2001:db8:2::/64", to)] {
        fib.v6.insert(net.parse().expect("a prefix"), Route::OnLink(by));
    }
    fib.neighbours.insert((from, client_of(family)), CLIENT_MAC);
    fib.neighbours.insert((to, server_of(family)), SERVER_MAC);
    fib
}

fn link(number: PortId, port: PortId) -> Link {
    let (v4, v6) = gateway_of(port);
    Link { mac: link_mac(number), mtu: 1500, up: true, v4: Some(v4), v6: Some(v6) }
}

/// The ways into the kernel of a namespace of their own, once for all.
fn punt() -> Punt {
    static PUNT: OnceLock<(Namespace, Punt)> = OnceLock::new();
    let make = || {
        let namespace = Namespace::new().expect("root makes namespaces");
        let punt = namespace.run(|| {
            let tun = |name: &str| {
                let tun = Tun::create(name).expect("a TUN device");
                tun.set_up(true).expect("up");
                Arc::new(tun)
            };
            let flows = Steering::load(&Sizes::default()).expect("the steering program").kernel_flows();
            Punt::new(tun("relay"), tun("forward"), flows)
        });
        (namespace, punt.expect("in the namespace"))
    };
    PUNT.get_or_init(make).1.clone()
}
