//! How an idle worker sleeps: on its sockets, on wakeups by other threads, and on a timeout, through io_uring.
//!
//! Called by the worker loop of weir-dataplane when nothing was to be done for a while (`idle = "adaptive"`). Polls are
//! armed only when the worker is about to sleep and fire once, so a busy worker pays nothing for them.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use rustix::event::{EventfdFlags, eventfd};

/// Descriptors that a worker can wait for: one per port, and room to spare.
const MAX_FDS: usize = 62;

/// The eventfd's number among what is waited for; sockets count from 0.
const WAKER: u64 = u64::MAX;
/// Of a cancellation; its completion says nothing.
const CANCEL: u64 = u64::MAX - 1;

/// What ended a wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// A socket has something (or went bad): look at all of them.
    pub sockets: bool,
    /// Another thread called [`Waker::wake`].
    pub woken: bool,
    /// There was something to do before it fell asleep.
    pub had_work: bool,
}

impl Ready {
    /// Nothing but time passed.
    pub fn timed_out(self) -> bool {
        self == Self::default()
    }
}

#[derive(Debug)]
struct Shared {
    sleeping: AtomicBool,
    event: OwnedFd,
}

/// Wakes one worker. Cheap to clone, for any thread; costs a fence and a load while the worker is awake.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

impl Waker {
    /// Call after the work has been put where the worker looks for it.
    pub fn wake(&self) {
        // Pairs with the fence in Waiter::wait: either this load sees `sleeping`, or the worker's last look sees the
        // work that was put there before this call.
        fence(Ordering::SeqCst);
        if self.shared.sleeping.load(Ordering::Relaxed) && self.shared.sleeping.swap(false, Ordering::AcqRel)
        {
            // The counter cannot overflow: it is written once per sleep.
            let _ = rustix::io::write(&self.shared.event, &1u64.to_ne_bytes());
        }
    }
}

#[derive(Debug)]
struct Socket {
    fd: RawFd,
    armed: bool,
    /// The kernel refused to poll it; asking again would spin.
    bad: bool,
}

/// A worker's end. It moves to the worker's thread and stays there.
pub struct Waiter {
    ring: IoUring,
    shared: Arc<Shared>,
    waker_armed: bool,
    sockets: Vec<Option<Socket>>,
}

