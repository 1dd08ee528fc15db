//! The command line (DESIGN section 10).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use weir_core::policy::Protocol;
use weir_sys::keeper;

use crate::admin::{self, Request, table};
use crate::config::{self, Config};
use crate::demo;
use crate::doctor;
use crate::exit::{Exit, Failure};
use crate::explain;
use crate::host::{self, Closed, Host, Instance, Paths, sub_interface};
use crate::lab::Devices;
use crate::replay;
use crate::run::{self, convert};
use crate::shadow;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "weir",
    version,
    about = "A gateway that intercepts TCP connections without either end knowing, and decides by rules which may pass",
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A gateway between two namespaces, real traffic on every road, a report
    Demo(DemoArgs),
    /// Run in the foreground
    Run(RunArgs),
    /// Validate a configuration; exit 1 and the line on any error
    Check(CheckArgs),
    /// The kernel changes as ip and nft commands, and what differs now: a script for sh
    Plan(PlanArgs),
    /// Remove everything weir ever installed
    Clean(JsonArgs),
    /// Probe the host: what is in weir's way here, why it matters, and the command that mends it
    Doctor(DoctorArgs),
    /// Run a capture through the pipeline: per connection the name, ALPN, verdict, rule and road
    Replay(ReplayArgs),
    /// The way of one connection through the box, layer by layer, and why it takes it
    Explain(ExplainArgs),
    /// How the running gateway is
    Status(AdminArgs),
    /// The flows of the running gateway
    Flows(AdminArgs),
    /// Put the configuration file in force again, changed, without losing a packet
    Reload(ReloadArgs),
    /// Take nothing new, let what runs finish, and end; or give a server of a pool no new connections
    Drain(DrainArgs),
}

#[derive(Debug, Args)]
struct FileArgs {
    /// Configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Take the place of the weir that runs, without refusing or resetting any new connection
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, Args)]
struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct PlanArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Print iptables and ip6tables commands instead of nft's
    #[arg(long)]
    iptables: bool,
    #[command(flatten)]
    output: JsonArgs,
}

#[derive(Debug, Args)]
struct DoctorArgs {
    #[command(flatten)]
    file: FileArgs,
    /// List what is well, too
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    output: JsonArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false, id = "where")]
struct Where {
    /// Configuration file of the running gateway
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Admin socket of the running gateway
    #[arg(long, value_name = "SOCKET")]
    admin: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct AdminArgs {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    output: JsonArgs,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Run the rules over the live connections of a running gateway, and show what would change
    #[arg(long, value_name = "SOCKET | running")]
    against: Option<PathBuf>,
    #[command(flatten)]
    output: JsonArgs,
}

#[derive(Debug, Args)]
struct ReloadArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Judge live connections by it, too, and end those that it refuses
    #[arg(long)]
    reevaluate: bool,
}

#[derive(Debug, Args)]
struct DrainArgs {
    /// Name of the pool, where one of its servers is meant and not the box
    #[arg(requires = "server", conflicts_with = "deadline")]
    pool: Option<String>,
    /// Address and port of the server, as in the configuration
    server: Option<SocketAddr>,
    /// Give it connections again
    #[arg(long, requires = "pool")]
    undo: bool,
    /// How long what runs may take to finish; then it is cut (30s)
    #[arg(long, value_name = "TIME", value_parser = time)]
    deadline: Option<Duration>,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    #[command(flatten)]
    file: FileArgs,
    /// pcap or pcapng
    capture: PathBuf,
    #[command(flatten)]
    output: JsonArgs,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    #[command(flatten)]
    at: Where,
    /// Address and port of the client
    #[arg(long, value_name = "ADDRESS:PORT")]
    from: SocketAddr,
    /// Address and port that it connects to
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: SocketAddr,
    /// Name that the client asks for
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// ALPN protocol that the client offers; may be given more than once
    #[arg(long, value_name = "PROTOCOL")]
    alpn: Vec<String>,
    /// The client offers Encrypted ClientHello
    #[arg(long)]
    ech: bool,
    /// What the client says is a second hello, after a HelloRetryRequest, that differs from the first
    #[arg(long)]
    hello_retry: bool,
    /// What the client speaks: tls, http or other
    #[arg(long, value_parser = protocol)]
    protocol: Option<Protocol>,
    /// Port (or its device) that the client is behind, where it is not that of the route to the client
    #[arg(long = "in", value_name = "PORT")]
    ingress: Option<String>,
    /// Answer this question alone
    #[arg(long)]
    why: Option<explain::table::Why>,
    #[command(flatten)]
    output: JsonArgs,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Workers, and queues of each device
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    workers: u32,
    /// Another configuration; its devices must be lan0 and wan0
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    devices: DeviceArgs,
    /// How both ports are driven: auto, zero-copy, copy or generic
    #[arg(long, conflicts_with = "config", value_parser = mode)]
    mode: Option<config::Mode>,
    /// MTU of all devices
    #[arg(long, value_parser = clap::value_parser!(u32).range(1280..=65535))]
    mtu: Option<u32>,
    /// MiB of the large body, less for slow machines
    #[arg(long, value_name = "MIB", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1024))]
    body: u64,
    /// Keep the lab after the scenarios, with weir running, until interrupted
    #[arg(long)]
    keep: bool,
    /// Show what weir writes
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    output: JsonArgs,
}

