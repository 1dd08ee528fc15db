//! Pipes that octets go through from one socket to another without being copied (splice(2)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

/// A pipe, both ends of it. It has 16 slots, each for what lies together in memory: of a packet as it was on the wire that is
/// its payload, of a large one as the kernel makes them up to 32 KiB.
#[derive(Debug)]
pub struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    /// Errors: `EMFILE`, `ENFILE`.
    pub fn new() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { out, into })
    }

    /// Takes octets that a socket has received; 0: the end.
    ///
    /// Errors: `EAGAIN` when there is nothing or no room, and the socket's.
    pub fn fill(&self, socket: impl AsFd, most: usize) -> io::Result<usize> {
        Ok(splice(socket, None, &self.into, None, most, FLAGS)?)
    }

    /// Gives octets to a socket, which must be non-blocking: the pipe's flag is not enough.
    ///
    /// Errors: `EAGAIN` when the socket has no room, and the socket's.
    pub fn drain(&self, socket: impl AsFd, most: usize) -> io::Result<usize> {
        Ok(splice(&self.out, None, socket, None, most, FLAGS)?)
    }
}
