//! Sets of host names, from a handful in a rule to a blocklist of millions.
//!
//! The names stand one behind the other in blocks of octets, and a hash table of their offsets finds them: a million
//! names of 30 octets take 40 MiB. (A hash set of boxed names takes twice that and is as fast; `fst` takes a quarter, must be
//! fed in order, and a lookup takes four times as long: see `benches/benches/lists.rs`.)
//! A lookup hashes the host once, and once more for each of its ends that is as long as some wildcard: its cost does not
//! depend on the size of the set, and nothing is allocated.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

pub use super::pattern::{MAX_LABEL, MAX_NAME, NameError};
use super::pattern::{Pattern, Which};

/// Longest host that a lookup folds; of a longer one only the end can match.
const FOLD: usize = 255;
/// Octets of a block of names.
const BLOCK: usize = 1 << BLOCK_BITS;
const BLOCK_BITS: u32 = 20;
/// Blocks that offsets of 32 bits reach.
const BLOCKS: usize = 1 << (u32::BITS - BLOCK_BITS);

/// Host names and wildcards.
///
/// `ads.example` is that name alone. `*.ads.example` is every name below it at any depth, and not `ads.example`
/// itself; `.ads.example` is both, as in the lists of nginx and squid. `*` is any name at all (and not the lack of one).
/// Upper and lower case are the same, and a trailing dot is ignored, in patterns and in lookups.
#[derive(Clone, Debug, Default)]
pub struct NameSet {
    names: Names,
    /// The lengths of names that stand for themselves: a host of another needs no lookup.
    exact: Lengths,
    /// The lengths of wildcards with their dot: ends of a host that have others need no lookup.
    below: Lengths,
    any: bool,
    len: usize,
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

    /// Room for so many names before the table of offsets grows.
    pub fn with_capacity(names: usize) -> Self {
        let names = Names { offsets: HashTable::with_capacity(names), ..Names::default() };
        Self { names, ..Self::default() }
    }

    /// Adds one pattern. `Ok(false)`: it was there already.
    pub fn insert(&mut self, pattern: &str) -> Result<bool, NameError> {
        let pattern = Pattern::read(pattern)?;
        let fresh = match pattern.which() {
            Which::Any => !std::mem::replace(&mut self.any, true),
            Which::Exact => self.insert_exact(&pattern)?,
            Which::Below => self.insert_below(&pattern)?,
            Which::Both => self.insert_exact(&pattern)? | self.insert_below(&pattern)?,
        };
        self.len += usize::from(fresh);
        Ok(fresh)
    }

    fn insert_exact(&mut self, pattern: &Pattern) -> Result<bool, NameError> {
        self.exact.insert(pattern.name().len());
        self.names.insert(pattern.name())
    }

    fn insert_below(&mut self, pattern: &Pattern) -> Result<bool, NameError> {
        self.below.insert(pattern.dotted().len());
        self.names.insert(pattern.dotted())
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
        // All octets, without a branch at each: the processor goes on to what memory has to bring.
        if !end.iter().fold(false, |any, octet| any | octet.is_ascii_uppercase()) {
            return self.contains_folded(end);
        }
        let mut folded = [0; FOLD];
        for (to, from) in folded.iter_mut().zip(end) {
            *to = from.to_ascii_lowercase();
        }
        folded.get(..end.len()).is_some_and(|end| self.contains_folded(end))
    }

    fn contains_folded(&self, host: &[u8]) -> bool {
        (self.exact.contains(host.len()) && self.names.contains(host)) || self.is_below(host)
    }

    /// Whether a wildcard stands above `host`, or is `host` where that begins with a dot.
    fn is_below(&self, host: &[u8]) -> bool {
        if self.below.is_empty() {
            return false;
        }
        memchr::memchr_iter(b'.', host)
            .filter_map(|dot| host.get(dot..))
            .any(|end| self.below.contains(end.len()) && self.names.contains(end))
    }

