//! The parts of a running gateway, started in order and stopped in the reverse one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use tokio::sync::mpsc::Receiver;
use weir_core::fib::Fib;
use weir_core::ids::PortId;
use weir_core::policy::Policy;
use weir_dataplane::gateway::{Dataplane, PortState};
use weir_dataplane::heartbeat::{self, Stalls};
use weir_dataplane::punt::Punt;
use weir_dataplane::relay::{Hooks, RelayHandle};
use weir_dataplane::snapshot::{Publisher, Snapshot};
use weir_sys::keeper::{Keeper, SignPlace};
use weir_sys::steering::{self, KernelFlows, Sizes, Steering};
use weir_sys::tun::Tun;
use weir_sys::{clock, process};

use super::convert;
use super::memory;
use super::ports::Ports;
use super::repair::Repair;
use crate::admin::repairs::Repairs;
use crate::admin::state::{Part, State};
use crate::config::{Config, Fail, Mode, Pool};
use crate::exit::Failure;
use crate::health::{self, Board, Passive};
use crate::host::picture::OwnAddresses;
use crate::host::watch::{HostEvent, Options, PortChange, Watch};
use crate::host::{self, Host, HostSpec, LinkInfo, Paths, port_device};
use crate::lists::board;
use crate::lists::watch::{ListWatch, Relisted};

/// How long the first heartbeat may take.
const FIRST_BEAT: Duration = Duration::from_secs(5);
/// The epoch of the configuration that a start reads.
const FIRST_EPOCH: u32 = 1;

/// All parts.
#[derive(Debug)]
pub struct Parts {
    pub state: Arc<State>,
    pub events: Receiver<HostEvent>,
    pub lists: ListWatch,
    spec: HostSpec,
    policy: Arc<Policy>,
    fib: Arc<Fib>,
    publisher: Publisher,
    pools: Vec<Pool>,
    failures: Passive,
    repair: Repair,
    ports: Ports,
    keeper: Option<Keeper>,
    /// As told last.
    stalls: [Stalls; 2],
    _watch: Watch,
}

/// What the host looks like at the start.
struct View {
    fib: Arc<Fib>,
    own: Arc<OwnAddresses>,
    warnings: Vec<String>,
}

impl Parts {
    /// Starts everything. What was started is stopped again when a later part fails; the caller cleans the host.
    pub async fn start(config: &Config, host: &Host, paths: &Paths) -> Result<Self, Failure> {
        convert::check_gateway_ports(config).map_err(Failure::refused)?;
        let (links, told) = links(config, host).await?;
        let policy = Arc::new(config.compile(FIRST_EPOCH));
        let fast = convert::has_fast_road(config);
        if fast {
            memory::check(&convert::dataplane_spec(config, &links)?)?;
        }
        let devices = (0..).map(PortId).zip(config.ports.iter().map(|port| port.device.clone())).collect();
        // Steering must know the box's own addresses before it is on a device: a box that fails closed drops from then
        // on. The addresses of the TUN devices follow as an event.
        let (watch, mut events) = Watch::start(devices, Options::default()).map_err(Failure::refused)?;
        let view = first_view(&mut events).await?;
        let mut road =
            if fast { Some(Road::attach(config, &links, paths, &policy, &view.own)?) } else { None };
        if !fast {
            // A configuration before this one had a fast road.
            steering::unpin(&paths.pins).map_err(Failure::refused)?;
        }
        let spec = convert::host_spec(config);
        let applied = host.apply(&spec).await.map_err(Failure::refused)?;
        let snapshot = Arc::new(Snapshot { policy: policy.clone(), fib: view.fib.clone() });
        let mut publisher = Publisher::new();
        let failures: Passive = Arc::new(ArrayQueue::new(convert::FAILURES));
        let relay = start_relay(config, &links, &snapshot, &mut publisher, &failures, road.as_ref())?;
        let dataplane = match &mut road {
            Some(road) => Some(road.start(config, &links, &snapshot, &mut publisher, &failures)?),
            None => None,
        };
        let mut lasting = applied.warnings;
        lasting.extend(told);
        lasting
            .extend(dataplane.iter().flat_map(|plane| plane.ports().iter().filter_map(short_of_zero_copy)));
        for warning in lasting.iter().chain(&view.warnings) {
            tracing::warn!("{warning}");
        }
        let tuns = road.as_ref().map(|road| road.tuns.clone()).unwrap_or_default();
        let state = Arc::new(state_of(config, relay, dataplane, road, [lasting, view.warnings]));
        let lists = ListWatch::start(config, state.lists.clone())
            .map_err(|error| Failure::refused(format!("lists cannot be followed: {error}")))?;
        let repair = Repair::new(state.repairs.clone(), tuns);
        let pins = (config.gateway.fail == Fail::Closed).then(|| paths.pins.clone());
        let ports = Ports::new(&config.ports, &links, fast, pins);
        let mut parts = Self {
            state,
            events,
            lists,
            spec,
            policy,
            fib: view.fib,
            publisher,
            pools: config.pools.clone(),
            failures,
            repair,
            ports,
            keeper: None,
            stalls: Default::default(),
            _watch: watch,
        };
        parts.keep();
        Ok(parts)
    }

