//! The figures of this run against those of another, stored one.

use std::fmt::{self, Write as _};
use std::path::Path;

use crate::Failure;
use crate::report::{Line, number};

/// Reads what was stored.
///
/// # Errors
/// The file, and what is wrong with it.
pub fn read(file: &Path) -> Result<Vec<Line>, Failure> {
    let failed = |error: &dyn fmt::Display| format!("{}: {error}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
    let what = "a list of measure, contender, median, min, max, unit and runs is wanted";
    Ok(serde_json::from_str(&text).map_err(|error| failed(&format!("{error}; {what}")))?)
}

/// Every figure that both have: before, now, and by what factor it has changed. It is marked where the spreads of the two do not
/// touch: less than that may be chance.
///
/// # Errors
/// Never: a string takes everything.
pub fn table(before: &[Line], now: &[Line]) -> Result<String, fmt::Error> {
    let mut text = String::new();
    writeln!(
        text,
        "{:52} | {:14} | {:>9} | {:>9} | {:>7}",
        "against what was stored", "", "before", "now", "factor"
    )?;
    let mut missing = 0;
    for line in now {
        let same = |other: &&Line| {
            (&other.measure, &other.contender, &other.unit) == (&line.measure, &line.contender, &line.unit)
        };
        let Some(other) = before.iter().find(same) else {
            missing += 1;
            continue;
        };
        let apart = line.min > other.max || line.max < other.min;
        let (was, is, factor) =
            (number(other.median), number(line.median), number(line.median / other.median));
        let measure = format!("{}, {}", line.measure, line.unit);
        let mark = if apart { "changed" } else { "" };
        writeln!(text, "{measure:52} | {:14} | {was:>9} | {is:>9} | {factor:>7} {mark}", line.contender)?;
    }
    if missing > 0 {
        writeln!(text, "{missing} figures were not stored")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    fn lines(values: &[f64]) -> Vec<Line> {
        let mut report = Report::default();
        values.iter().for_each(|value| report.add("weir", "requests", "1/s", *value));
        report.lines()
    }

    #[test]
    fn figures_beyond_the_spread_are_marked_and_others_not() {
        let before = lines(&[100.0, 110.0, 120.0]);
        let table = |now: &[f64]| super::table(&before, &lines(now)).unwrap();
        assert!(table(&[130.0, 140.0, 150.0]).contains("1.27 changed"));
        assert!(!table(&[115.0, 118.0, 125.0]).contains("changed"));
        assert!(table(&[50.0]).contains("0.45 changed"));
    }

    #[test]
    fn figures_written_are_read_again() {
        let file = std::env::temp_dir().join(format!("weir-bench-compare-{}.json", std::process::id()));
        let mut report = Report::default();
        report.add("weir", "requests", "1/s", 7.0);
        report.write(&file).unwrap();
        assert_eq!(read(&file).unwrap()[0].median, 7.0);
        std::fs::write(&file, "{}").unwrap();
        let error = read(&file).unwrap_err().to_string();
        assert!(error.contains("weir-bench-compare") && error.contains("a list of measure"), "{error}");
        std::fs::remove_file(file).unwrap();
    }
}
