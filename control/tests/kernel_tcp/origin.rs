//! All servers, in one thread.

use std::io::{self, ErrorKind, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use weir_control::lab::{IPV4, IPV6, Lab};

use crate::client::{ROOM, step_all, streams};
use crate::hello;
use crate::talk::{Begin, Talk};
use crate::variant::Variant;

/// How long the servers may take to hear the end of what the clients have ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// Octets of the streams that go before the others.
pub const FIRST: usize = 10_000;

/// The servers of a variant.
#[derive(Debug)]
pub struct Origin {
    /// How many connections they have to serve before they may end; all by now: none is known.
    wanted: Arc<AtomicUsize>,
    thread: JoinHandle<(usize, Vec<String>)>,
}

impl Origin {
    /// Listens on the ports of both families: on all addresses that the lab has for servers.
    pub fn start(lab: &Lab, variant: &Variant, octets: usize) -> Self {
        let (server, lets_go) = (variant.server, variant.resets_first_server);
        let header = variant.proxy_header;
        let mut listeners = Vec::new();
        for family in [IPV4, IPV6] {
            for (place, address) in family.servers.into_iter().enumerate() {
                for port in [80, 443] {
                    let target = SocketAddr::new(address, port);
                    let listener = lab.server.run(|| listen(target)).expect("a free port");
                    let role = match place {
                        _ if place == server => Role::Serves,
                        0 if lets_go => Role::IsLetGo,
                        _ => Role::IsNotAsked,
                    };
                    listeners.push((listener, role));
                }
            }
        }
        let wanted = Arc::new(AtomicUsize::new(usize::MAX));
        let until = Arc::clone(&wanted);
        let work = move || serve(&listeners, &|| begin(header, octets), &until);
        let thread = lab.server.spawn(work).expect("a thread can be started");
        Self { wanted, thread }
    }

    /// Ends them when they have served so many: how many were served whole, and what became of the others.
    pub fn stop(self, wanted: usize) -> (usize, Vec<String>) {
        self.wanted.store(wanted, Ordering::Relaxed);
        self.thread.join().expect("the servers do not panic")
    }
}

/// Listens, with room for all that come at once.
fn listen(target: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&target.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// What a server is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Serves,
    /// Connected to, and let go by an RST before it has heard an octet.
    IsLetGo,
    IsNotAsked,
}

fn serve(
    listeners: &[(TcpListener, Role)],
    begin: &dyn Fn() -> Begin,
    wanted: &AtomicUsize,
) -> (usize, Vec<String>) {
    let (mut open, mut done, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    let mut let_go = Vec::new();
    let mut buffer = vec![0; ROOM];
    let mut end = None;
    loop {
        for (listener, role) in listeners {
            while let Ok((stream, peer)) = listener.accept() {
                stream.set_nonblocking(true).expect("a stream can be told not to block");
                match role {
                    Role::Serves => open.push(Talk::waiting(stream, begin())),
                    Role::IsLetGo => let_go.push(stream),
                    Role::IsNotAsked => failed.push(format!("{peer} came to {:?}", stream.local_addr())),
                }
            }
        }
        // Waits for at most a tick, so that new connections are not kept waiting for long.
        failed.extend(step_all(&mut open, &mut done, &mut buffer));
        let wanted = wanted.load(Ordering::Relaxed);
        if wanted != usize::MAX {
            let end = *end.get_or_insert_with(|| Instant::now() + PATIENCE);
            if done.len() >= wanted || Instant::now() > end {
                failed.extend(let_go.iter().filter_map(heard_something));
                failed.extend(open.iter().take(10).map(|talk| format!("not in time: {talk:?}")));
                return (done.len(), failed);
            }
        }
    }
}

/// A server that is let go may hear an RST, or nothing where that was lost.
fn heard_something(mut stream: &TcpStream) -> Option<String> {
    match stream.read(&mut [0; 64]) {
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::WouldBlock) => None,
        other => Some(format!("a server that was let go heard {other:?}")),
    }
}

/// What the first octets tell: the number of the connection, behind a header of PROXY protocol version 2 if there is one.
fn begin(header: bool, octets: usize) -> Begin {
    let mut awaits_header = header;
    Box::new(move |start| {
        if awaits_header {
            let length = proxy_header(start)?;
            start.drain(..length);
            awaits_header = false;
        }
        let (kind, number) = hello::read(start)?;
        let length = if number < 4 { FIRST } else { octets };
        let (hears, says) = streams(kind, number, length);
        Some((says, hears))
    })
}

/// The length of the header that the stream begins with, when all of it is there.
fn proxy_header(start: &[u8]) -> Option<usize> {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let length = 16 + usize::from(u16::from_be_bytes([*start.get(14)?, *start.get(15)?]));
    assert!(start.starts_with(SIGNATURE) && start[12] == 0x21, "no PROXY header: {:02x?}", &start[..16]);
    (start.len() >= length).then_some(length)
}
