use super::*;

/// An entry of a server_name extension: type and name.
type Entry<'a> = (u8, &'a [u8]);

/// Extensions that surround the interesting ones.
fn padding(len: usize) -> Vec<u8> {
    extension(21, &vec![0; len])
}

#[test]
fn hello_with_name_and_alpn_gives_both() {
    let bytes =
        record(22, &hello(&[padding(9), sni("WWW.Example.com."), alpn(&["h2", "http/1.1"])].concat()));
    let seen = short(at_once(&bytes));
    assert_eq!(seen, ("tls", "www.example.com".to_owned(), "h2,http/1.1".to_owned()));
    assert_eq!(by_octets(&bytes).unwrap().1, bytes.len(), "decided before the hello was complete");
}

#[test]
fn server_name_of_each_kind_is_read_or_unidentified() {
    let long = "a.".repeat(127) + "ab";
    let rows: &[(&[Entry<'_>], &str, &str)] = &[
        (&[(0, b"example.com")], "tls", "example.com"),
        (&[(0, b"192.0.2.1")], "tls", "192.0.2.1"),
        (&[(0, b"2001:DB8::1")], "tls", "2001:db8::1"),
        (&[(0, b"under_score.example")], "tls", "under_score.example"),
        (&[(0, b"xn--bcher-kva.example")], "tls", "xn--bcher-kva.example"),
        (&[(0, b"localhost")], "tls", "localhost"),
        (&[], "tls", ""),
        (&[(0, b"")], "tls", ""),
        // The longest, and one more.
        (&[(0, &long.as_bytes()[..255])], "tls", &long[..255]),
        (&[(0, long.as_bytes())], "other", ""),
        (&[(0, &[b'a'; 300])], "other", ""),
        // The same twice says one thing; two names do not.
        (&[(0, b"a.example"), (0, b"A.example.")], "tls", "a.example"),
        (&[(0, b"a.example"), (0, b"b.example")], "other", ""),
        (&[(1, b"a.example")], "other", ""),
        (&[(0, b"a.example"), (7, b"x")], "other", ""),
        // No host names.
        (&[(0, b"blocked.example\0")], "other", ""),
        (&[(0, b"blocked.example\0.ok.example")], "other", ""),
        (&[(0, b" blocked.example")], "other", ""),
        (&[(0, b"blocked.example ")], "other", ""),
        (&[(0, b"blocked..example")], "other", ""),
        (&[(0, b".blocked.example")], "other", ""),
        (&[(0, b"blocked.example..")], "other", ""),
        (&[(0, b".")], "other", ""),
        (&[(0, "b\u{fc}cher.example".as_bytes())], "other", ""),
        (&[(0, b"blocked.example:443")], "other", ""),
        (&[(0, b"*.example")], "other", ""),
    ];
    for (entries, protocol, host) in rows {
        expect(&record(22, &hello(&server_names(entries))), protocol, host);
    }
}

#[test]
fn extensions_repeated_are_read_only_when_they_agree() {
    let rows: &[(&[Vec<u8>], &str, &str)] = &[
        (&[sni("a.example"), sni("a.example")], "tls", "a.example"),
        (&[sni("a.example"), padding(3), sni("b.example")], "other", ""),
        (&[sni("a.example"), extension(0, b"")], "tls", "a.example"),
        (&[alpn(&["h2"]), sni("a.example"), alpn(&["h2"])], "tls", "a.example"),
        (&[alpn(&["h2"]), sni("a.example"), alpn(&["http/1.1"])], "other", ""),
    ];
    for (extensions, protocol, host) in rows {
        expect(&record(22, &hello(&extensions.concat())), protocol, host);
    }
}

#[test]
fn alpn_list_at_its_limit_is_kept_and_beyond_is_unidentified() {
    let name = "x".repeat(63);
    let full = record(22, &hello(&[sni("a.example"), alpn(&[&name, &name])].concat()));
    assert_eq!(short(at_once(&full)).2, format!("{name},{name}"));
    let beyond = record(22, &hello(&[sni("a.example"), alpn(&[&name, &name, "h2"])].concat()));
    expect(&beyond, "other", "");
}

#[test]
fn alpn_malformed_is_unidentified() {
    for content in
        [&b"\0\x03\x02h2"[..], b"\0\x01\0", b"\0\x04\x09h2x", b"\0\x03\x01h2", b"\0\x09\x02h2", b"\0"]
    {
        let extensions = [sni("a.example"), extension(16, content)].concat();
        let expected = if content == b"\0\x03\x02h2" { ("tls", "a.example") } else { ("other", "") };
        expect(&record(22, &hello(&extensions)), expected.0, expected.1);
    }
}

#[test]
fn hello_without_extensions_is_tls_without_name() {
    let mut body = vec![3, 1];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    expect(&record(22, &message(&body)), "tls", "");
    body.extend([0, 0]);
    expect(&record(22, &message(&body)), "tls", "");
}

#[test]
fn encrypted_client_hello_gives_the_outer_name() {
    let bytes = record(22, &hello(&[extension(0xfe0d, &[9; 200]), sni("public.example")].concat()));
    expect(&bytes, "tls", "public.example");
}

#[test]
fn lengths_that_do_not_add_up_are_unidentified() {
    let whole = hello(&sni("a.example"));
    // Every length field one off: of the session, the suites, the compressions, the extensions, the extension, the
    // list, the name.
    for at in [38, 40, 45, 48, 52, 54, 57] {
        for delta in [1, 255] {
            let mut bytes = whole.clone();
            bytes[at] = bytes[at].wrapping_add(delta);
            expect(&record(22, &bytes), "other", "");
        }
    }
    // A message cut short, and one with octets to spare.
    for len in 4..whole.len() {
        let cut = message(&whole[4..len]);
        let seen = short(at_once(&record(22, &cut)));
        assert!(
            seen.0 == "other" || len == 47 && seen == ("tls", String::new(), String::new()),
            "{len}: {seen:?}"
        );
    }
    expect(&record(22, &message(&[&whole[4..], b"x"].concat())), "other", "");
}

#[test]
fn record_of_any_version_is_read() {
    for version in [[3, 0], [3, 1], [3, 2], [3, 3], [3, 4], [0, 0], [2, 0], [0xff, 0xff]] {
        let mut bytes = simple("a.example");
        bytes[1..3].copy_from_slice(&version);
        expect(&bytes, "tls", "a.example");
    }
}

#[test]
fn hello_over_records_of_every_size_is_read() {
    let whole = hello(&[padding(300), sni("a.example"), alpn(&["h2"])].concat());
    for size in 1..=whole.len() {
        let bytes: Vec<u8> = whole.chunks(size).flat_map(|part| record(22, part)).collect();
        expect(&bytes, "tls", "a.example");
    }
    for first in 1..whole.len() {
        let (one, two) = whole.split_at(first);
        expect(&[record(22, one), record(22, b""), record(22, two)].concat(), "tls", "a.example");
    }
    expect(&[record(22, b""), record(22, &whole)].concat(), "tls", "a.example");
}

#[test]
fn other_records_before_or_within_the_hello_are_unidentified() {
    let whole = hello(&sni("a.example"));
    for kind in [20, 21, 23, 24, 0] {
        expect(&[record(kind, &[1]), record(22, &whole)].concat(), "other", "");
        for at in [1, 3, 4, 30, whole.len() - 1] {
            let bytes = [record(22, &whole[..at]), record(kind, &[1]), record(22, &whole[at..])].concat();
            expect(&bytes, "other", "");
        }
    }
}

#[test]
fn other_handshake_message_first_is_unidentified_at_once() {
    let mut bytes = simple("a.example");
    bytes[5] = 2;
    assert_eq!(by_octets(&bytes).unwrap().1, 6);
}

#[test]
fn octets_behind_the_hello_are_not_looked_at() {
    let whole = hello(&sni("a.example"));
    expect(&record(22, &[&whole[..], &whole[..], b"junk"].concat()), "tls", "a.example");
    let within = [&record(22, &[&whole[..], &[0; 900]].concat())[..5 + whole.len()]].concat();
    expect(&within, "tls", "a.example");
}

#[test]
fn hello_at_the_budget_is_read_and_beyond_is_known_at_its_header() {
    let room = BUDGET - simple("a.example").len() - 4;
    let fits = record(22, &hello(&[sni("a.example"), padding(room)].concat()));
    assert_eq!(fits.len(), BUDGET);
    expect(&fits, "tls", "a.example");
    let beyond = record(22, &hello(&[sni("a.example"), padding(room + 1)].concat()));
    assert_eq!(short(by_octets(&beyond).map(|(found, _)| found)).0, "other");
    assert_eq!(by_octets(&beyond).unwrap().1, 9, "known from the length of the hello");
    // The same hello fits no more once it needs a second record's header.
    let whole = hello(&[sni("a.example"), padding(room)].concat());
    let split: Vec<u8> = [record(22, &whole[..1000]), record(22, &whole[1000..])].concat();
    assert_eq!(by_octets(&split).unwrap(), (Found::OTHER, 9));
}

#[test]
fn budget_reached_is_never_more() {
    let bytes = simple("a.example");
    for budget in 0..bytes.len() {
        let mut inspector = Inspector::default();
        assert_eq!(inspector.inspect(&bytes[..budget], budget), Outcome::Done(Found::OTHER), "{budget}");
    }
    assert_ne!(Inspector::default().inspect(&bytes, bytes.len()), Outcome::Done(Found::OTHER));
}

#[test]
fn record_longer_than_any_is_unidentified_at_its_header() {
    let bytes = [22, 3, 1, 0x48, 1, 1];
    assert_eq!(Inspector::default().inspect(&bytes, 1 << 20), Outcome::Done(Found::OTHER));
    let bytes = [22, 3, 1, 0x48, 0, 1];
    assert_eq!(Inspector::default().inspect(&bytes, 1 << 20), Outcome::More);
}

/// An SSLv2-format hello with these lengths.
fn sslv2(len: u16, version: [u8; 2], ciphers: u16, session: u16, challenge: u16) -> Vec<u8> {
    let mut bytes = (0x8000 | len).to_be_bytes().to_vec();
    bytes.push(1);
    bytes.extend(version);
    for part in [ciphers, session, challenge] {
        bytes.extend(part.to_be_bytes());
    }
    bytes.extend(vec![5; usize::from(len).saturating_sub(9)]);
    bytes
}

#[test]
fn sslv2_hello_is_tls_without_name() {
    let rows = [
        (sslv2(9 + 6 + 16, [3, 1], 6, 0, 16), "tls"),
        (sslv2(9 + 6 + 16 + 32, [0, 2], 6, 16, 32), "tls"),
        (sslv2(9 + 6 + 17, [3, 1], 6, 0, 16), "other"),
        (sslv2(9 + 5 + 16, [3, 1], 5, 0, 16), "other"),
        (sslv2(9 + 16, [3, 1], 0, 0, 16), "other"),
        (sslv2(9 + 6 + 16, [0, 0], 6, 0, 16), "other"),
        (sslv2(9 + 6 + 16, [1, 2], 6, 0, 16), "other"),
    ];
    for (bytes, protocol) in rows {
        expect(&bytes, protocol, "");
    }
}

#[test]
fn hello_seen_by_tls_parser_reads_the_same() {
    let bytes = record(22, &hello(&[sni("a.example"), padding(7), alpn(&["h2", "x"])].concat()));
    let (_, parsed) = tls_parser::parse_tls_plaintext(&bytes).unwrap();
    let tls_parser::TlsMessage::Handshake(tls_parser::TlsMessageHandshake::ClientHello(hello)) =
        &parsed.msg[0]
    else {
        panic!("no ClientHello");
    };
    let (_, extensions) = tls_parser::parse_tls_extensions(hello.ext.unwrap()).unwrap();
    let found = at_once(&bytes).unwrap();
    for extension in extensions {
        match extension {
            tls_parser::TlsExtension::SNI(names) => {
                assert_eq!(names[0].1, found.host.unwrap().as_str().as_bytes());
            }
            tls_parser::TlsExtension::ALPN(names) => assert!(found.alpn.names().eq(names)),
            _ => {}
        }
    }
}

#[test]
fn encrypted_client_hello_is_noted_where_it_is_an_outer_one() {
    const ECH: u16 = 0xfe0d;
    // Type, HPKE suite, config id, an encapsulated key and a payload of an octet each.
    let outer = [0, 0, 1, 0, 1, 7, 0, 1, 9, 0, 1, 9];
    let rows: &[(&[u8], bool)] = &[(&outer, true), (&[1], false), (&[], false), (&[2, 0], false)];
    for (content, expected) in rows {
        for extensions in [
            [sni("public.example"), extension(ECH, content)].concat(),
            [extension(ECH, content), sni("public.example")].concat(),
        ] {
            let bytes = record(22, &hello(&extensions));
            let found = at_once(&bytes).unwrap();
            assert_eq!(found.ech, *expected, "{content:?}");
            assert_eq!(short(Some(found)).1, "public.example", "the outer name is the one that is shown");
            assert_eq!(by_octets(&bytes).unwrap().0, found);
        }
    }
    let nameless = at_once(&record(22, &hello(&extension(ECH, &outer)))).unwrap();
    assert!(nameless.ech && nameless.host.is_none());
    assert!(!at_once(&simple("public.example")).unwrap().ech);
}

/// What follows the first hello has no part in the answer: a second one comes after HelloRetryRequest, and so after it.
#[test]
fn second_hello_behind_the_first_changes_nothing() {
    for second in ["www.example", "other.example"] {
        let bytes = [simple("www.example"), simple(second)].concat();
        let first = simple("www.example").len();
        assert_eq!(by_octets(&bytes).unwrap(), (at_once(&bytes).unwrap(), first));
        assert_eq!(short(at_once(&bytes)).1, "www.example");
    }
}
