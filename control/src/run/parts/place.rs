//! Giving the place to another process, and taking it back ([`crate::run::handover`]).

use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use weir_core::view::FlowView;
use weir_dataplane::relay::RelayHandle;
use weir_sys::clock;
use weir_sys::steering::Steering;
use weir_sys::tun::Tun;

use super::{Parts, beginning};
use crate::exit::Failure;
use crate::host::{Host, Paths};
use crate::run::road::{Found, Road};
use crate::run::{convert, devices};

/// How long workers may take to list what they have.
const LISTING: Duration = Duration::from_secs(2);

impl Parts {
    /// The relay's listeners.
    ///
    /// # Errors
    /// No more descriptors.
    pub(in crate::run) fn relay_listeners(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.state.relay.ask().as_ref().map_or(Ok(Vec::new()), RelayHandle::listeners)
    }

    /// Serves the relay's listeners, beside the process that is about to leave them.
    ///
    /// # Errors
    /// As [`RelayHandle::accept`].
    pub(in crate::run) fn accept(&self) -> Result<(), Failure> {
        self.state.relay.ask().as_ref().map_or(Ok(()), RelayHandle::accept).map_err(Failure::refused)
    }

    /// The ways into the kernel: to the relay, to forwarding. None on a box without a fast road.
    pub(in crate::run) fn tuns(&self) -> &[Arc<Tun>] {
        self.repair.tuns()
    }

    /// Leaves the fast road. The program stays on the ports, and lets everything pass; connections that need nothing of weir any
    /// more are the kernel's from now on.
    ///
    /// # Errors
    /// There is no BPF file system to leave them on.
    pub(in crate::run) fn release(&mut self, paths: &Paths) -> Result<(), Failure> {
        // Out of the state before anything else is asked for: whoever looks at both has the other first.
        let mut steering = self.take_steering();
        if let Some(Err(error)) = steering.as_mut().map(|steering| steering.pin(&paths.pins)) {
            *self.state.steering.lock().unwrap_or_else(PoisonError::into_inner) = steering;
            return Err(Failure::refused(error));
        }
        if let Some(steering) = &steering {
            let (flows, now) = (steering.kernel_flows(), clock::monotonic_ns());
            let plane = self.state.dataplane.ask();
            let (all, silent) = plane.as_ref().map(|plane| plane.flows(LISTING)).unwrap_or_default();
            if silent > 0 {
                tracing::warn!(
                    silent,
                    "workers did not tell their connections, which are not left to the kernel"
                );
            }
            let is_let_on =
                |flow: &&FlowView| flow.road == "fast" && !flow.is_in_lane && flow.verdict == Some("allow");
            for flow in all.iter().filter(is_let_on) {
                if let Err(error) = flows.insert(flow.client, flow.destination, now) {
                    tracing::debug!(%error, "kernel map");
                }
            }
        }
        drop(self.keeper.take());
        // What is in the express lane goes on there; the other one knows its numbers by what it finds.
        self.lanes = None;
        if let Some(dataplane) = self.state.dataplane.take() {
            dataplane.stop();
        }
        drop(steering);
        Ok(())
    }

    fn take_steering(&self) -> Option<Steering> {
        self.state.steering.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Takes the fast road again, and the kernel's side as it was.
    ///
    /// # Errors
    /// The system refused a step; those after it are done all the same, and it can be called again.
    pub(in crate::run) async fn resume(&mut self, host: &Host, paths: &Paths) -> Result<(), Failure> {
        // What serves already comes first: the other process's sign of life is none any more, and connections pass by.
        let claim = |relay: &RelayHandle| relay.claim().map_err(Failure::refused);
        let claimed = self.state.relay.ask().as_ref().map_or(Ok(()), claim);
        // Those that came or went while the other process had the host are not in it yet, and what is gone cannot be applied to.
        self.name_vlans();
        let applied = host.apply(&self.spec).await.map_err(Failure::refused);
        self.repair.all_was_applied();
        let road = self.resume_road(host, paths).await;
        // Of the signs of life as they are now.
        drop(self.keeper.take());
        self.keep();
        self.look_at_lanes();
        claimed.and(applied.map(drop)).and(road)
    }

    async fn resume_road(&mut self, host: &Host, paths: &Paths) -> Result<(), Failure> {
        let lacks = self.state.steering.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        if !lacks || !convert::has_fast_road(&self.config) {
            return Ok(());
        }
        let (links, _) = devices::of_ports(&self.config, host).await?;
        let found = Found::own(self.repair.tuns(), paths);
        let own = (self.steer.own(), &self.vlans);
        let mut road = Road::attach(&self.config, &links, paths, &self.policy, own, &found)?;
        let (snapshot, adopted) = beginning(&self.policy, &self.fib, Some(&road))?;
        self.policy = snapshot.policy.clone();
        let start = (&*snapshot, adopted);
        let dataplane = road.start(&self.config, &links, start, &mut self.publisher, &self.tell)?;
        self.pins = road.pins;
        if let Some(folder) = self.pins.folder(&self.folder) {
            self.ports.pin(folder);
        }
        self.lanes = road.lanes(&self.config);
        self.state.dataplane.put(dataplane);
        *self.state.steering.lock().unwrap_or_else(PoisonError::into_inner) = Some(road.steering);
        self.settle_pins();
        Ok(())
    }
}
