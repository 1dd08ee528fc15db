//! Ways out that connections remember by number, so that a packet of theirs asks neither routes nor neighbours.
//!
//! The numbers hold for one picture of the routes: a new one makes all of them void at once. A fixed number of ways; a connection
//! for whose way there is no room asks each time. Called by [`crate::stage::straight`].

use hashbrown::HashTable;

use crate::fib::{Mac, NextHop};
use crate::flow::key::FlowHasher;
use crate::flow::record::Side;
use crate::ids::PortId;
use crate::tcp::options::MAX_SHIFT;

/// Ways that are remembered at once: so many neighbours that packets go to.
const MOST: usize = 4096;
/// Lines that are remembered at once.
const MOST_LINES: usize = 16 * 1024;

/// A way out whose neighbour is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hop {
    pub port: PortId,
    /// Largest IP packet, in octets.
    pub mtu: u16,
    /// Destination and source.
    pub macs: [Mac; 2],
}

impl Hop {
    /// No way.
    pub const NONE: Self = Self { port: PortId(0), mtu: 0, macs: [[0; 6]; 2] };
}

/// What is the same for many connections whose plain segments need no thought: where these leave, of what `Side::Client` and of what
/// `Side::Server` sends, and what that end's windows are shifted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(align(64))]
pub struct Line {
    hops: [Hop; 2],
    shifts: [u8; 2],
    pub v6: bool,
}

impl Line {
    /// Where what `side` sends leaves, and the shift of its windows.
    #[inline(always)]
    pub fn of(&self, side: Side) -> (&Hop, u32) {
        // Looked up, not chosen: half of the packets would be guessed wrong.
        let ([hop, _], [shift, _]) = (&self.hops, &self.shifts);
        let at = side as usize;
        (self.hops.get(at).unwrap_or(hop), u32::from(*self.shifts.get(at).unwrap_or(shift)))
    }
}

/// The numbers of a connection's ways.
#[derive(Clone, Copy, Debug, Default)]
pub struct HopNumbers {
    /// The picture of the routes that they are of.
    picture: u32,
    /// Of what the client and of what the server sends.
    of: [u16; 2],
}

impl HopNumbers {
    /// None is known.
    pub const NONE: Self = Self { picture: 0, of: [0; 2] };
}

impl HopNumbers {
    /// The number of the way of what `side` sends.
    #[inline]
    pub fn of(&self, side: Side) -> u16 {
        // Looked up, not chosen: half of the packets would be guessed wrong.
        self.of.get(side as usize).copied().unwrap_or(u16::MAX)
    }
}

/// The ways by their numbers.
#[derive(Debug)]
pub struct Hops {
    hasher: FlowHasher,
    /// Counts from 1: a connection that is new remembers none.
    picture: u32,
    ways: Vec<Hop>,
    index: HashTable<u16>,
    lines: Vec<Line>,
    line_index: HashTable<u32>,
    /// The number of the first line, never 0. Each line has another number than those before it: it counts for as long as any connection
    /// may remember one.
    first_line: u32,
}

impl Hops {
    pub fn new(hasher: FlowHasher) -> Self {
        Self {
            hasher,
            picture: 1,
            ways: Vec::with_capacity(MOST),
            index: HashTable::with_capacity(MOST),
            lines: Vec::with_capacity(MOST_LINES),
            line_index: HashTable::with_capacity(MOST_LINES),
            first_line: 1,
        }
    }

    /// The routes may be others now.
    pub fn clear(&mut self) {
        self.picture = self.picture.wrapping_add(1).max(1);
        self.ways.clear();
        self.index.clear();
        let next = self.first_line.saturating_add(self.lines.len() as u32);
        self.first_line = if next > u32::MAX - MOST_LINES as u32 { 1 } else { next };
        self.lines.clear();
        self.line_index.clear();
    }

    /// The way of what `side` sends, if it is known.
    #[inline]
    pub fn get(&self, numbers: &HopNumbers, side: Side) -> Option<&Hop> {
        self.ways.get(usize::from(numbers.of(side))).filter(|_| numbers.picture == self.picture)
    }

    /// The line of this number, if the routes are what they were when it got it. There is none of number 0.
    #[inline(always)]
    pub fn line(&self, number: u32) -> Option<&Line> {
        self.lines.get(number.wrapping_sub(self.first_line) as usize)
    }

    /// The number of the line of a connection with these ways and shifts. `None`: the ways are not known both, or there is no room.
    pub fn number_line(&mut self, numbers: &HopNumbers, shifts: [u8; 2], v6: bool) -> Option<u32> {
        let hops = [*self.get(numbers, Side::Client)?, *self.get(numbers, Side::Server)?];
        let line = Line { hops, shifts: shifts.map(|shift| shift.min(MAX_SHIFT)), v6 };
        let hash = self.hasher.hash_any(&line);
        let (hasher, lines) = (&self.hasher, &self.lines);
        if let Some(at) = self.line_index.find(hash, |&at| lines.get(at as usize) == Some(&line)) {
            return Some(self.first_line + *at);
        }
        let at = u32::try_from(lines.len()).ok().filter(|_| lines.len() < MOST_LINES)?;
        self.line_index
            .insert_unique(hash, at, |&at| lines.get(at as usize).map_or(0, |line| hasher.hash_any(line)));
        self.lines.push(line);
        Some(self.first_line + at)
    }

