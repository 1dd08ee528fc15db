//! What the running gateway tells about itself.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use weir_core::drop::{DropReason, PuntReason};
use weir_core::policy::ServerState;
use weir_core::reevaluate::Tally;
use weir_core::verify::Answer;
use weir_core::view::FlowView;
use weir_dataplane::gateway::{Dataplane, PortState};
use weir_dataplane::heartbeat::Stalls;
use weir_dataplane::questions::Asker;
use weir_dataplane::relay::{Counters, RelayFlow, RelayHandle};
use weir_sys::steering::{Left, Steering};

use self::counts::{counts, totals};
use super::listing::{Incomplete, Listing, PATIENCE};
use super::part::Part;
use super::repairs::{Contested, Repairs};
use crate::health::{Board, PoolView};
use crate::lists::Stamp;
use crate::lists::board::{self as lists, ListView};
use crate::resolve::Book;

mod counts;

/// The parts that can be asked. Answers may take seconds: they are not for the event loop, but for
/// [`State::is_running`].
#[derive(Debug)]
pub struct State {
    pub started: Instant,
    pub config: String,
    /// When the file in force was read.
    pub config_read: Mutex<Instant>,
    /// And what that file was; none where there was no regular file.
    pub config_stamp: Mutex<Option<Stamp>>,
    /// The number of the rules in force.
    pub epoch: AtomicU32,
    pub dataplane: Part<Dataplane>,
    pub relay: Part<RelayHandle>,
    /// Nothing new is taken any more: the end is near.
    pub drains: AtomicBool,
    /// Another process is about to have this one's place.
    pub gives: AtomicBool,
    /// What could not be had back from such a process that has failed.
    pub lack: Mutex<Option<String>>,
    pub steering: Mutex<Option<Steering>>,
    /// Which servers of the pools are up.
    pub health: Arc<Board>,
    /// The lists of rules.
    pub lists: Arc<lists::Board>,
    /// What is known of names (`verify_host`).
    pub names: Mutex<Book>,
    /// What other versions of weir have left in their express lanes.
    pub former: Mutex<Left>,
    /// What somebody removed, and weir put back.
    pub repairs: Arc<Repairs>,
    /// How the steering program sits on each port.
    pub attached: Mutex<BTreeMap<String, &'static str>>,
    /// Devices whose traffic takes the kernel road although they are ports of the fast road, and why.
    pub lost: Mutex<BTreeMap<String, String>>,
    /// Found at the start; they hold as long as the process.
    pub lasting_warnings: Vec<String>,
    /// Those of the host as it is now.
    pub warnings: Mutex<Vec<String>>,
}

/// One named number and what it means.
#[derive(Clone, Debug, Serialize)]
pub struct Count {
    pub name: &'static str,
    pub count: u64,
    pub meaning: &'static str,
}

/// Frames of the memory area. `free` is all that no packet is in.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Frames {
    pub total: u64,
    pub free: u64,
    pub held: u64,
    pub sending: u64,
    /// Frames that went out of scope without being given back: always 0.
    pub lost: u64,
}

/// One port.
#[derive(Clone, Debug, Serialize)]
pub struct PortStatus {
    #[serde(flatten)]
    pub state: PortState,
    /// `native` or `generic`; `none` where the device has gone.
    pub xdp: &'static str,
    /// The device went away, or cannot be used now: its traffic takes the kernel road until it can.
    pub lost: bool,
    pub rx_packets: u64,
    pub tx_packets: u64,
}

/// Packets that the steering program has sent on itself, and given to workers.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LanePackets {
    pub express: u64,
    pub worker: u64,
}

impl LanePackets {
    fn of(steering: &[Count]) -> Self {
        let sum = |is: fn(&str) -> bool| steering.iter().filter(|c| is(c.name)).map(|c| c.count).sum();
        Self {
            express: sum(|name| matches!(name, "express" | "express_alone")),
            worker: sum(|name| name.starts_with("redirect")),
        }
    }
}

