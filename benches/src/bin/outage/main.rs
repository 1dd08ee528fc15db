//! Measures for how long traffic stops when weir fails (killed, hung as a whole, or with one worker hung) and when another takes its
//! place (`weir run --replace`), on IPv4 and IPv6.
//!
//!     outage [--runs N] [--load SECONDS | --repairs | --new] [--flows N]
//!
//! A connection through weir (`handshake = "through"`, allowed) is open. At both its ends a packet of it is sent every
//! millisecond, with a number, and whatever arrives is recorded with the kernel's time. Then weir fails. The outage of a run is the
//! longest time between two packets that arrive, less the millisecond that lies between two that are sent; the packets that
//! never arrive are counted besides. With `--load`, nothing fails: the machine is kept busy, and what is counted is how often
//! weir was wrongly taken for hung. With `--repairs`, somebody removes what weir has installed, and what is measured is how long that
//! stays away. With `--new`, new connections are begun all the time, of each handshake, and the outage is the longest time in which none
//! was answered at once.

mod attempts;
mod bed;
mod repair;
mod report;

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use weir_control::demo::stage::Family;

use bed::{Bed, Weir};
use weir_benches::Failure;
use weir_benches::probe::{Probes, Sample};

/// How long traffic is watched after the failure.
const WATCHED: Duration = Duration::from_millis(400);

#[derive(Debug, Parser)]
#[command(about = "How long traffic stops when weir fails")]
struct Options {
    /// Runs of each failure and address family.
    #[arg(long, default_value_t = 15)]
    runs: usize,
    /// Instead: seconds under load, in which nothing fails.
    #[arg(long)]
    load: Option<u64>,
    /// Instead: how long what somebody removes from the host stays away.
    #[arg(long, conflicts_with = "load")]
    repairs: bool,
    /// Instead: how long new connections are not answered, by handshake.
    #[arg(long, conflicts_with_all = ["load", "repairs"])]
    new: bool,
    /// `flows` of weir's configuration: memory that a killed process has to give back first.
    #[arg(long, default_value_t = 1 << 20)]
    flows: u32,
}

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failing {
    Killed,
    Hung,
    WorkerHung,
    /// It hung for a while and goes on.
    Continued,
    /// Another process took its place.
    Replaced,
}

impl Failing {
    const ALL: [Self; 5] = [Self::Killed, Self::Hung, Self::WorkerHung, Self::Continued, Self::Replaced];

    const fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed (SIGKILL)",
            Self::Hung => "hung (SIGSTOP)",
            Self::WorkerHung => "one worker hung",
            Self::Continued => "continued (SIGCONT)",
            Self::Replaced => "replaced (--replace)",
        }
    }

    /// What traffic may stop for.
    const fn bar(self) -> Duration {
        match self {
            Self::Killed => Duration::from_millis(5),
            _ => Duration::from_millis(50),
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match options.load {
        Some(seconds) => under_load(&options, Duration::from_secs(seconds)),
        None if options.new => attempts::measure(&options),
        None if options.repairs => repair::measure(&options),
        None => measure(&options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("outage: {error}");
            ExitCode::from(3)
        }
    }
}

/// Whether the bars are met.
fn measure(options: &Options) -> Result<bool, Failure> {
    let mut samples = Vec::new();
    for failing in Failing::ALL {
        for run in 0..options.runs {
            for family in Family::BOTH {
                let sample = one(options, failing, family);
                let sample =
                    sample.map_err(|e| format!("{}, {}, run {run}: {e}", failing.name(), family.name()))?;
                samples.push((failing, family, sample));
            }
        }
    }
    Ok(report::print(&samples))
}

/// A lab of its own for each run: what a failure leaves is not in the next one's way.
fn one(options: &Options, failing: Failing, family: Family) -> Result<[Sample; 2], Failure> {
    let bed = Bed::new()?;
    let mut weir = Weir::start(&bed, options.flows)?;
    let connection = bed.connect(family)?;
    weir.expect_fast(&connection)?;
    let probes = Probes::start(&bed.lab, &connection)?;
    std::thread::sleep(Duration::from_millis(150));
    if failing == Failing::Continued {
        weir.stop()?;
        std::thread::sleep(WATCHED);
    }
    let since = SystemTime::now();
    weir.fail(failing)?;
    std::thread::sleep(WATCHED);
    let recorded = probes.stop();
    weir.thaw();
    recorded?.between(since, SystemTime::now())
}

/// How often a busy machine makes weir look dead. Four busy threads a core, of ordinary priority, beside the traffic.
fn under_load(options: &Options, time: Duration) -> Result<bool, Failure> {
    let bed = Bed::new()?;
    let weir = Weir::start(&bed, options.flows)?;
    let connection = bed.connect(Family::V4)?;
    weir.expect_fast(&connection)?;
    let probes = Probes::start(&bed.lab, &connection)?;
    let load = bed::Load::start(4);
    std::thread::sleep(time);
    drop(load);
    let samples = probes.stop()?.between(SystemTime::UNIX_EPOCH, SystemTime::now())?;
    let status = weir.status(&bed)?;
    let count = |list: &str, name: &str| {
        let counts = status[list].as_array().into_iter().flatten();
        counts.filter(|count| count["name"] == name).filter_map(|count| count["count"].as_u64()).sum::<u64>()
    };
    let (workers, relay) = (count("steering", "stalls"), count("relay", "stalls"));
    println!(
        "{} s of load: the workers' sign of life was late {workers} times, the relay's {relay}",
        time.as_secs()
    );
    println!("packets that passed by: {}", count("steering", "stale_pass"));
    for (direction, sample) in ["to the server", "to the client"].into_iter().zip(samples) {
        println!("{direction}: longest pause {:.1} ms, {} packets lost", sample.outage_ms(), sample.lost);
    }
    Ok(workers == 0 && relay == 0)
}
