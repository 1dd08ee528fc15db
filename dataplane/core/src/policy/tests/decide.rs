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
                ech: false,
                alpn: row.alpn,
                hello_retry: false,
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

fn condition(f: fn(&mut RuleSpec)) -> RuleSpec {
    let mut rule = RuleSpec::new(Action::Reset);
    f(&mut rule);
    rule
}

/// What is not known of a name is a condition like what is.
#[test]
fn missing_literal_and_hidden_names_are_conditions() {
    let none = || condition(|r| r.host_none = true);
    let address = || condition(|r| r.host_address = true);
    let hidden = || condition(|r| r.ech = Some(true));
    let plain = || condition(|r| r.ech = Some(false));
    let listed = || {
        condition(|r| {
            (r.host, r.host_none) = (names(&["b.example"]), true);
            r.host_lists = names(&["a.example"]).into_iter().collect();
        })
    };
    type Case = (Option<Protocol>, Option<&'static str>, bool);
    let seen = |host, ech| (Some(Tls), host, ech);
    let rows: &[(RuleSpec, Case, bool)] = &[
        (none(), seen(None, false), true),
        (none(), (Some(Http), None, false), true),
        (none(), seen(Some("a.example"), false), false),
        // What could not be identified has no name because nobody knows it.
        (none(), (Some(Other), None, false), false),
        (none(), (None, None, false), false),
        (address(), seen(Some("192.0.2.1"), false), true),
        (address(), seen(Some("2001:db8::1"), false), true),
        (address(), seen(Some("192.0.2.1.example"), false), false),
        (address(), seen(None, false), false),
        (hidden(), seen(Some("public.example"), true), true),
        (hidden(), seen(Some("public.example"), false), false),
        // Grease: the name is the true one.
        (hidden(), seen(Some("www.example"), true), false),
        (hidden(), seen(None, true), false),
        (hidden(), (None, None, true), false),
        (plain(), seen(Some("www.example"), true), true),
        (plain(), seen(None, false), true),
        (plain(), (Some(Http), Some("www.example"), false), true),
        (plain(), seen(Some("public.example"), true), false),
        (plain(), (None, None, false), false),
        (listed(), seen(Some("a.example"), false), true),
        (listed(), seen(Some("b.example"), false), true),
        (listed(), seen(None, false), true),
        (listed(), seen(Some("c.example"), false), false),
    ];
    for (client, server) in CLIENT.into_iter().zip(SERVER) {
        for (n, (condition, (protocol, host, ech), expected)) in rows.iter().enumerate() {
            let spec = InterceptSpec::new("web").to_any().tcp([443]).rule(condition.clone());
            let policy = PolicyBuilder::new(1).ech_public_names(names(&["public.example"]).unwrap());
            let policy = policy.intercept(spec).build().unwrap();
            let facts = Facts {
                client: ip(client),
                server: ip(server),
                server_port: 443,
                protocol: *protocol,
                host: *host,
                ech: *ech,
                alpn: &[],
                hello_retry: false,
            };
            let taken = policy.intercepts()[0].decide(&facts).cause == rule(0);
            assert_eq!(taken, *expected, "row {n}: {facts:?}");
            assert!(condition.by_content());
        }
    }
}

#[test]
fn every_name_is_public_where_the_list_says_so() {
    let mut rule = RuleSpec::new(Action::Reset);
    rule.ech = Some(true);
    let spec = InterceptSpec::new("web").rule(rule);
    let policy =
        PolicyBuilder::new(1).ech_public_names(names(&["*"]).unwrap()).intercept(spec).build().unwrap();
    for (host, ech, action) in [
        (None, true, Action::Reset),
        (Some("any.example"), true, Action::Reset),
        (Some("any.example"), false, Action::Allow),
    ] {
        let (client, server) = (ip(CLIENT[0]), ip(SERVER[0]));
        let facts = Facts { protocol: Some(Tls), host, ech, ..Facts::of_addresses(client, server, 443) };
        assert_eq!(policy.intercepts()[0].decide(&facts).action, action, "{facts:?}");
    }
}

#[test]
fn lists_of_addresses_are_conditions_with_those_written() {
    let list = |text: &[&str]| vec![Arc::new(text.iter().map(|p| net(p)).collect::<Prefixes>())];
    let mut from = RuleSpec::new(Action::Drop);
    from.from = vec![net("10.1.0.0/16"), net("fd77:1::/64")];
    from.from_lists = list(&["10.2.0.0/16", "fd77:2::/64"]);
    let mut to = RuleSpec::new(Action::Reset);
    to.to_lists = list(&["192.0.2.0/24", "2001:db8::/32"]);
    let mut nobody = RuleSpec::new(Action::Relay);
    nobody.from_lists = list(&[]);
    assert!(!from.by_content() && !to.by_content());
    let intercept = compiled(InterceptSpec::new("web").rule(nobody).rule(from).rule(to));
    for (client, server, action) in [
        ("10.1.0.1", "203.0.113.1", Action::Drop),
        ("10.2.0.1", "203.0.113.1", Action::Drop),
        ("10.3.0.1", "203.0.113.1", Action::Allow),
        ("10.3.0.1", "192.0.2.1", Action::Reset),
        ("fd77:1::1", "2a00::1", Action::Drop),
        ("fd77:2::1", "2a00::1", Action::Drop),
        ("fd77:3::1", "2a00::1", Action::Allow),
        ("fd77:3::1", "2001:db8::1", Action::Reset),
    ] {
        let (client, server) = (ip(client), ip(server));
        let facts = Facts {
            client,
            server,
            server_port: 443,
            protocol: Some(Tls),
            host: None,
            ech: false,
            alpn: &[],
            hello_retry: false,
        };
        assert_eq!(intercept.decide(&facts).action, action, "{facts:?}");
    }
}

/// A list that was read again is another configuration, with the same rules.
#[test]
fn numbers_hold_through_epochs_of_lists_and_no_others() {
    let policy = |epoch| PolicyBuilder::new(epoch).intercept(InterceptSpec::new("web")).build().unwrap();
    let first = policy(7);
    assert!(first.numbers_since(7) && !first.numbers_since(6) && !first.numbers_since(8));
    let second = policy(1).succeeding(&first);
    assert_eq!(second.epoch, 8);
    let third = policy(1).succeeding(&second);
    for (epoch, expected) in [(6, false), (7, true), (8, true), (9, true), (10, false)] {
        assert_eq!(third.numbers_since(epoch), expected, "{epoch}");
    }
    let last = policy(u32::MAX);
    let round = policy(1).succeeding(&last);
    assert!(
        round.epoch == 0
            && round.numbers_since(u32::MAX)
            && round.numbers_since(0)
            && !round.numbers_since(1)
    );
}

#[test]
fn decided_connections_keep_no_lists() {
    let long: Vec<String> = (0..2000).map(|i| format!("host{i}.example")).collect();
    let list = Arc::new(NameSet::parse(long.iter().map(String::as_str)).unwrap());
    let mut rule = RuleSpec::new(Action::Reset);
    (rule.host_lists, rule.origin) = (vec![list.clone()], "weir.toml:9".to_owned());
    let first = PolicyBuilder::new(1).intercept(InterceptSpec::new("web").rule(rule)).build().unwrap();
    let policy = Arc::new(first.with_pools::<Vec<ServerState>>(&[]));
    let decided = policy.decided();
    drop(policy);
    drop(first);
    assert_eq!(Arc::strong_count(&list), 1);
    assert_eq!(decided.intercepts()[0].rules()[0].origin, "weir.toml:9");
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
        ech: false,
        alpn: &[],
        hello_retry: false,
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
