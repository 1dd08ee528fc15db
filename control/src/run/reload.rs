//! `weir reload`: another configuration in the place of the one that runs, all of it or nothing.
//!
//! The file is read and compiled beside the event loop. Then, on it, what can fail is done first: steering is given both
//! configurations ([`super::steer`]), and the kernel's side is changed in the order of [`crate::host::apply`] (new routes and
//! rules, the nft table in one transaction, then what is stale). When one fails, what was done is taken back. Then the rules are
//! published to workers and relay as one snapshot under the next epoch; each takes them between two batches of packets, and no
//! packet meets a mixture. Connections keep their verdict; with `reevaluate` they are judged again afterwards.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::spawn_blocking;
use weir_core::policy::Policy;
use weir_core::reevaluate::Tally;

use super::parts::Parts;
use super::{convert, live};
use crate::admin::state::State;
use crate::config::{self, Config, Finding, Places, Report};
use crate::exit::{Exit, Failure};
use crate::host::Host;
use crate::lists::{self, Stay};

/// For how long whoever ordered a reload waits for the last worker to go by it: one that hangs does so when it is back.
const TAKEN: Duration = Duration::from_secs(1);
/// How long judging all connections again may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long workers may take to say whether connections lean on what is not intercepted any more.
const QUICK: Duration = Duration::from_millis(250);

/// A file that was read and is valid.
#[derive(Debug)]
pub struct Prepared {
    pub config: Config,
    pub report: Report,
    places: Places,
    /// When reading it began.
    read: Instant,
    /// Of its own epoch; [`Policy::replacing`] numbers it.
    policy: Policy,
}

/// What is to be put in force, and where its epoch is to be told.
#[derive(Debug)]
pub struct Order {
    prepared: Box<Prepared>,
    done: oneshot::Sender<Result<Done, Failure>>,
}

/// What was put in force.
#[derive(Debug)]
struct Done {
    epoch: u32,
    /// Lists of before that are in force still.
    stays: Vec<Stay>,
}

/// What is told of a reload.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Answer {
    /// Whether the file is in force.
    pub ok: bool,
    pub config: String,
    /// The epoch in force.
    pub epoch: u32,
    /// What was found in the file.
    pub findings: Vec<Finding>,
    /// What can be right and cannot be done now.
    pub refused: Option<String>,
    /// What became of live connections that were judged again.
    pub reevaluated: Option<Tally>,
    /// Why not all of them are counted.
    pub incomplete: Option<String>,
}

/// Asks for reloads; cloned for each who may.
#[derive(Clone, Debug)]
pub struct Reloader {
    orders: mpsc::Sender<Order>,
    state: Arc<State>,
    file: PathBuf,
    /// One after the other.
    turn: Arc<Mutex<()>>,
}

impl Reloader {
    /// For the file that weir was started with; orders come out at the other end.
    pub fn new(state: Arc<State>, file: PathBuf) -> (Self, mpsc::Receiver<Order>) {
        let (orders, inbox) = mpsc::channel(1);
        (Self { orders, state, file, turn: Arc::default() }, inbox)
    }

    /// Reads the file again and puts it in force. `named`: the file that the asker believes weir was started with.
    ///
    /// # Errors
    /// The system refused something; what was in force is.
    pub async fn reload(&self, named: Option<&Path>, reevaluate: bool) -> Result<Answer, Failure> {
        let _turn = self.turn.lock().await;
        let mut answer = Answer { config: self.file.display().to_string(), ..Answer::default() };
        answer.epoch = self.state.epoch.load(Ordering::Relaxed);
        if let Some(other) = named.filter(|named| !config::is_same_file(named, &self.file)) {
            answer.refused = Some(format!(
                "{}: weir runs with another file, {}: put the new one in its place, then `weir reload` again",
                other.display(),
                self.file.display()
            ));
            return Ok(answer);
        }
        if let Some(why) = self.state.refusal() {
            answer.refused = Some(why.to_owned());
            return Ok(answer);
        }
        let file = self.file.clone();
        let prepared = match spawn_blocking(move || prepare(&file)).await.map_err(Failure::refused)? {
            Ok(prepared) => prepared,
            Err(report) => {
                answer.findings = report.findings;
                return Ok(answer);
            }
        };
        answer.findings.clone_from(&prepared.report.findings);
        let (done, told) = oneshot::channel();
        let stopping = || Failure::refused("weir is about to stop");
        let order = Order { prepared: Box::new(prepared), done };
        self.orders.send(order).await.map_err(|_| stopping())?;
        match told.await.map_err(|_| stopping())? {
            Ok(done) => {
                (answer.ok, answer.epoch) = (true, done.epoch);
                correct(&mut answer.findings, &done.stays);
            }
            Err(Failure { exit: Exit::No, message }) => answer.refused = Some(message),
            Err(failure) => return Err(failure),
        }
        if answer.ok && reevaluate {
            let state = self.state.clone();
            let (tally, complete) =
                spawn_blocking(move || state.reevaluate(PATIENCE)).await.map_err(Failure::refused)?;
            answer.reevaluated = Some(tally);
            answer.incomplete = (!complete).then(|| {
                format!("not every thread has answered within {} s; the others go on", PATIENCE.as_secs())
            });
        }
        Ok(answer)
    }

