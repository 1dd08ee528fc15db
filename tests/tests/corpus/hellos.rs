use tls_parser::{TlsExtension, TlsMessage, TlsMessageHandshake};
use weir_core::inspect::{Found, HelloEnd, Inspector, Outcome};
use weir_core::policy::Protocol;
use weir_tests::corpus;

/// The hold of the example configuration.
const HOLD: usize = 16 * 1024;
const RECORD_HEADER: usize = 5;

/// ClientHellos whose lengths do not add up, in which tshark finds no name either. No server takes them, and so they
/// are unidentified, and not TLS that asks for no name.
const MALFORMED: [(&str, &str); 5] = [
    ("612f6ded2626c275", "the cipher suites are said to have 134 octets, and reach into the name"),
    ("a361a5dbe2df3812", "the cipher suites are said to have 133 octets, and reach into the name"),
    ("f8b7c50f8729c8ac", "the cipher suites are said to have 132 octets, and reach into the name"),
    (
        "8e3610f80f7d596c",
        "the cipher suites are said to have none, and what follows is no list of extensions",
    ),
    ("b6a1848a8c8b5250", "the message ends within the list of extensions"),
];

/// What tls-parser reads from one TLS record: server_name and ALPN names joined by commas. `None` when it finds the
/// ClientHello malformed.
fn by_tls_parser(record: &[u8]) -> Option<(String, String)> {
    let (_, parsed) = tls_parser::parse_tls_plaintext(record).ok()?;
    let Some(TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello))) = parsed.msg.first() else {
        return None;
    };
    let (rest, extensions) = tls_parser::parse_tls_extensions(hello.ext.unwrap_or_default()).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (mut sni, mut alpn) = (String::new(), String::new());
    for extension in extensions {
        match extension {
            TlsExtension::SNI(names) => sni = names.first().map(|name| text(name.1)).unwrap_or_default(),
            TlsExtension::ALPN(names) => alpn = names.into_iter().map(text).collect::<Vec<_>>().join(","),
            _ => {}
        }
    }
    Some((sni, alpn))
}

/// The same of what the inspector found.
fn texts(found: &Found) -> (String, String) {
    let names: Vec<_> = found.alpn.names().map(String::from_utf8_lossy).collect();
    (found.host.map(|name| name.as_str().to_owned()).unwrap_or_default(), names.join(","))
}

/// What the inspector says of a stream that grows by `step` octets, and how many it took.
fn by_steps(stream: &[u8], step: usize) -> (Found, usize) {
    let mut inspector = Inspector::default();
    let mut end = 0;
    loop {
        end = stream.len().min(end + step);
        match inspector.inspect(&stream[..end], HOLD) {
            Outcome::Done(found) => return (found, end),
            Outcome::More => assert!(end < stream.len(), "not decided at the end of the hello"),
        }
    }
}

/// The same handshake octets in records of `size` octets.
fn over_records(record: &[u8], size: usize) -> Vec<u8> {
    let (header, message) = record.split_at(RECORD_HEADER);
    let mut stream = Vec::new();
    for part in message.chunks(size) {
        stream.extend_from_slice(&header[..3]);
        stream.extend_from_slice(&(part.len() as u16).to_be_bytes());
        stream.extend_from_slice(part);
    }
    stream
}

/// Reads one record at once, over segments of every size, and over records.
fn inspect_all_ways(who: &str, record: &[u8]) -> Found {
    let (found, _) = by_steps(record, record.len());
    let malformed = MALFORMED.iter().find(|(id, _)| *id == who);
    let expected = malformed.map_or(Protocol::Tls, |_| Protocol::Other);
    assert_eq!(found.protocol, expected, "{who}: {malformed:?}");
    if malformed.is_some() {
        return found;
    }
    for step in [1, 2, 3, 7, 100, 536, 1220, 1460] {
        let (again, end) = by_steps(record, step);
        assert_eq!(again, found, "{who} over segments of {step}");
        assert!(end == record.len(), "{who} was decided after {end} of {} octets", record.len());
    }
    for size in [1, 2, 3, 4, 5, 64, 255, 511, 1400] {
        let stream = over_records(record, size);
        // Records of one octet need six times the room.
        if stream.len() <= HOLD {
            // Where it ends is another place then.
            let end = found.end.map(|end| HelloEnd { at: stream.len() as u32, ..end });
            let found = Found { end, ..found };
            assert_eq!(by_steps(&stream, stream.len()).0, found, "{who} over records of {size}");
            assert_eq!(by_steps(&stream, 1).0, found, "{who} over records of {size}, octet by octet");
        }
    }
    found
}