/// NICs in the places of the demo's own devices: they are in its namespaces while it runs, and lose their addresses.
#[derive(Debug, Args)]
struct DeviceArgs {
    /// NIC that the gateway has towards the clients; name all four
    #[arg(long, value_name = "DEVICE", requires_all = ["wan", "client", "server"])]
    lan: Option<String>,
    /// NIC that the gateway has towards the servers
    #[arg(long, value_name = "DEVICE", requires = "lan")]
    wan: Option<String>,
    /// NIC of the clients, joined to that of --lan
    #[arg(long, value_name = "DEVICE", requires = "lan")]
    client: Option<String>,
    /// NIC of the servers, joined to that of --wan
    #[arg(long, value_name = "DEVICE", requires = "lan")]
    server: Option<String>,
}

impl DeviceArgs {
    fn all(&self) -> Option<Devices> {
        let DeviceArgs { lan, wan, client, server } = self;
        Some(Devices {
            lan: lan.clone()?,
            wan: wan.clone()?,
            client: client.clone()?,
            server: server.clone()?,
        })
    }
}

/// How long what runs may take to finish when the box drains.
const DEADLINE: Duration = Duration::from_secs(30);

/// Parses the command line and carries it out. Usage errors exit 2.
pub fn main() -> ExitCode {
    // Not for people: `weir run` starts it, and nothing but what it needs is done.
    if std::env::args().nth(1).as_deref() == Some(keeper::COMMAND) {
        let kept = keeper::serve(std::env::args().skip(2));
        return kept.map_or(Exit::Refused, |()| Exit::Done).into();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            drop(error.print());
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            return exit.into();
        }
    };
    let result = match cli.command {
        Command::Demo(args) => return demo(&args),
        Command::Run(args) => load(&args.file.config).and_then(|config| run::main(&config, args.replace)),
        Command::Check(args) => check(&args),
        Command::Plan(args) => plan(&args),
        Command::Clean(args) => clean(args.json),
        Command::Doctor(args) => doctor(&args),
        Command::Replay(args) => replay(&args),
        Command::Explain(args) => explain(args),
        Command::Status(args) => ask(&args, Request::Status, table::status),
        Command::Flows(args) => ask(&args, Request::Flows, table::flows),
        Command::Reload(args) => reload(&args),
        Command::Drain(DrainArgs { pool: Some(pool), server: Some(server), undo, admin, .. }) => {
            ask(&admin, Request::Drain { pool, server, undo }, table::pool)
        }
        Command::Drain(DrainArgs { deadline, admin, .. }) => {
            let deadline = deadline.unwrap_or(DEADLINE).as_millis();
            let deadline_ms = u64::try_from(deadline).unwrap_or(u64::MAX);
            ask(&admin, Request::Leave { deadline_ms }, table::drained)
        }
    };
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("weir: {failure}");
            failure.exit.into()
        }
    }
}

/// Reads a configuration; its warnings go to standard error.
fn load(path: &Path) -> Result<Config, Failure> {
    match config::load(path) {
        Ok((config, report)) => {
            tell(&report);
            Ok(config)
        }
        Err(report) => Err(invalid(report)),
    }
}

/// As [`load`]; lists that cannot be read are missing in it, and told by who gets it.
fn load_leniently(path: &Path) -> Result<Config, Failure> {
    let (config, report) = config::load_leniently(path).map_err(invalid)?;
    // Rules that lack their list look idle.
    if config.missing.is_empty() {
        tell(&report);
    }
    Ok(config)
}

fn tell(report: &config::Report) {
    for finding in &report.findings {
        eprintln!("{finding}");
    }
    for brief in report.lists.iter().filter_map(config::ListReport::brief) {
        eprintln!("{brief}");
    }
}

