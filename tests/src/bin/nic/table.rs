//! What the matrix came to: for people a table, which is also put into the documentation, and for programs JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::Outcome;
use crate::job::{Answer, Demo};
use crate::pairing::{Best, Pairing};

/// The demo, played in one way on one driver.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub nic: &'static str,
    pub queues: u32,
    pub mtu: u32,
    /// The mode that the configuration said.
    pub asked: String,
    /// What both ports' sockets said of themselves, or why there were none.
    pub got: String,
    pub passed: usize,
    pub scenarios: usize,
    pub drops: BTreeMap<String, u64>,
    pub seconds: f64,
    /// What is not as it should be.
    pub problems: Vec<String>,
}

impl Row {
    pub fn new(pairing: &Pairing, demo: &Demo, answer: &Answer) -> Self {
        let report = answer.report.as_ref();
        let rows = report.and_then(|report| report["rows"].as_array()).cloned().unwrap_or_default();
        let good = rows.iter().filter(|row| row["ok"] == true).count();
        let status = report.map_or(&Value::Null, |report| &report["status"]);
        let got = got(status).unwrap_or_else(|| refusal(answer));
        let mut row = Self {
            nic: pairing.name,
            queues: demo.queues,
            mtu: demo.mtu,
            asked: demo.mode.clone(),
            got,
            passed: good,
            scenarios: rows.len(),
            drops: drops(status),
            seconds: answer.seconds,
            problems: Vec::new(),
        };
        row.judge(pairing, &rows);
        row
    }

    fn judge(&mut self, pairing: &Pairing, rows: &[Value]) {
        let differing = rows.iter().filter(|row| row["ok"] != true);
        self.problems.extend(differing.map(|row| {
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}: {}", text("scenario"), text("family"), text("variant"), text("happened"))
        }));
        let expected = expected(pairing, &self.asked, self.mtu);
        if !self.got.starts_with(expected) {
            self.problems.push(format!("expected {expected}, got {}", self.got));
        }
    }
}

/// What a driver gives when it is asked for a mode.
fn expected(pairing: &Pairing, asked: &str, mtu: u32) -> &'static str {
    if mtu > 1500 && !pairing.jumbo {
        return "refused";
    }
    match (asked, pairing.best) {
        ("zero-copy" | "auto", Best::ZeroCopy) => "zero-copy",
        ("zero-copy", Best::Generic) => "refused",
        ("generic", _) | ("auto", Best::Generic) => "generic",
        _ => "copy",
    }
}

/// The mode of the ports, when there are any, as they told it.
fn got(status: &Value) -> Option<String> {
    let ports = status["ports"].as_array()?;
    let mut modes: Vec<String> = ports.iter().map(mode).collect();
    modes.dedup();
    Some(modes.join(", "))
}

fn mode(port: &Value) -> String {
    match (port["zero_copy"].as_bool(), port["xdp"].as_str()) {
        (Some(true), Some("native")) => "zero-copy".into(),
        (Some(false), Some("native")) => "copy".into(),
        (Some(false), Some("generic")) => "generic".into(),
        (zero_copy, xdp) => format!("XDP {}, zero-copy {zero_copy:?}", xdp.unwrap_or("unknown")),
    }
}

/// The line in which the demo said why it could not begin.
fn refusal(answer: &Answer) -> String {
    let errors = &answer.errors;
    if answer.exit != Some(3) {
        return format!("nothing: {}", answer.brief());
    }
    let lines: Vec<&str> = errors.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line =
        lines.iter().rev().find(|line| line.contains("weir:") || line.contains("mode")).or(lines.last());
    format!("refused: {}", line.copied().unwrap_or("it said nothing"))
}

fn drops(status: &Value) -> BTreeMap<String, u64> {
    let counts = status["drops"].as_array().into_iter().flatten();
    let named =
        counts.filter_map(|count| Some((count["name"].as_str()?.to_owned(), count["count"].as_u64()?)));
    named.filter(|(_, count)| *count > 0).collect()
}

/// The table, in Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| driver | queues | MTU | asked | got | scenarios | drops |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let drops: Vec<String> = row.drops.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let passed = match row.scenarios {
            0 => "-".to_owned(),
            all => format!("{} of {all}", row.passed),
        };
        let (nic, asked, got) = (row.nic, &row.asked, &row.got);
        let drops = if drops.is_empty() { "-".into() } else { drops.join(", ") };
        _ = writeln!(text, "| {nic} | {} | {} | {asked} | {got} | {passed} | {drops} |", row.queues, row.mtu);
    }
    text
}

/// Puts the table between the marks of a file.
///
/// # Errors
/// The file or its marks are not there.
pub fn save(file: &Path, rows: &[Row]) -> Outcome<()> {
    const MARKS: [&str; 2] = ["<!-- matrix -->\n", "<!-- end of matrix -->"];
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let [begin, end] = MARKS.map(|mark| text.find(mark));
    let (Some(begin), Some(end)) = (begin, end) else {
        return Err(format!("{}: no marks {} and {}", file.display(), MARKS[0].trim(), MARKS[1]).into());
    };
    let (head, tail) = (text.get(..begin + MARKS[0].len()), text.get(end..));
    let new = [head.unwrap_or_default(), &markdown(rows), tail.unwrap_or_default()].concat();
    Ok(fs::write(file, new)?)
}
