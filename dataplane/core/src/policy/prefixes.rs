//! Sets of IPv4 and IPv6 prefixes, from a handful in a rule to a list of millions.
//!
//! Each family is in order, without the prefixes that another holds, so that of an address only the last that begins at or
//! before it can hold it: 5 octets for an IPv4 prefix, 9 for an IPv6 one of up to 64 bits (22 for a longer one).
//! (A prefix trie, `prefix-trie`, takes twice to three times as long for a million: see `benches/benches/lists.rs`.)

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::sorted::{Family as _, Four, Six};

/// Prefixes of both families; an address is in the set when one of them holds it.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    v4: Four,
    v6: Six,
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
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is an IPv4 prefix.
    pub fn has_v4(&self) -> bool {
        self.v4.len() != 0
    }

    /// Whether there is an IPv6 prefix.
    pub fn has_v6(&self) -> bool {
        self.v6.len() != 0
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
            v4: Four::new(self.v4, |[a, b, c, d, len]| (u32::from_be_bytes([a, b, c, d]), len)),
            v6: Six::new(self.v6, |entry| match entry.split_first_chunk::<16>() {
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
