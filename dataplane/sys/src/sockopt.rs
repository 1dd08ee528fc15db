//! TCP sockets that stand in for others: listeners that accept connections to any address, and connections that are
//! made from any address (IP_TRANSPARENT, Linux Documentation/networking/tproxy.rst).
//!
//! The relay of weir-dataplane uses them. All are blocking and close-on-exec: the ring waits, not the socket.
//! They need CAP_NET_ADMIN, or `EPERM`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::SendFlags;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

/// A listener whose accepted sockets have the destination that the client meant as their local address.
///
/// One of many on the same address (SO_REUSEPORT): the kernel spreads connections over them. An IPv6 one leaves
/// IPv4 alone. `backlog` is cut to net.core.somaxconn by the kernel. Errors: `EADDRINUSE`, `EPERM`, `EAFNOSUPPORT`.
pub fn transparent_listener(address: SocketAddr, backlog: i32) -> io::Result<OwnedFd> {
    let socket = transparent(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// A socket that will connect from `source`, which need not be an address of this host. Port 0: any port.
///
/// Errors: `EADDRINUSE` when another socket has the address and port for itself, `EPERM`, `EMFILE`.
pub fn transparent_stream(source: SocketAddr) -> io::Result<OwnedFd> {
    let socket = transparent(source)?;
    socket.bind(&source.into())?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// A socket that will connect to `server` from an address of this host: the kernel chooses address and port then (the port
/// of net.ipv4.ip_local_port_range), and until then they are zero.
///
/// Errors: `EMFILE`, `ENOBUFS`.
pub fn own_stream(server: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    let unspecified = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Ok((socket.into(), SocketAddr::new(unspecified, 0)))
}

/// Sends what there is room for, without waiting and without SIGPIPE; how much that was. `more_follows`: the kernel may
/// keep it for a moment, to send it with what comes next.
///
/// Errors: `EAGAIN` when there is no room, `ECONNRESET` and `EPIPE` when the far end has gone.
pub fn send_now(socket: impl AsFd, octets: &[u8], more_follows: bool) -> io::Result<usize> {
    let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    flags.set(SendFlags::MORE, more_follows);
    Ok(rustix::net::send(socket, octets, flags)?)
}

fn transparent(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    // One client port connects to many servers, and comes back while an earlier connection is in TIME_WAIT.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// No waiting for more bytes before a segment goes out: a relay gets them when the sender sent them.
pub fn set_nodelay(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket.as_fd()).set_tcp_nodelay(true)
}

/// Closing the socket sends RST and forgets what was not sent (SO_LINGER with no time).
pub fn set_reset_on_close(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket.as_fd()).set_linger(Some(Duration::ZERO))
}

/// FIN: no more octets from us.
pub fn shutdown_write(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket.as_fd()).shutdown(std::net::Shutdown::Write)
}

/// The address and port that a socket is bound to.
pub fn local_address(socket: impl AsFd) -> io::Result<SocketAddr> {
    internet(SockRef::from(&socket.as_fd()).local_addr()?)
}

/// The local address of a connection and its peer's. Errors: `ENOTCONN` when it is reset already.
pub fn endpoints(socket: impl AsFd) -> io::Result<(SocketAddr, SocketAddr)> {
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    Ok((internet(socket.local_addr()?)?, internet(socket.peer_addr()?)?))
}

fn internet(address: SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

/// Whether this host (this network namespace) has the address: whether an ordinary socket can be bound to it.
pub fn is_local(address: IpAddr) -> bool {
    let address = SocketAddr::new(address, 0);
    Socket::new(Domain::for_address(address), Type::DGRAM, None)
        .is_ok_and(|s| s.bind(&address.into()).is_ok())
}
