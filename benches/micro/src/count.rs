//! How cases are measured: by the clock, by the allocator, by callgrind.

use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::{BATCH, Case};

/// Batches that warm caches and branch predictors up.
const WARM: usize = 200;
/// How long one timing lasts.
const SLICE: Duration = Duration::from_millis(100);
/// Timings of a case.
const TIMINGS: usize = 7;
/// Batches under callgrind: one run has so many more than another, and the difference is theirs alone. In the fewer each of a thousand
/// connections has had the packets that it takes until nothing has to be learnt of it.
const FEW: u32 = 200;
const MORE: u32 = 400;

/// Nanoseconds of one unit of work, one number for each timing.
pub fn nanoseconds(case: &Case) -> Vec<f64> {
    let mut work = case.prepare();
    (0..WARM).for_each(|_| work());
    let slice = |_| {
        let (from, mut batches) = (Instant::now(), 0_u32);
        while from.elapsed() < SLICE {
            (0..10).for_each(|_| work());
            batches += 10;
        }
        from.elapsed().as_nanos() as f64 / (f64::from(batches) * BATCH as f64)
    };
    (0..TIMINGS).map(slice).collect()
}

/// Allocations of one unit of work, in a case that has done some.
pub fn allocations(case: &Case) -> f64 {
    let mut work = case.prepare();
    (0..WARM).for_each(|_| work());
    let counted = allocation_counter::measure(|| (0..FEW).for_each(|_| work()));
    counted.count_total as f64 / (f64::from(FEW) * BATCH as f64)
}

/// Instructions of one unit of work of the case of this name. Runs this program under valgrind, twice.
///
/// # Errors
/// valgrind cannot be run, or does not say what is expected.
pub fn instructions(case: &str) -> io::Result<f64> {
    let all = |batches: u32| -> io::Result<f64> {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        command.arg(std::env::current_exe()?).args(["--case", case, "--batches", &batches.to_string()]);
        let output = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let collected = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
        collected.ok_or_else(|| io::Error::other(format!("valgrind says no number: {said}")))
    };
    let (few, more) = (all(FEW)?, all(MORE)?);
    Ok((more - few) / (f64::from(MORE - FEW) * BATCH as f64))
}
