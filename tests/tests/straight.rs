//! The straight line does what the long road does: the same segments through two pipelines, one of which has just been given new
//! routes before each of them, so that no connection knows its way by number.

use std::net::IpAddr;

use weir_core::batch::Batch;
use weir_core::flow::key::FlowHasher;
use weir_core::flow::table::Capacity;
use weir_core::frame::Frame as _;
use weir_core::hold::Packet;
use weir_core::ids::{Nanos, PortId};
use weir_core::parse::{Parsed, parse};
use weir_tests::bench::{Bench, Came, LAN, Moved, Setup, WAN};
use weir_tests::packet::{ACK, BOTH, FIN, Family, PSH, RST, SYN, Seg, URG};
use weir_tests::random::Random;

/// How weir carries the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Road {
    Through,
    /// Weir has answered; the server is the one that was asked for.
    Answered,
    /// The same, and it is a server of a pool.
    Sent,
}

/// The server as it is, not as the client sees it.
#[derive(Clone, Copy, Debug)]
struct Far {
    server: (IpAddr, u16),
    isn: u32,
}

/// What both ends can do: SACK, timestamps, window scaling.
const OPTIONS: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 101, 0, 0, 0, 0, 1, 3, 3, 7];
const GRANTED: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0x27, 0x10, 0, 0, 0, 101, 1, 3, 3, 9];

/// A connection that is joined of two, and whose server has acknowledged the request of so many octets.
fn joined(family: Family, mtu: u16, road: Road, has_options: bool) -> (Bench, Far, u32) {
    let mut setup = Setup::answer();
    if road == Road::Sent {
        setup = setup.sending(|pool| pool);
    }
    setup.fib = weir_tests::bench::fib(mtu);
    let mut b = Bench::of(family, setup);
    let (offered, granted): (&[u8], &[u8]) =
        if has_options { (&OPTIONS, &GRANTED) } else { (&OPTIONS[..4], &GRANTED[..4]) };
    let host = if road == Road::Sent { "sent.example" } else { "fine.example" };
    let request = weir_tests::hello::http_request(host);
    b.s = b.give_any(LAN, &b.syn().options(offered).frame()).0.one_to_client().seq;
    b.give_any(LAN, &b.c(0).frame());
    let syn = b.give_any(LAN, &b.c(0).payload(&request).frame()).0.one_to_server();
    assert_eq!(syn.flags, SYN);
    let far = Far { server: syn.dst, isn: 300 };
    let syn_ack = Seg::new(far.server, b.client, SYN | ACK, far.isn, b.c.wrapping_add(1)).options(granted);
    assert_eq!(b.give_any(WAN, &syn_ack.frame()).0.one_to_server().payload, request);
    let acked = b.c.wrapping_add(1 + request.len() as u32);
    let ack = Seg::new(far.server, b.client, ACK, far.isn + 1, acked);
    assert_eq!(b.give_any(WAN, &ack.frame()).0.tx.len(), 1);
    (b, far, request.len() as u32)
}

/// The connection, its server, and how long the request was.
fn running(family: Family, mtu: u16, road: Road, has_options: bool) -> (Bench, Far, u32) {
    if road != Road::Through {
        return joined(family, mtu, road, has_options);
    }
    let b = established(family, mtu);
    let far = Far { server: b.server, isn: b.s };
    (b, far, weir_tests::hello::http_request("fine.example").len() as u32)
}

/// A connection that was allowed, and whose server has acknowledged the request.
fn established(family: Family, mtu: u16) -> Bench {
    let mut setup = Setup::new();
    setup.fib = weir_tests::bench::fib(mtu);
    let mut b = Bench::of(family, setup);
    let asked = b.allowed_http();
    assert_eq!(b.wan(&b.s(0, asked), &[]).tx.len(), 1);
    b
}

