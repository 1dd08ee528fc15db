//! A safe ring: io_uring (through the io-uring crate) for sockets, with its own buffers.
//!
//! The relay's loop (weir-dataplane `relay/ring.rs`) calls it. What makes it safe: the ring owns every descriptor and
//! every octet that an operation under way may touch. A buffer or a socket given back early stays until the kernel
//! is done with it; dropping the ring cancels what is under way and waits for it.
//!
//! Use it from the thread that made it: where the kernel can, completions are collected only by that thread.

mod arena;
mod queues;
mod setup;
mod slab;
#[cfg(test)]
mod tests;
mod wake;

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use socket2::SockAddr;

use arena::Arena;
pub use arena::BufferId;
pub use rustix::io::Errno;
pub use setup::{UringError, probe};
pub use slab::{Key, Slab};
pub use wake::Waker;

/// Completions of cancellations: nobody waits for them.
const CANCEL: u64 = u64::MAX;
/// What ends a watch.
const HANGUP: u32 = (libc::POLLERR | libc::POLLHUP) as u32;
/// How long a dropped ring waits for the kernel to let go of its memory; then the memory is leaked.
const QUIESCE: Duration = Duration::from_secs(5);

/// Sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub struct RingConfig {
    /// Operations submitted in one system call; a power of two.
    pub entries: u32,
    pub buffers: u32,
    /// Octets of each buffer.
    pub buffer_size: u32,
}

/// A socket of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketId(Key);

/// What became of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The caller's own word for the operation.
    pub token: u64,
    pub outcome: Outcome,
    /// The operation goes on and will complete again (accept).
    pub more: bool,
}

#[derive(Debug)]
pub enum Outcome {
    /// A connection; close-on-exec, blocking (which is what a ring wants).
    Accepted(OwnedFd),
    /// Octets moved, poll events seen, or 0.
    Done(u32),
    Failed(Errno),
    /// [`Waker::wake`]; the token is 0.
    Woken,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    ops: Vec<Key>,
}

#[derive(Debug)]
struct Op {
    token: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Accept(SocketId, AcceptMode),
    // The kernel copies the address when it takes the entry, which may be after this call.
    Connect(SocketId, #[allow(dead_code, reason = "kept for the kernel to read")] Box<SockAddr>),
    Recv(SocketId, BufferId),
    Send(SocketId, BufferId),
    /// With the poll events that ended it, once seen.
    Watch(SocketId, u32),
    Wake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptMode {
    Once,
    Many,
}

/// An io_uring with its sockets and buffers.
pub struct Ring {
    ring: IoUring,
    arena: ManuallyDrop<Arena>,
    ops: ManuallyDrop<Slab<Op>>,
    sockets: Slab<Socket>,
    /// Entries for which the submission queue had no room.
    backlog: VecDeque<Entry>,
    /// Closed by the caller, but entries not yet submitted may name their numbers.
    closing: Vec<OwnedFd>,
    waker: Waker,
    accept_mode: AcceptMode,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("sockets", &self.sockets.len())
            .field("under_way", &self.ops.len())
            .field("buffers_free", &self.arena.available())
            .finish_non_exhaustive()
    }
}

impl Ring {
    pub fn new(config: RingConfig) -> Result<Self, UringError> {
        let ring = setup::build(config.entries)?;
        let arena =
            Arena::new(config.buffers, config.buffer_size).map_err(|e| UringError::System("mmap", e))?;
        let waker = Waker::new().map_err(|e| UringError::System("eventfd", e.into()))?;
        let mut ring = Self {
            ring,
            arena: ManuallyDrop::new(arena),
            ops: ManuallyDrop::new(Slab::new()),
            sockets: Slab::new(),
            backlog: VecDeque::new(),
            closing: Vec::new(),
            waker,
            accept_mode: AcceptMode::Many,
        };
        ring.watch_waker();
        Ok(ring)
    }

    /// Wakes [`Ring::wait`] from another thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Gives a socket to the ring. It must be blocking: an operation on a non-blocking one fails with EAGAIN
    /// instead of waiting.
    pub fn add(&mut self, fd: OwnedFd) -> SocketId {
        SocketId(self.sockets.insert(Socket { fd, ops: Vec::new() }))
    }

    /// For socket options.
    pub fn socket(&self, id: SocketId) -> Option<BorrowedFd<'_>> {
        self.sockets.get(id.0).map(|socket| socket.fd.as_fd())
    }

