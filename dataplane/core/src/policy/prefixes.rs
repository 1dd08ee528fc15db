//! Sets of IPv4 and IPv6 prefixes, from a handful in a rule to a list of millions.
//!
//! Each family is one sorted array of the prefixes that no other holds, so that of an address only the last that
//! begins at or before it can hold it: 5 octets for an IPv4 prefix, 17 for an IPv6 one. (A prefix trie, `prefix-trie`,
//! takes 80 MiB and more for a million, and a lookup follows as many pointers as the prefix has forks.)

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Prefixes of both families; an address is in the set when one of them holds it.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    v4: Sorted<5>,
    v6: Sorted<17>,
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
            IpNet::V4(p) => self.v4.holder(&entry4(p)).is_some(),
            IpNet::V6(p) => self.v6.holder(&entry6(p)).is_some(),
        }
    }

    /// Whether some prefix holds `prefix`, or is held by it.
    fn touches(&self, prefix: IpNet) -> bool {
        self.covers_prefix(prefix)
            || match prefix {
                IpNet::V4(p) => self.v4.any_within(&entry4(p)),
                IpNet::V6(p) => self.v6.any_within(&entry6(p)),
            }
    }

    /// The prefixes that no other holds, IPv4 first, each family in order of its addresses.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.v4.0.iter().filter_map(prefix4).chain(self.v6.0.iter().filter_map(prefix6))
    }

    /// Prefixes that no other holds.
    pub const fn len(&self) -> usize {
        self.v4.0.len() + self.v6.0.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is an IPv4 prefix.
    pub const fn has_v4(&self) -> bool {
        !self.v4.0.is_empty()
    }

    /// Whether there is an IPv6 prefix.
    pub const fn has_v6(&self) -> bool {
        !self.v6.0.is_empty()
    }

    /// Octets of memory that the set has taken.
    pub const fn memory(&self) -> usize {
        self.v4.0.capacity() * 5 + self.v6.0.capacity() * 17
    }
}

/// Prefixes one by one, in any order, without more memory than the set needs.
#[derive(Clone, Debug, Default)]
pub struct PrefixesBuilder {
    v4: Vec<Entry<5>>,
    v6: Vec<Entry<17>>,
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
        Prefixes { v4: Sorted::new(self.v4), v6: Sorted::new(self.v6) }
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

/// The first address in network order, and the length behind it: prefixes in their usual order, what holds before what is
/// held.
type Entry<const N: usize> = [u8; N];

fn entry4(prefix: Ipv4Net) -> Entry<5> {
    let [a, b, c, d] = prefix.addr().octets();
    [a, b, c, d, prefix.prefix_len()]
}

fn entry6(prefix: Ipv6Net) -> Entry<17> {
    let mut entry = [prefix.prefix_len(); 17];
    for (to, from) in entry.iter_mut().zip(prefix.addr().octets()) {
        *to = from;
    }
    entry
}

fn prefix4(entry: &Entry<5>) -> Option<IpNet> {
    let [a, b, c, d, len] = *entry;
    Ipv4Net::new([a, b, c, d].into(), len).ok().map(IpNet::V4)
}

fn prefix6(entry: &Entry<17>) -> Option<IpNet> {
    let (address, len) = entry.split_first_chunk::<16>()?;
    Ipv6Net::new((*address).into(), *len.first()?).ok().map(IpNet::V6)
}

/// Prefixes of one family, none of which holds another.
#[derive(Clone, Debug, Default)]
struct Sorted<const N: usize>(Vec<Entry<N>>);

impl<const N: usize> Sorted<N> {
    fn new(mut entries: Vec<Entry<N>>) -> Self {
        entries.sort_unstable();
        let mut last: Option<Entry<N>> = None;
        entries.retain(|entry| {
            let held = last.is_some_and(|last| holds(&last, entry));
            if !held {
                last = Some(*entry);
            }
            !held
        });
        entries.shrink_to_fit();
        Self(entries)
    }

    /// The prefix that holds `entry`.
    fn holder(&self, entry: &Entry<N>) -> Option<&Entry<N>> {
        let behind = self.0.partition_point(|other| other <= entry);
        self.0.get(behind.checked_sub(1)?).filter(|other| holds(other, entry))
    }

    /// Whether `entry` holds some prefix.
    fn any_within(&self, entry: &Entry<N>) -> bool {
        let behind = self.0.partition_point(|other| other < entry);
        self.0.get(behind).is_some_and(|other| holds(entry, other))
    }
}

/// Whether every address of `inner` is one of `outer`.
fn holds<const N: usize>(outer: &Entry<N>, inner: &Entry<N>) -> bool {
    let ([outer @ .., len], [inner @ .., inner_len]) = (&outer[..], &inner[..]) else { return false };
    let (whole, rest) = (usize::from(len / 8), len % 8);
    len <= inner_len
        && outer.get(..whole) == inner.get(..whole)
        && (rest == 0
            || outer.get(whole).zip(inner.get(whole)).is_some_and(|(a, b)| (a ^ b) >> (8 - rest) == 0))
}
