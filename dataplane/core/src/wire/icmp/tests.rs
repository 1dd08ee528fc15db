use super::*;
use crate::parse::{Parsed, parse};
use crate::tcp::translate::tests::{Packet, error, ethernet, ip_header, legs};

const BOTH: [bool; 2] = [false, true];

fn read_error(bytes: &[u8]) -> Option<IcmpMeta> {
    match parse(bytes) {
        Ok(Parsed::Icmp(meta)) => Some(meta),
        Ok(Parsed::NotTcp) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn kinds_are_those_of_the_family() {
    let too_big = IcmpKind::TooBig { mtu: 1_400 };
    for (v6, kind, code, rest, expected) in [
        (false, 3, 1, 0, Some(IcmpKind::Unreachable { code: 1 })),
        (false, 3, 4, 1_400, Some(too_big)),
        (false, 11, 0, 0, Some(IcmpKind::TimeExceeded)),
        (false, 12, 0, 0, Some(IcmpKind::Parameter)),
        (false, 0, 0, 0, None),
        (false, 4, 0, 0, None),
        (false, 5, 1, 0, None),
        (false, 8, 0, 0, None),
        (true, 1, 4, 0, Some(IcmpKind::Unreachable { code: 4 })),
        (true, 2, 0, 1_400, Some(too_big)),
        (true, 3, 0, 0, Some(IcmpKind::TimeExceeded)),
        (true, 4, 1, 0, Some(IcmpKind::Parameter)),
        (true, 128, 0, 0, None),
        (true, 135, 0, 0, None),
        (true, 137, 0, 0, None),
    ] {
        let quoted = Packet::new(legs(v6).1);
        let bytes = error(None, &quoted, (kind, code, rest), 1_000);
        let read = read_error(&bytes);
        assert_eq!(read.map(|m| m.kind), expected, "{v6} {kind} {code}");
        let Some(meta) = read else { continue };
        assert_eq!((meta.quoted, meta.seq, meta.dst), (quoted.tuple, Seq(7_000), quoted.tuple.src.addr));
        assert_eq!((meta.sum(&bytes), usize::from(meta.end), meta.v6), (0xffff, bytes.len(), v6));
    }
}

#[test]
fn errors_that_the_kernel_ends_a_connect_for_are_hard() {
    for (v6, kind, code, hard) in [
        (false, 3, 0, true),
        (false, 3, 3, true),
        (false, 3, 4, false),
        (false, 3, 13, true),
        (false, 3, 15, true),
        (false, 3, 16, false),
        (false, 11, 0, true),
        (false, 12, 0, true),
        (true, 1, 0, true),
        (true, 1, 4, true),
        (true, 2, 0, false),
        (true, 3, 0, true),
        (true, 4, 0, true),
    ] {
        let meta = read_error(&error(None, &Packet::new(legs(v6).1), (kind, code, 1_400), 100)).unwrap();
        assert_eq!(meta.is_hard(), hard, "{v6} {kind} {code}");
    }
}

#[test]
fn quote_of_eight_octets_is_enough_and_of_less_is_not() {
    for v6 in BOTH {
        let quoted = Packet::new(legs(v6).1);
        let kind = if v6 { (1, 0, 0) } else { (3, 0, 0) };
        for len in 0..30 {
            let read = read_error(&error(None, &quoted, kind, len));
            assert_eq!(read.map(|m| m.quoted_len()), (len >= 8).then_some(len.min(27)), "{v6} {len}");
        }
    }
}

#[test]
fn quote_behind_options_and_extension_headers_is_found() {
    let v4 = Packet { between: vec![7, 7, 4, 0, 0, 0, 0, 0], ..Packet::new(legs(false).1) };
    let meta = read_error(&error(None, &v4, (3, 0, 0), 20)).unwrap();
    assert_eq!((meta.quoted, meta.quoted_l4 - meta.quote), (v4.tuple, 28));
    let chain =
        [&[60, 0, 1, 4, 0, 0, 0, 0][..], &[44, 0, 1, 4, 0, 0, 0, 0], &[6, 0, 0, 1, 0, 0, 0, 9]].concat();
    let v6 = Packet { between: chain, extension: 0, ..Packet::new(legs(true).1) };
    let meta = read_error(&error(None, &v6, (1, 0, 0), 20)).unwrap();
    assert_eq!((meta.quoted, meta.quoted_l4 - meta.quote), (v6.tuple, 64));
}

#[test]
fn quote_with_too_many_extension_headers_is_not_followed() {
    for (headers, found) in [(MAX_EXTENSION_HEADERS, true), (MAX_EXTENSION_HEADERS + 1, false)] {
        let mut chain = [60, 0, 1, 4, 0, 0, 0, 0].repeat(headers);
        let last = chain.len() - 8;
        chain[last] = 6;
        let packet = Packet { between: chain, extension: 60, ..Packet::new(legs(true).1) };
        assert_eq!(read_error(&error(None, &packet, (1, 0, 0), 20)).is_some(), found);
    }
}

#[test]
fn quotes_of_later_fragments_are_not_ours() {
    let at = 14 + 20 + 8 + 6;
    for (word, found) in [([0x20, 0], true), ([0x40, 0], true), ([0, 1], false), ([0x1f, 0xff], false)] {
        let mut bytes = error(None, &Packet::new(legs(false).1), (3, 0, 0), 20);
        bytes[at..at + 2].copy_from_slice(&word);
        assert_eq!(read_error(&bytes).is_some(), found, "{word:?}");
    }
    for (word, found) in [([0, 1], true), ([0, 0], true), ([0, 8], false), ([0xff, 0xf9], false)] {
        let fragment = vec![6, 0, word[0], word[1], 0, 0, 0, 9];
        let packet = Packet { between: fragment, extension: 44, ..Packet::new(legs(true).1) };
        assert_eq!(read_error(&error(None, &packet, (1, 0, 0), 20)).is_some(), found, "{word:?}");
    }
}

#[test]
fn quotes_of_what_is_not_tcp_and_errors_in_fragments_are_not_ours() {
    for v6 in BOTH {
        let kind = if v6 { (1, 0, 0) } else { (3, 0, 0) };
        let good = error(None, &Packet::new(legs(v6).1), kind, 20);
        let quote = if v6 { 14 + 40 + 8 } else { 14 + 20 + 8 };
        for (at, value) in [(quote + if v6 { 6 } else { 9 }, 17), (quote, 0x55), (quote, 0)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert_eq!(read_error(&bytes), None, "{v6} {at} {value}");
        }
    }
    let mut mapped = error(None, &Packet::new(legs(true).1), (1, 0, 0), 20);
    mapped[14 + 40 + 8 + 8..][..16].copy_from_slice(&Addr::v4([10, 0, 0, 1]).0);
    assert_eq!(read_error(&mapped), None);
    // The error itself in pieces.
    let whole = error(None, &Packet::new(legs(true).1), (1, 0, 0), 20);
    let piece = [&[58, 0, 0, 1, 0, 0, 0, 9][..], &whole[54..]].concat();
    let (src, dst) = (legs(true).1.dst.addr, legs(true).1.src.addr);
    let ip = ip_header(&src, &dst, 44, 0, &piece, 0);
    assert_eq!(read_error(&ethernet(true, &[ip, piece].concat())), None);
    let body = error(None, &Packet::new(legs(false).1), (3, 0, 0), 20)[34..].to_vec();
    let mut ip = ip_header(&legs(false).1.dst.addr, &legs(false).1.src.addr, 1, 0, &body, 0);
    // More fragments; the sum stays by taking as much from the identification.
    (ip[6], ip[4]) = (0x60, 0xab - 0x20);
    assert_eq!(read_error(&ethernet(false, &[ip, body].concat())), None);
}
