//! What a client asks for, read from its first bytes.
//!
//! Callers (the pipeline's hold and the relay) keep the contiguous prefix of the client's stream in one buffer and
//! show it again each time it has grown; an [`Inspector`] remembers how far it has read, so that a ClientHello that
//! comes one byte at a time costs linear work. Nothing here allocates, and no bytes make it panic.
//!
//! [`tls`] reads ClientHellos (RFC 8446, 6066, 7301), [`http`] HTTP/1.x request heads (RFC 9112), [`h2`] the first
//! request of cleartext HTTP/2 with prior knowledge (RFC 9113, 7541).
//!
//! One rule decides everything that is not plain: **a name is reported only when every server that would take these
//! bytes reads the same name from them.** A stream in which two readings differ, or whose name is no host name, is
//! [`Protocol::Other`], and takes the intercept's `unidentified` verdict; it is never reported with a name that the
//! client chose for us and not for the server, nor as one that asked for none. What servers tolerate (bare line feeds,
//! folded lines, blanks around a field's name) is read as they read it, so that it hides nothing from a rule.
//!
//! Only the first request of a connection is read: that is what a verdict is about. Where the client offers TLS 1.3 the
//! server may ask it to say its hello again, and not every server insists that the second bears the name of the first
//! (RFC 8446, section 4.1.2): [`Watch`] recognises such a HelloRetryRequest in the server's first bytes, [`Behind`] finds the
//! second hello in what the client sends, and an [`Inspector`] reads it as the first.

mod alpn;
mod behind;
mod cursor;
mod h2;
mod hello;
mod hpack;
mod http;
mod name;
mod request_line;
mod retry;
mod sslv2;
mod tls;
mod tolerant;

#[cfg(test)]
mod tests;

use crate::policy::Protocol;

pub use alpn::{ALPN_BYTES, ALPN_NAMES, Alpn};
pub use behind::{Behind, Next};
pub use name::{Asked, Name};
pub use retry::{Said, Watch};

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub protocol: Protocol,
    /// The name asked for; `None` where the client asked for none, and always with [`Protocol::Other`].
    pub host: Option<Name>,
    /// ALPN names offered. HTTP/2 without TLS counts as an offer of `h2c` (RFC 7540 section 3.1), so that a rule
    /// can name it.
    pub alpn: Alpn,
    /// The client offers Encrypted ClientHello (RFC 9849), or pretends to: `host` may be an outer name only.
    pub ech: bool,
    /// Where the hello of a client that offers TLS 1.3 ends: a second one may follow. `None`: none can.
    pub end: Option<HelloEnd>,
}

/// Where a ClientHello ends in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloEnd {
    /// Octets of the stream up to there.
    pub at: u32,
    /// Its last record goes on behind it, which RFC 8446 forbids (section 5.1).
    pub in_record: bool,
}

impl Found {
    /// Neither TLS nor HTTP, or not to be read with certainty.
    pub const OTHER: Self =
        Self { protocol: Protocol::Other, host: None, alpn: Alpn::EMPTY, ech: false, end: None };

    /// What a request says once its name is read: a name that cannot be read makes the whole unidentified.
    fn named(protocol: Protocol, asked: Asked, alpn: Alpn) -> Self {
        match asked {
            Asked::Name(name) => Self { protocol, host: Some(name), alpn, ech: false, end: None },
            Asked::Nothing => Self { protocol, host: None, alpn, ech: false, end: None },
            Asked::Unreadable => Self::OTHER,
        }
    }
}

/// Whether the reader has seen enough.
#[allow(clippy::large_enum_variant, reason = "returned once a flow, and never stored; a box would allocate")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Show more bytes.
    More,
    /// Decided.
    Done(Found),
}

impl Outcome {
    const OTHER: Self = Self::Done(Found::OTHER);
}

/// Reads one client's first bytes. 16 octets of memory a flow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inspector {
    reader: Reader,
}

/// Who reads. Each remembers offsets into the stream only.
#[derive(Clone, Copy, Debug, Default)]
enum Reader {
    /// The first bytes fit more than one.
    #[default]
    Undecided,
    /// The first byte fits none.
    Nobody,
    Tls(tls::Records),
    SslV2,
    Http(http::Head),
    H2(h2::Frames),
}

impl Inspector {
    /// `prefix` is the whole contiguous stream so far; `budget` the most octets it can ever become.
    /// With `prefix.len() >= budget` the answer is never `More`; it is `Done` before that as soon as it is known
    /// that a message will not fit. An answer does not depend on how the stream was cut.
    pub fn inspect(&mut self, prefix: &[u8], budget: usize) -> Outcome {
        let limit = budget.max(prefix.len());
        if let Reader::Undecided = self.reader {
            self.reader = Reader::choose(prefix);
        }
        let outcome = match &mut self.reader {
            Reader::Undecided => Outcome::More,
            Reader::Nobody => Outcome::OTHER,
            Reader::Tls(records) => records.inspect(prefix, limit),
            Reader::SslV2 => sslv2::inspect(prefix),
            Reader::Http(head) => head.inspect(prefix),
            Reader::H2(frames) => frames.inspect(prefix, limit),
        };
        match outcome {
            Outcome::More if prefix.len() >= budget => Outcome::OTHER,
            outcome => outcome,
        }
    }
}

impl Reader {
    fn choose(prefix: &[u8]) -> Self {
        match prefix.first() {
            None => Self::Undecided,
            Some(&tls::HANDSHAKE) => Self::Tls(tls::Records::default()),
            Some(0x80..) => Self::SslV2,
            _ if prefix.starts_with(h2::PREFACE) => Self::H2(h2::Frames::default()),
            _ if h2::PREFACE.starts_with(prefix) => Self::Undecided,
            Some(b'\r' | b'\n') => Self::Http(http::Head::default()),
            Some(&first) if request_line::is_token(first) => Self::Http(http::Head::default()),
            Some(_) => Self::Nobody,
        }
    }
}
