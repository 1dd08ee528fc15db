//! Rules at the relay: what passes, what does not, and what the origin sees of it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use weir_core::fib::{Fib, Link, Route, VlanLink};
use weir_core::ids::{Nanos, PortId};
use weir_core::policy::{Action, InterceptSpec, NameSet, PolicyBuilder, RuleSpec, VlanChoice};
use weir_core::relay::Limits;
use weir_core::vlan::Vlan;
use weir_dataplane::relay::{Counter, Hooks, RelayConfig};

use crate::lab::{self, Lab, SERVERS, SOON, client_hello, counted, everything, flow, is_refused, is_reset};

fn deny(action: Action) -> InterceptSpec {
    let mut rule = RuleSpec::new(action);
    rule.origin = "weir.toml:7".into();
    let mut names = NameSet::default();
    names.insert("denied.example").unwrap();
    rule.host = Some(Arc::new(names));
    everything().rule(rule)
}

/// An origin that tells what each connection brought: bytes, and whether it ended in order.
fn witness(lab: &Lab, ip: IpAddr) -> (SocketAddr, Receiver<(Vec<u8>, bool)>) {
    let (result, results) = channel();
    let address = lab.serve(ip, move |mut stream| {
        let mut bytes = Vec::new();
        let in_order = stream.read_to_end(&mut bytes).is_ok();
        result.send((bytes, in_order)).unwrap();
    });
    (address, results)
}

