//! What a client asks for, read from its first bytes.
//!
//! Callers (the pipeline's hold and the relay) keep the contiguous prefix of the client's stream in one buffer and
//! show it again each time it has grown; an [`Inspector`] remembers how far it has read, so that a ClientHello that
//! comes one byte at a time costs linear work. Nothing here allocates.

use crate::policy::Protocol;

/// A name: at most 255 octets, lower case ASCII, no trailing dot.
#[derive(Clone, Copy)]
pub struct Name {
    len: u8,
    bytes: [u8; 255],
}

impl Name {
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.len as usize).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or("")
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// What the first bytes say.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub protocol: Protocol,
    pub host: Option<Name>,
    /// ALPN names offered, in wire form (each a length octet and its bytes), as far as they fit.
    pub alpn: Alpn,
}

/// ALPN protocol names in wire form, bounded.
#[derive(Clone, Copy, Debug)]
pub struct Alpn {
    pub len: u8,
    pub bytes: [u8; 64],
}

/// Whether the reader has seen enough.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// Show more bytes.
    More,
    /// Decided (boxed nowhere: `Found` is about 330 octets).
    Done(Found),
}

/// Reads one client's first bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inspector {
    // How far the readers have come.
    _scanned: u32,
}

impl Inspector {
    /// `prefix` is the whole contiguous stream so far; `budget` the most octets it can ever become.
    /// With `prefix.len() >= budget` the answer is never `More`.
    pub fn inspect(&mut self, _prefix: &[u8], _budget: usize) -> Outcome {
        Outcome::More
    }
}

impl Alpn {
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::empty()
    }
}
