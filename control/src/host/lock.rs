//! One weir per network namespace.
//!
//! The lock is the abstract Unix socket `@weir`: abstract names belong to the network namespace, and the kernel gives the
//! name back when the process ends, however it ends. A file would be shared between namespaces and would outlive crashes.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use super::sockets::{connect_at_once, holder_of_lock};
use super::{HostError, Instance, Paths};

const NAME: &str = "weir";
/// How long the name of a process that has ended may still be taken: by a child of its that has not come to its exec, or
/// by the kernel, which closes sockets in its own time.
pub const DYING: Duration = Duration::from_secs(2);
pub const PAUSE: Duration = Duration::from_millis(5);

/// Held as long as this lives.
#[derive(Debug)]
pub struct Lock {
    socket: UnixListener,
}

impl Lock {
    /// Takes the lock of the calling thread's network namespace; the error names the process that has it.
    pub fn acquire() -> Result<Self, HostError> {
        let name = SocketAddr::from_abstract_name(NAME)
            .map_err(|e| HostError::Kernel(format!("cannot name the socket @{NAME}: {e}")))?;
        let deadline = Instant::now() + DYING;
        loop {
            match UnixListener::bind_addr(&name) {
                Ok(socket) => return Ok(Self { socket }),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                    let holder = holder();
                    if holder.is_some_and(is_alive) || Instant::now() > deadline {
                        return Err(HostError::Locked { holder, config: config_of(holder) });
                    }
                    std::thread::sleep(PAUSE);
                }
                Err(e) => return Err(HostError::Kernel(format!("cannot bind the socket @{NAME}: {e}"))),
            }
        }
    }
}

impl Lock {
    /// A descriptor of it, for a process that takes this one's place: the lock is held as long as either has it.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }

    /// The lock of the process whose place this one takes.
    pub fn of_predecessor(descriptor: OwnedFd) -> Self {
        Self { socket: UnixListener::from(descriptor) }
    }

    /// From now on this process is named to whoever meets the lock.
    ///
    /// # Errors
    /// None is expected.
    pub fn sign(&self) -> io::Result<()> {
        // The kernel remembers who listened last.
        Ok(rustix::net::listen(&self.socket, BACKLOG)?)
    }
}

/// Nobody accepts; a connection is a question for the holder's name.
const BACKLOG: i32 = 128;

/// The configuration of the process that has the lock, as it wrote down.
fn config_of(holder: Option<i32>) -> Option<PathBuf> {
    let instance = Instance::read(&Paths::of_this_namespace().ok()?.instance)?;
    (i32::try_from(instance.pid).ok() == holder).then_some(instance.config)
}

/// Whether the process has not ended. One that has may be a zombie still.
pub fn is_alive(pid: i32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Whether a signal or a debugger has stopped the process.
pub fn is_stopped(pid: i32) -> bool {
    state(pid).is_some_and(|state| matches!(state, 'T' | 't'))
}

/// The letter of proc_pid_stat(5).
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The state follows the name, which is in parentheses and may hold any.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The process that listens on the name. Nobody takes the questions from its backlog: once that is full, who has the socket open is
/// looked up instead.
fn holder() -> Option<i32> {
    let ask = || {
        let socket = connect_at_once(&SocketAddrUnix::new_abstract_name(NAME.as_bytes())?)?;
        rustix::net::sockopt::socket_peercred(&socket)
    };
    match ask() {
        Ok(peer) => Some(peer.pid.as_raw_nonzero().get()),
        Err(Errno::AGAIN) => holder_of_lock().filter(|pid| *pid != 0),
        Err(_) => None,
    }
}
