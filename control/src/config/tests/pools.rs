use std::time::Duration;

use weir_core::policy::{Action, HashBy, HeldFull, PoolSpec, ProxyVersion, Quic, Server, Source, SynCookies};
use weir_core::sources::SourceLimits;

use super::bad::{assert_found, table};
use super::*;
use crate::config::model::Probe;

/// A pool on lines 7 to 9; more of its keys may follow from line 10 on.
const POOL: &str = "[[pool]]\nname = \"intranet\"\nservers = [\"10.2.0.10:443\", \"[fd00:2::10]:443\"]\n";

/// The pool of a text that follows [`PORTS`], with a rule that sends to it.
fn pool(text: &str) -> Pool {
    let text = format!("{PORTS}{text}{WEB}rules = [{{ action = \"send\", pool = \"intranet\" }}]\n");
    let (config, report) = read(&text).unwrap_or_else(|report| panic!("{text}\n{report}"));
    assert_eq!(report.findings, [], "{text}");
    config.pools.into_iter().next().unwrap()
}

#[test]
fn silent_pool_has_the_defaults() {
    let expected = PoolSpec::new("intranet").server("10.2.0.10:443".parse().unwrap());
    let expected = expected.server("[fd00:2::10]:443".parse().unwrap());
    assert_eq!(pool(POOL), Pool { spec: expected, check: None });
}

#[test]
fn every_key_of_a_pool_reaches_the_configuration() {
    let servers = "servers = [\"10.2.0.10:443\", { address = \"[fd00:2::10]:443\", weight = 0 }]";
    let text = format!(
        "[[pool]]\nname = \"intranet\"\n{servers}\nbalance = \"maglev\"\nhash = \"flow\"\nsource = \"gateway\"\n\
         ports = \"2000-2999\"\nproxy_protocol = \"v1\"\n\
         check = {{ kind = \"tcp\", interval = \"500ms\", rise = 1, fall = 5 }}\n"
    );
    let read = pool(&text);
    let spec = &read.spec;
    assert_eq!((spec.hash, spec.source, spec.proxy), (HashBy::Flow, Source::Gateway, Some(ProxyVersion::V1)));
    assert_eq!(spec.ports, 2000..=2999);
    let weights: Vec<u16> = spec.servers.iter().map(|server| server.weight).collect();
    assert_eq!(weights, [1, 0]);
    assert_eq!(spec.servers[0], Server::new("10.2.0.10:443".parse().unwrap()));
    let half = Duration::from_millis(500);
    let check = Check { probe: Probe::Tcp, interval: half, timeout: half, rise: 1, fall: 5 };
    assert_eq!(read.check, Some(check));
}

#[test]
fn checks_say_what_a_probe_asks() {
    let all = 200..=399;
    for (check, probe) in [
        ("kind = \"tcp\"", Probe::Tcp),
        ("kind = \"tls\"", Probe::Tls { host: None }),
        ("kind = \"tls\", host = \"www.example\"", Probe::Tls { host: Some("www.example".into()) }),
        ("kind = \"http\"", Probe::Http { path: "/".into(), host: None, status: vec![all.clone()] }),
        (
            "kind = \"http\", path = \"/up?a=b\", host = \"[fd00::1]:80\", status = [200, \"300-399\"]",
            Probe::Http {
                path: "/up?a=b".into(),
                host: Some("[fd00::1]:80".into()),
                status: vec![200..=200, 300..=399],
            },
        ),
        (
            "kind = \"http\", status = \"200-399\"",
            Probe::Http { path: "/".into(), host: None, status: vec![all] },
        ),
    ] {
        let read = pool(&format!("{POOL}check = {{ {check} }}\n")).check.unwrap();
        assert_eq!(read, defaults::check(probe), "{check}");
    }
}