    /// Whether every name of `other` is a name of this set: then a rule with `other` behind one with this set is idle.
    pub fn covers(&self, other: &Self) -> bool {
        self.any
            || (!other.any
                && other.names.iter().all(|name| match name.first() {
                    Some(b'.') => self.is_below(name),
                    _ => self.contains_folded(name),
                }))
    }

    /// Whether it holds any name at all (`*`).
    pub const fn is_any(&self) -> bool {
        self.any
    }

    /// How many different patterns there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Octets of memory that the set has taken.
    pub fn memory(&self) -> usize {
        self.names.offsets.allocation_size() + self.names.blocks.iter().map(Vec::capacity).sum::<usize>()
    }
}

/// Names in lower case, each once; a wildcard stands there with its dot in front, which no other name has.
#[derive(Clone, Default)]
struct Names {
    /// Where in the blocks each name stands.
    offsets: HashTable<u32>,
    /// An octet of length before each name. No name lies across two blocks.
    blocks: Vec<Vec<u8>>,
}

impl Names {
    fn insert(&mut self, name: &[u8]) -> Result<bool, NameError> {
        let hash = hash(name);
        let blocks = &self.blocks;
        if self.offsets.find(hash, |offset| get(blocks, *offset) == name).is_some() {
            return Ok(false);
        }
        let offset = self.append(name)?;
        let blocks = &self.blocks;
        self.offsets.insert_unique(hash, offset, |offset| self::hash(get(blocks, *offset)));
        Ok(true)
    }

    fn append(&mut self, name: &[u8]) -> Result<u32, NameError> {
        let len = u8::try_from(name.len()).map_err(|_| NameError::TooLong(name.len()))?;
        if self.blocks.last().is_none_or(|block| block.len() + 1 + name.len() > BLOCK) {
            if self.blocks.len() == BLOCKS {
                return Err(NameError::TooMany);
            }
            // The first block grows with the set, since most sets are small.
            let room = if self.blocks.is_empty() { 0 } else { BLOCK };
            self.blocks.push(Vec::with_capacity(room));
        }
        let number = self.blocks.len().saturating_sub(1);
        let block = self.blocks.last_mut().ok_or(NameError::TooMany)?;
        let offset = (number << BLOCK_BITS) + block.len();
        block.push(len);
        block.extend_from_slice(name);
        u32::try_from(offset).map_err(|_| NameError::TooMany)
    }

    fn contains(&self, name: &[u8]) -> bool {
        self.offsets.find(hash(name), |offset| get(&self.blocks, *offset) == name).is_some()
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.offsets.iter().map(|offset| get(&self.blocks, *offset))
    }
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 8;
        let mut some: Vec<_> = self.iter().take(SHOWN).map(String::from_utf8_lossy).collect();
        some.sort_unstable();
        write!(f, "{} names: {}", self.offsets.len(), some.join(", "))?;
        if self.offsets.len() > SHOWN { f.write_str(", ...") } else { Ok(()) }
    }
}

fn hash(name: &[u8]) -> u64 {
    let mut hasher = FixedState::default().build_hasher();
    hasher.write(name);
    hasher.finish()
}

fn get(blocks: &[Vec<u8>], offset: u32) -> &[u8] {
    let at = offset as usize & (BLOCK - 1);
    let Some(block) = blocks.get((offset >> BLOCK_BITS) as usize) else { return &[] };
    let Some((len, names)) = block.get(at..).and_then(<[u8]>::split_first) else { return &[] };
    names.get(..usize::from(*len)).unwrap_or(&[])
}

/// A set of lengths up to 255.
#[derive(Clone, Copy, Debug, Default)]
struct Lengths([u64; 4]);

impl Lengths {
    fn insert(&mut self, len: usize) {
        if let Some(word) = self.0.get_mut(len / 64) {
            *word |= 1 << (len % 64);
        }
    }

    fn contains(&self, len: usize) -> bool {
        self.0.get(len / 64).is_some_and(|word| word & (1 << (len % 64)) != 0)
    }

    fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
}
