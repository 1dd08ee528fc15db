//! One queue of one port: frames in, frames out, and the account of those in between.

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use afxdp::PENDING_LEN;
use arraydeque::{ArrayDeque, Wrapping};

use super::area::Area;
use super::error::{XskError, socket_hint};
use super::frame::{Buf, Frame};
use super::held::Held;
use super::quiet;
use super::socket::{self, Mode, QueueStats, Rings};
use crate::ethtool;

/// What the crate's receive and send calls take. 128 KiB, so always in a box, and always empty between calls.
type Batch = ArrayDeque<[Buf; PENDING_LEN], Wrapping>;

/// An Ethernet header: the least that is sent. The kernel skips a descriptor without length and never returns it.
const SHORTEST: usize = 14;

/// How often one kick asks again while the kernel says that there is more to send.
const KICKS: usize = 8;

/// After a zero-copy socket is closed the driver is taken off the memory by a kernel worker; nothing tells when.
const DRIVER_LETS_GO: Duration = Duration::from_millis(50);

/// Entries of the four rings: powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSizes {
    /// The most frames that wait to be received into. At least twice the NIC's own ring is a good choice.
    pub fill: u32,
    /// Completions: at least `tx`.
    pub completion: u32,
    pub rx: u32,
    pub tx: u32,
}

impl RingSizes {
    /// All four rings of one size.
    pub const fn all(entries: u32) -> Self {
        Self { fill: entries, completion: entries, rx: entries, tx: entries }
    }

    /// How many frames a queue can hold at once: what a worker must have for it.
    pub const fn frames(&self) -> usize {
        self.fill as usize + self.tx as usize
    }

    fn check(&self) -> Result<(), XskError> {
        for asked in [self.fill, self.completion, self.rx, self.tx] {
            if !asked.is_power_of_two() || !(64..=PENDING_LEN as u32).contains(&asked) {
                return Err(XskError::RingSize { asked });
            }
        }
        if self.completion < self.tx {
            return Err(XskError::RingSize { asked: self.completion });
        }
        Ok(())
    }
}

impl Default for RingSizes {
    fn default() -> Self {
        Self::all(2048)
    }
}

/// An AF_XDP socket on one queue of one device. It moves to its worker's thread and stays there.
///
/// Order within a breath: `complete` and `fill` keep it supplied, `recv` and `send` move packets, `kick` is last.
/// End it with [`Queue::close`], which returns the frames its rings hold; if it is just dropped they count as lost.
pub struct Queue {
    area: Arc<Area>,
    rings: ManuallyDrop<Rings>,
    is_open: bool,
    device: Box<str>,
    queue: u32,
    sizes: RingSizes,
    zero_copy: bool,
    is_alive: bool,
    batch: Box<Batch>,
    scratch: Vec<Buf>,
    rx_held: Held,
    tx_held: Held,
}

