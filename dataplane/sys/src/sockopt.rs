//! Transparent TCP sockets: how the relay accepts for servers and connects as clients.
//!
//! Called by the relay of weir-dataplane. Kernel side: Documentation/networking/tproxy.rst. All need CAP_NET_ADMIN.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted; the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// A listener to which tproxy can hand connections for any destination. Non-blocking, for one family: the IPv6 one does
/// not take IPv4. Several may listen on one address, one per worker: the kernel spreads connections over them.
///
/// # Errors
/// EADDRINUSE: another program has the port. EPERM without CAP_NET_ADMIN.
pub fn transparent_listener(address: SocketAddr) -> io::Result<Socket> {
    let socket = transparent(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A socket bound to an address that need not be the host's, to connect upstream from. Non-blocking. With port 0 the
/// kernel chooses one at connect, when it knows the destination, so that a port can serve several destinations.
///
/// # Errors
/// EADDRINUSE: the endpoint is bound by a listener. EPERM without CAP_NET_ADMIN.
pub fn transparent_upstream(from: SocketAddr) -> io::Result<Socket> {
    let socket = transparent(from)?;
    if from.port() == 0 {
        set_bind_address_no_port(&socket)?;
    }
    socket.bind(&from.into())?;
    Ok(socket)
}

fn transparent(address: SocketAddr) -> io::Result<Socket> {
    // socket2 sets close-on-exec itself.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    // One client endpoint may have connections to several servers, and may come back while an old one lingers.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Leaves the choice of the port to connect. The option is of the IP level in both families.
fn set_bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let place = std::ptr::from_ref(&on).cast();
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `place` is valid for reading `len` bytes.
    let code = unsafe { libc::setsockopt(fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, place, len) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::ethtool;
    use crate::netns::Namespace;

    fn in_namespace(work: impl FnOnce() + Send) {
        Namespace::new()
            .unwrap()
            .run(|| {
                ethtool::set_up("lo", true).unwrap();
                work();
            })
            .unwrap();
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn listener_per_worker_and_family_share_the_port() {
        in_namespace(|| {
            let all = ["0.0.0.0:12377", "0.0.0.0:12377", "[::]:12377", "[::]:12377"];
            let made: Vec<_> = all.map(|of| transparent_listener(address(of)).unwrap()).into();
            for socket in &made {
                assert!(socket.nonblocking().unwrap());
            }
        });
    }

    #[test]
    fn listener_on_a_foreign_address_is_possible_and_on_a_taken_port_is_in_use() {
        in_namespace(|| {
            for of in ["192.0.2.10:443", "[2001:db8::10]:443"] {
                transparent_listener(address(of)).unwrap();
            }
            for of in ["127.0.0.1:12377", "[::1]:12377"] {
                let _taken = TcpListener::bind(of).unwrap();
                let error = transparent_listener(address(of)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{of}");
            }
        });
    }

    /// Loopback answers a foreign source only where a local route brings it back: 127.0.0.2 and such for IPv4, and for
    /// IPv6 a route of the namespace that says so.
    #[test]
    fn upstream_from_a_foreign_endpoint_is_seen_as_that_endpoint() {
        in_namespace(|| {
            for (family, prefix) in [("-4", "198.51.100.0/24"), ("-6", "2001:db8:9::/64")] {
                let args = [family, "route", "add", "local", prefix, "dev", "lo"];
                assert!(std::process::Command::new("ip").args(args).status().unwrap().success());
            }
            for (server, client) in
                [("127.0.0.1:0", "198.51.100.7:40000"), ("[::1]:0", "[2001:db8:9::7]:40000")]
            {
                let server = TcpListener::bind(server).unwrap();
                let socket = transparent_upstream(address(client)).unwrap();
                let connecting = socket.connect(&server.local_addr().unwrap().into());
                assert!(
                    connecting.is_ok() || connecting.unwrap_err().raw_os_error() == Some(libc::EINPROGRESS)
                );
                let (mut accepted, from) = server.accept().unwrap();
                assert_eq!(from, address(client));
                socket.set_nonblocking(false).unwrap();
                let mut stream: TcpStream = socket.into();
                stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                accepted.write_all(b"hello").unwrap();
                let mut got = [0; 5];
                stream.read_exact(&mut got).unwrap();
                assert_eq!(&got, b"hello");
            }
        });
    }

    #[test]
    fn upstream_of_one_endpoint_serves_several_servers_at_once() {
        in_namespace(|| {
            for (server, client) in [("127.0.0.1:0", "127.0.0.9:40000"), ("127.0.0.1:0", "127.0.0.9:0")] {
                let servers = [TcpListener::bind(server).unwrap(), TcpListener::bind(server).unwrap()];
                let sockets = servers.each_ref().map(|server| {
                    let socket = transparent_upstream(address(client)).unwrap();
                    let _ = socket.connect(&server.local_addr().unwrap().into());
                    socket
                });
                for (server, _socket) in servers.iter().zip(&sockets) {
                    assert_eq!(server.accept().unwrap().1.ip(), address(client).ip());
                }
            }
        });
    }
}
