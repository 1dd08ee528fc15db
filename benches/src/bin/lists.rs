//! Measures lists of a million entries: how long reading and compiling takes, what memory it takes at the most and at the
//! end, and how long a lookup takes.
//!
//!     lists                     all of them
//!     lists names|wildcards|mixed|v4|v6|prefixes
//!
//! Each is measured in a process of its own, so that the highest memory is its own. Lookups are timed five times, and the median
//! counts. Exits with 1 when a bar is missed.

use std::hint::black_box;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use weir_benches::entries::{ENTRIES, List, scramble};
use weir_control::lists::{self, Content, Kind};

// As in weir.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LOOKUPS: u32 = 1_000_000;
const RUNS: usize = 5;
/// How a measurement's process ends that met not every bar.
const MISSED: u8 = 2;
/// The bars: milliseconds until it is compiled, MiB at the most, nanoseconds of a lookup.
const BARS: [f64; 3] = [1000.0, 64.0, 200.0];

/// The process's memory in MiB: `VmRSS`, or `VmHWM` for the most there ever was.
fn memory(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    let kib: f64 = line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0.0);
    kib / 1024.0
}

fn write_list(list: List, path: &Path) -> std::io::Result<()> {
    std::fs::write(path, (0..ENTRIES).map(|i| list.lines(i)).collect::<String>())
}

/// Texts one behind the other: who reads them in order does not wait for memory, as who has just read a packet does not.
#[derive(Default)]
struct Row {
    text: String,
    ends: Vec<usize>,
}

impl Row {
    fn get(&self, at: usize) -> &str {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[at]]
    }
}

impl FromIterator<String> for Row {
    fn from_iter<I: IntoIterator<Item = String>>(texts: I) -> Self {
        let mut row = Self::default();
        for text in texts {
            row.text += &text;
            row.ends.push(row.text.len());
        }
        row
    }
}

/// Nanoseconds of a lookup, half of which find something.
fn time(questions: usize, ask: impl Fn(usize) -> bool) -> (f64, usize) {
    let run = || {
        let start = Instant::now();
        let found = (0..questions).filter(|at| ask(black_box(*at))).count();
        (start.elapsed().as_nanos() as f64 / questions as f64, found)
    };
    let mut runs: Vec<(f64, usize)> = (0..RUNS).map(|_| run()).collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    runs[RUNS / 2]
}

/// Whether all bars are met.
fn measure(list: List, path: &Path) -> Result<bool, Box<dyn std::error::Error>> {
    let kind = if list.is_of_prefixes() { Kind::Prefixes } else { Kind::Names };
    let before = memory("VmRSS:");
    let read = lists::load(path, kind)?;
    let (most, after) = (memory("VmHWM:") - before, memory("VmRSS:") - before);
    // Beyond the entries, so that every second one is not there.
    let wanted = |at: u32| scramble(at) % (2 * ENTRIES);
    let (lookup, found) = match &read.content {
        Content::Names(names) => {
            let hosts: Row = (0..LOOKUPS).map(|at| list.host(wanted(at))).collect();
            time(hosts.ends.len(), |at| names.contains(hosts.get(at)))
        }
        Content::Prefixes(prefixes) => {
            let addresses: Vec<IpAddr> = (0..LOOKUPS).map(|at| list.address(wanted(at))).collect();
            time(addresses.len(), |at| prefixes.contains(addresses[at]))
        }
    };
    let measured = [read.took.as_secs_f64() * 1000.0, most, lookup];
    let met = measured.iter().zip(BARS).all(|(measured, bar)| *measured < bar);
    println!(
        "{:<10} {:>8} entries  read and compiled in {:>4} ms  memory {most:>5.1} MiB at the most, {after:>5.1} after, \
         {:>5.1} of entries  lookup {lookup:>4.0} ns ({} % found)  {}",
        list.name(),
        read.content.entries(),
        read.took.as_millis(),
        read.content.memory() as f64 / f64::from(1 << 20),
        found * 100 / LOOKUPS as usize,
        if met { "bars met" } else { "BAR MISSED" },
    );
    Ok(met)
}

fn main() -> ExitCode {
    let folder = std::env::temp_dir();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let named = |name: &str| List::ALL.into_iter().find(|list| list.name() == name);
    if let [name, path] = arguments.as_slice()
        && let Some(list) = named(name).filter(|_| named(path).is_none())
    {
        return match measure(list, Path::new(path)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(MISSED),
            Err(error) => {
                eprintln!("{name}: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if let Some(name) = arguments.iter().find(|name| named(name).is_none()) {
        eprintln!("{name} is no list; there are: {}", List::ALL.map(List::name).join(", "));
        return ExitCode::FAILURE;
    }
    let mut missed = false;
    let asked = |list: &List| arguments.is_empty() || arguments.iter().any(|a| a == list.name());
    for list in List::ALL.into_iter().filter(asked) {
        let name = list.name();
        let path = folder.join(format!("weir-bench-list-{}-{name}", std::process::id()));
        let measured = write_list(list, &path)
            .and_then(|()| Command::new(std::env::current_exe()?).arg(name).arg(&path).status());
        drop(std::fs::remove_file(&path));
        match measured {
            Ok(status) if status.success() => {}
            Ok(status) if status.code() == Some(i32::from(MISSED)) => missed = true,
            other => {
                eprintln!("{name}: {other:?}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::from(u8::from(missed))
}
