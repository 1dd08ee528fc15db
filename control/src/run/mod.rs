//! `weir run`: puts the box in, keeps it, takes it out again.
//!
//! The order of a start: steering is attached and lets everything pass; the kernel's side is applied; relay and workers
//! start; only then steering begins to redirect. The end is the same backwards. When a step fails, everything before it
//! is taken back, and the command exits 3 with one sentence.

pub mod convert;
mod notify;
mod parts;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::admin::server;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::host::{Host, Lock, Paths, preflight};
use parts::Parts;

/// How often the threads are looked after.
const HEALTH: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// The system refused something; nothing is left installed.
pub fn main(config: &Config) -> Result<Exit, Failure> {
    init_log();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::refused(format!("no event loop: {error}")))?;
    LocalSet::new().block_on(&runtime, run(config))
}

async fn run(config: &Config) -> Result<Exit, Failure> {
    if let Some(missing) = preflight().into_iter().next() {
        return Err(Failure::refused(missing));
    }
    let _lock = Lock::acquire().map_err(Failure::refused)?;
    let paths = Paths::of_this_namespace().map_err(Failure::refused)?;
    let host = Host::open(paths.clone()).map_err(Failure::refused)?;
    let leftovers = host.clean().await.map_err(Failure::refused)?;
    for command in &leftovers.commands {
        tracing::info!(command, "removed what an earlier weir left");
    }
    let result = serve(config, &host, &paths).await;
    // Whatever was installed is removed, however it ended.
    let removed = host.clean().await.map_err(Failure::refused);
    let exit = result?;
    removed?;
    Ok(exit)
}

/// Starts everything, serves until a signal, stops everything.
async fn serve(config: &Config, host: &Host, paths: &Paths) -> Result<Exit, Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::refused)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::refused)?;
    let (_admin, listener) = server::bind(&config.gateway.admin)?;
    let metrics = match config.gateway.metrics {
        Some(address) => Some(server::bind_metrics(address).await?),
        None => None,
    };
    let mut parts = Parts::start(config, host, paths).await?;
    let admin = tokio::task::spawn_local(server::serve(listener, parts.state.clone()));
    let metrics = metrics.map(|l| tokio::task::spawn_local(server::serve_metrics(l, parts.state.clone())));
    notify::ready();
    tracing::info!("ready");
    let mut health = tokio::time::interval(HEALTH);
    let exit = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(Exit::Done),
            _ = interrupt.recv() => break Ok(Exit::Done),
            Some(event) = parts.events.recv() => {
                if let Err(failure) = parts.follow(host, event).await {
                    break Err(failure);
                }
            }
            _ = health.tick() => {
                if !parts.state.is_running() {
                    tracing::error!("a worker ended; the kernel forwards, and weir stops");
                    break Ok(Exit::No);
                }
            }
        }
    };
    notify::stopping();
    admin.abort();
    drop(admin.await);
    if let Some(metrics) = metrics {
        metrics.abort();
        drop(metrics.await);
    }
    parts.stop();
    exit
}

fn init_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEIR_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // A second start in one process (tests) keeps the first's.
    drop(log.try_init());
}
