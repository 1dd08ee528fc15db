//! Network namespaces, by descriptor: for the demo, for tests, for a gateway that lives in one.
//!
//! A namespace lasts as long as a descriptor of it, a thread in it or a socket of it: nothing is left in the file system,
//! and a process that is killed leaves none. Sockets, netlink, ioctls and /proc/thread-self/net follow the thread;
//! /sys/class/net does not, unless it is mounted anew ([`enter_new_with_mounts`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// The calling thread's.
    ///
    /// # Errors
    /// When /proc is not mounted, or there are too many open files.
    pub fn current() -> io::Result<Self> {
        let fd = open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd })
    }

    /// A new, empty one; the calling thread stays where it is.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN; ENOSPC above the limit of namespaces.
    pub fn new() -> io::Result<Self> {
        let made =
            std::thread::scope(|scope| scope.spawn(|| enter_new().and_then(|()| Self::current())).join());
        made.unwrap_or_else(|_| Err(io::Error::other("the thread that makes a namespace ended")))
    }

    /// Moves the calling thread, and it alone, into this namespace.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Runs `work` on a thread of its own in this namespace, and waits for it. A panic in it is the caller's.
    ///
    /// # Errors
    /// As [`Namespace::enter`]; `work` has not run then.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let done = std::thread::scope(|scope| scope.spawn(|| self.enter().map(|()| work())).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A second descriptor of the same namespace.
    ///
    /// # Errors
    /// EMFILE.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()? })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A number of the calling thread's namespace that no other has in this boot, be it gone or not. Inodes, which nsfs(5) shows, are
/// used again.
///
/// # Errors
/// ENOPROTOOPT before Linux 5.14.
pub fn cookie() -> io::Result<u64> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    let place = (&raw mut cookie).cast();
    // SAFETY: the call writes at most `len` octets to a word of that size, and how many to `len`.
    let code = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, place, &raw mut len)
    };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// asm-generic/socket.h; the libc crate does not have it.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Moves the calling thread into a new, empty network namespace. Threads that it starts later are in it too.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn enter_new() -> io::Result<()> {
    // SAFETY: a network namespace does not change what descriptors or memory mean to other threads.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// Like [`enter_new`], with mounts of its own in which /sys shows the new namespace's devices. The mounts of the host
/// are not touched.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn enter_new_with_mounts() -> io::Result<()> {
    // SAFETY: as in `enter_new`; with NEWNS the thread also gets its own root and working directory, descriptors stay.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("sysfs", "/sys", "sysfs", flags, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ethtool;

    #[test]
    fn namespace_new_has_loopback_alone_and_leaves_the_caller_where_it_is() {
        let here = ethtool::index_of("lo").unwrap();
        let new = Namespace::new().unwrap();
        let devices = new.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        assert_eq!(devices.lines().count(), 3, "two of heading, and lo: {devices}");
        assert_eq!(ethtool::index_of("lo").unwrap(), here);
    }

    #[test]
    fn cookie_is_the_same_in_a_namespace_and_never_that_of_one_before() {
        assert_eq!(cookie().unwrap(), cookie().unwrap());
        let cookies: Vec<u64> =
            (0..50).map(|_| Namespace::new().unwrap().run(|| cookie().unwrap()).unwrap()).collect();
        let different: std::collections::BTreeSet<&u64> = cookies.iter().collect();
        assert_eq!(different.len(), cookies.len(), "{cookies:?}");
    }

    #[test]
    fn namespace_with_mounts_shows_its_devices_in_sys() {
        let names = std::thread::spawn(|| {
            enter_new_with_mounts().unwrap();
            let entries = std::fs::read_dir("/sys/class/net").unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(names.join().unwrap(), ["lo"]);
    }
}
