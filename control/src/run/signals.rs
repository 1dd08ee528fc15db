//! What `weir run` may be told by a signal.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// From their making on, a signal that comes waits until it is asked for.
#[derive(Debug)]
pub struct Signals {
    pub terminate: Signal,
    pub interrupt: Signal,
    pub hangup: Signal,
    /// One that ends this process was seen.
    told: bool,
}

impl Signals {
    /// # Errors
    /// The system refuses.
    pub fn new() -> Result<Self, Failure> {
        let of = |kind| signal(kind).map_err(Failure::refused);
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
            hangup: of(SignalKind::hangup())?,
            told: false,
        })
    }

    /// Whether this process was told to end, since they were made and whatever was done about it.
    pub async fn has_come(&mut self) -> bool {
        // The event loop takes note of signals when nothing else is to be done.
        tokio::task::yield_now().await;
        self.told |= tokio::select! {
            biased;
            _ = self.terminate.recv() => true,
            _ = self.interrupt.recv() => true,
            () = std::future::ready(()) => false,
        };
        self.told
    }
}
