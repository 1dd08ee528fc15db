//! Mount namespaces, by descriptor: how a thread joins one that another thread of this process made
//! ([`crate::netns::enter_new_with_mounts`]). Called by the lab for whatever runs in its gateway.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Moves the calling thread, and it alone, into the mount namespace that `mounts` names, with the working
/// directory of the same path there, or `/` where there is none.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN and CAP_SYS_CHROOT; EINVAL when `mounts` is something else.
pub fn enter(mounts: BorrowedFd<'_>) -> io::Result<()> {
    let directory = std::env::current_dir();
    // setns(2) refuses a thread that shares its root and working directory with others.
    // SAFETY: CLONE_FS concerns root, working directory and umask; descriptors keep their meaning.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    move_into_link_name_space(mounts, Some(LinkNameSpaceType::Mount))?;
    // Joining moved the thread to the root; relative paths should go on to mean what they meant.
    if let Ok(directory) = directory {
        let _ = rustix::process::chdir(directory);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn joining_thread_sees_the_other_mounts_and_keeps_its_directory() {
        let made = std::thread::spawn(|| {
            crate::netns::enter_new_with_mounts().unwrap();
            // Its /sys shows the devices of this network namespace for as long as that lives.
            let open = |kind: &str| File::open(format!("/proc/thread-self/ns/{kind}")).unwrap();
            (open("mnt"), open("net"))
        });
        let (mounts, _network) = made.join().unwrap();
        let here = std::env::current_dir().unwrap();
        let devices = || std::fs::read_dir("/sys/class/net").unwrap().count();
        let (host, seen, directory) = std::thread::scope(|scope| {
            let joined = scope.spawn(|| {
                enter(mounts.as_fd()).unwrap();
                (devices(), std::env::current_dir().unwrap())
            });
            let (seen, directory) = joined.join().unwrap();
            (devices(), seen, directory)
        });
        assert_eq!(seen, 1, "lo alone");
        assert!(host >= seen);
        assert_eq!(directory, here);
        assert_eq!(std::env::current_dir().unwrap(), here, "the others stay");
    }
}
