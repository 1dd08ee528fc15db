//! Figures of several runs of several contenders: medians as a table for people, and JSON for programs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Failure;

/// Figures by measure and contender, both in the order in which they came first.
#[derive(Debug, Default)]
pub struct Report {
    contenders: Vec<&'static str>,
    measures: Vec<(&'static str, &'static str)>,
    values: BTreeMap<(usize, usize), Vec<f64>>,
}

/// One line of the JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    pub measure: Cow<'static, str>,
    pub contender: Cow<'static, str>,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub unit: Cow<'static, str>,
    pub runs: usize,
}

impl Report {
    /// Adds what one run showed.
    pub fn add(&mut self, contender: &'static str, measure: &'static str, unit: &'static str, value: f64) {
        let measure = place(&mut self.measures, (measure, unit));
        let contender = place(&mut self.contenders, contender);
        self.values.entry((measure, contender)).or_default().push(value);
    }

    /// All figures, measure by measure.
    pub fn lines(&self) -> Vec<Line> {
        let line = |(&(measure, contender), values): (&(usize, usize), &Vec<f64>)| {
            let (measure, unit) = self.measures[measure];
            let mut values = values.clone();
            values.sort_unstable_by(f64::total_cmp);
            let middle = values.len() / 2;
            let median = match values.len() % 2 {
                1 => values[middle],
                _ => f64::midpoint(values[middle - 1], values[middle]),
            };
            let (min, max) = (values[0], values[values.len() - 1]);
            Line {
                measure: measure.into(),
                contender: self.contenders[contender].into(),
                median,
                min,
                max,
                unit: unit.into(),
                runs: values.len(),
            }
        };
        self.values.iter().map(line).collect()
    }

    /// The median of a measure.
    pub fn median(&self, contender: &str, measure: &str) -> Option<f64> {
        let lines = self.lines();
        lines
            .iter()
            .find(|line| line.contender == contender && line.measure == measure)
            .map(|line| line.median)
    }

    /// Writes the JSON: a list of lines.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        Ok(std::fs::write(path, serde_json::to_string_pretty(&self.lines())? + "\n")?)
    }
}

fn place<T: PartialEq>(list: &mut Vec<T>, wanted: T) -> usize {
    match list.iter().position(|known| *known == wanted) {
        Some(at) => at,
        None => {
            list.push(wanted);
            list.len() - 1
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:42}", "median (min to max)")?;
        for contender in &self.contenders {
            write!(f, " | {contender:30}")?;
        }
        let lines = self.lines();
        for (measure, unit) in &self.measures {
            write!(f, "\n{:42}", format!("{measure}, {unit}"))?;
            for contender in &self.contenders {
                match lines.iter().find(|line| line.measure == *measure && line.contender == *contender) {
                    Some(line) => {
                        let spread = format!("({} to {})", number(line.min), number(line.max));
                        write!(f, " | {:>9} {spread:20}", number(line.median))?;
                    }
                    None => write!(f, " | {:30}", "")?,
                }
            }
        }
        Ok(())
    }
}

/// Three or four digits that matter.
pub fn number(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
