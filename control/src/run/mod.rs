//! `weir run`: puts the box in, keeps it, takes it out again.
//!
//! The order of a start: what an earlier weir left is removed; the host is looked at; steering learns what is the box's
//! own and what is intercepted, is attached and lets everything pass; the relay listens; the kernel's side is applied; workers
//! start; only then steering begins to redirect. The end is the same backwards. When a step fails, everything before it
//! is taken back, and the command exits 3 with one sentence.
//!
//! With `fail = "closed"` a start begins with an nft table that drops what is intercepted, and steering drops it from its
//! attachment until the workers run. What keeps the box closed after a crash (pinned links and kernel flows, the nft table)
//! is not removed by the start but taken over, each in one step, so that no packet slips through. Being asked to stop opens
//! the box, and so does `weir clean`. Nothing else does: when weir ends by itself, or a start fails, be it the first, intercepted
//! traffic stays dropped. In the same way the express lane goes on with what it carries until weir is stopped as asked, and the
//! next start takes it over. A failed start on a box that fails open leaves it as it was.

mod contest;
pub mod convert;
pub mod devices;
pub mod drain;
pub mod end;
mod finish;
mod giving;
pub mod handover;
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
mod shut;
mod signals;
mod steer;
mod vlans;

use std::path::Path;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use weir_sys::uring;

use crate::admin::server;
use crate::config::{Config, Fail};
use crate::exit::{Exit, Failure};
use crate::host::instance::Registered;
use crate::host::{self, Closed, Host, Instance, Lock, Paths, Removed, preflight};
use end::Ending;
use handover::{Fate, Inherited, Predecessor};
use parts::Parts;
use reload::Reloader;
use signals::Signals;

/// How often the threads are looked after.
const HEALTH: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// The system refused something; nothing is left installed, but what keeps a box closed that fails closed.
pub fn main(config: &Config, replace: bool) -> Result<Exit, Failure> {
    init_log();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::refused(format!("no event loop: {error}")))?;
    let exit = LocalSet::new().block_on(&runtime, run(config, replace));
    // A lookup of a name cannot be ended: nobody waits for its thread.
    runtime.shutdown_background();
    exit
}

async fn run(config: &Config, replace: bool) -> Result<Exit, Failure> {
    let paths = Paths::of_this_namespace().map_err(Failure::refused)?;
    let host = Host::open(paths.clone()).map_err(Failure::refused)?;
    if let Err(failure) = may_and_can() {
        return Err(shut::refuse(config, &host, failure, &mut Signals::new()?).await);
    }
    // Who is told to end opens the box, and removes what an earlier one left: also before anything has started, be it that the name of one
    // that was killed is still taken.
    let early = (!replace).then(Signals::new).transpose()?;
    let lock = match handover::lock(config, &paths, replace)? {
        (_, Some(predecessor)) => return succeed(config, &host, &paths, predecessor).await,
        (lock, None) => lock,
    };
    let mut signals = early.map_or_else(Signals::new, Ok)?;
    shut::begin(config, &host).await;
    let keeps_lane = has_lane(config) && host::is_pinned(&paths.pins);
    let _registered;
    let (result, keeps_lane) = match begin(config, &host, &paths).await {
        Ok((registered, started)) => {
            _registered = registered;
            started.parts.settle_pins();
            let served = serve((&host, &paths, lock.as_ref()), started, &mut signals).await;
            (served, has_lane(config))
        }
        Err(failure) => (Err(failure), keeps_lane),
    };
    leave((config, &host), result, (true, keeps_lane), &mut signals).await
}

/// Whether this process may do what it must, and the kernel can.
fn may_and_can() -> Result<(), Failure> {
    preflight().into_iter().next().map_or(Ok(()), |missing| Err(Failure::refused(missing)))?;
    uring::probe().map_err(Failure::refused)
}

/// A start where no other weir runs: what an earlier one left is removed, but for what this one takes over.
async fn begin(config: &Config, host: &Host, paths: &Paths) -> Result<(Registered, Started), Failure> {
    let leftovers = clean(host, config.gateway.fail == Fail::Closed, has_lane(config)).await?;
    for command in &leftovers.commands {
        tracing::info!(command, "removed what an earlier weir left");
    }
    let here = Instance::here(&config.file, &config.gateway.admin);
    let registered = here.register(&paths.instance).map_err(Failure::refused)?;
    Ok((registered, start(config, host, paths, None).await?))
}

