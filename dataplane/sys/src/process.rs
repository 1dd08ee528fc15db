//! This process and its children: limits, and children that end with their parent.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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

/// Raises the limits of locked memory (UMEMs, maps on kernels before 5.11) and of open files as far as is allowed. Where
/// it is not, warns and goes on: whether the limits suffice shows when they are met.
pub fn raise_limits() {
    raise(Resource::Memlock, "locked memory", u64::MAX);
    raise(Resource::Nofile, "open files", 1 << 20);
}

fn raise(resource: Resource, name: &str, wanted: u64) {
    let is = getrlimit(resource);
    let current = is.current.unwrap_or(u64::MAX);
    if current >= wanted {
        return;
    }
    let limit = if wanted == u64::MAX { None } else { Some(wanted) };
    let most = is.maximum.map_or(limit, |hard| Some(limit.map_or(u64::MAX, |limit| limit).max(hard)));
    let most = most.filter(|most| *most != u64::MAX);
    if setrlimit(resource, Rlimit { current: limit, maximum: most }).is_ok() {
        return;
    }
    let hard = is.maximum.unwrap_or(u64::MAX);
    if setrlimit(resource, Rlimit { current: is.maximum, maximum: is.maximum }).is_err() {
        tracing::warn!("the limit of {name} stays at {current}");
    } else {
        tracing::debug!("the limit of {name} is {hard}, and may not be raised");
    }
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
