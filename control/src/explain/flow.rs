//! The flow table's entry, where the connection lives.

use std::net::IpAddr;

use serde_json::Value;
use weir_core::drop::PuntReason;

use super::gateway::Gateway;
use super::{Layer, Source, Step};

/// A connection that lives, as `weir flows` shows it.
#[derive(Clone, Debug)]
pub struct Living {
    pub road: String,
    pub reason: String,
    pub verdict: Option<String>,
    /// `file:line`.
    pub rule: Option<String>,
    pub server: Option<String>,
    pub destination: Option<String>,
    /// The number of the port and the router that it goes by to the server, where there are several ways.
    pub way: Option<(u8, Option<IpAddr>)>,
}

impl Living {
    fn of(flow: &Value) -> Option<Self> {
        let text = |key: &str| flow[key].as_str().map(str::to_owned);
        Some(Self {
            road: text("road")?,
            reason: text("reason")?,
            verdict: text("verdict"),
            rule: text("rule"),
            server: text("server"),
            destination: text("destination"),
            way: flow["way"]["port"].as_u64().and_then(|port| {
                let router = flow["way"]["router"].as_str().and_then(|router| router.parse().ok());
                Some((u8::try_from(port).ok()?, router))
            }),
        })
    }

    /// Why it has its road, as a sentence without a full stop.
    pub fn sentence(&self) -> String {
        let verdict = self.verdict.as_deref().unwrap_or("no verdict");
        match (self.reason.as_str(), &self.rule) {
            ("rule", Some(rule)) => format!("the rule at {rule} says {verdict}"),
            ("otherwise", _) => format!("no rule took it, and the intercept's `otherwise` says {verdict}"),
            ("unidentified", _) => {
                format!("its first bytes could not be identified, and `unidentified` says {verdict}")
            }
            (reason, rule) => {
                let known = PuntReason::ALL.iter().find(|punt| punt.name() == reason);
                let sentence = known.map_or(reason, |punt| punt.sentence()).trim_end_matches('.');
                let rule = rule.as_ref().map(|rule| format!(" ({rule})")).unwrap_or_default();
                format!("{reason}: {sentence}{rule}")
            }
        }
    }
}

/// Looks it up in what the gateway said. `room`: flows that the configuration has room for.
pub fn of(gateway: &Gateway, room: Option<u32>, steps: &mut Vec<Step>) -> Option<Living> {
    let asked = "does the connection live?";
    let step = |answer: String| Step::new(Layer::Flow, Source::Gateway, asked, answer);
    let Some(seen) = &gateway.seen else {
        let why = gateway.unseen.as_ref().or(gateway.silent.as_ref()).map_or("", String::as_str);
        steps.push(step(format!("not known: {why}")));
        return None;
    };
    let Some(flow) = &seen.flow else {
        let room = gateway.flows().zip(room);
        let room = room.map(|(flows, room)| format!("the table has {flows} of {room} flows"));
        let answer = match seen.incomplete {
            None => "no: it is in no flow table, so what follows is for a new connection".to_owned(),
            Some(incomplete) => format!("not known: {incomplete}; what follows is for a new connection"),
        };
        steps.push(step(answer).detail(room));
        return None;
    };
    let living = Living::of(flow)?;
    let plain = |key: &str| match &flow[key] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let age = |key: &str| flow[key].as_u64().unwrap_or(0) / 1_000_000;
    let answer = format!(
        "yes: {} road, stage {}, verdict {}, since {}",
        living.road,
        plain("stage"),
        living.verdict.as_deref().unwrap_or("none yet"),
        living.sentence()
    );
    let detail = [
        format!(
            "rule {}, reason {}, lane {}{}, host {}, protocol {}",
            plain("rule"),
            plain("reason"),
            plain("lane"),
            flow["lane_reason"].as_str().map(|why| format!(" ({why})")).unwrap_or_default(),
            plain("host"),
            plain("protocol")
        ),
        format!(
            "client {}, destination {}, server {}",
            plain("client"),
            plain("destination"),
            plain("server")
        ),
        format!(
            "{} octets to the server, {} to the client, {} ms old, idle for {} ms",
            plain("bytes_to_server"),
            plain("bytes_to_client"),
            age("age_ns"),
            age("idle_ns")
        ),
    ];
    steps.push(step(answer).detail(detail));
    Some(living)
}
