//! Fragments: reassembled before anything looks at them, so that they are no way around a rule.

use weir_core::drop::{DropReason, PuntReason};
use weir_core::fragments::MAX_PIECES;
use weir_core::ids::Nanos;
use weir_tests::bench::{Bench, LAN, Moved, Setup, WAN, fib};
use weir_tests::hello::client_hello;
use weir_tests::packet::{BOTH, Family, RST, Seg, fragment, fragments_of};

const DROP: fn(DropReason) -> Moved = Moved::Drop;
const PUNT: Moved = Moved::Punt(PuntReason::NotIntercepted);

/// Gives fragments; all but the last are kept.
fn give_all(b: &mut Bench, pieces: &[Vec<u8>], moved: &[Moved]) -> weir_tests::bench::Came {
    let (last, before) = pieces.split_last().expect("pieces");
    for piece in before {
        assert!(b.give(LAN, piece, &[]).is_nothing());
    }
    b.give(LAN, last, moved)
}

#[test]
fn denied_client_hello_in_fragments_is_refused_in_any_order() {
    for family in BOTH {
        let orders: [&[usize]; 3] = [&[0, 1, 2], &[2, 1, 0], &[1, 2, 0]];
        for order in orders {
            let mut b = Bench::new(family);
            b.handshake();
            let seg = b.c(0).payload(client_hello("denied.example", 300));
            let pieces = seg.fragments(&[(0, 80), (80, 240), (240, usize::MAX)]);
            let pieces: Vec<_> = order.iter().map(|&at| pieces[at].clone()).collect();
            let came = give_all(&mut b, &pieces, &[Moved::Reset, DROP(DropReason::VerdictReset)]);
            assert!(came.to_server().iter().all(|s| s.flags & RST != 0 && s.payload.is_empty()));
            b.assert_idle();
        }
    }
}

#[test]
fn allowed_client_hello_in_fragments_goes_on_whole() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        let hello = client_hello("fine.example", 300);
        let pieces = b.c(0).payload(&hello).fragments(&[(0, 80), (80, usize::MAX)]);
        let sent = give_all(&mut b, &pieces, &[Moved::Allowed]).one_to_server();
        assert!(sent.sound);
        assert_eq!((sent.payload, sent.ttl), (hello, 63));
        b.assert_idle();
    }
}

#[test]
fn syn_in_fragments_opens_a_connection() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let pieces = b.syn().fragments(&[(0, 24), (24, usize::MAX)]);
        give_all(&mut b, &pieces, &[Moved::Opened]).one_to_server();
        b.wan(&b.syn_ack(), &[]);
    }
}

#[test]
fn reassembled_segment_that_does_not_fit_the_way_out_is_dropped() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup { fib: fib(1400), ..Setup::new() });
        let n = b.allowed();
        b.wan(&b.s(0, n), &[]);
        let pieces = b.c(n).payload(vec![7; 1500]).fragments(&[(0, 800), (800, usize::MAX)]);
        give_all(&mut b, &pieces, &[DROP(DropReason::FragmentTooBig)]);
        let pieces = b.c(n).payload(vec![7; 4090]).fragments(&[(0, 3000), (3000, usize::MAX)]);
        let twice = [DROP(DropReason::FragmentTooBig), DROP(DropReason::FragmentTooBig)];
        give_all(&mut b, &pieces, &twice);
        b.assert_idle();
    }
}

