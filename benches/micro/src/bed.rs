//! A pipeline in memory with established connections, and segments for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use etherparse::PacketBuilder;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rand_distr::{Distribution as _, Zipf};
use weir_core::batch::Batch;
use weir_core::fib::{Fib, Link, Route};
use weir_core::flow::key::{FlowHasher, Tuple};
use weir_core::flow::table::Capacity;
use weir_core::frame::{Frame as _, HeapFrame};
use weir_core::hold::Packet;
use weir_core::ids::{Nanos, PortId, PortSet};
use weir_core::parse::{Meta, Parsed, parse};
use weir_core::pipeline::{Config, Output, Pipeline};
use weir_core::policy::{Handshake, InterceptSpec, Policy, PolicyBuilder};

/// Where the clients are.
pub const LAN: PortId = PortId(0);
/// Where the servers are.
pub const WAN: PortId = PortId(1);
/// Octets of a frame.
pub const CAPACITY: usize = 1792;
/// What clients ask for.
pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n";
/// What the server acknowledges that has the request.
const ASKED: u32 = 1001 + REQUEST.len() as u32;
/// Connections of one client address.
const OF_A_CLIENT: u32 = 50_000;
/// Segments that are kept ready, at most.
const READY: usize = 1 << 18;

/// Which connection the next packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Each is as likely as any other.
    Uniform,
    /// The n-th is n times rarer than the first, as in real traffic.
    Zipf,
}

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub client: (IpAddr, u16),
    pub server: (IpAddr, u16),
}

impl Ends {
    /// The n-th connection's.
    pub fn of(n: u32, v6: bool) -> Self {
        let (host, port) = ((n / OF_A_CLIENT) as u8, 1024 + (n % OF_A_CLIENT) as u16);
        if v6 {
            let client = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, u16::from(host) + 2);
            let server = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
            return Self { client: (client.into(), port), server: (server.into(), 80) };
        }
        let (client, server) = (Ipv4Addr::new(10, 0, host, 2), Ipv4Addr::new(192, 0, 2, 1));
        Self { client: (client.into(), port), server: (server.into(), 80) }
    }

    /// As the client sends.
    pub fn tuple(&self) -> Tuple {
        Tuple { src: SocketAddr::from(self.client).into(), dst: SocketAddr::from(self.server).into() }
    }
}

/// What a segment is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Syn,
    SynAck,
    /// With these sequence and acknowledgment numbers.
    Ack(u32, u32),
}

/// A segment as a frame holds it.
pub fn segment(
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    kind: Kind,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = match (from.0, to.0) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ethernet.ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => ethernet.ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!("both ends are of one family"),
    };
    let tcp = match kind {
        Kind::Syn => ip.tcp(from.1, to.1, 1000, 65_000).syn(),
        Kind::SynAck => ip.tcp(from.1, to.1, 5000, 65_000).syn().ack(1001),
        Kind::Ack(seq, ack) => ip.tcp(from.1, to.1, seq, 65_000).ack(ack),
    };
    let tcp = tcp.options_raw(options).expect("options of whole words");
    let mut bytes = Vec::new();
    tcp.write(&mut bytes, payload).expect("a vector takes everything");
    bytes
}

/// What the parser reads from a segment.
#[inline]
pub fn meta_of(bytes: &[u8]) -> Meta {
    match parse(bytes) {
        Ok(Parsed::Tcp(meta)) => meta,
        other => unreachable!("a segment: {other:?}"),
    }
}

/// Everything to port 80 is intercepted and allowed.
fn policy(handshake: Handshake) -> Arc<Policy> {
    let web = InterceptSpec::new("web").from_port(LAN).to_any().tcp([80]);
    let web = InterceptSpec { handshake, ..web };
    Arc::new(PolicyBuilder::new(1).intercept(web).build().expect("a valid policy"))
}

/// Clients on one port, servers on the other, all neighbours resolved.
fn fib(flows: u32, v6: bool) -> Arc<Fib> {
    let mut fib = Fib::default();
    for (port, v4, six) in [(LAN, "10.0.0.0/8", "fd00::/8"), (WAN, "192.0.2.0/24", "2001:db8::/32")] {
        fib.v4.insert(v4.parse().expect("a prefix"), Route::OnLink(port));
        fib.v6.insert(six.parse().expect("a prefix"), Route::OnLink(port));
        fib.links[port.0 as usize] =
            Some(Link { mac: [6, 0, 0, 0, 0, port.0], mtu: 1500, up: true, v4: None, v6: None });
    }
    for n in (0..flows).step_by(OF_A_CLIENT as usize) {
        let ends = Ends::of(n, v6);
        fib.neighbours.insert((LAN, ends.client.0), [8; 6]);
        fib.neighbours.insert((WAN, ends.server.0), [10; 6]);
    }
    Arc::new(fib)
}

/// A pipeline with established connections.
#[derive(Debug)]
pub struct Bed {
    pub pipeline: Pipeline<HeapFrame>,
    pub out: Output<HeapFrame>,
    arrived: Batch<HeapFrame>,
    hasher: FlowHasher,
}