/// Takes the place of a process that runs. When that fails, the other goes on, and the host is its own.
async fn succeed(
    config: &Config,
    host: &Host,
    paths: &Paths,
    mut predecessor: Predecessor,
) -> Result<Exit, Failure> {
    let mut signals = Signals::new()?;
    let mut started = match prepare((config, host, paths), &mut predecessor, &mut signals).await {
        Ok(started) => started,
        Err(failure) => return yield_to((config, host), predecessor, failure, &mut signals).await,
    };
    let pid = predecessor.pid;
    if let Err(failure) = started.parts.accept() {
        tracing::error!("not on every core: {failure}");
    }
    // Until now all was as the other one needs it to go on, should this one fail.
    if let Err(error) = started.admin.take_place() {
        tracing::warn!(%error, "{}: nobody can ask this weir", config.gateway.admin.display());
    }
    let registered = Instance::here(&config.file, &config.gateway.admin).register(&paths.instance);
    if let Err(error) = &registered {
        tracing::warn!(%error, "who looks for this weir does not find it");
    }
    let lock = predecessor.dismiss();
    started.parts.settle_pins();
    tracing::info!(pid, "took the place of the process before");
    let result = serve((host, paths, Some(&lock)), started, &mut signals).await;
    leave((config, host), result, (true, has_lane(config)), &mut signals).await
}

/// All of a start that can fail, or be called off: who is told to end before the place is his leaves it to the process that has it.
async fn prepare(
    (config, host, paths): (&Config, &Host, &Paths),
    predecessor: &mut Predecessor,
    signals: &mut Signals,
) -> Result<Started, Failure> {
    not_told(signals).await?;
    predecessor.release()?;
    not_told(signals).await?;
    let inherited = std::mem::take(&mut predecessor.inherited);
    let started = start(config, host, paths, Some((inherited, &predecessor.admin))).await?;
    let departed = not_told(signals).await.and_then(|()| predecessor.depart());
    match departed {
        Ok(()) => Ok(started),
        Err(failure) => {
            started.parts.stop();
            Err(failure)
        }
    }
}

async fn not_told(signals: &mut Signals) -> Result<(), Failure> {
    let message = || "this process was told to end before it took the place of another".to_owned();
    match signals.has_come().await {
        true => Err(Failure { exit: Exit::Done, message: message() }),
        false => Ok(()),
    }
}

/// This process could not take the place of another, which goes on with what is installed. If it does not, nobody else removes that.
async fn yield_to(
    place: (&Config, &Host),
    mut predecessor: Predecessor,
    failure: Failure,
    signals: &mut Signals,
) -> Result<Exit, Failure> {
    let pid = predecessor.pid;
    let fate = predecessor.fate();
    let keeps = match fate {
        Fate::Lives => return Err(failure),
        Fate::Stopped => (false, false),
        Fate::Died => (true, has_lane(place.0)),
    };
    let how = if fate == Fate::Stopped { "was told to end" } else { "has ended by itself" };
    let message = format!("process {pid} {how} while this one took its place: {failure}");
    let failure = Failure { exit: failure.exit, message };
    let left = leave(place, Err(failure), keeps, signals).await;
    // Until here it was this process's: nobody else starts while that cleans up.
    drop(predecessor);
    left
}

/// Removes what is installed, unless another process has taken this one's place. Unless it was asked to end, what keeps a box
/// closed that fails closed stays, and what the express lane lives on with: if that `may_close` it, and `keeps_lane`.
async fn leave(
    (config, host): (&Config, &Host),
    result: Result<Served, Failure>,
    (may_close, keeps_lane): (bool, bool),
    signals: &mut Signals,
) -> Result<Exit, Failure> {
    let result = match result {
        Ok(Served::Replaced { .. }) => return Ok(Exit::Done),
        Ok(Served::Ended(exit)) => Ok(exit),
        Err(failure) => Err(failure),
    };
    let asked = matches!(result, Ok(Exit::Done)) || signals.has_come().await;
    // What was installed for one that runs lets open connections of the kernel's road pass.
    let closed = match may_close && !asked {
        true => shut::begin(config, host).await,
        false => Closed::No,
    };
    // Whatever was installed is removed, however it ended.
    let mut removed = clean(host, closed != Closed::No, keeps_lane && !asked).await;
    if !asked && signals.has_come().await {
        // Only now: nothing stays for him either.
        removed = clean(host, false, false).await;
    } else if closed == Closed::Yes {
        shut::tell();
    }
    let exit = result?;
    removed?;
    Ok(exit)
}

