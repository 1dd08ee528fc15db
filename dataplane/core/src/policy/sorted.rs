//! The prefixes of one family in order, none of which holds another.

use std::ops::{BitXor, Range, Shr};

/// An address of one family as a number.
pub(super) trait Address:
    Copy + Ord + BitXor<Output = Self> + Shr<u32, Output = Self> + Default
{
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

/// The prefixes of a family: first address and length in bits.
pub(super) trait Family {
    type Address: Address;

    /// The last prefix that begins at or before `address`.
    fn last_before(&self, address: Self::Address) -> Option<(Self::Address, u8)>;

    /// In order.
    fn iter(&self) -> impl Iterator<Item = (Self::Address, u8)>;

    fn len(&self) -> usize;

    /// Octets of memory taken.
    fn memory(&self) -> usize;

    /// Whether some prefix holds that of `len` bits which begins with `first`.
    fn covers(&self, first: Self::Address, len: u8) -> bool {
        self.last_before(first).is_some_and(|(outer, bits)| bits <= len && first.is_in(outer, bits))
    }

    /// Whether some prefix begins between these addresses.
    fn any_within(&self, first: Self::Address, last: Self::Address) -> bool {
        self.last_before(last).is_some_and(|(begin, _)| begin >= first)
    }
}

/// IPv4.
#[derive(Clone, Debug, Default)]
pub(super) struct Four {
    firsts: Sorted<u32>,
    lens: Vec<u8>,
}

impl Four {
    pub fn new<E: Ord + Copy>(mut entries: Vec<E>, read: impl Fn(E) -> (u32, u8)) -> Self {
        keep_outer(&mut entries, &read);
        let lens = entries.iter().map(|entry| read(*entry).1).collect();
        Self { firsts: Sorted::new(entries.iter().map(|entry| read(*entry).0).collect()), lens }
    }
}

impl Family for Four {
    type Address = u32;

    fn last_before(&self, address: u32) -> Option<(u32, u8)> {
        let at = self.firsts.last_before(address)?;
        Some((self.firsts.get(at)?, *self.lens.get(at)?))
    }

    fn iter(&self) -> impl Iterator<Item = (u32, u8)> {
        self.firsts.iter().zip(self.lens.iter().copied())
    }

    fn len(&self) -> usize {
        self.lens.len()
    }

    fn memory(&self) -> usize {
        self.firsts.memory() + self.lens.capacity()
    }
}

/// Instead of a length in [`Six::lens`]: longer prefixes have these first 64 bits.
const LONG: u8 = u8::MAX;

/// IPv6. Most prefixes have up to 64 bits, and half an address says all of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Six {
    /// The first 64 bits, each once.
    highs: Sorted<u64>,
    lens: Vec<u8>,
    /// Where the longer prefixes of each of `highs` begin; empty without longer ones.
    starts: Vec<u32>,
    /// The other 64 bits of longer prefixes, in order for each of `highs`.
    lows: Vec<u64>,
    low_lens: Vec<u8>,
    /// Prefixes in all.
    len: usize,
}

impl Six {
    pub fn new<E: Ord + Copy>(mut entries: Vec<E>, read: impl Fn(E) -> (u128, u8)) -> Self {
        keep_outer(&mut entries, &read);
        let (mut six, mut highs) = (Self { len: entries.len(), ..Self::default() }, Vec::new());
        let any_long = entries.iter().any(|entry| read(*entry).1 > 64);
        for (first, len) in entries.into_iter().map(read) {
            let (high, low) = ((first >> 64) as u64, first as u64);
            let is_new = highs.last() != Some(&high);
            if is_new {
                highs.push(high);
                six.lens.push(if len > 64 { LONG } else { len });
            }
            if is_new && any_long {
                six.starts.push(six.lows.len() as u32);
            }
            if len > 64 {
                six.lows.push(low);
                six.low_lens.push(len);
            }
        }
        six.highs = Sorted::new(highs);
        six
    }

