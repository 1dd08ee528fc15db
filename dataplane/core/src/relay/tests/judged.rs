//! Which intercept a connection belongs to, what is known at accept, and what the first bytes decide.

use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::flow::key::Tuple;
use crate::ids::{InterceptId, PoolId, PortId};
use crate::policy::{
    Action, Cause, Handshake, InterceptSpec, NameSet, Policy, PolicyBuilder, PoolSpec, Protocol,
    ProxyVersion, RuleSpec, Source,
};
use crate::proxy::MAX_PROXY_HEADER;

const PAIRS: [(&str, &str); 2] =
    [("10.1.0.2:40000", "192.0.2.10:80"), ("[fd01::2]:40000", "[2001:db8::10]:80")];
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: denied.example\r\n\r\n";

fn all(handshake: Handshake) -> InterceptSpec {
    let mut spec = InterceptSpec::new("all").from_port(PortId(3)).to_any().tcp([80]);
    spec.handshake = handshake;
    spec.hold_bytes = 64;
    spec
}

fn policy(intercepts: impl IntoIterator<Item = InterceptSpec>) -> Arc<Policy> {
    Arc::new(intercepts.into_iter().fold(PolicyBuilder::new(1), PolicyBuilder::intercept).build().unwrap())
}

fn by_name(action: Action) -> RuleSpec {
    let mut names = NameSet::default();
    names.insert("denied.example").unwrap();
    RuleSpec { host: Some(Arc::new(names)), origin: "weir.toml:9".into(), ..RuleSpec::new(action) }
}