fn invalid(report: config::Report) -> Failure {
    Failure::no(report.to_string().trim_end())
}

fn check(args: &CheckArgs) -> Result<Exit, Failure> {
    let file = &args.file.config;
    let (config, mut report) = match config::load(file) {
        Ok((config, report)) => (Some(config), report),
        Err(report) => (None, report),
    };
    if let Some(config) = &config {
        report.add(run::devices::findings(config));
    }
    let (Some(config), Some(against)) = (&config, &args.against) else {
        print(args.output.json, &report.json(), || format!("{report}\n"));
        return Ok(if report.is_ok() { Exit::Done } else { Exit::No });
    };
    let socket = if against == Path::new("running") { &config.gateway.admin } else { against };
    if !report.is_ok() {
        print(args.output.json, &report.json(), || format!("{report}\n"));
        return Ok(Exit::No);
    }
    let flows = admin::client::ask(socket, Request::Flows)?;
    let mut shadow = shadow::compare(&config.compile(1), &flows)?;
    shadow.notes = shadow::kept(config, &admin::client::ask(socket, Request::Status)?);
    let mut json = report.json();
    json["against"] = serde_json::to_value(&shadow).map_err(Failure::refused)?;
    print(args.output.json, &json, || format!("{report}\n{}", shadow::table(&shadow)));
    Ok(Exit::Done)
}

fn plan(args: &PlanArgs) -> Result<Exit, Failure> {
    let config = load(&args.file.config)?;
    let paths = Paths::of_this_namespace().map_err(Failure::refused)?;
    let links =
        host::wait(async { Host::open(paths.clone())?.all_links().await }).map_err(Failure::refused)?;
    let vlans = sub_interface::of_ports(&convert::ports(&config), &links);
    let spec = convert::host_spec(&config, &vlans).on(&links);
    let (json, text, done) = if args.iptables {
        let plan = host::wait(async { Host::open(paths)?.plan_iptables(&spec).await });
        let plan = plan.map_err(Failure::refused)?;
        (serde_json::to_value(&plan), plan.to_string(), plan.is_done())
    } else {
        let plan = host::wait(async { Host::open(paths)?.plan(&spec).await }).map_err(Failure::refused)?;
        (serde_json::to_value(&plan), plan.to_string(), plan.is_done())
    };
    print(args.output.json, &json.map_err(Failure::refused)?, || text);
    Ok(if done { Exit::Done } else { Exit::No })
}

fn clean(json: bool) -> Result<Exit, Failure> {
    // A running weir would put back what is removed under it.
    let _lock = host::Lock::acquire().map_err(Failure::refused)?;
    let paths = Paths::of_this_namespace().map_err(Failure::refused)?;
    let removed = host::wait(async { Host::open(paths)?.clean().await }).map_err(Failure::refused)?;
    print(json, &serde_json::json!({ "removed": removed.commands }), || match removed.commands.as_slice() {
        [] => "nothing of weir's is left on this host\n".to_owned(),
        commands => commands.iter().map(|command| format!("{command}\n")).collect(),
    });
    Ok(Exit::Done)
}

fn doctor(args: &DoctorArgs) -> Result<Exit, Failure> {
    let report = doctor::examine(&load(&args.file.config)?)?;
    print(args.output.json, &report.json(), || report.table(args.verbose));
    Ok(if report.is_healthy() { Exit::Done } else { Exit::No })
}

fn replay(args: &ReplayArgs) -> Result<Exit, Failure> {
    let policy = std::sync::Arc::new(load(&args.file.config)?.compile(1));
    let replay = replay::replay(&policy, &args.capture).map_err(Failure::no)?;
    let json = serde_json::to_value(&replay).map_err(Failure::refused)?;
    print(args.output.json, &json, || replay::table(&replay));
    Ok(if replay.error.is_none() { Exit::Done } else { Exit::No })
}

fn time(text: &str) -> Result<Duration, String> {
    config::time(text).map(|time| Duration::from_nanos(time.0))
}

fn protocol(name: &str) -> Result<Protocol, String> {
    let all = [Protocol::Tls, Protocol::Http, Protocol::Other];
    let found = all.into_iter().find(|protocol| protocol.name() == name);
    found.ok_or_else(|| "must be tls, http or other".to_owned())
}

fn mode(name: &str) -> Result<config::Mode, String> {
    let all = [config::Mode::Auto, config::Mode::ZeroCopy, config::Mode::Copy, config::Mode::Generic];
    let found = all.into_iter().find(|mode| mode.name() == name);
    found.ok_or_else(|| "must be auto, zero-copy, copy or generic".to_owned())
}

