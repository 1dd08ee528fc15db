//! Flow lists under other rules.

use std::path::Path;

use serde_json::json;

use super::*;

const POLICY: &str = "[[port]]\nname = \"lan\"\ndevice = \"a\"\n[[port]]\nname = \"wan\"\ndevice = \"b\"\n[[intercept]]\n\
    name = \"web\"\nfrom = \"lan\"\nto = [\"0.0.0.0/0\", \"::/0\"]\ntcp = [443]\nrules = [RULES]\n";

fn policy(rules: &str) -> Policy {
    let text = POLICY.replace("RULES", rules);
    crate::config::parse(Path::new("new.toml"), text).unwrap().0.compile(1)
}

fn flow(client: &str, server: &str, host: &str, standing: &str) -> Value {
    json!({
        "client": client, "destination": server, "port": 0, "server": server, "host": host, "alpn": ["h2"], "ech": false, "host_known": null, "hello_retry": null,
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
    let shadow = compare(&policy, &flows()).unwrap();
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
fn flow_is_judged_by_the_vlan_that_it_comes_by_on_every_road() {
    let text = POLICY.replace("RULES", "{ host = [\"a.example\"], action = \"reset\" }");
    let text = text.replace("from = \"lan\"", "from = \"lan\"\nvlan = [10]");
    // What comes otherwise is another intercept's.
    let text = text
        + "[[intercept]]\nname = \"rest\"\nfrom = \"lan\"\nvlan = \"any\"\nto = [\"0.0.0.0/0\", \"::/0\"]\ntcp = [443]\n";
    let policy = crate::config::parse(Path::new("new.toml"), text).unwrap().0.compile(1);
    for (client, server) in [("10.0.0.1:1", "10.9.0.1:443"), ("[fd00::1]:1", "[fd09::1]:443")] {
        for road in ["fast", "relay"] {
            for (vlan, reset) in [(json!("10"), 1), (json!("20"), 0), (json!("100.10"), 0), (Value::Null, 0)]
            {
                let mut flow = flow(client, server, "a.example", "judged");
                (flow["road"], flow["vlan"]) = (road.into(), vlan.clone());
                let shadow = compare(&policy, &Value::Array(vec![flow])).unwrap();
                assert_eq!(shadow.tally.reset, reset, "{client}, {road}, VLAN {vlan}");
            }
        }
    }
}

#[test]
fn list_that_is_incomplete_is_compared_and_said_to_be() {
    let mut flows = flows();
    let complete = compare(&policy(""), &flows).unwrap();
    assert!(complete.incomplete.is_none() && !table(&complete).contains("incomplete"));
    let mark =
        json!({ "incomplete": { "workers": 1, "of_workers": 2, "relay_threads": 0, "of_relay_threads": 1 } });
    flows.as_array_mut().unwrap().push(mark);
    let shadow = compare(&policy(""), &flows).unwrap();
    assert_eq!(shadow.flows, complete.flows);
    let text = table(&shadow);
    assert!(
        text.ends_with("incomplete: 1 of 2 workers did not answer within 2 s, and their flows are missing\n"),
        "{text}"
    );
    assert_eq!(serde_json::to_value(&shadow).unwrap()["incomplete"]["workers"], 1);
}

#[test]
fn rules_that_change_nothing_say_so() {
    let shadow = compare(&policy("{ host = [\"c.example\"], action = \"reset\" }"), &flows()).unwrap();
    assert_eq!((shadow.changed, shadow.tally.kept), (0, 4));
    assert!(table(&shadow).starts_with("6 live connections: 0 would change"), "{}", table(&shadow));
}

/// What the gateway has been told of names decides; where it was told nothing, that is said.
#[test]
fn verify_host_ends_what_is_known_to_differ_and_says_what_it_cannot_tell() {
    let intercept = "verify_host = \"reset\"\nunidentified = \"drop\"\nrules";
    let text = POLICY.replace("rules", intercept).replace("RULES", "");
    let policy = crate::config::parse(Path::new("new.toml"), text).unwrap().0.compile(1);
    let rows = [("matches", "kept"), ("differs", "reset"), ("unknown", "dropped"), ("", "unverified")];
    let mut all = Vec::new();
    for (client, server) in [("10.0.0.1:1", "10.9.0.1:443"), ("[fd00::1]:1", "[fd09::1]:443")] {
        for (known, _) in rows {
            let mut flow = flow(client, server, "a.example", "judged");
            flow["host_known"] = if known.is_empty() { Value::Null } else { known.into() };
            all.push(flow);
        }
        // A name that is an address needs nobody to look it up.
        all.push(flow(client, server, "10.9.0.7", "judged"));
    }
    let shadow = compare(&policy, &Value::Array(all)).unwrap();
    let tally = Tally { kept: 2, reset: 4, dropped: 2, unverified: 2, ..Tally::default() };
    assert_eq!((shadow.tally, shadow.changed), (tally, 8));
    let text = table(&shadow);
    for words in [
        "reset    host-mismatch  is ended",
        "drop     host-unknown   is ended",
        "unknown  verify_host    keeps its verdict",
        "2 keep their verdict since the addresses of their names are not known here (verify_host)",
    ] {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
}

/// A reload does not take them, so that what is foretold is not what becomes of it.
#[test]
fn emptied_list_that_a_reload_keeps_is_told() {
    let folder = std::env::temp_dir().join(format!("weir-shadow-{}-kept", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let rules = "{ host_file = \"names.txt\", action = \"drop\" }, { from_file = \"clients.txt\", action = \"drop\" }";
    std::fs::write(folder.join("new.toml"), POLICY.replace("RULES", rules)).unwrap();
    std::fs::write(folder.join("names.txt"), "").unwrap();
    std::fs::write(folder.join("clients.txt"), "# nobody\n").unwrap();
    let (config, _) =
        crate::config::load(&folder.join("new.toml")).unwrap_or_else(|report| panic!("{report}"));
    let list = |name: &str, kind: &str, entries: u64| json!({ "file": folder.join(name), "kind": kind, "entries": entries });
    let status = |names| json!({ "pid": 1, "lists": [list("names.txt", "names", names), list("clients.txt", "prefixes", 4)] });
    let mut shadow = compare(&config.compile(1), &flows()).unwrap();
    shadow.notes = kept(&config, &status(3));
    let text = table(&shadow);
    assert!(text.contains("names.txt is empty: a reload keeps the 3 names that are in force"), "{text}");
    assert_eq!(shadow.notes.len(), 1, "{text}");
    assert_eq!(kept(&config, &status(0)), [""; 0]);
    std::fs::remove_dir_all(&folder).unwrap();
}
