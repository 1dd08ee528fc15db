//! The last of a process whose place another has taken: its connections may finish.

use std::time::Duration;

use tokio::signal::unix::Signal;
use weir_dataplane::relay::RelayHandle;

use super::parts::Parts;
use crate::admin::state::State;

/// As long as it takes.
const UNBOUNDED: Duration = Duration::from_secs(u32::MAX as u64);
/// How often it is looked whether the last connection has gone.
const LOOK: Duration = Duration::from_millis(100);

/// Another process serves: the relay's connections finish here, until a signal says that what is left is to be reset. `told`: one has.
pub async fn relayed(parts: Parts, told: bool, (terminate, interrupt): (&mut Signal, &mut Signal)) {
    let state = parts.state.clone();
    // Nothing of the host is this process's any more, nor does it watch it.
    drop(parts);
    if let Some(relay) = state.relay.ask().as_ref() {
        relay.begin_stop(UNBOUNDED, Duration::ZERO);
    }
    let connections = state.relay.ask().as_ref().map_or(0, |relay| relay.counters().active());
    tracing::info!(connections, "replaced: connections of the relay finish here");
    if !told {
        over(&state, terminate, interrupt).await;
    }
    if let Some(relay) = state.relay.take() {
        let before = relay.counters().active();
        relay.stop(Duration::ZERO);
        tracing::info!(cut = before, "stopped");
    }
}

/// Until the last connection has gone, or a signal comes.
async fn over(state: &State, terminate: &mut Signal, interrupt: &mut Signal) {
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = tokio::time::sleep(LOOK) => {
                if state.relay.ask().as_ref().is_none_or(RelayHandle::is_over) {
                    break;
                }
            }
        }
    }
}
