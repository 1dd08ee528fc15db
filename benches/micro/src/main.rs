//! `weir-micro`: time, instructions and allocations of single steps, as a table and as JSON.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;

use clap::Parser;
use serde::{Deserialize, Serialize};
use weir_micro::{Case, cases, count, resident, workers};

/// A case may take so many times the instructions of the baseline.
const TOLERANCE: f64 = 1.03;
/// Fewer instructions than these are no difference.
const GRAIN: f64 = 2.0;

/// What single steps of weir cost in memory.
#[derive(Debug, Parser)]
struct Args {
    /// Only cases whose name contains this.
    #[arg(default_value = "")]
    only: String,
    /// Instructions only.
    #[arg(long)]
    instructions: bool,
    /// Compare instructions with this file, and fail where they are more than 3 % above it.
    #[arg(long, value_name = "FILE", conflicts_with = "save")]
    check: Option<PathBuf>,
    /// Write instructions to this file, for a later --check.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Where the JSON goes.
    #[arg(long, value_name = "FILE", default_value = "target/bench/micro.json")]
    json: PathBuf,
    /// Do the work of one case and nothing else.
    #[arg(long, requires = "batches", hide = true)]
    case: Option<String>,
    #[arg(long, hide = true)]
    batches: Option<u32>,
    /// Establish connections with this handshake, say what memory they hold, and nothing else.
    #[arg(long, hide = true)]
    resident: Option<String>,
}

/// A line of the JSON.
#[derive(Debug, Serialize)]
struct Line {
    measure: String,
    contender: &'static str,
    median: f64,
    min: f64,
    max: f64,
    unit: &'static str,
    runs: usize,
}

impl Line {
    fn new(measure: &str, unit: &'static str, mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        Self {
            measure: measure.to_owned(),
            contender: "weir",
            median: values[values.len() / 2],
            min: values[0],
            max: values[values.len() - 1],
            unit,
            runs: values.len(),
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let (Some(name), Some(batches)) = (&args.case, args.batches) {
        let cases = cases::all();
        let Some(case) = cases.iter().find(|case| case.name == *name) else { return ExitCode::from(2) };
        let mut work = case.prepare();
        (0..batches).for_each(|_| work());
        return ExitCode::SUCCESS;
    }
    if let Some(handshake) = &args.resident {
        return resident::establish(handshake).map_or(ExitCode::from(3), |octets| {
            println!("{octets:.1}");
            ExitCode::SUCCESS
        });
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("weir-micro: {error}");
            ExitCode::from(3)
        }
    }
}

fn run(args: &Args) -> io::Result<bool> {
    let cases: Vec<Case> = cases::all().into_iter().filter(|case| case.name.contains(&args.only)).collect();
    if let Some(file) = &args.check {
        return check(&cases, file);
    }
    if let Some(file) = &args.save {
        return save(&cases, file).map(|()| true);
    }
    println!("{:36} {:>10} {:>14} {:>12}", "of one packet or lookup", "ns", "instructions", "allocations");
    let mut lines = Vec::new();
    for case in &cases {
        progress(&case.name);
        let mut shown = [String::new(), String::new(), String::new()];
        if !args.instructions {
            let time = Line::new(&case.name, "ns", count::nanoseconds(case));
            let allocations = Line::new(&case.name, "allocations", vec![count::allocations(case)]);
            shown[0] = format!("{:.1}", time.median);
            shown[2] = format!("{:.3}", allocations.median);
            lines.extend([time, allocations]);
        }
        if case.is_counted {
            let line = Line::new(&case.name, "instructions", vec![count::instructions(&case.name)?]);
            shown[1] = format!("{:.0}", line.median);
            lines.push(line);
        }
        println!("{:36} {:>10} {:>14} {:>12}", case.name, shown[0], shown[1], shown[2]);
    }
    if !args.instructions {
        lines.extend(workers(&args.only));
        lines.extend(memory(&args.only)?);
    }
    write(&args.json, &lines)?;
    Ok(true)
}

/// How much more two workers do than one.
fn workers(only: &str) -> Vec<Line> {
    let names = workers::FLOWS.map(|flows| (workers::name(flows), flows));
    let chosen = names.into_iter().filter(|(name, _)| name.contains(only));
    let measure = |(name, flows): (String, u32)| {
        progress(&name);
        let line = Line::new(&name, "x", workers::two_by_one(flows));
        println!("{name:36} {:>10.2} times what one does", line.median);
        line
    };
    chosen.map(measure).collect()
}

