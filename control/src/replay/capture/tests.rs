use std::io::Cursor;

use super::*;

/// A number in the byte order of a capture.
fn number(value: u32, big: bool) -> [u8; 4] {
    if big { value.to_be_bytes() } else { value.to_le_bytes() }
}

/// A pcap with packets of (seconds, fraction, octets on the wire, captured octets).
fn pcap(magic: u32, big: bool, linktype: u32, packets: &[(u32, u32, u32, &[u8])]) -> Vec<u8> {
    let mut file = number(magic, big).to_vec();
    file.extend(if big { [0, 2, 0, 4] } else { [2, 0, 4, 0] });
    for value in [0, 0, 65535, linktype] {
        file.extend(number(value, big));
    }
    for (seconds, fraction, wire, data) in packets {
        for value in [*seconds, *fraction, data.len() as u32, *wire] {
            file.extend(number(value, big));
        }
        file.extend(*data);
    }
    file
}

/// A block of a little-endian pcapng.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let len = number(padded as u32 + 12, false);
    let mut block = number(kind, false).to_vec();
    block.extend(len);
    block.extend(body);
    block.resize(8 + padded, 0);
    block.extend(len);
    block
}

fn section() -> Vec<u8> {
    let mut body = number(0x1a2b_3c4d, false).to_vec();
    body.extend([1, 0, 0, 0]);
    body.extend([0xff; 8]);
    block(0x0a0d_0d0a, &body)
}

/// An interface with its link type, if_tsresol and if_tsoffset.
fn interface(linktype: u16, resolution: u8, offset: i64) -> Vec<u8> {
    let mut body = linktype.to_le_bytes().to_vec();
    body.extend([0; 6]);
    body.extend([9, 0, 1, 0, resolution, 0, 0, 0, 14, 0, 8, 0]);
    body.extend(offset.to_le_bytes());
    body.extend([0; 4]);
    block(1, &body)
}

fn packet(interface: u32, time: u64, wire: u32, data: &[u8]) -> Vec<u8> {
    let mut body = number(interface, false).to_vec();
    for value in [(time >> 32) as u32, time as u32, data.len() as u32, wire] {
        body.extend(number(value, false));
    }
    body.extend(data);
    block(6, &body)
}

/// Frames up to the end or the first error, and that error's sentence.
fn read(file: Vec<u8>) -> (Vec<Frame>, Option<String>) {
    let mut frames = Vec::new();
    match Capture::new(Path::new("x.pcap"), Cursor::new(file)) {
        Err(error) => return (frames, Some(error.to_string())),
        Ok(capture) => {
            for frame in capture {
                match frame {
                    Ok(frame) => frames.push(frame),
                    Err(error) => return (frames, Some(error.to_string())),
                }
            }
        }
    }
    (frames, None)
}

fn frame(at: u64, bytes: &[u8], missing: u32) -> Frame {
    Frame { at: Nanos(at), bytes: bytes.to_vec(), missing }
}

#[test]
fn pcap_of_each_byte_order_and_precision_gives_frames() {
    for big in [false, true] {
        for (magic, nanos) in [(0xa1b2_c3d4, 7000), (0xa1b2_3c4d, 7)] {
            let file = pcap(magic, big, 1, &[(1, 7, 4, b"abcd"), (2, 0, 60, b"ef")]);
            let expected = vec![frame(1_000_000_000 + nanos, b"abcd", 0), frame(2_000_000_000, b"ef", 58)];
            assert_eq!(read(file), (expected, None), "{magic:x} {big}");
        }
    }
}

#[test]
fn pcapng_times_of_each_interface_are_in_its_units() {
    let file = [
        section(),
        interface(1, 6, 0),
        interface(1, 9, 10),
        interface(1, 0x80 | 10, -1),
        packet(0, 1_500_000, 3, b"abc"),
        packet(1, 1_500_000_001, 3, b"abc"),
        packet(2, 3 * 1024 + 512, 9, b"abcde"),
        block(5, &[0; 12]),
        // A simple packet has the time of the one before.
        block(3, b"\x02\0\0\0xy"),
        section(),
        interface(1, 6, 0),
        packet(0, 9_000_000, 1, b"z"),
    ]
    .concat();
    let expected = vec![
        frame(1_500_000_000, b"abc", 0),
        frame(11_500_000_001, b"abc", 0),
        frame(2_500_000_000, b"abcde", 4),
        frame(2_500_000_000, b"xy", 0),
        frame(9_000_000_000, b"z", 0),
    ];
    assert_eq!(read(file), (expected, None));
}

