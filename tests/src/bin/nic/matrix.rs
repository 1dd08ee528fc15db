//! All drivers, one guest each, and in each the demo in every mode.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;

use crate::job::{Demo, Job, Task};
use crate::machine::Machine;
use crate::pairing::{Best, PAIRINGS, Pairing};
use crate::table::{self, Row};
use crate::{Outcome, Parts, image};

/// What the matrix is made of.
#[derive(Debug, Args)]
pub struct MatrixArgs {
    #[command(flatten)]
    parts: Parts,
    /// These drivers only; an unknown one lists them
    #[arg(long, value_name = "NIC")]
    only: Vec<String>,
    /// Guests at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Put the table into this file, between its marks
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// How long a guest may take for all of its tasks.
const LIMIT: Duration = Duration::from_secs(1500);
/// MTU of Ethernet.
const MTU: u32 = 1500;
/// A larger one, that fits a frame of weir's.
const JUMBO: u32 = 3000;

/// Exit code 0: each mode gave what the driver is known to have, and all scenarios went as they should.
///
/// # Errors
/// A guest could not be run.
pub fn run(args: &MatrixArgs) -> Outcome<ExitCode> {
    let chosen: Vec<&Pairing> = match args.only.is_empty() {
        true => PAIRINGS.iter().collect(),
        false => args.only.iter().map(|name| Pairing::named(name)).collect::<Outcome<_>>()?,
    };
    let started = Instant::now();
    let image = image::build(&args.parts.ingredients())?;
    let queue = Mutex::new(chosen.iter().copied().enumerate().collect::<VecDeque<_>>());
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                while let Some((at, pairing)) = take(&queue) {
                    let rows = play(&args.parts, &image, pairing);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((at, rows));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    let mut rows = Vec::new();
    for (_, result) in results {
        rows.extend(result?);
    }
    finish(args, &rows, started.elapsed())
}

fn take<'a>(queue: &Mutex<VecDeque<(usize, &'a Pairing)>>) -> Option<(usize, &'a Pairing)> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// Boots the guest of one driver and plays all there is to play.
fn play(parts: &Parts, image: &Path, pairing: &Pairing) -> Outcome<Vec<Row>> {
    let folder = parts.out.join(pairing.name);
    let machine = Machine { cache: &parts.cache, image, folder: &folder, limit: LIMIT };
    let demos = demos(pairing);
    let job = Job { tasks: demos.iter().cloned().map(Task::Demo).collect() };
    let started = Instant::now();
    let mut tell = |line: &str| {
        if let Some(told) = line.strip_prefix("nic: ") {
            println!("{:4} s  {:18} {told}", started.elapsed().as_secs(), pairing.name);
        }
    };
    let answers = machine.run(pairing, &job, &[], &mut tell)?;
    Ok(demos.iter().zip(&answers).map(|(demo, answer)| Row::new(pairing, demo, answer)).collect())
}

fn demos(pairing: &Pairing) -> Vec<Demo> {
    let mut demos = Vec::new();
    let mut add = |mode: &str, queues, mtu| demos.push(Demo { mode: mode.to_owned(), queues, mtu });
    for &queues in pairing.queues {
        add("zero-copy", queues, MTU);
    }
    if pairing.best != Best::Generic {
        add("copy", 1, MTU);
    }
    add("generic", 1, MTU);
    add("auto", 1, JUMBO);
    demos
}

fn finish(args: &MatrixArgs, rows: &[Row], took: Duration) -> Outcome<ExitCode> {
    fs::write(args.parts.out.join("matrix.json"), serde_json::to_vec_pretty(rows)?)?;
    println!("\n{}", table::markdown(rows));
    for row in rows {
        for problem in &row.problems {
            println!("{} {} ({} queues, MTU {}): {problem}", row.nic, row.asked, row.queues, row.mtu);
        }
    }
    let bad = rows.iter().filter(|row| !row.problems.is_empty()).count();
    println!("{} of {} as expected, in {} s", rows.len() - bad, rows.len(), took.as_secs());
    if let Some(file) = &args.save {
        table::save(file, rows)?;
    }
    Ok(ExitCode::from(u8::from(bad > 0)))
}
