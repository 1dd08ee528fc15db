//! This process and its children: limits, and children that end with their parent.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that are asked for: two per relayed connection, and more than most kernels let a process have by default.
pub const MOST_FILES: u64 = 1 << 20;

/// Makes the child get SIGKILL when the thread that starts it ends: prctl(PR_SET_PDEATHSIG). The thread, not the
/// process: start it from one that lives as long as the child is wanted.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made (prctl, getppid), and nothing is allocated:
    // `from_raw_os_error` is a plain value.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have ended before the call.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

/// A thread of another process that stands still while its others go on, as one that hangs does; it goes on when this is
/// dropped, or ends. For tests and measurements.
#[derive(Debug)]
pub struct Frozen {
    thread: libc::pid_t,
    /// ptrace knows the thread that called it, not the process.
    of_this_thread: std::marker::PhantomData<*const ()>,
}

impl Frozen {
    /// Stops a thread: ptrace(2), PTRACE_SEIZE and PTRACE_INTERRUPT. Returns when it is asked to, which it does at once.
    ///
    /// # Errors
    /// EPERM: it may not be traced. ESRCH: there is no such thread.
    pub fn thread(thread: i32) -> io::Result<Self> {
        ptrace(libc::PTRACE_SEIZE, thread)?;
        let frozen = Self { thread, of_this_thread: std::marker::PhantomData };
        ptrace(libc::PTRACE_INTERRUPT, thread)?;
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Only what has stopped can be let go; a thread that was killed is gone.
        // SAFETY: no memory is passed.
        unsafe { libc::waitpid(self.thread, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) };
        let _ = ptrace(libc::PTRACE_DETACH, self.thread);
    }
}

fn ptrace(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    // SAFETY: the requests that are made here take neither an address nor data.
    let code =
        unsafe { libc::ptrace(request, thread, std::ptr::null_mut::<u8>(), std::ptr::null_mut::<u8>()) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Raises the limits of locked memory (UMEMs, maps on kernels before 5.11) and of open files: to what weir may ever need
/// where the process is allowed to, else as far as it may go. Never fails: whether the limits suffice shows when they
/// are met.
pub fn raise_limits() {
    raise(Resource::Memlock, "locked memory", None);
    raise(Resource::Nofile, "open files", Some(MOST_FILES));
}

/// Raises one limit to `wanted`; `None` is no limit.
fn raise(resource: Resource, name: &str, wanted: Option<u64>) {
    let is = getrlimit(resource);
    let at_least = |limit: Option<u64>, wanted: Option<u64>| match (limit, wanted) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(limit), Some(wanted)) => limit >= wanted,
    };
    if at_least(is.current, wanted) {
        return;
    }
    let hard = if at_least(is.maximum, wanted) { is.maximum } else { wanted };
    if setrlimit(resource, Rlimit { current: wanted, maximum: hard }).is_ok() {
        return;
    }
    // Without CAP_SYS_RESOURCE the hard limit is the end.
    if is.current != is.maximum && setrlimit(resource, Rlimit { current: is.maximum, ..is }).is_ok() {
        return;
    }
    tracing::warn!("the limit of {name} stays at {}", is.current.unwrap_or(u64::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_raised_twice_stay() {
        raise_limits();
        let files = getrlimit(Resource::Nofile);
        raise_limits();
        assert_eq!(getrlimit(Resource::Nofile), files);
        assert!(files.current.is_none_or(|files| files >= 1024));
    }

    #[test]
    fn child_of_an_ended_thread_dies() {
        let child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            die_with_parent(command.arg("60")).spawn().unwrap()
        });
        let mut child = child.join().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }
}
