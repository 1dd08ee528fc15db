//! What was measured, as a table.

use std::time::Duration;

use weir_control::demo::stage::Family;

use super::{Failing, Handshake};

/// Prints what the figures are, and the names of the columns.
pub fn heading(what: &str) {
    println!("{what}");
    println!(
        "{:<9} {:<22} {:<5} {:>7} {:>8} {:>8} {:>8} {:>8} {:>12} {:>8}",
        "handshake", "weir", "IP", "figures", "median", "p90", "longest", "bar", "lost median", "most"
    );
}

/// Prints a row, of outages in ms and of what was lost; whether nine of ten are below the bar.
pub fn row(
    handshake: Handshake,
    failing: Failing,
    family: Family,
    bar: Option<Duration>,
    mut times: Vec<f64>,
    mut lost: Vec<usize>,
) -> bool {
    times.sort_by(f64::total_cmp);
    lost.sort_unstable();
    let Some(last) = times.len().checked_sub(1) else { return true };
    let bar = bar.map(|bar| bar.as_secs_f64() * 1e3);
    let most = times[last * 9 / 10];
    println!(
        "{:<9} {:<22} {:<5} {:>7} {:>8.1} {most:>8.1} {:>8.1} {:>8} {:>12} {:>8}",
        handshake.name(),
        failing.name(),
        family.name(),
        times.len(),
        times[last / 2],
        times[last],
        bar.map_or_else(|| "-".to_owned(), |bar| bar.to_string()),
        lost[last / 2],
        lost[last]
    );
    bar.is_none_or(|bar| most < bar)
}

/// What went wrong, and where.
pub fn of_run(
    handshake: Handshake,
    failing: Failing,
    family: Family,
    run: usize,
    error: &super::Failure,
) -> super::Failure {
    format!("{}, {}, {}, run {run}: {error}", handshake.name(), failing.name(), family.name()).into()
}
