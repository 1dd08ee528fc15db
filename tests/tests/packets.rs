//! Packets from nowhere: random and mutated ones. Nothing panics, no frame is lost, and each packet that is not sent on
//! is counted once.

use weir_core::drop::{DropReason, PuntReason};
use weir_core::flow::table::Capacity;
use weir_core::ids::{Nanos, PortId};
use weir_core::pipeline::PuntTo;
use weir_tests::bench::{Bench, Came, LAN, Moved, Setup, WAN};
use weir_tests::hello::{client_hello, http_request};
use weir_tests::packet::{ACK, BOTH, FIN, PSH, RST, SYN, Seen, Seg, URG};
use weir_tests::random::Random;

/// What one packet may do: it is held, or leaves, or is counted once; besides it our own bare segments may leave.
fn assert_counted_once(came: &Came, moved: &[Moved], held_before: usize, held_after: usize, what: &str) {
    let lost = moved.iter().filter(|m| matches!(m, Moved::Drop(r) if *r != DropReason::NoFrame)).count();
    let punted = moved.iter().filter(|m| matches!(m, Moved::Punt(_))).count();
    assert_eq!(punted, came.punt.len(), "{what}: each punt has one reason");
    let out = came.tx.len() + came.punt.len() + lost + held_after;
    let made = (out as i64) - (1 + held_before as i64);
    let bare = |frame: &[u8]| {
        let seen = Seen::read(frame);
        seen.payload.is_empty() && (seen.flags & RST != 0 || seen.flags == ACK)
    };
    let bare = came.tx.iter().filter(|(_, f)| bare(f)).count() + came.punt.len();
    assert!(made >= 0, "{what}: a packet was lost: {moved:?} {came:?}");
    assert!(
        made <= bare as i64,
        "{what}: {made} packets counted twice or made of nothing: {moved:?} {came:?}"
    );
}

/// A segment somewhere around the connection's numbers.
fn segment(b: &Bench, random: &mut Random) -> (PortId, Seg) {
    let near = |random: &mut Random| match random.below(8) {
        0..=3 => 0,
        4 => random.below(40) as u32,
        5 => random.below(3000) as u32,
        6 => 0_u32.wrapping_sub(random.below(3) as u32),
        _ => random.draw() as u32,
    };
    let flags =
        [SYN, ACK, ACK, ACK | PSH, ACK, ACK | FIN, RST, RST | ACK, ACK | URG, random.draw() as u8 & 0x3f];
    let flags = flags[random.below(10) as usize];
    let (at, acked) = (near(random), near(random));
    let from_client = random.one_in(2) || random.one_in(4);
    let mut seg = match (from_client, random.below(6)) {
        (true, 0) => b.syn(),
        (false, 0 | 1) => b.syn_ack(),
        (true, _) => b.c(at).flags(flags),
        (false, _) => b.s(at, acked).flags(flags),
    };
    seg.payload = match random.below(6) {
        0 => client_hello("fine.example", 0),
        1 => client_hello("denied.example", 0),
        2 => http_request("dropped.example"),
        3 => vec![random.draw() as u8; random.below(200) as usize],
        _ => Vec::new(),
    };
    if random.one_in(4) {
        let cut = random.below(seg.payload.len() as u64 + 1) as usize;
        seg.payload.truncate(cut);
    }
    if random.one_in(8) {
        seg.seq = random.draw() as u32;
    }
    seg.urgent = random.below(30) as u16;
    seg.window = random.draw() as u16;
    seg.ttl = if random.one_in(16) { random.below(3) as u8 } else { 64 };
    if random.one_in(20) {
        seg.damage = 1;
    }
    let port = if from_client != random.one_in(16) { LAN } else { WAN };
    (port, seg)
}

fn setup() -> Setup {
    let mut setup = Setup::new();
    setup.config.flows = Capacity { fast: 6, kernel: 3 };
    setup.config.holds = 3;
    setup.config.hold_frames = 12;
    setup
}

