//! `weir-bench`: measures weir against others in a lab of namespaces (`lab`), and any box between two ports (`nic`).
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weir_benches::contender::bypass;
use weir_benches::{lab, nic};

#[derive(Debug, Parser)]
#[command(about = "Benchmarks of weir")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// weir, the kernel's forwarding and proxies side by side, between namespaces of this machine.
    Lab(lab::Arguments),
    /// A traffic generator and receiver on AF_XDP, for any box between two ports of this machine.
    Nic(nic::Arguments),
    /// Draws figures that were stored.
    Plot {
        /// The figures, as a benchmark has written them.
        #[arg(default_value = "target/bench/lab.json")]
        json: PathBuf,
        /// Where the pictures go, an SVG for each measure.
        #[arg(default_value = "target/bench/plots")]
        folder: PathBuf,
    },
    /// A contender of the lab: the AF_XDP driver alone, in the gateway's namespace.
    #[command(hide = true)]
    Bypass,
}

fn main() -> ExitCode {
    let result = match &Arguments::parse().command {
        Command::Lab(arguments) => lab::run(arguments),
        Command::Nic(arguments) => nic::run(arguments),
        Command::Plot { json, folder } => lab::plot_stored(json, folder),
        Command::Bypass => bypass::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
