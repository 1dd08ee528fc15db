//! `send` on the relay: pools of a running gateway whose connections the kernel's TCP carries, with and without XDP beside.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;
use weir_control::demo::stage::Family;

use crate::config::Settings;
use crate::weir::{PATIENCE, until};
use crate::world::{HTTP, World, fetch_intact, prepare};

const POOLED: u16 = 9443;
/// Where nobody listens.
const NOBODY: u16 = 9;
/// A port of the relay's intercept.
const RELAYED: u16 = 9998;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: sent.example\r\n\r\n";
const RULES: &str = r#"{ host = ["sent.example"], action = "send", pool = "named" },
    { host = ["own.example"], action = "send", pool = "own" }"#;

/// Pools of both families: one in the client's name with a server that refuses, and one in the gateway's.
fn pools() -> String {
    let list = |ports: &[u16]| {
        let at =
            |family: Family, port: &u16| SocketAddr::new(family.addresses().servers[0], *port).to_string();
        let all = ports.iter().flat_map(|port| Family::BOTH.map(|family| at(family, port)));
        format!("{:?}", all.collect::<Vec<_>>())
    };
    format!(
        "[[pool]]\nname = \"named\"\nservers = {}\nhash = \"flow\"\nproxy_protocol = \"v2\"\n\
         [[pool]]\nname = \"own\"\nservers = {}\nsource = \"gateway\"\n",
        list(&[NOBODY, POOLED]),
        list(&[POOLED]),
    )
}

/// Everything on the relay, and the relay beside a fast road; the port that is asked for.
fn configurations() -> [(String, u16); 2] {
    let alone = Settings { handshake: "relay", rules: RULES, ..Settings::default() };
    let beside = format!(
        "[[intercept]]\nname = \"relayed\"\nfrom = \"lan\"\nto = [\"0.0.0.0/0\", \"::/0\"]\ntcp = [{RELAYED}]\n\
         handshake = \"relay\"\nrules = [{RULES}]\n"
    );
    let fast = Settings::default();
    [(format!("{alone}{}", pools()), HTTP), (format!("{fast}{beside}{}", pools()), RELAYED)]
}

/// A server of the pool: who connected, and with which bytes up to the end of the request; answers `ok`.
fn serve(world: &World<'_>, family: Family) -> Receiver<(SocketAddr, Vec<u8>)> {
    let address = SocketAddr::new(family.addresses().servers[0], POOLED);
    let listener = world.lab.server.run(|| TcpListener::bind(address)).expect("the port is free");
    let (seen, receiver) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (mut bytes, mut octet) = (Vec::new(), [0]);
            while !bytes.ends_with(b"\r\n\r\n") || bytes.len() < REQUEST.len() - 1 {
                if stream.read(&mut octet).unwrap_or(0) == 0 {
                    break;
                }
                bytes.extend(octet);
            }
            let peer = stream.peer_addr().expect("connected");
            if seen.send((peer, bytes)).is_err() {
                return;
            }
            // The client may have gone.
            let _ = stream.write_all(b"ok");
        }
    });
    receiver
}

/// Asks for `host` and gets the pool's answer, under the address that was asked for.
#[track_caller]
fn ask(world: &World<'_>, family: Family, port: u16, host: &str) -> TcpStream {
    let target = family.origin(port);
    let mut stream = world.connect_to(family, target).expect("the relay answers");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).expect("sent");
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).expect("an answer of the pool's server");
    assert_eq!((&answer, stream.peer_addr().expect("connected")), (b"ok", target));
    stream
}

/// PROXY version 2, with the host name.
fn header(client: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut body = [octets(client.ip()), octets(destination.ip())].concat();
    body.extend([client.port().to_be_bytes(), destination.port().to_be_bytes()].concat());
    body.extend(b"\x02\0\x0csent.example");
    let family = if client.is_ipv4() { 0x11 } else { 0x21 };
    [b"\r\n\r\n\0\r\nQUIT\n\x21", &[family, 0, body.len() as u8][..], &body].concat()
}

#[track_caller]
fn assert_shown(flow: &Value, destination: SocketAddr, server: SocketAddr) {
    assert_eq!((&flow["road"], &flow["verdict"]), (&"relay".into(), &"send".into()), "{flow}");
    assert_eq!(flow["destination"], destination.to_string(), "{flow}");
    assert_eq!(flow["server"], server.to_string(), "{flow}");
    assert!(flow["rule"].as_str().is_some_and(|rule| rule.contains("test.toml:")), "{flow}");
}

fn state_of(world: &World<'_>, server: SocketAddr) -> String {
    let status = world.weir.status();
    let servers = status["pools"][0]["servers"].as_array().expect("pools have servers").clone();
    let found = servers.iter().find(|seen| seen["address"] == server.to_string());
    found.map_or_else(String::new, |seen| seen["state"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn sent_on_the_relay_reaches_a_server_that_takes_it_and_sees_the_client() {
    for (config, port) in configurations() {
        prepare(&Settings::default(), |world| {
            world.weir.write_config(&config);
            world.weir.start();
            for family in Family::BOTH {
                let seen = serve(world, family);
                let servers =
                    [NOBODY, POOLED].map(|port| SocketAddr::new(family.addresses().servers[0], port));
                let before = world.weir.count("relay", "retried");
                // Spread by the client's port: some come to the server that refuses first.
                let mut clients = Vec::new();
                until("the server that refuses is down", || {
                    let stream = ask(world, family, port, "sent.example");
                    let client = stream.local_addr().expect("connected");
                    let (peer, bytes) = seen.recv_timeout(PATIENCE).expect("the server was asked");
                    assert_eq!(peer, client, "the server sees the client");
                    assert_eq!(bytes, [header(client, family.origin(port)), REQUEST.to_vec()].concat());
                    assert_shown(&world.weir.flow(client), family.origin(port), servers[1]);
                    assert_eq!(world.received_from(client), 0, "the origin that was asked for heard of it");
                    clients.push(stream);
                    state_of(world, servers[0]) == "down"
                });
                assert!(world.weir.count("relay", "retried") >= before + 3);

                let stream = ask(world, family, port, "own.example");
                let (peer, bytes) = seen.recv_timeout(PATIENCE).expect("the server was asked");
                assert_eq!(peer.ip(), family.addresses().wan_gateway, "the server sees the gateway");
                assert!(bytes.starts_with(b"GET / "), "no header was asked for");
                assert_shown(
                    &world.weir.flow(stream.local_addr().expect("connected")),
                    family.origin(port),
                    servers[1],
                );
            }
            assert_eq!(world.weir.count("relay", "connect-failed"), 0);
            if port == RELAYED {
                // The pool's servers answered past the workers, from their first packet on.
                for redirect in ["redirect_pool", "redirect_gateway"] {
                    assert_eq!(world.weir.count("steering", redirect), 0, "{redirect}");
                }
                Family::BOTH
                    .into_iter()
                    .for_each(|family| fetch_intact(&mut world.connect(family, HTTP), 1000));
            }
        });
    }
}
