//! The relay against HAProxy and nginx: connections, requests, octets, their CPU time, memory and latency.
//!
//! ```text
//! make bench-relay                                          everything, 3 runs
//! make bench-relay ARGS="--runs 1 --seconds 2 --contenders weir,haproxy"
//! make bench-relay ARGS="--measures requests,bulk"
//! ```
//!
//! Needs root, two CPUs and the commands ip, ethtool, nft, renice, taskset, unshare, ss, haproxy, and nginx's program with its stream module.
//! Nothing of the host is touched (see `weir_control::lab`), but its CPUs are busy: another load on them spoils the figures.
//!
//! **Arrangement.** `client | gateway | server` as three namespaces, joined by veth. The gateway has CPU 1 for itself: its ports'
//! NAPI are kernel threads (threaded NAPI) bound to it, and so is the contender's process, which has one worker. Clients and
//! servers, with one thread each, have CPU 0. IPv4 and IPv6 in turn.
//!
//! **Contenders.** weir with `handshake = "relay"` looks for names; HAProxy in tcp mode with `option splice-auto` looks at nothing; nginx's
//! stream module with ssl_preread looks for a TLS name. The client's address is kept by all. nginx has no transparent listener: a NAT
//! rule brings it the connections. The kernel's own forwarding, with nobody in between, shows what clients, servers and links can do.
//!
//! **CPU time of the gateway** is that of its NAPI threads, of the contender's threads, and of ksoftirqd on its CPU.
#![forbid(unsafe_code)]

mod client;
mod contender;
mod measure;
mod origin;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use weir_benches::Failure;
use weir_benches::report::{Report, number};

use contender::Contender;
use measure::Bench;

#[derive(Debug, Parser)]
#[command(about = "The relay against HAProxy and nginx")]
struct Arguments {
    /// Who is measured, in turns.
    #[arg(long, value_delimiter = ',', default_value = "weir,haproxy,nginx")]
    contenders: Vec<Contender>,
    /// Runs of each contender.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// How long each measure takes.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Connections whose memory is measured.
    #[arg(long, default_value_t = 8000)]
    idle: usize,
    /// Only measures whose name has one of these in it.
    #[arg(long, value_delimiter = ',')]
    measures: Vec<String>,
    /// The binary; else the `weir` beside this one.
    #[arg(long)]
    weir: Option<PathBuf>,
    /// nginx's program, its stream module beside it.
    #[arg(long, default_value = "target/nginx/nginx")]
    nginx: PathBuf,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/relay.json")]
    json: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let weir = match &arguments.weir {
        Some(path) => std::path::absolute(path)?,
        None => std::env::current_exe()?.with_file_name("weir"),
    };
    let bench = Bench {
        weir,
        nginx: std::path::absolute(&arguments.nginx)?,
        seconds: arguments.seconds,
        idle: arguments.idle,
        measures: arguments.measures.clone(),
    };
    let mut report = Report::default();
    for run in 1..=arguments.runs {
        let mut slowest = f64::INFINITY;
        for contender in arguments.contenders.iter().copied().chain([Contender::Forwarding]) {
            eprintln!("run {run} of {}: {}", arguments.runs, contender.name());
            let rate = bench
                .measure(contender, &mut report)
                .map_err(|error| format!("{}, run {run}: {error}", contender.name()))?;
            // Of no measure it is not a number, and min() passes it by.
            slowest = slowest.min(rate);
        }
        if !bench.wants(measure::TAIL) {
            continue;
        }
        for contender in arguments.contenders.iter().copied().chain([Contender::Forwarding]) {
            eprintln!("run {run} of {}: {}, latency", arguments.runs, contender.name());
            bench.measure_latency(contender, slowest / 2.0, &mut report)?;
        }
    }
    println!("{report}");
    print_ratios(&report, &arguments.contenders);
    report.write(&arguments.json)?;
    println!("{}", arguments.json.display());
    Ok(())
}

/// weir's medians over those of the better of the others; and what that one would be to the kernel's forwarding, which does less than
/// any relay: no relay passes it here.
fn print_ratios(report: &Report, contenders: &[Contender]) {
    let title = "weir against the better of the others";
    println!("\n{title:42} | {:>8} | {:8} | the better against forwarding", "ratio", "bar");
    for (measure, more_is_better, bar) in measure::BARS {
        let Some(weir) = report.median(Contender::Weir.name(), measure) else { continue };
        let others = contenders.iter().filter(|contender| **contender != Contender::Weir);
        let others = others.filter_map(|contender| report.median(contender.name(), measure));
        let better =
            if more_is_better { others.fold(0.0, f64::max) } else { others.fold(f64::INFINITY, f64::min) };
        let forwarding = report.median(Contender::Forwarding.name(), measure);
        let limit = forwarding.map_or(String::new(), |forwarding| number(better / forwarding));
        println!("{measure:42} | {:>8} | {bar:8} | {limit:>8}", number(weir / better));
    }
}
