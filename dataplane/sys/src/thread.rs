//! What a thread of this process is about, seen from another one: whether it runs, waits for a CPU, or for something else.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

/// The kernel's number of the calling thread.
pub fn current() -> u32 {
    // The kernel's numbers are positive.
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

/// CPU time that the thread has had so far, in ns, up to now if it runs; `None`: it is gone.
pub fn cpu_time(thread: u32) -> Option<u64> {
    // CPUCLOCK_SCHED | CPUCLOCK_PERTHREAD_MASK, and the number inverted: include/linux/posix-timers_types.h, "Bit fields within a
    // clockid". glibc's pthread_getcpuclockid(3) makes the same.
    let clock = !(thread as libc::clockid_t) << 3 | 6;
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: `time` is valid for writing a timespec; the kernel checks the clock's number.
    let code = unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
    if code != 0 {
        return None;
    }
    // SAFETY: the call has succeeded, and so has written all of it.
    let time = unsafe { time.assume_init() };
    let (seconds, rest) = (u64::try_from(time.tv_sec).ok()?, u64::try_from(time.tv_nsec).ok()?);
    Some(seconds * 1_000_000_000 + rest)
}

/// CPU time of children of this process that have ended and were waited for.
pub fn children_time() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `usage` is valid for writing one.
    if unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) } != 0 {
        return Duration::ZERO;
    }
    // SAFETY: the call has succeeded, and so has written all of it.
    let usage = unsafe { usage.assume_init() };
    let of = |time: libc::timeval| {
        let micros = u64::try_from(time.tv_usec).unwrap_or(0);
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + Duration::from_micros(micros)
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// What the kernel says that a thread is about (proc_pid_stat(5), state).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// R: it runs, or would, had it a CPU.
    Runnable,
    /// S: it waits for something, and whatever comes wakes it.
    Asleep,
    /// It was stopped or is traced, waits for a disk, or has ended.
    Other,
}

/// Tells a thread's state again and again, for a system call each time.
#[derive(Debug)]
pub struct StateFile(File);

impl StateFile {
    /// Of a thread of this process.
    ///
    /// # Errors
    /// There is no such thread, or no /proc.
    pub fn open(thread: u32) -> io::Result<Self> {
        File::open(format!("/proc/self/task/{thread}/stat")).map(Self)
    }

    /// # Errors
    /// ESRCH: the thread has ended. None else is expected.
    pub fn read(&self) -> io::Result<State> {
        // The state comes after a number and a name of at most 64 octets.
        let mut line = [0; 128];
        let read = self.0.read_at(&mut line, 0)?;
        // The name stands in parentheses, and may have some of its own.
        let line = line.get(..read).unwrap_or_default();
        let end = line.windows(2).rposition(|pair| pair == b") ");
        match end.and_then(|end| line.get(end + 2)) {
            Some(b'R') => Ok(State::Runnable),
            Some(b'S') => Ok(State::Asleep),
            Some(_) => Ok(State::Other),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::*;

    fn state_of(thread: u32) -> State {
        StateFile::open(thread).and_then(|file| file.read()).unwrap()
    }

    #[test]
    fn thread_that_works_is_runnable_and_takes_time() {
        let this = current();
        let (before, start) = (cpu_time(this).unwrap(), Instant::now());
        while start.elapsed() < Duration::from_millis(20) {}
        assert!(cpu_time(this).unwrap() > before);
        assert_eq!(state_of(this), State::Runnable);
    }

    #[test]
    fn thread_that_sleeps_is_asleep_and_takes_no_time() {
        let (tell, told) = channel();
        let (wake, woken) = channel::<()>();
        // As odd a name as there can be.
        let sleeper = std::thread::Builder::new().name("a ) R (b".to_owned()).spawn(move || {
            tell.send(current()).unwrap();
            let _ = woken.recv();
        });
        let number = told.recv().unwrap();
        let state = StateFile::open(number).unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        while state.read().unwrap() != State::Asleep && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let before = cpu_time(number).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(cpu_time(number).unwrap(), before);
        assert_eq!(state.read().unwrap(), State::Asleep);
        drop(wake);
        sleeper.unwrap().join().unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        while state.read().is_ok() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(state.read().unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(StateFile::open(number).is_err());
    }

    #[test]
    fn thread_that_is_stopped_is_not_asleep() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let stat = File::open(format!("/proc/{}/stat", child.id())).map(StateFile).unwrap();
        let wait_for = |state| {
            let end = Instant::now() + Duration::from_secs(5);
            while stat.read().unwrap() != state && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(stat.read().unwrap(), state);
        };
        wait_for(State::Asleep);
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        wait_for(State::Other);
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        wait_for(State::Asleep);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