    /// The longer prefixes with the first 64 bits at `at`.
    fn long(&self, at: usize) -> Range<usize> {
        let start = |at| self.starts.get(at).map(|start| *start as usize);
        start(at).unwrap_or(0)..start(at + 1).unwrap_or(self.lows.len())
    }

    /// The last prefix with the first 64 bits at `at`.
    fn last_of(&self, at: usize) -> Option<(u128, u8)> {
        let high = u128::from(self.highs.get(at)?) << 64;
        match *self.lens.get(at)? {
            LONG => {
                let last = self.long(at).last()?;
                Some((high | u128::from(*self.lows.get(last)?), *self.low_lens.get(last)?))
            }
            len => Some((high, len)),
        }
    }
}

impl Family for Six {
    type Address = u128;

    fn last_before(&self, address: u128) -> Option<(u128, u8)> {
        let (high, low) = ((address >> 64) as u64, address as u64);
        let at = self.highs.last_before(high)?;
        if *self.lens.get(at)? != LONG || self.highs.get(at)? != high {
            return self.last_of(at);
        }
        let long = self.long(at);
        let before = self.lows.get(long.clone())?.partition_point(|first| *first <= low);
        match before.checked_sub(1) {
            Some(last) => {
                let last = long.start + last;
                Some(((address >> 64 << 64) | u128::from(*self.lows.get(last)?), *self.low_lens.get(last)?))
            }
            None => self.last_of(at.checked_sub(1)?),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u128, u8)> {
        self.highs.iter().zip(&self.lens).enumerate().flat_map(|(at, (high, len))| {
            let high = u128::from(high) << 64;
            let long = if *len == LONG { self.long(at) } else { 0..0 };
            let long = self
                .lows
                .get(long.clone())
                .into_iter()
                .flatten()
                .zip(self.low_lens.get(long).into_iter().flatten());
            let short = (*len != LONG).then_some((high, *len));
            short.into_iter().chain(long.map(move |(low, len)| (high | u128::from(*low), *len)))
        })
    }

    fn len(&self) -> usize {
        self.len
    }

    fn memory(&self) -> usize {
        let words = self.starts.capacity() * size_of::<u32>() + self.lows.capacity() * size_of::<u64>();
        self.highs.memory() + self.lens.capacity() + self.low_lens.capacity() + words
    }
}

/// Puts prefixes in order and drops those that another holds. As they are packed, what holds sorts before what is held.
fn keep_outer<E: Ord + Copy, A: Address>(entries: &mut Vec<E>, read: impl Fn(E) -> (A, u8)) {
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
}

/// Numbers of one level for each of the level above.
const FAN: usize = 16;

/// Numbers in order; then every 16th of them, and so on until there are no more than 16: so a search looks at few lines of
/// memory.
#[derive(Clone, Debug, Default)]
struct Sorted<N> {
    levels: Vec<Vec<N>>,
}

impl<N: Ord + Copy> Sorted<N> {
    fn new(numbers: Vec<N>) -> Self {
        let mut levels = vec![numbers];
        while let Some(below) = levels.last().filter(|below| below.len() > FAN) {
            let above = below.iter().step_by(FAN).copied().collect();
            levels.push(above);
        }
        Self { levels }
    }

    fn get(&self, at: usize) -> Option<N> {
        self.levels.first()?.get(at).copied()
    }

    fn iter(&self) -> impl Iterator<Item = N> + '_ {
        self.levels.iter().take(1).flatten().copied()
    }

    /// Where the last number stands that is not above `number`.
    fn last_before(&self, number: N) -> Option<usize> {
        self.levels.iter().rev().try_fold(0, |at, level| {
            let start: usize = at * FAN;
            let those = level.get(start..level.len().min(start + FAN))?;
            let before = those.iter().filter(|first| **first <= number).count();
            Some(start + before.checked_sub(1)?)
        })
    }

    fn memory(&self) -> usize {
        self.levels.iter().map(Vec::capacity).sum::<usize>() * size_of::<N>()
    }
}