#[test]
fn limits_reach_the_policy() {
    let limits = |text: &str| read(&format!("{PORTS}{WEB}{text}")).unwrap().0;
    let silent = limits("");
    assert_eq!(silent.limits, defaults::limits(1 << 20));
    let wanted = weir_core::policy::Limits { held: Some(64 << 20), ..weir_core::policy::Limits::default() };
    assert_eq!(silent.compile(1).limits, wanted);
    assert_eq!(limits("[workers]\nflows = 4096\n").limits.half_open, 512);
    let spoken = limits(
        "[limits]\nhalf_open = 5\nheld = \"1MiB\"\nheld_full = \"reset\"\nsource_flows = 7\nsource_rate = 9\n\
         source_over = \"reset\"\n",
    );
    assert_eq!(spoken.limits.held, 1 << 20);
    let expected = weir_core::policy::Limits {
        half_open: 5,
        held: Some(1 << 20),
        held_full: HeldFull::Reset,
        source: SourceLimits { flows: Some(7), rate: Some(9) },
        source_over: Action::Reset,
    };
    assert_eq!(spoken.compile(1).limits, expected);
}

#[test]
fn answer_and_quic_reach_the_policy() {
    let text = format!("{PORTS}{WEB}handshake = \"answer\"\nsyn_cookies = \"always\"\nquic = \"reject\"\n");
    let policy = read(&text).unwrap().0.compile(1);
    let web = &policy.intercepts()[0];
    assert_eq!((web.syn_cookies, web.quic), (SynCookies::Always, Quic::Reject));
}

#[test]
fn bad_pools() {
    table(
        &format!("{PORTS}{POOL}"),
        &[
            ("balance = \"random\"\n", &[(10, "allowed: maglev")]),
            ("hash = \"url\"\n", &[(10, "unknown value `url`; allowed: client, flow")]),
            ("source = \"server\"\n", &[(10, "allowed: client, gateway")]),
            ("proxy_protocol = \"v3\"\n", &[(10, "allowed: v1, v2")]),
            ("ports = \"2000-3000\"\n", &[(10, "only for `source = \"gateway\"`")]),
            ("source = \"gateway\"\nports = \"80-3000\"\n", &[(11, "allowed: 1024 to 65535")]),
            ("source = \"gateway\"\nports = 2000\n", &[(11, "expected a string")]),
            (
                "[[pool]]\nname = \"intranet\"\nservers = [\"10.2.0.10\", 3]\n",
                &[
                    (10 + 1, "`intranet` is taken already, at line 8"),
                    (12, "no address with a port"),
                    (12, "expected an address with a port, or a table"),
                ],
            ),
            (
                "[[pool]]\nname = \"p\"\nserver = \"10.2.0.10:80\"\n",
                &[
                    (10, "[[pool]] has no `servers`"),
                    (12, "unknown key `server` in [[pool]]; allowed: name, servers,"),
                ],
            ),
        ],
    );
    table(
        &format!("{PORTS}[[pool]]\nname = \"p\"\nservers = [\n"),
        &[
            ("]\n", &[(9, "the list is empty")]),
            (
                "\"10.2.0.10:80\",\n\"10.2.0.10:80\"]\n",
                &[(11, "`10.2.0.10:80` is taken already, at line 10")],
            ),
            ("{ weight = 2 }]\n", &[(10, "a server has no `address`")]),
            (
                "{ address = \"10.2.0.10:80\", weight = 257 }]\n",
                &[(10, "257 is not allowed; allowed: 0 to 256")],
            ),
            (
                "{ address = \"10.2.0.10:80\", wight = 2 }]\n",
                &[(10, "unknown key `wight` in a server; allowed: address")],
            ),
            ("\"[::ffff:10.2.0.10]:80\"]\n", &[(10, "an IPv4 address in IPv6 form")]),
            (
                "\"127.0.0.1:80\", \"[fe80::1]:80\"]\n",
                &[(10, "forward packets to"), (10, "forward packets to")],
            ),
        ],
    );
    let many: String = (0..1025).map(|n| format!("\"10.2.{}.{}:80\",\n", n / 256, n % 256)).collect();
    table(
        &format!("{PORTS}[[pool]]\nname = \"p\"\nservers = [\n"),
        &[(&format!("{many}]\n"), &[(9, "1025 servers; at most 1024 are allowed")])],
    );
}

