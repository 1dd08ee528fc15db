//! Source ports of the gateway's own address, for pools with `source = "gateway"`.
//!
//! Each worker has an allocator, and takes only ports that make a tuple of its own: `fits` says which do. Room for each
//! server's ports is made when a policy is set; from then on nothing is allocated, and taking a port looks at each word
//! of a bitmap at most twice. A port that is given back rests until all others have been used, so that the server's
//! TIME_WAIT of the old connection (RFC 9293, section 3.6.1) is not met sooner than it must be.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use foldhash::fast::FixedState;

use crate::wire::addr::{Addr, Endpoint};

/// Ports of one word of a bitmap.
const WORD: usize = u64::BITS as usize;

/// The ports of all servers.
#[derive(Debug, Default)]
pub struct PortAllocator {
    servers: HashMap<Endpoint, Ports, FixedState>,
}

impl PortAllocator {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for these servers, each with the ports that it may be reached from. Of a server that is named twice the
    /// first range counts. Ports in use stay so, also those of servers that are not named any more; these are forgotten
    /// at the first call after their last port was given back.
    pub fn prepare(&mut self, servers: impl IntoIterator<Item = (Endpoint, RangeInclusive<u16>)>) {
        let mut before = std::mem::take(&mut self.servers);
        for (server, range) in servers {
            self.servers.entry(server).or_insert_with(|| match before.remove(&server) {
                Some(ports) if ports.range == range => ports,
                Some(ports) => ports.with_range(range),
                None => Ports::new(range),
            });
        }
        self.servers.extend(before.into_iter().filter(|(_, ports)| ports.in_use > 0));
    }

    /// Takes a port from which `source` may connect to `server`. The search starts at a place that `hash` says, among
    /// ports that have not been in use lately. `fits` says whether a port may be taken; its answer is remembered for as
    /// long as `source` stays the same. `None`: every port that fits is in use, or nobody prepared for the server.
    pub fn take(
        &mut self,
        server: &Endpoint,
        source: &Addr,
        hash: u64,
        fits: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        self.servers.get_mut(server)?.take(source, hash, fits)
    }

    /// Takes this port; whether it is one of the server's and was free.
    pub fn reserve(&mut self, server: &Endpoint, port: u16) -> bool {
        self.servers.get_mut(server).is_some_and(|ports| ports.reserve(port))
    }

    /// Gives a port back.
    pub fn give(&mut self, server: &Endpoint, port: u16) {
        if let Some(ports) = self.servers.get_mut(server) {
            ports.give(port);
        }
    }

    /// Ports toward a server that are in use.
    pub fn in_use(&self, server: &Endpoint) -> u32 {
        self.servers.get(server).map_or(0, |ports| ports.in_use)
    }

    /// Ports in use toward all servers together.
    pub fn total(&self) -> u64 {
        self.servers.values().map(|ports| u64::from(ports.in_use)).sum()
    }
}

/// The ports toward one server. A bit is a port; bit 0 of word 0 is the lowest of the range.
#[derive(Debug)]
struct Ports {
    range: RangeInclusive<u16>,
    /// In use, or outside the range.
    used: Box<[u64]>,
    /// Given back since those that have not rested began to be taken.
    resting: Box<[u64]>,
    /// Did not fit with `source`.
    misfits: Box<[u64]>,
    source: Addr,
    in_use: u32,
}

impl Ports {
    fn new(range: RangeInclusive<u16>) -> Self {
        let words = range.len().div_ceil(WORD);
        let empty = || vec![0; words].into_boxed_slice();
        let mut ports = Self {
            used: empty(),
            resting: empty(),
            misfits: empty(),
            source: Addr::default(),
            in_use: 0,
            range,
        };
        let tail = ports.range.len() % WORD;
        if let Some(last) = ports.used.last_mut().filter(|_| tail != 0) {
            *last = u64::MAX << tail;
        }
        ports
    }

    /// The same with another range; ports in use outside it are forgotten.
    fn with_range(&self, range: RangeInclusive<u16>) -> Self {
        let mut other = Self::new(range);
        for port in self.range.clone().filter(|port| is_set(&self.used, self.bit(*port))) {
            if let Some((word, mask)) = other.bit(port).and_then(|bit| word_of(&mut other.used, bit)) {
                *word |= mask;
                other.in_use += 1;
            }
        }
        other
    }

    fn take(&mut self, source: &Addr, hash: u64, fits: impl Fn(u16) -> bool) -> Option<u16> {
        if self.source != *source {
            self.source = *source;
            self.misfits.fill(0);
        }
        if let Some(port) = self.search(hash, &fits) {
            return Some(port);
        }
        self.resting.fill(0);
        self.search(hash, &fits)
    }

    fn search(&mut self, hash: u64, fits: impl Fn(u16) -> bool) -> Option<u16> {
        let words = self.used.len();
        let start = (hash as usize).checked_rem(words)?;
        // Within a word, too, the search does not begin at the lowest port.
        let turn = (hash >> 58) as u32;
        for at in (start..words).chain(0..start) {
            let busy = self.used.get(at)? | self.resting.get(at)? | self.misfits.get(at)?;
            let mut free = (!busy).rotate_right(turn);
            while free != 0 {
                let bit = (free.trailing_zeros() + turn) % u64::BITS;
                let port = u16::try_from(at * WORD).ok()?.checked_add(bit as u16)?;
                let port = port.checked_add(*self.range.start())?;
                if fits(port) {
                    *self.used.get_mut(at)? |= 1 << bit;
                    self.in_use += 1;
                    return Some(port);
                }
                *self.misfits.get_mut(at)? |= 1 << bit;
                free &= free - 1;
            }
        }
        None
    }

    fn reserve(&mut self, port: u16) -> bool {
        let Some((word, mask)) = self.bit(port).and_then(|bit| word_of(&mut self.used, bit)) else {
            return false;
        };
        let is_free = *word & mask == 0;
        self.in_use += u32::from(is_free);
        *word |= mask;
        is_free
    }

    fn give(&mut self, port: u16) {
        let Some(bit) = self.bit(port) else { return };
        let Some((word, mask)) = word_of(&mut self.used, bit) else { return };
        if *word & mask == 0 {
            return;
        }
        *word &= !mask;
        self.in_use -= 1;
        if let Some((word, mask)) = word_of(&mut self.resting, bit) {
            *word |= mask;
        }
    }

    /// The bit of a port of the range.
    fn bit(&self, port: u16) -> Option<usize> {
        self.range.contains(&port).then(|| usize::from(port - self.range.start()))
    }
}

fn is_set(bits: &[u64], bit: Option<usize>) -> bool {
    bit.is_some_and(|bit| bits.get(bit / WORD).is_some_and(|word| word & 1 << (bit % WORD) != 0))
}

fn word_of(bits: &mut [u64], bit: usize) -> Option<(&mut u64, u64)> {
    Some((bits.get_mut(bit / WORD)?, 1 << (bit % WORD)))
}

#[cfg(test)]
mod tests;