impl Queue {
    /// Opens the socket in the calling thread's network namespace. weir's XDP program must be attached already, and
    /// `Steering::set_socket` comes next. With [`Mode::Auto`] ask [`Queue::zero_copy`] what it became.
    ///
    /// Takes from the end of `supply` what its fill ring has room for, before the driver sees it: a zero-copy driver that finds
    /// none then waits to be woken, and not every one wakes (igb rings for the queue that sends, whatever it is asked for).
    ///
    /// # Errors
    /// [`XskError`]: each names the device and the queue and says what to do. `supply` has all its frames then.
    pub fn open(
        area: &Arc<Area>,
        device: &str,
        ifindex: u32,
        queue: u32,
        mode: Mode,
        sizes: RingSizes,
        supply: &mut Vec<Frame>,
    ) -> Result<Self, XskError> {
        sizes.check()?;
        quiet::install();
        let unread = |source| XskError::Option { device: device.into(), queue, what: "the mode", source };
        let failed = |source: io::Error| {
            let hint = socket_hint(&source);
            XskError::Socket { device: device.into(), queue, mode, source, hint }
        };
        // Asked by its index for a device that is not there, libbpf says that it has no program.
        if ethtool::index_of(device).map_err(failed)? != ifindex {
            return Err(failed(io::Error::from_raw_os_error(libc::ENODEV)));
        }
        let attached = socket::attached_program(ifindex).map_err(failed)?;
        if attached == 0 {
            // libbpf would attach a program of its own, and leave it there.
            return Err(XskError::NoProgram { device: device.into() });
        }
        let (mut scratch, mut rx_held) = (Vec::with_capacity(PENDING_LEN), Held::new(area.frames()));
        let first = supply.len().saturating_sub(sizes.fill as usize);
        for frame in supply.drain(first..) {
            rx_held.add(area.index_of(frame.address()));
            scratch.push(frame.into_buf());
        }
        let opened = Rings::open(area, device, queue, mode, sizes, &mut scratch);
        let opened = opened.and_then(|rings| Ok((socket::is_zero_copy(rings.fd).map_err(unread)?, rings)));
        // What did not fit, or all, where no ring got so far.
        for buf in scratch.drain(..) {
            let frame = Frame::new(buf);
            rx_held.remove(area.index_of(frame.address()));
            supply.push(frame);
        }
        let (zero_copy, rings) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // SAFETY: marked is what the fill ring took, and that is gone with its socket, which no driver has.
                supply.extend(rx_held.drain().filter_map(|frame| unsafe { area.remake(frame) }));
                return Err(error);
            }
        };
        if !zero_copy {
            socket::widen_send(rings.fd, sizes.tx);
        }
        Ok(Self {
            area: area.clone(),
            rings: ManuallyDrop::new(rings),
            is_open: true,
            device: device.into(),
            queue,
            sizes,
            zero_copy,
            is_alive: true,
            batch: Box::new(Batch::new()),
            scratch,
            rx_held,
            tx_held: Held::new(area.frames()),
        })
    }

    /// Appends up to `max` received packets to `out`, oldest first; returns how many. When there is none and the driver
    /// sleeps for want of frames, wakes it.
    pub fn recv(&mut self, out: &mut Vec<Frame>, max: usize) -> usize {
        let got = self.rings.rx.try_recv(&mut self.batch, max.min(PENDING_LEN), 0).unwrap_or(0);
        if got == 0 {
            if self.rings.fill.needs_wakeup() {
                self.note(&socket::kick_rx(self.rings.fd));
            }
            return 0;
        }
        for buf in self.batch.drain(..) {
            let frame = Frame::new(buf);
            self.rx_held.remove(self.area.index_of(frame.address()));
            out.push(frame);
        }
        got
    }

    /// Sends from the front of `frames`; returns how many were taken. What does not fit, and everything once the device
    /// is gone, stays with the caller in its order. A packet shorter than an Ethernet header is padded with zeros.
    pub fn send(&mut self, frames: &mut Vec<Frame>) -> usize {
        let asked = frames.len().min(self.tx_room());
        if asked == 0 || !self.is_alive {
            return 0;
        }
        for mut frame in frames.drain(..asked) {
            if frame.len() < SHORTEST {
                pad(&mut frame);
            }
            self.tx_held.add(self.area.index_of(frame.address()));
            self.batch.push_back(frame.into_buf());
        }
        let Self { batch, rings, .. } = self;
        // The frames that a panic interrupts are in the ring already: it comes from the wakeup, the last step.
        if quiet::survive(|| rings.tx.try_send(batch, asked)).is_none() {
            self.is_alive = false;
        }
        let left = self.batch.len();
        while let Some(buf) = self.batch.pop_back() {
            let frame = Frame::new(buf);
            self.tx_held.remove(self.area.index_of(frame.address()));
            frames.insert(0, frame);
        }
        asked - left
    }

    /// How many frames the fill ring has room for.
    pub fn fill_room(&self) -> usize {
        if self.is_alive { (self.sizes.fill as usize).saturating_sub(self.rx_held.len()) } else { 0 }
    }

    /// Gives free frames, from the end of `free`, to be received into, as many as fit; returns how many.
    pub fn fill(&mut self, free: &mut Vec<Frame>) -> usize {
        let room = (self.sizes.fill as usize).saturating_sub(self.rx_held.len());
        let asked = free.len().min(room);
        if asked == 0 || !self.is_alive {
            return 0;
        }
        for frame in free.drain(free.len() - asked..) {
            self.rx_held.add(self.area.index_of(frame.address()));
            self.scratch.push(frame.into_buf());
        }
        let taken = self.rings.fill.fill(&mut self.scratch, asked).unwrap_or(0);
        for buf in self.scratch.drain(..) {
            let frame = Frame::new(buf);
            self.rx_held.remove(self.area.index_of(frame.address()));
            free.push(frame);
        }
        taken
    }

    /// Appends the frames whose packets have left to `free`; returns how many.
    pub fn complete(&mut self, free: &mut Vec<Frame>) -> usize {
        let outstanding = self.tx_held.len();
        if outstanding == 0 {
            return 0;
        }
        let done = self.rings.completion.service(&mut self.scratch, outstanding).unwrap_or(0);
        for buf in self.scratch.drain(..) {
            let frame = Frame::new(buf);
            self.tx_held.remove(self.area.index_of(frame.address()));
            free.push(frame);
        }
        done
    }

    /// Makes the kernel send what is outstanding, if it waits to be told. Once per breath: `send` kicks only when it
    /// takes something, and copy mode may stop in the middle of a ring.
    pub fn kick(&mut self) {
        if self.tx_held.len() == 0 || !self.is_alive || !self.rings.tx.needs_wakeup() {
            return;
        }
        for _ in 0..KICKS {
            let result = socket::kick_tx(self.rings.fd);
            self.note(&result);
            if result.err().and_then(|error| error.raw_os_error()) != Some(libc::EAGAIN) {
                return;
            }
        }
    }

    /// Whether the device is still there; once it is not it stays so, and the queue is to be closed. A device that is
    /// merely down is alive. A system call: for timers, not for every breath.
    pub fn alive(&mut self) -> bool {
        if self.is_alive {
            self.note(&socket::kick_rx(self.rings.fd));
        }
        self.is_alive
    }

    /// Whether the kernel bound it without copies.
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Frames given to be sent whose completion has not been collected.
    pub fn outstanding(&self) -> usize {
        self.tx_held.len()
    }

    /// Frames given to be received into that have not come back.
    pub fn in_fill(&self) -> usize {
        self.rx_held.len()
    }

    /// How many frames `send` would take now.
    pub fn tx_room(&self) -> usize {
        (self.sizes.tx as usize).saturating_sub(self.tx_held.len())
    }

    /// For waiting: readable when packets have arrived.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns the descriptor and is closed only with `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.rings.fd) }
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The queue's number on its device.
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// The kernel's counters of this socket.
    ///
    /// # Errors
    /// What the kernel says, with device and queue.
    pub fn stats(&self) -> Result<QueueStats, XskError> {
        socket::stats(self.rings.fd).map_err(|source| XskError::Option {
            device: self.device.to_string(),
            queue: self.queue,
            what: "the statistics",
            source,
        })
    }

    /// Closes the socket and gives back every frame that its rings held, as free frames. Remove it from every
    /// [`Waiter`](crate::waiter::Waiter) first: an armed poll keeps the socket open. Blocks for 50 ms in zero-copy mode,
    /// until the driver has let go of the memory.
    pub fn close(mut self) -> Vec<Frame> {
        self.release()
    }

    /// Closes the socket without waiting for the driver: for threads that must not stand still.
    pub fn shut(mut self) -> Closing {
        self.take_down();
        Closing { queue: self, since: Instant::now() }
    }

    fn release(&mut self) -> Vec<Frame> {
        if !self.is_open {
            return Vec::new();
        }
        self.take_down();
        if self.zero_copy {
            std::thread::sleep(DRIVER_LETS_GO);
        }
        self.held_frames()
    }

    fn take_down(&mut self) {
        self.is_open = false;
        // SAFETY: called by `shut` and `release`, the one by value, the other where `is_open` was true: so this is the first and
        // only drop. Afterwards nothing uses the rings: both end the queue, and `Closing` only asks for its frames.
        unsafe { ManuallyDrop::drop(&mut self.rings) };
    }

    /// What the rings held, of a queue that is closed and whose driver has let go.
    fn held_frames(&mut self) -> Vec<Frame> {
        let Self { area, rx_held, tx_held, .. } = self;
        rx_held
            .drain()
            .chain(tx_held.drain())
            // SAFETY: a frame is marked as held exactly while its owner is a ring of this queue, and those are closed.
            .filter_map(|frame| unsafe { area.remake(frame) })
            .collect()
    }

    fn note(&mut self, result: &io::Result<()>) {
        let code = result.as_ref().err().and_then(io::Error::raw_os_error);
        if matches!(code, Some(libc::ENXIO | libc::ENODEV | libc::EBADF)) {
            self.is_alive = false;
        }
    }
}