#[test]
fn bad_checks() {
    let line = |check: &str| format!("check = {check}\n");
    for (check, expected) in [
        ("\"tcp\"", &["expected a table"][..]),
        ("{ interval = \"1s\" }", &["check has no `kind`"]),
        ("{ kind = \"icmp\" }", &["unknown value `icmp`; allowed: tcp, tls, http"]),
        ("{ kind = \"tcp\", every = \"1s\" }", &["unknown key `every` in check; allowed: kind, interval"]),
        ("{ kind = \"tcp\", interval = \"1\" }", &["no unit"]),
        ("{ kind = \"tcp\", interval = \"10ms\" }", &["allowed: 100ms to 1h"]),
        ("{ kind = \"tcp\", timeout = \"2m\" }", &["allowed: 10ms to 60s"]),
        ("{ kind = \"tcp\", interval = \"1s\", timeout = \"2s\" }", &["longer than `interval`"]),
        ("{ kind = \"tcp\", rise = 0, fall = 101 }", &["allowed: 1 to 100", "allowed: 1 to 100"]),
        (
            "{ kind = \"tcp\", host = \"a\", path = \"/\", status = 200 }",
            &["`path` in check is only for", "`status` in check is only for", "`host` in check is only for"],
        ),
        ("{ kind = \"tls\", path = \"/\" }", &["only for `kind = \"http\"`"]),
        ("{ kind = \"tls\", host = \"10.0.0.1\" }", &["no name of a host"]),
        ("{ kind = \"http\", path = \"up\" }", &["is no path"]),
        ("{ kind = \"http\", path = \"/a b\" }", &["is no path"]),
        ("{ kind = \"http\", host = \"a\\r\\nb\" }", &["is no host"]),
        (
            "{ kind = \"http\", status = [99, \"300-200\", true] }",
            &["allowed: 100 to 599", "nor a range", "a status or"],
        ),
    ] {
        let mut found = errors_of(&line(check));
        let mut expected: Vec<&str> = expected.to_vec();
        // Those of one line are in the order of the columns.
        found.retain(|message| match expected.iter().position(|fragment| message.contains(fragment)) {
            Some(at) => {
                expected.remove(at);
                false
            }
            None => true,
        });
        assert!(found.is_empty() && expected.is_empty(), "{check}: {found:?}, missing {expected:?}");
    }
}

/// The errors on line 10, the first behind [`POOL`].
fn errors_of(text: &str) -> Vec<String> {
    let report = read(&format!("{PORTS}{POOL}{text}")).expect_err(text);
    assert!(report.findings.iter().all(|finding| finding.line == Some(10)), "{report}");
    report.findings.into_iter().map(|finding| finding.message).collect()
}

#[test]
fn bad_limits() {
    table(
        &format!("{PORTS}{WEB}[limits]\n"),
        &[
            ("halfopen = 1\n", &[(13, "unknown key `halfopen` in [limits]; allowed: half_open, held,")]),
            ("half_open = 0\n", &[(13, "allowed: 1 to 1048576")]),
            ("half_open = 17\n[workers]\nflows = 16\n", &[(13, "17 is not allowed; allowed: 1 to 16")]),
            ("held = 67108864\n", &[(13, "expected a string")]),
            ("held = \"1KiB\"\n", &[(13, "allowed: 64KiB to 64GiB")]),
            ("held_full = \"kernel\"\n", &[(13, "allowed: wait, reset, drop")]),
            ("source_flows = 0\nsource_rate = -1\n", &[(13, "allowed: 1 to"), (14, "allowed: 1 to")]),
            ("source_rate = 1\nsource_over = \"allow\"\n", &[(14, "allowed: drop, reset")]),
        ],
    );
}

#[test]
fn rules_that_send_name_a_pool() {
    table(
        &format!("{PORTS}{POOL}"),
        &[
            (
                &format!("{WEB}rules = [{{ action = \"send\", pool = \"intrant\" }}]\n"),
                &[(15, "no [[pool]] is named `intrant`; there are: intranet")],
            ),
            (
                &format!("{WEB}rules = [{{ action = \"send\" }}]\n"),
                &[(15, "has no `pool`, which must be written")],
            ),
        ],
    );
}