#[test]
fn random_segments_lose_no_frame_and_are_counted_once() {
    for family in BOTH {
        for seed in 1..=150 {
            let mut random = Random::new(seed);
            let mut b =
                if seed % 3 == 0 { Bench::in_grace(family, setup()) } else { Bench::of(family, setup()) };
            for step in 0..400 {
                b.client.1 = 40_000 + random.below(8) as u16;
                b.server.1 = [443, 443, 443, 80, 22][random.below(5) as usize];
                let (port, seg) = segment(&b, &mut random);
                let held = b.pipe.frames_held();
                let (came, moved) = b.give_any(port, &seg.frame());
                let what = format!("seed {seed} step {step} {seg:?}");
                assert_counted_once(&came, &moved, held, b.pipe.frames_held(), &what);
                if random.one_in(10) {
                    let span = [Nanos::from_millis(30), Nanos::from_secs(4), Nanos::from_secs(100)];
                    b.now = b.now.saturating_add(span[random.below(3) as usize]);
                    b.pipe.poll_timers(b.now, &mut b.out);
                    b.collect();
                }
            }
            for _ in 0..200 {
                b.now = b.now.saturating_add(Nanos::from_secs(60));
                b.pipe.poll_timers(b.now, &mut b.out);
                for op in b.collect().kernel {
                    if let weir_core::pipeline::KernelOp::Check(key) = op {
                        b.pipe.handle_kernel_seen(&key, None, &mut b.out);
                    }
                }
            }
            assert_eq!((b.pipe.flow_counts(), b.pipe.frames_held()), ((0, 0), 0), "seed {seed}");
        }
    }
}

/// Bits flipped, octets cut off or added, in whole frames: headers too, fragments too.
#[test]
fn mutated_frames_never_panic_and_lose_no_frame() {
    for family in BOTH {
        for seed in 1..=60 {
            let mut random = Random::new(seed);
            let mut b = Bench::of(family, setup());
            for _ in 0..500 {
                let (port, mut seg) = segment(&b, &mut random);
                if family == weir_tests::packet::Family::V6 && random.one_in(4) {
                    seg.extensions = vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0]), (0, vec![0; 8])];
                }
                let mut frame = if random.one_in(4) {
                    let cut = random.below(6) as usize * 8;
                    let pieces = seg.fragments(&[(0, cut + 24), (cut + 24, 9999)]);
                    pieces[random.below(2) as usize].clone()
                } else {
                    seg.frame()
                };
                for _ in 0..random.below(4) {
                    let at = 12 + random.below(frame.len() as u64 - 12) as usize;
                    frame[at] ^= 1 << random.below(8);
                }
                match random.below(8) {
                    0 => frame.truncate(random.below(frame.len() as u64 + 1) as usize),
                    1 => frame.extend([0; 9]),
                    _ => {}
                }
                if frame.len() >= 34 && frame[12..14] == [8, 0] && !random.one_in(4) {
                    mend_ipv4_checksum(&mut frame);
                }
                let (_, _) = b.give_any(port, &frame);
                b.now = b.now.saturating_add(Nanos::from_millis(random.below(200)));
                b.pipe.poll_timers(b.now, &mut b.out);
                b.collect();
            }
        }
    }
}

fn mend_ipv4_checksum(frame: &mut [u8]) {
    let len = (usize::from(frame[14] & 15) * 4).clamp(20, frame.len() - 14);
    frame[24..26].fill(0);
    let mut sum: u32 = 0;
    for pair in frame[14..14 + len].chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

#[test]
fn not_tcp_and_packets_of_no_intercept_go_to_the_kernel_as_they_are() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let punt = [Moved::Punt(PuntReason::NotIntercepted)];
        let mut other = b.syn();
        other.dst.1 = 22;
        for (port, seg) in [(LAN, other.clone()), (WAN, b.syn()), (WAN, other)] {
            let came = b.give(port, &seg.frame(), &punt);
            assert_eq!(came.punt, [(PuntTo::Forward, seg.frame())]);
        }
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(b.give(LAN, &arp, &punt).punt[0].1, arp);
    }
}

#[test]
fn frames_that_end_before_their_headers_are_dropped() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let whole = b.syn().frame();
        for len in 0..whole.len() {
            let (came, moved) = b.give_any(LAN, &whole[..len]);
            assert!(came.is_nothing() && moved.len() == 1, "{len}: {moved:?}");
            assert!(matches!(moved[0], Moved::Drop(_)), "{len}: {moved:?}");
        }
    }
}
