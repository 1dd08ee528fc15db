//! The parts of a running gateway, started in order and stopped in the reverse one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use tokio::sync::mpsc::Receiver;
use weir_core::fib::Fib;
use weir_core::ids::PortId;
use weir_core::policy::Policy;
use weir_dataplane::gateway::{Dataplane, PortState};
use weir_dataplane::punt::Punt;
use weir_dataplane::questions::Questions;
use weir_dataplane::relay::{Hooks, RelayHandle};
use weir_dataplane::snapshot::{Publisher, Snapshot};
use weir_sys::steering::{self, KernelFlows, Sizes, Steering};
use weir_sys::tun::Tun;
use weir_sys::{clock, process};

use super::convert;
use super::repair::Repair;
use crate::admin::repairs::Repairs;
use crate::admin::state::{Part, State};
use crate::config::{Config, Fail, Mode, Pool};
use crate::exit::Failure;
use crate::health::{self, Board, Passive};
use crate::host::picture::OwnAddresses;
use crate::host::watch::{HostEvent, Options, PortChange, Watch};
use crate::host::{self, Host, HostSpec, LinkInfo, Paths};
use crate::lists::board;
use crate::lists::watch::{ListWatch, Relisted};
use crate::resolve;

/// A heartbeat older than this, and steering lets everything pass. Longer than a busy machine keeps a worker waiting, since
/// what passes by is not inspected; a process that dies takes its program with it, and nobody waits for this.
const HEARTBEAT_LIMIT: Duration = Duration::from_millis(200);
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
    tell: Tell,
    repair: Repair,
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
        let links = links(config, host).await?;
        let policy = Arc::new(config.compile(FIRST_EPOCH));
        let fast = convert::has_fast_road(config);
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
        let fib = view.fib;
        let snapshot = Arc::new(Snapshot { policy: policy.clone(), fib: fib.clone() });
        let mut publisher = Publisher::new();
        let tell = Tell::new()?;
        let relay = start_relay(config, &links, &snapshot, &mut publisher, &tell, road.as_ref())?;
        let dataplane = match &mut road {
            Some(road) => Some(road.start(config, &links, &snapshot, &mut publisher, &tell)?),
            None => None,
        };
        let mut lasting = applied.warnings;
        lasting
            .extend(dataplane.iter().flat_map(|plane| plane.ports().iter().filter_map(short_of_zero_copy)));
        for warning in lasting.iter().chain(&view.warnings) {
            tracing::warn!("{warning}");
        }
        let tuns = road.as_ref().map(|road| road.tuns.clone()).unwrap_or_default();
        let repairs = Arc::<Repairs>::default();
        let state = state(config, dataplane, relay, road, repairs.clone(), (lasting, view.warnings));
        let pools = config.pools.clone();
        let state = Arc::new(state);
        let lists = ListWatch::start(config, state.lists.clone())
            .map_err(|error| Failure::refused(format!("lists cannot be followed: {error}")))?;
        let repair = Repair::new(repairs, tuns);
        Ok(Self { state, events, lists, spec, policy, fib, publisher, pools, tell, repair, _watch: watch })
    }

    /// Watches the servers of the pools until it is dropped.
    pub fn watch_pools(&self) -> impl Future<Output = ()> + use<> {
        let (pools, board, failures) =
            (self.pools.clone(), self.state.health.clone(), self.tell.failures.clone());
        async move { health::run(&pools, board, failures).await }
    }

    /// Answers what workers and relay ask about names until it is dropped.
    pub fn resolve_names(&self) -> impl Future<Output = ()> + use<> {
        resolve::run(self.tell.questions.clone(), self.state.clone())
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
            HostEvent::Port { device, change, .. } => self.port_changed(device, &change),
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

    /// Steering passes frames for another station by: it must know the port's address.
    fn tell_mac(&self, link: &LinkInfo) {
        let Ok(steering) = self.state.steering.lock() else { return };
        if let (Some(mac), Some(steering)) = (link.mac, steering.as_ref())
            && let Err(error) = steering.set_mac(link.ifindex, mac)
        {
            tracing::error!(device = link.name, %error, "frames to the port's new address pass by");
        }
    }

    fn port_changed(&mut self, device: String, change: &PortChange) {
        log_port(&device, change);
        match change {
            PortChange::Removed => {
                self.spec.ports.retain(|port| *port != device);
                if let Ok(mut lost) = self.state.lost.lock() {
                    lost.insert(device);
                }
            }
            PortChange::Changed(link) => self.tell_mac(link),
            // A device of the same name is another one: nothing of weir's is on it.
            PortChange::Appeared(_) if !self.spec.ports.contains(&device) => self.spec.ports.push(device),
            _ => {}
        }
    }

    /// When [`Self::look_after`] wants to be called.
    pub fn next_look(&self) -> Instant {
        self.repair.due()
    }

    /// Puts back what somebody changed without the kernel announcing it, and what has its turn.
    pub async fn look_after(&mut self, host: &Host) {
        self.repair.look(host, &self.spec, &self.state.steering).await;
    }

    /// Stops everything: first nothing is redirected any more, then workers and relay end. Whoever still asks for the
    /// state does not keep them.
    pub fn stop(self) {
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

/// How workers and relay tell control what they find, and ask it.
#[derive(Debug)]
struct Tell {
    failures: Passive,
    questions: Arc<Questions>,
}

impl Tell {
    fn new() -> Result<Self, Failure> {
        let questions = Questions::new().map_err(Failure::refused)?;
        Ok(Self { failures: Arc::new(ArrayQueue::new(convert::FAILURES)), questions })
    }
}

/// What can be asked, of parts that have just started; the warnings are those that last, and those of now.
fn state(
    config: &Config,
    dataplane: Option<Dataplane>,
    relay: RelayHandle,
    road: Option<Road>,
    repairs: Arc<Repairs>,
    (lasting_warnings, warnings): (Vec<String>, Vec<String>),
) -> State {
    State {
        started: Instant::now(),
        config: config.file.display().to_string(),
        epoch: AtomicU32::new(FIRST_EPOCH),
        dataplane: Part::new(dataplane),
        relay: Part::new(Some(relay)),
        attached: road.as_ref().map(|road| road.attached.clone()).unwrap_or_default(),
        steering: Mutex::new(road.map(|road| road.steering)),
        repairs,
        health: Arc::new(Board::new(&config.pools)),
        lists: Arc::new(board::Board::new(&config.lists)),
        lasting_warnings,
        lost: Mutex::default(),
        warnings: Mutex::new(warnings),
    }
}

/// What the fast road needs besides the workers.
struct Road {
    steering: Steering,
    attached: Vec<(String, &'static str)>,
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
        let mut attached = Vec::new();
        for ((port, link), number) in config.ports.iter().zip(links).zip(0..) {
            let mode = convert::attach_mode(port.mode);
            steering.set_port(link.ifindex, number).map_err(Failure::refused)?;
            if let Some(mac) = link.mac {
                steering.set_mac(link.ifindex, mac).map_err(Failure::refused)?;
            }
            let got = steering.attach(&port.device, link.ifindex, mode).map_err(Failure::refused)?;
            tracing::info!(device = port.device, mode = got.name(), "XDP attached");
            attached.push((port.device.clone(), got.name()));
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
        tell: &Tell,
    ) -> Result<Dataplane, Failure> {
        let mut spec = convert::dataplane_spec(config, links)?;
        spec.failures = tell.failures.clone();
        spec.questions = Some(tell.questions.clone());
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

fn set_limits(steering: &Steering, closed: bool) -> Result<(), Failure> {
    let limit = u64::try_from(HEARTBEAT_LIMIT.as_nanos()).unwrap_or(u64::MAX);
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

fn log_port(device: &str, change: &PortChange) {
    match change {
        PortChange::Removed => {
            tracing::warn!(device, "the device is gone; its traffic takes the kernel road")
        }
        PortChange::Down => tracing::warn!(device, "link down"),
        PortChange::Up => tracing::info!(device, "link up"),
        PortChange::Appeared(_) => {
            tracing::warn!(
                device,
                "the device is back; restart weir, so that its traffic takes the fast road"
            )
        }
        PortChange::Changed(_) => tracing::info!(device, "the device has changed"),
    }
}

async fn links(config: &Config, host: &Host) -> Result<Vec<LinkInfo>, Failure> {
    let mut links = Vec::new();
    for port in &config.ports {
        let link = host.link_info(&port.device).await;
        links.push(link.map_err(|error| Failure::refused(format!("{}: {error}", port.origin)))?);
    }
    Ok(links)
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
    tell: &Tell,
    road: Option<&Road>,
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
