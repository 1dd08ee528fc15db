//! Random connections and packets, by the hundred thousand.

use weir_core::tcp::options;
use weir_tests::packet::{BOTH, CWR, ECE, FIN, PSH, RST, SYN, URG};
use weir_tests::random::{Random, bytes};

use super::*;

fn translation(random: &mut Random, family: Family) -> Translation {
    let base = if random.one_in(4) { plain(family) } else { spliced(family) };
    let shift = |random: &mut Random| [0, random.below(29) as i8 - 14][random.below(2) as usize];
    let number = |random: &mut Random| [0, random.draw() as u32][random.below(2) as usize];
    let is_same = random.one_in(3);
    Translation {
        server: if is_same { base.client } else { base.server },
        delta: number(random),
        start: Seq(random.draw() as u32),
        prefix: number(random) & 0xffff,
        base: Seq(random.draw() as u32),
        timestamps: match random.below(3) {
            0 => TimestampMode::None,
            _ => TimestampMode::Both { offset: number(random), first: random.draw() as u32 },
        },
        sack: !random.one_in(3),
        shift_to_client: shift(random),
        shift_to_server: shift(random),
        ecn: random.one_in(2),
        ..base
    }
}

/// An edge of a SACK block, often about where blocks begin to count.
fn edge(random: &mut Random, how: &Translation, way: Way) -> [u8; 4] {
    let floor = match way {
        Way::ToServer => how.base.0.wrapping_add(how.delta),
        Way::ToClient => how.start.0,
    };
    let by = match random.below(4) {
        0 => random.draw() as u32,
        1 => (random.below(140_000) as u32).wrapping_sub(70_000),
        2 => (random.below(5) as u32).wrapping_sub(2),
        _ => (random.below(5) as u32).wrapping_sub(2).wrapping_sub(how.prefix),
    };
    floor.wrapping_add(by).to_be_bytes()
}

fn sack(random: &mut Random, how: &Translation, way: Way) -> Vec<u8> {
    let blocks = 1 + random.below(3);
    let mut option = vec![options::SACK, 2 + 8 * blocks as u8];
    for _ in 0..2 * blocks {
        option.extend(edge(random, how, way));
    }
    if random.one_in(8) {
        option[1] = random.below(40) as u8;
    }
    option
}

fn timestamps(random: &mut Random) -> Vec<u8> {
    let mut option = vec![options::TIMESTAMPS, 10];
    for _ in 0..2 {
        let value = [random.draw() as u32, u32::MAX, 0, 1, 70_000][random.below(5) as usize];
        option.extend(value.to_be_bytes());
    }
    option
}

/// Options: mostly as they are, some of them as nobody sends them.
fn options_of(random: &mut Random, how: &Translation, way: Way) -> Vec<u8> {
    let nops = vec![1, 1];
    let mut all = match random.below(10) {
        0..=1 => vec![],
        2..=3 => [nops, timestamps(random)].concat(),
        4..=5 => [nops.clone(), timestamps(random), nops, sack(random, how, way)].concat(),
        6 => [nops, sack(random, how, way)].concat(),
        7 => [timestamps(random), sack(random, how, way)].concat(),
        _ => {
            let mut all = vec![];
            for _ in 0..1 + random.below(6) {
                all.extend(match random.below(7) {
                    0 => timestamps(random),
                    1 => sack(random, how, way),
                    2 => vec![1; 1 + random.below(24) as usize],
                    3 => vec![0],
                    4 => vec![19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
                    5 => vec![random.draw() as u8, random.below(12) as u8],
                    _ => vec![253, 4, 1, 2],
                });
            }
            all
        }
    };
    all.truncate(40);
    while all.len() % 4 != 0 {
        all.push([0, 1][random.below(2) as usize]);
    }
    all
}

fn flags_of(random: &mut Random) -> u8 {
    let more = [0, PSH, ECE, CWR, ECE | CWR][random.below(5) as usize];
    let odd = [FIN | ACK, RST, RST | ACK, SYN, SYN | ACK, URG | ACK, FIN | PSH | ACK, FIN, 0];
    if random.one_in(6) { odd[random.below(9) as usize] | more } else { ACK | more }
}

fn packet(random: &mut Random, how: &Translation, way: Way) -> Vec<u8> {
    let mut seg = segment(how, way).flags(flags_of(random)).options(&options_of(random, how, way));
    let number = |random: &mut Random| [random.draw() as u32, 0, u32::MAX][random.below(3) as usize];
    (seg.seq, seg.ack) = (number(random), number(random));
    seg.window = [random.draw() as u16, 0, 1, u16::MAX][random.below(4) as usize];
    let ends = if random.one_in(4) { 7 } else { 4 };
    seg.ttl = [64, 255, 2, 64, 64, 1, 0][random.below(ends) as usize];
    seg.id = random.draw() as u16;
    if random.one_in(8) {
        seg.damage = random.draw() as u16;
    }
    let longest = if random.one_in(20) { 1480 } else { 60 };
    let len = random.below(longest) as usize;
    seg.payload = bytes(random, len);
    let v6 = seg.src.0.is_ipv6();
    if random.one_in(24) && v6 {
        seg.extensions = vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0])];
    } else if random.one_in(24) && !v6 {
        seg.ip_options = vec![1, 1, 1, 0];
    }
    let mut frame = seg.frame();
    set_class(&mut frame, v6, random.draw() as u8);
    if random.one_in(6) {
        frame.resize(frame.len() + random.below(24) as usize, 0xee);
    }
    if random.one_in(12) {
        let at = random.below(frame.len() as u64) as usize;
        frame[at] ^= 1 << random.below(8);
    }
    if random.one_in(40) {
        frame.truncate(54 + random.below(20) as usize);
    }
    frame
}

