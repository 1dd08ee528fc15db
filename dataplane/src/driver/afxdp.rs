//! AF_XDP: one socket for each port this worker has a queue of, all on one memory area, so that a frame received on one
//! port is sent on another without a copy.

use std::os::fd::BorrowedFd;

use weir_core::ids::{MAX_PORTS, PortId};
use weir_sys::xsk::{self, Closing, Queue};

use super::{Crossed, Driver, RingFrames};

/// A UMEM chunk. Its mark is the packet's priority in the low eight bits, and above it how the packet came: [`ZERO_COPY`], and the
/// port's number and one; nothing of one that the gateway made.
#[derive(Debug)]
pub struct XskFrame(pub xsk::Frame);

/// The mark of packets that a NIC wrote into the frame itself.
const ZERO_COPY: u16 = 1 << 15;
const PRIORITY: u16 = 0xff;

/// The mark of what comes by a port.
fn arrival(port: PortId, zero_copy: bool) -> u16 {
    const { assert!(MAX_PORTS < 0x7f, "a port's number and one fit seven bits") };
    (u16::from(port.0) + 1) << 8 | if zero_copy { ZERO_COPY } else { 0 }
}

/// Frames that go on by another port than they came by: all, and those that are copied nowhere if this port copies nothing.
fn crossing(frames: &[xsk::Frame], by: PortId) -> Crossed {
    let mut crossed = Crossed::default();
    for mark in frames.iter().map(xsk::Frame::mark) {
        let came_by = (mark & !ZERO_COPY) >> 8;
        if came_by != 0 && came_by != u16::from(by.0) + 1 {
            crossed.frames += 1;
            crossed.zero_copy += u64::from(mark & ZERO_COPY != 0);
        }
    }
    crossed
}

impl weir_core::frame::Frame for XskFrame {
    #[inline]
    fn data(&self) -> &[u8] {
        self.0.data()
    }
    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        self.0.data_mut()
    }
    fn capacity(&self) -> usize {
        self.0.capacity()
    }
    #[inline]
    fn set_len(&mut self, len: usize) {
        self.0.set_len(len);
    }
    fn priority(&self) -> u8 {
        (self.0.mark() & PRIORITY) as u8
    }
    fn set_priority(&mut self, priority: u8) {
        self.0.set_mark(self.0.mark() & !PRIORITY | u16::from(priority));
    }
    fn begin(&mut self) {
        self.0.set_mark(0);
    }
}

/// One worker's sockets.
#[derive(Debug)]
pub struct AfXdp {
    ports: Vec<PortId>,
    queues: Vec<Option<Queue>>,
    /// Closed, and their frames are not back yet.
    closing: Vec<Closing>,
    /// Frames on their way between the two frame types.
    scratch: Vec<xsk::Frame>,
    crossed: Crossed,
}

impl AfXdp {
    /// A driver of these queues; each port at most once.
    pub fn new(queues: Vec<(PortId, Queue)>) -> Self {
        let (ports, queues) = queues.into_iter().map(|(port, queue)| (port, Some(queue))).unzip();
        Self {
            ports,
            queues,
            closing: Vec::new(),
            scratch: Vec::with_capacity(4096),
            crossed: Crossed::default(),
        }
    }

