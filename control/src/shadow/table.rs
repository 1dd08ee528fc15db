//! The difference as a table, for people; and the counts of a reload that judged connections again.

use std::fmt::Write as _;

use weir_core::reevaluate::Tally;

use super::{Group, Shadow, name};

/// What changes, group by group with a few connections each; then the counts.
pub fn table(shadow: &Shadow) -> String {
    let changes = || shadow.groups.iter().filter(|group| group.changes);
    let mut out = String::new();
    let mut rows = vec![["flows", "now", "by", "then", "by", "what becomes of them"].map(str::to_owned)];
    rows.extend(changes().map(row));
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut lines = rows.iter().map(|row| {
        let line: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        line.trim_end().to_owned()
    });
    if shadow.changed > 0 {
        let _ = writeln!(out, "{}", lines.next().unwrap_or_default());
        for (line, group) in lines.zip(changes()) {
            let _ = writeln!(out, "{line}");
            for sample in &group.samples {
                let host = sample.host.as_deref().unwrap_or("-");
                let _ = writeln!(out, "         {} -> {} ({host})", sample.client, sample.destination);
            }
        }
    }
    let Shadow { flows, changed, incomplete, .. } = shadow;
    let _ = writeln!(out, "{flows} live connections: {changed} would change; {}", counts(&shadow.tally));
    for note in &shadow.notes {
        let _ = writeln!(out, "{note}");
    }
    if let Some(incomplete) = incomplete {
        let _ = writeln!(out, "{incomplete}");
    }
    out
}

fn row(group: &Group) -> [String; 6] {
    let Group { from, to, outcome, count, .. } = group;
    let cells = [&from.verdict, &from.by, &to.verdict, &to.by].map(Clone::clone);
    let [now, by, then, then_by] = cells;
    [count.to_string(), now, by, then, then_by, name(*outcome).to_owned()]
}

/// The counts in one line; those that are 0 and tell nothing then are left out.
pub fn counts(tally: &Tally) -> String {
    let Tally { kept, reset, dropped, elsewhere, unknown, unverified, undecided, unjudged } = *tally;
    let rest = [
        (elsewhere, "would go to another server and keep theirs"),
        (unknown, "keep their verdict since too little is known of their first bytes"),
        (
            unverified,
            "keep their verdict since the addresses of their names are not known here (verify_host)",
        ),
        (undecided, "have no verdict yet"),
        (unjudged, "are from before their intercept and were never judged"),
    ];
    let mut text = format!("{kept} go on, {} ended ({reset} reset, {dropped} dropped)", reset + dropped);
    for (count, what) in rest.into_iter().filter(|(count, _)| *count > 0) {
        let _ = write!(text, ", {count} {what}");
    }
    text
}
