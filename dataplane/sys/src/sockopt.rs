//! TCP sockets that stand in for others: listeners that accept connections to any address, and connections that are
//! made from any address (IP_TRANSPARENT, Linux Documentation/networking/tproxy.rst).
//!
//! The relay of weir-dataplane uses them. All are close-on-exec; listeners are blocking (the ring waits, not the socket), and
//! what is connected does not wait.
//! They need CAP_NET_ADMIN, or `EPERM`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

/// What the kernel looks after by itself on a connection's sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// After so long without a segment of the far end's it is asked whether it is there, and a connection whose end does not
    /// answer [`PROBES`] times ends with ETIMEDOUT. None: never.
    pub keepalive: Option<Duration>,
    /// So long octets may stay unacknowledged, or a window shut; then the connection ends with ETIMEDOUT (TCP_USER_TIMEOUT). None:
    /// as net.ipv4.tcp_retries2 says.
    pub user_timeout: Option<Duration>,
}

/// How often an end that does not answer is asked, and at most how far apart.
pub const PROBES: u32 = 4;
const PROBE_INTERVAL: Duration = Duration::from_secs(15);

/// Sets it on a socket, or on a listener for all that it accepts; what is none is left as it is. Keepalive counts in whole seconds.
///
/// Errors: none is expected.
pub fn set_upkeep(socket: impl AsFd, upkeep: &Upkeep) -> io::Result<()> {
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    if let Some(idle) = upkeep.keepalive {
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(idle.min(PROBE_INTERVAL));
        socket.set_tcp_keepalive(&keepalive.with_retries(PROBES))?;
    }
    match upkeep.user_timeout {
        Some(timeout) => socket.set_tcp_user_timeout(Some(timeout)),
        None => Ok(()),
    }
}

/// Takes it away from a listener that another process has set it on.
///
/// Errors: none is expected.
pub fn clear_upkeep(socket: impl AsFd) -> io::Result<()> {
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    socket.set_keepalive(false)?;
    socket.set_tcp_user_timeout(None)
}

/// Of what a listener accepts, the kernel keeps the header of the SYN until [`syn_class`] has read it (TCP_SAVE_SYN).
///
/// Errors: none is expected.
pub fn keep_syn(listener: impl AsFd) -> io::Result<()> {
    set_number(listener, libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 1)
}

/// The DSCP that the SYN of an accepted connection had, in the upper six bits (as IP_TOS and IPV6_TCLASS have it); it can be asked
/// once. None: its listener did not keep it.
pub fn syn_class(socket: impl AsFd) -> Option<u8> {
    /// IPv6, and TCP with all options; IP options are cut off, and behind what is read here.
    const ROOM: usize = 128;
    let mut header = [0_u8; ROOM];
    let mut len = ROOM as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the call writes at most `len` octets to an array of that length, and how many to `len`.
    let code = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_SAVED_SYN, header.as_mut_ptr().cast(), &raw mut len)
    };
    let class = match header[0] >> 4 {
        4 => header[1],
        6 => header[0] << 4 | header[1] >> 4,
        _ => 0,
    };
    (code == 0 && len > 1).then_some(class & !ECN)
}

/// The bits of the octet that are ECN's (RFC 3168), and the kernel's business.
const ECN: u8 = 0b11;

/// Packets of the connection to `server` get this DSCP (upper six bits).
///
/// Errors: none is expected.
pub fn set_class(socket: impl AsFd, server: SocketAddr, class: u8) -> io::Result<()> {
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    match server {
        SocketAddr::V4(_) => socket.set_tos_v4(u32::from(class)),
        SocketAddr::V6(_) => socket.set_tclass_v6(u32::from(class)),
    }
}

/// A listener whose accepted sockets have the destination that the client meant as their local address.
///
/// One of many on the same address (SO_REUSEPORT): the kernel spreads connections over them. An IPv6 one leaves
/// IPv4 alone. `backlog` is cut to net.core.somaxconn by the kernel. Errors: `EADDRINUSE`, `EPERM`, `EAFNOSUPPORT`.
pub fn transparent_listener(address: SocketAddr, backlog: i32) -> io::Result<OwnedFd> {
    let socket = transparent_place(address)?;
    listen(&socket, backlog)?;
    Ok(socket)
}

