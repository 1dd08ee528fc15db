//! Addresses, numbers, windows, ECN, and properties of random segments.

use super::*;

const BOTH: [bool; 2] = [false, true];

/// A random segment of `tuple`, with options that are often well-formed.
fn random_packet(random: &mut Random, tuple: Tuple) -> Packet {
    let mut options = match random.below(4) {
        0 => Vec::new(),
        1 => [&[1, 1, 8, 10][..], &random.bytes(8)].concat(),
        2 => {
            let blocks = 1 + random.below(3);
            let sack = [&[5, 2 + 8 * blocks as u8][..], &random.bytes(8 * blocks)].concat();
            let stamps = [&[8, 10][..], &random.bytes(8)].concat();
            if random.one_in(2) { [sack, stamps].concat() } else { [vec![1], stamps, sack].concat() }
        }
        _ => {
            let len = random.below(40);
            random.bytes(len)
        }
    };
    options.truncate(40);
    options.resize(options.len().next_multiple_of(4), 1);
    let v6 = !tuple.src.addr.is_v4();
    let (extension, between) = match (random.below(3), v6) {
        (0, false) => (0, vec![7, 7, 4, 0, 0, 0, 0, 0]),
        (0, true) => (60, [&[6, 1][..], &random.bytes(14)].concat()),
        (1, true) => (43, [&[6, 2, 4, 0][..], &random.bytes(20)].concat()),
        _ => (0, Vec::new()),
    };
    let len = random.below(120);
    Packet {
        between,
        extension,
        class: random.draw() as u8,
        seq: random.draw() as u32,
        ack: random.draw() as u32,
        flags: [0x10, 0x18, 0x11, 0x04, 0x14, 0x12, 0x02, 0xd0, 0x30][random.below(9)],
        window: random.draw() as u16,
        urgent: random.draw() as u16,
        options,
        payload: random.bytes(len),
        padding: random.below(3) * 3,
        damage: if random.one_in(4) { 1 + random.below(0xfffe) as u16 } else { 0 },
        ..Packet::new(tuple)
    }
}

fn random_translation(random: &mut Random, v6: bool) -> Translation {
    let timestamps = match random.below(3) {
        0 => TimestampMode::None,
        1 => TimestampMode::Both { offset: random.draw() as u32, first: random.draw() as u32 },
        _ => TimestampMode::ClientOnly {
            base: random.draw() as u32,
            echo: random.draw() as u32,
            narrow: false,
        },
    };
    Translation {
        delta: random.draw() as u32,
        start: Seq(random.draw() as u32),
        prefix: random.below(200) as u32,
        base: Seq(random.draw() as u32),
        timestamps,
        sack: random.one_in(2),
        shift_to_client: random.below(29) as i8 - 14,
        shift_to_server: random.below(29) as i8 - 14,
        ecn: random.one_in(2),
        ..translation(v6)
    }
}

#[test]
fn random_segments_come_out_as_said_with_checksums_as_before() {
    let mut random = Random(11);
    for round in 0..40_000 {
        let v6 = round % 2 == 0;
        let mut how = random_translation(&mut random, v6);
        let up = random_packet(&mut random, how.client);
        to_server(&mut how, &up);
        let down = random_packet(&mut random, how.server.reversed());
        let mut frame = down.frame();
        let meta = meta_of(&frame);
        match how.to_client(&mut frame, &meta, Nanos(random.draw())) {
            Ok(out) => check(&frame, &out, &down),
            Err(reason) => assert!(reason == DropReason::Untranslatable && down.options.len() > 28),
        }
    }
}

#[test]
fn identity_touches_no_octet() {
    let mut random = Random(12);
    for round in 0..10_000 {
        let v6 = round % 2 == 0;
        let mut how = identity(v6);
        if random.one_in(2) {
            how.timestamps = TimestampMode::None;
        }
        let (up, down) =
            (random_packet(&mut random, how.client), random_packet(&mut random, how.server.reversed()));
        let (there, _) = to_server(&mut how, &up);
        assert_eq!(there.data(), up.bytes());
        let (back, _) = to_client(&mut how, &down, Nanos(0));
        assert_eq!(back.data(), down.bytes());
    }
}

#[test]
fn both_forms_of_a_zero_checksum_survive_the_identity() {
    for v6 in BOTH {
        let mut how = identity(v6);
        let mut packet = Packet::new(how.client);
        // The urgent pointer takes up the rest of the sum, so that the checksum is 0.
        packet.urgent = checksums(&packet.frame(), &meta_of(&packet.frame())).0;
        assert_eq!(checksums(&packet.frame(), &meta_of(&packet.frame())), (0, 0));
        packet.damage = 0xffff;
        let (frame, _) = to_server(&mut how, &packet);
        assert_eq!(frame.data(), packet.bytes());
    }
}

#[test]
fn segment_of_the_client_is_the_servers() {
    for v6 in BOTH {
        let mut how = translation(v6);
        let packet = Packet { ack: how.delta.wrapping_add(5_500), ..Packet::new(how.client) };
        let (_, out) = to_server(&mut how, &packet);
        assert_eq!((out.tuple, out.seq, out.ack, out.window), (how.server, Seq(7_000), Seq(5_500), 4_000));
    }
}

