//! The relay's bounds, and servers that are not there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use weir_core::ids::Nanos;
use weir_core::relay::{Failure, Limits};
use weir_dataplane::relay::{Counter, Hooks, RelayConfig, RelayHandle};
use weir_sys::sockopt::Upkeep;

use crate::lab::{
    self, CLIENTS, GATEWAY, LISTEN, Lab, NOBODY, SERVERS, SOON, by_rule, counted, everything, flow,
    is_refused, is_reset,
};

fn with_limits(limits: Limits) -> RelayConfig {
    RelayConfig { limits, ..lab::config() }
}

#[test]
fn server_that_refuses_resets_the_client() {
    let lab = Lab::new();
    for spec in [by_rule(), everything()] {
        let relay = lab.relay(spec);
        for server in SERVERS {
            // Nobody listens on a port that was just given back.
            let closed = lab.listen(server).local_addr().unwrap();
            assert!(is_refused(&lab, closed), "{server}");
        }
        counted(&relay, Counter::ConnectFailed, 2);
        assert_eq!(relay.counters().failures(Failure::Refused), 2);
        relay.stop(Duration::ZERO);
    }
}

#[test]
fn server_that_does_not_answer_resets_the_client_in_time() {
    let lab = Lab::new();
    let limits = Limits { connect: Nanos::from_millis(400), ..lab::limits() };
    let relay = lab.relay_with(by_rule(), &with_limits(limits));
    for nobody in NOBODY {
        let start = Instant::now();
        assert!(is_refused(&lab, (nobody, 80).into()), "{nobody}");
        assert!(start.elapsed() < Duration::from_secs(3), "{nobody}: after {:?}", start.elapsed());
    }
    counted(&relay, Counter::ConnectFailed, 2);
}

#[test]
fn client_that_aborts_while_connecting_leaves_nothing() {
    let lab = Lab::new();
    let relay = lab.relay(by_rule());
    for nobody in NOBODY {
        let stream = lab.connect((nobody, 80).into());
        flow(&relay, |flow| flow.state == "connecting");
        lab::reset(stream);
        lab::until("no flow", || relay.flows(10).is_empty());
    }
    counted(&relay, Counter::ClientFailed, 2);
}

#[test]
fn connections_over_the_limit_are_reset_and_counted() {
    let lab = Lab::new();
    let relay = lab.relay_with(by_rule(), &RelayConfig { connections: 3, ..lab::config() });
    for (round, server) in (1..).zip(SERVERS) {
        let origin = lab.serve(server, |mut stream| {
            let _ = stream.read(&mut [0; 1]);
        });
        let held: Vec<_> = (0..3).map(|_| lab.connect(origin)).collect();
        lab::until("3 flows", || relay.flows(10).len() == 3);
        assert!(is_refused(&lab, origin), "{server}: the fourth");
        assert_eq!(relay.counters().get(Counter::RefusedFull), round, "{server}");
        drop(held);
        lab::until("no flow", || relay.flows(10).is_empty());
        let _fits_again = lab.connect(origin);
        flow(&relay, |flow| flow.state == "open");
        drop(_fits_again);
        lab::until("no flow", || relay.flows(10).is_empty());
    }
}

#[test]
fn idle_connection_is_reset_at_both_ends() {
    let lab = Lab::new();
    let limits = Limits { idle: Nanos::from_millis(300), ..lab::limits() };
    let relay = lab.relay_with(by_rule(), &with_limits(limits));
    for server in SERVERS {
        let origin = lab.serve(server, |stream| {
            assert!(is_reset(&stream));
        });
        assert!(is_refused(&lab, origin), "{server}");
    }
    counted(&relay, Counter::Idle, 2);
}

#[test]
fn connection_to_the_listener_itself_is_reset() {
    let lab = Lab::new();
    let relay = lab.relay(by_rule());
    for gateway in GATEWAY {
        assert!(is_refused(&lab, (gateway, LISTEN).into()), "{gateway}");
    }
    counted(&relay, Counter::RefusedOwn, 2);
    assert_eq!(relay.counters().get(Counter::Accepted), 0);
}

#[test]
fn clients_port_that_is_taken_is_replaced_and_its_address_kept() {
    let lab = Lab::new();
    let legs = Arc::new(Mutex::new((Vec::new(), Vec::new())));
    let (on_opened, on_closed) = (legs.clone(), legs.clone());
    let hooks = Hooks {
        opened: Box::new(move |from, to| on_opened.lock().unwrap().0.push((from, to))),
        closed: Box::new(move |from, to| on_closed.lock().unwrap().1.push((from, to))),
    };
    let relay = lab.relay_hooked(by_rule(), &lab::config(), hooks);
    for (client, server) in CLIENTS.into_iter().zip(SERVERS) {
        let origin = lab.serve(server, |mut stream| {
            let seen = stream.peer_addr().unwrap().to_string();
            stream.write_all(seen.as_bytes()).unwrap();
        });
        // In the gateway somebody has the client's address and port for himself.
        let own = SocketAddr::new(client, 40_000);
        let squatter = lab.gateway.run(|| squat(own)).unwrap();
        let mut stream = lab.client.run(|| connect_from(own, origin)).unwrap();
        let mut seen = String::new();
        stream.read_to_string(&mut seen).unwrap();
        let seen: SocketAddr = seen.parse().unwrap();
        assert!(seen.ip() == client && seen.port() != 40_000, "{seen}");
        drop((squatter, stream));
        lab::until("no flow", || relay.flows(10).is_empty());
        let (opened, closed) = std::mem::take(&mut *legs.lock().unwrap());
        assert_eq!(opened, [(own, origin), (seen, origin)]);
        assert_eq!(closed, opened);
    }
    assert_eq!(relay.counters().get(Counter::PortChanged), 2);
}