/// As [`transparent_listener`], and it does not listen yet: no connection comes to it.
///
/// # Errors
/// As [`transparent_listener`].
pub fn transparent_place(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = transparent(address, Type::STREAM)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Lets it listen; one that does goes on, with this length of its queue.
///
/// # Errors
/// `EADDRINUSE`: another has come to listen there that does not share the port.
pub fn listen(socket: impl AsFd, backlog: i32) -> io::Result<()> {
    Ok(rustix::net::listen(socket, backlog)?)
}

/// A socket that will connect from `source`, which need not be an address of this host. Port 0: any port.
///
/// Errors: `EADDRINUSE` when another socket has the address and port for itself, `EPERM`, `EMFILE`.
pub fn transparent_stream(source: SocketAddr) -> io::Result<OwnedFd> {
    let socket = transparent(source, Type::STREAM.nonblocking())?;
    socket.bind(&source.into())?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// A socket that will connect to `server` from an address of this host: the kernel chooses address and port then (the port
/// of net.ipv4.ip_local_port_range), and until then they are zero.
///
/// Errors: `EMFILE`, `ENOBUFS`.
pub fn own_stream(server: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(server), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    let unspecified = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Ok((socket.into(), SocketAddr::new(unspecified, 0)))
}

/// Begins to connect, without waiting: the socket is writable once it is connected, and hung when it could not be.
///
/// Errors: as connect(2) knows them at once.
pub fn connect_now(socket: impl AsFd, server: SocketAddr) -> io::Result<()> {
    match rustix::net::connect(socket, &server) {
        Err(rustix::io::Errno::INPROGRESS) => Ok(()),
        result => Ok(result?),
    }
}

/// Why a socket hangs, once.
pub fn take_error(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::sockopt::socket_error(socket)??)
}

/// Receives what there is, without waiting; 0: the end.
///
/// Errors: `EAGAIN` when there is nothing, `ECONNRESET` and others when the far end has gone.
pub fn recv_now(socket: impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    let (len, _) = rustix::net::recv(socket, into, RecvFlags::DONTWAIT)?;
    Ok(len)
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

/// As [`recv_now`], and whether anything is left behind what was received, octets or the end: none where the socket was not told to say so
/// ([`say_what_is_left`]).
///
/// Errors: as of [`recv_now`].
pub fn recv_and_look(socket: impl AsFd, into: &mut [u8]) -> io::Result<(usize, Option<bool>)> {
    // A header of a control message, and a number (cmsg(3)), aligned for it.
    let mut control = [0_u64; 3];
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: msghdr is integers and pointers: all zeros is a value of it.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the message names two pieces of memory of the lengths that it says, both of which live for the call.
    let len = unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) };
    let Ok(len) = usize::try_from(len) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel has written whole messages to `control`, as far as `message` says.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    let first = first.filter(|head| (head.cmsg_level, head.cmsg_type) == (libc::IPPROTO_TCP, TCP_INQ));
    // SAFETY: behind the header of this message is an int (net/ipv4/tcp.c, tcp_recvmsg).
    let left = first.map(|head| unsafe { libc::CMSG_DATA(head).cast::<libc::c_int>().read_unaligned() });
    Ok((len, left.map(|left| left > 0)))
}

/// The option, and the control message (include/uapi/linux/tcp.h).
const TCP_INQ: libc::c_int = 36;

/// With each receive of this socket, or of what this listener accepts, the kernel says whether anything is left (TCP_INQ).
///
/// Errors: none is expected.
pub fn say_what_is_left(socket: impl AsFd) -> io::Result<()> {
    set_number(socket, libc::IPPROTO_TCP, TCP_INQ, 1)
}

fn set_number(
    socket: impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the value lives for the call, which reads `len` octets of it.
    let code = unsafe { libc::setsockopt(fd, level, option, std::ptr::from_ref(&value).cast(), len) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn transparent(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
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

#[cfg(test)]
mod tests;