impl Bed {
    /// With `flows` allowed connections, whose handshakes passed through.
    pub fn new(flows: u32, v6: bool) -> Self {
        let mut bed = Self::empty(flows, v6, Handshake::Through);
        for n in 0..flows {
            let Ends { client, server } = Ends::of(n, v6);
            let steps = [
                (LAN, segment(client, server, Kind::Syn, &[], &[])),
                (WAN, segment(server, client, Kind::SynAck, &[], &[])),
                (LAN, segment(client, server, Kind::Ack(1001, 5001), &[], REQUEST)),
                (WAN, segment(server, client, Kind::Ack(5001, ASKED), &[], &[])),
            ];
            for (port, bytes) in steps {
                bed.give(port, &bytes);
            }
        }
        assert_eq!(bed.pipeline.totals.allowed, u64::from(flows));
        bed
    }

    /// With `flows` allowed connections that weir has answered.
    pub fn answered(flows: u32, v6: bool) -> Self {
        let mut bed = Self::empty(flows, v6, Handshake::Answer);
        for n in 0..flows {
            let Ends { client, server } = Ends::of(n, v6);
            let isn = bed.give(LAN, &segment(client, server, Kind::Syn, &[], &[])).expect("an answer").seq.0;
            let next = isn.wrapping_add(1);
            bed.give(LAN, &segment(client, server, Kind::Ack(1001, next), &[], REQUEST));
            bed.give(WAN, &segment(server, client, Kind::SynAck, &[], &[]));
            bed.give(WAN, &segment(server, client, Kind::Ack(5001, ASKED), &[], &[]));
        }
        assert_eq!(
            (bed.pipeline.totals.allowed, bed.pipeline.leg_count()),
            (u64::from(flows), flows as usize)
        );
        bed
    }

    /// With room for so many.
    fn empty(flows: u32, v6: bool, handshake: Handshake) -> Self {
        let config = Config {
            flows: Capacity { fast: flows as usize, kernel: 16 },
            holds: 64,
            hold_bytes: 16 * 1024,
            hold_frames: 1024,
            names: 64,
            fragments: 16,
            partial_checksums: PortSet::default(),
            worker: 0,
            workers: 1,
            seed: 1,
            secret: [7; 32],
            is_replay: false,
        };
        let pipeline = Pipeline::new(&config, policy(handshake), fib(flows, v6), Nanos(1));
        let (arrived, hasher) = (Batch::with_capacity(crate::BATCH), FlowHasher::new(config.seed));
        Self { pipeline, out: Output::default(), arrived, hasher }
    }

    /// One segment while connections open; the first that leaves for it.
    fn give(&mut self, port: PortId, bytes: &[u8]) -> Option<Meta> {
        self.out.free.push(HeapFrame::new(CAPACITY));
        self.handle(Nanos(2), port, HeapFrame::from_packet(bytes, CAPACITY));
        let first = self.out.tx.first().map(|(_, frame)| meta_of(frame.data()));
        self.out.tx.clear();
        self.out.free.clear();
        self.out.kernel.clear();
        first
    }

    /// A frame from `port` waits in `arrived` for the others of its batch.
    #[inline]
    pub fn receive(&mut self, port: PortId, frame: HeapFrame) {
        let is_plain = self.arrived.spare().is_some_and(|seen| seen.read(frame.data(), port, &self.hasher));
        assert!(is_plain, "a segment");
        self.arrived.push_read(frame);
    }

    /// What has been received, as a worker gives it to the pipeline.
    #[inline]
    pub fn handle_arrived(&mut self, now: Nanos) {
        self.pipeline.handle_batch(now, &mut self.arrived, &mut self.out);
    }

    /// One frame from `port`.
    pub fn handle(&mut self, now: Nanos, port: PortId, frame: HeapFrame) {
        let meta = meta_of(frame.data());
        self.pipeline.handle(now, Packet { frame, port, meta }, &mut self.out);
    }
}

/// Numbers of connections, spread over `flows` of them: as many as there is any use for.
pub fn numbers(flows: u32, spread: Spread) -> Vec<u32> {
    let mut random = StdRng::seed_from_u64(1);
    let count = (flows as usize * 4).clamp(crate::BATCH, READY).next_multiple_of(crate::BATCH);
    match spread {
        Spread::Uniform => (0..count).map(|_| random.random_range(0..flows)).collect(),
        Spread::Zipf => {
            let zipf = Zipf::new(f64::from(flows), 1.0).expect("a distribution");
            // The popular ones are anywhere in the table.
            let place = |rank: f64| (rank as u32 - 1).wrapping_mul(2_654_435_761) % flows;
            (0..count).map(|_| place(zipf.sample(&mut random))).collect()
        }
    }
}

/// Octets of a frame of [`traffic`], with padding.
pub const SMALL: usize = 80;

/// Small segments of established connections, from clients and servers in turn.
pub fn traffic(flows: u32, v6: bool, spread: Spread) -> Vec<(PortId, [u8; SMALL])> {
    let after = 1001 + REQUEST.len() as u32;
    let one = |(at, n): (usize, u32)| {
        let Ends { client, server } = Ends::of(n, v6);
        let (port, bytes) = if at % 2 == 0 {
            (LAN, segment(client, server, Kind::Ack(after, 5001), &[], &[]))
        } else {
            (WAN, segment(server, client, Kind::Ack(5001, after), &[], &[]))
        };
        let mut padded = [0; SMALL];
        padded[..bytes.len()].copy_from_slice(&bytes);
        (port, padded)
    };
    numbers(flows, spread).into_iter().enumerate().map(one).collect()
}
