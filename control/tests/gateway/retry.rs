//! HelloRetryRequest: real TLS that has one works on every road, and a client that says another name the second time is judged
//! by that, too.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection, Stream};
use weir_control::demo::origin::Authority;
use weir_control::demo::stage::Family;

use crate::config::{ALLOWED, DENIED, Settings};
use crate::weir::{PATIENCE, until};
use crate::world::{World, play};

/// A TLS server that wants secp384r1, for which no client sends a key at first.
const CHOOSY: u16 = 9443;
/// A server that asks every client for another hello, and takes whatever comes.
const CARELESS: u16 = 9444;
const GREETING: &[u8; 5] = b"hello";

/// What a server has received from each client.
type Received = Arc<Mutex<Vec<(SocketAddr, Vec<u8>)>>>;

fn settings(handshake: &'static str) -> Settings {
    let more = format!(
        "[[intercept]]\nname = \"retry\"\nfrom = \"lan\"\nto = [\"0.0.0.0/0\", \"::/0\"]\ntcp = [{CHOOSY}, {CARELESS}]\n\
         handshake = \"{handshake}\"\nrules = [{{ host = [\"{DENIED}\"], action = \"reset\" }}]\n"
    );
    Settings { handshake, more, rules: "", ..Settings::default() }
}

fn listen(world: &World<'_>, port: u16) -> TcpListener {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    world.lab.server.run(|| TcpListener::bind(any)).expect("a free port")
}

/// Greets whoever has shaken hands, until the test is over.
fn serve_choosy(listener: TcpListener, authority: &Authority) {
    let resolver = authority.server_config().expect("certificates").cert_resolver.clone();
    let provider = CryptoProvider { kx_groups: vec![kx_group::SECP384R1], ..default_provider() };
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, config) = (stream.expect("a client"), config.clone());
            std::thread::spawn(move || {
                let mut tls = ServerConnection::new(config).expect("a configuration");
                let mut tls = Stream::new(&mut tls, &mut stream);
                if tls.write_all(GREETING).and_then(|()| tls.flush()).is_ok() {
                    let _gone = tls.read(&mut [0; 1]);
                }
            });
        }
    });
}

/// The beginning of a HelloRetryRequest, with as much as tells it from a ServerHello.
fn request() -> Vec<u8> {
    let random = "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c";
    let octet = |at: usize| u8::from_str_radix(&random[at..at + 2], 16).expect("hex");
    let head = [22, 3, 3, 0, 56, 2, 0, 0, 52, 3, 3];
    let tail = [0, 0x13, 1, 0, 0, 12, 0, 43, 0, 2, 3, 4, 0, 51, 0, 2, 0, 24];
    head.into_iter().chain((0..64).step_by(2).map(octet)).chain(tail).collect()
}

/// Whether a record of TLS (RFC 8446, section 5.1) is there to its end.
fn record_is_whole(octets: &[u8]) -> bool {
    matches!(*octets, [_, _, _, high, low, ref rest @ ..] if rest.len() >= usize::from(u16::from_be_bytes([high, low])))
}

fn serve_careless(listener: TcpListener) -> Received {
    let received = Received::default();
    let told = received.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, told) = (stream.expect("a client"), told.clone());
            std::thread::spawn(move || {
                let peer = stream.peer_addr().expect("a client");
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                // A hello can take more than a segment: the first one has ended when its record is whole.
                let (mut room, mut asked) = ([0; 4096], false);
                while let Ok(got @ 1..) = stream.read(&mut room) {
                    told.lock().unwrap().push((peer, room[..got].to_vec()));
                    if asked {
                        let _ = stream.write_all(GREETING);
                    } else if record_is_whole(&of(&told, peer)) {
                        asked = true;
                        // In two segments, cut in the middle of what tells it.
                        let request = request();
                        stream.set_nodelay(true).expect("an option");
                        stream.write_all(&request[..20]).expect("room");
                        stream.write_all(&request[20..]).expect("room");
                    }
                }
            });
        }
    });
    received
}

fn of(received: &Received, client: SocketAddr) -> Vec<u8> {
    let received = received.lock().unwrap();
    received.iter().filter(|(peer, _)| *peer == client).flat_map(|(_, octets)| octets.clone()).collect()
}