    /// Descriptors that become readable when packets arrive.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.queues.iter().flatten().map(Queue::fd)
    }

    /// Frames given to be sent that are not yet out.
    pub fn outstanding(&self) -> usize {
        self.queues.iter().flatten().map(Queue::outstanding).sum()
    }

    /// Closes all sockets and gives their frames back.
    pub fn close(&mut self, free: &mut Vec<XskFrame>) {
        for queue in self.queues.iter_mut().filter_map(Option::take) {
            free.extend(queue.close().into_iter().map(XskFrame));
        }
        for closing in self.closing.drain(..) {
            free.extend(closing.frames().into_iter().map(XskFrame));
        }
    }

    /// Takes a new socket of a port whose device came back. `before` is called with the one that is still there, if so,
    /// before that is closed. `None`: this worker has no place for the port, and the socket is closed.
    pub fn replace(
        &mut self,
        port: PortId,
        queue: Queue,
        before: impl FnOnce(BorrowedFd<'_>),
    ) -> Option<BorrowedFd<'_>> {
        let at = self.ports.iter().position(|p| *p == port);
        let Some(place) = at.and_then(|at| self.queues.get_mut(at)) else {
            self.closing.push(queue.shut());
            return None;
        };
        if let Some(old) = place.take() {
            before(old.fd());
            self.closing.push(old.shut());
        }
        Some(place.insert(queue).fd())
    }

    /// Takes back the frames of closed sockets whose drivers have let go of them.
    pub fn collect_closed(&mut self, free: &mut Vec<XskFrame>) {
        for settled in self.closing.extract_if(.., |closing| closing.is_settled()) {
            free.extend(settled.frames().into_iter().map(XskFrame));
        }
    }

    fn queue(&mut self, port: PortId) -> Option<&mut Queue> {
        let at = self.ports.iter().position(|p| *p == port)?;
        self.queues.get_mut(at)?.as_mut()
    }

    /// Closes the sockets of ports whose device is gone; their frames come back with [`AfXdp::collect_closed`]. `before` is
    /// called with each socket that is about to be closed.
    pub fn close_lost(&mut self, mut before: impl FnMut(BorrowedFd<'_>)) {
        for place in &mut self.queues {
            if place.as_mut().is_some_and(|queue| !queue.alive())
                && let Some(queue) = place.take()
            {
                tracing::warn!(device = queue.device(), queue = queue.queue(), "the port is gone");
                before(queue.fd());
                self.closing.push(queue.shut());
            }
        }
    }
}

impl Driver for AfXdp {
    type Frame = XskFrame;

    fn ports(&self) -> &[PortId] {
        &self.ports
    }

    fn receive(&mut self, port: PortId, batch: &mut Vec<XskFrame>, max: usize) -> usize {
        let mut scratch = std::mem::take(&mut self.scratch);
        let (mut got, mut mark) = (0, 0);
        if let Some(queue) = self.queue(port) {
            got = queue.recv(&mut scratch, max);
            mark = arrival(port, queue.zero_copy());
        }
        scratch.iter_mut().for_each(|frame| frame.set_mark(mark));
        batch.extend(scratch.drain(..).map(XskFrame));
        self.scratch = scratch;
        got
    }

    fn can_send(&self, port: PortId) -> bool {
        let at = self.ports.iter().position(|p| *p == port);
        at.and_then(|at| self.queues.get(at)).is_some_and(Option::is_some)
    }

    fn send(&mut self, port: PortId, frames: &mut Vec<XskFrame>) -> usize {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.extend(frames.drain(..).map(|frame| frame.0));
        let before = crossing(&scratch, port);
        let (mut sent, mut zero_copy) = (0, false);
        if let Some(queue) = self.queue(port) {
            sent = queue.send(&mut scratch);
            zero_copy = queue.zero_copy();
        }
        let left = crossing(&scratch, port);
        self.crossed.frames += before.frames - left.frames;
        if zero_copy {
            self.crossed.zero_copy += before.zero_copy - left.zero_copy;
        }
        frames.extend(scratch.drain(..).map(XskFrame));
        self.scratch = scratch;
        sent
    }

    fn supply(&mut self, free: &mut Vec<XskFrame>) {
        let mut scratch = std::mem::take(&mut self.scratch);
        for queue in self.queues.iter_mut().flatten() {
            queue.kick();
            queue.complete(&mut scratch);
        }
        free.extend(scratch.drain(..).map(XskFrame));
        for queue in self.queues.iter_mut().flatten() {
            // Only what the ring takes is moved: the list of free frames is long.
            let room = queue.fill_room().min(free.len());
            if room == 0 {
                continue;
            }
            scratch.extend(free.drain(free.len() - room..).map(|frame| frame.0));
            queue.fill(&mut scratch);
            free.extend(scratch.drain(..).map(XskFrame));
        }
        self.scratch = scratch;
    }

    fn in_rings(&self) -> RingFrames {
        RingFrames {
            fill: self.queues.iter().flatten().map(Queue::in_fill).sum(),
            transmit: self.outstanding(),
        }
    }

    fn crossed(&self) -> Crossed {
        self.crossed
    }
}
