//! `weir demo`: a gateway between two namespaces, real traffic on every road, a report.
//!
//! The lab is [`crate::lab`]; the servers are [`origin`], the clients [`client`], what they do together is
//! [`scenario`], and the weir between them is a child process of the same binary ([`gateway`]). Nothing of the
//! host is touched, and all of it is gone when the process is, however it ends.

pub mod client;
mod config;
pub mod content;
pub mod gateway;
pub mod origin;
pub mod report;
pub mod scenario;
pub mod stage;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use crate::config::Mode;
use crate::lab::{Devices, Lab, LabError, LabOptions, differences, host_state};
use gateway::Gateway;
use origin::OriginError;
use report::{Report, Row, Table};
use scenario::{Case, EarlyConnection, NGINX_NAME, SCENARIOS, Variant, kill, play_kill};
use stage::{Differs, Family, Road, Seen, Stage};

/// What can be chosen about a demo.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The binary to demonstrate: usually the running one.
    pub weir: PathBuf,
    /// Another configuration than the built-in one; its ports must be `lan0` and `wan0`.
    pub config: Option<PathBuf>,
    /// Workers, and queues of each device. With `config`, the queues alone: the file says the workers.
    pub workers: u32,
    /// Devices that there are, in place of the lab's own.
    pub devices: Option<Devices>,
    /// `mode` of both ports, in place of what the configuration says.
    pub mode: Option<Mode>,
    /// MTU of all devices.
    pub mtu: Option<u32>,
    /// Bytes of the large body that scenarios ask for.
    pub body_bytes: u64,
    /// After the scenarios, run weir again in the lab and wait to be interrupted.
    pub keep: bool,
    /// Pass on what weir writes.
    pub verbose: bool,
    /// Print JSON at the end instead of a table as it goes.
    pub json: bool,
}

/// Why the demo could not be played to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// No lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// No servers.
    #[error("demo: {0}")]
    Origin(#[from] OriginError),
    /// The configuration does not fit the demo.
    #[error("demo: {0}")]
    Config(String),
    /// weir did not do what it must.
    #[error("demo: {what}; the last that weir wrote:{log}")]
    Gateway {
        /// What was wrong.
        what: String,
        /// weir's last lines, indented.
        log: String,
    },
    /// The lab does not work even without weir.
    #[error("demo: a connection through the lab failed before weir started: {0}")]
    Forwarding(String),
    /// The process cannot print.
    #[error("demo: cannot write the report: {0}")]
    Print(std::io::Error),
}

/// Plays the demo and prints its report, as the options say.
///
/// Returns the exit code: 0 when every scenario went as expected, 1 when any differed.
///
/// # Errors
/// [`DemoError`] when it could not be played: exit code 3.
pub fn main(options: &DemoOptions) -> Result<u8, DemoError> {
    let mut printed = Ok(());
    if !options.json {
        writeln!(std::io::stdout(), "{}", report::heading()).map_err(DemoError::Print)?;
    }
    let mut table = Table::default();
    let report = run(options, &mut |progress| {
        if printed.is_ok() {
            printed = print(&progress, options.json, &mut table);
        }
    })?;
    printed.map_err(DemoError::Print)?;
    Ok(u8::from(!report.is_ok()))
}

/// What [`run`] tells while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// One more scenario was played.
    Row(&'a Row),
    /// All were; the lab may live on.
    Report(&'a Report),
}

fn print(progress: &Progress<'_>, json: bool, table: &mut Table) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    match (progress, json) {
        (Progress::Row(row), false) => write!(out, "{}", table.push(row)),
        (Progress::Row(_), true) => Ok(()),
        (Progress::Report(report), false) => {
            let log = report.gateway_log.iter().map(|line| format!("weir: {line}\n")).collect::<String>();
            writeln!(out, "{}\n{log}{}", table.finish(), report.summary())
        }
        (Progress::Report(report), true) => writeln!(out, "{}", serde_json::to_string_pretty(report)?),
    }
}

/// Plays the demo; `tell` gets each row as it is done, and the report before the lab goes.
///
/// # Errors
/// [`DemoError`] when it cannot go on; rows that merely differ are in the report.
pub fn run(options: &DemoOptions, tell: &mut dyn FnMut(Progress<'_>)) -> Result<Report, DemoError> {
    // The flow that is older than weir needs a gateway that forwards before weir does.
    let lab_options = LabOptions { queues: options.workers, forwarding: Some(true), mtu: options.mtu };
    let lab = match &options.devices {
        None => Lab::new(&lab_options)?,
        Some(devices) => Lab::over(&lab_options, devices)?,
    };
    let config = config::prepare(&lab, options)?;
    let mut stage = Stage::new(&lab)?;
    stage.body_bytes = options.body_bytes;
    let state_before = host_state(&lab.gateway)?;
    stage.start_nginx(NGINX_NAME);
    let early = cases(Variant::DIRECT)
        .map(|case| EarlyConnection::open(&stage, case).map_err(DemoError::Forwarding))
        .collect::<Result<Vec<_>, _>>()?;

    let mut gateway = Gateway::new(&lab, &options.weir, &config, options.verbose);
    gateway.start()?;
    stage.gateway = Some(gateway);

    let mut rows = Rows { report: Report::default(), tell };
    rows.play_early(&stage, early);
    rows.play_table(&stage);
    rows.report.status = stage.gateway.as_ref().and_then(|gateway| gateway.status().ok());
    rows.play_kill(&mut stage);
    rows.play_clean(&stage, &state_before)?;
    if let (false, Some(gateway)) = (rows.report.is_ok(), &stage.gateway) {
        rows.report.gateway_log = gateway.log();
    }
    (rows.tell)(Progress::Report(&rows.report));
    let report = rows.report;
    if options.keep {
        keep(&lab, &mut stage)?;
    }
    Ok(report)
}

/// The report as it grows.
struct Rows<'a> {
    report: Report,
    tell: &'a mut dyn FnMut(Progress<'_>),
}

