//! The figures for people: measure by measure, each contender with its ratio to the kernel's forwarding and to HAProxy.

use std::fmt::{self, Write as _};

use crate::contender::Contender;
use crate::report::{Report, number};

/// What all are compared with.
const AGAINST: [Contender; 2] = [Contender::Forwarding, Contender::Haproxy];

/// The whole table.
///
/// # Errors
/// Never: a string takes everything.
pub fn table(report: &Report) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let lines = report.lines();
    let mut last = "";
    for line in &lines {
        if line.measure != last {
            writeln!(text, "\n{}, {} (median, min to max; times that of)", line.measure, line.unit)?;
            last = &line.measure;
        }
        let spread = format!("{} to {}", number(line.min), number(line.max));
        write!(text, "  {:16} {:>9}  {spread:22}", line.contender, number(line.median))?;
        for other in AGAINST.into_iter().filter(|other| other.name() != line.contender) {
            if let Some(base) = report.median(other.name(), &line.measure) {
                write!(text, "  {:>6} {}", number(line.median / base), other.name())?;
            }
        }
        text.push('\n');
    }
    Ok(text)
}
