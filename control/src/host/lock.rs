//! One weir per network namespace.
//!
//! The lock is the abstract Unix socket `@weir`: abstract names belong to the network namespace, and the kernel gives the
//! name back when the process ends, however it ends. A file would be shared between namespaces and would outlive crashes.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use super::HostError;

const NAME: &str = "weir";

/// Held as long as this lives.
#[derive(Debug)]
pub struct Lock {
    _socket: UnixListener,
}

impl Lock {
    /// Takes the lock of the calling thread's network namespace; the error names the process that has it.
    pub fn acquire() -> Result<Self, HostError> {
        let name = SocketAddr::from_abstract_name(NAME)
            .map_err(|e| HostError::Kernel(format!("cannot name the socket @{NAME}: {e}")))?;
        match UnixListener::bind_addr(&name) {
            Ok(socket) => Ok(Self { _socket: socket }),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                Err(HostError::Locked { holder: holder(&name) })
            }
            Err(e) => Err(HostError::Kernel(format!("cannot bind the socket @{NAME}: {e}"))),
        }
    }
}

/// The process that listens on the name.
fn holder(name: &SocketAddr) -> Option<i32> {
    let socket = UnixStream::connect_addr(name).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&socket).ok()?;
    Some(peer.pid.as_raw_nonzero().get())
}
