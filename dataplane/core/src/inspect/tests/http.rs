use super::*;

#[test]
fn request_of_each_kind_gives_its_name() {
    let rows: &[(&str, &str, &str)] = &[
        ("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", "http", "example.com"),
        ("GET / HTTP/1.1\r\nhOsT:EXAMPLE.com.\t \r\n\r\n", "http", "example.com"),
        ("GET / HTTP/1.1\r\nHost: example.com:8080\r\n\r\n", "http", "example.com"),
        ("GET / HTTP/1.1\r\nHost: example.com:\r\n\r\n", "http", "example.com"),
        ("GET / HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n", "http", "192.0.2.1"),
        ("GET / HTTP/1.1\r\nHost: [2001:DB8::1]:80\r\n\r\n", "http", "2001:db8::1"),
        ("GET / HTTP/1.1\r\nHost: [2001:db8::1]\r\n\r\n", "http", "2001:db8::1"),
        ("GET / HTTP/1.0\r\n\r\n", "http", ""),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "http", ""),
        ("get / HTTP/1.1\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("M-SEARCH * HTTP/1.1\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc", "http", "a.example"),
        // The target's authority wins.
        ("GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET http://a.example/x HTTP/1.1\r\nHost: b.example\r\n\r\n", "http", "a.example"),
        ("GET http://a.example HTTP/1.0\r\n\r\n", "http", "a.example"),
        ("GET http://A.example:81?q HTTP/1.1\r\n\r\n", "http", "a.example"),
        ("GET HTTPS://me:pw@a.example/ HTTP/1.1\r\n\r\n", "http", "a.example"),
        ("GET http://[::1]:80/ HTTP/1.1\r\n\r\n", "http", "::1"),
        ("GET /r?to=http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("CONNECT a.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n", "http", "a.example"),
        ("CONNECT [2001:db8::1]:443 HTTP/1.1\r\n\r\n", "http", "2001:db8::1"),
        ("CONNECT a.example:443 / HTTP/1.0\r\n\r\n", "http", "a.example"),
        ("CONNECT / HTTP/1.1\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        // What servers tolerate.
        ("\r\n\n\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\nHost: a.example\n\n", "http", "a.example"),
        ("GET / HTTP/1.1\nHost: a.example\r\n\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nHost: a.example\n\r\n", "http", "a.example"),
        ("GET  /  HTTP/1.1\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET\t/\tHTTP/1.1 \r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET /a b c HTTP/1.1\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET / http/1.1\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.2\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nHost : a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nHost\t:a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\n Host: a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nX: y\r\n Host: a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nX: y\rHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nHost:\r\n a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nHost:\r\n \r\n\ta.example\r\nX: y\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nHost: a.example\r\n \r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nX: \0\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nno colon\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\n: empty\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nX: y\r\n folded\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET /\u{7f}\u{1} HTTP/1.1\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nHost: a.example\r\nHost: A.example:80\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nHost:\r\nHost: a.example\r\n\r\n", "http", "a.example"),
        ("GET / HTTP/1.1\r\nX-Host: b.example\r\nHost: a.example\r\nHosts: c\r\n\r\n", "http", "a.example"),
    ];
    for (head, protocol, host) in rows {
        expect(head.as_bytes(), protocol, host);
    }
}

#[test]
fn request_read_in_two_ways_is_unidentified() {
    let rows: &[&str] = &[
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost : b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\n Host: b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\r\n Host: a.example\r\nHost: b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\rHost: a.example\r\nHost: b.example\r\n\r\n",
        "GET / HTTP/1.1\r\n\x0bHost: a.example\r\nHost: b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost\0: a.example\r\nHost: b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.exam\r\n ple\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\n b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\rX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example:80@b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example:http\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: me@a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: http://a.example/\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a%2eexample\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: b\u{fc}cher.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [a.example]\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: :80\r\n\r\n",
        "GET http:///x HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET http://a.example@b.example@c.example/ HTTP/1.1\r\n\r\n",
        "CONNECT a.example/x HTTP/1.1\r\nHost: b.example\r\n\r\n",
    ];
    for head in rows {
        expect(head.as_bytes(), "other", "");
    }
}

#[test]
fn first_line_that_is_no_request_is_unidentified_at_once() {
    // What comes, and the octets it takes to know.
    let rows: &[(&[u8], usize)] = &[
        (b"\0\0\0\x54", 1),
        (b" GET / HTTP/1.1", 1),
        (b"\x05\x01\0", 1),
        (b"\x13BitTorrent protocol", 1),
        (b"HTTP/1.1 200 OK\r\n", 5),
        (b"GE\0T", 3),
        (b"GET\r/", 4),
        (b"\r\n\r\n\0\r\nQUIT\n", 5),
        (b"\rGET / HTTP/1.1", 2),
        (b"SSH-2.0-OpenSSH_9.6\r\n", 20),
        (b"EHLO a.example\r\n", 16),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", 36),
        (b"GET /\r\n", 7),
        (b"GET / RTSP/1.0\r\n", 16),
        (b"GET HTTP/1.1\r\n", 14),
        (b"GET / HTTP/x\r\n", 14),
        (b"GET / HTTP/1.1\rHost: a.example\r\n", 32),
    ];
    for (bytes, len) in rows {
        let (found, end) = by_octets(bytes).unwrap_or_else(|| panic!("{}", bytes.escape_ascii()));
        assert_eq!((found, end), (Found::OTHER, *len), "{}", bytes.escape_ascii());
        expect(bytes, "other", "");
    }
}

#[test]
fn head_without_its_end_waits_until_the_budget() {
    let head = b"GET / HTTP/1.1\r\nHost: a.example\r\n";
    expect(head, "more", "");
    assert_eq!(Inspector::default().inspect(head, head.len()), Outcome::Done(Found::OTHER));
    // A line with something in it, if only a blank, ends no head.
    for tail in [&b" \r\n"[..], b"\r\r\n", b"\0\r\n"] {
        expect(&[head, tail].concat(), "more", "");
    }
}

#[test]
fn head_with_more_fields_than_the_library_has_room_for_gives_its_name() {
    for fields in [62, 63, 64, 65, 1000] {
        let head = format!("GET / HTTP/1.1\r\n{}Host: a.example\r\n\r\n", "a:b\r\n".repeat(fields));
        expect(head.as_bytes(), "http", "a.example");
    }
}
