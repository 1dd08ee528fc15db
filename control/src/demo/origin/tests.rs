use std::io::{Cursor, Read, Write};
use std::time::Instant;

use super::*;
use crate::demo::content;
use crate::lab::{IPV4, IPV6, Lab, LabOptions};

/// A client that has said all it will say.
struct Said {
    input: Cursor<Vec<u8>>,
    answers: Vec<u8>,
}

impl Read for Said {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.answers.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the HTTP origin answers to these bytes, and how it ended.
fn answers(input: &[u8]) -> (String, io::Result<()>) {
    let mut said = Said { input: Cursor::new(input.to_vec()), answers: Vec::new() };
    let peer = "[fd77:1::2]:4000".parse().expect("an address");
    let ended = http::serve(&mut said, peer);
    (String::from_utf8_lossy(&said.answers).into_owned(), ended)
}

#[test]
fn requests_get_the_answers_they_ask_for() {
    let hash = content::hash(3);
    let mut first = [0; 3];
    content::fill(0, &mut first);
    let posted = [b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n".as_slice(), &first].concat();
    let two = b"GET /whoami HTTP/1.1\r\n\r\nGET /whoami HTTP/1.1\r\n\r\n".to_vec();
    let close = b"GET /x HTTP/1.1\r\nConnection: close\r\n\r\nGET /whoami HTTP/1.1\r\n\r\n".to_vec();
    let table: [(&[u8], usize, &str); 6] = [
        (b"GET /bytes/3 HTTP/1.1\r\n\r\n", 1, &hash),
        (b"GET /bytes/3?rate=0 HTTP/1.1\r\n\r\n", 1, "404 Not Found"),
        (b"DELETE / HTTP/1.1\r\n\r\n", 1, "405 Method Not Allowed"),
        (&posted, 1, &hash),
        (&two, 2, "[fd77:1::2]:4000"),
        (&close, 1, "404 Not Found"),
    ];
    for (input, count, needle) in table {
        let (text, ended) = answers(input);
        let asked = String::from_utf8_lossy(input);
        assert!(ended.is_ok(), "{asked}: {ended:?}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), count, "{asked}: {text}");
        assert!(text.contains(needle), "{asked}: {text}");
    }
}

#[test]
fn what_is_not_http_ends_the_connection_without_an_answer() {
    let endless = [b"GET / HTTP/1.1\r\nx: ".as_slice(), &vec![b'a'; 100 << 10]].concat();
    let table: [&[u8]; 5] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\n",
        &endless,
    ];
    for input in table {
        let (text, ended) = answers(input);
        assert!(ended.is_err() && text.is_empty(), "{} {text}", String::from_utf8_lossy(input));
    }
}

#[test]
fn records_tell_each_client_and_what_it_sent() {
    let Some(lab) = Lab::for_test(&LabOptions { queues: 1, forwarding: Some(true), ..LabOptions::default() })
    else {
        return;
    };
    let authority = Authority::new().expect("an authority");
    let origin = Origin::start(&lab.server, &authority).expect("origins");
    for addresses in [IPV4, IPV6] {
        let target = SocketAddr::new(addresses.servers[2], SERVER_FIRST_PORTS[0]);
        let source = SocketAddr::new(addresses.other_client, 0);
        let mut stream = crate::demo::client::connect(&lab.client, source, target).expect("connected");
        stream.write_all(b"twelve bytes\n").expect("sent");
        let mut heard = vec![0; GREETING.len() + 2 + 13];
        stream.read_exact(&mut heard).expect("greeting and echo");
        let records = origin.records().of(stream.local_addr().expect("bound"));
        assert_eq!(records.len(), 1);
        assert_eq!((records[0].received(), records[0].local), (13, target));
        assert_eq!(records[0].peer.ip(), addresses.other_client);
    }
    assert_eq!(origin.records().all().len(), 2);
}

#[test]
fn dropped_origin_ends_its_connections_at_once() {
    let Some(lab) = Lab::for_test(&LabOptions { queues: 1, forwarding: Some(true), ..LabOptions::default() })
    else {
        return;
    };
    let origin = Origin::start(&lab.server, &Authority::new().expect("an authority")).expect("origins");
    let target = SocketAddr::new(IPV6.servers[0], HTTP_PORT);
    let source = SocketAddr::new(IPV6.client, 0);
    let mut stream = crate::demo::client::connect(&lab.client, source, target).expect("connected");
    stream.write_all(b"GET /whoami HTTP/1.1\r\n").expect("half a request");
    while origin.records().received_from(stream.local_addr().expect("bound")) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let started = Instant::now();
    drop(origin);
    let _ = stream.read(&mut [0; 1]);
    assert!(started.elapsed() < Duration::from_secs(2));
}
