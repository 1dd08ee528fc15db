//! PROXY headers before the client's bytes, as a server reads them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weir_control::demo::client;
use weir_control::demo::content;
use weir_control::demo::stage::Family;

use crate::answer::{MIB, to};
use crate::idle::assert_idle;
use crate::send::{HANDSHAKES, POOLED, sending, servers};
use crate::weir::{PATIENCE, until};
use crate::world::{HTTP, HTTPS, World, fetch, play};

/// Port of a server that wants a PROXY header.
pub const BEHIND_PROXY: u16 = 8080;
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What a server read at the beginning of a connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    client: SocketAddr,
    destination: SocketAddr,
    /// Types and values.
    tlvs: Vec<(u8, Vec<u8>)>,
}

/// Takes one connection, which `serve` gets.
pub fn accept_one<T: Send + 'static>(
    world: &World<'_>,
    address: SocketAddr,
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> JoinHandle<T> {
    let listener = world.lab.server.run(|| bound(address));
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        serve(stream)
    })
}

/// A listener. The one before may be there for a moment yet: a process that some other test is about to start has it until it is
/// another program.
fn bound(address: SocketAddr) -> TcpListener {
    let mut listener = TcpListener::bind(address);
    let limit = Instant::now() + PATIENCE;
    while Instant::now() < limit
        && listener.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    {
        std::thread::sleep(Duration::from_millis(5));
        listener = TcpListener::bind(address);
    }
    listener.expect("the port is free")
}

/// As [`accept_one`], of a connection that begins with a PROXY header: the peer, the header, and what came of `serve`.
fn accept_proxied<T: Send + 'static>(
    world: &World<'_>,
    address: SocketAddr,
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> JoinHandle<(SocketAddr, Header, T)> {
    accept_one(world, address, |mut stream| {
        let header = read_header(&mut stream);
        (stream.peer_addr().expect("connected"), header, serve(stream))
    })
}

pub fn read_header(stream: &mut TcpStream) -> Header {
    let mut start = [0; 16];
    stream.read_exact(&mut start[..12]).expect("a header");
    if &start[..12] != SIGNATURE {
        return read_v1(stream, start[..12].to_vec());
    }
    stream.read_exact(&mut start[12..]).expect("a header");
    assert_eq!(start[12], 0x21, "version 2, PROXY");
    let mut rest = vec![0; usize::from(u16::from_be_bytes([start[14], start[15]]))];
    stream.read_exact(&mut rest).expect("addresses");
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let v4 = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&rest[at..at + 4]).expect("4"));
    let v6 = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&rest[at..at + 16]).expect("16"));
    let (client, destination, end) = match start[13] {
        0x11 => (SocketAddr::new(v4(0).into(), port(8)), SocketAddr::new(v4(4).into(), port(10)), 12),
        0x21 => (SocketAddr::new(v6(0).into(), port(32)), SocketAddr::new(v6(16).into(), port(34)), 36),
        other => panic!("family and protocol {other:#x}"),
    };
    let mut tlvs = Vec::new();
    let mut left = &rest[end..];
    while let [kind, high, low, more @ ..] = left {
        let (value, after) = more.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        tlvs.push((*kind, value.to_vec()));
        left = after;
    }
    Header { client, destination, tlvs }
}

fn read_v1(stream: &mut TcpStream, mut line: Vec<u8>) -> Header {
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a line");
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).expect("text");
    let words: Vec<&str> = line.trim_end().split(' ').collect();
    let [proxy, family, from, to, from_port, to_port] = words[..] else { panic!("{line:?}") };
    assert_eq!(proxy, "PROXY", "{line:?}");
    let address = |ip: &str, port: &str| {
        SocketAddr::new(ip.parse().expect("an address"), port.parse().expect("a port"))
    };
    let (client, destination) = (address(from, from_port), address(to, to_port));
    assert_eq!(family, if client.is_ipv4() { "TCP4" } else { "TCP6" }, "{line:?}");
    Header { client, destination, tlvs: Vec::new() }
}

/// Reads a request's head and then a body of [`MIB`], and sends as much with its hash; the hash of what came.
fn serve_mib(mut stream: TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let mut body = vec![0; MIB as usize];
    content::fill(0, &mut body);
    let hash = content::hash(MIB);
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {MIB}\r\nx-sha256: {hash}\r\n\r\n").expect("sent");
    stream.write_all(&body).expect("sent");
    stream.read_exact(&mut body).expect("as much from the client");
    let mut hasher = content::Hasher::default();
    hasher.update(&body);
    hasher.finish()
}

