//! Where clients' connections arrive: one transparent listener per address family and worker.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use weir_sys::sockopt::{self, Upkeep};
use weir_sys::uring::Errno;

use super::{RelayConfig, RelayError};

/// The listeners of each worker: of IPv4, then of IPv6. The kernel spreads new connections over them (SO_REUSEPORT).
///
/// Those of another process are taken first, all of them, since each has connections in its queue: a worker may have several. What
/// is opened besides does not listen then ([`listen`]): connections that came to it would be lost if this process failed.
pub(super) fn open_all(
    config: &RelayConfig,
    inherited: Vec<OwnedFd>,
) -> Result<Vec<Vec<OwnedFd>>, RelayError> {
    let workers = config.workers.max(1);
    let mut all: Vec<Vec<OwnedFd>> = (0..workers).map(|_| Vec::new()).collect();
    let mut taken = [0; 2];
    for listener in inherited {
        let address = sockopt::local_address(&listener).map_err(RelayError::Guard)?;
        if address.port() != config.listen {
            continue;
        }
        // What the configuration says is for [`look_after`]: until this process accepts, they are the other's.
        prepare(&listener).map_err(|source| listen_error(address, source))?;
        let count = &mut taken[usize::from(address.is_ipv6())];
        all[*count % workers].push(listener);
        *count += 1;
    }
    let is_first = taken == [0; 2];
    for (at, listeners) in all.iter_mut().enumerate() {
        let lacks = taken.map(|count| at >= count);
        let opened = open(config, lacks)?;
        if is_first {
            listen(&opened, config.backlog)?;
        }
        listeners.extend(opened);
    }
    Ok(all)
}

/// Of IPv4 and IPv6, as far as a worker lacks them. On a kernel without IPv6 there is only one, with a warning.
fn open(config: &RelayConfig, lacks: [bool; 2]) -> Result<Vec<OwnedFd>, RelayError> {
    let wildcards = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let mut listeners = Vec::new();
    for ip in wildcards.into_iter().zip(lacks).filter_map(|(ip, lacks)| lacks.then_some(ip)) {
        let address = SocketAddr::new(ip, config.listen);
        match place(address, config) {
            Ok(listener) => listeners.push(listener),
            Err(e) if Errno::from_io_error(&e) == Some(Errno::AFNOSUPPORT) && ip.is_ipv6() => {
                tracing::warn!(%address, "this kernel has no IPv6: the relay serves IPv4 alone");
            }
            Err(source) => return Err(listen_error(address, source)),
        }
    }
    Ok(listeners)
}

/// Lets them listen; those that do go on.
pub(super) fn listen(listeners: &[OwnedFd], backlog: i32) -> Result<(), RelayError> {
    for listener in listeners {
        let address = sockopt::local_address(listener).map_err(RelayError::Guard)?;
        sockopt::listen(listener, backlog).map_err(|source| listen_error(address, source))?;
    }
    Ok(())
}

/// The kernel looks after what they accept as is wanted here, and no more as another process has wanted it.
pub(super) fn look_after(listeners: &[OwnedFd], upkeep: &Upkeep) -> io::Result<()> {
    listeners.iter().try_for_each(|listener| {
        sockopt::clear_upkeep(listener)?;
        sockopt::set_upkeep(listener, upkeep)
    })
}

fn place(address: SocketAddr, config: &RelayConfig) -> io::Result<OwnedFd> {
    let listener = sockopt::transparent_place(address)?;
    prepare(&listener)?;
    sockopt::set_upkeep(&listener, &config.upkeep)?;
    Ok(listener)
}

/// What is set on the listener holds for what it accepts.
fn prepare(listener: &OwnedFd) -> io::Result<()> {
    // Without it small writes wait for an acknowledgement.
    sockopt::set_nodelay(listener)?;
    sockopt::say_what_is_left(listener)?;
    sockopt::keep_syn(listener)
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

/// RST rather than FIN: the client knows at once that nobody serves it.
pub(super) fn refuse(socket: OwnedFd) {
    // If it cannot be set the client gets FIN, which ends the connection as well.
    let _ = sockopt::set_reset_on_close(&socket);
}
