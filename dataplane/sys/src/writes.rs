//! Who writes to a file: fanotify(7), for the switches of /proc/sys, which no message of the kernel's tells of.
//!
//! A switch is another file in each network namespace: only what is written in that of the thread which named it is heard. Called by
//! weir's repairs. Needs CAP_SYS_ADMIN.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Octets of one event (struct fanotify_event_metadata), and where it has its length, the file and the process.
const EVENT: usize = 24;
const LENGTH: usize = 0;
const FILE: usize = 16;
const PROCESS: usize = 20;
/// Events that are read at once.
const BATCH: usize = 64;

/// Files that are watched for writes.
#[derive(Debug)]
pub struct Writes {
    fd: OwnedFd,
    watched: Vec<Watched>,
}

/// Somebody wrote to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub path: PathBuf,
    pub pid: u32,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// While it is open, whoever opens the path gets the same file: /proc makes them anew when nobody has them.
    file: File,
    inode: (u64, u64),
}

impl Writes {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN; ENOSYS in a kernel without fanotify.
    pub fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::fanotify_init(flags, (libc::O_RDONLY | libc::O_CLOEXEC) as u32) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just made it, and nobody else has it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, watched: Vec::new() })
    }

    /// A second descriptor of the same events, to wait with.
    ///
    /// # Errors
    /// EMFILE.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Watches these files from now on, and no others. What is not there, or cannot be watched, is passed over.
    pub fn watch(&mut self, paths: &[PathBuf]) {
        let is_wanted = |of: &Watched| paths.contains(&of.path) && inode_of(&of.path).ok() == Some(of.inode);
        for gone in self.watched.extract_if(.., |of| !is_wanted(of)) {
            // A device that is gone takes its switches with it.
            let _ = mark(&self.fd, libc::FAN_MARK_REMOVE, &gone.file);
        }
        for path in paths {
            if self.watched.iter().any(|of| of.path == *path) {
                continue;
            }
            if let Ok(watched) = self.begin(path) {
                self.watched.push(watched);
            }
        }
    }

    fn begin(&self, path: &Path) -> io::Result<Watched> {
        let file = File::open(path)?;
        mark(&self.fd, libc::FAN_MARK_ADD, &file)?;
        let meta = file.metadata()?;
        Ok(Watched { path: path.to_owned(), file, inode: (meta.dev(), meta.ino()) })
    }

    /// Who has written since the last call, in that order; two writes of one process to one file may be one.
    pub fn take(&self) -> Vec<Write> {
        let mut writes = Vec::new();
        let mut events = [0; EVENT * BATCH];
        // Any error, but most of all: nothing left.
        while let Ok(length) = rustix::io::read(&self.fd, &mut events) {
            let mut rest = &events[..length];
            while let Some((event, _)) = rest.split_at_checked(EVENT) {
                writes.extend(self.read(event));
                let length = word(event, LENGTH).unsigned_abs() as usize;
                rest = rest.get(length.max(EVENT)..).unwrap_or_default();
            }
        }
        writes
    }

    fn read(&self, event: &[u8]) -> Option<Write> {
        let file = word(event, FILE);
        // Of an overflow there is none.
        if file < 0 {
            return None;
        }
        // SAFETY: the kernel has opened it for this event, which is read once.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(file) });
        let meta = file.metadata().ok()?;
        let of = self.watched.iter().find(|of| of.inode == (meta.dev(), meta.ino()))?;
        Some(Write { path: of.path.clone(), pid: u32::try_from(word(event, PROCESS)).ok()? })
    }
}

fn word(event: &[u8], at: usize) -> i32 {
    event[at..].first_chunk().map_or(-1, |octets| i32::from_ne_bytes(*octets))
}

fn inode_of(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

fn mark(fd: &OwnedFd, what: libc::c_uint, file: &File) -> io::Result<()> {
    // SAFETY: no path is passed: the descriptor names the file.
    let code = unsafe {
        libc::fanotify_mark(fd.as_raw_fd(), what, libc::FAN_MODIFY, file.as_raw_fd(), std::ptr::null())
    };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::netns::Namespace;

    const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

    fn write_by_another(path: &str) -> u32 {
        let mut child = Command::new("sh").args(["-c", &format!("echo 0 > {path}")]).spawn().unwrap();
        assert!(child.wait().unwrap().success());
        child.id()
    }

    #[test]
    fn writer_of_a_switch_is_told_and_one_in_another_namespace_is_not() {
        let (here, elsewhere) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        here.run(|| {
            let mut writes = Writes::new().unwrap();
            let redirects = "/proc/sys/net/ipv6/conf/all/accept_redirects";
            writes.watch(&[FORWARD.into(), redirects.into(), "/proc/sys/net/none".into()]);
            assert_eq!(writes.take(), []);
            let (first, second) = (write_by_another(FORWARD), write_by_another(redirects));
            elsewhere.run(|| write_by_another(FORWARD)).unwrap();
            assert!(std::fs::read(FORWARD).is_ok(), "reading is nobody's concern");
            let told = |path: &str, pid| Write { path: path.into(), pid };
            assert_eq!(writes.take(), [told(FORWARD, first), told(redirects, second)]);
            writes.watch(&[redirects.into()]);
            write_by_another(FORWARD);
            let third = write_by_another(redirects);
            assert_eq!(writes.take(), [told(redirects, third)]);
        })
        .unwrap();
    }
}
