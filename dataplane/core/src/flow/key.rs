//! A connection's two endpoints, as a packet names them and as the table does.

use std::hash::{BuildHasher, Hash};

use crate::wire::addr::Endpoint;

/// Source and destination of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub src: Endpoint,
    pub dst: Endpoint,
}

impl Tuple {
    /// The same connection seen from the other end.
    #[inline]
    pub const fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src }
    }
}

/// A connection: its endpoints in order, so that both directions have one key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    pub low: Endpoint,
    pub high: Endpoint,
}

impl FlowKey {
    #[inline]
    pub fn of(tuple: &Tuple) -> Self {
        if tuple.src <= tuple.dst {
            Self { low: tuple.src, high: tuple.dst }
        } else {
            Self { low: tuple.dst, high: tuple.src }
        }
    }
}

/// Hashes keys; seeded, so that nobody outside can choose colliding tuples.
#[derive(Clone, Debug)]
pub struct FlowHasher(foldhash::fast::FixedState);

impl FlowHasher {
    pub fn new(seed: u64) -> Self {
        Self(foldhash::fast::FixedState::with_seed(seed))
    }

    /// The same for both directions of a connection: it chooses the worker and the bucket.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        self.of_ends(&key.low, &key.high)
    }

    /// The hash of the connection that a packet belongs to.
    #[inline]
    pub fn hash_of(&self, tuple: &Tuple) -> u64 {
        self.of_ends(&tuple.src, &tuple.dst)
    }

    /// A sum, so that a packet's endpoints need not be brought in order; each is hashed with the seed.
    #[inline]
    fn of_ends(&self, one: &Endpoint, other: &Endpoint) -> u64 {
        self.0.hash_one(one).wrapping_add(self.0.hash_one(other))
    }

    /// For datagrams under reassembly: the same for all fragments.
    #[inline]
    pub fn hash_any<T: Hash>(&self, key: &T) -> u64 {
        self.0.hash_one(key)
    }
}

/// The worker, of `workers`, that owns a hash. Uses the high half; the table's index uses the low bits.
#[inline]
pub const fn owner(hash: u64, workers: usize) -> usize {
    if workers <= 1 {
        return 0;
    }
    (((hash >> 32) * workers as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn end(s: &str) -> Endpoint {
        s.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn key_of_both_directions_is_one() {
        for (a, b) in [("10.0.0.1:5000", "192.0.2.1:443"), ("[2001:db8::1]:443", "[fd00::1]:40000")] {
            let t = Tuple { src: end(a), dst: end(b) };
            assert_eq!(FlowKey::of(&t), FlowKey::of(&t.reversed()));
            let hasher = FlowHasher::new(7);
            assert_eq!(hasher.hash_of(&t), hasher.hash_of(&t.reversed()));
            assert_eq!(hasher.hash_of(&t), hasher.hash(&FlowKey::of(&t)));
        }
    }

    #[test]
    fn owner_spreads_and_stays_in_range() {
        let hasher = FlowHasher::new(7);
        let mut seen = [0_u32; 3];
        for port in 1..=3000_u16 {
            let mut src = end("10.0.0.1:1");
            src.port = port;
            let key = FlowKey::of(&Tuple { src, dst: end("192.0.2.1:443") });
            seen[owner(hasher.hash(&key), 3)] += 1;
        }
        assert!(seen.iter().all(|n| (700..1300).contains(n)), "{seen:?}");
    }
}
