//! Flows of workers and relay as one list.

use std::net::SocketAddr;
use std::time::Duration;

use weir_core::reevaluate::{Evidence, Standing};
use weir_core::view::FlowView;
use weir_dataplane::relay::RelayFlow;

use super::merge;

fn address(net: &str, n: u32) -> SocketAddr {
    let host = n >> 15;
    format!("{net}{host:x}]:{}", 1024 + (n & 0x7fff)).parse().unwrap()
}

fn of_worker(n: u32) -> FlowView {
    FlowView {
        client: address("[fd77:1::", n),
        destination: address("[2001:db8::", 0),
        server: address("[2001:db8::", 0),
        vlan: None,
        way: None,
        port: Some(0),
        host: None,
        alpn: Vec::new(),
        ech: false,
        signed: false,
        evidence: Evidence::Nothing,
        standing: Standing::Over,
        epoch: 1,
        protocol: None,
        host_check: None,
        host_known: None,
        hello_retry: None,
        verdict: Some("relay"),
        rule: Some("weir.toml:7".into()),
        road: "relay",
        lane: None,
        lane_reason: None,
        is_in_lane: false,
        stage: "kernel",
        reason: "relay".into(),
        adopted: false,
        packets_to_server: Some(1),
        packets_to_client: Some(1),
        bytes_to_server: 0,
        bytes_to_client: 0,
        age_ns: 0,
        idle_ns: 0,
    }
}

fn of_relay(n: u32) -> RelayFlow {
    let (client, server) = (address("[fd77:1::", n), address("[2001:db8::", 0));
    RelayFlow {
        client,
        destination: server,
        server,
        source: client,
        intercept: None,
        port: Some(0),
        vlan: Some("100.10".into()),
        alpn: Vec::new(),
        ech: false,
        evidence: Evidence::Found,
        standing: Standing::Judged,
        epoch: 1,
        host: Some("www.example".into()),
        protocol: Some("tls"),
        host_check: None,
        host_known: None,
        hello_retry: None,
        verdict: None,
        rule: None,
        reason: "held",
        state: "open",
        bytes_up: 10,
        bytes_down: 20,
        buffered: 0,
        age: Duration::ZERO,
        idle: Duration::ZERO,
    }
}

#[test]
fn relay_flow_that_a_worker_gave_is_one_entry_with_both_their_knowledge() {
    let flows = merge(vec![of_worker(1), of_worker(2)], vec![of_relay(2), of_relay(3)]);
    assert_eq!(flows.len(), 3);
    let text = |flow: &FlowView| (flow.rule.clone(), flow.reason.clone(), flow.bytes_to_client);
    assert_eq!(text(&flows[0]), (Some("weir.toml:7".into()), "relay".into(), 0));
    assert_eq!(text(&flows[1]), (Some("weir.toml:7".into()), "relay".into(), 20));
    assert_eq!(text(&flows[2]), (None, "held".into(), 20));
}

#[test]
fn relay_flow_shows_no_packets_since_the_relay_counts_none() {
    let flows = merge(vec![of_worker(1)], vec![of_relay(1), of_relay(2)]);
    for flow in flows {
        let json = serde_json::to_value(&flow).unwrap();
        assert!(json["packets_to_server"].is_null() && json["packets_to_client"].is_null(), "{json}");
        assert_eq!(json["bytes_to_server"], 10);
    }
}

/// What a client's VLAN decides is judged by it, on the relay too (`check --against`).
#[test]
fn relay_flow_shows_its_vlan_with_its_port() {
    let flows = merge(vec![of_worker(1)], vec![of_relay(1), of_relay(2)]);
    for flow in flows {
        assert_eq!((flow.port, flow.vlan.as_deref()), (Some(0), Some("100.10")), "{}", flow.client);
    }
}

/// Compared one with another, so many would take a core for minutes.
#[test]
fn many_flows_on_both_are_merged_at_once() {
    let many = 200_000;
    let flows = merge((0..many).map(of_worker).collect(), (0..many).rev().map(of_relay).collect());
    assert_eq!(flows.len(), many as usize);
    assert!(flows.iter().all(|flow| flow.host.is_some()));
}
