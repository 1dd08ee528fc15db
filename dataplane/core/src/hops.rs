//! Ways out that connections remember by number, so that a packet of theirs asks neither routes nor neighbours.
//!
//! The numbers hold for one picture of the routes: a new one makes all of them void at once. A fixed number of ways; a connection
//! for whose way there is no room asks each time. Called by [`crate::stage::straight`].

use hashbrown::HashTable;

use crate::fib::{Mac, NextHop};
use crate::flow::key::FlowHasher;
use crate::flow::record::Side;
use crate::ids::PortId;

/// Ways that are remembered at once: so many neighbours that packets go to.
const MOST: usize = 4096;

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
}

impl Hops {
    pub fn new(hasher: FlowHasher) -> Self {
        Self { hasher, picture: 1, ways: Vec::with_capacity(MOST), index: HashTable::with_capacity(MOST) }
    }

    /// The routes may be others now.
    pub fn clear(&mut self) {
        self.picture = self.picture.wrapping_add(1).max(1);
        self.ways.clear();
        self.index.clear();
    }

    /// The number of the picture, never 0.
    #[inline]
    pub const fn picture(&self) -> u32 {
        self.picture
    }

    /// The way of what `side` sends, of a connection whose numbers are of this picture.
    #[inline]
    pub fn get_open(&self, numbers: &HopNumbers, side: Side) -> Option<&Hop> {
        self.ways.get(usize::from(numbers.of(side)))
    }

    /// The way of what `side` sends, if it is known.
    #[inline]
    pub fn get(&self, numbers: &HopNumbers, side: Side) -> Option<&Hop> {
        self.get_open(numbers, side).filter(|_| numbers.picture == self.picture)
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
