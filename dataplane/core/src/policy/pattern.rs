//! A host name or wildcard as it is written in rules and lists.

use thiserror::Error;

/// The longest host name in text form (RFC 1035, section 2.3.4, without the root's dot), in octets.
pub const MAX_NAME: usize = 253;
/// The longest label of a name (RFC 1035, section 2.3.4), in octets.
pub const MAX_LABEL: usize = 63;

/// Why a pattern is not one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    #[error("the name is empty")]
    Empty,
    #[error("names are written in ASCII; write an international name in punycode (xn--...)")]
    NotAscii,
    #[error("the name has {0} octets; at most {MAX_NAME} are allowed")]
    TooLong(usize),
    #[error("the label `{0}` has more than {MAX_LABEL} octets")]
    LabelTooLong(String),
    #[error("the name has an empty label (two dots in a row)")]
    EmptyLabel,
    #[error("`*` stands only for whole labels in front: `*.ads.example`, or `*` alone for any name")]
    Wildcard,
    #[error("a name has no port; put the port into `tcp`")]
    Port,
    #[error("a name, not a URL: leave out the scheme and the path")]
    Url,
    #[error("one name only; a space or tab is not part of a name")]
    Space,
    #[error("`{0}` is not allowed in a name; allowed: letters, digits, `-`, `_` and `.`")]
    Character(char),
    #[error("the set is full: its names have more than 4 GiB")]
    TooMany,
}

/// Which names a pattern means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// `*`: any.
    Any,
    /// The name itself.
    Exact,
    /// `*.`: those below it.
    Below,
    /// `.`: both.
    Both,
}

/// A pattern that is one: its name in lower case without a trailing dot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern {
    which: Which,
    /// A dot, and the name.
    text: [u8; MAX_NAME + 1],
    len: usize,
}

impl Pattern {
    pub fn read(pattern: &str) -> Result<Self, NameError> {
        let mut read = Self { which: Which::Any, text: [b'.'; MAX_NAME + 1], len: 1 };
        if pattern == "*" {
            return Ok(read);
        }
        let (which, name) = match (pattern.strip_prefix("*."), pattern.strip_prefix('.')) {
            (Some(name), _) => (Which::Below, name),
            (None, Some(name)) => (Which::Both, name),
            (None, None) => (Which::Exact, pattern),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        match read.text.get_mut(1..=name.len()) {
            Some(room) if is_name(name.as_bytes()) => room.copy_from_slice(name.as_bytes()),
            _ => return Err(fault(name)),
        }
        read.text.make_ascii_lowercase();
        (read.which, read.len) = (which, name.len() + 1);
        Ok(read)
    }

    pub const fn which(&self) -> Which {
        self.which
    }

    pub fn name(&self) -> &[u8] {
        self.text.get(1..self.len).unwrap_or_default()
    }

    /// The name with a dot in front.
    pub fn dotted(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }
}

/// Whether `name`, without wildcard and trailing dot, is a host name. Underscores are in use, so they are allowed.
fn is_name(name: &[u8]) -> bool {
    let mut label = 0;
    for octet in name {
        match octet {
            b'.' if label == 0 => return false,
            b'.' => label = 0,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' if label < MAX_LABEL => label += 1,
            _ => return false,
        }
    }
    label > 0 && name.len() <= MAX_NAME
}

/// What is wrong with a name that is none.
fn fault(name: &str) -> NameError {
    if name.is_empty() {
        return NameError::Empty;
    }
    if !name.is_ascii() {
        return NameError::NotAscii;
    }
    if let Some(bad) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))) {
        return match bad {
            '*' => NameError::Wildcard,
            ' ' | '\t' => NameError::Space,
            '/' => NameError::Url,
            ':' if name.contains("//") => NameError::Url,
            ':' => NameError::Port,
            other => NameError::Character(other),
        };
    }
    if name.len() > MAX_NAME {
        return NameError::TooLong(name.len());
    }
    match name.split('.').find(|label| label.len() > MAX_LABEL) {
        Some(label) => NameError::LabelTooLong(label.to_owned()),
        None => NameError::EmptyLabel,
    }
}
