//! What an origin noted about a connection: who came, and how many bytes they sent.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
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
pub struct Records(Arc<Mutex<Vec<Record>>>);

impl Records {
    /// Notes a new connection and returns it with its bytes counted from now on.
    ///
    /// # Errors
    /// When the connection is gone already.
    pub(super) fn open(&self, stream: TcpStream) -> io::Result<CountedStream> {
        let record = Record {
            peer: plain(stream.peer_addr()?),
            local: plain(stream.local_addr()?),
            received: Arc::default(),
        };
        let received = Arc::clone(&record.received);
        let peer = record.peer;
        self.lock().push(record);
        Ok(CountedStream { stream, peer, received })
    }

    /// The connections that came from `peer`.
    pub fn of(&self, peer: SocketAddr) -> Vec<Record> {
        self.lock().iter().filter(|record| record.peer == peer).cloned().collect()
    }

    /// Payload bytes that `peer` got through to the origin, over all its connections.
    pub fn received_from(&self, peer: SocketAddr) -> u64 {
        self.of(peer).iter().map(Record::received).sum()
    }

    /// Every connection so far.
    pub fn all(&self) -> Vec<Record> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        // A panicking service thread leaves a list that is still whole.
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
