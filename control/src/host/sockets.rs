//! Whose sockets are where, from /proc: nothing is connected to, so nobody notices.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The abstract socket that a running weir holds in its network namespace.
const LOCK: &str = "@weir";
/// The flags of a socket that listens, in /proc/net/unix (`__SO_ACCEPTCON`, net/unix/af_unix.c, `unix_seq_show`).
const ACCEPTS: &str = "00010000";

/// A process, and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub pid: i32,
    pub name: String,
}

/// A TCP socket that listens in the calling thread's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub address: IpAddr,
    pub port: u16,
    pub inode: u64,
}

/// The process that holds weir's lock in the calling thread's network namespace; 0 when it cannot be told which.
pub fn holder_of_lock() -> Option<i32> {
    let text = fs::read_to_string("/proc/thread-self/net/unix").ok()?;
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    // The name is also that of connections which nobody has accepted: these have no inode.
    let listens = |of: &Vec<String>| of.len() == 8 && of[3] == ACCEPTS && of[7] == LOCK;
    let inode = text.lines().map(fields).find(listens)?[6].parse().ok()?;
    Some(owner_of(inode).map_or(0, |owner| owner.pid))
}

/// A stream socket that is connected at once, or not at all: whoever listens takes nothing now.
///
/// # Errors
/// EAGAIN: its backlog is full. Otherwise as connect(2).
pub fn connect_at_once(address: &SocketAddrUnix) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, address)?;
    Ok(socket)
}

/// A stream to whoever listens at a socket file, if it is connected at once.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`]: whoever listens takes nothing now, and so many have asked before. Otherwise as connect(2).
pub fn stream_to(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::from(connect_at_once(&SocketAddrUnix::new(path)?)?);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Whether somebody listens at a socket file, be it that he takes nothing now.
///
/// # Errors
/// It cannot be told: as of connect(2).
pub fn is_listened_at(path: &Path) -> io::Result<bool> {
    match stream_to(path) {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => Ok(true),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Ok(false),
            _ => Err(error),
        },
    }
}

/// Who has a socket open. Without privileges only one's own processes are seen.
pub fn owner_of(inode: u64) -> Option<Owner> {
    let wanted = format!("socket:[{inode}]");
    let holds = |pid: &i32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|link| link.as_os_str() == wanted.as_str())
    };
    processes().find(holds).map(|pid| Owner { pid, name: name_of(pid) })
}

/// Processes of this name, as far as they can be seen.
pub fn running(name: &str) -> Option<i32> {
    processes().find(|pid| name_of(*pid) == name)
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn name_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// The sockets that listen, of both families.
pub fn listeners() -> Vec<Listener> {
    let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    parse(&read("tcp")).chain(parse(&read("tcp6"))).collect()
}

fn parse(text: &str) -> impl Iterator<Item = Listener> + use<> {
    const LISTEN: &str = "0A";
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = fields.get(1)?.split_once(':')?;
        let listens = *fields.get(3)? == LISTEN;
        let port = u16::from_str_radix(port, 16).ok()?;
        let inode = fields.get(9)?.parse().ok()?;
        listens.then_some(Listener { address: parse_address(address)?, port, inode })
    };
    text.lines().filter_map(line).collect::<Vec<_>>().into_iter()
}

/// The kernel prints the words of an address as numbers of the host.
fn parse_address(text: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = (0..text.len() / 8)
        .map(|at| u32::from_str_radix(text.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect();
    match words?.as_slice() {
        [word] => Some(IpAddr::from(*word)),
        words @ [_, _, _, _] => Some(IpAddr::from(<[u8; 16]>::try_from(words.concat()).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::host::instance::is_dead_socket;

    #[test]
    fn who_listens_and_takes_nothing_is_there_and_holds_nobody_up() {
        let path = std::env::temp_dir().join(format!("weir-sockets-{}.sock", std::process::id()));
        assert!(!is_listened_at(&path).unwrap());
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match stream_to(&path) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error.kind(),
            }
        };
        assert_eq!(full, io::ErrorKind::WouldBlock);
        assert!(is_listened_at(&path).unwrap() && !is_dead_socket(&path));
        drop(listener);
        assert!(!is_listened_at(&path).unwrap() && is_dead_socket(&path));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn listener_of_this_process_is_found_with_its_owner() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = TcpListener::bind(address).unwrap();
            let local = socket.local_addr().unwrap();
            let all = listeners();
            let found = all.iter().find(|l| l.port == local.port() && l.address == local.ip());
            let owner = owner_of(found.unwrap_or_else(|| panic!("{local} is not in {all:?}")).inode).unwrap();
            assert_eq!(owner.pid, std::process::id() as i32);
        }
    }
}