/// What memory a connection holds, all in.
fn memory(only: &str) -> io::Result<Vec<Line>> {
    let chosen = resident::HANDSHAKES.map(|handshake| (resident::name(handshake), handshake));
    let measure = |(name, handshake): (String, &str)| {
        progress(&name);
        let line = Line::new(&name, "octets", vec![resident::of_a_flow(handshake)?]);
        println!("{name:36} {:>10.0} octets of memory", line.median);
        Ok(line)
    };
    chosen.into_iter().filter(|(name, _)| name.contains(only)).map(measure).collect()
}

/// Says what is being measured, where somebody watches.
fn progress(name: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r{name} ...\x1b[K\r");
    }
}

fn write<T: Serialize + ?Sized>(file: &Path, what: &T) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(file, serde_json::to_string_pretty(what)? + "\n")
}

/// The instructions of all cases that are counted, of as many at once as there are processors: they do not shake.
fn counted(cases: &[Case]) -> io::Result<BTreeMap<String, f64>> {
    let names: Vec<&str> = cases.iter().filter(|case| case.is_counted).map(|case| &*case.name).collect();
    let count = |name: &&str| Ok(((*name).to_owned(), count::instructions(name)?.round()));
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        let share = |first| names.iter().skip(first).step_by(at_once).map(count).collect();
        let all: Vec<_> = (0..at_once).map(|first| scope.spawn(move || share(first))).collect();
        let mut counts = BTreeMap::new();
        for some in all {
            let some: io::Result<Vec<_>> =
                some.join().map_err(|_| io::Error::other("a count has ended early"))?;
            counts.extend(some?);
        }
        Ok(counts)
    })
}

/// What instructions are compared with. Another compiler makes others of the same source, and another processor lets libraries choose
/// other code: then there is nothing to compare.
#[derive(Debug, Serialize, Deserialize)]
struct Baseline {
    made_with: String,
    instructions: BTreeMap<String, f64>,
}

/// The compiler, valgrind and the processor, as far as they matter.
fn tools() -> String {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().ok();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        text.unwrap_or_else(|| format!("no {program}"))
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let has = |flag: &&str| flags.is_some_and(|flags| flags.split_whitespace().any(|word| word == *flag));
    let flags: Vec<&str> = ["avx2", "avx512f", "erms", "fsrm"].into_iter().filter(has).collect();
    let rustc = said("rustc", "--version");
    format!("{rustc}; {}; {} {}", said("valgrind", "--version"), std::env::consts::ARCH, flags.join(" "))
}

fn save(cases: &[Case], file: &Path) -> io::Result<()> {
    write(file, &Baseline { made_with: tools(), instructions: counted(cases)?.into_iter().collect() })
}

/// Whether no case has become dearer. Prints every one that has changed.
fn check(cases: &[Case], file: &Path) -> io::Result<bool> {
    let Baseline { made_with, instructions } = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let tools = tools();
    if made_with != tools {
        println!("{} was made with {made_with}; this is {tools}: nothing is compared", file.display());
        println!("`make baseline-micro`, on the commit before a change, makes one for these tools.");
        return Ok(true);
    }
    let counted: BTreeMap<String, f64> = counted(cases)?.into_iter().collect();
    let all = cases::all();
    let is_counted = |name: &str| all.iter().any(|case| case.is_counted && case.name == name);
    let gone: Vec<&String> = instructions.keys().filter(|name| !is_counted(name)).collect();
    let mut is_good = gone.is_empty();
    gone.iter().for_each(|name| println!("{name}: in {}, and not counted any more", file.display()));
    for (name, now) in counted {
        let Some(&before) = instructions.get(&name) else {
            println!("{name}: {now} instructions, and none in {}", file.display());
            is_good = false;
            continue;
        };
        let is_worse = now > before * TOLERANCE && now > before + GRAIN;
        is_good &= !is_worse;
        if is_worse || now < before / TOLERANCE {
            let percent = (now / before - 1.0) * 100.0;
            let word = if is_worse { "too many" } else { "fewer: update the baseline" };
            println!("{name}: {now} instructions instead of {before} ({percent:+.1} %), {word}");
        }
    }
    println!("{} cases compared with {}", instructions.len(), file.display());
    if !is_good {
        println!("Where that is worth it, `make baseline-micro` writes the file anew.");
    }
    Ok(is_good)
}
