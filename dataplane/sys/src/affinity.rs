//! Which CPUs this process may use, and binding a worker to one.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that the calling thread may run on, ascending.
///
/// # Errors
/// What the kernel says.
pub fn available_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Binds the calling thread to one CPU.
///
/// # Errors
/// EINVAL: there is no such CPU, or it is not among the available ones.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Gives the calling thread only the time that nothing else on its CPU wants (SCHED_IDLE, sched(7)): for what makes load,
/// beside what carries it.
///
/// # Errors
/// What the kernel says.
pub fn run_when_idle() -> io::Result<()> {
    // SAFETY: sched_param is integers, and on some C libraries reserved ones: all zeros is a value of it, and the only
    // priority of SCHED_IDLE.
    let param: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: `param` is valid for reading; 0 is the calling thread.
    let code = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Runs the calling thread before every ordinary one of its CPU (SCHED_FIFO, the lowest priority): for one that must not be late
/// and does next to nothing.
///
/// # Errors
/// EPERM without CAP_SYS_NICE, or where RLIMIT_RTPRIO or the control group leaves no room.
pub fn run_promptly() -> io::Result<()> {
    // SAFETY: as in `run_when_idle`; a priority is set below.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = 1;
    // SAFETY: `param` is valid for reading; 0 is the calling thread. Children, if there ever are any, are ordinary again.
    let code = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const param)
    };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Nice value of threads that carry traffic: nine tenths of a CPU that others want too.
const FAVOURED: libc::c_int = -10;

/// Gives the calling thread, which carries traffic, more of its CPU than threads that do not. Not all of it, as SCHED_FIFO
/// would: a worker that never sleeps must leave room. Without CAP_SYS_NICE nothing changes, and nothing is said: it is a help
/// on a busy machine, not a need. Who started weir with more than that is not overruled.
pub fn favour() {
    // SAFETY: as below. -1 may also be a failure, and is no value to stay at either.
    if unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) } <= FAVOURED {
        return;
    }
    // SAFETY: no memory is passed; 0 is the calling thread.
    let code = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, FAVOURED) };
    if code < 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "the thread has no more of its CPU than others");
    }
}

/// Binds another thread, of any process or of the kernel, to one CPU.
///
/// # Errors
/// ESRCH: it has ended. EINVAL: as for [`pin_to_cpu`], or a kernel thread that may not be moved. EPERM.
pub fn pin_thread_to_cpu(thread: u32, cpu: usize) -> io::Result<()> {
    let thread = i32::try_from(thread).ok().and_then(rustix::process::Pid::from_raw);
    let Some(thread) = thread.filter(|_| cpu < CpuSet::MAX_CPU) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(Some(thread), &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_pinned_runs_on_that_cpu_alone() {
        std::thread::spawn(|| {
            let last = *available_cpus().unwrap().last().unwrap();
            pin_to_cpu(last).unwrap();
            assert_eq!(available_cpus().unwrap(), [last]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn thread_is_favoured_and_keeps_what_is_more() {
        // SAFETY: no memory is passed; 0 is the calling thread.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        std::thread::spawn(move || {
            favour();
            assert_eq!(nice(), FAVOURED, "as root");
            // SAFETY: as above.
            assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) }, 0);
            favour();
            assert_eq!(nice(), -15);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn thread_that_runs_when_idle_still_runs() {
        let ran = std::thread::spawn(|| run_when_idle().map(|()| available_cpus().map(|cpus| cpus.len())));
        assert!(ran.join().unwrap().unwrap().unwrap() > 0);
    }

    #[test]
    fn child_pinned_from_outside_runs_on_that_cpu_alone() {
        let first = available_cpus().unwrap()[0];
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        pin_thread_to_cpu(child.id(), first).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(status.contains(&format!("Cpus_allowed_list:\t{first}\n")), "{status}");
        assert_eq!(pin_thread_to_cpu(child.id(), first).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(pin_thread_to_cpu(0, first).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn pin_to_a_cpu_that_is_not_there_is_refused() {
        for cpu in [CpuSet::MAX_CPU - 1, CpuSet::MAX_CPU, usize::MAX] {
            assert_eq!(pin_to_cpu(cpu).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{cpu}");
        }
    }
}
