//! The demo's result: one row per scenario, as a table for people and as JSON for programs.

use std::time::Duration;

use serde::Serialize;

/// One scenario on one IP version, played.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Short name of the scenario.
    pub scenario: &'static str,
    /// `IPv4`, `IPv6`, or `both`.
    pub family: &'static str,
    /// What was asked of the gateway.
    pub asked: String,
    /// What should happen.
    pub expected: String,
    /// What did happen.
    pub happened: String,
    /// The road that `weir flows` showed for the connection, with its lane; `-` where none is meant.
    pub road: String,
    /// Why the gateway did so: verdict and rule, as `weir flows` showed them.
    pub why: String,
    /// It happened as expected, on the road expected.
    pub ok: bool,
    /// Milliseconds that the scenario took.
    pub milliseconds: u64,
}

/// All rows, and what they add up to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// In the order in which they were played.
    pub rows: Vec<Row>,
    /// The last lines that the gateway wrote, when something differed.
    pub gateway_log: Vec<String>,
}

impl Report {
    /// Every scenario went as expected, and there was one.
    pub fn is_ok(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.ok)
    }

    /// One sentence for the end of the table.
    pub fn summary(&self) -> String {
        let (all, good) = (self.rows.len(), self.rows.iter().filter(|row| row.ok).count());
        let time: u64 = self.rows.iter().map(|row| row.milliseconds).sum();
        let time = seconds(time);
        match all - good {
            0 => format!("{all} of {all} as expected, in {time}."),
            bad => format!("{bad} of {all} DIFFER from what was expected, after {time}."),
        }
    }
}

/// Columns of the table: heading and width in characters.
const COLUMNS: [(&str, usize); 6] =
    [("asked", 34), ("IP", 4), ("expected", 30), ("happened", 38), ("road (verdict, rule)", 22), ("time", 7)];

/// The heading of the table and the line below it.
pub fn heading() -> String {
    let names = COLUMNS.map(|(name, _)| name.to_owned());
    let rules = COLUMNS.map(|(_, width)| "-".repeat(width));
    format!("{}\n{}", lay_out(&names), lay_out(&rules))
}

impl Row {
    /// The row as lines of the table; cells that are too long go on below.
    pub fn lines(&self) -> String {
        let happened = if self.ok { self.happened.clone() } else { format!("DIFFERS: {}", self.happened) };
        let road =
            if self.why.is_empty() { self.road.clone() } else { format!("{} ({})", self.road, self.why) };
        lay_out(&[
            self.asked.clone(),
            self.family.into(),
            self.expected.clone(),
            happened,
            road,
            seconds(self.milliseconds),
        ])
    }
}

fn seconds(milliseconds: u64) -> String {
    format!("{:.2} s", Duration::from_millis(milliseconds).as_secs_f64())
}

fn lay_out(cells: &[String; COLUMNS.len()]) -> String {
    let wrapped: Vec<Vec<String>> =
        cells.iter().zip(COLUMNS).map(|(cell, (_, width))| wrap(cell, width)).collect();
    let height = wrapped.iter().map(Vec::len).max().unwrap_or(0);
    let mut lines = Vec::with_capacity(height);
    for at in 0..height {
        let mut line = String::new();
        for (cell, (_, width)) in wrapped.iter().zip(COLUMNS) {
            let text = cell.get(at).map_or("", String::as_str);
            line.push_str(&format!("{text:width$}  "));
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n")
}

/// Breaks `text` at spaces and ends of line into pieces of at most `width` characters; a longer word is cut.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            let mut word: Vec<char> = word.chars().collect();
            let used = line.chars().count();
            if used > 0 && used + 1 + word.len() > width {
                lines.push(std::mem::take(&mut line));
            } else if used > 0 {
                line.push(' ');
            }
            while word.len() > width {
                lines.push(word.drain(..width).collect());
            }
            line.extend(word);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ok: bool) -> Row {
        Row {
            scenario: "https-allowed",
            family: "IPv4",
            asked: "GET 10 MiB over HTTPS from a host that no rule names".into(),
            expected: "allowed, hash equal".into(),
            happened: "reset".into(),
            road: "fast".into(),
            why: String::new(),
            ok,
            milliseconds: 1250,
        }
    }

    #[test]
    fn long_cells_go_on_below_and_no_line_exceeds_the_table() {
        let width = COLUMNS.iter().map(|(_, width)| width + 2).sum::<usize>();
        let text = format!("{}\n{}", heading(), row(true).lines());
        assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
        assert_eq!(row(true).lines().lines().count(), 2);
        assert_eq!(wrap("2001:db8:2::10", 6), ["2001:d", "b8:2::", "10"]);
        assert_eq!(wrap("a b", 6), ["a b"]);
    }

    #[test]
    fn report_with_a_differing_row_is_not_ok_and_says_so() {
        let mut report = Report::default();
        assert!(!report.is_ok(), "no row is no success");
        report.rows.push(row(true));
        assert!(report.is_ok());
        report.rows.push(row(false));
        assert!(!report.is_ok());
        assert!(row(false).lines().contains("DIFFERS: reset"));
        assert_eq!(report.summary(), "1 of 2 DIFFER from what was expected, after 2.50 s.");
    }
}
