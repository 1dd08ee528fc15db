//! weir on drivers of real NICs, which QEMU emulates: `make test-nic`.
//!
//! The host's side builds an image ([`image`]) and boots it in a virtual machine per driver ([`machine`]), with two NICs of
//! that driver for the gateway and one each for client and server. What is to be done there is a [`job`]; [`guest`] is this
//! program again, inside. No hardware and no KVM is needed, and nothing of the host's network is touched.
#![forbid(unsafe_code)]

mod guest;
mod image;
mod job;
mod machine;
mod matrix;
mod pairing;
mod table;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use image::Ingredients;
use job::{Job, Task};
use machine::Machine;
use pairing::Pairing;

/// What goes wrong in a test program is told to who runs it, whatever it is.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// weir on drivers of real NICs that QEMU emulates.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boots a guest for each driver, and plays the demo in it in each mode
    Matrix(matrix::MatrixArgs),
    /// Boots a guest and runs a command in it, with NICs lan, wan, client and server
    Shell(ShellArgs),
    /// Inside the guest
    #[command(hide = true)]
    Guest,
}

/// What a guest is made of.
#[derive(Args, Clone, Debug)]
struct Parts {
    /// Where `.ci/nic` put QEMU and the kernel
    #[arg(long, value_name = "DIRECTORY")]
    cache: PathBuf,
    /// The weir to try
    #[arg(long, default_value = "target/release/weir")]
    weir: PathBuf,
    /// nginx, for the demo's scenarios with PROXY headers
    #[arg(long, default_value = "target/nginx")]
    nginx: PathBuf,
    /// Where images, logs and results go
    #[arg(long, default_value = "target/nic")]
    out: PathBuf,
}

impl Parts {
    fn ingredients(&self) -> Ingredients<'_> {
        Ingredients { cache: &self.cache, weir: &self.weir, nginx: &self.nginx, out: &self.out }
    }
}

#[derive(Debug, Args)]
struct ShellArgs {
    #[command(flatten)]
    parts: Parts,
    /// Driver of the gateway's NICs; an unknown one lists them
    #[arg(long, default_value = "igb")]
    nic: String,
    /// Files that are put into the guest's folder /share, where the command starts
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// Seconds after which the guest is ended
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// The command and its arguments; without one, what standard input says to sh
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Matrix(args) => matrix::run(&args),
        Command::Shell(args) => shell(args),
        Command::Guest => guest::main().map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("nic: {error}");
        ExitCode::from(3)
    })
}

/// Passes the command's output on as it comes, and its exit code.
fn shell(args: ShellArgs) -> Outcome<ExitCode> {
    let pairing = Pairing::named(&args.nic)?;
    let command = match args.command.is_empty() {
        true => vec!["sh".into(), "-c".into(), std::io::read_to_string(std::io::stdin())?],
        false => args.command,
    };
    let image = image::build(&args.parts.ingredients())?;
    let machine = Machine {
        cache: &args.parts.cache,
        image: &image,
        folder: &args.parts.out.join(format!("shell-{}", pairing.name)),
        limit: std::time::Duration::from_secs(args.limit),
    };
    let mut echo = |line: &str| println!("{line}");
    let job = Job { tasks: vec![Task::Command { command }] };
    let answers = machine.run(pairing, &job, &args.with, &mut echo)?;
    let code = answers.first().and_then(|answer| answer.exit).and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
