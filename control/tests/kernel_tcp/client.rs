//! All clients, in one thread.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};
use weir_control::lab::{IPV4, IPV6};

use crate::hello::{self, Kind};
use crate::talk::{State, Stream, Talk};

/// Room for what is read at once.
pub const ROOM: usize = 256 << 10;
/// The source port of the first connection.
const FIRST_PORT: u16 = 20_000;
/// Between two looks at the time.
pub const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A connection to be made.
#[derive(Clone, Debug)]
pub struct Call {
    target: SocketAddr,
    kind: Kind,
    number: usize,
    length: usize,
}

impl Call {
    /// The connection `number`: IPv4 and IPv6, HTTP and TLS by turns.
    pub fn numbered(number: usize, length: usize) -> Self {
        let family = if number.is_multiple_of(2) { IPV4 } else { IPV6 };
        let (kind, port) = if (number / 2).is_multiple_of(2) { (Kind::Http, 80) } else { (Kind::Tls, 443) };
        Self { target: SocketAddr::new(family.servers[0], port), kind, number, length }
    }

    fn start(&self) -> io::Result<Talk> {
        let socket = Socket::new(Domain::for_address(self.target), Type::STREAM, None)?;
        // A port of its own: the kernel may take one for both of a server's ports, and at the pool's one server, which sees the
        // client's address, the two would be the same connection.
        let local = if self.target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        socket.bind(&SocketAddr::new(local, FIRST_PORT + self.number as u16).into())?;
        socket.set_nonblocking(true)?;
        match socket.connect(&self.target.into()) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                Err(error)
            }
            _ => {
                let (says, hears) = streams(self.kind, self.number, self.length);
                Ok(Talk::new(TcpStream::from(socket), says, hears))
            }
        }
    }
}

/// What the client of a connection says, and what it hears.
pub fn streams(kind: Kind, number: usize, length: usize) -> (Stream, Stream) {
    let says = Stream::new(hello::head(kind, number), 2 * number, length);
    (says, Stream::new(Vec::new(), 2 * number + 1, length))
}

/// Clients at work.
#[derive(Debug)]
pub struct Clients {
    calls: Vec<Call>,
    at_once: usize,
    open: Vec<Talk>,
    done: Vec<Talk>,
    failed: Vec<String>,
}

impl Clients {
    /// Clients that make all `calls`, so many at once.
    pub fn new(mut calls: Vec<Call>, at_once: usize) -> Self {
        calls.reverse();
        Self { calls, at_once, open: Vec::new(), done: Vec::new(), failed: Vec::new() }
    }

    /// Makes them. Those that arrived whole, and what became of the others.
    pub fn run(mut self, limit: Duration) -> (Vec<Talk>, Vec<String>) {
        let end = Instant::now() + limit;
        let mut buffer = vec![0; ROOM];
        while !(self.calls.is_empty() && self.open.is_empty()) && self.failed.is_empty() {
            if Instant::now() > end {
                let late = self.open.iter().take(10).map(|talk| format!("not in time: {talk:?}"));
                self.failed.extend(late);
                break;
            }
            while self.open.len() < self.at_once
                && let Some(call) = self.calls.pop()
            {
                match call.start() {
                    Ok(talk) => self.open.push(talk),
                    Err(error) => self.failed.push(format!("{call:?}: {error}")),
                }
            }
            self.failed.extend(step_all(&mut self.open, &mut self.done, &mut buffer));
        }
        (self.done, self.failed)
    }
}

/// Waits until one of them can go on, and lets all go on that can. Those that are done are moved to `done`: a socket that is
/// closed with octets on their way is an orphan, which the kernel gives up sooner (tcp_orphan_retries). Those that failed are
/// taken out and told.
pub fn step_all(open: &mut Vec<Talk>, done: &mut Vec<Talk>, buffer: &mut [u8]) -> Vec<String> {
    let mut ready: Vec<PollFd<'_>> =
        open.iter().map(|talk| PollFd::new(&talk.stream, talk.interest())).collect();
    let _: Result<usize, _> = poll(&mut ready, Some(&TICK));
    let ready: Vec<PollFlags> = ready.iter().map(PollFd::revents).collect();
    let mut failed = Vec::new();
    for (at, ready) in ready.into_iter().enumerate().rev().filter(|(_, ready)| !ready.is_empty()) {
        match open[at].step(ready, buffer) {
            State::Open => {}
            State::Done => done.push(open.swap_remove(at)),
            State::Failed(how) => {
                failed.push(how);
                open.swap_remove(at);
            }
        }
    }
    failed
}
