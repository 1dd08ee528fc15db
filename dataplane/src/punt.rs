//! Over the top: frames and flows that the kernel takes.
//!
//! A flow gets its kernel-map entry first and then its frame, so that no packet of it comes back here in between.

use std::io;
use std::sync::Arc;

use weir_core::flow::key::FlowKey;
use weir_core::frame::Frame;
use weir_core::ids::Nanos;
use weir_core::pipeline::{Course, KernelOp, PuntTo};
use weir_core::wire::ETH_LEN;
use weir_sys::steering::{KernelFlow, KernelFlows};
use weir_sys::tun::Tun;

/// How long a flow must be quiet after an RST before it counts as over.
const AFTER_RST: Nanos = Nanos::from_secs(1800);

/// A flow that was asked for: when the map last saw it and how far it came; none: it is not there.
pub type Asked = (FlowKey, Option<(Nanos, Course)>);

/// The two ways in, shared by all workers, and the map of flows on the kernel road.
#[derive(Clone, Debug)]
pub struct Punt {
    relay: Arc<Tun>,
    forward: Arc<Tun>,
    map: KernelFlows,
}

impl Punt {
    pub fn new(relay: Arc<Tun>, forward: Arc<Tun>, map: KernelFlows) -> Self {
        Self { relay, forward, map }
    }

    /// Hands a frame to the kernel.
    ///
    /// # Errors
    /// What the write said: ENOBUFS or EAGAIN under load, EIO when the device is down.
    pub fn send(&self, to: PuntTo, frame: &impl Frame) -> io::Result<()> {
        let device = match to {
            PuntTo::Relay => &self.relay,
            PuntTo::Forward => &self.forward,
        };
        device.write(frame.data().get(ETH_LEN..).unwrap_or_default())
    }

    /// Carries out a change of the map. For [`KernelOp::Check`]: when the map last saw the flow, and how far it came.
    ///
    /// # Errors
    /// What the map said.
    pub fn apply(&self, op: &KernelOp, now: Nanos) -> io::Result<Option<Asked>> {
        match op {
            KernelOp::Insert(key) => {
                self.map.insert(key.low.socket_addr(), key.high.socket_addr(), now.0).map(|()| None)
            }
            KernelOp::Keep { key, goes_on } => {
                self.map.keep(key.low.socket_addr(), key.high.socket_addr(), now.0, *goes_on).map(|()| None)
            }
            KernelOp::Remove(key) => {
                self.map.remove(key.low.socket_addr(), key.high.socket_addr()).map(|_| None)
            }
            KernelOp::Check(key) => {
                let entry = self.map.get(key.low.socket_addr(), key.high.socket_addr())?;
                // An RST says little: steering does not know whether it was in the window.
                let quiet = |e: &KernelFlow| now.saturating_sub(Nanos(e.last_seen)) > AFTER_RST;
                let course = |e: &KernelFlow| match e {
                    e if e.is_finished || e.rst_seen && quiet(e) => Course::Ended,
                    e if e.has_gone_on => Course::Lives,
                    _ => Course::Began,
                };
                Ok(Some((*key, entry.map(|e| (Nanos(e.last_seen), course(&e))))))
            }
        }
    }
}
