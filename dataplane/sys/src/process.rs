//! Child processes that do not outlive the thread that started them.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Makes the child of `command` receive SIGKILL when the thread that spawns it ends, however it ends.
///
/// The kernel ties the signal to the spawning *thread* (prctl(2), PR_SET_PDEATHSIG), so spawn from one that
/// lives as long as the child should. Used by the lab for everything that runs in its namespaces.
pub fn kill_with_parent(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)?;
        // The parent may have died between fork and prctl; the signal would then never come.
        if getppid() != Some(parent) {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; `prepare` makes two bare system
    // calls, allocates nothing (`io::Error` from an errno or a kind holds no heap), and takes no lock.
    unsafe { command.pre_exec(prepare) }
}
