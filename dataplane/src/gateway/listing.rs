//! The flows of all workers.

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, unbounded};
use weir_core::view::FlowView;

use super::Dataplane;
use crate::worker::Command;

impl Dataplane {
    /// All flows of the workers, waiting at most `patience` for them; and how many workers have not told all of theirs.
    pub fn flows(&self, patience: Duration) -> (Vec<FlowView>, usize) {
        let deadline = Instant::now() + patience;
        let asked: Vec<_> = (0..self.commands.len()).map(|worker| self.ask_for_flows(worker)).collect();
        let (mut flows, mut silent) = (Vec::new(), 0);
        for parts in asked {
            let is_told = parts.is_some_and(|parts| take(&parts, deadline, &mut flows));
            silent += usize::from(!is_told);
        }
        (flows, silent)
    }

    /// Where a worker's flows come, in parts; none: too many commands wait for it.
    fn ask_for_flows(&self, worker: usize) -> Option<Receiver<Vec<FlowView>>> {
        let (sender, parts) = unbounded();
        self.commands.get(worker)?.push(Command::Flows(sender)).ok()?;
        self.handoff.wake(worker);
        Some(parts)
    }
}

/// Takes what comes until the channel closes, as it does with the last part; whether it has.
fn take(parts: &Receiver<Vec<FlowView>>, deadline: Instant, flows: &mut Vec<FlowView>) -> bool {
    loop {
        match parts.recv_deadline(deadline) {
            Ok(part) => flows.extend(part),
            Err(error) => return error.is_disconnected(),
        }
    }
}
