//! The two queues of a ring: what was begun goes in, what completed comes out.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::cqueue;
use io_uring::opcode;
use io_uring::squeue::Entry;
use io_uring::types::{SubmitArgs, Timespec};
use rustix::io::Errno;

use super::{ACCEPT, Completion, Outcome, REMOVED, REWAKE, Readiness, Ring, TOKEN, WAKE};

/// How long is waited where the kernel cannot.
const PAUSE: Duration = Duration::from_millis(1);

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
        self.after(entered.map(drop), out)
    }

    /// What io_uring_enter(2) has left, and what it says.
    pub(super) fn after(&mut self, entered: io::Result<()>, out: &mut Vec<Completion>) -> io::Result<()> {
        let mut is_short = false;
        match entered {
            Ok(()) => {}
            Err(e) if is_loss(&e) => {
                self.push(opcode::PollRemove::new(WAKE).build().user_data(REWAKE));
                out.push(Completion { token: 0, outcome: Outcome::Lost, more: false });
            }
            Err(e) if is_passing(&e) => is_short = is_shortage(&e),
            Err(e) => return Err(e),
        }
        self.collect(out);
        if is_short && out.is_empty() {
            // It did not wait, and will not the next time.
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn collect(&mut self, out: &mut Vec<Completion>) {
        // One pass over what is there: completions that come meanwhile are for the next call.
        let batch = self.ring.completion().len();
        for _ in 0..batch {
            let Some(entry) = self.ring.completion().next() else { break };
            out.extend(self.complete(&entry));
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let (word, result) = (entry.user_data(), entry.result());
        let more = cqueue::more(entry.flags());
        let outcome = match (word, u32::try_from(result)) {
            (REMOVED, _) => return None,
            (REWAKE, _) => {
                if result == -libc::ENOENT {
                    self.watch_waker();
                }
                return None;
            }
            (WAKE, _) => {
                self.waker.clear();
                self.watch_waker();
                return Some(Completion { token: 0, outcome: Outcome::Woken, more });
            }
            (_, Err(_)) => Outcome::Failed(Errno::from_raw_os_error(-result)),
            (_, Ok(_)) if word & ACCEPT != 0 => Outcome::Accepted(accepted(entry)?),
            (_, Ok(events)) => Outcome::Ready(Readiness::of(events)),
        };
        Some(Completion { token: word & TOKEN, outcome, more })
    }

    pub(super) fn push(&mut self, entry: Entry) {
        if self.backlog.is_empty() {
            // SAFETY: the entry names no memory but its own, and descriptors only by their numbers: at worst it fails, or is
            // about another file.
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
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Connections that nobody was told of.
        while let Some(entry) = self.ring.completion().next() {
            drop(accepted(&entry));
        }
    }
}

/// Completions found no place, not even in the list of those that wait for one (`IO_CHECK_CQ_DROPPED_BIT` of io_uring/io_uring.c). It is
/// said once.
fn is_loss(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADR)
}

/// Memory is short.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM))
}

/// What passes by itself: the completion queue is full or memory is short, for which collecting completions is the cure.
fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN, libc::ENOMEM];
    error.raw_os_error().is_some_and(|errno| passing.contains(&errno))
}

/// The descriptor that an accept brought, once for each completion.
fn accepted(entry: &cqueue::Entry) -> Option<OwnedFd> {
    let accepts = ![REMOVED, WAKE, REWAKE].contains(&entry.user_data()) && entry.user_data() & ACCEPT != 0;
    // SAFETY: a successful accept gives a new descriptor that nobody else owns, and each completion is taken from the queue once.
    (accepts && entry.result() >= 0).then(|| unsafe { OwnedFd::from_raw_fd(entry.result()) })
}