fn squat(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true).unwrap();
    } else {
        socket.set_ip_transparent_v6(true).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    socket
}

fn connect_from(own: SocketAddr, to: SocketAddr) -> std::net::TcpStream {
    let socket = Socket::new(Domain::for_address(own), Type::STREAM, None).unwrap();
    socket.bind(&own.into()).unwrap();
    socket.connect_timeout(&to.into(), SOON).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.into()
}

#[test]
fn stopped_relay_lets_connections_finish_then_resets_them() {
    let lab = Lab::new();
    for server in SERVERS {
        let relay = lab.relay(by_rule());
        let origin = lab.serve(server, |mut stream| {
            let mut byte = [0; 1];
            while stream.read(&mut byte).is_ok_and(|n| n > 0) {
                stream.write_all(&byte).unwrap();
            }
        });
        let (mut finishes, stays) = (lab.connect(origin), lab.connect(origin));
        lab::until("2 flows", || relay.flows(10).iter().filter(|flow| flow.state == "open").count() == 2);
        let stopping = std::thread::spawn(move || relay.stop(Duration::from_millis(700)));
        std::thread::sleep(Duration::from_millis(200));
        finishes.write_all(b"x").unwrap();
        finishes.read_exact(&mut [0; 1]).unwrap();
        drop(finishes);
        assert!(is_reset(&stays), "{server}");
        stopping.join().unwrap();
        // Nobody listens any more, so the kernel forwards: the road is open.
        let mut direct = lab.connect(origin);
        direct.write_all(b"y").unwrap();
        direct.read_exact(&mut [0; 1]).unwrap();
    }
}

#[test]
fn occupied_port_is_an_error_that_names_it() {
    let lab = Lab::new();
    let error = lab
        .gateway
        .run(|| {
            let _taken = TcpListener::bind(("0.0.0.0", LISTEN)).unwrap();
            let policy = weir_core::policy::PolicyBuilder::new(1).build().unwrap();
            let snapshot = weir_dataplane::snapshot::Snapshot {
                policy: Arc::new(policy),
                fib: Arc::new(weir_core::fib::Fib::default()),
                lanes: weir_core::express::Lanes::NONE,
            };
            let mut publisher = weir_dataplane::snapshot::Publisher::new();
            RelayHandle::start(&lab::config(), &Arc::new(snapshot), &mut publisher, Hooks::default())
                .map(|_| ())
                .unwrap_err()
                .to_string()
        })
        .unwrap();
    assert!(error.contains("0.0.0.0:12377") && error.contains("another process listens there"), "{error}");
}

/// Whether the kernel is about to ask the client of a connection of the gateway's whether it is there.
fn is_kept_alive(lab: &Lab, client: SocketAddr) -> bool {
    // The timer of the socket as proc(5) has it in net/tcp: 2 is keepalive's, 1 says that something is not acknowledged yet.
    let timer = || {
        let table = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
        let tables = lab.gateway.run(|| table("tcp") + &table("tcp6")).unwrap();
        let port = format!(":{:04X}", client.port());
        let leg = |line: &&str| line.split_whitespace().nth(2).is_some_and(|remote| remote.ends_with(&port));
        let line = tables.lines().find(leg).unwrap_or_else(|| panic!("{client}: {tables}"));
        line.split_whitespace().nth(5).and_then(|timer| timer.chars().nth(1)).expect("a timer")
    };
    lab::until("all is acknowledged", || timer() != '1');
    timer() == '2'
}

#[test]
fn keepalive_of_a_relay_that_takes_over_begins_when_it_accepts_and_not_where_it_fails() {
    let lab = Lab::new();
    let with = |seconds: Option<u64>| {
        let upkeep = Upkeep { keepalive: seconds.map(Duration::from_secs), user_timeout: None };
        RelayConfig { upkeep, ..lab::config() }
    };
    for (own, others) in [(None, Some(7200)), (Some(7200), None)] {
        let old = lab.relay_with(by_rule(), &with(own));
        let opened = |server| {
            let origin = lab.serve(server, |mut stream| {
                let _ = stream.write_all(b"x");
                let _ = stream.read(&mut [0; 1]);
            });
            let mut stream = lab.connect(origin);
            stream.read_exact(&mut [0; 1]).expect("served");
            stream
        };
        // It fails before it accepts.
        drop(lab.successor(&old, by_rule(), &with(others)));
        for server in SERVERS {
            let stream = opened(server);
            assert_eq!(is_kept_alive(&lab, stream.local_addr().unwrap()), own.is_some(), "{server} {own:?}");
        }
        let new = lab.successor(&old, by_rule(), &with(others));
        new.accept().unwrap();
        old.stop(Duration::ZERO);
        for server in SERVERS {
            let stream = opened(server);
            assert_eq!(
                is_kept_alive(&lab, stream.local_addr().unwrap()),
                others.is_some(),
                "{server} {own:?}"
            );
        }
        new.stop(Duration::ZERO);
    }
}