/// The answer to `weir status`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub pid: u32,
    pub version: &'static str,
    pub config: String,
    /// Seconds since the file in force was read: by the start, or by a reload.
    pub config_read_s: u64,
    /// What that file was, to tell whether it is the same still; none where it was no regular one.
    pub config_stamp: Option<Stamp>,
    pub epoch: u32,
    pub uptime_s: u64,
    pub healthy: bool,
    /// Why it is not; empty while it is.
    pub unhealthy: Vec<String>,
    pub workers: usize,
    pub ports: Vec<PortStatus>,
    pub pools: Vec<PoolView>,
    pub lists: Vec<ListView>,
    pub frames: Frames,
    pub flows_fast: u64,
    /// Of these, those that the express lane carries.
    pub flows_express: u64,
    /// And those that their workers carry, and the lane when there is no worker.
    pub flows_standby: u64,
    /// Besides, those that another version of weir has left in its own express lane, until they end.
    pub flows_former: u64,
    /// Packets of the fast road by who carried them.
    pub lanes: LanePackets,
    pub flows_kernel: u64,
    pub flows_relay: u64,
    pub flows: Vec<Count>,
    pub drops: Vec<Count>,
    pub punts: Vec<Count>,
    pub steering: Vec<Count>,
    pub relay: Vec<Count>,
    pub repairs: Vec<Count>,
    /// How often the kernel's side was compared with what is wanted.
    pub repair_rounds: u64,
    /// What is missing now, or somebody keeps removing.
    pub contested: Vec<Contested>,
    pub warnings: Vec<String>,
}

impl State {
    /// Whether every thread of the dataplane and the relay runs.
    pub fn is_running(&self) -> bool {
        // Threads of the relay that drains end when they have nothing to do.
        self.dataplane.ask().as_ref().is_none_or(Dataplane::is_alive)
            && (self.drains.load(Ordering::Relaxed)
                || self.relay.ask().as_ref().is_some_and(RelayHandle::is_alive))
    }

    /// Whether another process is about to have this one's place.
    pub fn set_gives(&self, gives: bool) {
        self.gives.store(gives, Ordering::Relaxed);
    }

