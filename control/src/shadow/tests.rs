//! Flow lists under other rules.

use std::path::Path;

use serde_json::json;

use super::*;

fn policy(rules: &str) -> Policy {
    let text = format!(
        "[[port]]\nname = \"lan\"\ndevice = \"a\"\n[[port]]\nname = \"wan\"\ndevice = \"b\"\n[[intercept]]\nname = \"web\"\nfrom = \"lan\"\n\
         to = [\"0.0.0.0/0\", \"::/0\"]\ntcp = [443]\nrules = [{rules}]\n"
    );
    crate::config::parse(Path::new("new.toml"), text).unwrap().0.compile(1)
}

fn flow(client: &str, server: &str, host: &str, standing: &str) -> Value {
    json!({
        "client": client, "destination": server, "port": 0, "server": server, "host": host, "alpn": ["h2"], "ech": false,
        "signed": false, "evidence": "found", "standing": standing, "protocol": "tls", "verdict": "allow",
        "rule": null, "road": "fast", "reason": "otherwise", "more": 1,
    })
}

fn flows() -> Value {
    let all = [("10.0.0.1", "10.9.0.1:443"), ("[fd00::1]", "[fd09::1]:443")].map(|(client, server)| {
        [
            flow(&format!("{client}:1"), server, "a.example", "judged"),
            flow(&format!("{client}:2"), server, "b.example", "judged"),
            flow(&format!("{client}:3"), server, "a.example", "undecided"),
            flow(&format!("{client}:4"), server, "a.example", "over"),
        ]
    });
    Value::Array(all.into_iter().flatten().collect())
}

#[test]
fn flows_are_grouped_by_verdicts_and_rules_with_the_changes_first() {
    let policy = policy("{ host = [\"a.example\"], action = \"drop\" }");
    let shadow = compare(&policy, flows()).unwrap();
    assert_eq!((shadow.flows, shadow.changed), (6, 2));
    assert_eq!(shadow.tally, Tally { kept: 2, dropped: 2, undecided: 2, ..Tally::default() });
    let first = &shadow.groups[0];
    assert_eq!((first.to.verdict.as_str(), first.to.by.as_str(), first.count), ("drop", "new.toml:12", 2));
    assert_eq!((first.from.by.as_str(), first.outcome), ("otherwise", Outcome::Ended));
    let text = table(&shadow);
    for words in [
        "2      allow  otherwise  drop  new.toml:12  is ended",
        "10.0.0.1:1 -> 10.9.0.1:443 (a.example)",
        "[fd00::1]:1 -> [fd09::1]:443 (a.example)",
        "6 live connections: 2 would change; 2 go on, 2 ended (0 reset, 2 dropped), 2 have no verdict yet",
    ] {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
}

#[test]
fn rules_that_change_nothing_say_so() {
    let shadow = compare(&policy("{ host = [\"c.example\"], action = \"reset\" }"), flows()).unwrap();
    assert_eq!((shadow.changed, shadow.tally.kept), (0, 4));
    assert!(table(&shadow).starts_with("6 live connections: 0 would change"), "{}", table(&shadow));
}
