use super::super::Protocol::{Http, Other, Tls};
use super::*;
use crate::ids::{PoolId, PortId, RuleId};

/// One rule of each kind of condition, each with its own action so far as there are enough.
fn web(handshake: Handshake) -> InterceptSpec {
    let content = |action, f: fn(&mut RuleSpec)| {
        let mut rule = RuleSpec::new(action);
        f(&mut rule);
        rule
    };
    let mut spec = InterceptSpec::new("web").from_port(PortId(0)).to_any().tcp([80, 443, 8443]);
    spec.handshake = handshake;
    spec.otherwise = Action::Reset;
    spec.unidentified = Action::Drop;
    spec.rule(content(Action::Drop, |r| r.host = names(&["denied.example", "*.ads.example"])))
        .rule(content(Action::Allow, |r| r.from = vec![net("10.1.9.9/32"), net("fd77:1::99/128")]))
        .rule(content(Action::Relay, |r| r.from = vec![net("10.1.9.0/24"), net("fd77:1::/64")]))
        .rule(content(Action::Relay, |r| {
            r.to = vec![net("192.0.2.0/24"), net("2001:db8::/32")];
            r.tcp = vec![8443..=8443];
        }))
        .rule(content(Action::Allow, |r| r.alpn = vec!["h2".to_owned(), "http/1.1".to_owned()]))
        .rule(content(Action::Allow, |r| {
            r.protocol = Some(Protocol::Http);
            r.host = names(&["*"]);
        }))
        .rule(content(Action::Allow, |r| {
            r.protocol = Some(Protocol::Other);
            r.to = vec![net("198.51.100.0/24"), net("2001:db8:5::/48")];
        }))
}

