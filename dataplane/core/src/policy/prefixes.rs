//! Sets of IPv4 and IPv6 prefixes.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixSet;

/// Prefixes of both families; an address is in the set when one of them holds it.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    v4: PrefixSet<Ipv4Net>,
    v6: PrefixSet<Ipv6Net>,
}

impl Prefixes {
    /// Adds one prefix; its host bits are ignored. False: it was there already.
    pub fn insert(&mut self, prefix: IpNet) -> bool {
        match prefix {
            IpNet::V4(p) => self.v4.insert(p.trunc()),
            IpNet::V6(p) => self.v6.insert(p.trunc()),
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => self.v4.get_lpm(&Ipv4Net::from(a)).is_some(),
            IpAddr::V6(a) => self.v6.get_lpm(&Ipv6Net::from(a)).is_some(),
        }
    }

    /// Whether each prefix of `other` lies in one prefix of this set.
    pub fn covers(&self, other: &Self) -> bool {
        other.v4.iter().all(|p| self.v4.get_lpm(&p).is_some())
            && other.v6.iter().all(|p| self.v6.get_lpm(&p).is_some())
    }

    /// Whether some address is in both sets.
    pub fn overlaps(&self, other: &Self) -> bool {
        // Of two prefixes that share an address, one holds the other.
        self.v4.iter().any(|p| other.v4.get_lpm(&p).is_some())
            || other.v4.iter().any(|p| self.v4.get_lpm(&p).is_some())
            || self.v6.iter().any(|p| other.v6.get_lpm(&p).is_some())
            || other.v6.iter().any(|p| self.v6.get_lpm(&p).is_some())
    }

    /// All prefixes, IPv4 first, each family in order of its addresses.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.v4.iter().map(IpNet::V4).chain(self.v6.iter().map(IpNet::V6))
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl FromIterator<IpNet> for Prefixes {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let mut set = Self::default();
        for prefix in prefixes {
            set.insert(prefix);
        }
        set
    }
}
