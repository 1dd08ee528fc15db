//! Rules that say `send`: what a pool's server sees of the client, and what happens when it does not take the connection.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use weir_core::ids::{Nanos, PoolId, ServerId};
use weir_core::policy::{
    Action, HashBy, InterceptSpec, NameSet, PolicyBuilder, PoolSpec, ProxyVersion, RuleSpec, Source,
};
use weir_core::relay::Limits;
use weir_dataplane::relay::{Counter, Hooks, RelayConfig, RelayHandle};

use crate::lab::{self, CLIENTS, Lab, NOBODY, SERVERS, SOON, counted, everything, flow, is_reset};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: sent.example\r\n\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn by_name() -> InterceptSpec {
    let mut names = NameSet::default();
    names.insert("sent.example").unwrap();
    let mut rule = RuleSpec::new(Action::Send(PoolId(0)));
    (rule.host, rule.origin) = (Some(Arc::new(names)), "weir.toml:7".into());
    everything().rule(rule)
}

fn pool(servers: &[SocketAddr]) -> PoolSpec {
    servers.iter().fold(PoolSpec::new("pool"), |pool, server| pool.server(*server))
}

fn start(lab: &Lab, pool: PoolSpec, config: &RelayConfig) -> RelayHandle {
    lab.relay_of(PolicyBuilder::new(1).intercept(by_name()).pool(pool), config, Hooks::default())
}

/// A server of the pool: tells who connected and with which bytes, up to the end of the request, and says `ok`.
fn pooled(lab: &Lab, ip: IpAddr) -> (SocketAddr, Receiver<(SocketAddr, Vec<u8>)>) {
    let (result, results) = channel();
    let address = lab.serve(ip, move |mut stream| {
        let (mut bytes, mut octet) = (Vec::new(), [0]);
        while !bytes.ends_with(REQUEST) && stream.read(&mut octet).is_ok_and(|n| n == 1) {
            bytes.extend(octet);
        }
        result.send((stream.peer_addr().unwrap(), bytes)).unwrap();
        // The client may have gone.
        let _ = stream.write_all(b"ok");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    (address, results)
}

/// A port of the server's on which nobody listens.
fn closed(lab: &Lab, ip: IpAddr) -> SocketAddr {
    let bound: TcpListener = lab.listen(ip);
    bound.local_addr().unwrap()
}

fn header(version: Option<ProxyVersion>, client: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    match version {
        None => Vec::new(),
        Some(ProxyVersion::V1) => {
            let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (client.ip(), destination.ip());
            format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), destination.port()).into_bytes()
        }
        Some(ProxyVersion::V2) => {
            let mut body = [octets(client.ip()), octets(destination.ip())].concat();
            body.extend(client.port().to_be_bytes());
            body.extend(destination.port().to_be_bytes());
            body.extend([2, 0, 12]);
            body.extend(b"sent.example");
            let family = if client.is_ipv4() { 0x11 } else { 0x21 };
            let fixed = [0x21, family, 0, u8::try_from(body.len()).unwrap()];
            [SIGNATURE, &fixed, &body].concat()
        }
    }
}

#[test]
fn sent_name_reaches_the_pools_server_with_the_header_before_its_bytes() {
    let lab = Lab::new();
    for source in [Source::Client, Source::Gateway] {
        for version in [None, Some(ProxyVersion::V1), Some(ProxyVersion::V2)] {
            let servers = SERVERS.map(|server| pooled(&lab, server));
            let mut spec = pool(&[servers[0].0, servers[1].0]);
            (spec.source, spec.proxy) = (source, version);
            let relay = start(&lab, spec, &lab::config());
            for ((server, seen), nobody) in servers.iter().zip(NOBODY) {
                let destination = SocketAddr::new(nobody, 80);
                let mut stream = lab.connect(destination);
                let client = stream.local_addr().unwrap();
                stream.write_all(REQUEST).unwrap();
                let (peer, bytes) = seen.recv_timeout(SOON).unwrap();
                assert_eq!(bytes, [&header(version, client, destination)[..], REQUEST].concat());
                let gateway = if server.is_ipv4() { "10.2.0.1" } else { "fd02::1" };
                match source {
                    Source::Client => assert_eq!(peer, client),
                    Source::Gateway => assert_eq!(peer.ip(), gateway.parse::<IpAddr>().unwrap()),
                }
                let mut answer = [0; 2];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!((&answer, stream.peer_addr().unwrap()), (b"ok", destination));
                let shown = flow(&relay, |flow| flow.client == client);
                assert_eq!((shown.destination, shown.server, shown.source), (destination, *server, peer));
                assert_eq!((shown.verdict, shown.rule.as_deref()), (Some("send"), Some("weir.toml:7")));
                assert_eq!((shown.reason, shown.state), ("rule", "open"));
            }
            counted(&relay, Counter::Sent, 2);
            relay.stop(std::time::Duration::ZERO);
        }
    }
}

