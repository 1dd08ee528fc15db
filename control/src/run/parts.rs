//! The parts of a running gateway, started in order and stopped in the reverse one.

mod place;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use weir_core::express::{Adopted, Lanes};
use weir_core::fib::Fib;
use weir_core::ids::PortId;
use weir_core::policy::Policy;
use weir_dataplane::gateway::{Dataplane, PortState};
use weir_dataplane::heartbeat::Stalls;
use weir_dataplane::questions::Questions;
use weir_dataplane::relay::{Hooks, RelayHandle};
use weir_dataplane::snapshot::{Publisher, Snapshot};
use weir_sys::keeper::{Keeper, SignPlace};
use weir_sys::process;

use super::convert;
use super::devices;
use super::handover::Inherited;
use super::lanes::LaneKeeper;
use super::memory;
use super::ports::Ports;
use super::repair::Repair;
use super::road::{Found, Pins, Road, hooks};
use super::steer::Steer;
use super::vlans::VlanList;
use crate::admin::part::Part;
use crate::admin::repairs::Repairs;
use crate::admin::state::State;
use crate::config::{Config, Mode, Pool};
use crate::exit::Failure;
use crate::health::{self, Board, Passive};
use crate::host::picture::OwnAddresses;
use crate::host::watch::{HostEvent, Options, PortChange, Watch};
use crate::host::{Host, HostSpec, LinkInfo, Paths};
use crate::lists::board;
use crate::lists::watch::{ListWatch, Relisted};
use crate::resolve;

/// The epoch of the configuration that a start reads.
const FIRST_EPOCH: u32 = 1;

/// All parts.
#[derive(Debug)]
pub struct Parts {
    pub state: Arc<State>,
    pub events: Receiver<HostEvent>,
    pub lists: ListWatch,
    /// The configuration in force.
    pub(super) config: Config,
    pub(super) spec: HostSpec,
    pub(super) policy: Arc<Policy>,
    pub(super) steer: Steer,
    pub(super) fib: Arc<Fib>,
    pub(super) vlans: VlanList,
    publisher: Publisher,
    pools: watch::Sender<Arc<[Pool]>>,
    tell: Tell,
    pub(in crate::run) repair: Repair,
    ports: Ports,
    /// Of the express lane, where there is one.
    lanes: Option<LaneKeeper>,
    /// Where links and maps are pinned.
    folder: PathBuf,
    pins: Pins,
    keeper: Option<Keeper>,
    /// As told last.
    stalls: [Stalls; 2],
    _watch: Watch,
}

/// What the host looks like at the start.
struct View {
    fib: Arc<Fib>,
    vlans: VlanList,
    own: Arc<OwnAddresses>,
    warnings: Vec<String>,
}

impl Parts {
    /// Starts everything. What was started is stopped again when a later part fails; the caller cleans the host.
    /// `inherited`: what the process leaves whose place this one takes.
    pub async fn start(
        config: &Config,
        host: &Host,
        paths: &Paths,
        inherited: Option<Inherited>,
    ) -> Result<Self, Failure> {
        let found = Found::of(inherited.as_ref(), paths)?;
        let listeners = inherited.map(|inherited| inherited.listeners).unwrap_or_default();
        convert::check_gateway_ports(config).map_err(Failure::refused)?;
        let (links, told) = devices::of_ports(config, host).await?;
        check_memory(config, &links)?;
        // Steering must know the box's own addresses before it is on a device: a box that fails closed drops from then
        // on. The addresses of the TUN devices follow as an event.
        let (watch, mut events) =
            Watch::start(convert::ports(config), Options::default()).map_err(Failure::refused)?;
        let view = first_view(&mut events).await?;
        let compiled = Arc::new(config.compile(FIRST_EPOCH).with_vlans(&view.fib.vlans));
        let spec = spec_before_steering(config, host, (&view, &links)).await?;
        let mut road = attach(config, &links, paths, &compiled, (&view, &found))?;
        let (snapshot, adopted) = beginning(&compiled, &view.fib, road.as_ref())?;
        let mut publisher = Publisher::new();
        let tell = Tell::new()?;
        let relay =
            start_relay(config, &links, (&snapshot, &mut publisher), &tell, road.as_ref(), listeners)?;
        // From here on, what is new is the relay's, which may not have come to be.
        let applied = host.apply(&spec).await.map_err(Failure::refused)?;
        let dataplane = match &mut road {
            Some(road) => Some(road.start(config, &links, (&snapshot, adopted), &mut publisher, &tell)?),
            None => None,
        };
        let lasting = lasting_warnings([applied.warnings, told], dataplane.as_ref());
        lasting.iter().chain(&view.warnings).for_each(|warning| tracing::warn!("{warning}"));
        let tuns = road.as_ref().map(|road| road.tuns.clone()).unwrap_or_default();
        let lanes = road.as_ref().and_then(|road| road.lanes(config));
        // A configuration before this one may have had a fast road.
        let pins = road.as_ref().map_or(Pins::Removed, |road| road.pins);
        let state = state(config, (dataplane, relay), road, (lasting, view.warnings));
        let repair = Repair::new(state.repairs.clone(), tuns);
        let (pools, _) = watch::channel(Arc::from(config.pools.clone()));
        let lists = follow_lists(config, &state)?;
        let steer = Steer::new(view.own, config);
        let config = config.clone();
        let ports = Ports::new(&config, &links, pins.folder(&paths.pins));
        let mut parts = Self {
            state,
            events,
            lists,
            config,
            spec: HostSpec { uplinks: Vec::new(), ..spec },
            policy: snapshot.policy.clone(),
            steer,
            fib: view.fib,
            vlans: view.vlans,
            publisher,
            pools,
            tell,
            repair,
            ports,
            lanes,
            folder: paths.pins.clone(),
            pins,
            keeper: None,
            stalls: Default::default(),
            _watch: watch,
        };
        parts.keep();
        parts.look_at_lanes();
        Ok(parts)
    }

