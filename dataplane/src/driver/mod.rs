//! Where a worker's packets come from and go to: AF_XDP ([`afxdp`]). `weir replay` and the tests need no worker: they give
//! packets to the pipeline themselves.

pub mod afxdp;

use weir_core::frame::Frame;
use weir_core::ids::PortId;

/// One worker's queues of every port.
pub trait Driver {
    /// Its frames.
    type Frame: Frame;

    /// The ports there are, in the order in which they are served.
    fn ports(&self) -> &[PortId];

    /// Appends up to `max` frames that came in at `port`; returns how many.
    fn receive(&mut self, port: PortId, batch: &mut Vec<Self::Frame>, max: usize) -> usize;

    /// Whether this worker can send by `port`.
    fn can_send(&self, port: PortId) -> bool;

    /// Sends from the front of `frames`; what does not fit stays. Returns how many were taken.
    fn send(&mut self, port: PortId, frames: &mut Vec<Self::Frame>) -> usize;

    /// Once a breath: takes back what was sent, gives free frames to be received into, wakes who waits for it.
    fn supply(&mut self, free: &mut Vec<Self::Frame>);

    /// Frames that are with the driver: waiting to be received into, and on their way out.
    fn in_rings(&self) -> RingFrames;

    /// Frames that went on by another port than they came by, since the start.
    fn crossed(&self) -> Crossed;
}

/// Frames that one port received and another sent, by their descriptors: the worker's code copies none of their octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crossed {
    pub frames: u64,
    /// Of these, those that the kernel did not copy either: both ports are zero-copy.
    pub zero_copy: u64,
}

/// Frames in rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFrames {
    pub fill: usize,
    pub transmit: usize,
}
