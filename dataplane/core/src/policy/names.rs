//! Sets of host names, from a handful in a rule to a blocklist of a million.
//!
//! A lookup hashes the name once, and once more for each of its labels while there are wildcards: its cost does not
//! depend on the size of the set, and nothing is allocated.

use std::collections::HashSet;

use foldhash::fast::FixedState;
use thiserror::Error;

/// The longest host name in text form (RFC 1035, section 2.3.4, without the root's dot), in octets.
pub const MAX_NAME: usize = 253;
/// The longest label of a name (RFC 1035, section 2.3.4), in octets.
pub const MAX_LABEL: usize = 63;

/// Longest host that a lookup folds; of a longer one only the end can match.
const FOLD: usize = 255;

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
    #[error("the name has an empty label (two dots in a row, or a dot in front)")]
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
}

/// Host names and wildcards.
///
/// `ads.example` is that name alone. `*.ads.example` is every name below it at any depth, and not `ads.example`
/// itself; give both to have both. `*` is any name at all (and not the lack of one). Upper and lower case are the same,
/// and a trailing dot is ignored, in patterns and in lookups.
#[derive(Clone, Debug, Default)]
pub struct NameSet {
    exact: HashSet<Box<[u8]>, FixedState>,
    /// What follows `*.`.
    below: HashSet<Box<[u8]>, FixedState>,
    /// Longest of `below`, in octets: longer ends of a host need no lookup.
    below_max: usize,
    any: bool,
}

impl NameSet {
    /// The set of all `patterns`; the first that is not a pattern is the error.
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, NameError> {
        let mut set = Self::default();
        for pattern in patterns {
            set.insert(pattern)?;
        }
        Ok(set)
    }

    /// Adds one pattern. `Ok(false)`: it was there already.
    pub fn insert(&mut self, pattern: &str) -> Result<bool, NameError> {
        if pattern == "*" {
            return Ok(!std::mem::replace(&mut self.any, true));
        }
        let (name, wildcard) = match pattern.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (pattern, false),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        check(name)?;
        let name = name.to_ascii_lowercase().into_bytes().into_boxed_slice();
        if wildcard {
            self.below_max = self.below_max.max(name.len());
            Ok(self.below.insert(name))
        } else {
            Ok(self.exact.insert(name))
        }
    }

    /// Whether the set holds `host`, as a client asked for it.
    pub fn contains(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).as_bytes();
        if host.is_empty() {
            return false;
        }
        if self.any {
            return true;
        }
        // No pattern is longer than 253 octets, so of a longer host only its end can match, and that only a wildcard.
        let end = host.get(host.len().saturating_sub(FOLD)..).unwrap_or(host);
        if !end.iter().any(u8::is_ascii_uppercase) {
            return self.contains_folded(end);
        }
        let mut folded = [0; FOLD];
        for (to, from) in folded.iter_mut().zip(end) {
            *to = from.to_ascii_lowercase();
        }
        folded.get(..end.len()).is_some_and(|end| self.contains_folded(end))
    }

    fn contains_folded(&self, host: &[u8]) -> bool {
        if self.exact.contains(host) {
            return true;
        }
        if self.below.is_empty() {
            return false;
        }
        let ends = host.iter().enumerate().filter(|(_, octet)| **octet == b'.');
        ends.filter_map(|(dot, _)| host.get(dot + 1..))
            .any(|end| end.len() <= self.below_max && self.below.contains(end))
    }

    /// Whether every name of `other` is a name of this set: then a rule with `other` behind one with this set is idle.
    pub fn covers(&self, other: &Self) -> bool {
        if self.any {
            return true;
        }
        !other.any
            && other.below.iter().all(|name| self.below.contains(name) || self.contains_below(name))
            && other.exact.iter().all(|name| self.contains_folded(name))
    }

    /// Whether a wildcard of this set stands above `name`.
    fn contains_below(&self, name: &[u8]) -> bool {
        let dots = name.iter().enumerate().filter(|(_, octet)| **octet == b'.');
        dots.filter_map(|(dot, _)| name.get(dot + 1..)).any(|end| self.below.contains(end))
    }

    /// How many patterns there are.
    pub fn len(&self) -> usize {
        self.exact.len() + self.below.len() + usize::from(self.any)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether `name`, without wildcard and trailing dot, is a host name. Underscores are in use, so they are allowed.
fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if !name.is_ascii() {
        return Err(NameError::NotAscii);
    }
    if let Some(bad) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))) {
        return Err(match bad {
            '*' => NameError::Wildcard,
            ' ' | '\t' => NameError::Space,
            '/' => NameError::Url,
            ':' if name.contains("//") => NameError::Url,
            ':' => NameError::Port,
            other => NameError::Character(other),
        });
    }
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong(name.len()));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err(NameError::EmptyLabel);
        }
        if label.len() > MAX_LABEL {
            return Err(NameError::LabelTooLong(label.to_owned()));
        }
    }
    Ok(())
}