fn by_client(action: Action) -> RuleSpec {
    let from = vec!["10.1.0.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()];
    RuleSpec { from, origin: "weir.toml:8".into(), ..RuleSpec::new(action) }
}

fn by_other_client(action: Action) -> RuleSpec {
    let from = vec!["10.9.0.0/24".parse().unwrap(), "fd09::/64".parse().unwrap()];
    RuleSpec { from, ..RuleSpec::new(action) }
}

fn judges(spec: &InterceptSpec) -> impl Iterator<Item = Judge> {
    let policy = policy([spec.clone()]);
    PAIRS.into_iter().map(move |(client, server)| {
        Judge::new(policy.clone(), None, client.parse().unwrap(), server.parse().unwrap())
    })
}

#[test]
fn intercept_is_of_the_port_to_the_client_or_else_the_first_that_takes_the_server() {
    let intercept = |name: &str, port| InterceptSpec::new(name).from_port(PortId(port)).to_any().tcp([80]);
    let policy = policy([intercept("a", 5), intercept("b", 1)]);
    for (_, server) in PAIRS {
        let server: SocketAddr = server.parse().unwrap();
        let rows = [(Some(PortId(1)), 1), (Some(PortId(5)), 0), (Some(PortId(9)), 0), (None, 0)];
        for (from, expected) in rows {
            assert_eq!(
                find_intercept(&policy, from, server),
                Some(InterceptId(expected)),
                "{server} {from:?}"
            );
        }
        let other = SocketAddr::new(server.ip(), 81);
        assert_eq!(find_intercept(&policy, None, other), None);
    }
    let mapped: SocketAddr = "[::ffff:192.0.2.10]:80".parse().unwrap();
    assert_eq!(find_intercept(&policy, None, mapped), Some(InterceptId(0)), "IPv4 of a dual-stack socket");
}

#[test]
fn accepted_waits_only_when_bytes_can_change_the_verdict() {
    let (through, relay) = (Handshake::Through, Handshake::Relay);
    let held = Start::Held { bytes: 64, time: Nanos::from_secs(3), ahead: true };
    let refused = Start::Settled(Verdict::Reset);
    let rows: [(&str, InterceptSpec, Start); 9] = [
        ("no rule", all(relay), held),
        ("a name", all(relay).rule(by_name(Action::Reset)), held),
        (
            "relay at the SYN, behind a name",
            all(through).rule(by_name(Action::Reset)).rule(by_client(Action::Relay)),
            Start::Settled(Verdict::Pass),
        ),
        (
            "relay behind a name, handshake relay",
            all(relay).rule(by_name(Action::Reset)).rule(by_client(Action::Relay)),
            held,
        ),
        (
            "allow by address",
            all(relay).rule(by_client(Action::Allow)).rule(by_name(Action::Reset)),
            Start::Settled(Verdict::Pass),
        ),
        ("reset by address", all(relay).rule(by_client(Action::Reset)), refused),
        ("reset by address, punted SYN", all(through).rule(by_client(Action::Reset)), refused),
        ("drop by address", all(relay).rule(by_client(Action::Drop)), Start::Settled(Verdict::Drop)),
        ("another's address", all(relay).rule(by_other_client(Action::Reset)), held),
    ];
    for (name, spec, expected) in rows {
        for mut judge in judges(&spec) {
            assert_eq!(judge.start(), expected, "{name}");
            assert_eq!(judge.judgement().is_some(), expected != held, "{name}");
        }
    }
}

#[test]
fn of_no_intercept_passes() {
    let (client, server) = ("10.1.0.2:1".parse().unwrap(), "192.0.2.1:9999".parse().unwrap());
    let mut judge = Judge::new(policy([all(Handshake::Relay)]), None, client, server);
    assert_eq!(judge.start(), Start::Settled(Verdict::Pass));
    assert_eq!(judge.unidentified(Unread::HoldTime), Verdict::Pass);
}

#[test]
fn first_bytes_decide_once_they_are_whole() {
    let rows =
        [(Action::Reset, Verdict::Reset), (Action::Drop, Verdict::Drop), (Action::Allow, Verdict::Pass)];
    for (action, verdict) in rows {
        for mut judge in judges(&all(Handshake::Relay).rule(by_name(action))) {
            judge.start();
            for cut in 1..REQUEST.len() {
                assert_eq!(judge.inspect(&REQUEST[..cut], 64), None, "{cut}");
            }
            assert_eq!(judge.inspect(REQUEST, 64), Some(verdict));
            let judgement = judge.judgement().unwrap();
            assert_eq!(judgement.host.as_deref().unwrap(), "denied.example");
            assert_eq!(judgement.protocol, Some(Protocol::Http));
            assert_eq!(judge.origin(), Some("weir.toml:9"));
        }
    }
}

#[test]
fn unread_takes_the_unidentified_verdict_and_keeps_its_cause() {
    let mut spec = all(Handshake::Relay).rule(by_name(Action::Allow));
    spec.unidentified = Action::Drop;
    for mut judge in judges(&spec) {
        judge.start();
        assert_eq!(judge.unidentified(Unread::ServerFirst), Verdict::Drop);
        let judgement = judge.judgement().unwrap();
        assert_eq!(
            (judgement.decision.cause, judgement.unread),
            (Cause::Unidentified, Some(Unread::ServerFirst))
        );
        assert_eq!(judge.origin(), None);
    }
}

/// Two pools of two servers for each family: in the client's name with a header, and in the gateway's with one server.
fn with_pools(intercept: InterceptSpec) -> Arc<Policy> {
    let [near, other] = [10, 11].map(|host| {
        [format!("10.2.0.{host}:443"), format!("[fd02::{host}]:443")].map(|addr| addr.parse().unwrap())
    });
    let mut two = PoolSpec::new("two");
    for server in near.iter().chain(&other) {
        two = two.server(*server);
    }
    two.proxy = Some(ProxyVersion::V2);
    let mut one = near.into_iter().fold(PoolSpec::new("one"), PoolSpec::server);
    one.source = Source::Gateway;
    Arc::new(PolicyBuilder::new(1).intercept(intercept).pool(two).pool(one).build().unwrap())
}

#[test]
fn sent_by_name_waits_without_a_server_and_then_names_two() {
    let send = Verdict::Send { from: LocalEnd::Client, spare: true };
    let policy = with_pools(all(Handshake::Relay).rule(by_name(Action::Send(PoolId(0)))));
    for (client, server) in PAIRS {
        let (client, destination): (SocketAddr, SocketAddr) =
            (client.parse().unwrap(), server.parse().unwrap());
        let mut judge = Judge::new(policy.clone(), None, client, destination);
        let held = Start::Held { bytes: 64, time: Nanos::from_secs(3), ahead: false };
        assert_eq!(judge.start(), held);
        assert_eq!(judge.inspect(REQUEST, 64), Some(send));
        assert_eq!(judge.origin(), Some("weir.toml:9"));

        let tuple = Tuple { src: client.into(), dst: destination.into() };
        let pool = policy.pool(PoolId(0)).unwrap();
        let first = pool.pick(&tuple, None).unwrap();
        let second = pool.pick(&tuple, Some(first)).unwrap();
        assert_eq!(judge.pooled(Towards::Server), Some((PoolId(0), first)), "as the fast road picks");
        assert_eq!(judge.pooled(Towards::Spare), Some((PoolId(0), second)));
        assert_eq!(judge.address(Towards::Server), pool.server(first).map(|server| server.addr));
        assert_eq!(judge.address(Towards::Destination), Some(destination));

        let mut header = [0; MAX_PROXY_HEADER];
        let len = judge.header(&mut header).unwrap();
        assert!(header[..len].starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21"));
        assert!(header[..len].ends_with(b"denied.example"), "the name goes with it");
    }
}

#[test]
fn sent_by_address_is_settled_and_a_pool_without_another_server_has_no_spare() {
    let policy = with_pools(all(Handshake::Relay).rule(by_client(Action::Send(PoolId(1)))));
    for (client, server) in PAIRS {
        let mut judge = Judge::new(policy.clone(), None, client.parse().unwrap(), server.parse().unwrap());
        let send = Verdict::Send { from: LocalEnd::Gateway, spare: false };
        assert_eq!(judge.start(), Start::Settled(send));
        assert_eq!((judge.pooled(Towards::Spare), judge.address(Towards::Spare)), (None, None));
        assert_eq!(judge.header(&mut [0; MAX_PROXY_HEADER]), Some(0), "the pool asks for none");
    }
}

#[test]
fn sent_to_a_pool_of_the_other_family_is_reset() {
    let pool = PoolSpec::new("v4").server("10.2.0.10:443".parse().unwrap());
    let intercept = all(Handshake::Relay).rule(by_client(Action::Send(PoolId(0))));
    let policy = Arc::new(PolicyBuilder::new(1).intercept(intercept).pool(pool).build().unwrap());
    let (client, server) = PAIRS[1];
    let mut judge = Judge::new(policy, None, client.parse().unwrap(), server.parse().unwrap());
    assert_eq!(judge.start(), Start::Settled(Verdict::Reset));
}
