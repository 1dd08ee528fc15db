//! Sets of TCP ports.

use std::ops::RangeInclusive;

const WORDS: usize = 65536 / 64;

/// TCP ports as a bitmap of 8 KiB: one load and one test per lookup.
#[derive(Clone)]
pub struct TcpPorts {
    bits: Box<[u64]>,
}

impl TcpPorts {
    pub fn insert(&mut self, ports: RangeInclusive<u16>) {
        for port in ports {
            if let Some(word) = self.bits.get_mut(usize::from(port >> 6)) {
                *word |= 1 << (port & 63);
            }
        }
    }

    pub fn contains(&self, port: u16) -> bool {
        self.bits.get(usize::from(port >> 6)).is_some_and(|word| word & (1 << (port & 63)) != 0)
    }

    /// Whether every port of `other` is in this set.
    pub fn covers(&self, other: &Self) -> bool {
        self.bits.iter().zip(&other.bits).all(|(mine, theirs)| theirs & !mine == 0)
    }

    /// Whether some port is in both sets.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.bits.iter().zip(&other.bits).any(|(mine, theirs)| theirs & mine != 0)
    }

    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|word| *word == 0)
    }

    /// The fewest ranges that make up the set, in order.
    pub fn ranges(&self) -> Vec<RangeInclusive<u16>> {
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for port in (0..=u16::MAX).filter(|port| self.contains(*port)) {
            match ranges.last_mut() {
                Some(last) if last.end().checked_add(1) == Some(port) => *last = *last.start()..=port,
                _ => ranges.push(port..=port),
            }
        }
        ranges
    }
}

impl Default for TcpPorts {
    fn default() -> Self {
        Self { bits: vec![0; WORDS].into_boxed_slice() }
    }
}

impl FromIterator<RangeInclusive<u16>> for TcpPorts {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u16>>>(ranges: I) -> Self {
        let mut ports = Self::default();
        for range in ranges {
            ports.insert(range);
        }
        ports
    }
}

impl std::fmt::Debug for TcpPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}