#[test]
fn header_names_client_and_destination_and_the_stream_follows_whole() {
    for handshake in HANDSHAKES {
        for (version, source) in [("v1", "client"), ("v2", "client"), ("v2", "gateway")] {
            let more = format!("proxy_protocol = \"{version}\"\nsource = \"{source}\"");
            play(&sending(handshake, &servers(1, BEHIND_PROXY), &more), |world| {
                for family in Family::BOTH {
                    let what = format!("{handshake} {version} {source} {family:?}");
                    let address = SocketAddr::new(family.addresses().servers[1], BEHIND_PROXY);
                    let server = accept_proxied(world, address, serve_mib);
                    let watch = world.watch();
                    let mut stream = world.connect(family, HTTP);
                    let client = stream.local_addr().unwrap();
                    let response = fetch(&mut stream, POOLED, MIB).expect(&what);
                    assert!(response.is_intact() && response.length == MIB, "{what}: {response:?}");
                    let mut body = vec![0; MIB as usize];
                    content::fill(0, &mut body);
                    stream.write_all(&body).expect(&what);
                    let (peer, header, hash) = server.join().expect("the server does not panic");
                    assert_eq!(hash, content::hash(MIB), "{what}");
                    assert_eq!((header.client, header.destination), (client, family.origin(HTTP)), "{what}");
                    let names =
                        header.tlvs.iter().filter(|(kind, _)| *kind == 2).map(|(_, value)| &value[..]);
                    let expected: &[&[u8]] = if version == "v2" { &[POOLED.as_bytes()] } else { &[] };
                    assert_eq!(names.collect::<Vec<_>>(), expected, "{what}");
                    match source {
                        "client" => assert_eq!(peer, client, "{what}"),
                        _ => assert_eq!(peer.ip(), family.addresses().wan_gateway, "{what}"),
                    }
                    drop(stream);
                    watch.stop(client).0.assert_clean();
                }
                assert_idle(&world.weir);
            });
        }
    }
}

#[test]
fn header_names_sni_and_alpn_of_a_client_hello() {
    for handshake in HANDSHAKES {
        play(&sending(handshake, &servers(1, BEHIND_PROXY), "proxy_protocol = \"v2\""), |world| {
            for family in Family::BOTH {
                let address = SocketAddr::new(family.addresses().servers[1], BEHIND_PROXY);
                let server = accept_proxied(world, address, |mut stream| {
                    let mut record = [0; 5];
                    stream.read_exact(&mut record).map(|()| record)
                });
                let stream = world.connect(family, HTTPS);
                let client = stream.local_addr().unwrap();
                let mut tls = world.stage.start_tls(POOLED, stream).unwrap();
                // The server goes without an answer.
                let _closed = client::get(&mut tls, POOLED, "/", &AtomicU64::new(0)).unwrap_err();
                let (_, header, record) = server.join().expect("the server does not panic");
                assert_eq!((header.client, header.destination), (client, family.origin(HTTPS)));
                assert!(header.tlvs.contains(&(2, POOLED.into())), "{header:?}");
                assert_eq!(record.map(|record| record[0]).ok(), Some(22), "a handshake record follows");
            }
        });
    }
}

#[test]
fn header_that_is_lost_is_sent_again() {
    play(&sending("answer", &servers(1, BEHIND_PROXY), "proxy_protocol = \"v1\""), |world| {
        for family in Family::BOTH {
            let address = SocketAddr::new(family.addresses().servers[1], BEHIND_PROXY);
            // The first 300 octets of packets with payload: the header, and what the client says, more than once.
            let first = "tcp flags & psh == psh quota until 300 bytes counter drop";
            world.filter_at_server(&format!("{} {first}", to(address)));
            let server = accept_proxied(world, address, |_| ());
            let mut stream = world.connect(family, HTTP);
            let client = stream.local_addr().unwrap();
            stream.write_all(format!("GET / HTTP/1.1\r\nhost: {POOLED}\r\n\r\n").as_bytes()).expect("sent");
            until("the server has read the header", || server.is_finished());
            let (_, header, ()) = server.join().expect("the server does not panic");
            assert_eq!(header.client, client);
            let counted = world.sh(&world.lab.server, "nft list table inet test | tail -n 4");
            assert!(!counted.contains("counter packets 0"), "nothing was lost: {counted}");
        }
    });
}
