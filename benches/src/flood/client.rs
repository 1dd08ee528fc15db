//! A real client beside the flood: opens a connection, asks for the page, reads it to the end, and starts over.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weir_control::lab::{IPV4, IPV6, Lab};
use weir_sys::affinity;

use crate::Failure;
use crate::bed::LOAD_CPU;
use crate::contender::HTTP;
use crate::ends::{ANSWER, CLOSE};

/// Connections at a time, of each family.
const AT_ONCE: usize = 4;
/// Pause of each between two: some 150 connections per second in all.
const PAUSE: Duration = Duration::from_millis(50);
/// After this a connection has failed: a SYN is sent again after 1 and 3 s.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the client has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub failed: usize,
    /// From the first SYN to the last octet, ascending.
    pub times: Vec<Duration>,
}

impl Seen {
    /// Of all connections, those that brought the page; none: 0.
    pub fn success(&self) -> f64 {
        let all = self.times.len() + self.failed;
        if all == 0 { 0.0 } else { self.times.len() as f64 / all as f64 }
    }

    /// The time that `part` of the successful ones did not exceed, in seconds.
    pub fn quantile(&self, part: f64) -> f64 {
        let rank = (self.times.len() as f64 * part).ceil() as usize;
        self.times.get(rank.max(1) - 1).map_or(f64::NAN, Duration::as_secs_f64)
    }
}

/// The client at work.
#[derive(Debug)]
pub struct RealClient {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Seen>>,
}

impl RealClient {
    pub fn start(lab: &Lab) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for family in [IPV4, IPV6] {
            for _ in 0..AT_ONCE {
                let stop = stop.clone();
                threads.push(lab.client.spawn(move || browse(family.servers[0], &stop))?);
            }
        }
        Ok(Self { stop, threads })
    }

    /// Ends it, when the connections that are open have ended.
    pub fn finish(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for seen in self.threads.into_iter().filter_map(|thread| thread.join().ok()) {
            all.failed += seen.failed;
            all.times.extend(seen.times);
        }
        all.times.sort_unstable();
        all
    }
}

/// One connection of each family, without a flood; a gateway needs a moment to learn its neighbours.
pub fn try_once(lab: &Lab) -> Result<(), Failure> {
    for family in [IPV4, IPV6] {
        let server = family.servers[0];
        lab.client.run(|| fetch(server).or_else(|_| fetch(server))).map_err(|error| {
            format!("the real client does not reach {server} even without a flood: {error}")
        })?;
    }
    Ok(())
}

fn browse(server: IpAddr, stop: &AtomicBool) -> Seen {
    let _ = affinity::pin_to_cpu(LOAD_CPU);
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        match fetch(server) {
            Ok(()) => seen.times.push(started.elapsed()),
            Err(_) => seen.failed += 1,
        }
        std::thread::sleep(PAUSE);
    }
    seen
}

fn fetch(server: IpAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(server, HTTP), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(CLOSE)?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page)?;
    if page == ANSWER { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
