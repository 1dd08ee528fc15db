//! The fast road's own parts: the steering program on the ports, the ways into the kernel, and the workers.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use weir_core::express::Adopted;
use weir_core::fib::Fib;
use weir_core::policy::Policy;
use weir_dataplane::express::{Legacy, Ways, adopt};
use weir_dataplane::gateway::Dataplane;
use weir_dataplane::heartbeat;
use weir_dataplane::punt::Punt;
use weir_dataplane::relay::Hooks;
use weir_dataplane::snapshot::{Publisher, Snapshot};
use weir_sys::clock;
use weir_sys::steering::{self, FormerLane, KernelFlows, Left, Sizes, Steering, SteeringError};
use weir_sys::tun::Tun;

use super::convert;
use super::handover::Inherited;
use super::lanes::LaneKeeper;
use super::parts::Tell;
use super::steer::tell_own;
use super::vlans::VlanList;
use crate::config::{Config, Fail};
use crate::exit::Failure;
use crate::host::picture::OwnAddresses;
use crate::host::{self, LinkInfo, Paths};

/// How long the first heartbeat may take.
const FIRST_BEAT: Duration = Duration::from_secs(5);

/// What the fast road needs besides the workers.
pub struct Road {
    pub steering: Steering,
    pub attached: BTreeMap<String, &'static str>,
    pub tuns: Vec<Arc<Tun>>,
    /// The express lane, where the configuration has one.
    pub ways: Option<Arc<Ways>>,
    pub pins: Pins,
    punt: Punt,
}

/// What becomes of pins when nothing of a start can fail any more. Until then all are there that a process before has left, which may
/// have to go on with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pins {
    /// There are none.
    None,
    /// This process's are to outlive it; others go: of devices that are no ports any more, of a lane that the configuration has not got.
    Kept,
    /// All go: the box fails open and has no express lane, or has no fast road.
    Removed,
}

impl Pins {
    /// Where this process's are.
    pub fn folder(self, folder: &Path) -> Option<PathBuf> {
        (self == Self::Kept).then(|| folder.to_owned())
    }

    /// Does that.
    pub fn settle(self, steering: Option<&mut Steering>, folder: &Path) -> Result<(), SteeringError> {
        let has_lane = steering.as_ref().is_some_and(|steering| steering.express().capacity() > 0);
        if self != Self::None && !has_lane && steering::holds_lane(folder) {
            tracing::warn!(
                "express lane: there is none any more; of the connections that were in it, those that are translated end, and the \
                 others are the kernel's"
            );
        }
        match (self, steering) {
            (Self::None, _) | (Self::Kept, None) => {}
            (Self::Kept, Some(steering)) => {
                for pin in steering.unpin_others(folder)? {
                    if steering::is_lane(&pin) {
                        tracing::warn!(
                            "express lane: that of another version of weir is gone; of the connections that were in it, those that \
                             are translated end, and the others are the kernel's"
                        );
                    }
                    tracing::info!(pin = %pin.display(), "removed: of what the configuration has no more");
                }
            }
            (Self::Removed, Some(steering)) => steering.unpin()?,
            (Self::Removed, None) => drop(steering::unpin(folder)?),
        }
        Ok(())
    }
}

/// What an earlier process left of the fast road, to be taken over.
#[derive(Debug, Default)]
pub struct Found {
    /// The program and the kernel flows are pinned.
    is_pinned: bool,
    tuns: Vec<Arc<Tun>>,
}

impl Found {
    /// From the process whose place this one takes; nothing where there is none.
    pub fn of(inherited: Option<&Inherited>, paths: &Paths) -> Result<Self, Failure> {
        let Some(inherited) = inherited else { return Ok(Self::default()) };
        let adopt = |(name, fd): &(&'static str, OwnedFd)| {
            let tun = fd.try_clone().and_then(|fd| Tun::adopt(fd, name));
            tun.map(Arc::new).map_err(|error| Failure::refused(format!("the TUN device {name}: {error}")))
        };
        let tuns = inherited.tuns.iter().map(adopt).collect::<Result<_, _>>()?;
        Ok(Self { is_pinned: host::is_pinned(&paths.pins), tuns })
    }

    /// From this process, which has left the road for another.
    pub fn own(tuns: &[Arc<Tun>], paths: &Paths) -> Self {
        Self { is_pinned: host::is_pinned(&paths.pins), tuns: tuns.to_vec() }
    }

    fn tun(&self, name: &str) -> Result<Arc<Tun>, Failure> {
        match self.tuns.iter().find(|tun| tun.name() == name) {
            Some(found) => Ok(found.clone()),
            None => tun(name).map(Arc::new),
        }
    }
}

