//! The two queues of a ring: what was begun goes in, what completed comes out, and what the kernel used is let go.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::squeue::Entry;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{cqueue, opcode};
use rustix::io::Errno;

use super::slab::Key;
use super::{AcceptMode, CANCEL, Completion, HANGUP, Kind, Op, Outcome, QUIESCE, Ring};

impl Ring {
    /// Submits what was begun and waits for completions: at least one, unless `timeout` passes or a signal comes.
    ///
    /// Errors: io_uring_enter(2), beyond those that mean "try again".
    pub fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        self.flush_backlog();
        let entered = match timeout {
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
            None => self.ring.submitter().submit_and_wait(1),
        };
        match entered {
            Ok(_) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {}
            // The completion queue is full or memory is short: collecting completions is the cure.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {}
            Err(e) => return Err(e),
        }
        if self.is_submitted() {
            self.closing.clear();
        }
        self.collect(out);
        Ok(())
    }

    fn collect(&mut self, out: &mut Vec<Completion>) {
        // One pass over what is there: completions that come meanwhile are for the next call.
        let batch = self.ring.completion().len();
        for _ in 0..batch {
            let Some(entry) = self.ring.completion().next() else { break };
            if let Some(completion) = self.complete(&entry) {
                out.push(completion);
            }
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        if entry.user_data() == CANCEL {
            return None;
        }
        let key = Key::from_bits(entry.user_data());
        let more = cqueue::more(entry.flags());
        let result = entry.result();
        let Op { token, kind } = self.ops.get_mut(key)?;
        let token = *token;
        if let Kind::Watch(_, seen) = kind {
            *seen |= u32::try_from(result).unwrap_or(0) & HANGUP;
            if more {
                // It has done its work once it saw something; its last completion tells.
                if *seen != 0 {
                    self.push(opcode::AsyncCancel::new(key.to_bits()).build().user_data(CANCEL));
                }
                return None;
            }
        }
        let mut outcome = match u32::try_from(result) {
            Ok(done) => Outcome::Done(done),
            Err(_) => Outcome::Failed(Errno::from_raw_os_error(-result)),
        };
        if let Kind::Accept(..) = kind
            && result >= 0
        {
            // SAFETY: a successful accept gives a new descriptor that nobody else owns, once.
            outcome = Outcome::Accepted(unsafe { OwnedFd::from_raw_fd(result) });
        }
        if more {
            return Some(Completion { token, outcome, more });
        }
        let kind = self.finish(key)?;
        match kind {
            Kind::Wake => {
                self.waker.clear();
                self.watch_waker();
                outcome = Outcome::Woken;
            }
            // Ended by the kernel with nothing seen (its queue was full): it goes on.
            Kind::Watch(id, 0) if result >= 0 && self.watch(id, token) => return None,
            Kind::Watch(_, seen) if seen != 0 => outcome = Outcome::Done(seen),
            Kind::Accept(id, AcceptMode::Many) if result == -libc::EINVAL => {
                // Before 5.19 an accept takes one connection.
                self.accept_mode = AcceptMode::Once;
                if self.accept(id, token) {
                    return None;
                }
            }
            _ => {}
        }
        Some(Completion { token, outcome, more })
    }

    /// The kernel is done with an operation: lets go of what it used.
    fn finish(&mut self, key: Key) -> Option<Kind> {
        let Op { kind, .. } = self.ops.remove(key)?;
        let id = match kind {
            Kind::Accept(id, _) | Kind::Connect(id, _) | Kind::Watch(id, _) => id,
            Kind::Recv(id, buffer) => {
                self.arena.end(buffer, true);
                id
            }
            Kind::Send(id, buffer) => {
                self.arena.end(buffer, false);
                id
            }
            Kind::Wake => return Some(kind),
        };
        if let Some(socket) = self.sockets.get_mut(id.0) {
            socket.ops.retain(|op| *op != key);
        }
        Some(kind)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        if self.backlog.is_empty() {
            // SAFETY: the entry's descriptor is in self.sockets, or in self.closing until the entry is submitted; its
            // buffer part is marked in self.arena and its address boxed in self.ops until it completes.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
        self.flush_backlog();
    }

    fn flush_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as in push().
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.backlog.pop_front();
            } else if self.ring.submitter().submit().is_err() || self.ring.submission().is_full() {
                return;
            }
        }
    }

    pub(super) fn is_submitted(&mut self) -> bool {
        self.backlog.is_empty() && self.ring.submission().is_empty()
    }

    /// Cancels everything and waits for it. True: the kernel uses none of our memory.
    fn quiesce(&mut self) -> bool {
        let ops: Vec<Key> = self.ops.iter().map(|(key, _)| key).collect();
        for op in ops {
            self.push(opcode::AsyncCancel::new(op.to_bits()).build().user_data(CANCEL));
        }
        let deadline = Instant::now() + QUIESCE;
        while !self.ops.is_empty() && Instant::now() < deadline {
            self.flush_backlog();
            let timespec = Timespec::from(Duration::from_millis(50));
            let _ = self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec));
            let entries: Vec<cqueue::Entry> = self.ring.completion().collect();
            for entry in entries.iter().filter(|entry| entry.user_data() != CANCEL) {
                let key = Key::from_bits(entry.user_data());
                let accepts = matches!(self.ops.get(key), Some(Op { kind: Kind::Accept(..), .. }));
                if accepts && entry.result() >= 0 {
                    // SAFETY: as in complete().
                    drop(unsafe { OwnedFd::from_raw_fd(entry.result()) });
                }
                if !cqueue::more(entry.flags()) {
                    self.finish(key);
                }
            }
        }
        self.ops.is_empty()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.quiesce() {
            // SAFETY: dropped once, here; no operation is under way, so the kernel touches neither.
            unsafe {
                ManuallyDrop::drop(&mut self.arena);
                ManuallyDrop::drop(&mut self.ops);
            }
        } else {
            tracing::warn!(under_way = self.ops.len(), "operations outlive their ring: its memory is leaked");
        }
    }
}
