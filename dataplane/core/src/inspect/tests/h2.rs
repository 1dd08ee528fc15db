use super::*;
use crate::inspect::h2::PREFACE;

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, 1]);
    frame.extend(payload);
    frame
}

/// Preface, SETTINGS, and a header block in one frame.
fn request(block: &[u8]) -> Vec<u8> {
    [PREFACE, &frame(4, 0, &[0, 3, 0, 0, 0, 100]), &frame(1, 5, block)].concat()
}

/// RFC 7541 appendices C.3.1 and C.4.1: GET http://www.example.com/, plain and with Huffman.
const PLAIN: &[u8] = b"\x82\x86\x84\x41\x0fwww.example.com";
const HUFFMAN: &[u8] = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";

#[test]
fn header_block_of_each_kind_gives_its_name() {
    let rows: &[(&[u8], &str, &str)] = &[
        (PLAIN, "http", "www.example.com"),
        (HUFFMAN, "http", "www.example.com"),
        // Literals never indexed, not indexed, with the name spelled out; `host` in its place; a port.
        (b"\x11\x09a.example", "http", "a.example"),
        (b"\x01\x09a.example", "http", "a.example"),
        (b"\x00\x0a:authority\x0ca.example:80", "http", "a.example"),
        (b"\x66\x09a.example", "http", "a.example"),
        (b"\x0f\x17\x09a.example", "http", "a.example"),
        (b"\x00\x04host\x09a.example\x82", "http", "a.example"),
        (b"\x00\x83\x9c\xe8\x4f\x09a.example", "http", "a.example"),
        (b"\x3f\xe1\x1f\x82\x41\x09a.example", "http", "a.example"),
        (b"\x82\x84", "http", ""),
        (b"\x01\0", "http", ""),
        (b"\x41\x09a.example\x66\x09A.example", "http", "a.example"),
        // References to what the block itself added.
        (b"\x40\x01x\x01y\xbe\x41\x09a.example", "http", "a.example"),
        (b"\x40\x01x\x01y\x7e\x01z\x41\x09a.example", "http", "a.example"),
        (b"\x41\x09a.example\xbe", "other", ""),
        (b"\x41\x09a.example\x0f\x2f\x09b.example", "other", ""),
        (b"\xbe\x41\x09a.example", "other", ""),
        // Two that differ, and what is no name.
        (b"\x41\x09a.example\x66\x09b.example", "other", ""),
        (b"\x41\x09a.example\x41\x09b.example", "other", ""),
        (b"\x41\x0ame@a.exampl", "other", ""),
        (b"\x81", "other", ""),
        // Malformed.
        (b"\x80", "other", ""),
        (b"\x41\x20a.example", "other", ""),
        (b"\xff\xff\xff\xff\xff\x7f", "other", ""),
        (b"\x41\x81\x00", "other", ""),
        (b"\x41\x82\xff\xff", "other", ""),
        (b"\x41", "other", ""),
    ];
    for (block, protocol, host) in rows {
        expect(&request(block), protocol, host);
    }
}

/// curl 7.88 (nghttp2 1.52) with `--http2-prior-knowledge` and `Host: Some-Name.example:PORT`.
const CURL: &[u8] = b"\x82\x04\x04\x2f\x61\x3f\x62\x86\x41\x91\xdc\x7a\x4a\xb6\x91\xd2\x55\xcb\xe4\x74\xd7\x41\x6e\x36\xf3\x40\x7f\x7a\x88\x25\xb6\x50\xc3\xab\xbc\xf2\xe1\x53\x03\x2a\x2f\x2a";

#[test]
fn request_of_curl_gives_its_name() {
    let settings = b"\0\x03\0\0\0\x64\0\x04\x02\0\0\0\0\x02\0\0\0\0";
    let window = b"\x01\xff\0\x01";
    let frames = [PREFACE, &frame(4, 0, settings), &frame(8, 0, window), &frame(1, 5, CURL)].concat();
    expect(&frames, "http", "some-name.example");
}

#[test]
fn prior_knowledge_counts_as_an_offer_of_h2c() {
    let found = at_once(&request(PLAIN)).unwrap();
    assert!(found.alpn.names().eq([b"h2c"]));
}