    /// Closes a socket; operations under way on it are cancelled, and still complete.
    pub fn close(&mut self, id: SocketId) {
        self.cancel(id);
        if let Some(socket) = self.sockets.remove(id.0) {
            if self.is_submitted() {
                drop(socket.fd);
            } else {
                self.closing.push(socket.fd);
            }
        }
    }

    pub fn take_buffer(&mut self) -> Option<BufferId> {
        self.arena.take()
    }

    pub fn give_back(&mut self, id: BufferId) {
        self.arena.give_back(id);
    }

    pub fn buffers_free(&self) -> usize {
        self.arena.available()
    }

    /// Gives the pages of unused buffers back to the system, but for `keep` of them.
    pub fn trim(&mut self, keep: usize) {
        self.arena.trim(keep);
    }

    /// Octets of a buffer; `None` outside it and where a receive is under way.
    pub fn bytes(&self, id: BufferId, at: u32, len: u32) -> Option<&[u8]> {
        self.arena.bytes(id, at, len)
    }

    /// Operations under way, the ring's own included.
    pub fn under_way(&self) -> usize {
        self.ops.len()
    }
}

/// Operations. Each completes once under the caller's token; false: it was not begun (no such socket or buffer part).
impl Ring {
    /// Accepts connections until a completion says `more: false`.
    pub fn accept(&mut self, id: SocketId, token: u64) -> bool {
        let mode = self.accept_mode;
        self.begin(id, token, Kind::Accept(id, mode), |fd| match mode {
            AcceptMode::Many => opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build(),
            AcceptMode::Once => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build(),
        })
    }

    pub fn connect(&mut self, id: SocketId, to: SocketAddr, token: u64) -> bool {
        let address = Box::new(SockAddr::from(to));
        let (pointer, len) = (address.as_ptr().cast(), address.len());
        self.begin(id, token, Kind::Connect(id, address), |fd| opcode::Connect::new(fd, pointer, len).build())
    }

    /// Receives at most `len` octets into the buffer; `Done(0)` is the end of the stream.
    pub fn recv(&mut self, id: SocketId, buffer: BufferId, at: u32, len: u32, token: u64) -> bool {
        let Some(pointer) = self.arena.begin(buffer, at, len, true) else { return false };
        let begun =
            self.begin(id, token, Kind::Recv(id, buffer), |fd| opcode::Recv::new(fd, pointer, len).build());
        if !begun {
            self.arena.end(buffer, true);
        }
        begun
    }

    /// Sends at most `len` octets of the buffer, without SIGPIPE.
    pub fn send(&mut self, id: SocketId, buffer: BufferId, at: u32, len: u32, token: u64) -> bool {
        let Some(pointer) = self.arena.begin(buffer, at, len, false) else { return false };
        let begun = self.begin(id, token, Kind::Send(id, buffer), |fd| {
            opcode::Send::new(fd, pointer, len).flags(libc::MSG_NOSIGNAL).build()
        });
        if !begun {
            self.arena.end(buffer, false);
        }
        begun
    }

    /// Completes with the poll events when the socket has failed or is closed in both directions; FIN from the
    /// peer alone does not end it.
    pub fn watch(&mut self, id: SocketId, token: u64) -> bool {
        // A single poll would end with POLLRDHUP, which io_uring always adds, and again each time it is armed after FIN.
        // A multishot one looks again only when the socket wakes its waiters.
        let build = |fd| opcode::PollAdd::new(fd, HANGUP).multi(true).build();
        self.begin(id, token, Kind::Watch(id, 0), build)
    }

    /// Stops everything under way on a socket; each operation completes, with ECANCELED if it was stopped.
    pub fn cancel(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id.0) else { return };
        let ops: Vec<Key> = socket.ops.clone();
        for op in ops {
            self.push(opcode::AsyncCancel::new(op.to_bits()).build().user_data(CANCEL));
        }
    }

    fn begin(&mut self, id: SocketId, token: u64, kind: Kind, build: impl FnOnce(Fd) -> Entry) -> bool {
        let Some(socket) = self.sockets.get_mut(id.0) else { return false };
        let fd = Fd(socket.fd.as_raw_fd());
        let op = self.ops.insert(Op { token, kind });
        socket.ops.push(op);
        self.push(build(fd).user_data(op.to_bits()));
        true
    }

    fn watch_waker(&mut self) {
        let op = self.ops.insert(Op { token: 0, kind: Kind::Wake });
        let fd = Fd(self.waker.as_fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        self.push(entry.user_data(op.to_bits()));
    }
}
