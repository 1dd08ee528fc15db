//! `weir drain`: the box takes nothing new, what runs may finish until a deadline, then weir ends as if it had been told to stop.
//!
//! To take nothing new is a reload to a configuration without intercepts: new connections are forwarded by the kernel, those that
//! are open keep their verdict and their road ([`super::steer`]). The relay goes on accepting for a moment, for clients whose
//! handshake is under way; nobody is refused or reset before the deadline.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{Interval, MissedTickBehavior, interval};
use weir_core::ids::PortId;
use weir_core::policy::{Handshake, Intercept, Policy};
use weir_core::relay::find_intercept;
use weir_core::view::FlowView;
use weir_dataplane::relay::{Counter, RelayHandle};

use super::convert;
use super::parts::Parts;
use crate::config::Config;
use crate::exit::Failure;
use crate::host::{Host, HostSpec};

/// How long a handshake that has begun may take.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// How long workers may take to say whether connections need them.
const QUICK: Duration = Duration::from_millis(250);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How long workers may take to list what they have.
const LISTING: Duration = Duration::from_secs(2);
/// How long whoever asked may take to hear the answer.
const TELL: Duration = Duration::from_secs(1);
/// How long the relay's threads may take to close what they have reset.
const CLOSE: Duration = Duration::from_secs(3);

/// When to look how far a drain is, however much else there is to do.
pub fn looks() -> Interval {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// A request.
#[derive(Debug)]
pub struct Drain {
    deadline: Duration,
    done: oneshot::Sender<Result<Drained, String>>,
}

/// What became of it.
#[derive(Debug, Default, Serialize)]
pub struct Drained {
    /// Connections of the relay and of the fast road that needed weir when it began.
    pub open: u64,
    /// Of these, those that were reset at the deadline, on the relay; and on the fast road those that end with weir.
    pub cut_relay: u64,
    pub cut_fast: u64,
    pub took_ms: u64,
    /// Goes when the answer is given.
    #[serde(skip)]
    _told: Option<oneshot::Sender<()>>,
}

impl Drain {
    /// A request, and where its answer comes.
    pub fn within(deadline: Duration) -> (Self, oneshot::Receiver<Result<Drained, String>>) {
        let (done, told) = oneshot::channel();
        (Self { deadline, done }, told)
    }

    /// It is not done, and why.
    pub fn refuse(self, why: &str) {
        // Who has left is not told.
        drop(self.done.send(Err(why.to_owned())));
    }
}

/// A box that drains.
#[derive(Debug)]
pub struct Draining {
    /// The rules that what runs was judged by.
    policy: Arc<Policy>,
    begun: Instant,
    until: Instant,
    open: u64,
    stopped: u64,
    waiters: Vec<oneshot::Sender<Result<Drained, String>>>,
}

impl Draining {
    /// Another request: its deadline counts.
    pub fn again(&mut self, parts: &Parts, drain: Drain) {
        self.until = Instant::now() + drain.deadline;
        if let Some(relay) = parts.state.relay.ask().as_ref() {
            relay.begin_stop(drain.deadline, HANDSHAKE);
        }
        self.waiters.push(drain.done);
    }

    /// Whether the end has come: nothing runs any more, or the deadline is over.
    pub async fn is_over(&self, parts: &Parts) -> bool {
        let is_over = parts.state.relay.ask().as_ref().is_none_or(RelayHandle::is_over);
        if Instant::now() >= self.until {
            // Those that were reset are closed first.
            return is_over || Instant::now() >= self.until + CLOSE;
        }
        is_over && needing(parts, &self.policy).await == Some(0)
    }

    /// Tells whoever asked what was cut.
    pub async fn tell(self, parts: &Parts) {
        let cut_relay = stopped(parts).saturating_sub(self.stopped);
        let cut_fast = needing(parts, &self.policy).await.unwrap_or(0);
        let took_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(open = self.open, cut_relay, cut_fast, took_ms, "drained");
        for waiter in self.waiters {
            let (told, gone) = oneshot::channel::<()>();
            let drained = Drained { open: self.open, cut_relay, cut_fast, took_ms, _told: Some(told) };
            if waiter.send(Ok(drained)).is_ok() {
                drop(tokio::time::timeout(TELL, gone).await);
            }
        }
    }
}

/// How many connections of the fast road end with weir; none: workers do not say.
async fn needing(parts: &Parts, policy: &Arc<Policy>) -> Option<u64> {
    let (state, policy) = (parts.state.clone(), policy.clone());
    let count = move || match state.leaning(QUICK)? {
        0 => Some(state.former().translated),
        // Those that have ended and linger for what comes late are no loss.
        _ => state.dataplane.ask().as_ref().and_then(|plane| {
            let (flows, silent) = plane.flows(LISTING);
            let needing = flows.iter().filter(|flow| needs_weir(flow, &policy)).count() as u64;
            (silent == 0).then(|| needing + state.former().translated)
        }),
    };
    spawn_blocking(count).await.ok().flatten()
}

/// Whether it is translated, in the express lane or by its worker, and has not ended. The lane goes with weir.
fn needs_weir(flow: &FlowView, policy: &Policy) -> bool {
    let is_over = matches!(flow.stage, "closed" | "refused");
    let intercept = find_intercept(policy, flow.port.map(PortId), flow.destination);
    let answers = |intercept: &Intercept| intercept.handshake == Handshake::Answer;
    let is_answered = intercept.and_then(|id| policy.get(id)).is_some_and(answers);
    let is_translated = is_answered || flow.verdict == Some("send");
    flow.road == "fast" && is_translated && !is_over
}

fn stopped(parts: &Parts) -> u64 {
    parts.state.relay.ask().as_ref().map_or(0, |relay| relay.counters().get(Counter::Stopped))
}

impl Parts {
    /// Takes nothing new from now on. The deadline is for [`Draining::again`].
    ///
    /// # Errors
    /// The system refused a step; all is as before.
    pub async fn begin_drain(&mut self, host: &Host, drain: &Drain) -> Result<Draining, Failure> {
        let none = Config { intercepts: Vec::new(), ..self.config.clone() };
        let policy = none.compile(0).replacing(&self.policy);
        let spec = HostSpec { intercepts: Vec::new(), ..self.spec.clone() };
        self.steer.widen(&self.state, (&self.policy, &policy), convert::pool_servers(&self.config))?;
        if let Err(error) = host.apply(&spec).await {
            self.steer.take_back(&self.state, &self.policy, &self.config);
            return Err(Failure::refused(error));
        }
        self.spec = spec;
        self.state.drains.store(true, Ordering::Relaxed);
        let before = self.policy.clone();
        self.publish_policy(policy);
        let relayed = self.state.relay.ask().as_ref().map_or(0, |relay| relay.counters().active());
        let open = relayed + needing(self, &before).await.unwrap_or(0);
        let begun = Instant::now();
        let draining = Draining {
            policy: before,
            begun,
            until: begun,
            open,
            stopped: stopped(self),
            waiters: Vec::new(),
        };
        tracing::info!(open, deadline = ?drain.deadline, "draining: new connections are forwarded");
        Ok(draining)
    }
}