/// A ClientHello of rustls.
fn hello(config: &Arc<ClientConfig>, name: &str) -> Vec<u8> {
    let name = name.to_owned().try_into().expect("a name");
    let mut out = Vec::new();
    let mut client = ClientConnection::new(config.clone(), name).expect("a configuration");
    while client.wants_write() {
        client.write_tls(&mut out).expect("memory");
    }
    out
}

fn connect(world: &World<'_>, family: Family, port: u16) -> TcpStream {
    let stream = world.connect(family, port);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

fn count(world: &World<'_>, handshake: &str, name: &str) -> u64 {
    world.weir.count(if handshake == "relay" { "relay" } else { "flows" }, name)
}

#[test]
fn handshakes_with_a_retry_work_and_are_shown_on_every_road() {
    for handshake in ["through", "answer", "relay"] {
        play(&settings(handshake), |world| {
            let authority = Authority::new().expect("keys");
            serve_choosy(listen(world, CHOOSY), &authority);
            world.meet_neighbours();
            for family in Family::BOTH {
                // One that has no ticket of an earlier connection.
                let config = authority.client_config().expect("a configuration");
                let before = count(world, handshake, "hello-retry");
                let mut stream = connect(world, family, CHOOSY);
                let client = stream.local_addr().expect("connected");
                let name = ALLOWED.to_owned().try_into().expect("a name");
                let mut tls = ClientConnection::new(config, name).expect("a configuration");
                let mut greeting = [0; GREETING.len()];
                Stream::new(&mut tls, &mut stream).read_exact(&mut greeting).expect("a greeting");
                assert_eq!(&greeting, GREETING);
                assert_eq!(tls.handshake_kind(), Some(HandshakeKind::FullWithHelloRetryRequest));
                let flow = world.weir.flow(client);
                assert_eq!(flow["hello_retry"], "same", "{handshake} {family:?}: {flow}");
                assert_eq!((&flow["verdict"], &flow["host"]), (&"allow".into(), &ALLOWED.into()));
                until("the retry is counted", || count(world, handshake, "hello-retry") == before + 1);
                assert_eq!(count(world, handshake, "hello-changed"), 0);
            }
        });
    }
}

#[test]
fn second_hello_with_a_refused_name_does_not_reach_a_server_that_does_not_look() {
    for handshake in ["through", "answer", "relay"] {
        play(&settings(handshake), |world| {
            let received = serve_careless(listen(world, CARELESS));
            let config = Authority::new().and_then(|authority| authority.client_config()).expect("keys");
            world.meet_neighbours();
            for family in Family::BOTH {
                for (second, passes) in [(ALLOWED, true), ("other.example", true), (DENIED, false)] {
                    let before = ["hello-changed", "hello-refused"].map(|name| count(world, handshake, name));
                    let mut stream = connect(world, family, CARELESS);
                    let client = stream.local_addr().expect("connected");
                    let first = hello(&config, ALLOWED);
                    stream.write_all(&first).expect("sent");
                    let mut answer = vec![0; request().len()];
                    stream.read_exact(&mut answer).expect("asked for another");
                    assert_eq!(answer, request());
                    let again = hello(&config, second);
                    stream.write_all(&again).expect("sent");
                    let heard = stream.read(&mut [0; GREETING.len()]);
                    let what = format!("{handshake} {family:?} {second}");
                    let changed = u64::from(second != ALLOWED);
                    if passes {
                        assert!(heard.is_ok_and(|got| got > 0), "{what}");
                        until("all of it is there", || {
                            of(&received, client) == [&first[..], &again].concat()
                        });
                        let retry = world.weir.flow(client)["hello_retry"].clone();
                        assert_eq!(retry, if changed == 1 { "changed" } else { "same" }, "{what}");
                    } else {
                        assert_eq!(heard.expect_err(&what).kind(), ErrorKind::ConnectionReset, "{what}");
                        assert_eq!(of(&received, client), first, "{what}: only the first hello");
                        if handshake != "relay" {
                            let flow = world.weir.flow(client);
                            assert_eq!(
                                (&flow["verdict"], &flow["hello_retry"]),
                                (&"reset".into(), &"changed".into())
                            );
                        }
                    }
                    until(&format!("{what} is counted"), || {
                        let now =
                            ["hello-changed", "hello-refused"].map(|name| count(world, handshake, name));
                        now == [before[0] + changed, before[1] + u64::from(!passes)]
                    });
                }
            }
        });
    }
}
