//! A driver without a device: what is put in comes out of `receive`, what is sent is kept.

use std::collections::VecDeque;

use weir_core::frame::HeapFrame;
use weir_core::ids::PortId;

use super::{Driver, RingFrames};

/// Octets a frame holds, as an AF_XDP frame of 2,048 does.
pub const CAPACITY: usize = 1792;

/// Ports in memory.
#[derive(Debug)]
pub struct Memory {
    ports: Vec<PortId>,
    arriving: Vec<VecDeque<HeapFrame>>,
    sent: Vec<(PortId, HeapFrame)>,
}

impl Memory {
    /// A driver with `ports` ports.
    pub fn new(ports: u8) -> Self {
        Self {
            ports: (0..ports).map(PortId).collect(),
            arriving: (0..ports).map(|_| VecDeque::new()).collect(),
            sent: Vec::new(),
        }
    }

    /// Lets a packet arrive.
    pub fn arrive(&mut self, port: PortId, packet: &[u8]) {
        if let Some(queue) = self.arriving.get_mut(port.0 as usize) {
            queue.push_back(HeapFrame::from_packet(packet, CAPACITY));
        }
    }

    /// What was sent since the last call, in order.
    pub fn take_sent(&mut self) -> Vec<(PortId, HeapFrame)> {
        std::mem::take(&mut self.sent)
    }
}

impl Driver for Memory {
    type Frame = HeapFrame;

    fn ports(&self) -> &[PortId] {
        &self.ports
    }

    fn receive(&mut self, port: PortId, batch: &mut Vec<HeapFrame>, max: usize) -> usize {
        let Some(queue) = self.arriving.get_mut(port.0 as usize) else { return 0 };
        let count = queue.len().min(max);
        batch.extend(queue.drain(..count));
        count
    }

    fn can_send(&self, port: PortId) -> bool {
        (port.0 as usize) < self.ports.len()
    }

    fn send(&mut self, port: PortId, frames: &mut Vec<HeapFrame>) -> usize {
        let count = frames.len();
        self.sent.extend(frames.drain(..).map(|frame| (port, frame)));
        count
    }

    fn supply(&mut self, free: &mut Vec<HeapFrame>) {
        while free.len() < 64 {
            free.push(HeapFrame::new(CAPACITY));
        }
    }

    fn in_rings(&self) -> RingFrames {
        RingFrames::default()
    }
}
