//! Network and mount namespaces, entered by threads.
//!
//! For the lab of `weir demo` and the namespace tests: a thread that left the host's namespaces cannot
//! alter the host. Joining an existing namespace is safe and is done with `rustix::thread` by the callers;
//! what is here is `unshare(2)`, which rustix marks unsafe because of one flag that we never pass.

use std::io;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves the calling thread, and the threads and children it starts from now on, into a new network namespace.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; `ENOSPC` when the limit of namespaces is reached (unshare(2)).
pub fn unshare_network() -> io::Result<()> {
    unshare(UnshareFlags::NEWNET)
}

/// Like [`unshare_network`], and into a new mount namespace that begins as a copy of the current one.
///
/// Mounts still propagate to the host until the caller makes `/` private in it.
///
/// # Errors
/// As [`unshare_network`].
pub fn unshare_network_and_mounts() -> io::Result<()> {
    unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS)
}

/// Gives the calling thread a root and working directory of its own, which `setns(2)` asks for before a
/// thread may join a mount namespace.
///
/// # Errors
/// `ENOMEM` (unshare(2)).
pub fn unshare_working_directory() -> io::Result<()> {
    unshare(UnshareFlags::FS)
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: unshare is unsound only with CLONE_FILES, since another thread's descriptors would then name
    // other files here; the three callers above, the only ones, pass NEWNET, NEWNS and FS.
    unsafe { unshare_unsafe(flags) }.map_err(io::Error::from)
}
