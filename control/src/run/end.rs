//! What ends a gateway besides a signal: an operator who drains it, another process that takes its place.

use tokio::net::{TcpListener, UnixStream};
use tokio::task::{JoinHandle, spawn_local};

use super::Served;
use super::drain::{Drain, Draining};
use super::handover;
use super::parts::Parts;
use crate::admin::server;
use crate::exit::{Exit, Failure};
use crate::host::{Host, Lock, Paths};

/// Who wants it to end.
#[derive(Debug)]
pub enum End {
    /// What runs may finish ([`super::drain`]).
    Drained(Drain),
    /// Another process takes its place ([`super::handover`]).
    Replaced(UnixStream),
}

/// How far it is with that.
#[derive(Debug)]
pub struct Ending<'a> {
    pub host: &'a Host,
    pub paths: &'a Paths,
    pub lock: Option<&'a Lock>,
    /// The task that serves them.
    pub metrics: Option<JoinHandle<()>>,
    draining: Option<Draining>,
}

impl<'a> Ending<'a> {
    /// It is not ending.
    pub fn new(
        (host, paths, lock): (&'a Host, &'a Paths, Option<&'a Lock>),
        metrics: Option<TcpListener>,
        parts: &Parts,
    ) -> Self {
        let mut ending = Self { host, paths, lock, metrics: None, draining: None };
        ending.serve_metrics(metrics, parts);
        ending
    }

    /// Nothing new is taken any more.
    pub const fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Carries out what was asked. None: it goes on.
    pub(super) async fn asked(&mut self, parts: &mut Parts, end: End) -> Option<Result<Served, Failure>> {
        match (end, self.draining.as_mut(), self.lock) {
            (End::Drained(drain), Some(draining), _) => draining.again(parts, drain),
            (End::Drained(drain), None, _) => match parts.begin_drain(self.host, drain).await {
                Ok(begun) => self.draining = Some(begun),
                Err(failure) => tracing::error!("not drained: {failure}"),
            },
            (End::Replaced(stream), None, Some(lock)) => return self.replaced(parts, lock, stream).await,
            (End::Replaced(_), ..) => {
                tracing::warn!("another process wanted to take weir's place, which is about to end");
            }
        }
        None
    }

    async fn replaced(
        &mut self,
        parts: &mut Parts,
        lock: &Lock,
        stream: UnixStream,
    ) -> Option<Result<Served, Failure>> {
        let had_metrics = self.metrics.is_some();
        match handover::give(parts, (self.host, self.paths, lock), &mut self.metrics, stream).await {
            Ok(true) => return Some(Ok(Served::Replaced)),
            Ok(false) if had_metrics && self.metrics.is_none() => {
                let listener = metrics_again(parts).await;
                self.serve_metrics(listener, parts);
            }
            Ok(false) => {}
            Err(failure) => return Some(Err(failure)),
        }
        None
    }

    /// Looks whether a drain is over.
    pub(super) async fn look(&mut self, parts: &Parts) -> Option<Result<Served, Failure>> {
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