/// Characters of names and authorities, with the codes that RFC 7541 appendix B gives them, and the codes' bits.
const RFC_CODES: [(char, u32, u32); 44] = [
    ('-', 0x16, 6),
    ('.', 0x17, 6),
    ('0', 0x0, 5),
    ('1', 0x1, 5),
    ('2', 0x2, 5),
    ('3', 0x19, 6),
    ('4', 0x1a, 6),
    ('5', 0x1b, 6),
    ('6', 0x1c, 6),
    ('7', 0x1d, 6),
    ('8', 0x1e, 6),
    ('9', 0x1f, 6),
    (':', 0x5c, 7),
    ('A', 0x21, 6),
    ('B', 0x5d, 7),
    ('X', 0xfc, 8),
    ('Z', 0xfd, 8),
    ('[', 0x1ffb, 13),
    (']', 0x1ffc, 13),
    ('_', 0x22, 6),
    ('a', 0x3, 5),
    ('b', 0x23, 6),
    ('c', 0x4, 5),
    ('d', 0x24, 6),
    ('e', 0x5, 5),
    ('f', 0x25, 6),
    ('g', 0x26, 6),
    ('h', 0x27, 6),
    ('i', 0x6, 5),
    ('j', 0x74, 7),
    ('k', 0x75, 7),
    ('l', 0x28, 6),
    ('m', 0x29, 6),
    ('n', 0x2a, 6),
    ('o', 0x7, 5),
    ('p', 0x2b, 6),
    ('q', 0x76, 7),
    ('r', 0x2c, 6),
    ('s', 0x8, 5),
    ('t', 0x9, 5),
    ('u', 0x2d, 6),
    ('w', 0x78, 7),
    ('y', 0x7a, 7),
    ('z', 0x7b, 7),
];

/// A block with `:authority` as a Huffman literal, padded with ones.
fn huffman(authority: &str) -> Vec<u8> {
    let mut bits = String::new();
    for character in authority.chars() {
        let (_, code, len) = RFC_CODES.iter().find(|row| row.0 == character).unwrap();
        bits += &format!("{code:0width$b}", width = *len as usize);
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    let octets: Vec<u8> =
        (0..bits.len()).step_by(8).map(|at| u8::from_str_radix(&bits[at..at + 8], 2).unwrap()).collect();
    [&[0x41, 0x80 | octets.len() as u8], &octets[..]].concat()
}

#[test]
fn every_character_of_a_name_is_decoded_from_huffman() {
    for (character, _, _) in RFC_CODES.iter().filter(|row| !":[]".contains(row.0)) {
        let name =
            if *character == '.' { "a.b".to_owned() } else { format!("x{character}").replace('x', "a") };
        expect(&request(&huffman(&name)), "http", &name.to_ascii_lowercase());
    }
    expect(&request(&huffman("[2001:db8::1]:8080")), "http", "2001:db8::1");
    expect(&request(&huffman("a:b")), "other", "");
}

#[test]
fn header_block_over_continuations_with_padding_and_priority_gives_its_name() {
    for cut in 0..=PLAIN.len() {
        let (one, two) = PLAIN.split_at(cut);
        let padded = [&[3, 0, 0, 0, 0, 9], one, &[0; 3]].concat();
        let bytes = [
            PREFACE,
            &frame(4, 0, &[]),
            &frame(8, 0, &[0, 0, 1, 0]),
            &frame(1, 0x28, &padded),
            &frame(9, 0, b""),
            &frame(9, 4, two),
        ]
        .concat();
        expect(&bytes, "http", "www.example.com");
    }
}

#[test]
fn frames_that_cannot_come_are_unidentified() {
    let rows: &[Vec<u8>] = &[
        [PREFACE, &frame(9, 4, PLAIN)].concat(),
        [PREFACE, &frame(1, 0, PLAIN), &frame(4, 0, &[])].concat(),
        [PREFACE, &frame(1, 0, PLAIN), &frame(1, 4, PLAIN)].concat(),
        [PREFACE, &frame(1, 0x0c, &[9, 1])].concat(),
        [PREFACE, &frame(1, 0x2c, &[0, 1])].concat(),
        [PREFACE, &frame(1, 0x0c, &[])].concat(),
        [PREFACE, &[0, 0x40, 1, 4, 0, 0, 0, 0, 0]].concat(),
        // It will not fit.
        [PREFACE, &[0, 0x40, 0, 4, 0, 0, 0, 0, 0]].concat(),
    ];
    for bytes in rows {
        expect(bytes, "other", "");
    }
}

#[test]
fn preface_that_breaks_off_is_read_as_http1() {
    expect(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "more", "");
    expect(b"PRI * HTTP/2.0\r\nHost: a.example\r\n\r\n", "http", "a.example");
    expect(b"PRI * HTTP/2.0\r\n\r\nXX", "http", "");
    expect(b"PROPFIND / HTTP/1.1\r\nHost: a.example\r\n\r\n", "http", "a.example");
}