#[test]
fn packets_without_ethernet_get_its_header() {
    let four: &[u8] = &[0x45, 1, 2];
    let six: &[u8] = &[0x60, 1, 2];
    let sll = |ethertype: u16, packet: &[u8]| {
        [&[0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0][..], &ethertype.to_be_bytes(), packet].concat()
    };
    let sll2 = |ethertype: u16, packet: &[u8]| {
        [&ethertype.to_be_bytes(), &[0, 0, 0, 0, 0, 2, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0][..], packet]
            .concat()
    };
    let rows: Vec<(u32, Vec<u8>, u16, &[u8])> = vec![
        (0, [&[2, 0, 0, 0], four].concat(), 0x0800, four),
        (0, [&[0, 0, 0, 30], six].concat(), 0x86dd, six),
        (108, [&[0, 0, 0, 2], four].concat(), 0x0800, four),
        (101, four.to_vec(), 0x0800, four),
        (101, six.to_vec(), 0x86dd, six),
        (228, four.to_vec(), 0x0800, four),
        (229, six.to_vec(), 0x86dd, six),
        (113, sll(0x0800, four), 0x0800, four),
        (276, sll2(0x86dd, six), 0x86dd, six),
    ];
    for (linktype, data, ethertype, packet) in rows {
        let expected = [&[0; 12][..], &ethertype.to_be_bytes(), packet].concat();
        let file = pcap(0xa1b2_c3d4, false, linktype, &[(0, 0, data.len() as u32, &data)]);
        assert_eq!(read(file), (vec![frame(0, &expected, 0)], None), "link type {linktype}");
    }
}

#[test]
fn packet_cut_off_within_its_link_header_is_an_empty_frame() {
    for linktype in [0, 1, 101, 113, 276] {
        let file = pcap(0xa1b2_c3d4, false, linktype, &[(0, 0, 60, b"")]);
        assert_eq!(read(file), (vec![frame(0, b"", 60)], None), "link type {linktype}");
    }
    let file = pcap(0xa1b2_c3d4, false, 113, &[(0, 0, 60, b"abc")]);
    assert_eq!(read(file), (vec![frame(0, b"", 57)], None));
}

#[test]
fn packet_larger_than_the_buffer_is_read() {
    let big = vec![7; 5 * BUFFER];
    let file =
        pcap(0xa1b2_c3d4, false, 1, &[(0, 0, 1, b"a"), (0, 0, big.len() as u32, &big), (0, 0, 1, b"b")]);
    let (frames, error) = read(file);
    assert_eq!((frames.len(), error), (3, None));
    assert!(frames[1].bytes == big);
}

#[test]
fn capture_that_cannot_be_read_says_where_and_why() {
    let whole = pcap(0xa1b2_c3d4, false, 1, &[(1, 7, 4, b"abcd"), (2, 0, 2, b"ef")]);
    let cut = whole[..whole.len() - 1].to_vec();
    let wireless = pcap(0xa1b2_c3d4, false, 127, &[(1, 7, 4, b"abcd")]);
    let strange = pcap(0xa1b2_c3d4, false, 9999, &[(1, 7, 4, b"abcd")]);
    let mut endless = whole.clone();
    endless[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
    let homeless = [section(), packet(0, 0, 1, b"a")].concat();
    let rows = [
        (b"".to_vec(), 0, "neither a pcap nor a pcapng capture"),
        (
            b"\x1f\x8b\x08\0 compressed, as capture tools do".to_vec(),
            0,
            "compressed captures must be unpacked",
        ),
        (b"\xd4\xc3\xb2".to_vec(), 0, "neither a pcap nor a pcapng capture"),
        (cut, 1, "ends within packet 2"),
        (wireless, 0, "packet 1 was captured on IEEE 802.11 wireless LAN with radiotap (link type 127)"),
        (strange, 0, "an unknown link (link type 9999)"),
        (endless, 0, "packet 1"),
        (homeless, 0, "packet 1 belongs to an interface that the capture does not describe"),
    ];
    for (file, count, sentence) in rows {
        let (frames, error) = read(file);
        let error = error.unwrap_or_default();
        assert!(
            frames.len() == count && error.starts_with("x.pcap: ") && error.contains(sentence),
            "{error}"
        );
    }
    let error = Capture::open(Path::new("/nonexistent/x.pcap")).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/x.pcap: cannot be opened: No such file"), "{error}");
}

#[test]
fn capture_damaged_anywhere_never_panics() {
    let files = [
        pcap(0xa1b2_c3d4, false, 1, &[(1, 7, 4, b"abcd"), (2, 0, 2, b"ef")]),
        [section(), interface(1, 6, 0), packet(0, 1, 3, b"abc"), block(3, b"\x02\0\0\0xy")].concat(),
    ];
    for file in files {
        for at in 0..file.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = file.clone();
                damaged[at] = value;
                let _ = read(damaged);
            }
            let _ = read(file[..at].to_vec());
        }
    }
}
