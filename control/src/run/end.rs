//! What ends a gateway besides a signal: an operator who drains it, another process that takes its place.

use std::time::{Duration, Instant};

use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc::Sender;
use tokio::task::{JoinHandle, spawn_local};

use super::Served;
use super::drain::{Drain, Draining};
use super::giving::{self, Giving, Stage};
use super::handover::{DONE, ENDS, GONE, RELEASE, RELEASED, SERVES, START};
use super::parts::Parts;
use crate::admin::server;
use crate::exit::{Exit, Failure};
use crate::host::{Host, HostEvent, Lock, Paths};

/// How often it is tried to have the fast road back from a process that has failed.
const AGAIN: Duration = Duration::from_secs(5);

/// Who wants it to end.
#[derive(Debug)]
pub enum End {
    /// What runs may finish ([`super::drain`]).
    Drained(Drain),
    /// Another process takes its place ([`super::handover`]), and may take so long, if it says so.
    Replaced(UnixStream, Option<Duration>),
    /// That process has said this; or nothing, and has gone or taken too long.
    Heard(Option<String>),
}

/// How far it is with that.
#[derive(Debug)]
pub struct Ending<'a> {
    pub host: &'a Host,
    pub paths: &'a Paths,
    pub lock: Option<&'a Lock>,
    /// The task that serves them.
    pub metrics: Option<JoinHandle<()>>,
    ends: Sender<End>,
    draining: Option<Draining>,
    giving: Option<Giving>,
    /// When the fast road is tried again that could not be had back.
    again: Option<Instant>,
}