    /// As SIGHUP asks: what comes of it is logged.
    pub async fn on_signal(self) {
        match self.reload(None, false).await {
            Ok(answer) if answer.ok => {
                answer.findings.iter().for_each(|finding| tracing::warn!("{finding}"));
            }
            Ok(answer) => {
                let what = answer.findings.iter().map(ToString::to_string).chain(answer.refused);
                what.for_each(|what| tracing::error!("not reloaded: {what}"));
            }
            Err(failure) => tracing::error!("not reloaded: {failure}"),
        }
    }
}

/// Says of lists that are in force still what is so, and not what was found in their files.
fn correct(findings: &mut Vec<Finding>, stays: &[Stay]) {
    for Stay { list, found, why } in stays {
        findings.retain(|finding| why.is_some() || finding.message != *found);
        for finding in findings.iter_mut().filter(|finding| finding.message == *found) {
            finding.message = format!("list {} {}", list.path.display(), why.as_deref().unwrap_or_default());
        }
    }
}

fn prepare(file: &Path) -> Result<Prepared, Report> {
    let read = Instant::now();
    let (config, report, text) = config::load_with_text(file)?;
    let (places, policy) = (Places::new(file, text), config.compile(0));
    Ok(Prepared { config, report, places, read, policy })
}

impl Parts {
    /// Carries out an order, and tells whoever gave it.
    pub async fn carry_out(&mut self, host: &Host, order: Order) {
        let Order { prepared, done } = order;
        let result = self.replace(host, *prepared).await;
        match &result {
            Ok(Done { epoch, .. }) => tracing::info!(epoch, config = %self.config.file.display(), "reloaded"),
            Err(failure) => tracing::warn!("not reloaded: {failure}"),
        }
        if result.is_ok() && !self.is_taken(TAKEN).await {
            tracing::warn!(
                "reload: not all workers and threads of the relay go by the new configuration yet"
            );
        }
        // Who has left is not told.
        drop(done.send(result));
        self.settle().await;
    }

    /// Puts another configuration in force.
    ///
    /// # Errors
    /// [`Exit::No`]: it differs in something that only a restart can change. Else the system refused a step. Either way
    /// the configuration of before is in force.
    async fn replace(&mut self, host: &Host, mut prepared: Prepared) -> Result<Done, Failure> {
        let stays = self.keep_lists(&mut prepared).await?;
        let Prepared { config, places, read, policy, .. } = prepared;
        if let Some(refusal) = live::refusal(&self.config, &config, &places) {
            return Err(Failure::no(refusal));
        }
        convert::check_gateway_ports(&config).map_err(Failure::no)?;
        let policy = policy.replacing(&self.policy).with_vlans(&self.fib.vlans);
        let spec = self.spec_of(&config);
        let widened = self.steer.widen(&self.state, (&self.policy, &policy), convert::pool_servers(&config));
        if let Err(error) = widened {
            return Err(match live::moved_ports(&self.config, &config, &places) {
                Some((pool, place)) => Failure::no(format!(
                    "{place}: `ports` of pool {pool} cannot change so while connections may use those of now: {error}; \
                     choose ports next to them, or restart weir"
                )),
                None => error,
            });
        }
        if let Err(error) = host.apply(&spec).await {
            let back = host.apply(&self.spec).await;
            self.repair.all_was_applied();
            self.steer.take_back(&self.state, &self.policy, &self.config);
            let also = back.err().map(|e| format!("; and what was there could not be put back: {e}"));
            return Err(Failure::refused(format!("{error}{}", also.unwrap_or_default())));
        }
        self.repair.all_was_applied();
        self.spec = spec;
        self.config = config;
        if let Ok(mut now) = self.state.config_read.lock() {
            *now = read;
        }
        if let Ok(mut now) = self.state.config_stamp.lock() {
            *now = self.config.stamp;
        }
        self.publish_replacement(policy);
        for Stay { list, why, .. } in &stays {
            self.state.lists.warn(list, why.clone());
        }
        Ok(Done { epoch: self.policy.epoch, stays })
    }

    /// No list takes a step back behind what is in force.
    async fn keep_lists(&mut self, prepared: &mut Prepared) -> Result<Vec<Stay>, Failure> {
        // What the watch has read by now comes first.
        while let Some(relisted) = self.lists.waiting() {
            self.publish_lists(relisted);
        }
        let stays = lists::keep(&mut prepared.config, &self.config.lists);
        if !stays.is_empty() {
            let config = prepared.config.clone();
            prepared.policy = spawn_blocking(move || config.compile(0)).await.map_err(Failure::refused)?;
        }
        Ok(stays)
    }

    /// Takes away from steering what no connection needs any more.
    pub async fn settle(&mut self) {
        if !self.steer.has_retired() {
            return;
        }
        let state = self.state.clone();
        let leaning = spawn_blocking(move || state.leaning(QUICK)).await;
        if matches!(leaning, Ok(Some(0))) {
            self.steer.narrow(&self.state, &self.policy);
        }
    }
}
