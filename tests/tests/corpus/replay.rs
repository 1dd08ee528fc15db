use std::path::Path;
use std::sync::Arc;

use weir_control::{config, replay};
use weir_tests::corpus::explained::{Reader, unexplained};
use weir_tests::corpus::{self, Disagreement, Ends, Reading, Readings};

use super::captures::CUT_SHORT;

/// Everything is intercepted, whatever the port: the captures' servers listen anywhere.
const CONFIG: &str = r#"
[[port]]
name = "lan"
device = "lan0"

[[port]]
name = "wan"
device = "wan0"

[[intercept]]
name = "all"
from = "lan"
to = ["0.0.0.0/0", "::/0"]
tcp = ["1-65535"]
"#;

/// What the pipeline reads of each connection that it saw begin.
fn readings(replay: &replay::Replay) -> Readings {
    let mut readings = Readings::new();
    for replayed in &replay.flows {
        let flow = &replayed.flow;
        let ends = Ends { client: flow.client, server: flow.destination };
        let reading = Reading {
            protocol: flow.protocol.unwrap_or_default().to_owned(),
            host: flow.host.clone().unwrap_or_default(),
            alpn: replayed.alpn.join(","),
        };
        // A tuple that is used again: tshark's list has the first request that it could read.
        let known = readings.entry(ends).or_default();
        if !known.is_identified() {
            *known = reading;
        }
    }
    readings
}

#[test]
fn captures_replayed_agree_with_tshark_or_are_explained() {
    let Some(root) = corpus::root() else { return };
    let (config, _) =
        config::parse(Path::new("replay.toml"), CONFIG.to_owned()).expect("a valid configuration");
    let policy = Arc::new(config.compile(1));
    let expected = corpus::expected(&root);
    let none = Readings::new();
    let mut disagreements: Vec<Disagreement> = Vec::new();
    for (name, path) in corpus::captures(&root) {
        let replay = replay::replay(&policy, &path).unwrap_or_else(|error| panic!("{error}"));
        assert!(replay.error.is_none() || CUT_SHORT.contains(&name.as_str()), "{:?}", replay.error);
        let expected = expected.get(&name).unwrap_or(&none);
        disagreements.extend(corpus::compare(&name, expected, &readings(&replay)));
    }
    let complaints = unexplained(Reader::Pipeline, &disagreements);
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}
