use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use crossbeam::queue::ArrayQueue;
use tokio::task::LocalSet;
use weir_core::ids::{PoolId, ServerId};
use weir_core::policy::{PoolSpec, ProxyVersion};
use weir_dataplane::gateway::FailedServer;

use super::probe::probe;
use super::*;
use crate::demo::origin::Authority;

/// A server that does this with each of its first `times` connections, and then closes.
fn serve(v4: bool, times: usize, with: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = if v4 {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
    } else {
        TcpListener::bind((Ipv6Addr::LOCALHOST, 0))
    };
    let listener = listener.unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().take(times).flatten().for_each(with));
    addr
}

/// Reads until what was read ends so.
fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut read = Vec::new();
    let mut octet = [0];
    while !read.ends_with(end) && stream.read(&mut octet).unwrap_or(0) == 1 {
        read.extend(octet);
    }
    read
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, future)
}

fn probed(server: SocketAddr, asked: Probe, proxy: Option<ProxyVersion>) -> Result<String, String> {
    let patient = Check { timeout: Duration::from_secs(20), ..check(asked) };
    block_on(probe(server, &patient, proxy))
}

fn http(path: &str) -> Probe {
    Probe::Http { path: path.to_owned(), host: Some("www.example".to_owned()), status: vec![200..=299] }
}

#[test]
fn tcp_probe_finds_who_takes_connections() {
    for v4 in [true, false] {
        let server = serve(v4, 1, drop);
        assert_eq!(probed(server, Probe::Tcp, None), Ok("takes connections".to_owned()));
        // A port that was just given back.
        let gone = TcpListener::bind(if v4 { "127.0.0.1:0" } else { "[::1]:0" }).unwrap();
        let addr = gone.local_addr().unwrap();
        drop(gone);
        assert_eq!(probed(addr, Probe::Tcp, None), Err("no connection: refused".to_owned()));
    }
}