    /// Watches the servers of the pools until it is dropped.
    pub fn watch_pools(&self) -> impl Future<Output = ()> + use<> {
        let (pools, board, failures) = (self.pools.clone(), self.state.health.clone(), self.failures.clone());
        async move { health::run(&pools, board, failures).await }
    }

    /// Tells workers and relay which servers are up.
    pub fn publish_pools(&mut self) {
        self.policy = Arc::new(self.policy.with_pools(&self.state.health.states()));
        self.publish();
    }

    /// Puts rules in force that differ from those of now in the contents of lists. Connections keep their verdict.
    pub fn publish_lists(&mut self, relisted: Relisted) {
        let policy = relisted.policy.succeeding(&self.policy);
        self.publish_policy(policy);
    }

    /// Puts rules in force, compiled elsewhere, with the servers of pools as they are.
    fn publish_policy(&mut self, policy: Policy) {
        self.state.epoch.store(policy.epoch, Ordering::Relaxed);
        self.policy = Arc::new(policy);
        self.publish_pools();
    }

    fn publish(&self) {
        let snapshot = Snapshot { policy: self.policy.clone(), fib: self.fib.clone() };
        self.publisher.publish(&Arc::new(snapshot));
    }

    /// Carries a change of the host to those who need it.
    ///
    /// # Errors
    /// The steering program cannot be told of an address: it would intercept what is the gateway's own.
    pub async fn follow(&mut self, host: &Host, event: HostEvent) -> Result<(), Failure> {
        match event {
            HostEvent::Fib(fib) => {
                self.fib = fib;
                self.publish();
            }
            HostEvent::Own(own) => {
                if let Ok(mut steering) = self.state.steering.lock()
                    && let Some(steering) = steering.as_mut()
                {
                    tell_own(steering, &self.policy, &own)?;
                }
            }
            HostEvent::Port { port, device, change } => self.port_changed(port, device, &change),
            HostEvent::Warnings(news) => {
                for warning in &news {
                    tracing::warn!("{warning}");
                }
                if let Ok(mut warnings) = self.state.warnings.lock() {
                    *warnings = news;
                }
            }
            HostEvent::KernelSideTouched(removals) => {
                self.repair.round(host, &self.spec, &self.state.steering, &removals).await;
            }
            HostEvent::Ended(why) => return Err(Failure::refused(why)),
        }
        Ok(())
    }

