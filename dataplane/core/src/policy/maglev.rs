//! Maglev's consistent hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI
//! 2016, section 3.4), with weights.
//!
//! Each server has a permutation of the table's places, from two hashes of its address and port, and the servers take
//! turns at claiming the next free place of theirs. A server of weight w has w turns where the heaviest, of weight h,
//! has h. Nothing is random, and the order of the servers in a list does not matter: every gateway with the same
//! servers has the same table.

use siphasher::sip::SipHasher13;

use crate::ids::ServerId;
use crate::wire::addr::Endpoint;

/// Sizes of tables. They are prime, so that every skip visits every place.
const SIZES: [usize; 3] = [4093, 16_381, 65_537];

/// Places for each turn of a round that a table should have at least: more make shares more even, and move fewer clients
/// when a server comes or goes. The largest table is taken for more servers, too.
const PLACES_PER_TURN: u64 = 400;

/// A server, as a table sees it.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    pub id: ServerId,
    pub endpoint: Endpoint,
    /// At least 1.
    pub weight: u16,
}

/// Which server a hash goes to.
#[derive(Clone, Debug, Default)]
pub struct Table {
    places: Box<[ServerId]>,
    members: usize,
}

impl Table {
    /// `size` is one of [`size`].
    pub fn new(members: &[Member], size: usize) -> Self {
        let heaviest = members.iter().map(|member| u32::from(member.weight)).max().unwrap_or(0);
        if heaviest == 0 {
            return Self::default();
        }
        let mut turns: Vec<Turns> = members.iter().map(|member| Turns::new(member, heaviest, size)).collect();
        // Turns go by address, not by the order of the list.
        turns.sort_by_key(|turns| turns.member.endpoint);
        let mut places = vec![None; size];
        let mut free = size;
        while free > 0 {
            for turns in &mut turns {
                turns.saved += u32::from(turns.member.weight);
                if turns.saved >= heaviest && free > 0 {
                    turns.saved -= heaviest;
                    turns.claim(&mut places);
                    free -= 1;
                }
            }
        }
        Self { places: places.into_iter().flatten().collect(), members: members.len() }
    }

    /// The server of a hash.
    pub fn get(&self, hash: u64) -> Option<ServerId> {
        self.places.get(self.place(hash)?).copied()
    }

    /// The next server in the table from the place of a hash that is not `not`.
    pub fn other(&self, hash: u64, not: ServerId) -> Option<ServerId> {
        if self.members == 1 && self.places.first() == Some(&not) {
            return None;
        }
        let (before, from) = self.places.split_at_checked(self.place(hash)?)?;
        from.iter().chain(before).find(|id| **id != not).copied()
    }

    fn place(&self, hash: u64) -> Option<usize> {
        let place = hash.checked_rem(self.places.len() as u64)?;
        usize::try_from(place).ok()
    }
}

/// One server's turns.
struct Turns {
    member: Member,
    /// The next place of its permutation.
    next: usize,
    skip: usize,
    /// Weight saved up for the next turn.
    saved: u32,
}

impl Turns {
    /// Everybody has a turn in the first round, so that the lightest has a place.
    fn new(member: &Member, heaviest: u32, size: usize) -> Self {
        let size = size as u64;
        let offset = hash_endpoint(&SipHasher13::new_with_keys(0, 0), &member.endpoint) % size;
        let skip = hash_endpoint(&SipHasher13::new_with_keys(1, 0), &member.endpoint) % (size - 1) + 1;
        Self {
            member: *member,
            next: offset as usize,
            skip: skip as usize,
            saved: heaviest - u32::from(member.weight),
        }
    }

    /// Takes the next free place of the permutation. There is one.
    fn claim(&mut self, places: &mut [Option<ServerId>]) {
        for _ in 0..places.len() {
            let at = self.next;
            self.next = (at + self.skip) % places.len();
            if let Some(place @ None) = places.get_mut(at) {
                *place = Some(self.member.id);
                return;
            }
        }
    }
}

/// The size of the table for servers of these weights. It should not depend on which of them are up: another size moves
/// most clients.
pub fn size(weights: impl Iterator<Item = u16> + Clone) -> usize {
    let weights = weights.map(u64::from).filter(|weight| *weight > 0);
    let lightest = weights.clone().min().unwrap_or(1);
    let turns = weights.sum::<u64>().div_ceil(lightest);
    let wanted = turns.saturating_mul(PLACES_PER_TURN);
    let [.., largest] = SIZES;
    SIZES.into_iter().find(|size| *size as u64 >= wanted).unwrap_or(largest)
}

/// Hashes an endpoint.
pub fn hash_endpoint(hasher: &SipHasher13, endpoint: &Endpoint) -> u64 {
    let mut bytes = [0; 18];
    let (addr, port) = bytes.split_at_mut(16);
    addr.copy_from_slice(&endpoint.addr.0);
    port.copy_from_slice(&endpoint.port.to_be_bytes());
    hasher.hash(&bytes)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn members(weights: &[u16]) -> Vec<Member> {
        let endpoint = |i: u16| SocketAddr::from(([10, 2, (i >> 8) as u8, i as u8], 443)).into();
        let member =
            |(i, weight): (u16, &u16)| Member { id: ServerId(i), endpoint: endpoint(i), weight: *weight };
        (0..).zip(weights).map(member).collect()
    }

    #[test]
    fn places_are_as_many_as_the_weight_says() {
        for weights in [vec![1; 7], vec![3, 1, 4, 1, 5], vec![256, 1], [vec![256; 900], vec![1]].concat()] {
            let size = size(weights.iter().copied());
            let table = Table::new(&members(&weights), size);
            let whole: f64 = weights.iter().copied().map(f64::from).sum();
            for (id, weight) in (0..).map(ServerId).zip(&weights) {
                let places = table.places.iter().filter(|place| **place == id).count() as f64;
                let fair = size as f64 * f64::from(*weight) / whole;
                assert!(places >= 1.0 && (places - fair).abs() <= 1.5, "{places} for {fair} of {weights:?}");
            }
        }
    }

    #[test]
    fn size_follows_the_weights_up_to_the_largest() {
        let sizes =
            [(vec![1; 10], 4093), (vec![1; 11], 16_381), (vec![1; 40], 16_381), (vec![1; 41], 65_537)];
        for (weights, expected) in sizes {
            assert_eq!(size(weights.into_iter()), expected);
        }
        assert_eq!(size([5, 5].into_iter()), size([1, 1].into_iter()));
        assert_eq!(size([256, 1].into_iter()), 65_537);
        assert_eq!(size([256; 1024].into_iter()), 65_537);
        assert_eq!(size([0].into_iter()), 4093);
    }

    #[test]
    fn sizes_are_prime() {
        assert!(SIZES.iter().all(|size| (2..*size).all(|divisor| size % divisor != 0)));
    }
}