/// The whole datagram is discarded with each; each of its fragments is counted.
#[test]
fn fragments_that_contradict_each_other_are_discarded() {
    for family in BOTH {
        let whole = Bench::new(family).c(0).payload(vec![7; 300]);
        let tcp = whole.tcp();
        let piece = |start: usize, end: usize, more| fragment(&whole, start, &tcp[start..end], 6, more);
        let overlap = DropReason::FragmentOverlap;
        let bad = DropReason::BadFragment;
        let rows: Vec<(&str, Vec<Vec<u8>>, DropReason)> = vec![
            ("overlap", vec![piece(0, 80, true), piece(72, 160, true)], overlap),
            ("inside", vec![piece(0, 80, true), piece(16, 32, true)], overlap),
            ("beyond the end", vec![piece(80, 160, false), piece(160, 168, true)], overlap),
            ("two ends", vec![piece(80, 160, false), piece(160, 176, false)], overlap),
            ("end before others", vec![piece(80, 160, true), piece(8, 40, false)], overlap),
            ("tiny first", vec![piece(0, 16, true)], bad),
            ("odd length", vec![piece(0, 81, true)], bad),
            ("empty", vec![piece(0, 0, true)], bad),
            (
                "same place, other bytes",
                vec![piece(0, 80, true), fragment(&whole, 0, &[9; 80], 6, true)],
                overlap,
            ),
            ("beyond 64 KiB", vec![fragment(&whole, 65_528, &[9; 16], 6, false)], bad),
        ];
        for (name, pieces, reason) in rows {
            let mut b = Bench::new(family);
            b.handshake();
            let moved: Vec<_> = pieces.iter().map(|_| DROP(reason)).collect();
            assert!(give_all(&mut b, &pieces, &moved).is_nothing(), "{name}");
            b.assert_idle();
        }
        // A copy is no contradiction.
        let mut b = Bench::new(family);
        b.give(LAN, &piece(0, 80, true), &[]);
        b.give(LAN, &piece(0, 80, true), &[DROP(DropReason::FragmentDuplicate)]);
        assert_eq!(b.pipe.frames_held(), 1);
    }
}

#[test]
fn fragments_at_their_bounds_are_dropped_and_counted() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let whole = b.c(0).payload(vec![7; 2000]);
        let tcp = whole.tcp();
        // Pieces of one datagram.
        for n in 0..=MAX_PIECES {
            let at = 32 + n * 16;
            let bytes = fragment(&whole, at, &tcp[at..at + 8], 6, true);
            let all: Vec<_> = (0..=MAX_PIECES).map(|_| DROP(DropReason::FragmentFull)).collect();
            b.give(LAN, &bytes, if n == MAX_PIECES { &all } else { &[] });
        }
        b.assert_idle();
        // Datagrams, and the time they are kept.
        for id in 0..=8 {
            let seg = Seg { id: 100 + id, ..whole.clone() };
            let full = [DROP(DropReason::FragmentFull)];
            b.give(LAN, &seg.fragments(&[(0, 80)])[0], if id == 8 { &full } else { &[] });
        }
        assert_eq!(b.pipe.frames_held(), 8);
        b.wait(Nanos::from_secs(2), &[]);
        b.wait(Nanos::from_secs(1), &[DROP(DropReason::FragmentTimeout); 8]);
        b.assert_idle();
    }
}

#[test]
fn datagram_of_no_intercept_goes_on_in_its_pieces() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let mut seg = b.c(0).payload(vec![7; 200]);
        seg.dst.1 = 22;
        let pieces = seg.fragments(&[(0, 80), (80, usize::MAX)]);
        let came = give_all(&mut b, &pieces, &[PUNT, PUNT]);
        let out: Vec<_> = came.punt.into_iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(out, pieces);
        b.assert_idle();
    }
}

#[test]
fn pieces_from_two_ports_are_no_datagram() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        let pieces =
            b.c(0).payload(client_hello("denied.example", 0)).fragments(&[(0, 80), (80, usize::MAX)]);
        b.give(WAN, &pieces[0], &[]);
        b.give(LAN, &pieces[1], &[]);
        b.wait(Nanos::from_secs(4), &[DROP(DropReason::FragmentTimeout); 2]);
    }
}

#[test]
fn no_frame_for_the_whole_drops_the_pieces() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup { frames: 2, ..Setup::new() });
        let pieces = b.syn().fragments(&[(0, 24), (24, usize::MAX)]);
        give_all(&mut b, &pieces, &[DROP(DropReason::NoFrame); 2]);
        b.assert_idle();
    }
}