#[test]
fn denied_name_resets_both_ends_and_no_byte_reaches_the_origin() {
    let lab = Lab::new();
    let relay = lab.relay(deny(Action::Reset));
    let requests: [(&str, Vec<u8>); 3] = [
        ("tls", client_hello("denied.example", 0)),
        ("a ClientHello over several segments", client_hello("denied.example", 1_800)),
        ("http", b"GET / HTTP/1.1\r\nHost: denied.example\r\n\r\n".to_vec()),
    ];
    for server in SERVERS {
        for (name, request) in &requests {
            let (origin, results) = witness(&lab, server);
            let mut stream = lab.connect(origin);
            for part in request.chunks(700) {
                stream.write_all(part).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(is_reset(&stream), "{server} {name}");
            // RST may overtake the origin's accept; if it saw a connection, it saw an empty one.
            if let Ok((bytes, in_order)) = results.recv_timeout(Duration::from_millis(300)) {
                assert!(bytes.is_empty() && !in_order, "{server} {name}: {} octets", bytes.len());
            }
        }
    }
    counted(&relay, Counter::Denied, 6);
    assert_eq!(relay.counters().get(Counter::BytesUp), 0);
}

#[test]
fn allowed_name_passes_and_is_shown() {
    let lab = Lab::new();
    let relay = lab.relay(deny(Action::Reset));
    for server in SERVERS {
        let (origin, results) = witness(&lab, server);
        let mut stream = lab.connect(origin);
        let hello = client_hello("fine.example", 1_800);
        let (first, rest) = hello.split_at(1_400);
        stream.write_all(first).unwrap();
        let held = flow(&relay, |flow| flow.server == origin && flow.buffered as usize == first.len());
        assert_eq!((held.state, held.verdict, held.bytes_up), ("held", None, 0));
        stream.write_all(rest).unwrap();
        let open = flow(&relay, |flow| flow.server == origin && flow.bytes_up as usize == hello.len());
        assert_eq!((open.host.as_deref(), open.protocol), (Some("fine.example"), Some("tls")));
        assert_eq!((open.verdict, open.reason, open.state), (Some("allow"), "otherwise", "open"));
        assert_eq!(open.client, stream.local_addr().unwrap());
        drop(stream);
        assert_eq!(results.recv_timeout(SOON).unwrap(), (hello, true));
    }
}

/// Of the way back to its clients the relay knows by which VLAN it goes.
#[test]
fn client_behind_a_vlan_is_shown_with_its_port_and_vlan() {
    let mut fib = Fib::default();
    let link = Link { mac: [0; 6], mtu: 1500, up: true, v4: None, v6: None };
    for (number, vlan) in [(PortId(32), Vlan::new(10)), (PortId(33), Vlan::stacked(100, 10))] {
        fib.vlans.insert(number, VlanLink { port: PortId(0), vlan, link });
    }
    fib.v4.insert("10.1.0.0/24".parse().unwrap(), Route::OnLink(PortId(32)));
    fib.v6.insert("fd01::/64".parse().unwrap(), Route::OnLink(PortId(33)));
    let mut spec = everything();
    spec.vlan = VlanChoice { ids: vec![10..=10], stacked: vec![(100, 10)], ..VlanChoice::NONE };
    let lab = Lab::new();
    let policy = PolicyBuilder::new(1).intercept(spec);
    let relay = lab.relay_on(fib, policy, &lab::config(), Hooks::default());
    for (server, vlan) in SERVERS.into_iter().zip(["10", "100.10"]) {
        let (origin, _results) = witness(&lab, server);
        let mut stream = lab.connect(origin);
        stream.write_all(&client_hello("fine.example", 0)).unwrap();
        let shown = flow(&relay, |flow| flow.server == origin);
        assert_eq!((shown.port, shown.vlan.as_deref()), (Some(0), Some(vlan)), "{server}");
    }
}

#[test]
fn server_that_speaks_first_is_heard_and_the_flow_is_unidentified() {
    let lab = Lab::new();
    let relay = lab.relay(deny(Action::Reset));
    for server in SERVERS {
        let origin = lab.serve(server, |mut stream| {
            stream.write_all(b"220 ready\r\n").unwrap();
            let mut line = [0; 6];
            stream.read_exact(&mut line).unwrap();
            stream.write_all(&line).unwrap();
        });
        let mut stream = lab.connect(origin);
        let mut banner = [0; 11];
        stream.read_exact(&mut banner).unwrap();
        assert_eq!(&banner, b"220 ready\r\n");
        let seen = flow(&relay, |flow| flow.server == origin);
        assert_eq!((seen.verdict, seen.reason, seen.protocol), (Some("allow"), "server-first", None));
        stream.write_all(b"EHLO\r\n").unwrap();
        let mut echo = String::new();
        stream.read_to_string(&mut echo).unwrap();
        assert_eq!(echo, "EHLO\r\n");
    }
}

#[test]
fn silent_client_gets_the_unidentified_verdict_when_the_hold_is_over() {
    let lab = Lab::new();
    let mut spec = everything();
    spec.hold_time = Nanos::from_millis(200);
    spec.unidentified = Action::Reset;
    let relay = lab.relay(spec);
    for server in SERVERS {
        let (origin, _results) = witness(&lab, server);
        let mut stream = lab.connect(origin);
        stream.write_all(b"GET / HT").unwrap();
        assert!(is_reset(&stream), "{server}");
    }
    counted(&relay, Counter::Denied, 2);
    assert_eq!(relay.counters().get(Counter::BytesUp), 0);
}

#[test]
fn dropped_name_leaves_the_client_without_an_answer_for_the_quiet_time() {
    let lab = Lab::new();
    let limits = Limits { quiet: Nanos::from_millis(700), ..lab::limits() };
    let relay = lab.relay_with(deny(Action::Drop), &RelayConfig { limits, ..lab::config() });
    for server in SERVERS {
        let (origin, results) = witness(&lab, server);
        let mut stream = lab.connect(origin);
        let start = Instant::now();
        stream.write_all(&client_hello("denied.example", 0)).unwrap();
        assert!(is_reset(&stream), "{server}");
        assert!(start.elapsed() >= Duration::from_millis(700), "{server}: after {:?}", start.elapsed());
        if let Ok((bytes, in_order)) = results.recv_timeout(Duration::from_millis(300)) {
            assert!(bytes.is_empty() && !in_order, "{server}");
        }
    }
    counted(&relay, Counter::Dropped, 2);
}

#[test]
fn rule_that_took_the_syn_passes_without_waiting_for_bytes() {
    let lab = Lab::new();
    let relay = lab.relay(lab::by_rule());
    for server in SERVERS {
        let (origin, results) = witness(&lab, server);
        let mut stream = lab.connect(origin);
        // Not a whole request: nothing waits for its end.
        stream.write_all(b"GET / HT").unwrap();
        let seen = flow(&relay, |flow| flow.server == origin && flow.bytes_up == 8);
        assert_eq!((seen.verdict, seen.reason, seen.protocol), (Some("relay"), "rule", None));
        drop(stream);
        assert_eq!(results.recv_timeout(SOON).unwrap(), (b"GET / HT".to_vec(), true));
    }
}

#[test]
fn client_refused_by_its_address_is_reset_and_the_server_never_connected() {
    let lab = Lab::new();
    let mut rule = RuleSpec::new(Action::Reset);
    rule.from = vec!["10.1.0.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()];
    let relay = lab.relay(everything().rule(rule));
    for server in SERVERS {
        let listener = lab.listen(server);
        listener.set_nonblocking(true).unwrap();
        assert!(is_refused(&lab, listener.local_addr().unwrap()), "{server}");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "{server}");
    }
    counted(&relay, Counter::Denied, 2);
}