    fn port_changed(&mut self, port: PortId, device: String, change: &PortChange) {
        match change {
            PortChange::Removed => self.spec.ports.retain(|port| *port != device),
            // A device of the same name is another one: nothing of weir's is on it.
            PortChange::Appeared(_) if !self.spec.ports.contains(&device) => self.spec.ports.push(device),
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
                    heartbeat::LIMIT.as_millis()
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
                    heartbeat::LIMIT.as_millis()
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

/// What the fast road needs besides the workers.
struct Road {
    steering: Steering,
    attached: BTreeMap<String, &'static str>,
    tuns: Vec<Arc<Tun>>,
    punt: Punt,
}

impl Road {
    /// Loads the steering program, tells it what is the box's own, what is intercepted and where the
    /// pools' servers are, and puts it on the ports:
    /// everything passes; or, on a box that fails closed, what is intercepted is dropped, and the program takes the place
    /// of the one that a crash left there. Makes the ways into the kernel.
    fn attach(
        config: &Config,
        links: &[LinkInfo],
        paths: &Paths,
        policy: &Policy,
        own: &OwnAddresses,
    ) -> Result<Self, Failure> {
        let closed = config.gateway.fail == Fail::Closed;
        let adopt = closed.then(|| paths.pins.clone());
        let sizes = Sizes { kernel_flows: convert::kernel_flows(config), adopt };
        let mut steering = Steering::load(&sizes).map_err(Failure::refused)?;
        tell_own(&mut steering, policy, own)?;
        steering.set_pool_servers(&convert::pool_servers(config)).map_err(Failure::refused)?;
        if closed {
            // There is no heartbeat yet.
            set_limits(&steering, closed)?;
        }
        let mut attached = BTreeMap::new();
        for ((port, link), number) in config.ports.iter().zip(links).zip(0..) {
            let mode = convert::attach_mode(port.mode);
            steering.set_port(link.ifindex, number).map_err(Failure::refused)?;
            if let Some(mac) = link.mac {
                steering.set_mac(link.ifindex, mac).map_err(Failure::refused)?;
            }
            let got = steering.attach(&port.device, link.ifindex, mode).map_err(Failure::refused)?;
            tracing::info!(device = port.device, mode = got.name(), "XDP attached");
            attached.insert(port.device.clone(), got.name());
        }
        if closed {
            steering.pin(&paths.pins).map_err(Failure::refused)?;
            for pin in steering.unpin_others(&paths.pins).map_err(Failure::refused)? {
                tracing::info!(pin = %pin.display(), "removed: of a device that is no port any more");
            }
        }
        let relay = Arc::new(tun(host::RELAY_TUN)?);
        let forward = Arc::new(tun(host::PUNT_TUN)?);
        let tuns = vec![relay.clone(), forward.clone()];
        let punt = Punt::new(relay, forward, steering.kernel_flows());
        Ok(Self { steering, attached, tuns, punt })
    }

    /// Starts the workers and, once all of them breathe, lets steering redirect.
    fn start(
        &mut self,
        config: &Config,
        links: &[LinkInfo],
        snapshot: &Snapshot,
        publisher: &mut Publisher,
        failures: &Passive,
    ) -> Result<Dataplane, Failure> {
        let mut spec = convert::dataplane_spec(config, links)?;
        spec.failures = failures.clone();
        let dataplane = Dataplane::start(&spec, &self.steering, &self.punt, publisher, snapshot)
            .map_err(Failure::refused)?;
        for port in dataplane.ports() {
            let copy = if port.zero_copy { "zero-copy" } else { "copy" };
            tracing::info!(device = port.device, asked = port.asked, got = copy, queues = ?port.queues, "AF_XDP");
        }
        dataplane.wait_for_heartbeat(FIRST_BEAT).map_err(Failure::refused)?;
        set_limits(&self.steering, config.gateway.fail == Fail::Closed)?;
        Ok(dataplane)
    }
}

/// What can be asked of all parts. `warnings`: those that last, and those of the host as it is now.
fn state_of(
    config: &Config,
    relay: RelayHandle,
    dataplane: Option<Dataplane>,
    road: Option<Road>,
    warnings: [Vec<String>; 2],
) -> State {
    let [lasting_warnings, warnings] = warnings;
    State {
        started: Instant::now(),
        config: config.file.display().to_string(),
        epoch: AtomicU32::new(FIRST_EPOCH),
        dataplane: Part::new(dataplane),
        relay: Part::new(Some(relay)),
        attached: Mutex::new(road.as_ref().map(|road| road.attached.clone()).unwrap_or_default()),
        steering: Mutex::new(road.map(|road| road.steering)),
        repairs: Arc::<Repairs>::default(),
        health: Arc::new(Board::new(&config.pools)),
        lists: Arc::new(board::Board::new(&config.lists)),
        lasting_warnings,
        lost: Mutex::default(),
        warnings: Mutex::new(warnings),
    }
}

fn set_limits(steering: &Steering, closed: bool) -> Result<(), Failure> {
    let limit = u64::try_from(heartbeat::LIMIT.as_nanos()).unwrap_or(u64::MAX);
    steering.set_limits(limit, closed).map_err(Failure::refused)
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
    let (mut fib, mut own, mut warnings) = (None, None, Vec::new());
    loop {
        if let (Some(fib), Some(own)) = (&fib, &own) {
            return Ok(View { fib: Arc::clone(fib), own: Arc::clone(own), warnings });
        }
        match events.recv().await {
            Some(HostEvent::Fib(first)) => fib = Some(first),
            Some(HostEvent::Own(first)) => own = Some(first),
            Some(HostEvent::Warnings(first)) => warnings = first,
            Some(HostEvent::Ended(why)) => return Err(Failure::refused(why)),
            Some(_) => {}
            None => return Err(Failure::refused("the kernel's routes cannot be followed")),
        }
    }
}

/// What is the box's own is never intercepted: single addresses by a map of their own; prefixes, and the addresses that the
/// map has no room for, as holes in the table.
fn tell_own(steering: &mut Steering, policy: &Policy, own: &OwnAddresses) -> Result<(), Failure> {
    let mut exempt = steering.set_own_addresses(&own.addresses).map_err(Failure::refused)?;
    exempt.extend(&own.prefixes);
    steering.set_intercepts(&convert::intercept_table(policy, &exempt)).map_err(Failure::refused)
}

/// The device of each port, which must be fit for one; and what to know about them.
async fn links(config: &Config, host: &Host) -> Result<(Vec<LinkInfo>, Vec<String>), Failure> {
    let all = host.all_links().await.map_err(Failure::refused)?;
    let (mut links, mut warnings) = (Vec::new(), Vec::new());
    let fast = convert::has_fast_road(config);
    for port in &config.ports {
        let refused = |why: &dyn std::fmt::Display| Failure::refused(format!("{}: {why}", port.origin));
        let link = host.link_info(&port.device).await.map_err(|error| refused(&error))?;
        if fast {
            if let Some(why) = port_device::unfit(&link, &all) {
                return Err(refused(&why));
            }
            warnings.extend(port_device::warning(&link, &all));
        }
        links.push(link);
    }
    Ok((links, warnings))
}

fn tun(name: &str) -> Result<Tun, Failure> {
    let failed = |error: std::io::Error| {
        Failure::refused(format!(
            "the TUN device {name} cannot be made: {error}; is /dev/net/tun there, and not in use?"
        ))
    };
    let tun = Tun::create(name).map_err(failed)?;
    ready_tun(&tun).map_err(failed)?;
    Ok(tun)
}

/// Makes a new TUN device fit for packets.
pub fn ready_tun(tun: &Tun) -> std::io::Result<()> {
    tun.set_mtu(65_535)?;
    tun.set_up(true)
}

/// The relay runs on every box: for rules that say so, and for what reaches the kernel while the fast road is away.
fn start_relay(
    config: &Config,
    links: &[LinkInfo],
    snapshot: &Arc<Snapshot>,
    publisher: &mut Publisher,
    failures: &Passive,
    road: Option<&Road>,
) -> Result<RelayHandle, Failure> {
    // Without a fast road nobody has raised them yet.
    process::raise_limits();
    let mut relay = convert::relay_config(config, links)?;
    relay.failures = failures.clone();
    tracing::info!(
        workers = relay.workers,
        connections = relay.connections,
        "relay: more connections are reset"
    );
    let hooks = road.map_or_else(Hooks::default, |road| hooks(road.steering.kernel_flows()));
    RelayHandle::start(&relay, snapshot, publisher, hooks).map_err(Failure::refused)
}

/// Connections of the relay are entered in the kernel map, also those that came while steering let everything pass.
fn hooks(flows: KernelFlows) -> Hooks {
    Hooks {
        opened: Box::new(move |from, to| {
            if let Err(error) = flows.insert(from, to, clock::monotonic_ns()) {
                tracing::debug!(%error, "kernel map");
            }
        }),
        // The entry stays for retransmissions; the worker's record, or the map's own order, ends it.
        closed: Box::new(|_, _| {}),
    }
}
