use std::net::IpAddr;
use std::time::Duration;

use weir_core::ids::{InterceptId, Nanos, PortId, RuleId};
use weir_core::policy::{Action, Cause, Facts, Full, Handshake, Midstream, Protocol};
use weir_core::vlan::Vlan;

use super::*;

const FULL: &str = r#"
[gateway]
fail    = "closed"
admin   = "/run/other.sock"
metrics = "[::1]:9470"
heartbeat = "200ms"
[[port]]
name = "lan"
device = "eth1"
queues = [0, 1]
mode = "zero-copy"

[[port]]
name = "wan"
device = "eth2"
queues = "all"

[workers]
cores = [2, 3]
idle  = "busy"
express = "never"
flows = 4096

[fallback]
mark = "0x100/0xf00"
table = 300
priority = 900
listen = 4000

[[intercept]]
name = "web"
from = "lan"
to   = ["0.0.0.0/0", "::/0"]
tcp  = [80, 443, "8000-8099"]
handshake = "through"
hold = { bytes = "4KiB", time = "500ms" }
full = "drop"
otherwise    = "reset"
unidentified = "drop"
midstream    = { action = "drop", grace = "5s" }
rules = [
  { host = ["ADS.example", "*.ads.example."], action = "reset" },
  { from = ["10.1.9.0/24", "fd77:1::/64"], tcp = "8000-8001", action = "relay" },
  { protocol = "tls", alpn = ["h2"], action = "allow" },
  { to = "192.0.2.1", protocol = "other", action = "allow" },
]

[[intercept]]
name = "smtp"
from = ["lan", "wan"]
to   = "192.0.2.25"
tcp  = 25
handshake = "relay"
rules = [{ host = "mail.example", action = "relay" }]
"#;

#[test]
fn every_key_reaches_the_configuration() {
    let (config, report) = read(FULL).unwrap();
    assert_eq!(report.findings, []);
    let gateway = Gateway {
        fail: Fail::Closed,
        admin: "/run/other.sock".into(),
        metrics: Some("[::1]:9470".parse().unwrap()),
        heartbeat: Duration::from_millis(200),
    };
    assert_eq!(config.gateway, gateway);
    let port = |name: &str, device: &str, queues, mode, line| Port {
        name: name.to_owned(),
        device: device.to_owned(),
        queues,
        mode,
        origin: format!("weir.toml:{line}"),
    };
    let ports = [
        port("lan", "eth1", Queues::List(vec![0, 1]), Mode::ZeroCopy, 7),
        port("wan", "eth2", Queues::All, Mode::Auto, 13),
    ];
    assert_eq!(config.ports, ports);
    assert_eq!(config.port("wan").map(|(id, _)| id), Some(PortId(1)));
    let workers =
        Workers { cores: Cores::List(vec![2, 3]), idle: Idle::Busy, express: Express::Never, flows: 4096 };
    assert_eq!(config.workers, workers);
    let fallback =
        Fallback { mark: Mark { value: 0x100, mask: 0xf00 }, table: 300, priority: 900, listen: 4000 };
    assert_eq!(config.fallback, fallback);
    let web = &config.intercepts[0];
    assert_eq!((web.hold_bytes, web.hold_time, web.full), (4096, Nanos::from_millis(500), Full::Drop));
    assert_eq!((web.otherwise, web.unidentified), (Action::Reset, Action::Drop));
    assert_eq!(web.midstream, Midstream { action: Action::Drop, grace: Nanos::from_secs(5) });
    assert_eq!(web.tcp, [80..=80, 443..=443, 8000..=8099]);
    assert_eq!(web.origin, "weir.toml:30");
    assert_eq!(config.intercepts[1].handshake, Handshake::Relay);
}

#[test]
fn silent_file_has_the_defaults() {
    let (config, _) = read(&format!("{PORTS}{WEB}")).unwrap();
    assert_eq!(config.gateway, defaults::gateway());
    assert_eq!(config.workers, defaults::workers());
    assert_eq!(config.fallback, defaults::fallback());
    let web = &config.intercepts[0];
    assert_eq!(
        (web.handshake, web.hold_bytes, web.hold_time),
        (Handshake::Through, 16384, Nanos::from_secs(3))
    );
    assert_eq!(web.midstream, Midstream { action: Action::Reset, grace: Nanos::from_secs(60) });
}

#[test]
fn vlan_left_out_is_what_has_no_tag_and_each_way_to_name_some_counts() {
    let of = |line: &str| read(&format!("{PORTS}{WEB}{line}")).unwrap().0.intercepts[0].vlan.clone();
    let (ten, stack) = (Vlan::new(10), Vlan::stacked(100, 10));
    for (line, untagged, one, two) in [
        ("", true, false, false),
        ("vlan = 10", false, true, false),
        ("vlan = [\"1-20\", 30]", false, true, false),
        ("vlan = [\"100.10\"]", false, false, true),
        ("vlan = [10, \"100.10\", \"untagged\"]", true, true, true),
        ("vlan = \"any\"", true, true, true),
        ("vlan = [20, 100]", false, false, false),
    ] {
        let choice = of(line);
        let takes = [None, Some(&ten), Some(&stack)].map(|vlan| choice.takes(vlan));
        assert_eq!(takes, [untagged, one, two], "{line}");
    }
}

#[test]
fn compiled_rules_decide_and_say_where_they_stand() {
    let (config, _) = read(FULL).unwrap();
    let policy = config.compile(9);
    assert_eq!(policy.epoch, 9);
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let id = policy.intercept(PortId(0), ip("2001:db8::1"), 8001).unwrap();
    assert_eq!(id, InterceptId(0));
    assert_eq!(policy.intercept(PortId(1), ip("192.0.2.25"), 25), Some(InterceptId(1)));
    assert_eq!(policy.intercept(PortId(1), ip("192.0.2.25"), 443), None);
    let web = policy.get(id).unwrap();
    let origins: Vec<&str> = web.rules().iter().map(|rule| rule.origin.as_str()).collect();
    assert_eq!(origins, ["weir.toml:42", "weir.toml:43", "weir.toml:44", "weir.toml:45"]);
    assert_eq!(web.relay_at_syn(ip("fd77:1::9"), ip("2001:db8::1"), 8001), Some(RuleId(1)));
    assert_eq!(web.relay_at_syn(ip("fd77:1::9"), ip("2001:db8::1"), 443), None);
    let facts = Facts {
        client: ip("10.0.0.1"),
        server: ip("192.0.2.1"),
        server_port: 443,
        protocol: Some(Protocol::Tls),
        host: Some("x.ads.example"),
        ech: false,
        alpn: &[b"h2"],
        hello_retry: false,
    };
    let rows = [
        (facts, Action::Reset, Cause::Rule(RuleId(0))),
        (Facts { host: None, ..facts }, Action::Allow, Cause::Rule(RuleId(2))),
        (Facts { host: None, alpn: &[], ..facts }, Action::Reset, Cause::Otherwise),
        (Facts { protocol: None, ..facts }, Action::Allow, Cause::Rule(RuleId(3))),
        (Facts { protocol: None, server: ip("::1"), ..facts }, Action::Drop, Cause::Unidentified),
    ];
    for (facts, action, cause) in rows {
        let decision = web.decide(&facts);
        assert_eq!((decision.action, decision.cause), (action, cause), "{facts:?}");
    }
}