struct Row {
    client: [&'static str; 2],
    server: [&'static str; 2],
    port: u16,
    protocol: Option<Protocol>,
    host: Option<&'static str>,
    alpn: &'static [&'static [u8]],
    expected: (Action, Cause),
}

const CLIENT: [&str; 2] = ["10.1.1.1", "fd77:2::1"];
const SERVER: [&str; 2] = ["203.0.113.1", "2a00::1"];

const fn row(protocol: Option<Protocol>, host: Option<&'static str>, expected: (Action, Cause)) -> Row {
    Row { client: CLIENT, server: SERVER, port: 443, protocol, host, alpn: &[], expected }
}

const fn rule(id: u16) -> Cause {
    Cause::Rule(RuleId(id))
}

#[test]
fn first_match_wins_on_both_families() {
    let h2: &[&[u8]] = &[b"h3", b"h2"];
    let h3: &[&[u8]] = &[b"h3", b"h2c"];
    let relayed = ["10.1.9.1", "fd77:1::1"];
    let to_8443 = ["192.0.2.1", "2001:db8::1"];
    let other_ok = ["198.51.100.1", "2001:db8:5::1"];
    let rows = [
        row(Some(Tls), Some("denied.example"), (Action::Drop, rule(0))),
        row(Some(Http), Some("denied.example"), (Action::Drop, rule(0))),
        row(Some(Tls), Some("a.b.ads.example"), (Action::Drop, rule(0))),
        row(Some(Tls), Some("ads.example"), (Action::Reset, Cause::Otherwise)),
        row(Some(Tls), None, (Action::Reset, Cause::Otherwise)),
        Row { alpn: h2, ..row(Some(Tls), Some("x.example"), (Action::Allow, rule(4))) },
        Row { alpn: h2, ..row(Some(Tls), None, (Action::Allow, rule(4))) },
        Row { alpn: h3, ..row(Some(Tls), None, (Action::Reset, Cause::Otherwise)) },
        row(Some(Http), Some("x.example"), (Action::Allow, rule(5))),
        row(Some(Http), None, (Action::Reset, Cause::Otherwise)),
        // Addresses decide where there is no name, too.
        Row { client: relayed, ..row(None, None, (Action::Relay, rule(2))) },
        Row { client: relayed, ..row(Some(Tls), Some("denied.example"), (Action::Drop, rule(0))) },
        Row { client: ["10.1.9.9", "fd77:1::99"], ..row(Some(Tls), None, (Action::Allow, rule(1))) },
        Row { server: to_8443, port: 8443, ..row(Some(Tls), None, (Action::Relay, rule(3))) },
        Row { server: to_8443, ..row(Some(Tls), None, (Action::Reset, Cause::Otherwise)) },
        // Unidentified: addresses and `other` only, whatever name is shown along with it.
        row(None, None, (Action::Drop, Cause::Unidentified)),
        row(Some(Other), None, (Action::Drop, Cause::Unidentified)),
        Row { alpn: h2, ..row(None, Some("denied.example"), (Action::Drop, Cause::Unidentified)) },
        Row { server: other_ok, ..row(None, None, (Action::Allow, rule(6))) },
        Row { server: other_ok, ..row(Some(Other), None, (Action::Allow, rule(6))) },
        Row { server: other_ok, ..row(Some(Tls), None, (Action::Reset, Cause::Otherwise)) },
    ];
    let intercept = compiled(web(Handshake::Through));
    for (n, row) in rows.iter().enumerate() {
        for (client, server) in row.client.iter().zip(row.server) {
            let facts = Facts {
                client: ip(client),
                server: ip(server),
                server_port: row.port,
                protocol: row.protocol,
                host: row.host,
                alpn: row.alpn,
            };
            let (action, cause) = row.expected;
            assert_eq!(intercept.decide(&facts), Decision { action, cause }, "row {n}: {facts:?}");
        }
    }
}

#[test]
fn relay_is_taken_at_the_syn_past_rules_by_name() {
    let intercept = compiled(web(Handshake::Through));
    let rows = [
        // A rule by name stands before it: passed over.
        ("10.1.9.1", "203.0.113.1", 443, Some(2)),
        ("fd77:1::1", "2a00::1", 443, Some(2)),
        // A rule on addresses stands before it: wins.
        ("10.1.9.9", "203.0.113.1", 443, None),
        ("fd77:1::99", "2a00::1", 443, None),
        // By server and port.
        ("10.1.1.1", "192.0.2.1", 8443, Some(3)),
        ("fd77:2::1", "2001:db8::1", 8443, Some(3)),
        ("10.1.1.1", "192.0.2.1", 443, None),
        ("fd77:2::1", "2001:db8::1", 443, None),
        ("10.1.1.1", "203.0.113.1", 443, None),
    ];
    for (client, server, port, expected) in rows {
        let taken = intercept.relay_at_syn(ip(client), ip(server), port);
        assert_eq!(taken, expected.map(RuleId), "{client} to {server}:{port}");
    }
}

/// At the SYN nothing is known, and that is not `other`: that comes with the first bytes, or the lack of them.
#[test]
fn relay_is_taken_at_the_syn_past_a_rule_on_other() {
    let other = RuleSpec { protocol: Some(Other), ..RuleSpec::new(Action::Drop) };
    let spec = InterceptSpec::new("web").rule(other).rule(RuleSpec::new(Action::Relay));
    assert_eq!(compiled(spec).relay_at_syn(ip("10.0.0.1"), ip("10.0.0.2"), 80), Some(RuleId(1)));
}

#[test]
fn relay_by_content_is_refused_unless_the_handshake_is_relay() {
    let by_name = || {
        let mut rule = RuleSpec::new(Action::Relay);
        rule.host = names(&["a.example"]);
        rule.origin = "weir.toml:7".to_owned();
        InterceptSpec::new("web").from_port(PortId(0)).to_any().tcp([443]).rule(rule)
    };
    for handshake in [Handshake::Through, Handshake::Answer] {
        let spec = InterceptSpec { handshake, ..by_name() };
        let error = PolicyBuilder::new(1).intercept(spec).build().unwrap_err();
        assert!(error.to_string().starts_with("weir.toml:7: `relay` is decided at the SYN"), "{error}");
    }
    let relay = compiled(InterceptSpec { handshake: Handshake::Relay, ..by_name() });
    assert_eq!(relay.relay_at_syn(ip("10.0.0.1"), ip("10.0.0.2"), 443), None);
    let facts = Facts {
        client: ip("10.0.0.1"),
        server: ip("10.0.0.2"),
        server_port: 443,
        protocol: Some(Protocol::Tls),
        host: Some("a.example"),
        alpn: &[],
    };
    assert_eq!(relay.decide(&facts), Decision { action: Action::Relay, cause: Cause::Rule(RuleId(0)) });
}

#[test]
fn builder_refuses_what_ids_cannot_count() {
    let intercepts =
        |n: usize| (0..n).fold(PolicyBuilder::new(1), |b, _| b.intercept(InterceptSpec::new("i")));
    assert!(intercepts(64).build().is_ok());
    assert_eq!(intercepts(65).build().unwrap_err(), BuildError::Intercepts(65));

    let rules =
        |n: usize| InterceptSpec { rules: vec![RuleSpec::new(Action::Allow); n], ..InterceptSpec::new("i") };
    assert!(PolicyBuilder::new(1).intercept(rules(MAX_RULES)).build().is_ok());
    let error = PolicyBuilder::new(1).intercept(rules(MAX_RULES + 1)).build().unwrap_err();
    assert_eq!(error, BuildError::Rules("i".to_owned(), MAX_RULES + 1));

    let spec = InterceptSpec::new("i").rule(RuleSpec::new(Action::Send(PoolId(0))));
    let error = PolicyBuilder::new(1).intercept(spec.clone()).build().unwrap_err();
    assert!(matches!(error, BuildError::NoSuchPool { .. }));
    let pool = PoolSpec::new("intranet").server("10.2.0.10:443".parse().unwrap());
    let policy = PolicyBuilder::new(1).intercept(spec).pool(pool.clone()).build().unwrap();
    assert_eq!(policy.pool(PoolId(0)).map(|pool| pool.name.as_str()), Some("intranet"));

    let servers = |n: usize| PoolSpec { servers: vec![pool.servers[0]; n], ..pool.clone() };
    assert!(PolicyBuilder::new(1).pool(servers(MAX_SERVERS)).build().is_ok());
    let error = PolicyBuilder::new(1).pool(servers(MAX_SERVERS + 1)).build().unwrap_err();
    assert_eq!(error, BuildError::Servers("intranet".to_owned(), MAX_SERVERS + 1));
}

#[test]
fn shadowed_rule_is_told_by_its_conditions() {
    let spec = |f: fn(&mut RuleSpec)| {
        let mut rule = RuleSpec::new(Action::Allow);
        f(&mut rule);
        Rule::new(rule)
    };
    let any = spec(|_| {});
    let name = spec(|r| r.host = names(&["*.example"]));
    let deeper = spec(|r| r.host = names(&["*.a.example", "b.example"]));
    let narrow = spec(|r| {
        r.host = names(&["b.example"]);
        r.from = vec![net("10.1.0.0/16")];
        r.protocol = Some(Tls);
        r.alpn = vec!["h2".to_owned()];
        r.tcp = vec![443..=443];
    });
    let wide_from = spec(|r| r.from = vec![net("10.0.0.0/8")]);
    let h2 = spec(|r| r.alpn = vec!["h2".to_owned(), "h3".to_owned()]);
    let rows = [
        (&any, &name, true),
        (&name, &any, false),
        (&name, &deeper, true),
        (&deeper, &name, false),
        (&name, &narrow, true),
        (&wide_from, &narrow, true),
        (&h2, &narrow, true),
        (&narrow, &h2, false),
        (&narrow, &narrow, true),
    ];
    for (earlier, later, expected) in rows {
        assert_eq!(earlier.shadows(later), expected, "{earlier:?} before {later:?}");
    }
}
