//! What a packet costs in memory: parsing it, and the whole pipeline for an allowed connection, without any device.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use weir_core::fib::{Fib, Link, Route};
use weir_core::flow::table::Capacity;
use weir_core::frame::{Frame as _, HeapFrame};
use weir_core::hold::Packet;
use weir_core::ids::{Nanos, PortId, PortSet};
use weir_core::parse::{Parsed, parse};
use weir_core::pipeline::{Config, Output, Pipeline};
use weir_core::policy::{InterceptSpec, Policy, PolicyBuilder};

const LAN: PortId = PortId(0);
const WAN: PortId = PortId(1);
const CAPACITY: usize = 1792;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n";
/// Packets of one batch.
const BATCH: usize = 64;

#[derive(Clone, Copy)]
struct Ends {
    client: (IpAddr, u16),
    server: (IpAddr, u16),
}

/// The n-th connection: a client of its own for each 50,000.
fn ends(n: u32, v6: bool) -> Ends {
    let (host, port) = ((n / 50_000) as u8, 1024 + (n % 50_000) as u16);
    if v6 {
        let client = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, u16::from(host) + 2);
        Ends {
            client: (client.into(), port),
            server: (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), 80),
        }
    } else {
        Ends {
            client: (Ipv4Addr::new(10, 0, host, 2).into(), port),
            server: (Ipv4Addr::new(192, 0, 2, 1).into(), 80),
        }
    }
}

/// `kind` and sequence numbers of a segment.
#[derive(Clone, Copy)]
enum Kind {
    Syn,
    SynAck,
    Ack(u32, u32),
}

fn segment(from: (IpAddr, u16), to: (IpAddr, u16), kind: Kind, payload: &[u8]) -> Vec<u8> {
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
    let mut bytes = Vec::new();
    tcp.write(&mut bytes, payload).expect("a vector takes everything");
    bytes
}

fn policy() -> Arc<Policy> {
    let web = InterceptSpec::new("web").from_port(LAN).to_any().tcp([80]);
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
    for n in (0..flows).step_by(50_000) {
        let ends = ends(n, v6);
        fib.neighbours.insert((LAN, ends.client.0), [8; 6]);
        fib.neighbours.insert((WAN, ends.server.0), [10; 6]);
    }
    Arc::new(fib)
}

/// A pipeline with `flows` allowed connections.
fn established(flows: u32, v6: bool) -> (Pipeline<HeapFrame>, Output<HeapFrame>) {
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
    let mut pipeline = Pipeline::new(&config, policy(), fib(flows, v6), Nanos(1));
    let mut out = Output::default();
    for n in 0..flows {
        let Ends { client, server } = ends(n, v6);
        let after = 1001 + REQUEST.len() as u32;
        let steps = [
            (LAN, segment(client, server, Kind::Syn, &[])),
            (WAN, segment(server, client, Kind::SynAck, &[])),
            (LAN, segment(client, server, Kind::Ack(1001, 5001), REQUEST)),
            (WAN, segment(server, client, Kind::Ack(5001, after), &[])),
        ];
        for (port, bytes) in steps {
            let frame = HeapFrame::from_packet(&bytes, CAPACITY);
            let Ok(Parsed::Tcp(meta)) = parse(frame.data()) else { unreachable!("a segment") };
            pipeline.handle(Nanos(2), Packet { frame, port, meta }, &mut out);
        }
        out.tx.clear();
        out.free.clear();
    }
    assert_eq!(pipeline.totals.allowed, u64::from(flows));
    (pipeline, out)
}

fn parsing(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(1));
    for (name, v6) in [("ipv4", false), ("ipv6", true)] {
        let Ends { client, server } = ends(1, v6);
        let bytes = segment(client, server, Kind::Ack(2000, 5001), &[7; 6]);
        group.bench_function(name, |b| b.iter(|| parse(black_box(&bytes))));
    }
    group.finish();
}

/// Batches of 64 small segments from clients, of connections taken at random.
fn spliced(c: &mut Criterion) {
    let mut group = c.benchmark_group("pipeline/spliced");
    group.throughput(Throughput::Elements(BATCH as u64)).sample_size(20);
    for (family, v6) in [("ipv4", false), ("ipv6", true)] {
        for flows in [1_u32, 1000, 100_000] {
            let (mut pipeline, mut out) = established(flows, v6);
            let template: Vec<(Vec<u8>, u32)> = (0..flows.min(4096))
                .map(|n| {
                    let Ends { client, server } = ends(n.wrapping_mul(2_654_435_761) % flows, v6);
                    (segment(client, server, Kind::Ack(1001 + REQUEST.len() as u32, 5001), &[7; 6]), n)
                })
                .collect();
            let mut frames: Vec<HeapFrame> = (0..BATCH).map(|_| HeapFrame::new(CAPACITY)).collect();
            let mut at = 0;
            group.bench_function(BenchmarkId::new(family, flows), |b| {
                b.iter(|| {
                    for mut frame in frames.drain(..) {
                        let (bytes, _) = &template[at % template.len()];
                        at += 1;
                        frame.set_len(bytes.len());
                        frame.data_mut().copy_from_slice(bytes);
                        let Ok(Parsed::Tcp(meta)) = parse(frame.data()) else { unreachable!("a segment") };
                        pipeline.handle(Nanos(3), Packet { frame, port: LAN, meta }, &mut out);
                    }
                    frames.extend(out.tx.drain(..).map(|(_, frame)| frame));
                    frames.append(&mut out.free);
                    assert_eq!(frames.len(), BATCH);
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, parsing, spliced);
criterion_main!(benches);
