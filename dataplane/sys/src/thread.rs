//! What a thread of this process is about, seen from another one: whether it runs, waits for a CPU, or for something else.

use std::mem::MaybeUninit;
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

/// Whether the thread runs or would, had it a CPU (state R of proc_pid_stat(5)); not one that sleeps or was stopped.
pub fn is_runnable(thread: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
    // The name stands in parentheses, and may have some of its own.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R'))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn thread_that_works_is_runnable_and_takes_time() {
        let this = current();
        let (before, start) = (cpu_time(this).unwrap(), Instant::now());
        while start.elapsed() < Duration::from_millis(20) {}
        assert!(cpu_time(this).unwrap() > before);
        assert!(is_runnable(this));
    }

    #[test]
    fn thread_that_sleeps_is_not_runnable_and_takes_none() {
        let (tell, told) = channel();
        let (wake, woken) = channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tell.send(current()).unwrap();
            let _ = woken.recv();
        });
        let number = told.recv().unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        while is_runnable(number) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let before = cpu_time(number).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(cpu_time(number).unwrap(), before);
        assert!(!is_runnable(number));
        drop(wake);
        sleeper.join().unwrap();
        assert!(!is_runnable(number), "gone");
    }
}