/// What a row says before its scenario is played.
struct Asked {
    scenario: &'static str,
    /// Family, and variant where there are such.
    case: (&'static str, &'static str),
    asked: &'static str,
    expected: &'static str,
    road: &'static str,
}

impl Rows<'_> {
    fn play_early(&mut self, stage: &Stage<'_>, early: Vec<EarlyConnection>) {
        for connection in early {
            let asked = Asked {
                scenario: "opened-before",
                case: connection.case().names(),
                asked: EarlyConnection::ASKED,
                expected: EarlyConnection::EXPECTED,
                road: EarlyConnection::ROAD,
            };
            let started = Instant::now();
            let result = connection.play(stage);
            self.push(asked, started, result);
        }
    }

    fn play_table(&mut self, stage: &Stage<'_>) {
        for scenario in SCENARIOS {
            for case in cases(scenario.variants) {
                let asked = Asked {
                    scenario: scenario.name,
                    case: case.names(),
                    asked: scenario.asked,
                    expected: scenario.expected,
                    road: scenario.road,
                };
                let started = Instant::now();
                let result = (scenario.play)(stage, case);
                self.push(asked, started, result);
            }
        }
    }

    fn play_kill(&mut self, stage: &mut Stage<'_>) {
        let started = Instant::now();
        for (family, result) in play_kill(stage) {
            let asked = Asked {
                scenario: "killed",
                case: Case { family, variant: Variant::Through }.names(),
                asked: kill::ASKED,
                expected: kill::EXPECTED,
                road: kill::ROAD,
            };
            self.push(asked, started, result);
        }
    }

    /// After the kill: what it left must go with `weir clean`.
    fn play_clean(&mut self, stage: &Stage<'_>, before: &str) -> Result<(), DemoError> {
        let Some(gateway) = &stage.gateway else { return Ok(()) };
        let asked = Asked {
            scenario: "clean",
            case: ("both", ""),
            asked: "weir clean after the kill",
            expected: "ip rules, all routing tables, nft ruleset, sysctls and links as before",
            road: "",
        };
        let started = Instant::now();
        let finished = gateway.clean()?;
        stage.lab.wait_for_gateway()?;
        let difference = differences(before, &host_state(&stage.lab.gateway)?);
        let result = match (finished.status.success(), difference.is_empty()) {
            (true, true) => Ok(Seen { what: "all as before".into(), road: Road::default() }),
            (true, false) => Err(format!("left behind (+) or lost (-):\n{difference}")),
            (false, _) => Err(format!("weir clean: {}: {}", finished.status, finished.errors.trim())),
        };
        self.push(asked, started, result);
        Ok(())
    }

    /// Makes a row of what was seen; without a gateway no road is expected.
    fn push(&mut self, asked: Asked, started: Instant, result: Result<Seen, Differs>) {
        let elapsed = started.elapsed().as_millis();
        let (mut happened, road, mut ok) = match result {
            Ok(seen) => (seen.what, seen.road, true),
            Err(differs) => (differs, Road::default(), false),
        };
        if ok && road.name != asked.road {
            ok = false;
            happened = format!("{happened}, but not on the {} road", asked.road);
        }
        let row = Row {
            scenario: asked.scenario,
            family: asked.case.0,
            variant: asked.case.1,
            asked: asked.asked.into(),
            expected: asked.expected.into(),
            happened,
            road: road.to_string(),
            why: road.why,
            ok,
            milliseconds: u64::try_from(elapsed).unwrap_or(u64::MAX),
        };
        (self.tell)(Progress::Row(&row));
        self.report.rows.push(row);
    }
}

/// All variants, each on both families.
fn cases(variants: &[Variant]) -> impl Iterator<Item = Case> {
    variants.iter().flat_map(|&variant| Family::BOTH.map(|family| Case { family, variant }))
}

/// Runs weir again, tells how to get into the lab, and waits for the interruption that ends the process.
fn keep(lab: &Lab, stage: &mut Stage<'_>) -> Result<(), DemoError> {
    use std::os::fd::AsRawFd as _;
    if let Some(gateway) = &mut stage.gateway {
        gateway.start()?;
    }
    eprintln!("\nThe lab is kept and weir runs in it; end it with ctrl-c. To look around:");
    for namespace in [&lab.client, &lab.gateway, &lab.server] {
        let (process, fd) = (std::process::id(), namespace.net_fd().as_raw_fd());
        let mounts =
            namespace.mounts_fd().map(|fd| format!(" --mount=/proc/{process}/fd/{}", fd.as_raw_fd()));
        let mounts = mounts.unwrap_or_default();
        eprintln!("  {:8} nsenter --net=/proc/{process}/fd/{fd}{mounts} bash", namespace.name());
    }
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests;
