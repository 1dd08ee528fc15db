//! A safe ring: io_uring (through the io-uring crate) for sockets: what arrives at listeners, and what each socket is ready for.
//!
//! The relay's loop (weir-dataplane `relay/ring.rs`) calls it. The kernel touches no memory of ours on behalf of what is under
//! way here: connections arrive as descriptors, readiness as a number, and octets are moved by calls of [`crate::sockopt`] once
//! a socket is ready. Why it is so, and what else was measured, is told by the relay's module.
//!
//! Use it from the thread that made it: where the kernel can, completions are collected only by that thread.

mod queues;
mod setup;
mod slab;
#[cfg(test)]
mod tests;
mod wake;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};

pub use rustix::io::Errno;
pub use setup::{UringError, probe};
pub use slab::{Key, Slab};
pub use wake::Waker;

/// Completions of removals, which tell only of their failure: what was to be removed had ended.
const REMOVED: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;
/// The removal of the waker's watch, which begins anew if there is none any more.
const REWAKE: u64 = u64::MAX - 2;
/// Tells an accept from a watch of the same token.
const ACCEPT: u64 = 1 << 62;
/// What a caller's token may use.
const TOKEN: u64 = ACCEPT - 1;

/// What became of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The caller's own word for the operation, of 62 bits.
    pub token: u64,
    pub outcome: Outcome,
    /// The operation goes on and will complete again.
    pub more: bool,
}

#[derive(Debug)]
pub enum Outcome {
    /// A connection; close-on-exec, and it does not wait.
    Accepted(OwnedFd),
    Ready(Readiness),
    Failed(Errno),
    /// [`Waker::wake`]; the token is 0.
    Woken,
    /// Memory was short, and the kernel has thrown completions away: nobody knows of what. Everything that was under way may have
    /// ended. The token is 0.
    Lost,
}

/// What a socket is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Octets, or the end, can be received.
    pub readable: bool,
    pub writable: bool,
    /// FIN was received.
    pub ended: bool,
    /// It has failed, or is closed in both directions.
    pub hung: bool,
    /// It has failed: RST, or an end that does not answer.
    pub failed: bool,
}

impl Readiness {
    /// What it is ready for besides.
    pub const fn add(&mut self, other: Self) {
        self.readable |= other.readable;
        self.writable |= other.writable;
        self.ended |= other.ended;
        self.hung |= other.hung;
        self.failed |= other.failed;
    }

    fn of(events: u32) -> Self {
        let any = |of: i16| events & of as u32 != 0;
        let hung = any(libc::POLLERR | libc::POLLHUP);
        Self {
            readable: any(libc::POLLIN | libc::POLLRDHUP) || hung,
            writable: any(libc::POLLOUT) || hung,
            ended: any(libc::POLLRDHUP),
            hung,
            failed: any(libc::POLLERR),
        }
    }
}

/// An io_uring.
pub struct Ring {
    ring: IoUring,
    /// Entries for which the submission queue had no room.
    backlog: VecDeque<Entry>,
    waker: Waker,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("backlog", &self.backlog.len()).finish_non_exhaustive()
    }
}

impl Ring {
    /// `entries`: operations submitted in one system call; a power of two.
    ///
    /// # Errors
    /// The kernel has no io_uring, or not all of it that is needed.
    pub fn new(entries: u32) -> Result<Self, UringError> {
        Self::on(setup::build(entries)?)
    }

    fn on(ring: IoUring) -> Result<Self, UringError> {
        let waker = Waker::new().map_err(|e| UringError::System("eventfd", e.into()))?;
        let mut ring = Self { ring, backlog: VecDeque::new(), waker };
        ring.watch_waker();
        Ok(ring)
    }

    /// Wakes [`Ring::wait`] from another thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Accepts connections until a completion says `more: false`. The listener must be blocking.
    pub fn accept(&mut self, listener: impl AsFd, token: u64) {
        let fd = Fd(listener.as_fd().as_raw_fd());
        let entry = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).build();
        self.push(entry.user_data(token & TOKEN | ACCEPT));
    }

    /// Tells what a socket is ready for: what it is now, and then each time that something is added, until a completion says
    /// `more: false`.
    pub fn watch(&mut self, socket: impl AsFd, token: u64) {
        // Not POLLPRI: the kernel says that with all that comes (sock_def_readable of net/core/sock.c), urgent or not.
        let events = (libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP) as u32;
        let entry = opcode::PollAdd::new(Fd(socket.as_fd().as_raw_fd()), events).multi(true).build();
        self.push(entry.user_data(token & TOKEN));
    }

    /// Closes a socket and ends the watch of this token. Completions of it may still come. The socket is gone, and its peer
    /// hears of it, in the next [`Ring::wait`] before that waits.
    pub fn close(&mut self, socket: OwnedFd, token: u64) {
        // A watch not yet submitted may be about another file by then: the removal that follows ends that, too.
        drop(socket);
        self.unwatch(token);
    }

    /// Ends the watch of this token, if there is one. Completions of it may still come.
    pub fn unwatch(&mut self, token: u64) {
        // Not IORING_OP_POLL_REMOVE: where the socket has news that were not told yet that fails (EALREADY), and the watch would
        // keep the socket for as long as the ring is there.
        let entry = opcode::AsyncCancel::new(token & TOKEN).build();
        self.push(entry.user_data(REMOVED).flags(Flags::SKIP_SUCCESS));
    }

    /// Closes a listener and ends the accept of this token, which completes once more.
    pub fn close_listener(&mut self, listener: OwnedFd, token: u64) {
        drop(listener);
        self.cancel_accept(token);
    }

    /// Ends the accept of this token, which completes once more.
    pub fn cancel_accept(&mut self, token: u64) {
        self.push(opcode::AsyncCancel::new(token & TOKEN | ACCEPT).build().user_data(REMOVED));
    }

    fn watch_waker(&mut self) {
        let entry = opcode::PollAdd::new(Fd(self.waker.as_fd().as_raw_fd()), libc::POLLIN as u32).build();
        self.push(entry.user_data(WAKE));
    }
}
