//! Server legs: for a connection that weir joins of two, the one that it opened to the server.
//!
//! A fixed number of slots, and an index of those legs whose addresses are not the client's own. Called by the pipeline
//! only.

use hashbrown::HashTable;

use super::key::{FlowHasher, FlowKey, Tuple};
use crate::footprint::index_octets;
use crate::ids::{Nanos, PoolId, ServerId};
use crate::policy::ProxyVersion;
use crate::tcp::seq::Seq;
use crate::tcp::translate::Translation;

/// One server leg.
#[derive(Clone, Copy, Debug)]
pub struct Leg {
    /// The slot of its connection.
    pub flow: u32,
    /// Source and destination of what goes to the server.
    pub tuple: Tuple,
    /// Whether `tuple` is another one than the client's.
    pub is_apart: bool,
    /// The server of a pool; `None`: the one that the client asked for.
    pub target: Option<(PoolId, ServerId)>,
    /// It is the second server that is tried.
    pub is_retry: bool,
    /// The source port was taken from those of the gateway.
    pub owns_port: bool,
    /// The worker that receives its packets, when that is another one.
    pub receiver: Option<usize>,
    /// Our initial sequence number: the client's, less the octets of the PROXY header.
    pub isn: Seq,
    /// The PROXY header that goes first, and its octets.
    pub proxy: Option<ProxyVersion>,
    pub header: u16,
    /// The MSS that the server is told.
    pub mss: u16,
    /// How packets cross, once the server has answered.
    pub up: Option<Translation>,
    /// The server has the PROXY header.
    pub header_acked: bool,
    /// When the server answered.
    pub since: Nanos,
}

impl Leg {
    /// Both directions' key.
    pub fn key(&self) -> FlowKey {
        FlowKey::of(&self.tuple)
    }
}

/// All server legs of a worker.
#[derive(Debug)]
pub struct Legs {
    hasher: FlowHasher,
    index: HashTable<u32>,
    slots: Vec<Option<Leg>>,
    free: Vec<u32>,
    capacity: usize,
}

impl Legs {
    /// Octets of the index, and of the room that is only used as far as there are legs.
    pub const fn octets(capacity: usize) -> (usize, usize) {
        let slot = size_of::<Option<Leg>>() + size_of::<u32>();
        (index_octets(capacity.saturating_mul(2)), capacity.saturating_mul(slot))
    }

    /// Room for `capacity` legs. Memory is used as far as there ever were legs at once.
    pub fn new(capacity: usize, hasher: FlowHasher) -> Self {
        let capacity = capacity.min(u32::MAX as usize - 1);
        Self {
            hasher,
            // Twice the slots: see the flow table.
            index: HashTable::with_capacity(capacity * 2),
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            capacity,
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The leg with these addresses, among those that stand apart from their client's.
    #[inline]
    pub fn find(&self, key: &FlowKey) -> Option<u32> {
        if self.index.is_empty() {
            return None;
        }
        let fits = |&id: &u32| self.get(id).is_some_and(|leg| leg.key() == *key);
        self.index.find(self.hasher.hash(key), fits).copied()
    }

    #[inline]
    pub fn get(&self, id: u32) -> Option<&Leg> {
        self.slots.get(id as usize)?.as_ref()
    }

    #[inline]
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Leg> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    /// Adds a leg; `None` when there is no room. The caller has seen to it that its addresses are free.
    pub fn insert(&mut self, leg: Leg) -> Option<u32> {
        let id = match self.free.pop() {
            Some(id) => id,
            None if self.slots.len() < self.capacity => {
                self.slots.push(None);
                (self.slots.len() - 1) as u32
            }
            None => return None,
        };
        if leg.is_apart {
            let (hasher, slots) = (&self.hasher, &self.slots);
            let rehash = |&id: &u32| {
                slots.get(id as usize).and_then(Option::as_ref).map_or(0, |leg: &Leg| hasher.hash(&leg.key()))
            };
            self.index.insert_unique(hasher.hash(&leg.key()), id, rehash);
        }
        if let Some(place) = self.slots.get_mut(id as usize) {
            *place = Some(leg);
        }
        Some(id)
    }

    pub fn remove(&mut self, id: u32) -> Option<Leg> {
        let leg = self.slots.get_mut(id as usize)?.take()?;
        if leg.is_apart
            && let Ok(entry) = self.index.find_entry(self.hasher.hash(&leg.key()), |&other| other == id)
        {
            entry.remove();
        }
        self.free.push(id);
        Some(leg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::addr::{Addr, Endpoint};

    fn leg(port: u16, is_apart: bool) -> Leg {
        let src = Endpoint { addr: Addr::v4([10, 0, 0, 1]), port };
        let dst = Endpoint { addr: Addr::v4([10, 2, 0, 1]), port: 443 };
        Leg {
            flow: u32::from(port),
            tuple: Tuple { src, dst },
            is_apart,
            target: None,
            is_retry: false,
            owns_port: false,
            receiver: None,
            isn: Seq(0),
            proxy: None,
            header: 0,
            mss: 1460,
            up: None,
            header_acked: true,
            since: Nanos(0),
        }
    }

    #[test]
    fn insert_at_capacity_is_refused_and_removed_legs_make_room() {
        let mut legs = Legs::new(2, FlowHasher::new(1));
        let first = legs.insert(leg(1, true)).unwrap();
        let second = legs.insert(leg(2, false)).unwrap();
        assert_eq!(legs.insert(leg(3, true)), None);
        assert_eq!(legs.find(&leg(1, true).key()), Some(first));
        assert_eq!(legs.find(&leg(2, false).key()), None, "the client's own addresses are the flow table's");
        assert!(legs.remove(first).is_some());
        assert!(legs.remove(first).is_none());
        assert_eq!(legs.find(&leg(1, true).key()), None);
        assert_eq!(legs.insert(leg(4, true)), Some(first));
        assert!(legs.remove(second).is_some());
        assert_eq!(legs.len(), 1);
    }
}