    /// Nothing can fail any more: pins that a process before has left, and that this one has no use for, go.
    pub fn settle_pins(&self) {
        let mut steering = self.state.steering.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.pins.settle(steering.as_mut(), &self.folder) {
            tracing::warn!(%error, "left by an earlier weir; weir clean removes it");
        }
    }

    /// Watches the servers of the pools until it is dropped.
    pub fn watch_pools(&self) -> impl Future<Output = ()> + use<> {
        health::run(self.pools.subscribe(), self.state.health.clone(), self.tell.failures.clone())
    }

    /// Answers what workers and relay ask about names until it is dropped.
    pub fn resolve_names(&self) -> impl Future<Output = ()> + use<> {
        resolve::run(self.tell.questions.clone(), self.state.clone())
    }

    /// Tells workers and relay which servers are up.
    pub fn publish_pools(&mut self) {
        let policy = self.policy.with_vlans(&self.fib.vlans).with_pools(&self.state.health.states());
        self.policy = Arc::new(policy);
        self.publish();
    }

    /// Puts rules in force that differ from those of now in the contents of lists. Connections keep their verdict.
    pub fn publish_lists(&mut self, relisted: Relisted) {
        for list in relisted.lists {
            // The watch lets go of the one of before, which may be large.
            drop(self.config.replace_list(list));
        }
        let policy = relisted.policy.succeeding(&self.policy);
        self.publish_policy(policy);
    }

    /// Puts rules in force, compiled elsewhere, with the servers of pools as they are.
    pub(super) fn publish_policy(&mut self, policy: Policy) {
        if let Some(plane) = self.state.dataplane.ask().as_ref() {
            plane.prepare(&policy);
        }
        self.state.epoch.store(policy.epoch, Ordering::Relaxed);
        self.policy = Arc::new(policy);
        self.publish_pools();
    }

    /// Puts the rules of the configuration that is in force now in the place of those before, and lets its servers be checked
    /// and its lists be followed.
    pub(super) fn publish_replacement(&mut self, policy: Policy) {
        self.state.health.replace(&self.config.pools, policy.numbered());
        self.publish_policy(policy);
        self.pools.send_replace(Arc::from(self.config.pools.clone()));
        self.state.lists.begin(&self.config.lists);
        self.lists.follow(&self.config);
    }

    /// The kernel's side for a configuration, on the devices that are there.
    pub(super) fn spec_of(&self, config: &Config) -> HostSpec {
        let mut spec = convert::host_spec(config, self.vlans.iter().map(|(_, sub)| sub));
        if let Ok(lost) = self.state.lost.lock() {
            let is_back = |port: &String| self.spec.ports.contains(port);
            spec.ports.retain(|port| !lost.contains_key(port) || is_back(port));
        }
        spec.lost.clone_from(&self.spec.lost);
        spec.indexes = self.indexes();
        spec.uplinks.clear();
        spec
    }