/// Whether the configuration has an express lane.
fn has_lane(config: &Config) -> bool {
    convert::has_fast_road(config) && convert::express_flows(config) > 0
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    Ended(Exit),
    /// Another process serves now, and what is installed is its own. `told`: what runs here is to end.
    Replaced {
        told: bool,
    },
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
    admin: server::AdminSocket,
    listener: UnixListener,
    metrics: Option<TcpListener>,
}

/// Starts everything, with what another process leaves to this one, which has that admin socket.
async fn start(
    config: &Config,
    host: &Host,
    paths: &Paths,
    predecessor: Option<(Inherited, &Path)>,
) -> Result<Started, Failure> {
    // The socket of a process that is being replaced is its own until nothing can fail any more.
    let (inherited, before) = predecessor.unzip();
    let first = if before.is_some() { None } else { Some(server::bind(&config.gateway.admin, None)?) };
    let metrics = match config.gateway.metrics {
        Some(address) => Some(server::bind_metrics(address).await?),
        None => None,
    };
    let parts = Parts::start(config, host, paths, inherited).await?;
    let (admin, listener) = match first {
        Some(bound) => bound,
        None => server::bind(&config.gateway.admin, before)?,
    };
    Ok(Started { parts, admin, listener, metrics })
}

/// Serves until a signal, or until it is drained or replaced; stops everything.
async fn serve(
    place: (&Host, &Paths, Option<&Lock>),
    started: Started,
    signals: &mut Signals,
) -> Result<Served, Failure> {
    let Started { mut parts, admin: socket, listener, metrics } = started;
    let Signals { terminate, interrupt, hangup, .. } = signals;
    let (reloader, mut orders) = Reloader::new(parts.state.clone(), parts.config.file.clone());
    let (ends, mut asked) = mpsc::channel(4);
    let admin = server::serve(listener, parts.state.clone(), reloader.clone(), ends.clone());
    let admin = tokio::task::spawn_local(admin);
    let checks = tokio::task::spawn_local(parts.watch_pools());
    let names = tokio::task::spawn_local(parts.resolve_names());
    let (host, mut ending) = (place.0, Ending::new(place, metrics, &parts, ends));
    notify::ready();
    tracing::info!("ready");
    let mut health = tokio::time::interval(HEALTH);
    let mut looks = drain::looks();
    let board = parts.state.health.clone();
    let served = loop {
        let look = parts.next_look();
        let over = tokio::select! {
            _ = terminate.recv() => Some(ending.told()),
            _ = interrupt.recv() => Some(ending.told()),
            Some(end) = asked.recv() => ending.asked(&mut parts, end).await,
            _ = looks.tick(), if ending.wants_looks() => ending.look(&mut parts).await,
            Some(event) = parts.events.recv() => ending.take_in(&mut parts, event).await,
            _ = hangup.recv() => { drop(tokio::task::spawn_local(reloader.clone().on_signal())); None },
            Some(order) = orders.recv(), if ending.takes_orders() => { parts.carry_out(host, order).await; None },
            () = board.changed() => { parts.publish_pools(); None },
            relisted = parts.lists.relisted(), if !ending.is_draining() => { parts.publish_lists(relisted); None },
            () = tokio::time::sleep_until(look.into()), if !ending.has_left() => { parts.look_after(host).await; None },
            _ = health.tick() => parts.tick().await,
        };
        if let Some(over) = over {
            break over;
        }
    };
    checks.abort();
    admin.abort();
    drop(admin.await);
    if let Some(metrics) = ending.metrics.take() {
        metrics.abort();
        drop(metrics.await);
    }
    if let Ok(Served::Replaced { told }) = served {
        // Now, while the file cannot be another's than the new process's or this one's.
        drop(socket);
        let giving = ending.successor().filter(|_| !told);
        finish::relayed(parts, giving, (terminate, interrupt)).await;
    } else {
        notify::stopping();
        ending.farewell().await;
        parts.stop();
        drop(socket);
    }
    names.abort();
    drop(names.await);
    served
}

impl Parts {
    /// What is looked after once in a while. An answer: a thread has ended.
    async fn tick(&mut self) -> Option<Result<Served, Failure>> {
        self.settle().await;
        self.tell_stalls();
        self.look_at_lanes();
        self.keep();
        (!self.state.is_running()).then(|| {
            tracing::error!("a worker ended; weir stops, and the kernel's road is as `fail` says");
            Ok(Served::Ended(Exit::No))
        })
    }
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