/// Traffic class, with the two bits of ECN.
fn set_class(frame: &mut [u8], v6: bool, class: u8) {
    if v6 {
        (frame[14], frame[15]) = (0x60 | class >> 4, class << 4);
    } else {
        let old = u16::from_be_bytes([frame[14], frame[15]]);
        frame[15] = class;
        let new = u16::from_be_bytes([frame[14], frame[15]]);
        let sum = u16::from_be_bytes([frame[24], frame[25]]);
        frame[24..26].copy_from_slice(&weir_core::wire::checksum::update(sum, old, new).to_be_bytes());
    }
}

/// Whether the lane is to take the packet, by what weir-core's parser says of it.
fn is_for_lane(how: &Translation, way: Way, frame: &[u8], alone: bool) -> bool {
    let Some(meta) = meta_of(frame) else { return false };
    let expected = if way == Way::ToServer { how.client } else { how.server.reversed() };
    let bare = if meta.v6 { 54 } else { 34 };
    let (end, flags) = (usize::from(meta.end), meta.flags.0);
    let is_plain = flags & (FIN | SYN | RST | ACK | URG) == ACK;
    frame[..6] == MAC
        && meta.tuple == expected
        && meta.l4 == bare
        && (is_plain || alone && flags & SYN == 0)
        && meta.ttl > 1
        && meta.ip_len() <= MTU
        && (frame.len() == end || frame.len() <= 60)
        && (!edits_options(how, way) || are_readable(meta.options_of(frame)))
}

fn edits_options(how: &Translation, way: Way) -> bool {
    let has_clock = !matches!(how.timestamps, TimestampMode::None | TimestampMode::Both { offset: 0, .. });
    has_clock
        || match way {
            Way::ToServer => !how.sack || how.delta != 0,
            Way::ToClient => how.prefix != 0,
        }
}

/// One of a kind, and not more than 20 with the NOPs between them.
fn are_readable(all: &[u8]) -> bool {
    let walked: Vec<_> = options::walk(all).collect();
    let of = |kind, len: Option<usize>| {
        walked.iter().filter(|o| o.kind == kind && len.is_none_or(|len| o.len == len)).count()
    };
    // Steps: an option or a NOP each, to the end of the list or to what is none.
    let (mut at, mut steps) = (0, 0);
    while let Some(kind) = all.get(at) {
        let option = walked.iter().find(|o| o.at == at);
        at += match (kind, option) {
            (1, _) => 1,
            (_, Some(option)) => option.len,
            _ => break,
        };
        steps += 1;
    }
    let is_short = if at < all.len() { steps < 20 } else { steps <= 20 };
    is_short && of(options::SACK, None) <= 1 && of(options::TIMESTAMPS, Some(10)) <= 1
}

fn compare(packets: usize, seed: u64, alone: bool) {
    const PER_FLOW: usize = 50;
    with_lane(|lane| {
        lane.set_alive(!alone);
        let mut random = Random::new(seed);
        let mut all_taken = 0;
        for round in 0..packets / PER_FLOW {
            let how = translation(&mut random, BOTH[round % 2]);
            let flow = lane.put(&how);
            let mut taken = [(0, 0); 2];
            for _ in 0..PER_FLOW {
                let way = WAYS[random.below(2) as usize];
                let frame = packet(&mut random, &how, way);
                // Without a worker, a SYN may end the lane of its flow.
                if alone && [47, 67].into_iter().any(|at| frame.get(at).is_some_and(|f| f & SYN != 0)) {
                    continue;
                }
                let trial = lane.run(way, &frame);
                let is_taken = trial.action == REDIRECT && trial.frame != frame;
                let what = || format!("{way:?}, seed {seed}, round {round}: {how:?} {frame:02x?}");
                assert_eq!(is_taken, is_for_lane(&how, way, &frame, alone), "{}", what());
                if !is_taken {
                    assert_eq!(trial.frame, frame, "{}", what());
                    continue;
                }
                let meta = meta_of(&frame).unwrap();
                let (sent, behind) = trial.frame.split_at(usize::from(meta.end));
                assert_eq!(sent, by_worker(&how, way, &frame), "{}", what());
                assert_eq!(behind, &frame[sent.len()..], "{}", what());
                let counts = &mut taken[way as usize];
                *counts = (counts.0 + 1, counts.1 + u64::from(meta.payload_len()));
                all_taken += 1;
            }
            let seen = lane.express.take(flow.client, flow.server).unwrap();
            let counted = seen.map(|seen| seen.map_or((0, 0), |seen| (seen.packets, seen.bytes)));
            assert_eq!(counted, taken, "seed {seed}, round {round}");
        }
        assert!(all_taken > packets / 3, "{all_taken} of {packets} were for the lane");
    });
}

#[test]
fn random_packets_come_out_as_from_a_worker_and_plain_ones_all_do() {
    compare(80_000, 1, false);
}

#[test]
fn random_packets_without_a_worker_come_out_as_from_one_the_last_ones_too() {
    compare(30_000, 2, true);
}
