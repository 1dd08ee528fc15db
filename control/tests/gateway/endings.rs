//! How joined connections end: in halves, by a reset of either side, without a word, and to begin again.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use socket2::SockRef;
use weir_control::demo::content;
use weir_control::demo::stage::Family;

use crate::answer::MIB;
use crate::config::ALLOWED;
use crate::idle::assert_idle;
use crate::proxy::{BEHIND_PROXY, accept_one, read_header};
use crate::send::{POOLED, sending, servers};
use crate::weir::until;
use crate::world::{HTTP, World, play};

/// Ways to a pool's server: the handshake, and more lines of the pool.
const WAYS: [(&str, &str); 4] = [
    ("answer", ""),
    ("through", ""),
    ("answer", "source = \"gateway\""),
    ("through", "source = \"gateway\"\nproxy_protocol = \"v2\""),
];
const REQUEST: &str = "GET / HTTP/1.1\r\nhost: pool.example\r\n\r\n";

/// Plays `test` on every way and both families, with the pool's server at the address that it gets. The flag tells of a
/// PROXY header.
fn on_every_way(test: impl Fn(&World<'_>, Family, SocketAddr, bool)) {
    for (handshake, more) in WAYS {
        play(&sending(handshake, &servers(1, BEHIND_PROXY), more), |world| {
            for family in Family::BOTH {
                eprintln!("{handshake} {more:?} {family:?}");
                let server = SocketAddr::new(family.addresses().servers[1], BEHIND_PROXY);
                test(world, family, server, more.contains("proxy"));
            }
            assert_idle(&world.weir);
        });
    }
}

/// Reads past the PROXY header, if there is one, and the request.
fn read_request(stream: &mut TcpStream, proxied: bool) {
    if proxied {
        read_header(stream);
    }
    let mut request = [0; REQUEST.len()];
    stream.read_exact(&mut request).expect("a request");
    assert_eq!(request, REQUEST.as_bytes());
}

/// A client asks, hears the first octet of an answer and resets: the server, which waits for more, sees the reset.
fn assert_client_resets(
    world: &World<'_>,
    address: SocketAddr,
    proxied: bool,
    connect: impl FnOnce() -> TcpStream,
) {
    let server = accept_one(world, address, move |mut stream| {
        read_request(&mut stream, proxied);
        stream.write_all(b"x").expect("sent");
        stream.read(&mut [0; 1]).map_err(|error| error.kind())
    });
    let mut stream = connect();
    stream.write_all(REQUEST.as_bytes()).expect("sent");
    stream.read_exact(&mut [0; 1]).expect("an answer");
    SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).expect("a socket");
    drop(stream);
    assert_eq!(server.join().expect("the server does not panic"), Err(ErrorKind::ConnectionReset));
}

#[test]
fn half_closed_connection_carries_the_rest_of_the_other_half() {
    on_every_way(|world, family, address, proxied| {
        let server = accept_one(world, address, move |mut stream| {
            read_request(&mut stream, proxied);
            assert_eq!(stream.read(&mut [0; 1]).expect("the client's end"), 0);
            let mut body = vec![0; MIB as usize];
            content::fill(0, &mut body);
            stream.write_all(&body).expect("sent");
        });
        let mut stream = world.connect(family, HTTP);
        stream.write_all(REQUEST.as_bytes()).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("open");
        let (mut body, mut hasher) = (Vec::new(), content::Hasher::default());
        stream.read_to_end(&mut body).expect("the server's end");
        hasher.update(&body);
        assert_eq!((body.len() as u64, hasher.finish()), (MIB, content::hash(MIB)));
        server.join().expect("the server does not panic");
        let client = stream.local_addr().unwrap();
        until("the flow is closed", || world.weir.flow(client)["stage"] == "closed");
    });
}

#[test]
fn reset_of_the_server_reaches_the_client() {
    on_every_way(|world, family, address, proxied| {
        let server = accept_one(world, address, move |mut stream| {
            read_request(&mut stream, proxied);
            stream.write_all(b"x").expect("sent");
            SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).expect("a socket");
        });
        let mut stream = world.connect(family, HTTP);
        stream.write_all(REQUEST.as_bytes()).expect("sent");
        let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        server.join().expect("the server does not panic");
    });
}

#[test]
fn reset_of_the_client_reaches_the_server() {
    on_every_way(|world, family, address, proxied| {
        assert_client_resets(world, address, proxied, || world.connect(family, HTTP));
    });
}

#[test]
fn addresses_that_are_used_again_at_once_make_a_new_connection() {
    on_every_way(|world, family, address, proxied| {
        let from = SocketAddr::new(family.addresses().client, 45_678);
        for _ in 0..4 {
            assert_client_resets(world, address, proxied, || {
                weir_control::demo::client::connect(&world.lab.client, from, family.origin(HTTP))
                    .expect("weir answers")
            });
        }
    });
}

#[test]
fn connection_that_says_nothing_is_closed_at_both_ends() {
    for handshake in ["answer", "through"] {
        play(&sending(handshake, &servers(1, HTTP), ""), |world| {
            for family in Family::BOTH {
                let stream = world.connect(family, HTTP);
                let client = stream.local_addr().unwrap();
                drop(stream);
                until("the flow is closed", || world.weir.flow(client)["stage"] == "closed");
            }
            assert_idle(&world.weir);
        });
    }
}

#[test]
fn request_larger_than_the_hold_arrives_whole() {
    for (handshake, host) in [("answer", ALLOWED), ("answer", POOLED), ("through", POOLED)] {
        play(&sending(handshake, &servers(1, HTTP), ""), |world| {
            for family in Family::BOTH {
                crate::world::upload_intact(&mut world.connect(family, HTTP), host, MIB);
            }
            assert_idle(&world.weir);
        });
    }
}