    /// What `side` sends goes to `hop` from now on. What cannot be sent on by a port of ours has no number.
    pub fn note(&mut self, numbers: &mut HopNumbers, side: Side, hop: &NextHop) {
        let NextHop::Forward { port, src_mac, dst_mac, mtu } = *hop else { return };
        let Some(number) = self.number(Hop { port, mtu, macs: [dst_mac, src_mac] }) else { return };
        if numbers.picture != self.picture {
            *numbers = HopNumbers { picture: self.picture, of: [u16::MAX; 2] };
        }
        let [to_server, to_client] = &mut numbers.of;
        match side {
            Side::Client => *to_server = number,
            Side::Server => *to_client = number,
        }
    }

    fn number(&mut self, hop: Hop) -> Option<u16> {
        let hash = self.hasher.hash_any(&hop);
        let (hasher, ways) = (&self.hasher, &self.ways);
        if let Some(number) = self.index.find(hash, |&n| ways.get(usize::from(n)) == Some(&hop)) {
            return Some(*number);
        }
        let number = u16::try_from(ways.len()).ok().filter(|n| usize::from(*n) < MOST)?;
        self.index
            .insert_unique(hash, number, |&n| ways.get(usize::from(n)).map_or(0, |hop| hasher.hash_any(hop)));
        self.ways.push(hop);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(n: u16) -> NextHop {
        let [a, b] = n.to_be_bytes();
        NextHop::Forward { port: PortId(1), src_mac: [2; 6], dst_mac: [6, 0, 0, 0, a, b], mtu: 1500 }
    }

    #[test]
    fn ways_of_another_picture_are_not_taken() {
        let mut hops = Hops::new(FlowHasher::new(1));
        let mut numbers = HopNumbers::default();
        assert_eq!(hops.get(&numbers, Side::Client), None);
        hops.note(&mut numbers, Side::Client, &hop(1));
        assert_eq!(hops.get(&numbers, Side::Client).unwrap().macs[0], [6, 0, 0, 0, 0, 1]);
        assert_eq!(hops.get(&numbers, Side::Server), None, "the other direction has asked nobody yet");
        hops.clear();
        let mut other = HopNumbers::default();
        hops.note(&mut other, Side::Server, &hop(2));
        assert_eq!(hops.get(&numbers, Side::Client), None, "its number is another's now");
        assert_eq!(hops.get(&other, Side::Server).unwrap().macs[0], [6, 0, 0, 0, 0, 2]);
    }

    fn both_ways(hops: &mut Hops, n: u16) -> HopNumbers {
        let mut numbers = HopNumbers::default();
        hops.note(&mut numbers, Side::Client, &hop(n));
        hops.note(&mut numbers, Side::Server, &hop(n + 1));
        numbers
    }

    #[test]
    fn line_of_an_older_picture_is_none_and_its_number_is_not_given_again() {
        let mut hops = Hops::new(FlowHasher::new(1));
        assert!(hops.line(0).is_none());
        let numbers = both_ways(&mut hops, 1);
        let old = hops.number_line(&numbers, [7, 255], false).unwrap();
        assert_eq!(hops.number_line(&numbers, [7, 255], false), Some(old));
        let line = hops.line(old).unwrap();
        assert_eq!((line.of(Side::Client).0.macs[0][5], line.of(Side::Client).1), (1, 7));
        assert_eq!((line.of(Side::Server).0.macs[0][5], line.of(Side::Server).1), (2, 14));
        assert_ne!(hops.number_line(&numbers, [7, 255], true), Some(old), "of the other IP");
        hops.clear();
        assert!(hops.line(old).is_none());
        assert_eq!(hops.number_line(&numbers, [7, 255], false), None, "its ways are not known any more");
        let numbers = both_ways(&mut hops, 5);
        let new = hops.number_line(&numbers, [0, 0], false).unwrap();
        assert!(new > old && hops.line(old).is_none() && hops.line(0).is_none());
    }

    #[test]
    fn lines_beyond_the_most_have_no_number() {
        let mut hops = Hops::new(FlowHasher::new(1));
        for n in 0..MOST_LINES {
            let numbers = both_ways(&mut hops, (n % 100) as u16);
            let shifts = [(n / 100 % 15) as u8, (n / 1500) as u8];
            assert!(hops.number_line(&numbers, shifts, false).is_some(), "{n}");
        }
        let numbers = both_ways(&mut hops, 1);
        assert_eq!(hops.number_line(&numbers, [3, 3], true), None);
        assert!(hops.number_line(&numbers, [3, 3], false).is_some(), "one that is there is found again");
    }

    #[test]
    fn ways_beyond_the_most_have_no_number_and_unresolved_ones_neither() {
        let mut hops = Hops::new(FlowHasher::new(1));
        for n in 0..MOST as u16 + 10 {
            let mut numbers = HopNumbers::default();
            hops.note(&mut numbers, Side::Client, &hop(n));
            assert_eq!(hops.get(&numbers, Side::Client).is_some(), n < MOST as u16, "{n}");
        }
        assert_eq!(hops.ways.len(), MOST);
        let mut numbers = HopNumbers::default();
        hops.note(&mut numbers, Side::Client, &hop(7));
        assert_eq!(
            hops.get(&numbers, Side::Client).unwrap().macs[0][5],
            7,
            "one that is there is found again"
        );
        let mut numbers = HopNumbers::default();
        hops.note(&mut numbers, Side::Client, &NextHop::Unresolved(PortId(1)));
        assert_eq!(hops.get(&numbers, Side::Client), None);
    }
}