#[test]
fn segment_of_the_server_is_the_clients() {
    for v6 in BOTH {
        let mut how = translation(v6);
        let packet = Packet { seq: 5_000, ack: 1_010, ..Packet::new(how.server.reversed()) };
        let (_, out) = to_client(&mut how, &packet, Nanos(0));
        assert_eq!((out.tuple, out.seq), (how.client.reversed(), Seq(5_000).add(how.delta)));
        assert_eq!((out.ack, out.window), (Seq(1_010), 125));
        assert!(how.acked);
    }
}

#[test]
fn segment_without_ack_keeps_the_field() {
    let mut how = translation(false);
    let rst = Packet { flags: 0x04, ack: 0, payload: Vec::new(), ..Packet::new(how.client) };
    assert_eq!(to_server(&mut how, &rst).1.ack, Seq(0));
    let rst = Packet { flags: 0x04, ack: 0, ..Packet::new(how.server.reversed()) };
    how.prefix = 2_000;
    assert_eq!(to_client(&mut how, &rst, Nanos(0)).1.ack, Seq(0));
    assert!(!how.acked);
}

#[test]
fn sequence_wraps_inside_a_segment() {
    let mut how = translation(true);
    let packet =
        Packet { seq: 3_u32.wrapping_sub(how.delta).wrapping_sub(7), ..Packet::new(how.server.reversed()) };
    let (_, out) = to_client(&mut how, &packet, Nanos(0));
    assert_eq!((out.seq, out.seq_end()), (Seq(u32::MAX - 3), Seq(3)));
}

#[test]
fn windows_shift_and_saturate() {
    for (window, by, expected) in [
        (500, 0, 500),
        (500, 3, 4_000),
        (9_000, 3, 65_535),
        (500, -3, 62),
        (7, -3, 0),
        (1, 14, 16_384),
        (0, 14, 0),
    ] {
        assert_eq!(shift(window, by), expected, "{window} {by}");
    }
    assert_eq!((shift(1, i8::MAX), shift(65_535, i8::MIN)), (65_535, 0));
}

#[test]
fn window_of_a_syn_is_not_shifted() {
    let mut how = translation(false);
    let packet = Packet { flags: 0x12, payload: Vec::new(), ..Packet::new(how.server.reversed()) };
    assert_eq!(to_client(&mut how, &packet, Nanos(0)).1.window, 500);
    let packet = Packet { tuple: how.client, ..packet };
    assert_eq!(to_server(&mut how, &packet).1.window, 500);
}

#[test]
fn acknowledged_prefix_is_not_shown_to_the_client() {
    for v6 in BOTH {
        let mut how = Translation { prefix: 300, shift_to_client: 0, ..translation(v6) };
        // 300 octets of the prefix are missing: 3 units of 128 octets, rounded up.
        let packet = Packet { ack: 700, ..Packet::new(how.server.reversed()) };
        let (_, out) = to_client(&mut how, &packet, Nanos(0));
        assert_eq!((out.ack, out.window), (Seq(1_000), 497));
        // In a SYN-ACK the window counts octets.
        let syn_ack = Packet { flags: 0x12, payload: Vec::new(), ..packet.clone() };
        let (_, opened) = to_client(&mut how, &syn_ack, Nanos(0));
        assert_eq!((opened.ack, opened.window), (Seq(1_000), 200));
        let nothing_open = Packet { window: 2, ..packet.clone() };
        assert_eq!(to_client(&mut how, &nothing_open, Nanos(0)).1.window, 0);
        let (_, whole) = to_client(&mut how, &Packet { ack: 1_000, ..packet.clone() }, Nanos(0));
        assert_eq!((whole.ack, whole.window, how.acked), (Seq(1_000), 500, false));
        let (_, more) = to_client(&mut how, &Packet { ack: 1_001, ..packet.clone() }, Nanos(0));
        assert_eq!((more.ack, how.acked), (Seq(1_001), true));
        // 2^32 octets later the same numbers are payload.
        assert_eq!(to_client(&mut how, &packet, Nanos(0)).1.ack, Seq(700));
    }
}

#[test]
fn ecn_that_was_not_agreed_ends_here() {
    for v6 in BOTH {
        let mut how = Translation { ecn: false, ..translation(v6) };
        let packet = Packet { flags: 0xd8, class: 0xab, ..Packet::new(how.client) };
        let (frame, out) = to_server(&mut how, &packet);
        assert_eq!(out.flags, TcpFlags(0x18));
        let word = get_u16(frame.data(), ETH_LEN).unwrap();
        let class = if v6 { word >> 4 } else { word } as u8;
        assert_eq!(class, 0xa8);
    }
}

#[test]
fn source_routed_segment_is_refused_only_when_addresses_change() {
    for v6 in BOTH {
        let mut how = translation(v6);
        let mut packet = Packet::new(how.client);
        if v6 {
            packet.extension = 43;
            packet.between = [&[6, 2, 4, 1][..], &[0; 20]].concat();
        } else {
            packet.between = vec![131, 7, 4, 10, 0, 0, 1, 0];
        }
        let mut frame = packet.frame();
        let meta = meta_of(&frame);
        assert_eq!(how.to_server(&mut frame, &meta, Nanos(0)), Err(DropReason::Untranslatable));
        assert_eq!(frame.data(), packet.bytes());
        how.server = how.client;
        to_server(&mut how, &packet);
    }
}

#[test]
fn leg_of_the_other_family_is_refused() {
    let mut how = Translation { server: translation(true).server, ..translation(false) };
    let mut frame = Packet::new(how.client).frame();
    let meta = meta_of(&frame);
    assert_eq!(how.to_server(&mut frame, &meta, Nanos(0)), Err(DropReason::Untranslatable));
}
