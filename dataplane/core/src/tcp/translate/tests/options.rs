//! SACK blocks and timestamps.

use super::*;
use crate::tcp::options::{Timestamps, timestamps};

fn sack(blocks: &[(u32, u32)]) -> Vec<u8> {
    let mut option = vec![5, 2 + 8 * blocks.len() as u8];
    for (left, right) in blocks {
        option.extend(left.to_be_bytes());
        option.extend(right.to_be_bytes());
    }
    option
}

fn stamps(val: u32, ecr: u32) -> Vec<u8> {
    [&[8, 10][..], &val.to_be_bytes(), &ecr.to_be_bytes()].concat()
}

fn padded(parts: &[&[u8]]) -> Vec<u8> {
    let mut options = parts.concat();
    options.resize(options.len().next_multiple_of(4), 1);
    options
}

fn up(how: &mut Translation, options: &[u8]) -> Vec<u8> {
    let packet = Packet { options: options.to_vec(), ..Packet::new(how.client) };
    let (frame, out) = to_server(how, &packet);
    out.options_of(frame.data()).to_vec()
}

fn down(how: &mut Translation, packet: &Packet) -> Vec<u8> {
    let (frame, out) = to_client(how, packet, Nanos::from_millis(5));
    out.options_of(frame.data()).to_vec()
}

fn no_timestamps() -> Translation {
    Translation { timestamps: TimestampMode::None, ..translation(false) }
}

#[test]
fn blocks_of_the_client_are_the_servers_wherever_the_option_stands() {
    let mut how = no_timestamps();
    let of = |n: u32| n.wrapping_add(how.delta);
    let given = sack(&[(of(5_100), of(5_200)), (of(9_000), of(9_900))]);
    for before in [&[][..], &[1], &[1, 1], &[3, 3, 7]] {
        let expected = padded(&[before, &sack(&[(5_100, 5_200), (9_000, 9_900)])]);
        assert_eq!(up(&mut how, &padded(&[before, &given])), expected);
    }
}

#[test]
fn blocks_before_the_servers_stream_are_removed() {
    let of = |n: u32| n.wrapping_add(no_timestamps().delta);
    let block = |left, right| (of(left), of(right));
    // A D-SACK of what another server sent, one that ends at the base, one across it, one behind it.
    for (given, kept) in [
        (vec![block(4_000, 4_100), block(6_000, 6_100)], vec![(6_000, 6_100)]),
        (vec![block(6_000, 6_100), block(4_000, 5_000)], vec![(6_000, 6_100)]),
        (vec![block(4_900, 5_001)], vec![(5_000, 5_001)]),
        (vec![block(5_000, 5_010)], vec![(5_000, 5_010)]),
        (vec![block(3_000_000_000, 3_000_000_100)], vec![(3_000_000_000, 3_000_000_100)]),
    ] {
        let mut expected = padded(&[&[1, 1], &sack(&kept)]);
        expected.resize(4 + 8 * given.len(), 1);
        assert_eq!(up(&mut no_timestamps(), &padded(&[&[1, 1], &sack(&given)])), expected, "{given:?}");
    }
    assert_eq!(up(&mut no_timestamps(), &padded(&[&sack(&[block(4_000, 4_100)])])), [1; 12]);
}

#[test]
fn blocks_are_nops_when_the_server_has_no_sack() {
    let mut how = Translation { sack: false, delta: 0, ..no_timestamps() };
    assert_eq!(up(&mut how, &padded(&[&[2, 4, 5, 0], &sack(&[(1, 2)])])), padded(&[&[2, 4, 5, 0], &[1; 10]]));
}

#[test]
fn sack_option_of_an_impossible_length_is_a_nop() {
    for len in [2, 3, 9, 11, 17] {
        let option = [&[5, len][..], &vec![7; usize::from(len) - 2]].concat();
        let options = padded(&[&option]);
        assert_eq!(up(&mut no_timestamps(), &options), vec![1; options.len()]);
    }
}

