//! Pipes that octets go through from one socket to another without being copied (splice(2)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// What a pipe is asked to hold. It counts pages, of which each packet's payload takes one at least.
const SIZE: usize = 1 << 20;
const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

/// A pipe, both ends of it.
#[derive(Debug)]
pub struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    /// Errors: `EMFILE`, `ENFILE`.
    pub fn new() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // fs.pipe-max-size or the user's share may be less; it works with what it has.
        let _ = fcntl_setpipe_size(&into, SIZE);
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
