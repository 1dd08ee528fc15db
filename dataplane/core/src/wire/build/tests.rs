//! What weir builds is read back by its own parser and by etherparse.

use std::net::SocketAddr;

use etherparse::{PacketHeaders, TransportHeader};

use super::*;
use crate::frame::HeapFrame;
use crate::parse::{Parsed, parse};

const V4: (&str, &str) = ("10.0.0.1:5000", "192.0.2.1:443");
const V6: (&str, &str) = ("[2001:db8::1]:5000", "[fd00::1]:443");

fn tuple((src, dst): (&str, &str)) -> Tuple {
    let end = |s: &str| s.parse::<SocketAddr>().unwrap().into();
    Tuple { src: end(src), dst: end(dst) }
}

fn make(ends: (&str, &str), flags: u8, options: SegmentOptions) -> Segment {
    let (seq, ack) = (Seq(0xffff_fff0), Seq(7));
    Segment { tuple: tuple(ends), flags: TcpFlags(flags), seq, ack, window: 0x1234, options }
}

fn every_option() -> SegmentOptions {
    let timestamps = Some(Timestamps { val: 0x0102_0304, ecr: 0x0506_0708 });
    SegmentOptions { mss: Some(1460), window_scale: Some(7), sack: true, timestamps }
}

#[test]
fn segment_of_both_families_parses_as_what_was_asked_for() {
    for ends in [V4, V6] {
        for (flags, payload) in [(0x02, &b""[..]), (0x12, b""), (0x18, b"odd"), (0x10, b"even")] {
            let mut frame = HeapFrame::new(2048);
            frame.set_len(2048);
            frame.data_mut().fill(0xa5);
            let wanted = make(ends, flags, every_option());
            let meta = segment(&mut frame, &wanted, payload).unwrap();
            assert_eq!(meta.segment_sum(frame.data()), 0xffff, "{ends:?} {flags:#x}");
            assert_eq!(parse(frame.data()), Ok(Parsed::Tcp(meta)));
            assert_eq!(meta.payload_of(frame.data()), payload);
            let headers = PacketHeaders::from_ethernet_slice(frame.data()).unwrap();
            let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!("no TCP") };
            let got = (tcp.source_port, tcp.destination_port, tcp.sequence_number, tcp.window_size);
            assert_eq!(got, (5000, 443, 0xffff_fff0, 0x1234));
        }
    }
}

#[test]
fn options_are_laid_out_as_linux_lays_them_out() {
    let ts = every_option().timestamps;
    let (val, ecr) = ([1, 2, 3, 4], [5, 6, 7, 8]);
    let none = SegmentOptions::default();
    let table = [
        (0x02, none, vec![]),
        (0x02, every_option(), [&[2, 4, 5, 0xb4, 4, 2, 8, 10][..], &val, &ecr, &[1, 3, 3, 7]].concat()),
        (0x12, SegmentOptions { timestamps: ts, ..none }, [&[1, 1, 8, 10][..], &val, &ecr].concat()),
        (0x12, SegmentOptions { sack: true, ..none }, vec![1, 1, 4, 2]),
        (0x02, SegmentOptions { window_scale: Some(20), ..none }, vec![1, 3, 3, 14]),
        (0x02, SegmentOptions { mss: Some(536), sack: true, ..none }, vec![2, 4, 2, 0x18, 1, 1, 4, 2]),
        (0x10, every_option(), [&[1, 1, 8, 10][..], &val, &ecr].concat()),
        (0x10, SegmentOptions { timestamps: None, ..every_option() }, vec![]),
    ];
    for ends in [V4, V6] {
        for (flags, options, octets) in &table {
            let mut frame = HeapFrame::new(128);
            let meta = segment(&mut frame, &make(ends, *flags, *options), &[]).unwrap();
            assert_eq!(meta.options_of(frame.data()), octets, "{options:?}");
        }
    }
}

#[test]
fn segment_that_does_not_fit_is_not_written() {
    for (ends, len) in [(V4, 54 + 20 + 3), (V6, 74 + 20 + 3)] {
        let wanted = make(ends, 0x02, every_option());
        assert!(segment(&mut HeapFrame::new(len - 1), &wanted, b"abc").is_none());
        assert!(segment(&mut HeapFrame::new(len), &wanted, b"abc").is_some());
        assert!(segment(&mut HeapFrame::new(1 << 17), &wanted, &[0; 1 << 16]).is_none());
    }
}

#[test]
fn syn_with_header_extensions_is_answered_with_plain_headers() {
    for (ends, l4) in [(V4, 34), (V6, 54)] {
        let mut frame = HeapFrame::new(256);
        segment(&mut frame, &make(ends, 0x02, every_option()), b"early data").unwrap();
        put(frame.data_mut(), 0, &[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
        let syn = lengthen(&frame);
        let Ok(Parsed::Tcp(meta)) = parse(syn.data()) else { panic!("not TCP") };
        assert_eq!(meta.l4, l4 + 8);
        let mut frame = syn;
        let answer = syn_ack(&mut frame, &meta, Seq(99), 0xfaf0, &every_option()).unwrap();
        assert_eq!(parse(frame.data()), Ok(Parsed::Tcp(answer)));
        assert_eq!(answer.segment_sum(frame.data()), 0xffff);
        assert_eq!(frame.data()[..12], [2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]);
        assert_eq!((answer.l4, answer.ttl, answer.payload_len()), (l4, 64, 0));
        assert_eq!(answer.tuple, tuple(ends).reversed());
        assert_eq!(answer.flags, TcpFlags(0x12));
        assert_eq!((answer.seq, answer.ack, answer.window), (Seq(99), Seq(0xffff_fff1), 0xfaf0));
    }
}

/// The same packet with eight octets of IPv4 options (no-operations) or a destination options header (padding).
fn lengthen(frame: &HeapFrame) -> HeapFrame {
    let v6 = frame.data()[12..14] == [0x86, 0xdd];
    let at = if v6 { 54 } else { 34 };
    let mut bytes = frame.data().to_vec();
    bytes.splice(at..at, if v6 { [6, 0, 1, 4, 0, 0, 0, 0] } else { [1; 8] });
    if v6 {
        bytes[20] = 60;
        bytes[19] += 8;
    } else {
        (bytes[14], bytes[17]) = (0x47, bytes[17] + 8);
        bytes[24..26].fill(0);
        let sum = !checksum::fold(checksum::sum(&bytes[14..42], 0));
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    HeapFrame::from_packet(&bytes, 256)
}
