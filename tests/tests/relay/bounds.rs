//! What bounds a connection on the relay, or a source: bandwidth, counts, ends that are gone; and the marks that packets keep.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use weir_core::ids::Nanos;
use weir_core::pace::{Rate, Rates};
use weir_core::policy::{Action, HeldFull, InterceptSpec, Limits, PolicyBuilder, RuleSpec};
use weir_core::relay::Failure;
use weir_core::sources::SourceLimits;
use weir_dataplane::relay::{Counter, Hooks, RelayConfig, RelayHandle};
use weir_sys::sockopt::{self, Upkeep};

use crate::lab::{
    self, CLIENTS, Lab, SERVERS, SOON, by_rule, counted, everything, is_refused, is_reset, pattern,
};

fn with_sources(lab: &Lab, source: SourceLimits) -> RelayHandle {
    let limits = Limits { source, source_over: Action::Reset, ..Limits::default() };
    let policy = PolicyBuilder::new(1).limits(limits).intercept(by_rule());
    lab.relay_of(policy, &lab::config(), Hooks::default())
}

/// An origin that says one octet and then waits for the client's end.
fn waiting(lab: &Lab, server: IpAddr) -> SocketAddr {
    lab.serve(server, |mut stream| {
        let _ = stream.write_all(b"x");
        let _ = stream.read(&mut [0; 1]);
    })
}

/// A connection that stands, as the octet says.
fn open(lab: &Lab, origin: SocketAddr) -> TcpStream {
    let mut stream = lab.connect(origin);
    stream.read_exact(&mut [0; 1]).expect("an octet");
    stream
}

#[test]
fn source_with_as_many_connections_as_allowed_is_refused_until_one_has_ended() {
    let lab = Lab::new();
    lab::ip(&lab.client, "addr add 10.1.0.3/24 dev eth0");
    let relay = with_sources(&lab, SourceLimits { flows: Some(2), rate: None });
    for (round, server) in (1..).zip(SERVERS) {
        let origin = waiting(&lab, server);
        let (one, _two) = (open(&lab, origin), open(&lab, origin));
        assert!(is_refused(&lab, origin), "{server}: the third");
        assert_eq!(relay.counters().get(Counter::RefusedSource), round, "{server}");
        // An IPv6 /64 is one source.
        if server.is_ipv4() {
            let mut other = lab.client.run(|| connect_from("10.1.0.3:0".parse().unwrap(), origin)).unwrap();
            other.read_exact(&mut [0; 1]).expect("another source is served");
        }
        drop(one);
        lab::until("one has ended", || {
            relay.flows(10).iter().filter(|f| f.client.ip() == CLIENTS[(round - 1) as usize]).count() == 1
        });
        let _fits = open(&lab, origin);
    }
}

fn connect_from(own: SocketAddr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(own), Type::STREAM, None).unwrap();
    socket.bind(&own.into()).unwrap();
    socket.connect_timeout(&to.into(), SOON).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.into()
}

#[test]
fn source_has_its_connections_whichever_threads_they_come_to() {
    const ALLOWED: u32 = 8;
    let lab = Lab::new();
    let limits = Limits {
        source: SourceLimits { flows: Some(ALLOWED), rate: None },
        source_over: Action::Reset,
        ..Limits::default()
    };
    let policy = PolicyBuilder::new(1).limits(limits).intercept(by_rule());
    let config = RelayConfig { workers: 4, ..lab::config() };
    let relay = lab.relay_of(policy, &config, Hooks::default());
    for server in SERVERS {
        let origin = waiting(&lab, server);
        let _all: Vec<TcpStream> = (0..ALLOWED).map(|_| open(&lab, origin)).collect();
        for _ in 0..4 {
            assert!(is_refused(&lab, origin), "{server}: one more");
        }
    }
    counted(&relay, Counter::RefusedSource, 8);
}

#[test]
fn threads_that_have_much_to_do_are_not_taken_for_hung() {
    const CLIENTS_AT_ONCE: usize = 120;
    let lab = Lab::new();
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let waits = gate.clone();
    // Each connection takes a moment, and the first one until all of them wait.
    let opened = move |_, _| {
        let (all_wait, told) = &*waits;
        drop(told.wait_while(all_wait.lock().unwrap(), |all_wait| !*all_wait).unwrap());
        std::thread::sleep(Duration::from_millis(2));
    };
    let hooks = Hooks { opened: Box::new(opened), ..Hooks::default() };
    let config = RelayConfig { heartbeat: Duration::from_millis(100), ..lab::config() };
    let relay = lab.relay_hooked(by_rule(), &config, hooks);
    let origin = waiting(&lab, SERVERS[1]);
    // The first one makes the thread wait; what the gate thinks of that does not matter.
    let mut all = vec![lab.connect(origin)];
    all.extend((1..CLIENTS_AT_ONCE).map(|_| lab.connect(origin)));
    let open_gate = || {
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
    };
    open_gate();
    lab::until("the first batch has begun", || relay.counters().get(Counter::Accepted) > 0);
    let before = relay.stalls();
    for stream in &mut all {
        stream.read_exact(&mut [0; 1]).expect("served");
    }
    // The wait of the first one ends in this time, and is one.
    assert!(relay.stalls().count <= before.count + 1, "{before:?} {:?}", relay.stalls());
}

