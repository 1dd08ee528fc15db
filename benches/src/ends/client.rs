//! The clients: as many connections as asked for from one thread with one epoll, both families in turn.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use weir_control::lab::{Addresses, IPV4, IPV6, Lab};
use weir_sys::affinity;

use super::{ANSWER, BULK, CLOSE, KEEP, client_hello};
use crate::Failure;
use crate::bed::LOAD_CPU;
use crate::contender::{HTTP, TLS};

const EVENTS: usize = 256;
/// How often a client looks whether it is to stop.
const TURN: Duration = Duration::from_millis(20);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// A new connection for each request, so many at a time.
    Close(usize),
    /// A new connection for each ClientHello, so many at a time.
    Hello(usize),
    /// One request after the other on so many connections.
    Keep(usize),
    /// As many requests in a second on so many connections, each when its time has come.
    Paced(usize, f64),
    /// Streams, so many at a time.
    Bulk(usize),
    /// So many connections with one request each, and then silence.
    Idle(usize),
}

impl Work {
    const fn connections(self) -> usize {
        let (Self::Close(count)
        | Self::Hello(count)
        | Self::Keep(count)
        | Self::Paced(count, _)
        | Self::Bulk(count)
        | Self::Idle(count)) = self;
        count
    }

    /// The server ends the connection after its answer.
    const fn closes(self) -> bool {
        matches!(self, Self::Close(_) | Self::Hello(_))
    }

    const fn port(self) -> u16 {
        if matches!(self, Self::Hello(_)) { TLS } else { HTTP }
    }

    fn request(self) -> Result<Vec<u8>, Failure> {
        Ok(match self {
            Self::Close(_) => CLOSE.to_vec(),
            Self::Hello(_) => client_hello()?,
            Self::Keep(_) | Self::Paced(..) | Self::Idle(_) => KEEP.to_vec(),
            Self::Bulk(_) => BULK.to_vec(),
        })
    }
}

/// What has been done so far.
#[derive(Debug, Default)]
pub struct Done {
    /// Whole answers.
    pub answers: AtomicU64,
    pub octets: AtomicU64,
    pub failed: AtomicU64,
    /// How the last failure looked.
    last: Mutex<Option<String>>,
    stop: AtomicBool,
}

impl Done {
    fn failed_by(&self, how: &dyn fmt::Display) {
        self.failed.fetch_add(1, Relaxed);
        if let Ok(mut last) = self.last.lock() {
            *last = Some(how.to_string());
        }
    }