/// A segment around where the connection stands: most are what a stack would send.
fn segment(b: &Bench, far: Far, random: &mut Random, at: &mut [u32; 2]) -> (PortId, Seg) {
    let from_client = random.one_in(2);
    let len = [0, 0, 1, 6, 100, 1400][random.below(6) as usize];
    let side = usize::from(!from_client);
    let stray = match random.below(12) {
        0 => random.below(70_000) as u32,
        1 => 0_u32.wrapping_sub(random.below(2000) as u32),
        2 => random.draw() as u32,
        _ => 0,
    };
    let mut seg = if from_client {
        let mut seg = b.c(at[0].wrapping_add(stray));
        seg.ack = seg.ack.wrapping_add(at[1]);
        seg
    } else {
        let (seq, ack) = (far.isn.wrapping_add(1 + at[1]), b.c.wrapping_add(1 + at[0]));
        Seg::new(far.server, b.client, ACK, seq.wrapping_add(stray), ack)
    };
    if stray == 0 {
        at[side] += len;
    }
    if random.one_in(12) {
        seg.ack = seg.ack.wrapping_add(random.below(4000) as u32).wrapping_sub(2000);
    }
    let rare = [FIN | ACK, RST, RST | ACK, SYN, SYN | ACK, FIN | PSH | ACK];
    let common = [ACK, ACK, PSH | ACK, URG | ACK];
    let flags =
        if random.one_in(60) { rare[random.below(6) as usize] } else { common[random.below(4) as usize] };
    (seg.flags, seg.window, seg.urgent) = (flags, random.draw() as u16, random.below(9) as u16);
    seg.payload = (0..len).map(|n| n as u8).collect();
    seg.ttl = [64, 64, 64, 2, 1, 0, 255][random.below(7) as usize];
    seg.damage = u16::from(random.one_in(20));
    if random.one_in(8) {
        seg.options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    } else if random.one_in(8) {
        let edge = seg.ack.to_be_bytes();
        seg.options = [&[1, 1, 5, 10][..], &edge, &edge].concat();
    }
    (if from_client != random.one_in(30) { LAN } else { WAN }, seg)
}

#[test]
fn segments_of_a_settled_connection_leave_as_by_the_long_road() {
    let mut sent = 0;
    for (family, seed) in BOTH.into_iter().flat_map(|family| (1..=300).map(move |seed| (family, seed))) {
        let mut random = Random::new(seed);
        let mtu = [1500, 1000][random.below(2) as usize];
        let road = [Road::Through, Road::Answered, Road::Sent][seed as usize % 3];
        let has_options = random.one_in(2);
        let (mut straight, far, asked) = running(family, mtu, road, has_options);
        let (mut long, ..) = running(family, mtu, road, has_options);
        let mut at = [asked, 0];
        for step in 0..150 {
            let (port, seg) = segment(&straight, far, &mut random, &mut at);
            let mut frame = seg.frame();
            // Ethernet pads short frames.
            frame.resize(frame.len() + random.below(3) as usize, 0);
            let new_routes = weir_tests::bench::fib(mtu).into();
            long.pipe.set_snapshot(long.now, long.policy.clone(), new_routes);
            let (came, moved) = straight.give_any(port, &frame);
            let (expected, expected_moved) = long.give_any(port, &frame);
            let what = format!("{road:?} seed {seed} step {step} {seg:?}");
            assert_eq!(
                (&came.tx, &came.punt, &moved),
                (&expected.tx, &expected.punt, &expected_moved),
                "{what}"
            );
            sent += came.tx.len();
            for b in [&mut straight, &mut long] {
                b.now = b.now.saturating_add(Nanos::from_millis(3));
            }
            let views = [&straight, &long].map(|b| format!("{:?}", b.pipe.views(b.now, 0, 10)));
            assert_eq!(views[0], views[1], "{what}");
        }
        // Timers say when the last packet was.
        let end = [&mut straight, &mut long].map(|b| b.wait_any(Nanos::from_secs(9000)).1);
        assert_eq!(end[0], end[1], "seed {seed}");
    }
    assert!(sent > 10_000, "{sent} segments were sent on");
}