#[test]
fn clients_that_say_half_a_hello_hold_no_more_than_all_may_and_the_others_get_their_turn() {
    const HALF: usize = 12_000;
    const MANY: usize = 12;
    let lab = Lab::new();
    for server in SERVERS {
        for held_full in [HeldFull::Wait, HeldFull::Reset] {
            let limits = Limits { held: Some(64 << 10), held_full, ..Limits::default() };
            let mut spec = everything();
            spec.hold_time = Nanos::from_secs(60);
            let policy = PolicyBuilder::new(1).limits(limits).intercept(spec);
            let relay = lab.relay_of(policy, &lab::config(), Hooks::default());
            let origin = lab.serve(server, |mut stream| {
                let mut hello = vec![0; 1];
                let _ = stream.read_exact(&mut hello).and_then(|()| stream.write_all(b"x"));
                let _ = stream.read(&mut hello);
            });
            let hello = lab::client_hello("www.example", 14_000);
            let mut streams: Vec<TcpStream> = (0..MANY).map(|_| lab.connect(origin)).collect();
            for stream in &mut streams {
                // Of a connection that was reset meanwhile it may fail.
                let _ = stream.write_all(&hello[..HALF]);
            }
            lab::until("there is no room", || relay.counters().get(Counter::HoldFull) > 0);
            let held: u64 = relay.flows(100).iter().map(|flow| u64::from(flow.buffered)).sum();
            assert!(held <= 64 << 10, "{server}: {held} octets");
            if held_full == HeldFull::Reset {
                lab::until("some are denied", || relay.counters().get(Counter::Denied) > 0);
                continue;
            }
            for stream in &mut streams {
                stream.write_all(&hello[HALF..]).expect("it is received when there is room");
            }
            for stream in &mut streams {
                stream.read_exact(&mut [0; 1]).expect("everybody gets an answer");
            }
        }
    }
}

#[test]
fn source_that_opens_connections_too_fast_is_refused_and_then_served_again() {
    let lab = Lab::new();
    let relay = with_sources(&lab, SourceLimits { flows: None, rate: Some(1) });
    for server in SERVERS {
        let origin = waiting(&lab, server);
        let before = relay.counters().get(Counter::RefusedSource);
        let deadline = Instant::now() + SOON;
        while relay.counters().get(Counter::RefusedSource) == before {
            assert!(Instant::now() < deadline, "{server}: never refused");
            drop(lab.try_connect(origin));
        }
        lab::until("it is served again", || !is_refused_soon(&lab, origin));
    }
}

fn is_refused_soon(lab: &Lab, origin: SocketAddr) -> bool {
    lab.try_connect(origin).map_or(true, |mut stream| {
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.read_exact(&mut [0; 1]).is_err()
    })
}

/// A rule that bounds bandwidth, for an intercept that the relay judges.
fn paced(rates: Rates) -> InterceptSpec {
    let mut rule = RuleSpec::new(Action::Allow);
    rule.rates = rates;
    everything().rule(rule)
}

