//! SYN flood: what a gateway costs that answers SYNs for its servers, and what a real client notices of it.
//!
//! ```text
//! make bench-flood                                    every contender, 3 runs
//! make bench-flood ARGS="--runs 1 --seconds 2 --contenders synproxy,through"
//! ```
//!
//! Needs root, two CPUs and the commands ip, ethtool, nft, renice, taskset, unshare. Nothing of the host is touched (see `weir_control::lab`), but
//! its CPUs are busy: another load on them spoils the figures.
//!
//! **Arrangement.** `client | gateway | server` as three namespaces, joined by veth, offloads off. The gateway has CPU 1 for itself: its ports'
//! NAPI are kernel threads (threaded NAPI) bound to it, and so is the contender's process. Everything else has CPU 0: the NAPI of
//! the outer ends, the origin, the real client, and the flood, which only gets the time that those leave (SCHED_IDLE).
//!
//! **Flood.** See `weir_benches::flood`.
//!
//! **Phases** of each run, in a new lab: *flat out*, as many SYNs as the generator makes, for what a CPU can answer (what
//! exceeds that is lost at the port's ring, and real packets with it); then *steady*, at half of what was just answered (a port whose NAPI sleeps in between needs more time per packet), for
//! what a real client notices: it opens connections of both families, asks for a page, and is told by its clock how long that took.
//!
//! **CPU time of the gateway** is that of its NAPI threads, of the contender's threads, and of ksoftirqd on its CPU (sum_exec_runtime, ns).
//! What a contender may do in interrupts is in there, since it is charged to the thread that was interrupted.
#![forbid(unsafe_code)]

mod accounts;
mod bed;
mod contender;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use accounts::Reading;
use bed::Bed;
use contender::Contender;
use report::Figures;
use weir_benches::Failure;
use weir_benches::ends::origin::Origin;
use weir_benches::flood::{Flood, Rate, RealClient, Seen, try_once};
use weir_benches::report::Report;

/// From the start of a flood to its first reading.
const SETTLE: Duration = Duration::from_secs(1);

#[derive(Debug, Parser)]
#[command(about = "SYN flood: weir against nft's synproxy")]
struct Arguments {
    /// Who is measured, in turns.
    #[arg(long, value_delimiter = ',', default_value = "synproxy,answer-always,answer-auto")]
    contenders: Vec<Contender>,
    /// Runs of each contender.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// How long each phase is measured.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// The rate of the steady phase: this part of what the contender answered flat out.
    #[arg(long, default_value_t = 0.5)]
    steady: f64,
    /// The rate of the steady phase in SYNs per second, for all contenders.
    #[arg(long)]
    rate: Option<f64>,
    /// The binary; else the `weir` beside this one.
    #[arg(long)]
    weir: Option<PathBuf>,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/syn_flood.json")]
    json: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("syn_flood: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let weir = match &arguments.weir {
        Some(path) => std::path::absolute(path)?,
        None => std::env::current_exe()?.with_file_name("weir"),
    };
    let mut report = Report::default();
    for run in 1..=arguments.runs {
        for contender in &arguments.contenders {
            let figures = measure(*contender, &weir, arguments)
                .map_err(|error| format!("{}, run {run}: {error}", contender.name()))?;
            eprintln!("run {run}: {:14} {figures}", contender.name());
            figures.add_to(&mut report, *contender);
        }
    }
    println!("{report}");
    report.write(&arguments.json)?;
    println!("{}", arguments.json.display());
    Ok(())
}

/// One run of one contender, in a lab of its own.
fn measure(contender: Contender, weir: &std::path::Path, arguments: &Arguments) -> Result<Figures, Failure> {
    let bed = Bed::new()?;
    let origin = Origin::start(&bed.lab)?;
    let gateway = contender.start(&bed, weir)?;
    let threads = bed.bind_threads()?;
    // A gateway that does not even carry the real client has nothing to be measured for.
    try_once(&bed.lab)?;
    let mut flood = Flood::start(&bed.lab)?;
    let window = Duration::from_secs_f64(arguments.seconds);
    let mut phase = |rate| -> Result<Phase, Failure> {
        flood.set_rate(rate)?;
        std::thread::sleep(SETTLE);
        let client = RealClient::start(&bed.lab)?;
        let read = || Reading::take(&bed, &threads, gateway.process(), flood.sent()?);
        let (before, started) = (read()?, Instant::now());
        std::thread::sleep(window);
        let (after, seconds) = (read()?, started.elapsed().as_secs_f64());
        flood.set_rate(Rate::Paused)?;
        Ok(Phase { used: after.since(&before), seconds, seen: client.finish() })
    };
    let flat_out = phase(Rate::FlatOut)?;
    let answered = flat_out.used.answered as f64 / flat_out.seconds;
    std::thread::sleep(SETTLE);
    let steady = phase(Rate::PerSecond(arguments.rate.unwrap_or(answered * arguments.steady)))?;
    flood.stop()?;
    drop((gateway, origin));
    Ok(Figures::of(&flat_out, &steady))
}

/// What happened while the flood was on.
#[derive(Debug)]
struct Phase {
    used: Reading,
    seconds: f64,
    seen: Seen,
}
