//! All drivers, one guest each, and in each the demo in every mode.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::job::{Demo, Job, Task};
use crate::machine::Machine;
use crate::pairing::{Best, PAIRINGS, Pairing};
use crate::table::{self, Row, Trial};
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

/// What all scripts share, and what they try in guests besides the demo.
const BED: &str = include_str!("../../../nic/bed.sh");
const SCRIPTS: [(&str, &str); 5] = [
    ("doctor", include_str!("../../../nic/doctor.sh")),
    ("vlan", include_str!("../../../nic/vlan.sh")),
    ("faults", include_str!("../../../nic/faults.sh")),
    ("netem", include_str!("../../../nic/netem.sh")),
    ("memory", include_str!("../../../nic/memory.sh")),
];

/// Of one guest, or of all.
#[derive(Debug, Default, Serialize)]
struct Seen {
    rows: Vec<Row>,
    trials: Vec<Trial>,
}

/// How long a guest may take for all of its tasks.
const LIMIT: Duration = Duration::from_secs(1500);
/// MTU of Ethernet.
const MTU: u32 = 1500;
/// A larger one, that fits a frame of weir's.
const JUMBO: u32 = 3000;
/// One that does not.
pub const TOO_LARGE: u32 = 4000;

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
    let mut seen = Seen::default();
    for (_, result) in results {
        let of_guest = result?;
        seen.rows.extend(of_guest.rows);
        seen.trials.extend(of_guest.trials);
    }
    finish(args, &seen, started.elapsed())
}

fn take<'a>(queue: &Mutex<VecDeque<(usize, &'a Pairing)>>) -> Option<(usize, &'a Pairing)> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// Boots the guest of one driver and plays all there is to play.
fn play(parts: &Parts, image: &Path, pairing: &Pairing) -> Outcome<Seen> {
    let folder = parts.out.join(pairing.name);
    let machine = Machine { cache: &parts.cache, image, folder: &folder, limit: LIMIT };
    let demos = demos(pairing);
    let chosen: Vec<_> = SCRIPTS.iter().filter(|(name, _)| pairing.scripts.contains(name)).collect();
    let scripts =
        chosen.iter().map(|(name, text)| Task::Script { name: (*name).into(), text: [BED, text].concat() });
    let job = Job { tasks: demos.iter().cloned().map(Task::Demo).chain(scripts).collect() };
    let started = Instant::now();
    let mut tell = |line: &str| {
        if let Some(told) = line.strip_prefix("nic: ") {
            println!("{:4} s  {:18} {told}", started.elapsed().as_secs(), pairing.name);
        }
    };
    // QEMU's own emulation of memory fails an assertion now and then (iotlb_to_section), whatever the guest does.
    let answers = machine.run(pairing, &job, &[], &mut tell).or_else(|error| {
        println!("{error}; once more");
        machine.run(pairing, &job, &[], &mut tell)
    })?;
    let (played, scripts) = answers.split_at(demos.len().min(answers.len()));
    let trials = chosen.iter().zip(scripts).flat_map(|((name, _), answer)| Trial::of(pairing, name, answer));
    let rows = demos.iter().zip(played).map(|(demo, answer)| Row::new(pairing, demo, answer)).collect();
    Ok(Seen { rows, trials: trials.collect() })
}

fn demos(pairing: &Pairing) -> Vec<Demo> {
    let mut demos = Vec::new();
    let mut add = |mode: &str, queues, mtu| demos.push(Demo { mode: mode.to_owned(), queues, mtu });
    for &queues in pairing.queues {
        add("zero-copy", queues, MTU);
    }
    let Some(&queues) = pairing.queues.first() else { return demos };
    if pairing.best != Best::Generic {
        add("copy", queues, MTU);
    }
    add("generic", queues, MTU);
    add("auto", queues, JUMBO);
    if pairing.passes_large {
        add("auto", queues, TOO_LARGE);
    }
    demos
}

fn finish(args: &MatrixArgs, seen: &Seen, took: Duration) -> Outcome<ExitCode> {
    fs::write(args.parts.out.join("matrix.json"), serde_json::to_vec_pretty(seen)?)?;
    println!("\n{}\n{}", table::of_modes(&seen.rows), table::of_trials(&seen.trials));
    for row in &seen.rows {
        for problem in &row.problems {
            println!("{} {} ({} queues, MTU {}): {problem}", row.nic, row.asked, row.queues, row.mtu);
        }
    }
    for trial in seen.trials.iter().filter(|trial| !trial.ok) {
        println!("{} {} {}: {}", trial.nic, trial.script, trial.name, trial.seen);
    }
    let bad = seen.rows.iter().filter(|row| !row.problems.is_empty()).count();
    let bad = bad + seen.trials.iter().filter(|trial| !trial.ok).count();
    let all = seen.rows.len() + seen.trials.len();
    println!("{} of {all} as expected, in {} s", all - bad, took.as_secs());
    if let Some(file) = &args.save {
        table::save(file, "matrix", &table::of_modes(&seen.rows))?;
        table::save(file, "trials", &table::of_trials(&seen.trials))?;
    }
    Ok(ExitCode::from(u8::from(bad > 0)))
}
