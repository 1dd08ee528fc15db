//! Flows that were given to the kernel: the map that the program reads before it looks at intercepts.

use std::io;
use std::net::SocketAddr;

use super::layout::{Flow, FlowKey};
use super::map::Map;

/// What is known of a flow that was given to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KernelFlow {
    /// When its last packet passed, ns of CLOCK_MONOTONIC.
    pub last_seen: u64,
    /// A RST was seen, or a FIN in both directions.
    pub is_closed: bool,
    /// A FIN was seen in both directions.
    pub is_finished: bool,
    /// A FIN was seen, at least in one direction.
    pub fin_seen: bool,
    /// A RST was seen.
    pub rst_seen: bool,
    /// Something came behind the SYN.
    #[serde(default)]
    pub has_gone_on: bool,
}

impl From<Flow> for KernelFlow {
    fn from(flow: Flow) -> Self {
        let fins = [flow.fin_from_low, flow.fin_from_high];
        let rst_seen = flow.rst != 0;
        Self {
            last_seen: flow.last_seen,
            is_closed: rst_seen || fins.iter().all(|fin| *fin != 0),
            is_finished: fins.iter().all(|fin| *fin != 0),
            fin_seen: fins.iter().any(|fin| *fin != 0),
            rst_seen,
            has_gone_on: flow.went_on != 0,
        }
    }
}

/// A handle on the kernel map: cheap to clone, no lock, for any thread. Each call is one system call.
///
/// The map is bounded (`Sizes::kernel_flows`); when it is full the kernel forgets a flow not seen for long (LRU).
#[derive(Clone, Debug)]
pub struct KernelFlows {
    map: Map<FlowKey, Flow>,
}

impl KernelFlows {
    pub(super) fn new(map: Map<FlowKey, Flow>) -> Self {
        Self { map }
    }

    /// Gives the flow between two endpoints, in any order, to the kernel, as seen at `now` (ns, CLOCK_MONOTONIC). From
    /// then on its packets pass in both directions. A flow already there starts over.
    ///
    /// # Errors
    /// ENOMEM and such: the flow stays where it was.
    pub fn insert(&self, a: SocketAddr, b: SocketAddr, now: u64) -> io::Result<()> {
        self.map.set(&FlowKey::new(a, b), &Flow { last_seen: now, ..Flow::default() })
    }

    /// Has the flow there: one that goes on stays as it is, with what was seen of it; of one that is over another begins.
    ///
    /// # Errors
    /// As of [`Self::insert`].
    pub fn keep(&self, a: SocketAddr, b: SocketAddr, now: u64, goes_on: bool) -> io::Result<()> {
        let key = FlowKey::new(a, b);
        let flow = self.map.get(&key)?.filter(|flow| !KernelFlow::from(*flow).is_closed);
        if flow.is_some_and(|flow| flow.went_on != 0 || !goes_on) {
            return Ok(());
        }
        let flow = flow.unwrap_or_default();
        self.map.set(&key, &Flow { last_seen: now, went_on: u8::from(goes_on), ..flow })
    }

    /// Takes the flow back; whether it was there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self, a: SocketAddr, b: SocketAddr) -> io::Result<bool> {
        self.map.remove(&FlowKey::new(a, b))
    }

    /// The flow's state, if it is there. Does not count as being seen.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn get(&self, a: SocketAddr, b: SocketAddr) -> io::Result<Option<KernelFlow>> {
        Ok(self.map.get(&FlowKey::new(a, b))?.map(KernelFlow::from))
    }

    /// Whether the flow is there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn contains(&self, a: SocketAddr, b: SocketAddr) -> io::Result<bool> {
        Ok(self.get(a, b)?.is_some())
    }

    /// Up to `limit` flows with their endpoints, the lower first. Flows that come or go meanwhile may be missed, or
    /// appear twice: two system calls per flow, for `weir flows` and for clearing out, not for the packet path.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn list(&self, limit: usize) -> io::Result<Vec<(SocketAddr, SocketAddr, KernelFlow)>> {
        let mut flows = Vec::new();
        let mut at = None;
        while flows.len() < limit {
            let Some(key) = self.map.key_after(at.as_ref())? else { break };
            if let Some(flow) = self.map.get(&key)? {
                let (low, high) = key.endpoints();
                flows.push((low, high, flow.into()));
            }
            at = Some(key);
        }
        Ok(flows)
    }

    /// Removes flows not seen since `before` (ns, CLOCK_MONOTONIC); returns how many.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn expire(&self, before: u64, limit: usize) -> io::Result<usize> {
        let mut removed = 0;
        for (a, b, flow) in self.list(limit)? {
            if flow.last_seen < before && self.remove(a, b)? {
                removed += 1;
            }
        }
        Ok(removed)
    }
}
