//! Names that a client asks for.

use std::net::Ipv6Addr;

/// A host name or address literal: at most 255 octets, lower case ASCII, no trailing dot, no port. An IPv6 literal
/// stands without its brackets, as the client wrote it.
#[derive(Clone, Copy)]
pub struct Name {
    len: u8,
    bytes: [u8; 255],
}

impl Name {
    /// Reads a name as it stands in a server_name extension. `None` when it is empty or is no host name: labels of
    /// letters, digits, `-` and `_` (which is common, if not in RFC 952), or an IPv6 literal (which RFC 6066
    /// forbids in TLS, and clients send).
    pub fn new(text: &[u8]) -> Option<Self> {
        let text = text.strip_suffix(b".").unwrap_or(text);
        if text.contains(&b':') {
            std::str::from_utf8(text).ok()?.parse::<Ipv6Addr>().ok()?;
        } else if text.split(|&b| b == b'.').any(|label| label.is_empty() || !label.iter().all(is_label)) {
            return None;
        }
        let mut name = Self { len: u8::try_from(text.len()).ok()?, bytes: [0; 255] };
        let room = name.bytes.get_mut(..text.len())?;
        room.copy_from_slice(text);
        room.make_ascii_lowercase();
        Some(name)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

fn is_label(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// What one place of a request asks for.
#[allow(clippy::large_enum_variant, reason = "lives on the stack of one call; a box would allocate")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// No name here.
    Nothing,
    Name(Name),
    /// Something that is no host name, or two that differ.
    Unreadable,
}

impl Asked {
    /// A server_name: empty asks for nothing.
    pub fn name(text: &[u8]) -> Self {
        if text.is_empty() {
            return Self::Nothing;
        }
        Name::new(text).map_or(Self::Unreadable, Self::Name)
    }

    /// An authority: `host[:port]`, an IPv6 literal in brackets (RFC 3986 section 3.2, without user information).
    /// Blanks around it do not count.
    pub fn authority(text: &[u8]) -> Self {
        let text = text.trim_ascii();
        if text.is_empty() {
            return Self::Nothing;
        }
        match split_authority(text) {
            Some((host, port)) if port.iter().all(u8::is_ascii_digit) => {
                Name::new(host).map_or(Self::Unreadable, Self::Name)
            }
            _ => Self::Unreadable,
        }
    }

    /// What two places ask for together: the same, or one of them nothing; else no one knows which a server takes.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, asked) | (asked, Self::Nothing) => asked,
            (one, two) if one == two => one,
            _ => Self::Unreadable,
        }
    }
}

/// Host without brackets, and port (possibly empty). `None` for anything else, an IPv6 literal without brackets
/// included: whether its last group is a port is anyone's guess.
fn split_authority(text: &[u8]) -> Option<(&[u8], &[u8])> {
    if let Some(literal) = text.strip_prefix(b"[") {
        let end = literal.iter().position(|&b| b == b']')?;
        let (host, rest) = literal.split_at_checked(end)?;
        let port = match rest {
            b"]" => b"",
            rest => rest.strip_prefix(b"]:")?,
        };
        return host.contains(&b':').then_some((host, port));
    }
    match text.iter().position(|&b| b == b':') {
        None => Some((text, b"")),
        Some(colon) => {
            let (host, rest) = text.split_at_checked(colon)?;
            Some((host, rest.get(1..)?))
        }
    }
}
