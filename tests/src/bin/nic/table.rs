//! What the matrix came to: for people a table, which is also put into the documentation, and for programs JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::Outcome;
use crate::job::{Answer, Demo};
use crate::matrix::TOO_LARGE;
use crate::pairing::{Best, PAIRINGS, Pairing};

/// The demo, played in one way on one driver.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub nic: &'static str,
    pub queues: u32,
    pub mtu: u32,
    /// The mode that the configuration said.
    pub asked: String,
    /// What the sockets of both ports said of themselves (`XDP_OPTIONS`), or why there were none.
    pub got: String,
    pub passed: usize,
    pub scenarios: usize,
    pub drops: BTreeMap<String, u64>,
    /// Frames that one port received and the other sent, by descriptor; and those of them that the kernel did not copy either.
    pub crossed: [u64; 2],
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
            drops: counts(&status["drops"]),
            crossed: crossed(status),
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
        if !(self.got.starts_with(expected) && (expected == "refused" || self.got.ends_with("on both ports")))
        {
            self.problems.push(format!("expected {expected}, got {}", self.got));
        }
        if expected == "refused" && self.mtu > 1500 && !self.got.contains("MTU") {
            self.problems.push("the refusal does not say that it is for the MTU".to_owned());
        }
        let [crossed, uncopied] = self.crossed;
        if self.got.starts_with("zero-copy") && (crossed == 0 || uncopied != crossed) {
            self.problems.push(format!("{crossed} frames crossed, {uncopied} of them without a copy"));
        }
    }
}

/// What a driver gives when it is asked for a mode.
fn expected(pairing: &Pairing, asked: &str, mtu: u32) -> &'static str {
    if mtu >= TOO_LARGE {
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
    let modes: Vec<String> = ports.iter().map(mode).collect();
    Some(match modes.as_slice() {
        [one, other] if one == other => format!("{one} on both ports"),
        _ => modes.join(", "),
    })
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

fn crossed(status: &Value) -> [u64; 2] {
    let counts = counts(&status["flows"]);
    ["crossed", "crossed-zero-copy"].map(|name| counts.get(name).copied().unwrap_or_default())
}

fn counts(list: &Value) -> BTreeMap<String, u64> {
    let counts = list.as_array().into_iter().flatten();
    let named =
        counts.filter_map(|count| Some((count["name"].as_str()?.to_owned(), count["count"].as_u64()?)));
    named.filter(|(_, count)| *count > 0).collect()
}

/// What a script tried in a guest.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    pub nic: &'static str,
    pub script: &'static str,
    pub name: String,
    pub ok: bool,
    pub seen: String,
}

impl Trial {
    /// What a script tried; that it said nothing, if so.
    pub fn of(pairing: &Pairing, script: &'static str, answer: &Answer) -> Vec<Self> {
        let trial = |name: String, ok, seen| Self { nic: pairing.name, script, name, ok, seen };
        let rows = answer.report.as_ref().and_then(|report| report["rows"].as_array());
        let Some(rows) = rows else { return vec![trial("all".into(), false, answer.brief())] };
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        rows.iter()
            .map(|row| {
                let family = Some(text(row, "family")).filter(|family| family != "both");
                let name = [text(row, "scenario")].into_iter().chain(family).collect::<Vec<_>>().join(", ");
                trial(name, row["ok"] == true, text(row, "happened"))
            })
            .collect()
    }
}

/// What the demo came to in each mode, in Markdown.
pub fn of_modes(rows: &[Row]) -> String {
    let mut text = String::from(
        "| driver | queues | MTU | asked | got | scenarios | crossed | of these, zero-copy | drops |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let drops: Vec<String> = row.drops.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let passed = match row.scenarios {
            0 => "-".to_owned(),
            all => format!("{} of {all}", row.passed),
        };
        let Row { nic, asked, got, queues, mtu, crossed: [crossed, uncopied], .. } = row;
        let drops = if drops.is_empty() { "-".into() } else { drops.join(", ") };
        _ = writeln!(
            text,
            "| {nic} | {queues} | {mtu} | {asked} | {got} | {passed} | {crossed} | {uncopied} | {drops} |"
        );
    }
    text
}

/// What the scripts tried, in Markdown.
pub fn of_trials(trials: &[Trial]) -> String {
    let mut text = String::from("| driver | tried | as it should be | seen |\n| --- | --- | --- | --- |\n");
    for Trial { nic, script, name, ok, seen } in trials {
        let ok = if *ok { "yes" } else { "NO" };
        _ = writeln!(text, "| {nic} | {script}: {name} | {ok} | {} |", seen.replace('|', "/"));
    }
    text
}

/// The table, with the rows that an earlier one had of drivers that it has not, in the order of the drivers. Of other columns they
/// are dropped.
fn merged(earlier: &str, table: &str) -> String {
    let of = |text: &'_ str, name: &str| -> String {
        let columns = |line: &str| line.split(" | ").count();
        let fits = |line: &&str| {
            line.strip_prefix("| ").and_then(|line| line.split(" | ").next()) == Some(name)
                && columns(line) == table.lines().next().map_or(0, columns)
        };
        text.lines().filter(fits).map(|line| format!("{line}\n")).collect()
    };
    let heading: String = table.lines().take(2).map(|line| format!("{line}\n")).collect();
    let rows = PAIRINGS.iter().map(|pairing| {
        let new = of(table, pairing.name);
        if new.is_empty() { of(earlier, pairing.name) } else { new }
    });
    heading + &rows.collect::<String>()
}

/// Puts a table between its marks in a file. What is there of other drivers stays.
///
/// # Errors
/// The file or its marks are not there.
pub fn save(file: &Path, name: &str, table: &str) -> Outcome<()> {
    let [first, last] = [format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->")];
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let (Some(begin), Some(end)) = (text.find(&first), text.find(&last)) else {
        return Err(format!("{}: no marks {} and {last}", file.display(), first.trim()).into());
    };
    let part = |range: std::ops::Range<usize>| text.get(range).unwrap_or_default();
    let (head, tail) = (part(0..begin + first.len()), part(end..text.len()));
    let table = merged(part(begin + first.len()..end), table);
    let new = [head, &table, tail].concat();
    Ok(fs::write(file, new)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_drivers_that_were_not_played_stay_if_they_have_the_columns() {
        let earlier =
            "| driver | seen |\n| --- | --- |\n| vmxnet3 | old |\n| igb | old |\n| e1000e | old | more |\n";
        let table = "| driver | seen |\n| --- | --- |\n| igb | new |\n| igb | newer |\n";
        let merged = merged(earlier, table);
        assert_eq!(
            merged,
            "| driver | seen |\n| --- | --- |\n| igb | new |\n| igb | newer |\n| vmxnet3 | old |\n"
        );
    }
}
