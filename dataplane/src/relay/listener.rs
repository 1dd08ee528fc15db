//! Where clients' connections arrive: one transparent listener per address family and worker.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use weir_sys::sockopt;
use weir_sys::uring::Errno;

use super::{RelayConfig, RelayError};

/// The listeners of one worker: IPv4, then IPv6. The kernel spreads new connections over workers (SO_REUSEPORT).
///
/// On a kernel without IPv6 there is only one, with a warning.
pub(super) fn open(config: &RelayConfig) -> Result<Vec<OwnedFd>, RelayError> {
    let wildcards = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let mut listeners = Vec::new();
    for ip in wildcards {
        let address = SocketAddr::new(ip, config.listen);
        match listen(address, config) {
            Ok(listener) => listeners.push(listener),
            Err(e) if Errno::from_io_error(&e) == Some(Errno::AFNOSUPPORT) && !listeners.is_empty() => {
                tracing::warn!(%address, "this kernel has no IPv6: the relay serves IPv4 alone");
            }
            Err(source) => return Err(listen_error(address, source)),
        }
    }
    Ok(listeners)
}

/// What is set on the listener holds for what it accepts.
fn listen(address: SocketAddr, config: &RelayConfig) -> io::Result<OwnedFd> {
    let listener = sockopt::transparent_listener(address, config.backlog)?;
    // Without it small writes wait for an acknowledgement.
    sockopt::set_nodelay(&listener)?;
    sockopt::set_upkeep(&listener, &config.upkeep)?;
    sockopt::keep_syn(&listener)?;
    Ok(listener)
}

fn listen_error(address: SocketAddr, source: io::Error) -> RelayError {
    let advice = match Errno::from_io_error(&source) {
        Some(Errno::ADDRINUSE) => {
            "another process listens there (`ss -ltnp` names it); stop it or change `listen` in [fallback]"
        }
        Some(Errno::PERM) => "transparent sockets need CAP_NET_ADMIN: run weir as root or grant it",
        Some(Errno::MFILE | Errno::NFILE) => "raise the limit of open files",
        _ => "the relay cannot serve without it",
    };
    RelayError::Listen { address, source, advice }
}

/// Whether an accept failed because of that one connection (accept(2), "Error handling"), so that the next may do.
/// Else descriptors or memory are short, which time may bring.
pub(super) fn is_gone(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::CONNABORTED
            | Errno::INTR
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::NETDOWN
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH
    )
}

/// Whether a connection was made to the listener itself, rather than brought there: its upstream leg would be made to
/// the listener, too, and so on.
pub(super) fn is_own(local: SocketAddr, listen: u16) -> bool {
    local.port() == listen && sockopt::is_local(local.ip())
}
