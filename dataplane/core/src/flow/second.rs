//! What a connection remembers of the second ClientHello that its server may ask for (HelloRetryRequest, RFC 8446 sections
//! 4.1.2 and 4.1.4). [`crate::stage::second`] acts on it.

use crate::ids::Nanos;
use crate::inspect::{Behind, HelloEnd, Watch};
use crate::tcp::seq::Seq;

use super::record::Flow;

/// Whether a second hello is to be expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// No: none can follow, the server went on without, or it was judged.
    #[default]
    No,
    /// The server has not said yet. Its answer begins at `from`.
    Perhaps { from: Seq, watch: Watch },
    /// The server has asked for it.
    Asked,
    /// It has begun, and is held until it is judged, at the latest then.
    Held { until: Until },
}

/// A moment that may stand at any word, so that all of this takes little room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed(4))]
pub struct Until(pub Nanos);

/// What came of it, for `weir flows`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HelloRetry {
    /// No server has asked.
    #[default]
    None,
    /// The server asked, and there is no second hello yet.
    Asked,
    /// It asks for what the first did.
    Same,
    /// It asks for something else, or says nothing that can be read.
    Changed,
}

impl HelloRetry {
    /// As `weir flows` spells it.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Asked => Some("asked"),
            Self::Same => Some("same"),
            Self::Changed => Some("changed"),
        }
    }
}

/// A connection's second hello.
#[derive(Clone, Copy, Debug, Default)]
pub struct Second {
    expected: Expected,
    pub retry: HelloRetry,
    /// How far the client's stream was read: octets before it may pass.
    pub read: Seq,
    pub behind: Behind,
}

impl Second {
    /// One may follow the hello that ends at `end` of the stream from `start` on.
    pub fn after(start: Seq, end: HelloEnd) -> Self {
        Self {
            expected: Expected::Perhaps { from: Seq(0), watch: Watch::default() },
            retry: HelloRetry::None,
            read: start.add(end.at),
            behind: Behind::new(end.in_record),
        }
    }

    /// None to be expected.
    pub const NONE: Self =
        Self { expected: Expected::No, retry: HelloRetry::None, read: Seq(0), behind: Behind::new(false) };

    #[inline]
    pub fn is_expected(&self) -> bool {
        self.expected != Expected::No
    }

    pub const fn expected(&self) -> Expected {
        self.expected
    }
}

impl Flow {
    /// Its second hello is another matter from now on.
    pub fn set_second(&mut self, second: Second) {
        self.second = second;
    }

    pub fn expect(&mut self, expected: Expected) {
        self.set_second(Second { expected, ..self.second });
    }
}
