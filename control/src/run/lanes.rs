//! Between which ports the express lane carries, and between which it stands by.
//!
//! A port is one of the lane's while its device sends on the frames that the XDP program redirects to it. That changes under way: a
//! veth device drops them from the moment on that its peer has neither an XDP program nor GRO. So it is looked at once a second, and
//! what a port that cannot would lose goes to the workers instead.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::spawn_blocking;
use weir_core::express::Lanes;
use weir_core::ids::{Nanos, PortId};
use weir_dataplane::express::{Ways, open_link};
use weir_sys::{clock, xdp_features};

use crate::config::Express;

/// A port as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub port: PortId,
    pub device: String,
    pub ifindex: u32,
    pub mac: [u8; 6],
    /// Its frames may come with checksums that a device was to finish.
    pub partial_checksums: bool,
    /// Every socket of it is zero-copy.
    pub zero_copy: bool,
}

/// Keeps the lane's ports.
#[derive(Debug)]
pub struct LaneKeeper {
    ways: Arc<Ways>,
    mode: Express,
    /// Ports of the lane, as they were opened.
    open: Vec<Candidate>,
    lanes: Lanes,
    /// The last thing that was said of each device.
    told: BTreeMap<String, String>,
}

impl LaneKeeper {
    /// No port is in the lane yet.
    pub fn new(ways: Arc<Ways>, mode: Express) -> Self {
        Self { ways, mode, open: Vec::new(), lanes: Lanes::NONE, told: BTreeMap::new() }
    }

    pub const fn ways(&self) -> &Arc<Ways> {
        &self.ways
    }

    pub const fn lanes(&self) -> Lanes {
        self.lanes
    }

    /// Looks at the ports that there are. Whether the lane carries between others than before.
    pub fn look(&mut self, ports: &[Candidate]) -> bool {
        let able: Vec<&Candidate> = ports.iter().filter(|port| self.sends(port)).collect();
        for gone in self.open.extract_if(.., |open| !able.contains(&&*open)) {
            tracing::info!(device = gone.device, "express lane: closed for this port");
            self.ways.set_link(gone.port, None);
        }
        for port in able {
            if self.open.contains(port) {
                continue;
            }
            match open_link(&self.ways, port.port, port.ifindex, port.mac, port.partial_checksums) {
                Ok(()) => self.open.push(port.clone()),
                Err(error) => self.tell(port, &format!("not in the express lane: {error}")),
            }
        }
        let lanes = between(self.mode, &self.open);
        let changed = lanes != self.lanes;
        if changed {
            let devices: Vec<&str> = self.open.iter().map(|port| port.device.as_str()).collect();
            tracing::info!(?devices, on = !lanes.is_empty(), "express lane");
            self.lanes = lanes;
        }
        changed
    }

    /// Numbers of next hops that no connection names any more are for others, once they run short: called about once a second.
    pub fn free_numbers(&self) {
        if !self.ways.wants_sweep() {
            return;
        }
        let ways = self.ways.clone();
        // The lane may be large.
        drop(spawn_blocking(move || {
            if let Err(error) = ways.free_numbers() {
                tracing::warn!(%error, "express lane: numbers of next hops stay taken");
            }
        }));
    }

    /// Looks after connections of the lane that no worker knows: called about once a second.
    pub fn look_after_strays(&self) {
        if let Err(error) = self.ways.strays().look(self.ways.express(), Nanos(clock::monotonic_ns())) {
            tracing::warn!(%error, "express lane: connections that are over stay in the map");
        }
    }

    /// Looks after what other versions of weir have left in their lanes: called about once a second. Layouts of which nothing is left.
    pub fn look_after_former(&self) -> Vec<u32> {
        if self.ways.former().wants_look() {
            let ways = self.ways.clone();
            // Such a lane may be large, too.
            drop(spawn_blocking(move || ways.former().look()));
        }
        self.ways.former().take_ended()
    }

    /// Whether frames that are redirected to the device leave it.
    fn sends(&mut self, port: &Candidate) -> bool {
        match xdp_features::takes_frames(port.ifindex) {
            Ok(takes) => {
                if !takes && matches!(self.mode, Express::Always | Express::Standby) {
                    self.tell(
                        port,
                        "its driver sends no redirected XDP frames now (of veth: ethtool -K PEER gro on): workers carry what \
                         would leave by it",
                    );
                }
                takes
            }
            Err(error) => {
                let unknown = format!(
                    "the kernel does not say whether it sends redirected XDP frames ({error}; Linux 6.3 does): it is not in the \
                     express lane"
                );
                self.tell(port, &unknown);
                false
            }
        }
    }

    /// Says something of a device once.
    fn tell(&mut self, port: &Candidate, what: &str) {
        if self.told.get(&port.device).is_none_or(|told| told != what) {
            tracing::warn!("device {}: {what}", port.device);
            self.told.insert(port.device.clone(), what.to_owned());
        }
    }
}

/// Between which of these ports the lane carries, and between which it stands by: `auto` leaves those that are zero-copy on both sides to
/// their workers.
fn between(mode: Express, ports: &[Candidate]) -> Lanes {
    let mut lanes = Lanes::NONE;
    for a in ports {
        for b in ports {
            let of = match mode {
                Express::Auto if a.zero_copy && b.zero_copy => &mut lanes.standby,
                Express::Auto | Express::Always => &mut lanes.between,
                Express::Standby => &mut lanes.standby,
                Express::Never => continue,
            };
            if let Some(to) = of.get_mut(usize::from(a.port.0)) {
                to.insert(b.port);
            }
        }
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u8, zero_copy: bool) -> Candidate {
        let device = format!("eth{number}");
        Candidate {
            port: PortId(number),
            device,
            ifindex: 1,
            mac: [0; 6],
            partial_checksums: false,
            zero_copy,
        }
    }

    #[test]
    fn auto_leaves_pairs_that_are_zero_copy_on_both_sides_to_their_workers() {
        let ports = [port(0, true), port(1, false), port(2, true)];
        let carries = |mode, a, b| between(mode, &ports).carry(PortId(a), PortId(b));
        assert!(carries(Express::Auto, 0, 1) && carries(Express::Auto, 1, 2));
        assert!(!carries(Express::Auto, 0, 2) && !carries(Express::Auto, 0, 0));
        assert!(carries(Express::Always, 0, 2) && !carries(Express::Always, 0, 3));
        let stands_by = |mode, a, b| between(mode, &ports).stand_by(PortId(a), PortId(b));
        assert!(stands_by(Express::Auto, 0, 2) && !stands_by(Express::Auto, 0, 1));
        assert!(stands_by(Express::Standby, 0, 1) && !carries(Express::Standby, 0, 1));
        assert!(!stands_by(Express::Always, 0, 2));
        assert!(between(Express::Never, &ports).is_empty());
    }
}
