//! The devices of the ports while weir runs: one that goes, one of its name that comes (and may be of another kind, size or
//! driver), one whose address or MTU changes, one that becomes a bridge's.
//!
//! A port without a fit device is on the kernel road, and that is told: in the log, in `weir status`, in the metrics. What is
//! in the way is tried again with every change of the device, and once a second.

use std::path::PathBuf;

use weir_core::ids::PortId;
use weir_dataplane::gateway::PortState;
use weir_sys::ethtool;
use weir_sys::steering::Steering;

use super::convert;
use super::lanes::Candidate;
use crate::admin::state::State;
use crate::config::{Config, Port, Queues};
use crate::exit::Failure;
use crate::host::LinkInfo;
use crate::host::watch::PortChange;

/// How a port stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// On the fast road, or on no road that has to do with XDP.
    Well,
    Gone,
    /// There is a device again, and something is in the way.
    Returning,
    /// It has program and sockets, and is left to the kernel: its packets do not fit the frames, or another device takes them.
    Aside,
}

/// One port, and its device as it was seen last.
#[derive(Debug)]
struct Known {
    port: Port,
    link: LinkInfo,
    /// Why the device can be no port.
    unfit: Option<String>,
    place: Place,
    /// Queues that no worker reads: the device had not got them when its sockets were opened.
    unread: Vec<u32>,
}

/// All ports.
#[derive(Debug)]
pub struct Ports {
    known: Vec<Known>,
    /// Without it no device has a program or sockets.
    fast: bool,
    /// Where links are pinned: on a box that fails closed, and for the express lane.
    pins: Option<PathBuf>,
}

impl Ports {
    /// All are well. `links`: the device of each.
    pub fn new(config: &Config, links: &[LinkInfo], pins: Option<PathBuf>) -> Self {
        let known = |(port, link): (&Port, &LinkInfo)| Known {
            port: port.clone(),
            link: link.clone(),
            unfit: None,
            place: Place::Well,
            unread: Vec::new(),
        };
        let known = config.ports.iter().zip(links).map(known).collect();
        Self { known, fast: convert::has_fast_road(config), pins }
    }

    /// From now on links are pinned there, too, of devices that come back.
    pub fn pin(&mut self, pins: PathBuf) {
        self.pins = Some(pins);
    }

    pub const fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// Those that the express lane may have, with what their sockets got.
    pub fn candidates(&self, states: &[PortState]) -> Vec<Candidate> {
        let candidate = |(port, (known, state)): (PortId, (&Known, &PortState))| {
            let (link, device) = (&known.link, &known.port.device);
            (known.place == Place::Well && link.up).then_some(())?;
            Some(Candidate {
                port,
                device: device.clone(),
                ifindex: link.ifindex,
                mac: link.mac?,
                partial_checksums: convert::may_send_partial_checksums(device),
                zero_copy: state.zero_copy,
            })
        };
        (0..).map(PortId).zip(self.known.iter().zip(states)).filter_map(candidate).collect()
    }

    /// Does what a change of a port's device asks for.
    pub fn changed(&mut self, port: PortId, change: &PortChange, state: &State) {
        let at = usize::from(port.0);
        let Some(known) = self.known.get_mut(at) else { return };
        let device = known.port.device.clone();
        match change {
            PortChange::Removed => {
                tracing::warn!(device, "the device is gone; its traffic takes the kernel road");
                state.set_lost(&device, Some("went away: its traffic takes the kernel road".to_owned()));
                known.place = Place::Gone;
                self.forget(at, state);
            }
            PortChange::Appeared { link, unfit } => {
                known.link = link.clone();
                known.unfit.clone_from(unfit);
                known.place = Place::Returning;
                self.bring_back(at, state);
            }
            PortChange::Up => {
                tracing::info!(device, "link up");
                known.link.up = true;
                self.bring_back(at, state);
            }
            PortChange::Down => {
                tracing::warn!(device, "link down");
                known.link.up = false;
            }
            PortChange::Changed(link) => {
                tracing::info!(device, mtu = link.mtu, "the device has changed");
                known.link = link.clone();
                self.tell_address(at, state);
                self.bring_back(at, state);
                self.judge(at, state);
            }
            PortChange::Fitness(unfit) => {
                known.unfit.clone_from(unfit);
                self.bring_back(at, state);
                self.judge(at, state);
            }
        }
    }

    /// Tries again what was in the way.
    pub fn look(&mut self, state: &State) {
        for at in 0..self.known.len() {
            self.bring_back(at, state);
            self.count_queues(at, state);
        }
    }

    /// Of queues that come while weir runs nobody is told (`ethtool -L`).
    fn count_queues(&mut self, at: usize, state: &State) {
        let all = |known: &&mut Known| known.place == Place::Well && known.port.queues == Queues::All;
        let Some(known) = self.known.get_mut(at).filter(all).filter(|_| self.fast) else { return };
        let device = &known.port.device;
        let plane = state.dataplane.ask();
        let Some(port) = plane.as_ref().and_then(|plane| plane.ports().get(at)) else { return };
        let Ok(channels) = ethtool::channels_of(device) else { return };
        let read = |queue: &u32| port.queues.contains(queue);
        let unread: Vec<u32> = (0..channels.receiving()).filter(|queue| !read(queue)).collect();
        if unread == known.unread {
            return;
        }
        match unread.is_empty() {
            true => tracing::info!(device, "every queue is read again"),
            false => tracing::warn!(
                device,
                queues = ?unread,
                "queues that came after weir started have no worker: what comes by them takes the kernel road. Start weir again, or \
                 take them back (ethtool -L)"
            ),
        }
        known.unread = unread;
    }

