use super::*;
use crate::inspect::tolerant;

/// Streams that stand for all paths through the readers.
fn samples() -> Vec<Vec<u8>> {
    let big = hello(&[extension(51, &[1; 1200]), sni("a.example"), alpn(&["h2", "http/1.1"])].concat());
    vec![
        simple("a.example"),
        record(22, &big),
        big.chunks(7).flat_map(|part| record(22, part)).collect(),
        b"\x80\x1f\x01\x03\x01\0\x06\0\0\0\x10aaaaaabbbbbbbbbbbbbbbb".to_vec(),
        b"GET / HTTP/1.1\r\nHost: a.example\r\nX: y\r\n\r\n".to_vec(),
        b"\r\nGET / HTTP/1.1\nX: y\n Host : a.example\n\nbody".to_vec(),
        b"CONNECT a.example:443 HTTP/1.1\r\nHost:\r\n a.example\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\0\x0f\x01\x05\0\0\0\x01\
          \x82\x84\x86\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"
            .to_vec(),
        b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(),
    ]
}

/// Growing ends of a stream, at random.
fn cuts(random: &mut Random, len: usize) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut end = 0;
    while end < len {
        end = len.min(end + random.below(len / 3 + 2));
        ends.push(end);
    }
    ends
}

#[test]
fn stream_cut_anywhere_gives_the_same_answer() {
    let mut random = Random(1);
    for bytes in samples() {
        let (found, len) = by_octets(&bytes).unwrap();
        assert_eq!(at_once(&bytes), Some(found));
        for first in 0..=bytes.len() {
            let (again, end) = by_cuts(&bytes, [first, bytes.len()].into_iter()).unwrap();
            assert_eq!((again, end == first), (found, first >= len), "cut at {first}");
        }
        for _ in 0..200 {
            let ends = cuts(&mut random, bytes.len());
            assert_eq!(by_cuts(&bytes, ends.iter().copied()).unwrap().0, found, "cuts {ends:?}");
        }
    }
}

#[test]
fn hello_over_random_records_gives_the_same_answer() {
    let mut random = Random(2);
    let whole = hello(&[extension(51, &[1; 1200]), sni("a.example"), alpn(&["h2"])].concat());
    let expected = at_once(&record(22, &whole));
    for round in 0..500 {
        let mut rest = &whole[..];
        let mut bytes = Vec::new();
        while !rest.is_empty() {
            let most = if round % 2 == 0 { 9 } else { 600 };
            let (part, tail) = rest.split_at(random.below(most).min(rest.len()));
            bytes.extend(record(22, part));
            rest = tail;
        }
        if bytes.len() <= BUDGET {
            assert_eq!(at_once(&bytes), expected);
            assert_eq!(by_octets(&bytes).map(|(found, _)| found), expected);
        }
    }
}

#[test]
fn mutated_streams_never_panic_and_answer_alike_however_cut() {
    let mut random = Random(3);
    let alphabet = b"\0\x01\x03\x16\x80\xff\r\n \t:/@[].,aHh";
    for sample in samples() {
        for _ in 0..3000 {
            let mut bytes = sample.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len());
                match random.below(4) {
                    0 => bytes[at] = random.next() as u8,
                    1 => bytes[at] = alphabet[random.below(alphabet.len())],
                    2 => bytes.insert(at, alphabet[random.below(alphabet.len())]),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let budget = 1 + random.below(bytes.len() * 2);
            let ends = cuts(&mut random, bytes.len());
            let _ = Inspector::default().inspect(&bytes, budget);
            // More octets at once may be shown than were needed, so only the answer must be equal.
            assert_eq!(
                by_cuts(&bytes, ends.iter().copied()).map(|(found, _)| found),
                at_once(&bytes),
                "cuts {ends:?} of {}",
                bytes.escape_ascii()
            );
        }
    }
}

#[test]
fn random_octets_never_panic() {
    let mut random = Random(4);
    for _ in 0..20_000 {
        let mut bytes: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        if let Some(first) = bytes.first_mut() {
            *first = *b"\x16\x80GP\r".get(random.below(8)).unwrap_or(first);
        }
        let _ = at_once(&bytes);
        assert_ne!(Inspector::default().inspect(&bytes, bytes.len()), Outcome::More);
    }
}

#[test]
fn prefix_that_shrinks_never_panics() {
    for bytes in samples() {
        let mut inspector = Inspector::default();
        let _ = inspector.inspect(&bytes[..bytes.len() - 1], BUDGET);
        for len in 0..bytes.len() {
            let _ = inspector.inspect(&bytes[..len], BUDGET);
        }
    }
}

#[test]
fn heads_that_the_library_takes_are_read_alike_by_the_tolerant_reader() {
    let mut random = Random(5);
    let parts = [
        "GET / HTTP/1.1\r\n",
        "GET http://a.example/ HTTP/1.0\r\n",
        "CONNECT b.example:1 HTTP/1.1\r\n",
        "Host: a.example\r\n",
        "host:b.example:80\n",
        "Host: \r\n",
        "Host: x y\r\n",
        "X: Host: c.example\r\n",
        "\r\n",
        "X-Host: d\r\n",
        "A:\r\n",
    ];
    let mut compared = 0;
    for _ in 0..20_000 {
        let mut head = parts[random.below(3)].to_owned();
        for _ in 0..random.below(6) {
            head += parts[random.below(parts.len())];
        }
        head += "\r\n";
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let Ok(httparse::Status::Complete(len)) = httparse::Request::new(&mut fields).parse(head.as_bytes())
        else {
            continue;
        };
        let asked = tolerant::read(&head.as_bytes()[..len]);
        let expected = Found::named(Protocol::Http, asked, crate::inspect::Alpn::EMPTY);
        assert_eq!(at_once(head.as_bytes()), Some(expected), "{head:?}");
        compared += 1;
    }
    assert!(compared > 5000, "only {compared} heads were compared");
}

#[test]
fn stream_by_octets_costs_linear_work() {
    // A long head and a hello in records of one octet, each shown one octet at a time: quadratic work would be
    // 10^10 steps and minutes.
    let head = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(20_000));
    let mut hello: Vec<u8> = record(22, b"").repeat(20_000);
    hello.extend(simple("a.example").iter().flat_map(|octet| record(22, &[*octet])));
    for bytes in [head.as_bytes(), &hello] {
        let mut inspector = Inspector::default();
        for end in 1..bytes.len() {
            if inspector.inspect(&bytes[..end], usize::MAX) != Outcome::More {
                break;
            }
        }
    }
}
