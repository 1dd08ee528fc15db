//! The server behind the gateway: short answers, with an end or without, and streams that never end. One thread, one epoll.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use weir_benches::Failure;
use weir_benches::bed::LOAD_CPU;
use weir_control::lab::{IPV4, IPV6, Lab};
use weir_sys::affinity;

pub const PORT: u16 = 80;
/// Every answer but that to [`BULK`].
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 62\r\n\r\n\
    a page of some sixty octets, as a health check or an API gives";
/// The connection ends after the answer.
pub const CLOSE: &[u8] = b"GET /close HTTP/1.1\r\nHost: www.example\r\nConnection: close\r\n\r\n";
/// It stays.
pub const KEEP: &[u8] = b"GET /keep HTTP/1.1\r\nHost: www.example\r\n\r\n";
/// Octets without end.
pub const BULK: &[u8] = b"GET /bulk HTTP/1.1\r\nHost: www.example\r\n\r\n";

const CHUNK: usize = 256 * 1024;
const EVENTS: usize = 256;

/// Starts it; it ends with the process, since nobody else can reach it.
pub fn start(lab: &Lab) -> Result<JoinHandle<()>, Failure> {
    let bind = |address| -> io::Result<TcpListener> {
        let listener = TcpListener::bind(SocketAddr::new(address, PORT))?;
        rustix::net::listen(&listener, 4096)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let addresses = IPV4.servers.into_iter().chain(IPV6.servers);
    let listeners = lab.server.run(|| addresses.map(bind).collect::<io::Result<Vec<_>>>())?;
    let mut origin = Origin {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        listeners,
        conns: Vec::new(),
        free: Vec::new(),
    };
    for (number, listener) in (0..).zip(&origin.listeners) {
        epoll::add(&origin.epoll, listener, EventData::new_u64(number), EventFlags::IN)?;
    }
    let body = move || {
        let _ = affinity::pin_to_cpu(LOAD_CPU);
        if let Err(error) = origin.serve() {
            eprintln!("the origin: {error}");
        }
    };
    Ok(lab.server.spawn(body)?)
}

struct Origin {
    epoll: OwnedFd,
    listeners: Vec<TcpListener>,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
}

struct Conn {
    stream: TcpStream,
    streams: bool,
}

impl Origin {
    fn serve(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        let chunk = vec![b'w'; CHUNK];
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let at = event.data.u64() as usize;
                match at.checked_sub(self.listeners.len()) {
                    None => self.accept(at)?,
                    Some(at) => self.talk(at, &chunk),
                }
            }
        }
    }

    fn accept(&mut self, number: usize) -> io::Result<()> {
        while let Ok((stream, _)) = self.listeners[number].accept() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let at = self.free.pop().unwrap_or_else(|| {
                self.conns.push(None);
                self.conns.len() - 1
            });
            let data = EventData::new_u64((at + self.listeners.len()) as u64);
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET | EventFlags::RDHUP;
            epoll::add(&self.epoll, &stream, data, flags)?;
            self.conns[at] = Some(Conn { stream, streams: false });
        }
        Ok(())
    }

    fn talk(&mut self, at: usize, chunk: &[u8]) {
        let Some(conn) = &mut self.conns[at] else { return };
        if !conn.talk(chunk) {
            self.conns[at] = None;
            self.free.push(at);
        }
    }
}

impl Conn {
    /// Whether it goes on.
    fn talk(&mut self, chunk: &[u8]) -> bool {
        let mut asked = [0; 1024];
        loop {
            match self.stream.read(&mut asked) {
                Ok(0) => return false,
                Ok(len) if asked[..len].starts_with(b"GET /bulk") => self.streams = true,
                Ok(len) => {
                    if self.stream.write_all(ANSWER).is_err() || asked[..len].starts_with(b"GET /close") {
                        return false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        while self.streams {
            if let Err(error) = self.stream.write(chunk).map(drop) {
                return error.kind() == io::ErrorKind::WouldBlock;
            }
        }
        true
    }
}