/// A queue whose socket is closed, and whose frames a driver may still write to.
#[derive(Debug)]
pub struct Closing {
    queue: Queue,
    since: Instant,
}

impl Closing {
    /// Whether the driver has let go of the frames.
    pub fn is_settled(&self) -> bool {
        !self.queue.zero_copy || self.since.elapsed() >= DRIVER_LETS_GO
    }

    /// The frames that the rings held. Waits for what is left of the driver's time.
    pub fn frames(mut self) -> Vec<Frame> {
        if self.queue.zero_copy {
            std::thread::sleep(DRIVER_LETS_GO.saturating_sub(self.since.elapsed()));
        }
        self.queue.held_frames()
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.rings.fd
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Frames still in rings become Frames and are dropped, which counts them.
        drop(self.release());
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("device", &self.device)
            .field("queue", &self.queue)
            .field("zero_copy", &self.zero_copy)
            .field("is_open", &self.is_open)
            .field("in_fill", &self.in_fill())
            .field("outstanding", &self.outstanding())
            .finish_non_exhaustive()
    }
}

fn pad(frame: &mut Frame) {
    let len = frame.len();
    if let Some(room) = frame.buffer_mut().get_mut(len..SHORTEST) {
        room.fill(0);
    }
    frame.set_len(SHORTEST);
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Queue>();
    is_send::<Frame>();
};
