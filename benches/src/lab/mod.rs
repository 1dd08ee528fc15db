//! The lab bench (`weir-bench lab`, `make bench`): everybody who can stand between clients and servers, side by side in one run.
//!
//! ```text
//! make bench                                                 everything, medians of 5 runs
//! make bench ARGS="--runs 1 --quick"                         a look
//! make bench ARGS="--contenders through,haproxy --loads bulk,requests"
//! ```
//!
//! Needs root, two CPUs and the commands ip, ethtool, nft, renice, taskset, unshare, ss, haproxy, and nginx's program with its stream
//! module. Nothing of the host is touched (see `weir_control::lab`), but its CPUs are busy: another load on them spoils the figures.
//!
//! In each run each contender gets a lab of its own ([`crate::stand`]) and all loads ([`load`]) one after the other, so that whatever
//! changes on the machine meanwhile meets all of them alike. What matters are ratios of one run; the figures themselves are the
//! machine's. Where clients and servers, which share one CPU, are the limit, the gateway's CPU time for each unit tells
//! contenders apart.

mod bars;
mod compare;
pub mod load;
mod table;
mod trial;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum as _};
use indicatif::{ProgressBar, ProgressStyle};

use crate::Failure;
use crate::contender::{Contender, Programs};
use crate::machine::Machine;
use crate::plot;
use crate::report::Report;
use crate::stand::{Arrangement, Packets, Stand};

use load::Load;
use trial::{Amounts, Trial};

/// Connections of [`Load::Crowd`].
const CROWD: u32 = 100_000;

/// The command line.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Who is measured, in turns; none: all.
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// Under what; none: all.
    #[arg(long, value_delimiter = ',')]
    loads: Vec<Load>,
    /// Runs of each contender.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How long each load is watched.
    #[arg(long, default_value_t = 0.7)]
    seconds: f64,
    /// Shorter loads, and fewer idle connections: for a look, not for figures.
    #[arg(long)]
    quick: bool,
    /// Connections whose memory is measured; fewer where a process may not have so many open files.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Requests per second where latency is measured; else half of what the first contender can do.
    #[arg(long)]
    rate: Option<f64>,
    /// GRO puts no packets together, neither at the ends nor in the gateway: what each packet costs by itself.
    #[arg(long)]
    single: bool,
    /// Ports look for packets every 50 us while there are any, as NICs moderate their interrupts; else each packet wakes them.
    #[arg(long)]
    moderated: bool,
    /// weir's binary; else the `weir` beside this one.
    #[arg(long)]
    weir: Option<PathBuf>,
    /// nginx's program, its stream module beside it.
    #[arg(long, default_value = "target/nginx/nginx")]
    nginx: PathBuf,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/lab.json")]
    json: PathBuf,
    /// Where the pictures go, an SVG for each measure.
    #[arg(long, default_value = "target/bench/plots")]
    plots: PathBuf,
    /// Compare with the figures of another run, which are read before.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

/// Measures, prints the table and the bars, and writes the JSON.
///
/// # Errors
/// What the machine refuses; what failed of a contender, after all that did not has been measured and told.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let before = arguments.compare.as_deref().map(compare::read).transpose()?;
    let programs = Programs::find(arguments.weir.as_deref(), &arguments.nginx)?;
    let chosen = |all: &'static [Contender], some: &[Contender]| {
        all.iter().copied().filter(|one| some.is_empty() || some.contains(one)).collect::<Vec<_>>()
    };
    let contenders = chosen(Contender::value_variants(), &arguments.contenders);
    let loads = Load::value_variants().iter().copied();
    let loads: Vec<Load> =
        loads.filter(|load| arguments.loads.is_empty() || arguments.loads.contains(load)).collect();
    let mut bench = Bench {
        programs,
        how: Arrangement {
            packets: if arguments.single { Packets::Mtu } else { Packets::Merged },
            moderated: arguments.moderated,
        },
        amounts: Amounts {
            seconds: if arguments.quick { arguments.seconds / 2.0 } else { arguments.seconds },
            idle: affordable(if arguments.quick { arguments.idle / 5 } else { arguments.idle }),
            crowd: if arguments.quick { CROWD / 5 } else { CROWD },
            rate: arguments.rate,
        },
        report: Report::default(),
        failures: Vec::new(),
        progress: progress(arguments.runs, &contenders, &loads),
    };
    for run in 1..=arguments.runs {
        for contender in &contenders {
            bench.progress.set_prefix(format!("run {run} of {}: {}", arguments.runs, contender.name()));
            bench.measure(*contender, run, &loads);
        }
    }
    bench.progress.finish_and_clear();
    finish(&bench.report, arguments)?;
    if let Some(before) = before {
        println!("{}", compare::table(&before, &bench.report.lines())?);
    }
    match bench.failures.len() {
        0 => Ok(()),
        count => {
            Err(format!("{count} failed, the figures are without them:\n  {}", bench.failures.join("\n  "))
                .into())
        }
    }
}

