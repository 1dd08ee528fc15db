//! A replay as a table, for people.

use std::fmt::Write as _;

use super::{Replay, Replayed};

const COLUMNS: [&str; 9] =
    ["client", "server", "protocol", "name", "ALPN", "verdict", "rule", "road", "reason"];

/// One row a connection, then what else there was.
pub fn table(replay: &Replay) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(replay.flows.iter().map(row));
    let mut widths = [0; COLUMNS.len()];
    for row in &rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = cell.chars().count().max(*width));
    }
    let mut out = String::new();
    for row in &rows {
        let line: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let _ = writeln!(
        out,
        "{} connections; {} packets, {} of no intercept",
        replay.flows.len(),
        replay.packets,
        replay.passed
    );
    let changes = [
        (replay.checksums_mended, "checksums put right, which a NIC had yet to fill in"),
        (replay.untagged, "VLAN tags taken off"),
        (
            replay.answers_inferred,
            "SYN-ACKs that the capture has not got in their place, played before what follows them",
        ),
        (replay.cut, "packets cut short by the capture"),
    ];
    for (count, what) in changes.iter().filter(|(count, _)| *count > 0) {
        let _ = writeln!(out, "{count} {what}");
    }
    for (reason, count) in &replay.drops {
        let _ = writeln!(out, "dropped {count}: {reason}");
    }
    if let Some(error) = &replay.error {
        let _ = writeln!(out, "{error}");
    }
    out
}

fn row(replayed: &Replayed) -> [String; COLUMNS.len()] {
    let flow = &replayed.flow;
    let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
    [
        flow.client.to_string(),
        flow.destination.to_string(),
        or_dash(flow.protocol),
        or_dash(flow.host.as_deref()),
        if replayed.alpn.is_empty() { "-".to_owned() } else { replayed.alpn.join(",") },
        or_dash(flow.verdict),
        or_dash(flow.rule.as_deref()),
        flow.road.to_owned(),
        flow.reason.clone(),
    ]
}
