//! The answer for people: the road first, then the way, layer by layer.

use std::fmt::Write as _;

use super::why::Because;
use super::{Explanation, Step};

/// Which of the two questions is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Why {
    /// Why was this not intercepted?
    NotIntercepted,
    /// Why does it arrive at a local address although no interface has it?
    Local,
}

/// Everything.
pub fn all(explanation: &Explanation) -> String {
    let mut out = head(explanation);
    for (title, because) in
        [(Why::NotIntercepted, &explanation.not_intercepted), (Why::Local, &explanation.local)]
    {
        if let Some(because) = because {
            out.push('\n');
            out += &text(title, because);
        }
    }
    out.push_str("\nthe way:\n");
    let mut layer = None;
    for step in &explanation.steps {
        let name = if layer == Some(step.layer) { "" } else { step.layer.name() };
        layer = Some(step.layer);
        out += &row(name, step);
    }
    out
}

/// One of the two questions.
pub fn why(explanation: &Explanation, why: Why) -> String {
    let because = match why {
        Why::NotIntercepted => &explanation.not_intercepted,
        Why::Local => &explanation.local,
    };
    let mut out = head(explanation);
    match (because, why) {
        (Some(because), _) => {
            out.push('\n');
            out += &text(why, because);
        }
        (None, Why::NotIntercepted) => out += "\nit is intercepted\n",
        (None, Why::Local) => out += "\nit does not arrive at a local socket of the relay's\n",
    }
    out
}

fn head(explanation: &Explanation) -> String {
    let road = &explanation.road;
    let mut out = String::new();
    let host = explanation.host.as_ref().map(|host| format!(" ({host})")).unwrap_or_default();
    let _ = writeln!(out, "{} -> {}{host}", explanation.from, explanation.to);
    let _ = writeln!(out, "road       {}", road.road);
    let _ = writeln!(out, "reason     {}", road.reason);
    for (name, value) in [
        ("intercept", &road.intercept),
        ("verdict", &road.verdict),
        ("rule", &road.rule),
        ("server", &road.server),
    ] {
        if let Some(value) = value {
            let _ = writeln!(out, "{name:<10} {value}");
        }
    }
    for doubt in &explanation.doubts {
        let _ = writeln!(out, "doubt      {doubt}");
    }
    out
}

fn text(why: Why, because: &Because) -> String {
    let mut out = match why {
        Why::NotIntercepted => "why was this not intercepted?\n".to_owned(),
        Why::Local => "why does it arrive at a local address although no interface has it?\n".to_owned(),
    };
    let _ = writeln!(out, "  {}", because.answer);
    if let Some(mend) = &because.mend {
        let _ = writeln!(out, "  mend: {mend}");
    }
    for line in &because.chain {
        let _ = writeln!(out, "    {line}");
    }
    out
}

fn row(layer: &str, step: &Step) -> String {
    let mut out = format!("{layer:<10} {}\n", step.question);
    let _ = writeln!(out, "{:<10}   {} [{}]", "", step.answer, step.source.name());
    for line in &step.detail {
        let _ = writeln!(out, "{:<10}     {line}", "");
    }
    out
}