    /// Why no other configuration can be put in force.
    pub fn refusal(&self) -> Option<&'static str> {
        if self.drains.load(Ordering::Relaxed) {
            return Some("weir drains, and takes no other configuration any more");
        }
        let gives = self.gives.load(Ordering::Relaxed);
        gives.then_some("another process is about to take weir's place: reload when it has, or has failed")
    }

    /// What could not be had back from a process that has failed. Whether that is news.
    pub fn set_lack(&self, why: Option<String>) -> bool {
        let mut lack = self.lack.lock().unwrap_or_else(PoisonError::into_inner);
        let differs = *lack != why;
        *lack = why;
        differs
    }

    fn lack(&self) -> Option<String> {
        let lack = self.lack.lock().unwrap_or_else(PoisonError::into_inner);
        lack.as_ref().map(|why| {
            format!("a process that was to take weir's place has failed, and not all is as before it, the relay serves alone: {why}")
        })
    }

    /// Gives an answer about a name to who asked. Does not wait for workers.
    pub fn answer_host(&self, asker: Asker, answer: Answer) {
        match asker {
            Asker::Worker(worker) => {
                if let Some(plane) = self.dataplane.ask().as_ref() {
                    plane.answer(worker, answer);
                }
            }
            Asker::Relay(thread, key) => {
                if let Some(relay) = self.relay.ask().as_ref() {
                    relay.answer(thread, key, answer);
                }
            }
        }
    }

    pub fn set_former(&self, left: Left) {
        *self.former.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }

    pub fn former(&self) -> Left {
        *self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the operator must see to; nothing when all is well.
    fn unhealthy(&self) -> Vec<String> {
        let ended = (!self.is_running()).then(|| "a thread of weir's ended: it stops".to_owned());
        let gone = |(device, why): (String, String)| format!("device {device} {why}");
        let lack = self.lack();
        ended
            .into_iter()
            .chain(lack)
            .chain(self.lost().into_iter().map(gone))
            .chain(self.repairs.unhealthy())
            .collect()
    }

    pub fn status(&self) -> Status {
        let plane = self.dataplane.ask();
        let plane = plane.as_ref();
        let unhealthy = self.unhealthy();
        let summary = plane.map(Dataplane::summary).unwrap_or_default();
        let gauges = summary.gauges();
        let (total, reservoir) = plane.map_or((0, 0), Dataplane::frames);
        let relay = self.relay.ask().as_ref().map(RelayHandle::counters).unwrap_or_default();
        let steering = self.steering_counts();
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            config: self.config.clone(),
            config_read_s: self.config_read.lock().map_or(0, |read| read.elapsed().as_secs()),
            config_stamp: self.config_stamp.lock().ok().and_then(|stamp| *stamp),
            epoch: self.epoch.load(Ordering::Relaxed),
            uptime_s: self.started.elapsed().as_secs(),
            healthy: unhealthy.is_empty(),
            unhealthy,
            workers: plane.map_or(0, Dataplane::workers),
            ports: self.ports(plane, &summary.ports),
            pools: self.health.views(),
            lists: self.lists.views(),
            frames: Frames {
                total: total as u64,
                free: gauges.frames_pool + gauges.frames_fill + reservoir as u64,
                held: gauges.frames_held,
                sending: gauges.frames_transmit,
                lost: weir_sys::xsk::frames_lost(),
            },
            flows_fast: gauges.flows_fast,
            flows_express: gauges.flows_express,
            flows_standby: gauges.flows_standby,
            flows_former: self.former().flows,
            lanes: LanePackets::of(&steering),
            flows_kernel: gauges.flows_kernel,
            flows_relay: relay.active(),
            flows: totals(&summary.totals(), &gauges),
            drops: counts(DropReason::ALL, &summary.counters.dropped, DropReason::name, DropReason::sentence),
            punts: counts(PuntReason::ALL, &summary.counters.punted, PuntReason::name, PuntReason::sentence),
            steering,
            relay: self.relay_counts(&relay),
            repairs: self.repairs.counts(),
            repair_rounds: self.repairs.rounds(),
            contested: self.repairs.contested(),
            warnings: self.all_warnings(),
        }
    }

    /// Devices that are not on the fast road, and why.
    pub(crate) fn lost(&self) -> BTreeMap<String, String> {
        self.lost.lock().map(|lost| lost.clone()).unwrap_or_default()
    }

    /// Says why a device is not on the fast road, or that it is. Whether that is news.
    pub fn set_lost(&self, device: &str, why: Option<String>) -> bool {
        let Ok(mut lost) = self.lost.lock() else { return false };
        let before = match &why {
            Some(why) => lost.insert(device.to_owned(), why.clone()),
            None => lost.remove(device),
        };
        before != why
    }

    /// Says how the steering program sits on a device.
    pub fn set_attached(&self, device: &str, mode: &'static str) {
        if let Ok(mut attached) = self.attached.lock() {
            attached.insert(device.to_owned(), mode);
        }
    }

    /// How often each part was late with its sign of life: the workers, the relay's threads.
    pub fn stalls(&self) -> [Stalls; 2] {
        [
            self.dataplane.ask().as_ref().map(Dataplane::stalls).unwrap_or_default(),
            self.relay.ask().as_ref().map(RelayHandle::stalls).unwrap_or_default(),
        ]
    }

    fn all_warnings(&self) -> Vec<String> {
        let now = self.warnings.lock().map(|w| w.clone()).unwrap_or_default();
        let pools = self.health.views();
        let without = pools.iter().filter(|pool| !pool.has_server_up()).map(|pool| {
            format!("pool {}: no server is up; connections go to those that are down, or draining", pool.name)
        });
        self.lasting_warnings.iter().cloned().chain(now).chain(without).chain(self.lists.warnings()).collect()
    }

    fn ports(&self, plane: Option<&Dataplane>, counters: &[(u64, u64)]) -> Vec<PortStatus> {
        let states = plane.map(Dataplane::ports).unwrap_or_default();
        let lost = self.lost();
        let attached = self.attached.lock().map(|attached| attached.clone()).unwrap_or_default();
        let port = |(state, (rx, tx)): (&PortState, &(u64, u64))| {
            let lost = lost.contains_key(&state.device);
            let attached = attached.get(&state.device).filter(|_| !lost);
            PortStatus {
                state: state.clone(),
                xdp: attached.copied().unwrap_or("none"),
                lost,
                rx_packets: *rx,
                tx_packets: *tx,
            }
        };
        states.iter().zip(counters).map(port).collect()
    }

    fn steering_counts(&self) -> Vec<Count> {
        let Ok(steering) = self.steering.lock() else { return Vec::new() };
        let Some(steering) = steering.as_ref() else { return Vec::new() };
        let counters = steering.counters().unwrap_or_default();
        let stalls = Count {
            name: "stalls",
            count: self.stalls()[0].count,
            meaning: "Times that a worker was late, and packets passed by until it lived again.",
        };
        let counters =
            counters.iter().map(|(o, count)| Count { name: o.name(), count, meaning: o.sentence() });
        counters.chain([stalls]).collect()
    }

    fn relay_counts(&self, counters: &Counters) -> Vec<Count> {
        let passed_by = self.relay.ask().as_ref().map_or(0, RelayHandle::passed_by);
        let late = [
            (
                "passed-by",
                passed_by,
                "New connections that were not taken while a thread of the relay was late: forwarded, or dropped where \
                 `fail = \"closed\"`.",
            ),
            ("stalls", self.stalls()[1].count, "Times that a thread of the relay was late, and lived again."),
        ];
        let late = late.map(|(name, count, meaning)| Count { name, count, meaning });
        let counters =
            counters.iter().map(|(c, count)| Count { name: c.name(), count, meaning: c.sentence() });
        counters.chain(late).collect()
    }

    /// Every flow: those of the workers, and those of the relay. A flow that a worker gave to the relay is one entry,
    /// with the worker's reason for the road and what the relay knows of it.
    pub fn flows(&self) -> Listing {
        let (plane, relay) = (self.dataplane.ask(), self.relay.ask());
        let (flows, workers) = plane.as_ref().map(|plane| plane.flows(PATIENCE)).unwrap_or_default();
        let (relayed, threads) = relay.as_ref().map(|relay| relay.all_flows(PATIENCE)).unwrap_or_default();
        let of_workers = plane.as_ref().map_or(0, Dataplane::workers);
        let of_threads = relay.as_ref().map_or(0, RelayHandle::threads);
        let incomplete = Incomplete::of((workers, of_workers), (threads, of_threads));
        Listing { flows: merge(flows, relayed), incomplete }
    }

    /// Judges all flows again by the rules in force, waiting at most so long; whether all have answered.
    pub fn reevaluate(&self, patience: Duration) -> (Tally, bool) {
        let workers =
            self.dataplane.ask().as_ref().map_or(Some(Tally::default()), |p| p.reevaluate(patience));
        let relay = self.relay.ask().as_ref().map_or(Some(Tally::default()), |r| r.reevaluate(patience));
        let mut sum = workers.unwrap_or_default();
        sum.add(&relay.unwrap_or_default());
        (sum, workers.is_some() && relay.is_some())
    }

    /// How many flows need steering to go on as before the rules in force; `None`: not all workers have answered.
    pub fn leaning(&self, patience: Duration) -> Option<u64> {
        self.dataplane.ask().as_ref().map_or(Some(0), |plane| plane.leaning(patience))
    }

    /// All counters in the Prometheus text format.
    pub fn metrics(&self) -> String {
        let status = self.status();
        let mut text = String::new();
        let gauges = [
            ("weir_flows{road=\"fast\"}", status.flows_fast),
            ("weir_express_flows", status.flows_express),
            ("weir_standby_flows", status.flows_standby),
            ("weir_former_flows", status.flows_former),
            ("weir_lane_packets_total{lane=\"express\"}", status.lanes.express),
            ("weir_lane_packets_total{lane=\"worker\"}", status.lanes.worker),
            ("weir_flows{road=\"kernel\"}", status.flows_kernel),
            ("weir_flows{road=\"relay\"}", status.flows_relay),
            ("weir_frames_total", status.frames.total),
            ("weir_frames_free", status.frames.free),
            ("weir_frames_lost", status.frames.lost),
            ("weir_healthy", u64::from(status.healthy)),
            ("weir_contested", status.contested.iter().filter(|one| one.is_contested).count() as u64),
        ];
        for (name, value) in gauges {
            let _ = writeln!(text, "{name} {value}");
        }
        let families = [
            ("weir_flow_events_total", "event", &status.flows),
            ("weir_drops_total", "reason", &status.drops),
            ("weir_punts_total", "reason", &status.punts),
            ("weir_steering_total", "outcome", &status.steering),
            ("weir_relay_total", "event", &status.relay),
            ("weir_repairs_total", "kind", &status.repairs),
        ];
        let rounds = status.repair_rounds;
        let _ = writeln!(text, "# TYPE weir_repair_rounds_total counter\nweir_repair_rounds_total {rounds}");
        for (family, label, counts) in families {
            let _ = writeln!(text, "# TYPE {family} counter");
            for count in counts {
                let _ = writeln!(text, "{family}{{{label}=\"{}\"}} {}", count.name, count.count);
            }
        }
        for port in &status.ports {
            let device = &port.state.device;
            let _ = writeln!(text, "weir_port_rx_packets_total{{device=\"{device}\"}} {}", port.rx_packets);
            let _ = writeln!(text, "weir_port_tx_packets_total{{device=\"{device}\"}} {}", port.tx_packets);
        }
        for pool in &status.pools {
            for state in [ServerState::Up, ServerState::Down, ServerState::Draining].map(ServerState::name) {
                let servers = pool.servers.iter().filter(|server| server.state == state).count();
                let name = &pool.name;
                let _ = writeln!(text, "weir_pool_servers{{pool=\"{name}\",state=\"{state}\"}} {servers}");
            }
        }
        text + &lists::metrics(&status.lists)
    }
}