#[test]
fn http_probe_asks_the_path_and_looks_at_the_status() {
    for (answer, found) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", Ok("answers with status 204")),
        ("HTTP/1.0 503 Busy\r\n\r\n", Err("answers with status 503")),
        ("SSH-2.0-OpenSSH_9.2\r\n", Err("the answer is not HTTP/1")),
        ("HTTP/1.1", Err("no answer: the server closed the connection")),
    ] {
        let (seen, asked) = std::sync::mpsc::channel();
        let server = serve(true, 1, move |mut stream| {
            seen.send(String::from_utf8(read_until(&mut stream, b"\r\n\r\n")).unwrap()).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        assert_eq!(probed(server, http("/up?x"), None), found.map(str::to_owned).map_err(str::to_owned));
        let asked = asked.recv().unwrap();
        assert!(asked.starts_with("GET /up?x HTTP/1.1\r\nHost: www.example\r\n"), "{asked}");
    }
}

#[test]
fn proxy_header_goes_before_the_question() {
    for (version, start) in
        [(ProxyVersion::V1, "PROXY TCP6 ::1 ::1 "), (ProxyVersion::V2, "\r\n\r\n\0\r\nQUIT\n")]
    {
        let (seen, asked) = std::sync::mpsc::channel();
        let server = serve(false, 1, move |mut stream| {
            let read = read_until(&mut stream, b"Connection: close\r\n\r\n");
            seen.send(String::from_utf8_lossy(&read).into_owned()).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        });
        assert_eq!(probed(server, http("/"), Some(version)), Ok("answers with status 200".to_owned()));
        let asked = asked.recv().unwrap();
        assert!(asked.starts_with(start) && asked.contains("GET / HTTP/1.1\r\n"), "{asked:?}");
    }
}

#[test]
fn tls_probe_is_content_with_a_server_hello_of_anybody() {
    let config = Authority::new().unwrap().server_config().unwrap();
    for host in [None, Some("www.example".to_owned())] {
        let (seen, name) = std::sync::mpsc::channel();
        let config = config.clone();
        let server = serve(true, 1, move |mut stream| {
            let mut tls = rustls::ServerConnection::new(config.clone()).unwrap();
            while tls.is_handshaking() && tls.complete_io(&mut stream).is_ok() {}
            seen.send(tls.server_name().map(str::to_owned)).unwrap();
        });
        assert_eq!(
            probed(server, Probe::Tls { host: host.clone() }, None),
            Ok("answers with a ServerHello".to_owned())
        );
        assert_eq!(name.recv().unwrap(), host);
    }
}

#[test]
fn tls_probe_says_what_came_in_place_of_a_server_hello() {
    let alert: &[u8] = &[21, 3, 3, 0, 2, 2, 40];
    for (answer, found) in [
        (alert, "no ServerHello: TLS alert 40"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no ServerHello: the answer is not TLS"),
        (b"", "no ServerHello: the server closed the connection"),
    ] {
        let server = serve(true, 1, move |mut stream| {
            // All of the hello: closing with octets unread would be a reset.
            let mut header = [0; 5];
            stream.read_exact(&mut header).unwrap();
            let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
            stream.read_exact(&mut hello).unwrap();
            stream.write_all(answer).unwrap();
        });
        assert_eq!(probed(server, Probe::Tls { host: None }, None), Err(found.to_owned()));
    }
}

#[test]
fn silent_server_fails_at_the_timeout() {
    let server = serve(true, 1, |mut stream| drop(read_until(&mut stream, b"never")));
    let start = Instant::now();
    let result = block_on(probe(server, &check(http("/")), None));
    assert_eq!(result, Err("no answer in 200ms".to_owned()));
    assert!(start.elapsed() >= Duration::from_millis(200));
}

/// A server that answers 503 until it is told otherwise, beside one that is always well, and a pool without a check.
#[test]
fn runner_follows_servers_and_reads_the_failures_of_connections() {
    let ok = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_ok = ok.clone();
    let sick = serve(true, usize::MAX, move |mut stream| {
        read_until(&mut stream, b"\r\n\r\n");
        let well = is_ok.load(std::sync::atomic::Ordering::Relaxed);
        let status = if well { "200 OK" } else { "503 Busy" };
        drop(write!(stream, "HTTP/1.1 {status}\r\n\r\n"));
    });
    let well = serve(false, usize::MAX, |mut stream| {
        read_until(&mut stream, b"\r\n\r\n");
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
    });
    let patient = Check { timeout: Duration::from_secs(10), ..check(http("/")) };
    let pools = [pool("a", &[sick, well], Some(patient)), pool("b", &[well], None)];
    let board = Arc::new(Board::new(&pools, 1));
    let passive: Passive = Arc::new(ArrayQueue::new(16));
    let wait_for = async |expected: [&[ServerState]; 2]| {
        let limit = Duration::from_secs(30);
        let changes = async {
            while board.states() != expected {
                board.changed().await;
            }
        };
        tokio::time::timeout(limit, changes).await.unwrap_or_else(|_| panic!("{:?}", board.views()));
    };
    block_on(async {
        let (told, news) = tokio::sync::watch::channel(Arc::from(pools.to_vec()));
        let runner = tokio::task::spawn_local(run(news, board.clone(), passive.clone()));
        wait_for([&[ServerState::Down, ServerState::Up], &[ServerState::Up]]).await;
        assert_eq!(board.views()[0].servers[0].why, "answers with status 503");
        for _ in 0..3 {
            passive.push(FailedServer { pool: PoolId(1), server: ServerId(0), numbered: 1 }).unwrap();
        }
        wait_for([&[ServerState::Down, ServerState::Up], &[ServerState::Down]]).await;
        ok.store(true, std::sync::atomic::Ordering::Relaxed);
        wait_for([&[ServerState::Up, ServerState::Up], &[ServerState::Down]]).await;
        // Nothing was reported since: the other try.
        wait_for([&[ServerState::Up, ServerState::Up], &[ServerState::Up]]).await;
        // Another order of pools and servers: what is known of each goes with it, and what is told by an old number is not
        // heard.
        board.drain("a", well, true).unwrap();
        let [a, b] = &pools;
        let turned = Pool {
            spec: PoolSpec { servers: a.spec.servers.iter().rev().copied().collect(), ..a.spec.clone() },
            ..a.clone()
        };
        let later = [b.clone(), turned];
        board.replace(&later, 2);
        told.send(Arc::from(later.to_vec())).unwrap();
        wait_for([&[ServerState::Up], &[ServerState::Draining, ServerState::Up]]).await;
        for _ in 0..3 {
            passive.push(FailedServer { pool: PoolId(0), server: ServerId(0), numbered: 1 }).unwrap();
        }
        ok.store(false, std::sync::atomic::Ordering::Relaxed);
        wait_for([&[ServerState::Up], &[ServerState::Draining, ServerState::Down]]).await;
        runner.abort();
    });
}
