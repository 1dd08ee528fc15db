//! One end of a connection: sends one stream, compares what comes with another, and closes when both have ended.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::OnceLock;

use rustix::event::PollFlags;

/// Octets that all streams are cut from: a prime number, so that no two begin alike.
const BLOCK: usize = 1_048_573;
/// The most that is read or written at once.
const CHUNK: usize = 128 << 10;

/// Random octets.
fn block() -> &'static [u8] {
    static OCTETS: OnceLock<Vec<u8>> = OnceLock::new();
    OCTETS.get_or_init(|| {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..BLOCK).map(|_| next()).collect()
    })
}

/// A stream: some first octets, and then so many of the block, from a place of it on.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    pub head: Vec<u8>,
    pub place: usize,
    pub length: usize,
}

impl Stream {
    pub fn new(head: Vec<u8>, seed: usize, length: usize) -> Self {
        Self { head, place: seed.wrapping_mul(7919) % BLOCK, length }
    }

    pub fn len(&self) -> usize {
        self.head.len() + self.length
    }

    /// The octets from `at` on, as far as they stand together.
    fn from(&self, at: usize) -> &[u8] {
        if at < self.head.len() {
            return &self.head[at..];
        }
        let (at, left) = ((at - self.head.len() + self.place) % BLOCK, self.len() - at);
        &block()[at..(at + left.min(CHUNK)).min(BLOCK)]
    }

    /// Whether `octets` are those at `at`.
    fn holds(&self, mut at: usize, mut octets: &[u8]) -> bool {
        while !octets.is_empty() {
            if at >= self.len() {
                return false;
            }
            let part = self.from(at);
            let (now, rest) = octets.split_at(octets.len().min(part.len()));
            if now != &part[..now.len()] {
                return false;
            }
            (at, octets) = (at + now.len(), rest);
        }
        true
    }
}

/// How a talk stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Open,
    Done,
    Failed(String),
}

/// What a talk learns from what it hears first.
pub type Begin = Box<dyn FnMut(&mut Vec<u8>) -> Option<(Stream, Stream)> + Send>;

/// One end.
pub struct Talk {
    pub stream: TcpStream,
    says: Stream,
    hears: Stream,
    /// Until the first octets tell what is to be said and heard: what has come.
    begin: Option<(Vec<u8>, Begin)>,
    said: usize,
    heard: usize,
    closed: bool,
    ended: bool,
}

impl std::fmt::Debug for Talk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stream, said, heard, closed, ended, .. } = self;
        let waits = self.begin.is_some();
        write!(f, "{stream:?}: said {said} of {}, heard {heard} of {}, ", self.says.len(), self.hears.len())?;
        write!(f, "closed {closed}, ended {ended}, waits {waits}")
    }
}

impl Talk {
    /// An end that knows what it says and hears.
    pub fn new(stream: TcpStream, says: Stream, hears: Stream) -> Self {
        Self { stream, says, hears, begin: None, said: 0, heard: 0, closed: false, ended: false }
    }

    /// An end that learns it from what it hears first. `begin` may take octets away from the front.
    pub fn waiting(stream: TcpStream, begin: Begin) -> Self {
        Self { begin: Some((Vec::new(), begin)), ..Self::new(stream, Stream::default(), Stream::default()) }
    }

    /// What it waits for.
    pub fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, !self.ended);
        flags.set(PollFlags::OUT, self.begin.is_none() && !self.closed);
        flags
    }

    /// Does what can be done.
    pub fn step(&mut self, ready: PollFlags, buffer: &mut [u8]) -> State {
        let failed = PollFlags::ERR | PollFlags::HUP;
        let spoken = if ready.intersects(PollFlags::OUT | failed) { self.speak() } else { Ok(()) };
        let heard = if ready.intersects(PollFlags::IN | failed) { self.listen(buffer) } else { Ok(()) };
        match spoken.and(heard) {
            Err(error) => State::Failed(format!("{error}; {self:?}")),
            Ok(()) if self.closed && self.ended => State::Done,
            Ok(()) => State::Open,
        }
    }

    fn speak(&mut self) -> Result<(), String> {
        if self.begin.is_some() || self.closed {
            return Ok(());
        }
        while self.said < self.says.len() {
            match self.stream.write(self.says.from(self.said)) {
                Ok(count) => self.said += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("cannot write: {error}")),
            }
        }
        self.closed = true;
        self.stream.shutdown(Shutdown::Write).map_err(|error| format!("cannot close: {error}"))
    }

    fn listen(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) if self.heard == self.hears.len() && self.begin.is_none() => {
                    self.ended = true;
                    return Ok(());
                }
                Ok(0) => return Err("it ended too early".into()),
                Ok(count) => self.hear(&buffer[..count])?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("cannot read: {error}")),
            }
        }
    }

    fn hear(&mut self, octets: &[u8]) -> Result<(), String> {
        if let Some((start, begin)) = &mut self.begin {
            start.extend_from_slice(octets);
            let Some((says, hears)) = begin(start) else {
                return if start.len() > 4096 { Err("it has no number".into()) } else { Ok(()) };
            };
            let start = std::mem::take(start);
            (self.says, self.hears, self.begin) = (says, hears, None);
            return self.hear(&start).and_then(|()| self.speak());
        }
        if !self.hears.holds(self.heard, octets) {
            return Err(format!("other octets between {} and {}", self.heard, self.heard + octets.len()));
        }
        self.heard += octets.len();
        Ok(())
    }
}