/// Puts what the relay knows in the place of what the workers know of the same connection.
fn merge(mut flows: Vec<FlowView>, relayed: Vec<RelayFlow>) -> Vec<FlowView> {
    let mut places = HashMap::new();
    if !relayed.is_empty() {
        for (place, flow) in flows.iter().enumerate() {
            places.entry((flow.client, flow.destination)).or_insert(place);
        }
    }
    for relayed in relayed {
        let place = places.get(&(relayed.client, relayed.destination));
        match place.and_then(|place| flows.get_mut(*place)) {
            Some(flow) => *flow = of_relay(relayed, Some(flow)),
            None => flows.push(of_relay(relayed, None)),
        }
    }
    flows
}

fn of_relay(flow: RelayFlow, given: Option<&FlowView>) -> FlowView {
    FlowView {
        client: flow.client,
        destination: flow.destination,
        port: flow.port,
        vlan: flow.vlan,
        server: flow.server,
        way: None,
        host: flow.host,
        alpn: flow.alpn,
        ech: flow.ech,
        signed: false,
        evidence: flow.evidence,
        standing: flow.standing,
        protocol: flow.protocol,
        host_check: flow.host_check,
        host_known: flow.host_known,
        hello_retry: flow.hello_retry,
        verdict: flow.verdict.or_else(|| given.and_then(|g| g.verdict)),
        epoch: flow.epoch,
        rule: flow.rule.or_else(|| given.and_then(|g| g.rule.clone())),
        road: "relay",
        lane: None,
        lane_reason: None,
        is_in_lane: false,
        stage: flow.state,
        // Of a flow that a worker gave to the relay: why it did. What its name brought about says more.
        reason: match given.filter(|_| !flow.reason.starts_with("host-") && flow.reason != "hello-retry") {
            Some(given) => given.reason.clone(),
            None => flow.reason.to_owned(),
        },
        adopted: false,
        packets_to_server: None,
        packets_to_client: None,
        bytes_to_server: flow.bytes_up,
        bytes_to_client: flow.bytes_down,
        age_ns: flow.age.as_nanos() as u64,
        idle_ns: flow.idle.as_nanos() as u64,
    }
}

#[cfg(test)]
mod tests;