    /// Takes the device that has gone out of steering.
    fn forget(&self, at: usize, state: &State) {
        let Some(Known { link, .. }) = self.known.get(at) else { return };
        with_steering(state, |steering| {
            if let Err(error) = steering.detach(link.ifindex) {
                tracing::debug!(%error, "of a device that is gone");
            }
        });
    }

    /// Steering passes frames for another station by: it must know the port's address.
    fn tell_address(&self, at: usize, state: &State) {
        let Some(Known { link, .. }) = self.known.get(at) else { return };
        with_steering(state, |steering| {
            if let Some(mac) = link.mac
                && let Err(error) = steering.set_mac(link.ifindex, mac)
            {
                tracing::error!(device = link.name, %error, "frames to the port's new address pass by");
            }
        });
    }

    fn bring_back(&mut self, at: usize, state: &State) {
        let Some(known) = self.known.get(at).filter(|known| known.place == Place::Returning) else { return };
        let device = known.port.device.clone();
        if !self.fast {
            tracing::info!(device, "the device is back");
            state.set_lost(&device, None);
        } else if let Err(failure) = self.reopen(at, known, state) {
            let why = format!("is back, and is not on the fast road yet: {}", failure.message);
            if state.set_lost(&device, Some(why.clone())) {
                tracing::warn!("device {device} {why}");
            }
            return;
        } else {
            tracing::info!(device, "the device is back, and on the fast road again");
            state.set_lost(&device, None);
        }
        if let Some(known) = self.known.get_mut(at) {
            known.place = Place::Well;
        }
        self.judge(at, state);
    }

    /// Puts the program on a new device, and opens its sockets.
    fn reopen(&self, at: usize, known: &Known, state: &State) -> Result<(), Failure> {
        let Known { port, link, unfit, .. } = known;
        if let Some(why) = unfit {
            return Err(Failure::refused(why));
        }
        let number = u32::try_from(at).unwrap_or(u32::MAX);
        let mut steering = state.steering.lock().map_err(Failure::refused)?;
        let Some(steering) = steering.as_mut() else { return Ok(()) };
        if !steering.attached().any(|(_, index)| index == link.ifindex) {
            if let Some(mac) = link.mac {
                steering.set_mac(link.ifindex, mac).map_err(Failure::refused)?;
            }
            if self.pins.is_some() {
                // A closed box drops what finds no socket. An open one forwards: the sockets of the device before are dead, and
                // what is sent to them is lost.
                steering.set_port(link.ifindex, number).map_err(Failure::refused)?;
            }
            let mode = steering.attach(&port.device, link.ifindex, convert::attach_mode(port.mode));
            let mode = mode.map_err(Failure::refused)?;
            tracing::info!(device = port.device, mode = mode.name(), "XDP attached");
            state.set_attached(&port.device, mode.name());
            if let Some(pins) = &self.pins {
                steering.pin(pins).map_err(Failure::refused)?;
            }
        }
        if !link.up {
            return Err(Failure::refused(format!("it is down: ip link set {} up", port.device)));
        }
        let spec = convert::port_spec(port, link)?;
        if let Some(plane) = state.dataplane.ask().as_ref() {
            plane.reopen(PortId(at as u8), &spec, steering).map_err(Failure::refused)?;
        }
        steering.set_port(link.ifindex, number).map_err(Failure::refused)
    }

    /// A port that another device has taken, or whose packets do not fit the frames any more, is left to the kernel until that
    /// is over.
    fn judge(&mut self, at: usize, state: &State) {
        let Some(known) = self.known.get_mut(at).filter(|_| self.fast) else { return };
        let device = known.port.device.clone();
        let ifindex = known.link.ifindex;
        match (obstacle(known, state), &known.place) {
            (Some(why), Place::Well | Place::Aside) => {
                if state.set_lost(&device, Some(why.clone())) {
                    tracing::warn!("device {device} {why}");
                }
                with_steering(state, |steering| {
                    if let Err(error) = steering.unset_port(ifindex) {
                        tracing::error!(device, %error, "steering still gives the port's packets to workers");
                    }
                });
                known.place = Place::Aside;
            }
            (None, Place::Aside) => {
                tracing::info!(device, "nothing is in the way any more: the port is on the fast road");
                state.set_lost(&device, None);
                let number = u32::try_from(at).unwrap_or(u32::MAX);
                with_steering(state, |steering| {
                    if let Err(error) = steering.set_port(ifindex, number) {
                        tracing::error!(device, %error, "steering leaves the port to the kernel");
                    }
                });
                known.place = Place::Well;
            }
            _ => {}
        }
    }
}

/// Why a port that has program and sockets cannot use them now.
fn obstacle(known: &Known, state: &State) -> Option<String> {
    if let Some(why) = &known.unfit {
        return Some(format!("takes the kernel road: {why}"));
    }
    let plane = state.dataplane.ask();
    let device = &known.port.device;
    let error = plane.as_ref()?.check_mtu(device, known.link.mtu, convert::buffer_grain(device)).err()?;
    Some(format!("has packets that do not fit, and takes the kernel road: {error}; or start weir again"))
}

fn with_steering(state: &State, work: impl FnOnce(&mut Steering)) {
    if let Ok(mut steering) = state.steering.lock()
        && let Some(steering) = steering.as_mut()
    {
        work(steering);
    }
}