#[test]
fn options_that_cannot_be_walked_stay() {
    for options in
        [vec![5, 40, 0, 0], vec![8, 0, 1, 1], vec![1, 1, 1, 8], vec![0, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
    {
        assert_eq!(up(&mut translation(false), &options), options);
    }
}

#[test]
fn blocks_of_the_server_below_the_clients_stream_are_removed() {
    let mut how = Translation { prefix: 100, ..no_timestamps() };
    let options = padded(&[&[1, 1], &sack(&[(900, 1_000), (950, 1_200), (1_500, 1_600)])]);
    let packet = Packet { options, ack: 1_000, ..Packet::new(how.server.reversed()) };
    let expected = padded(&[&[1, 1], &sack(&[(1_000, 1_200), (1_500, 1_600)]), &[1; 8]]);
    assert_eq!(down(&mut how, &packet), expected);
    let mut how = no_timestamps();
    assert_eq!(down(&mut how, &packet), packet.options);
}

#[test]
fn clocks_are_shifted_in_any_layout() {
    let mut how = Translation { acked: true, ..translation(true) };
    for before in [&[][..], &[1], &[1, 1], &[3, 3, 7]] {
        let sent = padded(&[before, &stamps(42, 71_000)]);
        assert_eq!(up(&mut how, &sent), padded(&[before, &stamps(42, 1_000)]));
        let answer =
            Packet { options: padded(&[before, &stamps(1_000, 42)]), ..Packet::new(how.server.reversed()) };
        assert_eq!(down(&mut how, &answer), padded(&[before, &stamps(71_000, 42)]));
    }
}

#[test]
fn echo_is_not_before_the_syn_ack_until_payload_is_acknowledged() {
    let mut how = translation(false);
    assert_eq!(up(&mut how, &padded(&[&stamps(42, 70_100)])), padded(&[&stamps(42, 900)]));
    assert_eq!(up(&mut how, &padded(&[&stamps(42, 71_100)])), padded(&[&stamps(42, 1_100)]));
    let acknowledgment = Packet { ack: 1_001, ..Packet::new(how.server.reversed()) };
    to_client(&mut how, &acknowledgment, Nanos(0));
    assert_eq!(up(&mut how, &padded(&[&stamps(42, 70_100)])), padded(&[&stamps(42, 100)]));
}

#[test]
fn echo_without_ack_stays() {
    let mut how = translation(false);
    let options = padded(&[&stamps(42, 0)]);
    let rst = Packet { flags: 0x04, options: options.clone(), ..Packet::new(how.client) };
    let (frame, out) = to_server(&mut how, &rst);
    assert_eq!(out.options_of(frame.data()), options);
}

fn client_only(v6: bool) -> Translation {
    Translation {
        timestamps: TimestampMode::ClientOnly { base: 800, echo: 40, narrow: false },
        ..translation(v6)
    }
}

#[test]
fn promised_timestamps_go_no_further_and_come_back() {
    for v6 in [false, true] {
        let mut how = client_only(v6);
        assert_eq!(up(&mut how, &padded(&[&[1, 1], &stamps(42, 7)])), [1; 12]);
        // An older segment comes late.
        assert_eq!(up(&mut how, &padded(&[&[1, 1], &stamps(41, 7)])), [1; 12]);
        for len in [0, 1, 7, 1_400] {
            let packet =
                Packet { payload: vec![0xa5; len], padding: 6, ..Packet::new(how.server.reversed()) };
            let (frame, out) = to_client(&mut how, &packet, Nanos::from_millis(5));
            assert_eq!(timestamps(out.options_of(frame.data())), Some(Timestamps { val: 805, ecr: 42 }));
            assert_eq!(frame.data().len(), packet.bytes().len() - 6 + 12);
        }
    }
}

/// What IPv6 cannot tell a server to make smaller goes as it is, and what has room, or can be told, with the option.
#[test]
fn full_segments_of_a_way_that_has_no_room_for_promised_timestamps_go_without_them() {
    for v6 in [false, true] {
        let heads = if v6 { 60 } else { 40 };
        for (told, ip_len, grows) in [
            (None, 1_280, true),
            (Some(1_292), 1_280, true),
            (Some(1_291), 1_280, !v6),
            (Some(1_280), 1_280, !v6),
            (Some(1_280), 1_269, !v6),
            (Some(1_280), 1_268, true),
            (Some(1_280), 1_281, true),
            (Some(1_280), heads, true),
        ] {
            let mut how = client_only(v6);
            how.note_way_to_client(told.unwrap_or(1_500));
            let payload = vec![0xa5; ip_len - heads];
            let packet = Packet { payload, ..Packet::new(how.server.reversed()) };
            let (frame, out) = to_client(&mut how, &packet, Nanos::from_millis(5));
            let seen = timestamps(out.options_of(frame.data()));
            assert_eq!(seen.is_some(), grows, "{v6} {told:?} {ip_len}");
            assert_eq!(usize::from(out.ip_len()), ip_len + if grows { 12 } else { 0 });
        }
    }
}

#[test]
fn promised_timestamps_overwrite_those_of_a_server_that_was_not_asked() {
    let mut how = client_only(false);
    let packet = Packet { options: padded(&[&stamps(1, 2)]), ..Packet::new(how.server.reversed()) };
    assert_eq!(down(&mut how, &packet), padded(&[&stamps(805, 40)]));
}

#[test]
fn promised_timestamps_take_the_place_of_nops_and_of_the_last_block() {
    let mut how = client_only(true);
    let blocks = [(2_000, 2_100), (3_000, 3_100), (4_000, 4_100), (5_000, 5_100)];
    let packet = Packet { options: padded(&[&[1, 1], &sack(&blocks)]), ..Packet::new(how.server.reversed()) };
    let expected = padded(&[&[1, 1], &stamps(805, 40), &sack(&blocks[..3])]);
    assert_eq!(down(&mut how, &packet), expected);
    let three = Packet { options: padded(&[&[1, 1], &sack(&blocks[..3])]), ..packet };
    assert_eq!(down(&mut how, &three), padded(&[&[1, 1], &stamps(805, 40), &[1, 1], &sack(&blocks[..3])]));
}

#[test]
fn promised_timestamps_without_room_are_refused() {
    let mut how = client_only(false);
    let full = Packet { options: [&[30, 40][..], &[0; 38]].concat(), ..Packet::new(how.server.reversed()) };
    let long = Packet { payload: vec![0; 1_500], ..Packet::new(how.server.reversed()) };
    for (packet, capacity) in [(full, 2_048), (long.clone(), 54 + 1_500 + 11)] {
        let mut frame = HeapFrame::from_packet(&packet.bytes(), capacity);
        let meta = meta_of(&frame);
        assert_eq!(how.to_client(&mut frame, &meta, Nanos(0)), Err(DropReason::Untranslatable));
    }
    let mut frame = HeapFrame::from_packet(&long.bytes(), 54 + 1_500 + 12);
    let meta = meta_of(&frame);
    assert!(how.to_client(&mut frame, &meta, Nanos(0)).is_ok());
}
