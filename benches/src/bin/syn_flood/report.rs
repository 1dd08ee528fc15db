//! The figures of all runs: medians as a table, and JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::contender::Contender;
use super::{Failure, Phase};

/// What is measured: name, unit.
const MEASURES: [(&str, &str); 16] = [
    ("flat out: sent", "SYN/s"),
    ("flat out: arrived", "SYN/s"),
    ("flat out: lost at the port", "SYN/s"),
    ("flat out: answered", "SYN/s"),
    ("flat out: gateway CPU", "cores"),
    ("flat out: others on that CPU", "cores"),
    ("flat out: answered per CPU second", "SYN/s"),
    ("steady: sent", "SYN/s"),
    ("steady: lost at the port", "SYN/s"),
    ("steady: answered", "SYN/s"),
    ("steady: gateway CPU", "cores"),
    ("steady: answered per CPU second", "SYN/s"),
    ("real client: connections", "1"),
    ("real client: success", "%"),
    ("real client: p50", "ms"),
    ("real client: p99", "ms"),
];
/// Which of them the line of a single run shows.
const SHORT: [usize; 9] = [1, 3, 4, 5, 6, 9, 11, 13, 15];

/// The figures of one run, in the order of [`MEASURES`].
#[derive(Clone, Copy, Debug)]
pub struct Figures([f64; MEASURES.len()]);

impl Figures {
    pub fn of(flat_out: &Phase, steady: &Phase) -> Self {
        let [sent, arrived, lost, answered, cpu, others, per_cpu] = rates(flat_out);
        let [steady_sent, _, steady_lost, steady_answered, steady_cpu, _, steady_per_cpu] = rates(steady);
        let seen = &steady.seen;
        Self([
            sent,
            arrived,
            lost,
            answered,
            cpu,
            others,
            per_cpu,
            steady_sent,
            steady_lost,
            steady_answered,
            steady_cpu,
            steady_per_cpu,
            (seen.times.len() + seen.failed) as f64,
            seen.success() * 100.0,
            seen.quantile(0.5) * 1e3,
            seen.quantile(0.99) * 1e3,
        ])
    }
}

/// Sent, arrived, lost and answered per second; CPUs that the gateway used, and others of its CPU; answered per second of
/// CPU time.
fn rates(phase: &Phase) -> [f64; 7] {
    let used = &phase.used;
    let per_second = |count: u64| count as f64 / phase.seconds;
    let cpu_seconds = used.cpu_ns as f64 / 1e9;
    [
        per_second(used.sent),
        per_second(used.arrived),
        per_second(used.lost),
        per_second(used.answered),
        cpu_seconds / phase.seconds,
        used.busy_ns.saturating_sub(used.cpu_ns) as f64 / 1e9 / phase.seconds,
        used.answered as f64 / cpu_seconds.max(1e-9),
    ]
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for index in SHORT {
            let (name, unit) = MEASURES[index];
            write!(f, "{name} {} {unit}; ", number(self.0[index]))?;
        }
        Ok(())
    }
}

/// All runs of all contenders.
#[derive(Debug, Default)]
pub struct Report(BTreeMap<Contender, Vec<Figures>>);

/// One line of the JSON.
#[derive(Debug, Serialize)]
struct Line {
    measure: &'static str,
    contender: &'static str,
    median: f64,
    min: f64,
    max: f64,
    unit: &'static str,
    runs: usize,
}

impl Report {
    pub fn add(&mut self, contender: Contender, figures: Figures) {
        self.0.entry(contender).or_default().push(figures);
    }

    /// Writes the JSON: a list of lines.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let lines: Vec<Line> = (0..MEASURES.len()).flat_map(|index| self.lines(index)).collect();
        Ok(std::fs::write(path, serde_json::to_string_pretty(&lines)? + "\n")?)
    }

    /// One measure of every contender.
    fn lines(&self, index: usize) -> impl Iterator<Item = Line> {
        let (measure, unit) = MEASURES[index];
        self.0.iter().map(move |(contender, runs)| {
            let mut values: Vec<f64> = runs.iter().map(|figures| figures.0[index]).collect();
            values.sort_unstable_by(f64::total_cmp);
            let middle = values.len() / 2;
            let median = if values.len() % 2 == 1 {
                values[middle]
            } else {
                f64::midpoint(values[middle - 1], values[middle])
            };
            let (min, max) = (values[0], values[values.len() - 1]);
            Line { measure, contender: contender.name(), median, min, max, unit, runs: values.len() }
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:40}", "median (min to max)")?;
        for contender in self.0.keys() {
            write!(f, " | {:32}", contender.name())?;
        }
        for (index, (name, unit)) in MEASURES.iter().enumerate() {
            write!(f, "\n{:40}", format!("{name}, {unit}"))?;
            for line in self.lines(index) {
                let spread = format!("({} to {})", number(line.min), number(line.max));
                write!(f, " | {:>10} {spread:21}", number(line.median))?;
            }
        }
        Ok(())
    }
}

/// Three or four digits that matter.
fn number(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