/// Draws what was stored by any of the benchmarks.
///
/// # Errors
/// The file, or one that cannot be written.
pub fn plot_stored(json: &Path, folder: &Path) -> Result<(), Failure> {
    let files = plot::draw_all(&compare::read(json)?, &Machine::this(), folder)?;
    files.iter().for_each(|file| println!("{}", file.display()));
    Ok(())
}

/// A proxy needs two descriptors for each connection, and some besides.
fn affordable(connections: usize) -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    files.map_or(connections, |files| connections.min(files as usize * 5 / 12))
}

fn finish(report: &Report, arguments: &Arguments) -> Result<(), Failure> {
    let machine = Machine::this();
    println!("{machine}\n{}", table::table(report)?);
    let judged = bars::judge(report);
    if !judged.is_empty() {
        println!("{}", bars::heading());
        judged.iter().for_each(|judged| println!("{judged}"));
        let met = judged.iter().filter(|judged| judged.is_met()).count();
        println!("{met} of {} bars met\n", judged.len());
    }
    report.write(&arguments.json)?;
    plot::draw_all(&report.lines(), &machine, &arguments.plots)?;
    println!("{}, {}", arguments.json.display(), arguments.plots.display());
    Ok(())
}

/// A bar over all loads of all contenders; where nobody watches it is not shown.
fn progress(runs: usize, contenders: &[Contender], loads: &[Load]) -> ProgressBar {
    let pairs = contenders.iter().flat_map(|contender| loads.iter().map(move |load| load.suits(*contender)));
    let steps = runs * pairs.filter(|suits| *suits).count();
    let style = ProgressStyle::with_template("{prefix}, {msg} [{bar:30}] {pos}/{len}, {eta} to go");
    ProgressBar::new(steps as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

struct Bench {
    programs: Programs,
    how: Arrangement,
    amounts: Amounts,
    report: Report,
    failures: Vec<String>,
    progress: ProgressBar,
}

impl Bench {
    /// All loads of one contender. One that fails is told, and left out; the next one meets a contender that was just started.
    fn measure(&mut self, contender: Contender, run: usize, loads: &[Load]) {
        let suiting = loads.iter().filter(|load| load.suits(contender));
        let (fresh, shared): (Vec<&Load>, Vec<_>) = suiting.partition(|load| load.needs_fresh());
        let mut stand = None;
        for load in shared.into_iter().chain(fresh) {
            if load.needs_fresh() {
                stand = None;
            }
            if let Err(error) = self.put(*load, contender, &mut stand) {
                stand = None;
                let failure = format!("{}, run {run}: {}: {error}", contender.name(), load.name());
                self.progress.suspend(|| eprintln!("  {failure}"));
                self.failures.push(failure);
            }
            self.progress.inc(1);
        }
    }

    fn put(&mut self, load: Load, contender: Contender, stand: &mut Option<Stand>) -> Result<(), Failure> {
        self.progress.set_message(load.name());
        let Self { programs, amounts, report, .. } = self;
        let stand = match stand {
            Some(stand) => stand,
            None => stand.insert(Stand::new(contender, programs, self.how)?),
        };
        Trial { contender, stand, programs, amounts, report }.run(load)
    }
}
