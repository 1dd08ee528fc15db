//! What an origin noted about a connection: who came, and how many bytes they sent.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One connection, as the origin saw it.
#[derive(Clone, Debug)]
pub struct Record {
    /// The other end's address and port.
    pub peer: SocketAddr,
    /// The origin's own address and port.
    pub local: SocketAddr,
    /// Payload bytes received so far.
    received: Arc<AtomicU64>,
}

impl Record {
    /// Payload bytes that the origin has received on this connection so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// All connections of an origin, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Records(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    list: Vec<Record>,
    /// A second handle of each connection that is open now, under its place in the list.
    open: HashMap<usize, TcpStream>,
}

impl Records {
    /// Notes a new connection and returns it with its bytes counted from now on.
    ///
    /// # Errors
    /// When the connection is gone already, or descriptors are short.
    pub(super) fn open(&self, stream: TcpStream) -> io::Result<CountedStream> {
        let record = Record {
            peer: plain(stream.peer_addr()?),
            local: plain(stream.local_addr()?),
            received: Arc::default(),
        };
        let second = stream.try_clone()?;
        let (received, peer) = (Arc::clone(&record.received), record.peer);
        let mut inner = self.lock();
        let place = inner.list.len();
        inner.list.push(record);
        inner.open.insert(place, second);
        drop(inner);
        Ok(CountedStream { stream, peer, received, place, records: self.clone() })
    }

    /// Ends every open connection, so that the threads that serve them end, too.
    pub(super) fn shut_down(&self) {
        for stream in self.lock().open.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The connections that came from `peer`.
    pub fn of(&self, peer: SocketAddr) -> Vec<Record> {
        self.lock().list.iter().filter(|record| record.peer == peer).cloned().collect()
    }

    /// Payload bytes that `peer` got through to the origin, over all its connections.
    pub fn received_from(&self, peer: SocketAddr) -> u64 {
        self.of(peer).iter().map(Record::received).sum()
    }

    /// Every connection so far.
    pub fn all(&self) -> Vec<Record> {
        self.lock().list.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panicking service thread leaves lists that are still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An IPv4 peer on a dual-stack socket under its IPv4 address.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A connection that counts what it receives into its record.
#[derive(Debug)]
pub(super) struct CountedStream {
    stream: TcpStream,
    pub(super) peer: SocketAddr,
    received: Arc<AtomicU64>,
    place: usize,
    records: Records,
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        self.records.lock().open.remove(&self.place);
    }
}

impl Read for CountedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.received.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl Write for CountedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