    /// Whether all workers and threads of the relay go by what was published last, within `patience`.
    pub(super) async fn is_taken(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while !self.publisher.is_taken() {
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        true
    }

    pub(super) fn publish(&self) {
        let lanes = self.lanes.as_ref().map_or(Lanes::NONE, LaneKeeper::lanes);
        if let Some(lanes) = &self.lanes {
            lanes.ways().follow(&self.fib);
        }
        let snapshot = Snapshot { policy: self.policy.clone(), fib: self.fib.clone(), lanes };
        self.publisher.publish(&Arc::new(snapshot));
        if let Some(plane) = self.state.dataplane.ask().as_ref() {
            plane.wake();
        }
    }

    /// Carries a change of the host to those who need it.
    ///
    /// # Errors
    /// The steering program cannot be told of an address: it would intercept what is the gateway's own.
    pub(super) fn follow(&mut self, host: &Host, event: HostEvent) -> Result<(), Failure> {
        match event {
            HostEvent::Fib(fib) => self.set_fib(fib),
            HostEvent::Vlans(vlans) => self.set_vlans(vlans)?,
            HostEvent::Own(own) => self.steer.set_own(&self.state, &self.policy, own)?,
            HostEvent::Port { port, device, change } => self.port_changed(port, device, &change),
            HostEvent::Warnings(news) => {
                for warning in &news {
                    tracing::warn!("{warning}");
                }
                if let Ok(mut warnings) = self.state.warnings.lock() {
                    *warnings = news;
                }
            }
            HostEvent::KernelSideTouched(removals) => self.repair.touched(host, &removals),
            HostEvent::Ended(why) => return Err(Failure::refused(why)),
        }
        Ok(())
    }

    fn port_changed(&mut self, port: PortId, device: String, change: &PortChange) {
        match change {
            PortChange::Removed => self.spec.ports.retain(|port| *port != device),
            // A device of the same name is another one: nothing of weir's is on it.
            PortChange::Appeared { .. } if !self.spec.ports.contains(&device) => self.spec.ports.push(device),
            _ => {}
        }
        self.ports.changed(port, change, &self.state);
    }

    /// Starts the process that tells at once when this one has died; or again, when somebody has ended it.
    pub fn keep(&mut self) {
        if self.keeper.as_mut().is_some_and(Keeper::is_alive) {
            return;
        }
        let is_new = self.keeper.take().is_none();
        match self.signs_of_life().and_then(|places| Keeper::start(&places)) {
            Ok(keeper) => self.keeper = Some(keeper),
            Err(error) if is_new => {
                tracing::warn!(
                    %error,
                    "no keeper: should weir be killed, traffic stops until its memory is given back, or for {} ms",
                    self.config.gateway.heartbeat.as_millis()
                );
            }
            Err(error) => tracing::debug!(%error, "no keeper"),
        }
    }

    fn signs_of_life(&self) -> std::io::Result<Vec<SignPlace>> {
        let steering = self.state.steering.lock().unwrap_or_else(PoisonError::into_inner);
        let workers = steering.as_ref().map(|steering| steering.pulse().place());
        let relay = self.state.relay.ask().as_ref().map(RelayHandle::sign_place);
        workers.into_iter().chain(relay).collect()
    }

    /// Looks between which ports the express lane can carry now.
    pub fn look_at_lanes(&mut self) {
        let Some(lanes) = &mut self.lanes else { return };
        let plane = self.state.dataplane.ask();
        let candidates = self.ports.candidates(plane.as_ref().map(Dataplane::ports).unwrap_or_default());
        drop(plane);
        lanes.free_numbers();
        lanes.look_after_strays();
        let ended = lanes.look_after_former();
        self.state.set_former(lanes.ways().former().left());
        self.end_former(&ended);
        let Some(lanes) = &mut self.lanes else { return };
        if lanes.look(&candidates) {
            self.pin_lane();
            self.publish();
        }
    }

    /// The last connection of the lane of another layout has ended.
    fn end_former(&self, layouts: &[u32]) {
        let mut steering = self.state.steering.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(steering) = steering.as_mut() else { return };
        for layout in layouts {
            match steering.end_former_lane(&self.folder, *layout) {
                Ok(()) => tracing::info!(
                    "express lane: the last connection that another version of weir has left has ended"
                ),
                Err(error) => {
                    tracing::warn!(%error, "express lane: of another version; weir clean removes it")
                }
            }
        }
    }

    /// What is in the express lane is to outlive the process.
    fn pin_lane(&mut self) {
        let is_open = self.lanes.as_ref().is_some_and(|lanes| !lanes.lanes().is_empty());
        if !is_open || self.ports.is_pinned() {
            return;
        }
        let mut steering = self.state.steering.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(steering) = steering.as_mut() else { return };
        match steering.pin(&self.folder) {
            Ok(()) => self.ports.pin(self.folder.clone()),
            Err(error) => tracing::warn!(%error, "express lane: what it carries ends with weir"),
        }
    }

    /// Logs that a sign of life was late, since whatever was late does not.
    pub fn tell_stalls(&mut self) {
        let now = self.state.stalls();
        for ((what, stalls), before) in ["workers", "relay"].into_iter().zip(now).zip(self.stalls) {
            if stalls.count > before.count {
                let times = stalls.count - before.count;
                let longest_ms = stalls.longest.as_millis();
                tracing::warn!(
                    times,
                    longest_ms,
                    "the sign of life of the {what} was late (limit {} ms): what came meanwhile passed by",
                    self.config.gateway.heartbeat.as_millis()
                );
            }
        }
        self.stalls = now;
    }

    /// When [`Self::look_after`] wants to be called.
    pub fn next_look(&self) -> Instant {
        self.repair.due()
    }

    /// Puts back what somebody changed without the kernel announcing it, and what has its turn.
    pub async fn look_after(&mut self, host: &Host) {
        self.repair.look(host, &self.spec, &self.state.steering).await;
        self.ports.look(&self.state);
        self.shut_lost_ports(host).await;
    }

    /// Stops everything: first nothing is redirected any more, then workers and relay end. Whoever still asks for the
    /// state does not keep them.
    pub fn stop(mut self) {
        drop(self.keeper.take());
        let steering = self.state.steering.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(steering);
        if let Some(dataplane) = self.state.dataplane.take() {
            dataplane.stop();
        }
        if let Some(relay) = self.state.relay.take() {
            relay.stop(Duration::ZERO);
        }
        tracing::info!("stopped");
    }
}

/// What workers and relay begin with, and the connections that are in the express lane already.
fn beginning(
    policy: &Arc<Policy>,
    fib: &Arc<Fib>,
    road: Option<&Road>,
) -> Result<(Arc<Snapshot>, Vec<Adopted>), Failure> {
    let legacy = road.map(|road| road.legacy(fib)).transpose()?.unwrap_or_default();
    let policy = Arc::new(Policy::clone(policy).remembering(legacy.rules));
    Ok((Arc::new(Snapshot { policy, fib: fib.clone(), lanes: Lanes::NONE }), legacy.flows))
}

/// Whether there is memory for the fast road, where the configuration has one.
fn check_memory(config: &Config, links: &[LinkInfo]) -> Result<(), Failure> {
    if convert::has_fast_road(config) {
        memory::check(&convert::dataplane_spec(config, links)?, convert::express_flows(config))?;
    }
    Ok(())
}

fn follow_lists(config: &Config, state: &State) -> Result<ListWatch, Failure> {
    ListWatch::start(config, state.lists.clone())
        .map_err(|error| Failure::refused(format!("lists cannot be followed: {error}")))
}

/// How workers and relay tell control what they find, and ask it.
#[derive(Debug)]
pub(super) struct Tell {
    pub failures: Passive,
    pub questions: Arc<Questions>,
}

impl Tell {
    fn new() -> Result<Self, Failure> {
        let questions = Questions::new().map_err(Failure::refused)?;
        Ok(Self { failures: Arc::new(ArrayQueue::new(convert::FAILURES)), questions })
    }
}

/// What can be asked of the parts. Of the warnings, the first hold as long as the process.
fn state(
    config: &Config,
    (dataplane, relay): (Option<Dataplane>, RelayHandle),
    road: Option<Road>,
    (lasting_warnings, warnings): (Vec<String>, Vec<String>),
) -> Arc<State> {
    let attached = road.as_ref().map(|road| road.attached.clone()).unwrap_or_default();
    Arc::new(State {
        started: Instant::now(),
        config: config.file.display().to_string(),
        config_read: Mutex::new(Instant::now()),
        config_stamp: Mutex::new(config.stamp),
        epoch: AtomicU32::new(FIRST_EPOCH),
        dataplane: Part::new(dataplane),
        relay: Part::new(Some(relay)),
        drains: AtomicBool::new(false),
        gives: AtomicBool::new(false),
        lack: Mutex::default(),
        steering: Mutex::new(road.map(|road| road.steering)),
        repairs: Arc::<Repairs>::default(),
        attached: Mutex::new(attached),
        health: Arc::new(Board::new(&config.pools, FIRST_EPOCH)),
        lists: Arc::new(board::Board::new(&config.lists)),
        former: Mutex::default(),
        lasting_warnings,
        lost: Mutex::default(),
        names: Mutex::default(),
        warnings: Mutex::new(warnings),
    })
}

/// What holds as long as the process: what was found before the start, and what the ports did not get.
fn lasting_warnings(found: [Vec<String>; 2], dataplane: Option<&Dataplane>) -> Vec<String> {
    let short = dataplane.into_iter().flat_map(|plane| plane.ports().iter().filter_map(short_of_zero_copy));
    found.into_iter().flatten().chain(short).collect()
}

/// What the operator should know of a port that asked for zero-copy and runs without.
fn short_of_zero_copy(port: &PortState) -> Option<String> {
    (port.asked == Mode::ZeroCopy.name() && !port.zero_copy).then(|| {
        let device = &port.device;
        format!("device {device}: asked for zero-copy and got copy mode: its driver has no zero-copy on these queues")
    })
}

/// Waits for the first picture of the host.
async fn first_view(events: &mut Receiver<HostEvent>) -> Result<View, Failure> {
    let (mut fib, mut own, mut vlans, mut warnings) = (None, None, None, Vec::new());
    loop {
        if let (Some(fib), Some(own), Some(vlans)) = (&fib, &own, &vlans) {
            let (fib, own, vlans) = (Arc::clone(fib), Arc::clone(own), Arc::clone(vlans));
            return Ok(View { fib, vlans, own, warnings });
        }
        match events.recv().await {
            Some(HostEvent::Fib(first)) => fib = Some(first),
            Some(HostEvent::Own(first)) => own = Some(first),
            Some(HostEvent::Vlans(first)) => vlans = Some(first),
            Some(HostEvent::Warnings(first)) => warnings = first,
            Some(HostEvent::Ended(why)) => return Err(Failure::refused(why)),
            Some(_) => {}
            None => return Err(Failure::refused("the kernel's routes cannot be followed")),
        }
    }
}

/// The kernel's side, of which is done what must be before the XDP program comes.
async fn spec_before_steering(
    config: &Config,
    host: &Host,
    (view, links): (&View, &[LinkInfo]),
) -> Result<HostSpec, Failure> {
    let spec = convert::host_spec(config, view.vlans.iter().map(|(_, sub)| sub)).on(links);
    // The program's coming switches them off by itself, and then nobody knows that they were on.
    host.stop_merging(&spec).await.map_err(Failure::refused)?;
    Ok(spec)
}

/// The fast road's program, where the configuration has one.
fn attach(
    config: &Config,
    links: &[LinkInfo],
    paths: &Paths,
    policy: &Policy,
    (view, found): (&View, &Found),
) -> Result<Option<Road>, Failure> {
    if convert::has_fast_road(config) {
        return Road::attach(config, links, paths, policy, (&view.own, &view.vlans), found).map(Some);
    }
    Ok(None)
}

/// The relay runs on every box: for rules that say so, and for what reaches the kernel while the fast road is away.
fn start_relay(
    config: &Config,
    links: &[LinkInfo],
    (snapshot, publisher): (&Arc<Snapshot>, &mut Publisher),
    tell: &Tell,
    road: Option<&Road>,
    listeners: Vec<OwnedFd>,
) -> Result<RelayHandle, Failure> {
    // Without a fast road nobody has raised them yet.
    process::raise_limits();
    let mut relay = convert::relay_config(config, links)?;
    relay.failures = tell.failures.clone();
    relay.questions = Some(tell.questions.clone());
    tracing::info!(
        workers = relay.workers,
        connections = relay.connections,
        "relay: more connections are reset"
    );
    let hooks = road.map_or_else(Hooks::default, |road| hooks(road.steering.kernel_flows()));
    RelayHandle::take_over(&relay, snapshot, publisher, hooks, listeners).map_err(Failure::refused)
}
