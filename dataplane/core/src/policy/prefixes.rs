//! Sets of IPv4 and IPv6 prefixes, from a handful in a rule to a list of millions.
//!
//! Each family is one sorted array of the prefixes that no other holds, so that of an address only the last that
//! begins at or before it can hold it: 5 octets for an IPv4 prefix, 17 for an IPv6 one. Above it stand arrays of every
//! 16th address of the one below, so that a search looks at few lines of memory. (A prefix trie, `prefix-trie`, takes twice to
//! three times as long for a million: see `benches/benches/lists.rs`.)

use std::net::IpAddr;
use std::ops::{BitXor, Shr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Prefixes of both families; an address is in the set when one of them holds it.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    v4: Sorted<u32>,
    v6: Sorted<u128>,
}

impl Prefixes {
    /// Whether a prefix holds the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.covers_prefix(IpNet::from(address))
    }

    /// Whether each prefix of `other` lies in one prefix of this set.
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|prefix| self.covers_prefix(prefix))
    }

    /// Whether some address is in both sets.
    pub fn overlaps(&self, other: &Self) -> bool {
        // Of two prefixes that share an address, one holds the other.
        let (few, many) = if self.len() <= other.len() { (self, other) } else { (other, self) };
        few.iter().any(|prefix| many.touches(prefix))
    }

    fn covers_prefix(&self, prefix: IpNet) -> bool {
        match prefix {
            IpNet::V4(p) => self.v4.covers(p.addr().into(), p.prefix_len()),
            IpNet::V6(p) => self.v6.covers(p.addr().into(), p.prefix_len()),
        }
    }

    /// Whether some prefix holds `prefix`, or is held by it.
    fn touches(&self, prefix: IpNet) -> bool {
        self.covers_prefix(prefix)
            || match prefix {
                IpNet::V4(p) => self.v4.any_within(p.addr().into(), p.broadcast().into()),
                IpNet::V6(p) => self.v6.any_within(p.addr().into(), p.broadcast().into()),
            }
    }

    /// The prefixes that no other holds, IPv4 first, each family in order of its addresses.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + '_ {
        let v4 = self.v4.iter().filter_map(|(first, len)| Ipv4Net::new(first.into(), len).ok());
        let v6 = self.v6.iter().filter_map(|(first, len)| Ipv6Net::new(first.into(), len).ok());
        v4.map(IpNet::V4).chain(v6.map(IpNet::V6))
    }

    /// Prefixes that no other holds.
    pub const fn len(&self) -> usize {
        self.v4.lens.len() + self.v6.lens.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is an IPv4 prefix.
    pub const fn has_v4(&self) -> bool {
        !self.v4.lens.is_empty()
    }

    /// Whether there is an IPv6 prefix.
    pub const fn has_v6(&self) -> bool {
        !self.v6.lens.is_empty()
    }

    /// Octets of memory that the set has taken.
    pub fn memory(&self) -> usize {
        self.v4.memory() + self.v6.memory()
    }
}

/// Prefixes one by one, in any order, without more memory than the set needs.
#[derive(Clone, Debug, Default)]
pub struct PrefixesBuilder {
    v4: Vec<[u8; 5]>,
    v6: Vec<[u8; 17]>,
}

impl PrefixesBuilder {
    /// Adds a prefix. Host bits are ignored.
    pub fn push(&mut self, prefix: IpNet) {
        match prefix.trunc() {
            IpNet::V4(p) => self.v4.push(entry4(p)),
            IpNet::V6(p) => self.v6.push(entry6(p)),
        }
    }

    pub fn build(self) -> Prefixes {
        Prefixes {
            v4: Sorted::new(self.v4, |[a, b, c, d, len]| (u32::from_be_bytes([a, b, c, d]), len)),
            v6: Sorted::new(self.v6, |entry| match entry.split_first_chunk::<16>() {
                Some((first, [len])) => (u128::from_be_bytes(*first), *len),
                _ => (0, 128),
            }),
        }
    }
}