    /// How the last failure looked, if any did.
    pub fn last_failure(&self) -> Option<String> {
        self.last.lock().ok()?.clone()
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Clients {
    pub done: Arc<Done>,
    thread: JoinHandle<io::Result<Vec<Duration>>>,
}

impl Clients {
    /// Starts them.
    ///
    /// # Errors
    /// No thread, or no ClientHello.
    pub fn start(lab: &Lab, work: Work) -> Result<Self, Failure> {
        let done = Arc::new(Done::default());
        let (shared, request) = (done.clone(), work.request()?);
        let body = move || {
            let _ = affinity::pin_to_cpu(LOAD_CPU);
            Crowd::new(work, request, shared)?.run()
        };
        Ok(Self { done, thread: lab.client.spawn(body)? })
    }

    /// Ends it; how long each request of [`Work::Paced`] took, ascending.
    ///
    /// # Errors
    /// What ended them before.
    pub fn finish(self) -> Result<Vec<Duration>, Failure> {
        self.done.stop.store(true, Relaxed);
        let mut times = self.thread.join().map_err(|_| "the clients panicked")??;
        times.sort_unstable();
        Ok(times)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Connecting,
    Waiting,
    Resting,
}

struct Conn {
    stream: TcpStream,
    state: State,
    got: usize,
    /// When the request was due.
    since: Instant,
}

struct Crowd {
    work: Work,
    request: Vec<u8>,
    done: Arc<Done>,
    epoll: OwnedFd,
    conns: Vec<Option<Conn>>,
    resting: Vec<usize>,
    opened: usize,
    times: Vec<Duration>,
    buffer: Vec<u8>,
}

impl Crowd {
    fn new(work: Work, request: Vec<u8>, done: Arc<Done>) -> io::Result<Self> {
        Ok(Self {
            work,
            request,
            done,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            conns: Vec::new(),
            resting: Vec::new(),
            opened: 0,
            times: Vec::new(),
            buffer: vec![0; 256 * 1024],
        })
    }

    fn run(mut self) -> io::Result<Vec<Duration>> {
        let mut events = Vec::with_capacity(EVENTS);
        let mut due = Instant::now();
        while !self.done.stop.load(Relaxed) {
            // Not all at once: a listener's queue is finite.
            for _ in 0..(self.work.connections() - self.conns.len()).min(64) {
                self.conns.push(None);
                self.open(self.conns.len() - 1)?;
            }
            let mut wait = TURN;
            if let Work::Paced(_, rate) = self.work {
                wait = self.ask_in_time(&mut due, Duration::from_secs_f64(1.0 / rate));
            }
            events.clear();
            let timeout = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                self.happened(event.data.u64() as usize)?;
            }
        }
        Ok(self.times)
    }

    /// Sends the requests that are due; how long until the next.
    fn ask_in_time(&mut self, due: &mut Instant, every: Duration) -> Duration {
        let now = Instant::now();
        if self.conns.len() < self.work.connections() || self.done.answers.load(Relaxed) == 0 {
            *due = now;
        }
        while *due <= now {
            let Some(at) = self.resting.pop() else { return TURN };
            self.ask(at, *due);
            *due += every;
        }
        *due - now
    }

    fn open(&mut self, at: usize) -> io::Result<()> {
        let family: &Addresses = [&IPV4, &IPV6][self.opened % 2];
        let to = family.servers[self.opened / 2 % 3];
        self.opened += 1;
        let stream = connect(SocketAddr::new(to, self.work.port()))?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET | EventFlags::RDHUP;
        epoll::add(&self.epoll, &stream, EventData::new_u64(at as u64), flags)?;
        self.conns[at] = Some(Conn { stream, state: State::Connecting, got: 0, since: Instant::now() });
        Ok(())
    }

    fn ask(&mut self, at: usize, since: Instant) {
        let Some(conn) = &mut self.conns[at] else { return };
        (conn.state, conn.got, conn.since) = (State::Waiting, 0, since);
        if let Err(error) = conn.stream.write_all(&self.request) {
            // Reading will hear of it, too.
            self.done.failed_by(&format_args!("write: {error}"));
        }
    }

    fn happened(&mut self, at: usize) -> io::Result<()> {
        let Some(conn) = &mut self.conns[at] else { return Ok(()) };
        if conn.state == State::Connecting {
            if let Ok(Some(error)) | Err(error) = conn.stream.take_error() {
                self.done.failed_by(&format_args!("connect: {error}"));
                return self.open(at);
            }
            self.ask(at, Instant::now());
        }
        loop {
            let Some(conn) = &mut self.conns[at] else { return Ok(()) };
            match conn.stream.read(&mut self.buffer) {
                Ok(0) => {
                    if conn.got == ANSWER.len() && self.work.closes() {
                        self.done.answers.fetch_add(1, Relaxed);
                    } else {
                        self.done.failed_by(&format_args!("ended after {} octets", conn.got));
                    }
                    return self.open(at);
                }
                Ok(len) => {
                    self.done.octets.fetch_add(len as u64, Relaxed);
                    conn.got += len;
                    if conn.got == ANSWER.len() {
                        self.answered(at);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    self.done.failed_by(&format_args!("read: {error}, after {} octets", conn.got));
                    return self.open(at);
                }
            }
        }
    }

    /// An answer is whole.
    fn answered(&mut self, at: usize) {
        let Some(conn) = &mut self.conns[at] else { return };
        match self.work {
            // That is counted when the connection has ended.
            Work::Close(_) | Work::Hello(_) | Work::Bulk(_) => return,
            Work::Keep(_) => self.ask(at, Instant::now()),
            Work::Paced(..) => {
                self.times.push(conn.since.elapsed());
                conn.state = State::Resting;
                self.resting.push(at);
            }
            Work::Idle(_) => conn.state = State::Resting,
        }
        self.done.answers.fetch_add(1, Relaxed);
    }
}

/// A connection to a server, after so many requests and answers, one after the other. For the calling thread's namespace.
///
/// # Errors
/// Of the socket; an answer that ends early.
pub fn talk(server: IpAddr, requests: usize) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(server, HTTP), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = vec![0; ANSWER.len()];
    for _ in 0..requests {
        stream.write_all(KEEP)?;
        stream.read_exact(&mut answer)?;
    }
    Ok(stream)
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket =
        Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket.into()),
    }
}
