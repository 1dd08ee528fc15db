//! Figures as SVG: a picture for each measure, a bar for each contender with its spread, and the machine below.

use std::path::{Path, PathBuf};

use plotters::prelude::*;

use crate::Failure;
use crate::machine::Machine;
use crate::report::{Line, number};

const WIDTH: u32 = 900;
/// Of a bar with its surroundings, and of all that is above and below the bars.
const ROW: u32 = 36;
const FRAME: u32 = 120;
const FOOTER: u32 = 30;
const FONT: &str = "sans-serif";

/// Draws all measures into a folder; returns the files.
///
/// # Errors
/// A file cannot be written.
pub fn draw_all(lines: &[Line], machine: &Machine, folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    std::fs::create_dir_all(folder)?;
    let mut files = Vec::new();
    let mut rest = lines;
    while let Some(first) = rest.first() {
        let count =
            rest.iter().take_while(|line| line.measure == first.measure && line.unit == first.unit).count();
        let (some, others) = rest.split_at(count);
        let file = folder.join(format!("{}.svg", slug(&first.measure, &first.unit)));
        draw(some, machine, &file).map_err(|error| format!("{}: {error}", file.display()))?;
        files.push(file);
        rest = others;
    }
    Ok(files)
}

/// A name for a file.
fn slug(measure: &str, unit: &str) -> String {
    let text = format!("{measure} {unit}").to_lowercase();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

fn draw(lines: &[Line], machine: &Machine, file: &Path) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::from(error.to_string());
    let Some(first) = lines.first() else { return Ok(()) };
    let height = FRAME + ROW * lines.len() as u32;
    let root = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let (upper, lower) = root.split_vertically(height - FOOTER);
    let longest = lines.iter().map(|line| line.max).fold(f64::MIN_POSITIVE, f64::max);
    let mut chart = ChartBuilder::on(&upper)
        .caption(format!("{}, {}", first.measure, first.unit), (FONT, 20))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(150)
        .build_cartesian_2d(0.0..longest * 1.15, (0..lines.len()).into_segmented())
        .map_err(|error| failed(&error))?;
    let name = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(at) => lines.get(*at).map_or(String::new(), |line| line.contender.to_string()),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(lines.len() + 1)
        .y_label_formatter(&name)
        .x_label_formatter(&|value| number(*value))
        .label_style((FONT, 13))
        .draw()
        .map_err(|error| failed(&error))?;
    let bars = lines.iter().enumerate().map(|(at, line)| {
        let corners = [(0.0, SegmentValue::Exact(at)), (line.median, SegmentValue::Exact(at + 1))];
        let mut bar = Rectangle::new(corners, Palette99::pick(at).mix(0.7).filled());
        bar.set_margin(6, 6, 0, 0);
        bar
    });
    chart.draw_series(bars).map_err(|error| failed(&error))?;
    let spreads = lines.iter().enumerate().map(|(at, line)| {
        let ends = vec![(line.min, SegmentValue::CenterOf(at)), (line.max, SegmentValue::CenterOf(at))];
        PathElement::new(ends, BLACK.stroke_width(2))
    });
    chart.draw_series(spreads).map_err(|error| failed(&error))?;
    let values = lines.iter().enumerate().map(|(at, line)| {
        Text::new(number(line.median), (line.max + longest * 0.01, SegmentValue::CenterOf(at)), (FONT, 13))
    });
    chart.draw_series(values).map_err(|error| failed(&error))?;
    let runs = lines.iter().map(|line| line.runs).min().unwrap_or(0);
    let footer = format!("median, least and most of {runs} runs. {machine}");
    lower.draw(&Text::new(footer, (10, 8), (FONT, 13))).map_err(|error| failed(&error))?;
    root.present().map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    #[test]
    fn each_measure_has_a_picture_with_its_contenders_and_the_machine() {
        let mut report = Report::default();
        for (contender, value) in [("one", 3.0), ("one", 4.0), ("another", 5.0)] {
            report.add(contender, "new connections, TLS", "1/s", value);
            report.add(contender, "CPU: all", "us", value);
        }
        let folder = std::env::temp_dir().join(format!("weir-bench-plots-{}", std::process::id()));
        let machine = Machine { cpu: "CPU of a test".into(), ..Machine::this() };
        let files = draw_all(&report.lines(), &machine, &folder).unwrap();
        let names: Vec<_> = files.iter().filter_map(|file| file.file_name()?.to_str()).collect();
        assert_eq!(names, ["new-connections-tls-1-s.svg", "cpu-all-us.svg"]);
        for file in &files {
            let svg = std::fs::read_to_string(file).unwrap();
            for word in ["one", "another", "CPU of a test", "3.50"] {
                assert!(svg.contains(word), "{word} in {svg}");
            }
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
