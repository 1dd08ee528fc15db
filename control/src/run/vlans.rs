//! VLAN sub-interfaces of ports while weir runs: they come and go.
//!
//! Workers know a new one before steering lets its packets come to them, and the kernel's side names those that an intercept takes
//! clients from.

use std::sync::Arc;

use weir_core::fib::Fib;
use weir_core::ids::PortId;

use super::convert;
use super::parts::Parts;
use crate::exit::Failure;
use crate::host::{Host, HostSpec, SubInterface};

/// Those that there are, by their numbers.
pub type VlanList = Arc<[(PortId, SubInterface)]>;

impl Parts {
    /// Takes routes into use. Where the VLANs are others now, the rules hold for these.
    pub(super) fn set_fib(&mut self, fib: Arc<Fib>) {
        let are_same = self.fib.vlans.is_as(&fib.vlans);
        self.fib = fib;
        if !are_same {
            self.policy = Arc::new(self.policy.with_vlans(&self.fib.vlans));
        }
        self.publish();
    }

    /// Tells steering which tagged frames are for the workers now.
    ///
    /// # Errors
    /// Steering cannot be told.
    pub(super) fn set_vlans(&mut self, vlans: VlanList) -> Result<(), Failure> {
        for (_, sub) in vlans.iter().filter(|(_, sub)| !self.has_vlan(sub)) {
            let (device, vlan) = (&sub.link.name, sub.vlan);
            tracing::info!(device, %vlan, port = self.device_of(sub.port), "VLAN");
        }
        self.vlans = vlans;
        self.steer.set_vlans(&self.state, &self.policy, convert::vlan_places(&self.vlans))
    }

    fn has_vlan(&self, sub: &SubInterface) -> bool {
        self.vlans.iter().any(|(_, known)| known.link.ifindex == sub.link.ifindex && known.vlan == sub.vlan)
    }

    fn device_of(&self, port: PortId) -> &str {
        self.config.ports.get(usize::from(port.0)).map_or("", |port| port.device.as_str())
    }

    /// The sub-interfaces of a port's device.
    pub(super) fn vlans_on(&self, device: &str) -> impl Iterator<Item = String> {
        let on = self.vlans.iter().filter(move |(_, sub)| self.device_of(sub.port) == device);
        on.map(|(_, sub)| sub.link.name.clone())
    }

    /// The kernel's side for the VLANs that there are.
    pub(super) async fn follow_vlans(&mut self, host: &Host) {
        if !self.name_vlans() {
            return;
        }
        // Should it fail, it is missing, and the next round of repairs tries again.
        match host.apply_chosen(&self.spec, &mut |_| Ok(true)).await {
            Ok(_) => self.repair.all_was_applied(),
            Err(error) => tracing::error!(%error, "the kernel's side does not know all VLANs"),
        }
    }

    /// Has the VLANs that there are, and no others, in what the kernel's side is to be; whether they were others before.
    pub(super) fn name_vlans(&mut self) -> bool {
        let wanted = self.spec_of(&self.config);
        let HostSpec { vlans, trunks, indexes, .. } = wanted;
        let mut spec = HostSpec { vlans, trunks, indexes, ..self.spec.clone() };
        for (intercept, wanted) in spec.intercepts.iter_mut().zip(wanted.intercepts) {
            intercept.from = wanted.from;
        }
        let are_others = spec != self.spec;
        self.spec = spec;
        are_others
    }
}