#[test]
fn every_handshake_may_send() {
    for handshake in ["through", "answer", "relay"] {
        let rules = "rules = [{ host = \"a.example\", action = \"send\", pool = \"intranet\" }]";
        let text = format!("{PORTS}{POOL}{WEB}handshake = \"{handshake}\"\n{rules}\n");
        let (config, _) = read(&text).unwrap_or_else(|report| panic!("{handshake}: {report}"));
        assert!(config.compile(1).intercepts()[0].sends());
    }
}

/// A client is given a server of its own family.
#[test]
fn pool_without_a_server_of_a_family_that_a_rule_takes_is_refused() {
    let v4 = "\"10.2.0.10:443\"";
    let v6 = "\"[fd00:2::10]:443\"";
    let no_v4 = "takes connections to IPv4 destinations, and pool `p` has no IPv4 server: add one, or let the rule take \
                 IPv6 only (`to = [\"::/0\"]`)";
    let no_v6 = "takes connections to IPv6 destinations, and pool `p` has no IPv6 server";
    let any = "\"0.0.0.0/0\", \"::/0\"";
    for (servers, to, conditions, expected) in [
        (v6, any, "", Some(no_v4)),
        (v4, any, "", Some(no_v6)),
        (v4, "\"192.0.2.0/24\"", "", None),
        (v6, "\"192.0.2.0/24\"", "", Some(no_v4)),
        (v6, "\"2001:db8::/32\"", "", None),
        (v4, "\"2001:db8::/32\"", "", Some(no_v6)),
        (v4, any, "to = \"0.0.0.0/0\", ", None),
        (v4, any, "from = \"10.0.0.0/8\", ", None),
        (v6, any, "to = \"::/0\", ", None),
        (v6, any, "to = \"10.0.0.0/8\", ", Some(no_v4)),
        (&format!("{v4}, {{ address = {v6}, weight = 0 }}"), any, "", None),
    ] {
        let rule =
            format!("rules = [\n{{ {conditions}host = \"a.example\", action = \"send\", pool = \"p\" }}]\n");
        let web = WEB.replace(any, to);
        let text = format!("{PORTS}{web}{rule}[[pool]]\nname = \"p\"\nservers = [{servers}]\n");
        match expected {
            None => assert_eq!(read(&text).unwrap().1.findings, [], "{text}"),
            Some(sentence) => {
                let findings = read(&text).expect_err(&text).findings;
                let found: Vec<(usize, String)> =
                    findings.into_iter().map(|finding| (finding.line.unwrap(), finding.message)).collect();
                assert_found(&text, &found, &[(13, sentence)]);
            }
        }
    }
}

#[test]
fn server_of_two_pools_has_the_same_ports_in_both() {
    let pool = |name: &str, rest: &str| {
        format!("[[pool]]\nname = \"{name}\"\nservers = [\"10.2.0.10:443\"]\nsource = \"gateway\"\n{rest}")
    };
    let rules = "rules = [\n{ to = \"0.0.0.0/1\", action = \"send\", pool = \"a\" },\n\
                 { to = \"128.0.0.0/1\", action = \"send\", pool = \"b\" }]\n";
    let with = |rest: &str| read(&format!("{PORTS}{WEB}{rules}{}{}", pool("a", ""), pool("b", rest)));
    assert_eq!(with("").unwrap().1.findings, []);
    let report = with("ports = \"2000-2999\"\n").unwrap_err();
    let found: Vec<(usize, String)> =
        report.findings.into_iter().map(|finding| (finding.line.unwrap(), finding.message)).collect();
    let sentence =
        "pool `b` has server 10.2.0.10:443 from ports 2000 to 2999, and pool `a` from 10000 to 32767";
    assert_found("two pools", &found, &[(19, sentence)]);
}

#[test]
fn pool_whose_servers_all_drain_is_warned_of() {
    let text = "[[pool]]\nname = \"p\"\nservers = { address = \"10.2.0.10:443\", weight = 0 }\n";
    let rule = "rules = [{ to = \"0.0.0.0/0\", action = \"send\", pool = \"p\" }]\n";
    let (_, report) = read(&format!("{PORTS}{WEB}{rule}{text}")).unwrap();
    assert_eq!(report.findings.len(), 1, "{report}");
    assert!(report.findings[0].message.contains("all servers have weight 0"), "{report}");
}
