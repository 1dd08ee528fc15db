//! A bell that threads without an event loop ring for one that has one: a pipe, which any event loop can watch.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

/// Heard from the first ring until what was rung is read. Never blocks.
#[derive(Debug)]
pub struct Bell {
    rung: OwnedFd,
    heard: OwnedFd,
}

impl Bell {
    /// # Errors
    /// EMFILE, ENFILE.
    pub fn new() -> io::Result<Self> {
        let (heard, rung) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { rung, heard })
    }

    /// Call after the work has been put where the other thread looks for it: one system call.
    pub fn ring(&self) {
        // EAGAIN: the pipe is full, and so the bell has rung.
        let _ = rustix::io::write(&self.rung, &[0]);
    }

    /// The end of the pipe that is readable while the bell rings. Read it before looking for the work.
    ///
    /// # Errors
    /// EMFILE.
    pub fn heard_at(&self) -> io::Result<OwnedFd> {
        self.heard.as_fd().try_clone_to_owned()
    }
}
