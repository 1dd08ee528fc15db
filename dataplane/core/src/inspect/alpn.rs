//! The application protocols that a ClientHello offers (RFC 7301).

/// Room for a list in wire form. The longest that known clients send has 47 octets; a client that offers more than
/// fits is unidentified, since what would be left out could be what a rule looks for.
pub const ALPN_BYTES: usize = 128;

/// The most names that fit.
pub const ALPN_NAMES: usize = ALPN_BYTES / 2;

/// ALPN protocol names in wire form (each a length octet and its bytes), bounded.
#[derive(Clone, Copy)]
pub struct Alpn {
    pub len: u8,
    pub bytes: [u8; ALPN_BYTES],
}

impl Alpn {
    /// No names.
    pub const EMPTY: Self = Self { len: 0, bytes: [0; ALPN_BYTES] };

    /// Takes names in wire form. `None` when they do not fit, or are not in wire form: a name is 1 to 255 octets.
    pub fn from_wire(wire: &[u8]) -> Option<Self> {
        let mut alpn = Self { len: u8::try_from(wire.len()).ok()?, ..Self::EMPTY };
        alpn.bytes.get_mut(..wire.len())?.copy_from_slice(wire);
        let whole = alpn.names().map(|name| name.len().saturating_add(1)).sum::<usize>() == wire.len();
        (whole && alpn.names().all(|name| !name.is_empty())).then_some(alpn)
    }

    /// The names in wire form.
    pub fn wire(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The names in the client's order of preference, without their length octets.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let mut rest = self.wire();
        std::iter::from_fn(move || {
            let (&len, tail) = rest.split_first()?;
            let (name, tail) = tail.split_at_checked(usize::from(len))?;
            rest = tail;
            Some(name)
        })
    }

    /// The names as the slice of slices that [`crate::policy::Facts`] takes, written to the caller's `room`.
    pub fn list<'a, 'r>(&'a self, room: &'r mut [&'a [u8]; ALPN_NAMES]) -> &'r [&'a [u8]] {
        let mut count = 0;
        for (slot, name) in room.iter_mut().zip(self.names()) {
            *slot = name;
            count += 1;
        }
        room.get(..count).unwrap_or_default()
    }
}

impl Default for Alpn {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl PartialEq for Alpn {
    fn eq(&self, other: &Self) -> bool {
        self.names().eq(other.names())
    }
}

impl Eq for Alpn {}

impl std::fmt::Debug for Alpn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names().map(|name| String::from_utf8_lossy(name))).finish()
    }
}
