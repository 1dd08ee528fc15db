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
    /// How the connection was set up: the handshake, and whether the verdict sent it to a pool. Empty without one.
    pub variant: &'static str,
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
    /// `weir status --json` before weir was killed.
    pub status: Option<serde_json::Value>,
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
const COLUMNS: [(&str, usize); 7] = [
    ("asked", 29),
    ("handshake", 9),
    ("IP", 4),
    ("expected", 27),
    ("happened", 34),
    ("road (verdict, rule)", 22),
    ("time", 6),
];

/// The heading of the table and the line below it.
pub fn heading() -> String {
    let names = COLUMNS.map(|(name, _)| name.to_owned());
    let rules = COLUMNS.map(|(_, width)| "-".repeat(width));
    format!("{}\n{}", lay_out(&names), lay_out(&rules))
}

/// The rows of the report as a table that is written while they come. What is alike on both families is one row, and what a
/// row asks is not repeated below the first of its scenario.
#[derive(Debug, Default)]
pub struct Table {
    waiting: Option<Row>,
    scenario: &'static str,
}

impl Table {
    /// Takes the next row; the lines that are complete with it.
    pub fn push(&mut self, row: &Row) -> String {
        match self.waiting.take() {
            Some(first) if first.is_like(row) => {
                let milliseconds = first.milliseconds + row.milliseconds;
                self.lines(Row { family: "both", milliseconds, ..first })
            }
            Some(first) => {
                self.waiting = Some(row.clone());
                self.lines(first)
            }
            None => {
                self.waiting = Some(row.clone());
                String::new()
            }
        }
    }

    /// The lines that are left at the end.
    pub fn finish(&mut self) -> String {
        self.waiting.take().map(|row| self.lines(row)).unwrap_or_default()
    }

    fn lines(&mut self, mut row: Row) -> String {
        if row.scenario == self.scenario {
            row.asked.clear();
            row.expected.clear();
        }
        self.scenario = row.scenario;
        row.lines() + "\n"
    }
}

impl Row {
    /// Whether another row says the same of the other family.
    fn is_like(&self, other: &Self) -> bool {
        let what = |row: &Self| {
            (row.scenario, row.variant, row.happened.clone(), row.road.clone(), row.why.clone(), row.ok)
        };
        self.family != other.family && what(self) == what(other)
    }

    /// The row as lines of the table; cells that are too long go on below.
    pub fn lines(&self) -> String {
        let happened = if self.ok { self.happened.clone() } else { format!("DIFFERS: {}", self.happened) };
        // Of the rule's place the file's name will do.
        let why: Vec<&str> =
            self.why.split(", ").map(|word| word.rsplit('/').next().unwrap_or(word)).collect();
        let why = why.join(", ");
        let road = if why.is_empty() { self.road.clone() } else { format!("{} ({why})", self.road) };
        lay_out(&[
            self.asked.clone(),
            self.variant.into(),
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
            variant: "answer",
            asked: "GET 10 MiB over HTTPS from a host that no rule names".into(),
            expected: "allowed, hash equal".into(),
            happened: "reset".into(),
            road: "fast".into(),
            why: "allow, /run/weir/demo.toml:60".into(),
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
        assert!(row(true).lines().contains(" demo.toml:60)"), "{}", row(true).lines());
        assert_eq!(wrap("2001:db8:2::10", 6), ["2001:d", "b8:2::", "10"]);
        assert_eq!(wrap("a b", 6), ["a b"]);
    }

    #[test]
    fn rows_that_differ_in_the_family_alone_are_one_and_do_not_repeat_what_is_asked() {
        let v6 = |row: Row| Row { family: "IPv6", milliseconds: 750, ..row };
        let through = |row: Row| Row { variant: "through", ..row };
        let mut table = Table::default();
        assert_eq!(table.push(&row(true)), "");
        let both = table.push(&v6(row(true)));
        assert!(both.starts_with("GET 10 MiB") && both.contains("both") && both.contains("2.00 s"), "{both}");
        assert_eq!(table.push(&through(row(true))), "");
        let first = table.push(&v6(through(row(false))));
        assert!(!first.contains("GET") && first.contains("IPv4") && !first.contains("DIFFERS"), "{first}");
        let last = table.finish();
        assert!(last.contains("IPv6") && last.contains("DIFFERS: reset"), "{last}");
        assert_eq!(table.finish(), "");
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