#[test]
fn sent_leg_is_told_of_before_its_syn_and_once_when_it_is_over() {
    let lab = Lab::new();
    let servers = SERVERS.map(|server| pooled(&lab, server));
    let [opened, over] = [(); 2].map(|()| Arc::new(Mutex::new(Vec::new())));
    let note = |list: &Arc<Mutex<Vec<_>>>| {
        let list = list.clone();
        Box::new(move |from, to| list.lock().unwrap().push((from, to)))
    };
    let hooks = Hooks { opened: note(&opened), closed: note(&over) };
    let policy = PolicyBuilder::new(1).intercept(by_name()).pool(pool(&[servers[0].0, servers[1].0]));
    let relay = lab.relay_of(policy, &lab::config(), hooks);
    let mut legs = Vec::new();
    for ((server, seen), nobody) in servers.iter().zip(NOBODY) {
        let destination = SocketAddr::new(nobody, 80);
        let mut stream = lab.connect(destination);
        let client = stream.local_addr().unwrap();
        stream.write_all(REQUEST).unwrap();
        seen.recv_timeout(SOON).unwrap();
        legs.extend([(client, destination), (client, *server)]);
        assert_eq!(*opened.lock().unwrap(), legs);
    }
    counted(&relay, Counter::Closed, 2);
    // Which of the two ends first is theirs to say.
    over.lock().unwrap().sort_unstable();
    legs.sort_unstable();
    assert_eq!(*over.lock().unwrap(), legs);
}

#[test]
fn refused_server_is_reported_and_another_takes_the_connection() {
    let lab = Lab::new();
    for server in SERVERS {
        let ((live, seen), dead) = (pooled(&lab, server), closed(&lab, server));
        let mut spec = pool(&[dead, live]);
        (spec.hash, spec.proxy) = (HashBy::Flow, Some(ProxyVersion::V2));
        let config = lab::config();
        let relay = start(&lab, spec, &config);
        let mut clients = Vec::new();
        while clients.len() < 16 {
            let nobody = NOBODY[usize::from(server.is_ipv6())];
            let mut stream = lab.connect(SocketAddr::new(nobody, 80));
            stream.write_all(REQUEST).unwrap();
            stream.read_exact(&mut [0; 2]).unwrap();
            let (peer, bytes) = seen.recv_timeout(SOON).unwrap();
            assert_eq!(peer, stream.local_addr().unwrap());
            assert!(
                bytes.starts_with(SIGNATURE) && bytes.ends_with(REQUEST),
                "the header once, then the bytes"
            );
            clients.push(stream);
        }
        let failed: Vec<_> = std::iter::from_fn(|| config.failures.pop()).collect();
        assert!(
            !failed.is_empty() && failed.iter().all(|f| (f.pool, f.server) == (PoolId(0), ServerId(0))),
            "{failed:?}"
        );
        counted(&relay, Counter::Retried, failed.len() as u64);
        assert_eq!(relay.counters().get(Counter::ConnectFailed), 0);
    }
}

#[test]
fn servers_that_all_refuse_leave_the_client_with_a_reset() {
    let lab = Lab::new();
    for server in SERVERS {
        let config = lab::config();
        let relay = start(&lab, pool(&[closed(&lab, server), closed(&lab, server)]), &config);
        let nobody = NOBODY[usize::from(server.is_ipv6())];
        let mut stream = lab.connect(SocketAddr::new(nobody, 80));
        stream.write_all(REQUEST).unwrap();
        assert!(is_reset(&stream), "{server}");
        counted(&relay, Counter::ConnectFailed, 1);
        let mut failed: Vec<_> =
            std::iter::from_fn(|| config.failures.pop()).map(|failed| failed.server.0).collect();
        failed.sort_unstable();
        assert_eq!(failed, [0, 1]);
    }
}

#[test]
fn silent_server_is_left_for_another() {
    let lab = Lab::new();
    for (server, nobody) in SERVERS.into_iter().zip(NOBODY) {
        let (live, seen) = pooled(&lab, server);
        let mut spec = pool(&[SocketAddr::new(nobody, 443), live]);
        spec.hash = HashBy::Flow;
        let limits = Limits { pooled: Nanos::from_millis(200), ..lab::limits() };
        let config = RelayConfig { limits, ..lab::config() };
        let relay = start(&lab, spec, &config);
        for _ in 0..8 {
            let mut stream = lab.connect(SocketAddr::new(nobody, 80));
            stream.write_all(REQUEST).unwrap();
            assert_eq!(seen.recv_timeout(SOON).unwrap().0, stream.local_addr().unwrap());
            stream.read_exact(&mut [0; 2]).unwrap();
        }
        let failed: Vec<_> = std::iter::from_fn(|| config.failures.pop()).collect();
        assert!(!failed.is_empty() && failed.iter().all(|f| f.server == ServerId(0)), "{failed:?}");
        counted(&relay, Counter::Retried, failed.len() as u64);
    }
}

#[test]
fn server_that_speaks_first_is_heard_when_the_hold_is_over() {
    let lab = Lab::new();
    let mut spec = by_name();
    spec.hold_time = Nanos::from_millis(200);
    let policy = PolicyBuilder::new(1).intercept(spec).pool(pool(&SERVERS.map(|ip| SocketAddr::new(ip, 9))));
    let _relay = lab.relay_of(policy, &lab::config(), Hooks::default());
    for (client, server) in CLIENTS.into_iter().zip(SERVERS) {
        let origin = lab.serve(server, |mut stream| stream.write_all(b"220 ready\r\n").unwrap());
        let mut stream = lab.connect(origin);
        assert_eq!(stream.local_addr().unwrap().ip(), client);
        let mut banner = String::new();
        stream.read_to_string(&mut banner).unwrap();
        assert_eq!(banner, "220 ready\r\n");
    }
}
