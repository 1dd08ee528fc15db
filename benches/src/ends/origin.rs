//! The server behind the gateway: short answers, with an end or without, and streams that never end. One thread, one epoll.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use weir_control::lab::{IPV4, IPV6, Lab};
use weir_sys::affinity;

use super::{ANSWER, HANDSHAKE};
use crate::Failure;
use crate::bed::LOAD_CPU;
use crate::contender::{HTTP, TLS};

const CHUNK: usize = 256 * 1024;
const EVENTS: usize = 256;

/// How often it looks whether it is to stop.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// The running server. Dropping it ends it.
#[derive(Debug)]
pub struct Origin {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    /// Starts it.
    ///
    /// # Errors
    /// A port cannot be listened on.
    pub fn start(lab: &Lab) -> Result<Self, Failure> {
        let bind = |(address, port)| -> io::Result<TcpListener> {
            let listener = TcpListener::bind(SocketAddr::new(address, port))?;
            rustix::net::listen(&listener, 4096)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let addresses = IPV4.servers.into_iter().chain(IPV6.servers);
        let targets = addresses.flat_map(|address| [(address, HTTP), (address, TLS)]);
        let listeners = lab.server.run(|| targets.map(bind).collect::<io::Result<Vec<_>>>())?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (number, listener) in (0..).zip(&listeners) {
            epoll::add(&epoll, listener, EventData::new_u64(number), EventFlags::IN)?;
        }
        let mut server = Server { epoll, listeners, conns: Vec::new(), free: Vec::new() };
        let stop = Arc::<AtomicBool>::default();
        let stops = stop.clone();
        let body = move || {
            let _ = affinity::pin_to_cpu(LOAD_CPU);
            if let Err(error) = server.serve(&stops) {
                eprintln!("the origin: {error}");
            }
        };
        Ok(Self { stop, thread: Some(lab.server.spawn(body)?) })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Server {
    epoll: OwnedFd,
    listeners: Vec<TcpListener>,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
}

struct Conn {
    stream: TcpStream,
    streams: bool,
    /// Octets of a ClientHello that are still to come.
    hello: usize,
}

impl Server {
    fn serve(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        let chunk = vec![b'w'; CHUNK];
        while !stop.load(Relaxed) {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&TURN)) {
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
        Ok(())
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
            self.conns[at] = Some(Conn { stream, streams: false, hello: 0 });
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
        let mut asked = [0; 4096];
        loop {
            match self.stream.read(&mut asked) {
                Ok(0) => return false,
                Ok(len) if asked[..len].starts_with(b"GET /bulk") => self.streams = true,
                Ok(len) if self.hello > 0 || asked[0] == HANDSHAKE => {
                    if self.hello == 0 {
                        self.hello = usize::from(u16::from_be_bytes([asked[3], asked[4]])) + 5;
                    }
                    self.hello = self.hello.saturating_sub(len);
                    if self.hello == 0 {
                        let _ = self.stream.write_all(ANSWER);
                        return false;
                    }
                }
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