impl FromIterator<IpNet> for Prefixes {
    /// Host bits are ignored.
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let mut builder = PrefixesBuilder::default();
        prefixes.into_iter().for_each(|prefix| builder.push(prefix));
        builder.build()
    }
}

/// The first address in network order, and the length behind it: so packed, prefixes sort as they should, what holds
/// before what is held.
fn entry4(prefix: Ipv4Net) -> [u8; 5] {
    let [a, b, c, d] = prefix.addr().octets();
    [a, b, c, d, prefix.prefix_len()]
}

fn entry6(prefix: Ipv6Net) -> [u8; 17] {
    let mut entry = [prefix.prefix_len(); 17];
    for (to, from) in entry.iter_mut().zip(prefix.addr().octets()) {
        *to = from;
    }
    entry
}

/// An address of one family as a number.
trait Address: Copy + Ord + BitXor<Output = Self> + Shr<u32, Output = Self> + Default {
    /// Octets.
    const SIZE: usize;

    /// Whether the prefix of `len` bits that begins with `first` holds this address.
    fn is_in(self, first: Self, len: u8) -> bool {
        // Of length 0 is the prefix that holds everything; a shift by all bits there is not.
        let host = (Self::SIZE * 8) as u32 - u32::from(len);
        len == 0 || (self ^ first) >> host == Self::default()
    }
}

impl Address for u32 {
    const SIZE: usize = 4;
}

impl Address for u128 {
    const SIZE: usize = 16;
}

/// Addresses of one level for each of the level above.
const FAN: usize = 16;

/// Prefixes of one family, none of which holds another.
#[derive(Clone, Debug, Default)]
struct Sorted<A> {
    /// First addresses, in order; then every 16th of them, and so on until there are no more than 16.
    levels: Vec<Vec<A>>,
    /// Lengths in bits.
    lens: Vec<u8>,
}

impl<A: Address> Sorted<A> {
    fn new<E: Ord + Copy>(mut entries: Vec<E>, read: impl Fn(E) -> (A, u8)) -> Self {
        entries.sort_unstable();
        let mut last: Option<(A, u8)> = None;
        entries.retain(|entry| {
            let (first, len) = read(*entry);
            let is_held = last.is_some_and(|(outer, outer_len)| first.is_in(outer, outer_len));
            if !is_held {
                last = Some((first, len));
            }
            !is_held
        });
        let lens = entries.iter().map(|entry| read(*entry).1).collect();
        let mut levels: Vec<Vec<A>> = vec![entries.iter().map(|entry| read(*entry).0).collect()];
        drop(entries);
        while let Some(below) = levels.last().filter(|below| below.len() > FAN) {
            let above = below.iter().step_by(FAN).copied().collect();
            levels.push(above);
        }
        Self { levels, lens }
    }

    /// The last prefix that begins at or before `address`.
    fn last_before(&self, address: A) -> Option<usize> {
        self.levels.iter().rev().try_fold(0, |at, level| {
            let start: usize = at * FAN;
            let those = level.get(start..level.len().min(start + FAN))?;
            let before = those.iter().filter(|first| **first <= address).count();
            Some(start + before.checked_sub(1)?)
        })
    }

    /// Whether some prefix holds that of `len` bits which begins with `first`.
    fn covers(&self, first: A, len: u8) -> bool {
        let held = || {
            let at = self.last_before(first)?;
            let outer = *self.lens.get(at)?;
            Some(outer <= len && first.is_in(*self.levels.first()?.get(at)?, outer))
        };
        held().unwrap_or(false)
    }

    /// Whether some prefix begins between these addresses.
    fn any_within(&self, first: A, last: A) -> bool {
        let begins = |at| self.levels.first()?.get(at);
        self.last_before(last).and_then(begins).is_some_and(|begin| *begin >= first)
    }

    fn iter(&self) -> impl Iterator<Item = (A, u8)> {
        self.levels.iter().take(1).flatten().copied().zip(self.lens.iter().copied())
    }

    fn memory(&self) -> usize {
        self.levels.iter().map(Vec::capacity).sum::<usize>() * A::SIZE + self.lens.capacity()
    }
}