#[test]
fn connections_of_a_rule_together_get_its_bandwidth_in_each_direction_and_every_octet() {
    const RATE: u64 = 1_000_000;
    const EACH: usize = 600_000;
    let lab = Lab::new();
    let relay = lab.relay(paced(Rates { rule: Some(Rate(RATE)), connection: None }));
    for server in SERVERS {
        // Octets that come back while they go: neither direction waits for the other's bandwidth.
        let origin = lab.serve(server, |mut stream| {
            let mut echo = stream.try_clone().unwrap();
            let _ = std::io::copy(&mut stream, &mut echo);
        });
        let start = Instant::now();
        let clients: Vec<_> = (0..2)
            .map(|seed| {
                let mut stream = lab.connect(origin);
                std::thread::spawn(move || {
                    let sent = pattern(seed, EACH);
                    let mut writer = stream.try_clone().unwrap();
                    let whole = sent.clone();
                    let up = std::thread::spawn(move || {
                        writer.write_all(&whole).unwrap();
                        writer.shutdown(std::net::Shutdown::Write).unwrap();
                    });
                    let mut received = Vec::new();
                    stream.read_to_end(&mut received).unwrap();
                    up.join().unwrap();
                    assert!(received == sent);
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        // A tenth of a second's worth may go at once, and the last turns when what was before is paid for.
        let least = Duration::from_micros(2 * EACH as u64 - RATE / 10 - RATE / 20);
        assert!(start.elapsed() >= least, "{server}: {:?}", start.elapsed());
    }
    counted(&relay, Counter::Finished, 4);
}

#[test]
fn each_connection_gets_its_own_bandwidth() {
    const RATE: u64 = 500_000;
    let lab = Lab::new();
    let relay = lab.relay(paced(Rates { rule: None, connection: Some(Rate(RATE)) }));
    for server in SERVERS {
        let sent = pattern(1, 300_000);
        let whole = sent.clone();
        let origin = lab.serve(server, move |mut stream| {
            stream.read_exact(&mut [0; 1]).unwrap();
            stream.write_all(&whole).unwrap();
        });
        let mut stream = lab.connect(origin);
        let start = Instant::now();
        stream.write_all(b"\0").unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        assert!(received == sent, "{server}");
        assert!(start.elapsed() >= Duration::from_millis(480), "{server}: {:?}", start.elapsed());
    }
    drop(relay);
}

fn with_upkeep(upkeep: Upkeep) -> RelayConfig {
    RelayConfig { upkeep, ..lab::config() }
}

/// From now on the server's machine says nothing.
fn silence(lab: &Lab) {
    lab::nft(
        &lab.server,
        "table inet gone { chain in { type filter hook input priority 0; policy drop;\n}\n}",
    );
}

#[test]
fn end_that_is_gone_without_a_word_is_found_by_keepalive_and_the_other_reset() {
    let second = Some(Duration::from_secs(1));
    let patient = with_upkeep(Upkeep { keepalive: second, user_timeout: None });
    // Here it has time until the server should have answered.
    let soon = Nanos::from_millis(300);
    let limits = weir_core::relay::Limits { connect: soon, pooled: soon, ..patient.limits };
    let hurried = RelayConfig { limits, ..patient.clone() };
    for config in [patient, hurried] {
        let lab = Lab::new();
        let relay = lab.relay_with(by_rule(), &config);
        let streams = SERVERS.map(|server| open(&lab, waiting(&lab, server)));
        silence(&lab);
        for stream in streams {
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            assert!(is_reset(&stream));
        }
        counted(&relay, Counter::ServerFailed, 2);
        assert_eq!(relay.counters().failures(Failure::TimedOut), 2);
    }
}

#[test]
fn octets_that_nobody_acknowledges_end_the_connection_in_the_users_time() {
    let lab = Lab::new();
    let second = Some(Duration::from_secs(1));
    let relay = lab.relay_with(by_rule(), &with_upkeep(Upkeep { keepalive: None, user_timeout: second }));
    let streams = SERVERS.map(|server| open(&lab, waiting(&lab, server)));
    silence(&lab);
    for mut stream in streams {
        stream.write_all(b"anybody there?").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert!(is_reset(&stream));
    }
    counted(&relay, Counter::ServerFailed, 2);
    assert_eq!(relay.counters().failures(Failure::TimedOut), 2);
}

#[test]
fn receivers_that_read_nothing_hold_their_buffers_and_no_octet_more() {
    const CONNECTIONS: usize = 4;
    let lab = Lab::new();
    let config = RelayConfig { connections: CONNECTIONS as u32, ..lab::config() };
    let most = 2 * config.limits.buffer;
    for server in SERVERS {
        let relay = lab.relay_with(by_rule(), &config);
        // Both ends send and neither reads.
        let origin = lab.serve(server, |mut stream| while stream.write(&[0; 65536]).is_ok() {});
        let streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| lab.connect(origin)).collect();
        for stream in &streams {
            stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut stream = stream;
            while stream.write(&[0; 65536]).is_ok() {}
        }
        let flows = relay.flows(100);
        assert_eq!(flows.len(), CONNECTIONS, "{server}");
        assert!(flows.iter().all(|flow| flow.buffered <= most), "{server}: {flows:?}");
        assert!(flows.iter().any(|flow| flow.buffered > 0), "{server}");
        assert!(is_refused(&lab, origin), "{server}: one more would be more than all may hold");
        drop(streams);
    }
}

#[test]
fn dscp_of_the_clients_syn_reaches_the_server_and_ecn_does_not() {
    const AF41: u8 = 34 << 2;
    let lab = Lab::new();
    let relay = lab.relay(by_rule());
    for (client, server) in CLIENTS.into_iter().zip(SERVERS) {
        let (result, seen) = channel();
        let listener = lab.listen(server);
        sockopt::keep_syn(&listener).unwrap();
        let origin = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok).take(2) {
                result.send(sockopt::syn_class(&stream).unwrap()).unwrap();
            }
        });
        for class in [AF41, 0] {
            let socket = lab
                .client
                .run(|| Socket::new(Domain::for_address(origin), Type::STREAM, None))
                .unwrap()
                .unwrap();
            sockopt::set_class(&socket, origin, class).unwrap();
            socket.bind(&SocketAddr::new(client, 0).into()).unwrap();
            socket.connect_timeout(&origin.into(), SOON).unwrap();
            assert_eq!(seen.recv_timeout(SOON).unwrap(), class, "{server}");
        }
    }
    counted(&relay, Counter::Accepted, 4);
}
