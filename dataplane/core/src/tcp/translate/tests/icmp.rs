//! ICMP errors about segments of either leg.

use super::*;
use crate::wire::icmp::{IcmpKind, IcmpMeta};

const BOTH: [bool; 2] = [false, true];
const ROUTERS: [&str; 2] = ["203.0.113.77", "2001:db8:99::77"];

fn meta(frame: &HeapFrame) -> IcmpMeta {
    match parse(frame.data()) {
        Ok(Parsed::Icmp(meta)) => meta,
        other => panic!("{other:?}"),
    }
}

fn router(v6: bool) -> Addr {
    Addr::from(ROUTERS[usize::from(v6)].parse::<std::net::IpAddr>().unwrap())
}

fn unreachable(v6: bool) -> (u8, u8, u32) {
    if v6 { (1, 3, 0) } else { (3, 1, 0) }
}

fn too_big(v6: bool, mtu: u32) -> (u8, u8, u32) {
    if v6 { (2, 0, mtu) } else { (3, 4, mtu) }
}

/// The error about `before` becomes exactly the error that a router would have sent about `after`.
fn becomes(
    before: (Option<Addr>, &Packet),
    after: (Option<Addr>, &Packet),
    mut what: impl FnMut(&mut HeapFrame, &IcmpMeta) -> IcmpMeta,
) {
    let v6 = !before.1.tuple.src.addr.is_v4();
    for len in (8..=60).chain([1_000]) {
        let padded = |bytes: Vec<u8>| [&bytes[..], &[0xee; 24]].concat();
        let bytes = padded(error(before.0, before.1, unreachable(v6), len));
        let mut frame = HeapFrame::from_packet(&bytes, 2048);
        let given = meta(&frame);
        let out = what(&mut frame, &given);
        let expected = padded(error(after.0, after.1, unreachable(v6), len));
        // An acknowledgment or a checksum that was cut in the middle cannot be rewritten.
        if !(9..12).contains(&len) && len != 17 {
            assert_eq!(frame.data(), expected, "{v6} {len}");
        }
        assert_eq!((meta(&frame), out.sum(frame.data())), (out, 0xffff), "{v6} {len}");
    }
}

#[test]
fn error_about_a_segment_to_the_server_is_one_about_the_clients() {
    for v6 in BOTH {
        let how = translation(v6);
        let options = vec![1, 1, 4, 2];
        let sent =
            Packet { options, ack: 5_500, between: between(v6), extension: 60, ..Packet::new(how.server) };
        let known = Packet { tuple: how.client, ack: how.delta.wrapping_add(5_500), ..sent.clone() };
        for (from, to) in [(Some(router(v6)), Some(router(v6))), (None, None)] {
            becomes((from, &sent), (to, &known), |frame, meta| how.icmp_to_client(frame, meta).unwrap());
        }
    }
}

#[test]
fn error_about_a_segment_to_the_client_is_one_about_the_servers() {
    for v6 in BOTH {
        let mut how = translation(v6);
        let seq = 6_000_u32.wrapping_add(how.delta);
        let sent = Packet {
            seq,
            ack: 1_100,
            between: between(v6),
            extension: 60,
            ..Packet::new(how.client.reversed())
        };
        let known = Packet { tuple: how.server.reversed(), seq: 6_000, ..sent.clone() };
        for (from, to) in [(Some(router(v6)), Some(router(v6))), (None, None)] {
            becomes((from, &sent), (to, &known), |frame, meta| how.icmp_to_server(frame, meta).unwrap());
        }
    }
}

fn between(v6: bool) -> Vec<u8> {
    if v6 { vec![6, 0, 1, 4, 0, 0, 0, 0] } else { vec![7, 7, 4, 0, 0, 0, 0, 0] }
}

#[test]
fn error_about_a_first_syn_keeps_its_ack_field() {
    for v6 in BOTH {
        let how = translation(v6);
        let syn = Packet { flags: 0x02, ack: 0, ..Packet::new(how.server) };
        let known = Packet { tuple: how.client, ..syn.clone() };
        let mut frame = HeapFrame::from_packet(&error(Some(router(v6)), &syn, unreachable(v6), 20), 2048);
        let given = meta(&frame);
        how.icmp_to_client(&mut frame, &given).unwrap();
        assert_eq!(frame.data(), error(Some(router(v6)), &known, unreachable(v6), 20));
    }
}

#[test]
fn error_with_a_wrong_checksum_keeps_it_wrong() {
    for v6 in BOTH {
        let how = translation(v6);
        let mut frame = HeapFrame::from_packet(
            &error(Some(router(v6)), &Packet::new(how.server), unreachable(v6), 20),
            2048,
        );
        let given = meta(&frame);
        let last = usize::from(given.end) - 1;
        frame.data_mut()[last] ^= 0x40;
        let out = how.icmp_to_client(&mut frame, &given).unwrap();
        assert_ne!(out.sum(frame.data()), 0xffff);
    }
}

#[test]
fn error_about_another_connection_is_refused_untouched() {
    for v6 in BOTH {
        let how = translation(v6);
        for tuple in [how.client, how.server.reversed(), how.client.reversed()] {
            let bytes = error(Some(router(v6)), &Packet::new(tuple), unreachable(v6), 20);
            let mut frame = HeapFrame::from_packet(&bytes, 2048);
            let given = meta(&frame);
            assert_eq!(how.icmp_to_client(&mut frame, &given), Err(DropReason::Untranslatable));
            assert_eq!(frame.data(), bytes);
        }
        // Addressed to somebody who did not send the quoted segment.
        let mut frame =
            HeapFrame::from_packet(&error(None, &Packet::new(how.server), unreachable(v6), 20), 2048);
        let mut given = meta(&frame);
        given.dst = router(v6);
        assert_eq!(how.icmp_to_client(&mut frame, &given), Err(DropReason::Untranslatable));
    }
}

#[test]
fn path_mtu_leaves_room_for_timestamps_that_are_inserted() {
    for v6 in BOTH {
        let timestamps = TimestampMode::ClientOnly { base: 0, echo: 0, narrow: false };
        for (mode, given, expected) in [
            (timestamps, 1_400, 1_388),
            (timestamps, 1_292, 1_280),
            // No sender of IPv6 takes it for less, and a router that says so is not put right.
            (timestamps, 1_291, if v6 { 1_280 } else { 1_279 }),
            (timestamps, 1_280, if v6 { 1_280 } else { 1_268 }),
            (timestamps, 0, 0),
            (translation(v6).timestamps, 1_400, 1_400),
        ] {
            let mut how = Translation { timestamps: mode, ..translation(v6) };
            let sent = Packet::new(how.client.reversed());
            let mut frame =
                HeapFrame::from_packet(&error(Some(router(v6)), &sent, too_big(v6, given), 40), 2048);
            let about = meta(&frame);
            let out = how.icmp_to_server(&mut frame, &about).unwrap();
            assert_eq!(out.kind, IcmpKind::TooBig { mtu: expected });
            assert_eq!((meta(&frame), out.sum(frame.data())), (out, 0xffff));
        }
    }
}