#[test]
fn client_hellos_agree_with_tshark_and_tls_parser() {
    let Some(root) = corpus::root() else { return };
    let hellos = corpus::hellos(&root);
    assert_eq!(hellos.len(), 653);
    let mut wrong = Vec::new();
    for hello in &hellos {
        let seen = texts(&inspect_all_ways(&hello.id, &hello.bytes));
        let expected = (hello.sni.to_ascii_lowercase(), hello.alpn.clone());
        let malformed = MALFORMED.iter().any(|(id, _)| *id == hello.id);
        let parsed = by_tls_parser(&hello.bytes);
        let parsers_agree = malformed || parsed.as_ref() == Some(&seen);
        if seen != expected || !parsers_agree {
            wrong.push(format!(
                "{}: seen {seen:?}, tshark read {expected:?}, tls-parser {parsed:?}",
                hello.id
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn browsers_agree_with_tls_parser() {
    let Some(root) = corpus::root() else { return };
    let browsers = corpus::browsers(&root);
    assert!(browsers.len() >= 12);
    let mut over_two_segments = 0;
    for (client, record) in &browsers {
        let seen = texts(&inspect_all_ways(client, record));
        assert_eq!(Some(&seen), by_tls_parser(record).as_ref(), "{client}");
        over_two_segments += usize::from(record.len() > 1460);
        println!("{client}: {} octets, {seen:?}", record.len());
    }
    assert!(over_two_segments >= 5, "only {over_two_segments} hellos with post-quantum key shares");
}

#[test]
fn hellos_cut_at_every_octet_are_never_decided_early() {
    let Some(root) = corpus::root() else { return };
    for (client, record) in corpus::browsers(&root) {
        for end in 0..record.len() {
            let outcome = Inspector::default().inspect(&record[..end], HOLD);
            assert_eq!(outcome, Outcome::More, "{client} cut at {end}");
        }
    }
}

/// Encrypted ClientHello's outer extension, or grease that looks the same, is noted wherever tls-parser finds it.
#[test]
fn encrypted_client_hellos_agree_with_tls_parser() {
    const ECH: u16 = 0xfe0d;
    let offers = |record: &[u8]| {
        let (_, parsed) = tls_parser::parse_tls_plaintext(record).expect("a record");
        let Some(TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello))) = parsed.msg.first() else {
            return false;
        };
        let (_, extensions) =
            tls_parser::parse_tls_extensions(hello.ext.unwrap_or_default()).expect("extensions");
        let is_outer = |extension: &TlsExtension<'_>| matches!(extension, TlsExtension::Unknown(kind, [0, ..]) if kind.0 == ECH);
        extensions.iter().any(is_outer)
    };
    let Some(root) = corpus::root() else { return };
    let mut offering = 0;
    let hellos = corpus::hellos(&root).into_iter().map(|hello| (hello.id, hello.bytes));
    for (who, record) in hellos.chain(corpus::browsers(&root)) {
        if MALFORMED.iter().any(|(id, _)| *id == who) {
            continue;
        }
        let (found, _) = by_steps(&record, record.len());
        assert_eq!(found.ech, offers(&record), "{who}");
        offering += usize::from(found.ech);
    }
    println!("{offering} hellos offer Encrypted ClientHello");
    assert!(offering >= 3, "only {offering} hellos offer Encrypted ClientHello");
}