/// Behind the fragment header comes a destination options header, and only then TCP, or something else.
#[test]
fn ipv6_extension_header_inside_the_fragments_is_followed() {
    let mut b = Bench::new(Family::V6);
    b.handshake();
    let seg = b.c(0).payload(client_hello("denied.example", 0));
    let inner = |next: u8, data: &[u8]| [&[next, 0, 1, 4, 0, 0, 0, 0], data].concat();
    let pieces = fragments_of(&seg, &inner(6, &seg.tcp()), 60, &[(0, 80), (80, usize::MAX)]);
    give_all(&mut b, &pieces, &[Moved::Reset, DROP(DropReason::VerdictReset)]);
    let pieces = fragments_of(&seg, &inner(17, &[5; 200]), 60, &[(0, 80), (80, usize::MAX)]);
    let came = give_all(&mut b, &pieces, &[PUNT, PUNT]);
    assert_eq!(came.punt.len(), 2);
    // Not TCP, and larger than a frame: the kernel's all the same.
    let pieces = fragments_of(&seg, &inner(17, &[5; 5000]), 60, &[(0, 2504), (2504, usize::MAX)]);
    assert_eq!(give_all(&mut b, &pieces, &[PUNT, PUNT]).punt.len(), 2);
    // Fragments within fragments.
    let nested = [&[6, 0, 0, 1, 0, 0, 0, 9], &seg.tcp()[..]].concat();
    let pieces = fragments_of(&seg, &nested, 44, &[(0, 80), (80, usize::MAX)]);
    give_all(&mut b, &pieces, &[DROP(DropReason::BadFragment); 2]);
    b.assert_idle();
}

/// An unfragmented packet with a fragment header (RFC 6946), hop-by-hop and destination options around a ClientHello.
#[test]
fn ipv6_extension_headers_and_ipv4_options_are_no_way_around() {
    let hop = (0_u8, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    let routing = (43, vec![0, 0, 0, 0, 0, 0, 0, 0]);
    let atomic = (44, vec![0, 0, 0, 0, 0, 0, 0, 5]);
    let options = (60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let chains = [vec![hop.clone()], vec![atomic.clone()], vec![hop, routing, atomic, options.clone()]];
    for chain in chains {
        let mut b = Bench::new(Family::V6);
        b.handshake();
        let mut seg = b.c(0).payload(client_hello("denied.example", 0));
        seg.extensions = chain.clone();
        b.lan(&seg, &[Moved::Reset, DROP(DropReason::VerdictReset)]);
        let mut b = Bench::new(Family::V6);
        b.handshake();
        let mut seg = b.c(0).payload(client_hello("fine.example", 0));
        seg.extensions = chain;
        let frame = seg.frame();
        let came = b.lan(&seg, &[Moved::Allowed]);
        assert_eq!(came.tx[0].1[22..], frame[22..], "forwarded untouched");
    }
    let mut b = Bench::new(Family::V6);
    let mut seg = b.syn();
    seg.extensions = vec![options; 9];
    b.lan(&seg, &[DROP(DropReason::ExtensionHeaders)]);

    let mut b = Bench::new(Family::V4);
    b.handshake();
    let mut seg = b.c(0).payload(client_hello("denied.example", 0));
    seg.ip_options = vec![148, 4, 0, 0, 1, 1, 1, 1];
    b.lan(&seg, &[Moved::Reset, DROP(DropReason::VerdictReset)]);
    let mut b = Bench::new(Family::V4);
    b.handshake();
    let mut seg = b.c(0).payload(client_hello("fine.example", 0));
    seg.ip_options = vec![148, 4, 0, 0, 1, 1, 1, 1];
    let sent = b.lan(&seg, &[Moved::Allowed]);
    assert!(Seg::frame(&seg)[34..42] == sent.tx[0].1[34..42] && sent.one_to_server().sound);
}