/// Exits 0 when it is answered, whatever the answer is: what is asked for is the way, not whether it is good.
fn explain(args: ExplainArgs) -> Result<Exit, Failure> {
    let config = args.at.config.as_deref().map(load_leniently).transpose()?;
    let admin = args.at.admin.or_else(|| config.as_ref().map(|config| config.gateway.admin.clone()));
    let Some(admin) = admin else {
        return Err(Failure { exit: Exit::Usage, message: "name -c FILE or --admin SOCKET".into() });
    };
    let ExplainArgs { from, to, ingress, host, alpn, ech, hello_retry, protocol, why, output, .. } = args;
    if hello_retry && protocol.is_some_and(|protocol| protocol != Protocol::Tls) {
        return Err(Failure {
            exit: Exit::Usage,
            message: "--hello-retry: only TLS has a second hello".into(),
        });
    }
    let question = explain::Question { from, to, ingress, host, alpn, ech, hello_retry, protocol };
    let explanation = explain::explain(question, explain::Place { config, admin })?;
    let json = serde_json::to_value(&explanation).map_err(Failure::refused)?;
    print(output.json, &json, || match why {
        Some(why) => explain::table::why(&explanation, why),
        None => explain::table::all(&explanation),
    });
    Ok(Exit::Done)
}

/// The admin socket of the running gateway.
fn socket(at: &Where) -> Result<PathBuf, Failure> {
    match (&at.admin, &at.config) {
        (Some(socket), _) => Ok(socket.clone()),
        (None, Some(file)) => Ok(config::load_without_lists(file).map_err(invalid)?.gateway.admin),
        (None, None) => Err(Failure { exit: Exit::Usage, message: "name -c FILE or --admin SOCKET".into() }),
    }
}

fn ask(args: &AdminArgs, request: Request, table: fn(&serde_json::Value) -> String) -> Result<Exit, Failure> {
    let answer = admin::client::ask(&socket(&args.at)?, request).map_err(with_fate)?;
    print(args.output.json, &answer, || table(&answer));
    let healthy = answer.get("healthy").is_none_or(|healthy| healthy == true);
    Ok(if healthy { Exit::Done } else { Exit::No })
}

/// Nobody has answered: says what becomes of the traffic where it is not forwarded.
fn with_fate(mut failure: Failure) -> Failure {
    let running = Paths::of_this_namespace().ok().and_then(|paths| Instance::read(&paths.instance));
    let lives = running.and_then(|of| i32::try_from(of.pid).ok()).is_some_and(host::lock::is_alive);
    let closed = if lives { Closed::No } else { Closed::by_table() };
    failure.message += match closed {
        Closed::Yes => {
            " What is to be intercepted is dropped (fail = \"closed\"); `weir clean` opens the box"
        }
        Closed::Unknown => {
            " Whether an earlier weir has left the box closed cannot be seen here: ask as root"
        }
        Closed::No => "",
    };
    failure
}

fn reload(args: &ReloadArgs) -> Result<Exit, Failure> {
    let ReloadArgs { admin: AdminArgs { at, output }, reevaluate } = args;
    let file = at.config.as_ref().map(|file| std::fs::canonicalize(file).unwrap_or_else(|_| file.clone()));
    let request = Request::Reload { file, reevaluate: *reevaluate };
    let answer = admin::client::ask(&socket(at)?, request)?;
    print(output.json, &answer, || table::reload(&answer));
    Ok(if answer["ok"] == true { Exit::Done } else { Exit::No })
}

fn demo(args: &DemoArgs) -> ExitCode {
    let weir = match std::env::current_exe() {
        Ok(weir) => weir,
        Err(error) => {
            eprintln!("weir: cannot find its own binary: {error}");
            return Exit::Refused.into();
        }
    };
    let options = demo::DemoOptions {
        weir,
        config: args.config.clone(),
        workers: args.workers,
        devices: args.devices.all(),
        mode: args.mode,
        mtu: args.mtu,
        body_bytes: args.body << 20,
        keep: args.keep,
        verbose: args.verbose,
        json: args.output.json,
    };
    match demo::main(&options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("weir: {error}");
            Exit::Refused.into()
        }
    }
}

/// Prints JSON for programs, a table for people. A closed pipe is not an error.
fn print(json: bool, value: &serde_json::Value, text: impl FnOnce() -> String) {
    use std::io::Write as _;
    let text = if json { format!("{value:#}\n") } else { text() };
    drop(std::io::stdout().write_all(text.as_bytes()));
}