impl Waiter {
    /// Makes the ring and the eventfd.
    ///
    /// # Errors
    /// EPERM: io_uring is forbidden here (kernel.io_uring_disabled, or a seccomp filter). ENOMEM, EMFILE.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::new(64)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { sleeping: AtomicBool::new(false), event });
        Ok(Self { ring, shared, waker_armed: false, sockets: Vec::new() })
    }

    /// A handle for the threads that have work for this worker.
    pub fn waker(&self) -> Waker {
        Waker { shared: self.shared.clone() }
    }

    /// Adds a descriptor; wake when it is readable. Remove it before it is closed: while a poll of it is armed the kernel
    /// keeps an AF_XDP socket, and its queue, open.
    ///
    /// # Errors
    /// More than 62 descriptors.
    pub fn add(&mut self, fd: impl AsFd) -> io::Result<()> {
        let socket = Socket { fd: fd.as_fd().as_raw_fd(), armed: false, bad: false };
        if let Some(place) = self.sockets.iter_mut().find(|place| place.is_none()) {
            *place = Some(socket);
            return Ok(());
        }
        if self.sockets.len() >= MAX_FDS {
            return Err(io::Error::other(format!("a worker waits for at most {MAX_FDS} descriptors")));
        }
        self.sockets.push(Some(socket));
        Ok(())
    }

    /// Removes a descriptor; when this returns the kernel holds it no more on this ring's behalf.
    ///
    /// # Errors
    /// What io_uring says; then the descriptor may still be held.
    pub fn remove(&mut self, fd: impl AsFd) -> io::Result<()> {
        let raw = fd.as_fd().as_raw_fd();
        let is_it = |place: &Option<Socket>| place.as_ref().is_some_and(|socket| socket.fd == raw);
        let Some(place) = self.sockets.iter().position(is_it) else { return Ok(()) };
        self.collect();
        if self.is_armed(place) {
            let cancel = opcode::PollRemove::new(place as u64).build().user_data(CANCEL);
            self.push(cancel)?;
            while self.is_armed(place) {
                self.ring.submit_and_wait(1)?;
                self.collect();
            }
        }
        self.sockets[place] = None;
        Ok(())
    }

    /// Sleeps until a descriptor is readable, a waker wakes, or `timeout` has passed. `has_work` is the last look at
    /// what other threads may have left: it is called after wakers have been told that this worker sleeps, so nothing
    /// that is put there and followed by a wake is missed. If it says yes, returns at once.
    ///
    /// # Errors
    /// What io_uring says; EINTR is not an error, but an early return.
    pub fn wait(&mut self, timeout: Duration, has_work: impl FnOnce() -> bool) -> io::Result<Ready> {
        self.collect();
        self.shared.sleeping.store(true, Ordering::Relaxed);
        // Pairs with the fence in Waker::wake.
        fence(Ordering::SeqCst);
        if has_work() {
            self.shared.sleeping.store(false, Ordering::Relaxed);
            return Ok(Ready { had_work: true, ..Ready::default() });
        }
        let slept = self.arm().and_then(|()| self.sleep(timeout));
        self.shared.sleeping.store(false, Ordering::Relaxed);
        slept?;
        Ok(self.collect())
    }

    /// Arms what is not armed. A descriptor that is ready by now fires at once.
    fn arm(&mut self) -> io::Result<()> {
        if !self.waker_armed {
            self.push(poll(self.shared.event.as_raw_fd(), WAKER))?;
            self.waker_armed = true;
        }
        for place in 0..self.sockets.len() {
            let Some(socket) = &self.sockets[place] else { continue };
            if socket.armed || socket.bad {
                continue;
            }
            self.push(poll(socket.fd, place as u64))?;
            if let Some(socket) = &mut self.sockets[place] {
                socket.armed = true;
            }
        }
        Ok(())
    }

    fn sleep(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::from(timeout);
        let args = SubmitArgs::new().timespec(&timeout);
        match self.ring.submitter().submit_with_args(1, &args) {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes what has fired.
    fn collect(&mut self) -> Ready {
        let mut ready = Ready::default();
        let Self { ring, shared, waker_armed, sockets } = self;
        for entry in ring.completion() {
            match entry.user_data() {
                CANCEL => {}
                WAKER => {
                    *waker_armed = false;
                    ready.woken = true;
                    let _ = rustix::io::read(&shared.event, &mut [0u8; 8]);
                }
                place => {
                    let place = usize::try_from(place).unwrap_or(usize::MAX);
                    if let Some(Some(socket)) = sockets.get_mut(place) {
                        socket.armed = false;
                        socket.bad = entry.result() < 0 && entry.result() != -libc::ECANCELED;
                    }
                    ready.sockets = true;
                }
            }
        }
        ready
    }

    fn is_armed(&self, place: usize) -> bool {
        matches!(self.sockets.get(place), Some(Some(socket)) if socket.armed)
    }

    fn push(&mut self, entry: io_uring::squeue::Entry) -> io::Result<()> {
        // SAFETY: polls and their removal refer to no memory, only to descriptors and numbers, which the kernel checks.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("the waiter's submission queue is full"))
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

fn poll(fd: RawFd, number: u64) -> io_uring::squeue::Entry {
    opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).build().user_data(number)
}

const _: () = {
    const fn is_send<T: Send>() {}
    const fn is_shareable<T: Send + Sync>() {}
    is_send::<Waiter>();
    is_shareable::<Waker>();
};

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::time::Instant;

    use rustix::pipe::pipe;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn wait_without_events_times_out() {
        let mut waiter = Waiter::new().unwrap();
        let before = Instant::now();
        let ready = waiter.wait(Duration::from_millis(20), || false).unwrap();
        assert!(ready.timed_out());
        assert!(before.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn wait_with_work_returns_at_once() {
        let mut waiter = Waiter::new().unwrap();
        assert!(waiter.wait(LONG, || true).unwrap().had_work);
    }

    #[test]
    fn descriptor_readable_ends_each_wait_until_it_is_read() {
        let (reader, writer) = pipe().unwrap();
        let mut waiter = Waiter::new().unwrap();
        waiter.add(&reader).unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        for _ in 0..3 {
            assert!(waiter.wait(LONG, || false).unwrap().sockets);
        }
        rustix::io::read(&reader, &mut [0u8; 8]).unwrap();
        assert!(waiter.wait(Duration::from_millis(5), || false).unwrap().timed_out());
        rustix::io::write(&writer, b"x").unwrap();
        assert!(waiter.wait(LONG, || false).unwrap().sockets);
    }

    #[test]
    fn descriptor_removed_is_held_no_more() {
        let (reader, writer) = pipe().unwrap();
        let mut waiter = Waiter::new().unwrap();
        waiter.add(&reader).unwrap();
        assert!(waiter.wait(Duration::from_millis(1), || false).unwrap().timed_out());
        waiter.remove(&reader).unwrap();
        drop(reader);
        // A pipe without a reader refuses: the ring holds none either.
        let error = rustix::io::write(&writer, b"x").unwrap_err();
        assert_eq!(error, rustix::io::Errno::PIPE);
        assert!(waiter.wait(Duration::from_millis(1), || false).unwrap().timed_out());
    }

    #[test]
    fn descriptors_beyond_the_bound_are_refused_and_places_are_used_again() {
        let (reader, _writer) = pipe().unwrap();
        let mut waiter = Waiter::new().unwrap();
        for _ in 0..MAX_FDS {
            waiter.add(&reader).unwrap();
        }
        assert!(waiter.add(&reader).is_err());
        waiter.remove(&reader).unwrap();
        waiter.add(&reader).unwrap();
        assert!(waiter.wait(Duration::from_millis(1), || false).unwrap().timed_out());
    }

    #[test]
    fn wake_before_the_wait_costs_nothing_and_is_seen_by_the_last_look() {
        let mut waiter = Waiter::new().unwrap();
        let work = AtomicBool::new(false);
        work.store(true, Ordering::Relaxed);
        waiter.waker().wake();
        assert!(waiter.wait(LONG, || work.load(Ordering::Relaxed)).unwrap().had_work);
        assert!(waiter.wait(Duration::from_millis(1), || false).unwrap().timed_out());
    }

    /// Two threads play ping-pong by counters and wakers: one lost wakeup costs ten seconds, and so fails.
    #[test]
    fn wakers_racing_with_sleep_lose_nothing() {
        const ROUNDS: u64 = 20_000;
        let mut waiter = Waiter::new().unwrap();
        let waker = waiter.waker();
        let (asked, answered) = (AtomicU64::new(0), AtomicU64::new(0));
        let before = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    asked.store(round, Ordering::Release);
                    waker.wake();
                    while answered.load(Ordering::Acquire) < round {
                        std::thread::yield_now();
                    }
                }
            });
            let mut round = 0;
            while round < ROUNDS {
                if asked.load(Ordering::Acquire) > round {
                    round += 1;
                    answered.store(round, Ordering::Release);
                    continue;
                }
                waiter.wait(LONG, || asked.load(Ordering::Acquire) > round).unwrap();
            }
        });
        assert!(before.elapsed() < LONG, "a wakeup was lost");
    }
}