impl<'a> Ending<'a> {
    /// It is not ending. What comes by `ends` is for [`Self::asked`].
    pub fn new(
        (host, paths, lock): (&'a Host, &'a Paths, Option<&'a Lock>),
        metrics: Option<TcpListener>,
        parts: &Parts,
        ends: Sender<End>,
    ) -> Self {
        let mut ending =
            Self { host, paths, lock, metrics: None, ends, draining: None, giving: None, again: None };
        ending.serve_metrics(metrics, parts);
        ending
    }

    /// Nothing new is taken any more.
    pub const fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Another configuration can be put in force.
    pub const fn takes_orders(&self) -> bool {
        self.draining.is_none() && self.giving.is_none()
    }

    /// Whether [`Self::look`] is wanted.
    pub const fn wants_looks(&self) -> bool {
        self.draining.is_some() || self.again.is_some()
    }

    /// The host is in another process's hands.
    pub fn has_left(&self) -> bool {
        self.giving.as_ref().is_some_and(|giving| giving.stage != Stage::Offered)
    }

    /// A change of the host. What another process does to it is not put right.
    pub(super) async fn take_in(
        &self,
        parts: &mut Parts,
        event: HostEvent,
    ) -> Option<Result<Served, Failure>> {
        let followed = match self.has_left() {
            true => parts.follow(self.host, event),
            false => parts.take_in(self.host, event).await,
        };
        followed.err().map(Err)
    }

    /// Carries out what was asked. None: it goes on.
    pub(super) async fn asked(&mut self, parts: &mut Parts, end: End) -> Option<Result<Served, Failure>> {
        match end {
            End::Drained(drain) => self.drain(parts, drain).await,
            End::Replaced(stream, patience) => self.offer(parts, stream, patience).await,
            End::Heard(word) => return self.heard(parts, word).await,
        }
        None
    }

    /// A signal says that it is to end.
    pub(super) fn told(&self) -> Result<Served, Failure> {
        let is_granted = self.giving.as_ref().is_some_and(|giving| giving.stage == Stage::Granted);
        Ok(if is_granted { Served::Replaced { told: true } } else { Served::Ended(Exit::Done) })
    }

    /// It ends, and takes what is installed with it: whoever was about to have its place must know.
    pub(super) async fn farewell(&mut self) {
        if let Some(giving) = self.giving.take() {
            giving.say(ENDS).await;
        }
    }

    /// Who has this one's place, and waits for it to take nothing new any more.
    pub(super) const fn successor(&mut self) -> Option<Giving> {
        self.giving.take()
    }

    async fn drain(&mut self, parts: &mut Parts, drain: Drain) {
        if self.giving.is_some() {
            return drain.refuse("another process takes weir's place: drain that one");
        }
        if let Some(draining) = self.draining.as_mut() {
            return draining.again(parts, drain);
        }
        match parts.begin_drain(self.host, &drain).await {
            Ok(mut begun) => {
                begun.again(parts, drain);
                self.draining = Some(begun);
            }
            Err(failure) => {
                tracing::error!("not drained: {failure}");
                drain.refuse(&failure.message);
            }
        }
    }

    async fn offer(&mut self, parts: &Parts, stream: UnixStream, patience: Option<Duration>) {
        let refusal = match self.lock {
            _ if self.draining.is_some() => {
                "weir drains, and is about to end: start the new one when it has ended"
            }
            _ if self.giving.is_some() => {
                "another process is about to take weir's place: ask again when it has"
            }
            None => "this process has no lock that it could give",
            Some(lock) => {
                let patience = patience.unwrap_or(START);
                match Giving::begin(stream, (parts, lock), patience, self.ends.clone()).await {
                    Ok(giving) => self.hold(parts, giving),
                    Err(error) => tracing::warn!(%error, "another process wanted to take weir's place"),
                }
                return;
            }
        };
        tracing::warn!("another process wanted to take weir's place: {refusal}");
        giving::refuse(&stream, refusal.to_owned()).await;
    }

    fn hold(&mut self, parts: &Parts, giving: Giving) {
        parts.state.set_gives(true);
        self.giving = Some(giving);
    }

    /// What the process says that is about to have this one's place.
    async fn heard(&mut self, parts: &mut Parts, word: Option<String>) -> Option<Result<Served, Failure>> {
        let mut giving = self.giving.take()?;
        match (giving.stage, word.as_deref()) {
            (Stage::Offered, Some(RELEASE)) => self.release(parts, giving).await,
            (Stage::Offered, _) => {
                tracing::warn!("another process wanted to take weir's place, and has changed its mind");
                parts.state.set_gives(false);
                giving.refuse("it was not told in time to leave the fast road".to_owned()).await;
            }
            (Stage::Released, Some(DONE)) if giving.reaches(Stage::Granted, GONE).await => {
                self.hold(parts, giving)
            }
            (Stage::Granted, Some(SERVES)) => {
                self.giving = Some(giving);
                return Some(Ok(Served::Replaced { told: false }));
            }
            (Stage::Released | Stage::Granted, _) => {
                tracing::error!("the process that wanted to take weir's place has failed: this one goes on");
                giving.refuse("it has waited too long, and goes on".to_owned()).await;
                drop(giving);
                self.resume(parts).await;
            }
        }
        None
    }

    async fn release(&mut self, parts: &mut Parts, mut giving: Giving) {
        tracing::info!("another process takes weir's place: it gets the fast road");
        if let Err(failure) = parts.release(self.paths) {
            giving.refuse(failure.message).await;
            return self.resume(parts).await;
        }
        if let Some(metrics) = self.metrics.take() {
            metrics.abort();
            drop(metrics.await);
        }
        if giving.reaches(Stage::Released, RELEASED).await {
            self.hold(parts, giving);
        } else {
            tracing::error!("the process that wanted to take weir's place has gone: this one goes on");
            self.resume(parts).await;
        }
    }

    /// The other process has failed. What cannot be had back now is tried again: the relay serves meanwhile.
    async fn resume(&mut self, parts: &mut Parts) {
        parts.state.set_gives(false);
        self.again = match parts.resume(self.host, self.paths).await {
            Ok(()) => {
                parts.state.set_lack(None);
                None
            }
            Err(failure) => {
                if parts.state.set_lack(Some(failure.message.clone())) {
                    tracing::error!("not all is as before the other process: the relay goes on; {failure}");
                }
                Some(Instant::now() + AGAIN)
            }
        };
        if self.metrics.is_none() {
            let listener = metrics_again(parts).await;
            self.serve_metrics(listener, parts);
        }
        server::forget_failed(&parts.config.gateway.admin);
    }

    /// Looks whether a drain is over, and whether the fast road can be had back.
    pub(super) async fn look(&mut self, parts: &mut Parts) -> Option<Result<Served, Failure>> {
        if self.again.is_some_and(|at| at <= Instant::now()) && self.takes_orders() {
            self.resume(parts).await;
        }
        let draining = self.draining.take()?;
        if draining.is_over(parts).await {
            draining.tell(parts).await;
            return Some(Ok(Served::Ended(Exit::Done)));
        }
        self.draining = Some(draining);
        None
    }

    fn serve_metrics(&mut self, listener: Option<TcpListener>, parts: &Parts) {
        let state = parts.state.clone();
        self.metrics = listener.map(|listener| spawn_local(server::serve_metrics(listener, state)));
    }
}

/// The metrics were given up for a process that has failed.
async fn metrics_again(parts: &Parts) -> Option<TcpListener> {
    let address = parts.config.gateway.metrics?;
    match server::bind_metrics(address).await {
        Ok(listener) => Some(listener),
        Err(failure) => {
            tracing::error!("no metrics: {failure}");
            None
        }
    }
}
