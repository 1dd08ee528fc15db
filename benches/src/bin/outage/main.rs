//! Measures for how long traffic stops when weir fails (killed, hung as a whole, or with one worker hung), when it starts again, with
//! too little memory too, and when another takes its place (`weir run --replace`), on IPv4 and IPv6.
//!
//!     outage [--runs N] [--handshake NAME]... [--failing WAY]... [--closed] [--express standby | never] [--load SECONDS | --repairs | --new] [--flows N]
//!
//! A connection through weir is open, of each handshake (`send`: answered, and given to the server of a pool). At both its ends a packet
//! of it is sent every millisecond, by a timer of the kernel's ([`weir_benches::probe`]), with a number, and whatever arrives is recorded
//! with the kernel's time. Then weir fails. The
//! outage of a run is the longest time between two packets that arrive, less the millisecond that lies between two that are sent;
//! the packets that never arrive are counted besides. (Of the relay, which ends every packet itself: a request every
//! millisecond, and the longest time between two answers.) With `--load`, nothing fails: the machine is kept busy, and what is counted
//! is how often weir was wrongly taken for hung. With `--repairs`, somebody removes what weir has installed, and what is measured is
//! how long that stays away. With `--new`, new connections are begun all the time, and the outage is the longest time in which none
//! was answered at once.

mod attempts;
mod bed;
mod repair;
mod report;
mod talk;

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Parser, ValueEnum};
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
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How it fails [default: each].
    #[arg(long)]
    failing: Vec<Failing>,
    /// What connections are like [default: each].
    #[arg(long)]
    handshake: Vec<Handshake>,
    /// `fail = "closed"`.
    #[arg(long)]
    closed: bool,
    /// Of weir's configuration.
    #[arg(long, default_value = "auto", value_parser = ["auto", "standby", "never"])]
    express: String,
    /// Instead: seconds under load, in which nothing fails.
    #[arg(long)]
    load: Option<u64>,
    /// Instead: how long what somebody removes from the host stays away.
    #[arg(long, conflicts_with = "load")]
    repairs: bool,
    /// Instead: how long new connections are not answered.
    #[arg(long, conflicts_with_all = ["load", "repairs"])]
    new: bool,
    /// `flows` of weir's configuration: memory that a killed process has to give back first.
    #[arg(long, default_value_t = 1 << 20)]
    flows: u32,
}

/// What a connection is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Handshake {
    Through,
    Answer,
    /// Answered, and given to a pool's server.
    Send,
    Relay,
}

impl Handshake {
    const fn name(self) -> &'static str {
        match self {
            Self::Through => "through",
            Self::Answer => "answer",
            Self::Send => "send",
            Self::Relay => "relay",
        }
    }
}

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Failing {
    Killed,
    /// Killed, and started again at once.
    Restarted,
    /// Killed before; and now a start that is refused.
    NoMemory,
    Hung,
    WorkerHung,
    /// It hung for a while and goes on.
    Continued,
    /// Another process took its place.
    Replaced,
    /// A device goes, and comes back.
    Device,
}

impl Failing {
    const fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed (SIGKILL)",
            Self::Restarted => "killed, started again",
            Self::NoMemory => "no memory to start",
            Self::Hung => "hung (SIGSTOP)",
            Self::WorkerHung => "one worker hung",
            Self::Continued => "continued (SIGCONT)",
            Self::Replaced => "replaced (--replace)",
            Self::Device => "a device is back",
        }
    }

    /// What traffic may stop for, in a box that fails open.
    const fn bar(self) -> Option<Duration> {
        match self {
            Self::Killed => Some(Duration::from_millis(5)),
            Self::Hung | Self::WorkerHung | Self::Continued | Self::Replaced => {
                Some(Duration::from_millis(50))
            }
            Self::Restarted | Self::NoMemory | Self::Device => None,
        }
    }

    /// Whether connections that are open can outlive it. Those of the relay end with its process, and the probes with a device.
    const fn is_outlived(self, handshake: Handshake) -> bool {
        match self {
            Self::Replaced => true,
            Self::Device => false,
            _ => !matches!(handshake, Handshake::Relay),
        }
    }

    /// Whether it is something for connections to come. The relay has other threads than workers, and needs hardly any memory; and one
    /// that goes on has hung.
    const fn is_met(self, handshake: Handshake) -> bool {
        match self {
            Self::Continued => false,
            Self::WorkerHung | Self::NoMemory => !matches!(handshake, Handshake::Relay),
            _ => true,
        }
    }
}

impl Options {
    fn handshakes(&self) -> &[Handshake] {
        if self.handshake.is_empty() { Handshake::value_variants() } else { &self.handshake }
    }

    fn failings(&self) -> &[Failing] {
        if self.failing.is_empty() { Failing::value_variants() } else { &self.failing }
    }

    /// What traffic may stop for. A box that fails closed stops it until weir is back.
    fn bar(&self, failing: Failing) -> Option<Duration> {
        failing.bar().filter(|_| !self.closed)
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
    report::heading("traffic stops for (ms; packets lost of one each ms; both directions of all runs)");
    let mut all = true;
    for handshake in options.handshakes() {
        for failing in options.failings().iter().copied().filter(|failing| failing.is_outlived(*handshake)) {
            for family in Family::BOTH {
                let one = |run| {
                    let one = match handshake {
                        Handshake::Relay => talk::one(options, failing, family),
                        _ => one(options, *handshake, failing, family),
                    };
                    one.map_err(|e| report::of_run(*handshake, failing, family, run, &e))
                };
                let samples = (0..options.runs).map(one).collect::<Result<Vec<_>, _>>()?.concat();
                let times = samples.iter().map(Sample::outage_ms).collect();
                let lost = samples.iter().map(|sample| sample.lost).collect();
                all &= report::row(*handshake, failing, family, options.bar(failing), times, lost);
            }
        }
    }
    Ok(all)
}

/// A lab of its own for each run: what a failure leaves is not in the next one's way.
fn one(
    options: &Options,
    handshake: Handshake,
    failing: Failing,
    family: Family,
) -> Result<Vec<Sample>, Failure> {
    let bed = Bed::new(options)?;
    let mut weir = Weir::start(&bed, options, handshake)?;
    let connection = bed.connect(family)?;
    let probes = Probes::start(&bed.lab, &connection)?;
    std::thread::sleep(Duration::from_millis(150));
    weir.prepare(failing)?;
    let since = SystemTime::now();
    weir.fail(failing)?;
    std::thread::sleep(WATCHED);
    let recorded = probes.stop();
    weir.thaw();
    Ok(recorded?.between(since, SystemTime::now())?.to_vec())
}

/// How often a busy machine makes weir look dead. Four busy threads a core, of ordinary priority, beside the traffic.
fn under_load(options: &Options, time: Duration) -> Result<bool, Failure> {
    let bed = Bed::new(options)?;
    let weir = Weir::start(&bed, options, Handshake::Through)?;
    let connection = bed.connect(Family::V4)?;
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