impl Road {
    /// Loads the steering program, tells it what is the box's own, what is intercepted and where the
    /// pools' servers are, and puts it on the ports:
    /// everything passes; or, on a box that fails closed, what is intercepted is dropped, and the program takes the place
    /// of the one that a crash left there. Makes the ways into the kernel.
    pub fn attach(
        config: &Config,
        links: &[LinkInfo],
        paths: &Paths,
        policy: &Policy,
        (own, vlans): (&OwnAddresses, &VlanList),
        found: &Found,
    ) -> Result<Self, Failure> {
        let closed = config.gateway.fail == Fail::Closed;
        let express_flows = convert::express_flows(config);
        let is_pinned = closed || found.is_pinned || express_flows > 0 && host::is_pinned(&paths.pins);
        let adopt_from = is_pinned.then(|| paths.pins.clone());
        let sizes = Sizes { kernel_flows: convert::kernel_flows(config), express_flows, adopt: adopt_from };
        let mut steering = Steering::load(&sizes).map_err(Failure::refused)?;
        let exempt = tell_own(&mut steering, own)?;
        steering.set_vlans(&convert::vlan_places(vlans)).map_err(Failure::refused)?;
        steering.set_intercepts(&convert::intercept_table(policy, &exempt)).map_err(Failure::refused)?;
        steering.set_pool_servers(&convert::pool_servers(config)).map_err(Failure::refused)?;
        if closed {
            // There is no heartbeat yet.
            set_limits(&steering, config)?;
        }
        let former = tie_former_lanes(&mut steering)?;
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
        if is_pinned {
            steering.pin(&paths.pins).map_err(Failure::refused)?;
        }
        let (relay, forward) = (found.tun(host::RELAY_TUN)?, found.tun(host::PUNT_TUN)?);
        let tuns = vec![relay.clone(), forward.clone()];
        let punt = Punt::new(relay, forward, steering.kernel_flows());
        let ways = (express_flows > 0).then(|| Arc::new(Ways::new(steering.express(), former)));
        let pins = match is_pinned {
            true if closed || ways.is_some() => Pins::Kept,
            true => Pins::Removed,
            false => Pins::None,
        };
        Ok(Self { steering, attached, tuns, ways, pins, punt })
    }

    /// Who keeps the express lane's ports, where there is a lane.
    pub fn lanes(&self, config: &Config) -> Option<LaneKeeper> {
        self.ways.clone().map(|ways| LaneKeeper::new(ways, config.workers.express))
    }

    /// Connections that the express lane has gone on carrying since a weir before let them in.
    pub fn legacy(&self, fib: &Arc<Fib>) -> Result<Legacy, Failure> {
        let Some(ways) = &self.ways else { return Ok(Legacy::default()) };
        ways.follow(fib);
        let legacy = adopt(ways).map_err(|error| {
            Failure::refused(format!(
                "the express lane that an earlier weir left cannot be read: {error}; weir clean removes it"
            ))
        })?;
        if ways.express().is_adopted() {
            tracing::info!(connections = legacy.flows.len(), "express lane: taken over from an earlier weir");
        }
        if !ways.former().lanes().is_empty() {
            let Left { flows, translated } = ways.former().left();
            tracing::warn!(
                connections = flows,
                translated,
                "express lane: connections that another version of weir has left go on in its own program until they end"
            );
        }
        Ok(legacy)
    }

    /// Starts the workers and, once all of them breathe, lets steering redirect. `adopted`: of [`Road::legacy`].
    pub fn start(
        &mut self,
        config: &Config,
        links: &[LinkInfo],
        (snapshot, adopted): (&Snapshot, Vec<Adopted>),
        publisher: &mut Publisher,
        tell: &Tell,
    ) -> Result<Dataplane, Failure> {
        let mut spec = convert::dataplane_spec(config, links)?;
        spec.failures = tell.failures.clone();
        spec.questions = Some(tell.questions.clone());
        spec.express = self.ways.clone();
        spec.adopted = adopted.into();
        let dataplane = Dataplane::start(&spec, &self.steering, &self.punt, publisher, snapshot)
            .map_err(Failure::refused)?;
        for port in dataplane.ports() {
            let copy = if port.zero_copy { "zero-copy" } else { "copy" };
            tracing::info!(device = port.device, asked = port.asked, got = copy, queues = ?port.queues, "AF_XDP");
        }
        dataplane.wait_for_heartbeat(FIRST_BEAT).map_err(Failure::refused)?;
        set_limits(&self.steering, config)?;
        if self.ways.is_some() {
            self.steering.express().enable(true).map_err(Failure::refused)?;
        }
        // Since the lane was read it has carried on by itself until now.
        dataplane.catch_up();
        Ok(dataplane)
    }
}

/// What a weir of another version has left in its lane goes on behind this one's.
fn tie_former_lanes(steering: &mut Steering) -> Result<Vec<FormerLane>, Failure> {
    let (lanes, refused) = steering.tie_former_lanes().map_err(Failure::refused)?;
    for (layout, reason) in refused {
        tracing::warn!(layout, reason, "express lane: that of another version of weir cannot be carried on");
    }
    Ok(lanes)
}

fn set_limits(steering: &Steering, config: &Config) -> Result<(), Failure> {
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let closed = config.gateway.fail == Fail::Closed;
    steering.set_doubt(ns(heartbeat::DOUBT)).map_err(Failure::refused)?;
    steering.set_limits(ns(config.gateway.heartbeat), closed).map_err(Failure::refused)
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

/// Connections of the relay are entered in the kernel map, also those that came while steering let everything pass.
pub fn hooks(flows: KernelFlows) -> Hooks {
    Hooks {
        opened: Box::new(move |from, to| {
            if let Err(error) = flows.keep(from, to, clock::monotonic_ns(), true) {
                tracing::debug!(%error, "kernel map");
            }
        }),
        // The entry stays for retransmissions; the worker's record, or the map's own order, ends it.
        closed: Box::new(|_, _| {}),
    }
}