/// The routes change under a running connection: the next packet goes the new way.
#[test]
fn new_routes_under_a_running_connection_hold_for_the_next_packet() {
    for family in BOTH {
        let mut b = established(family, 1500);
        let asked = weir_tests::hello::http_request("fine.example").len() as u32;
        let mut fib = weir_tests::bench::fib(1500);
        for way in [0x11, 0x22, 0x33] {
            for mac in fib.neighbours.values_mut() {
                *mac = [2, 0, 0, 0, 0, way];
            }
            b.pipe.set_snapshot(b.now, b.policy.clone(), fib.clone().into());
            for _ in 0..3 {
                for came in [b.lan(&b.c(asked), &[]), b.wan(&b.s(0, asked), &[])] {
                    assert_eq!(came.tx[0].1[..6], [2, 0, 0, 0, 0, way]);
                }
            }
        }
        let no_neighbours = weir_core::fib::Fib { neighbours: Default::default(), ..fib };
        b.pipe.set_snapshot(b.now, b.policy.clone(), no_neighbours.into());
        let came = b.lan(&b.c(asked), &[Moved::Punt(weir_core::drop::PuntReason::NoNeighbour)]);
        assert_eq!((came.tx.len(), came.punt.len()), (0, 1));
    }
}

/// A worker's batch: all segments at once.
fn give_together(b: &mut Bench, batch: &[(PortId, Vec<u8>)]) -> (Came, Vec<Moved>) {
    let before = b.counters();
    let hasher = FlowHasher::new(Setup::new().config.seed);
    let mut arrived = Batch::with_capacity(batch.len());
    for (port, bytes) in batch {
        let mut frame = b.out.free.pop().expect("a frame");
        frame.set_len(bytes.len());
        frame.data_mut().copy_from_slice(bytes);
        let Ok(Parsed::Tcp(meta)) = parse(frame.data()) else { panic!("a segment") };
        arrived.push_packet(Packet { frame, port: *port, meta }, &hasher);
    }
    b.pipe.handle_batch(b.now, &mut arrived, &mut b.out);
    assert!(arrived.is_empty());
    let came = b.collect();
    (came, b.moved_since(&before))
}

/// Connections begin, run and end within a batch, and their slots are taken by others.
#[test]
fn segments_in_a_batch_are_handled_as_one_by_one_in_their_order() {
    let mut sent = 0;
    for (family, seed) in BOTH.into_iter().flat_map(|family| (1..=60).map(move |seed| (family, seed))) {
        let mut random = Random::new(seed);
        let mut setup = Setup::new();
        setup.config.flows = Capacity { fast: 4, kernel: 2 };
        let (mut together, mut single) = (Bench::of(family, setup.clone()), Bench::of(family, setup));
        let asked = weir_tests::hello::http_request("fine.example");
        for step in 0..60 {
            let mut batch = Vec::new();
            for _ in 0..1 + random.below(20) {
                together.client.1 = 40_000 + random.below(6) as u16;
                let b = &together;
                let (port, seg) = match random.below(9) {
                    0 => (LAN, b.syn()),
                    1 => (WAN, b.syn_ack()),
                    2 => (LAN, b.c(0).payload(&asked)),
                    3 => (WAN, b.s(0, asked.len() as u32)),
                    4 => (WAN, b.s(0, asked.len() as u32).payload([7; 100])),
                    5 => (LAN, b.c(asked.len() as u32)),
                    6 => (LAN, b.c(asked.len() as u32).flags(RST)),
                    7 => (LAN, b.c(asked.len() as u32).flags(FIN | ACK)),
                    _ => (WAN, b.s(0, asked.len() as u32 + 1).flags(FIN | ACK)),
                };
                batch.push((port, seg.frame()));
            }
            let (came, moved) = give_together(&mut together, &batch);
            let (mut expected, before) = (Came::default(), single.counters());
            for (port, frame) in &batch {
                let (one, _) = single.give_any(*port, frame);
                expected.tx.extend(one.tx);
                expected.punt.extend(one.punt);
                expected.kernel.extend(one.kernel);
            }
            let what = format!("seed {seed} step {step}");
            assert_eq!(
                (&came.tx, &came.punt, &came.kernel),
                (&expected.tx, &expected.punt, &expected.kernel),
                "{what}"
            );
            assert_eq!(moved, single.moved_since(&before), "{what}");
            sent += came.tx.len();
            let span = [Nanos::from_millis(30), Nanos::from_secs(11), Nanos::from_secs(100)]
                [random.below(3) as usize];
            assert_eq!(together.wait_any(span).1, single.wait_any(span).1, "{what}");
        }
    }
    assert!(sent > 5000, "{sent} segments were sent on");
}
