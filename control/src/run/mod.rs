//! `weir run`: puts the box in, keeps it, takes it out again.
//!
//! The order of a start: what an earlier weir left is removed; the host is looked at; steering learns what is the box's
//! own and what is intercepted, is attached and lets everything pass; the kernel's side is applied; relay and workers
//! start; only then steering begins to redirect. The end is the same backwards. When a step fails, everything before it
//! is taken back, and the command exits 3 with one sentence.
//!
//! With `fail = "closed"` steering drops what is intercepted from its attachment until the workers run. What keeps the
//! box closed after a crash (pinned links and kernel flows, the nft table) is not removed by the start but taken over,
//! each in one step, so that no packet slips through. Being asked to stop opens the box, and so does `weir clean`.
//! Nothing else does: when weir ends by itself, or a start after a crash fails, intercepted traffic stays dropped. In the same way the
//! express lane goes on with what it carries until weir is stopped as asked, and the next start takes it over. A
//! failed start on a box that was not closed leaves it as it was.

mod contest;
pub mod convert;
pub mod devices;
mod lanes;
mod live;
mod memory;
mod notify;
mod pace;
mod parts;
mod ports;
pub mod reload;
mod repair;
mod road;
mod steer;

use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::LocalSet;

use crate::admin::server;
use crate::config::{Config, Fail};
use crate::exit::{Exit, Failure};
use crate::host::{self, Host, Instance, Lock, Paths, Removed, preflight};
use parts::Parts;
use reload::Reloader;

/// How often the threads are looked after.
const HEALTH: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// The system refused something; nothing is left installed, but what keeps a box closed that fails closed.
pub fn main(config: &Config) -> Result<Exit, Failure> {
    init_log();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::refused(format!("no event loop: {error}")))?;
    let exit = LocalSet::new().block_on(&runtime, run(config));
    // A lookup of a name cannot be ended: nobody waits for its thread.
    runtime.shutdown_background();
    exit
}

async fn run(config: &Config) -> Result<Exit, Failure> {
    if let Some(missing) = preflight().into_iter().next() {
        return Err(Failure::refused(missing));
    }
    let _lock = Lock::acquire().map_err(Failure::refused)?;
    let paths = Paths::of_this_namespace().map_err(Failure::refused)?;
    let host = Host::open(paths.clone()).map_err(Failure::refused)?;
    let closed = config.gateway.fail == Fail::Closed;
    let mut stays_closed = closed && host.is_closed().map_err(Failure::refused)?;
    let has_lane = convert::has_fast_road(config) && convert::express_flows(config) > 0;
    let mut keeps_lane = has_lane && host::is_pinned(&paths.pins);
    let leftovers = clean(&host, closed, has_lane).await?;
    for command in &leftovers.commands {
        tracing::info!(command, "removed what an earlier weir left");
    }
    let here = Instance::here(&config.file, &config.gateway.admin);
    let _registered = here.register(&paths.instance).map_err(Failure::refused)?;
    let result = match start(config, &host, &paths).await {
        Ok(started) => {
            stays_closed = closed;
            keeps_lane = has_lane;
            serve(&host, started).await
        }
        Err(failure) => Err(failure),
    };
    let asked = matches!(result, Ok(Exit::Done));
    // Whatever was installed is removed, however it ended.
    let removed = clean(&host, stays_closed && !asked, keeps_lane && !asked).await;
    if stays_closed && !asked {
        tracing::warn!(
            "fail = \"closed\": intercepted traffic stays dropped until weir runs again, or `weir clean`"
        );
    }
    let exit = result?;
    removed?;
    Ok(exit)
}

/// Removes what is installed, or all of it but what keeps the box closed, or what the express lane lives on with.
async fn clean(host: &Host, stays_closed: bool, keeps_lane: bool) -> Result<Removed, Failure> {
    let removed = if stays_closed {
        host.clean_but_closed().await
    } else if keeps_lane {
        host.clean_but_lane().await
    } else {
        host.clean().await
    };
    removed.map_err(Failure::refused)
}

/// A gateway that has started, and those who may ask it.
struct Started {
    parts: Parts,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    _admin: server::AdminSocket,
    listener: UnixListener,
    metrics: Option<TcpListener>,
}

/// Starts everything.
async fn start(config: &Config, host: &Host, paths: &Paths) -> Result<Started, Failure> {
    let terminate = signal(SignalKind::terminate()).map_err(Failure::refused)?;
    let interrupt = signal(SignalKind::interrupt()).map_err(Failure::refused)?;
    let hangup = signal(SignalKind::hangup()).map_err(Failure::refused)?;
    let (_admin, listener) = server::bind(&config.gateway.admin)?;
    let metrics = match config.gateway.metrics {
        Some(address) => Some(server::bind_metrics(address).await?),
        None => None,
    };
    let parts = Parts::start(config, host, paths).await?;
    Ok(Started { parts, terminate, interrupt, hangup, _admin, listener, metrics })
}

/// Serves until a signal, stops everything.
async fn serve(host: &Host, started: Started) -> Result<Exit, Failure> {
    let Started { mut parts, mut terminate, mut interrupt, mut hangup, _admin, listener, metrics } = started;
    let (reloader, mut orders) = Reloader::new(parts.state.clone(), parts.config.file.clone());
    let admin = tokio::task::spawn_local(server::serve(listener, parts.state.clone(), reloader.clone()));
    let checks = tokio::task::spawn_local(parts.watch_pools());
    let names = tokio::task::spawn_local(parts.resolve_names());
    let metrics = metrics.map(|l| tokio::task::spawn_local(server::serve_metrics(l, parts.state.clone())));
    notify::ready();
    tracing::info!("ready");
    let mut health = tokio::time::interval(HEALTH);
    let board = parts.state.health.clone();
    let exit = loop {
        let look = parts.next_look();
        tokio::select! {
            _ = terminate.recv() => break Ok(Exit::Done),
            _ = interrupt.recv() => break Ok(Exit::Done),
            Some(event) = parts.events.recv() => {
                if let Err(failure) = parts.follow(host, event) {
                    break Err(failure);
                }
            }
            _ = hangup.recv() => drop(tokio::task::spawn_local(reloader.clone().on_signal())),
            Some(order) = orders.recv() => parts.carry_out(host, order).await,
            () = board.changed() => parts.publish_pools(),
            relisted = parts.lists.relisted() => parts.publish_lists(relisted),
            () = tokio::time::sleep_until(look.into()) => parts.look_after(host).await,
            _ = health.tick() => {
                parts.settle().await;
                parts.tell_stalls();
                parts.look_at_lanes();
                parts.keep();
                if !parts.state.is_running() {
                    tracing::error!("a worker ended; weir stops, and the kernel's road is as `fail` says");
                    break Ok(Exit::No);
                }
            }
        }
    };
    notify::stopping();
    checks.abort();
    names.abort();
    drop(names.await);
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
