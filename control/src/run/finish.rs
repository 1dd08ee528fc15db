//! The last of a process whose place another has taken: its connections may finish.

use std::time::{Duration, Instant};

use tokio::signal::unix::Signal;
use weir_dataplane::relay::RelayHandle;

use super::giving::Giving;
use super::handover::LEFT;
use super::parts::Parts;
use crate::admin::state::State;

/// How often it is looked whether nothing new can come any more, and for how long.
const BRIEF: Duration = Duration::from_millis(1);
const LEAVING: Duration = Duration::from_secs(5);
/// As long as it takes.
const UNBOUNDED: Duration = Duration::from_secs(u32::MAX as u64);
/// How often it is looked whether the last connection has gone.
const LOOK: Duration = Duration::from_millis(100);

/// Another process serves, and waits for this one to take nothing new any more: the relay's connections finish here, until a signal says
/// that what is left is to be reset. No `giving`: one has.
pub async fn relayed(
    parts: Parts,
    giving: Option<Giving>,
    (terminate, interrupt): (&mut Signal, &mut Signal),
) {
    let state = parts.state.clone();
    // Nothing of the host is this process's any more, nor does it watch it.
    drop(parts);
    if let Some(relay) = state.relay.ask().as_ref() {
        relay.begin_stop(UNBOUNDED, Duration::ZERO);
    }
    let connections = state.relay.ask().as_ref().map_or(0, |relay| relay.counters().active());
    tracing::info!(connections, "replaced: connections of the relay finish here");
    if let Some(giving) = giving {
        if has_left(&state).await {
            giving.say(LEFT).await;
        }
        drop(giving);
        over(&state, terminate, interrupt).await;
    }
    if let Some(relay) = state.relay.take() {
        let before = relay.counters().active();
        relay.stop(Duration::ZERO);
        tracing::info!(cut = before, "stopped");
    }
}

/// Waits until nothing can come any more: what wakes a thread comes at once. Whether it is so.
async fn has_left(state: &State) -> bool {
    let deadline = Instant::now() + LEAVING;
    loop {
        if state.relay.ask().as_ref().is_none_or(|relay| relay.has_left()) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(BRIEF).await;
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
