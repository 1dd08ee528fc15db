//! The intercepts as the steering program sees them: bits of one word.
//!
//! Bit `i` is intercept `i`. A connection from port `p` to `address:port` is of the intercepts
//! `from[p] & prefix(address) & ports(port)`, and the lowest bit set is the first of them. An LPM map in the kernel
//! gives one prefix only, the longest, so each prefix carries the bits of all the shorter ones that hold it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::{Prefix, PrefixMap};

use super::{Handshake, Intercept, Policy, SynCookies};
use crate::fib::Vlans;
use crate::ids::{MAX_PORTS, PortId};

/// What control writes into the steering program's maps. weir-dataplane converts it for weir-sys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteeringTable {
    pub v4: Vec<(Ipv4Net, u64)>,
    pub v6: Vec<(Ipv6Net, u64)>,
    /// TCP ports with at least one bit, in order.
    pub ports: Vec<(u16, u64)>,
    /// Per port of the box, and VLAN of one, the intercepts whose SYNs come from it.
    pub from: Arc<FromBits>,
    /// The intercepts whose handshake is `relay`: the kernel takes all their connections.
    pub relay_mask: u64,
    /// The intercepts whose SYNs may be answered with cookies before a worker has seen them: always, or under pressure. None
    /// with a rule that decides on the SYN.
    pub cookies_always: u64,
    pub cookies_auto: u64,
    /// The intercepts that answer for the server, or may give a connection to another one.
    pub translated: u64,
}

impl SteeringTable {
    pub fn new(policy: &Policy) -> Self {
        let intercepts = policy.intercepts();
        let mut ports: BTreeMap<u16, u64> = BTreeMap::new();
        let (mut relay_mask, mut cookies_always, mut cookies_auto, mut translated) = (0, 0, 0, 0);
        for (bit, intercept) in bits().zip(intercepts) {
            for port in intercept.tcp().ranges().into_iter().flatten() {
                *ports.entry(port).or_default() |= bit;
            }
            if intercept.handshake == Handshake::Relay {
                relay_mask |= bit;
            }
            if intercept.translates() {
                translated |= bit;
            }
            match intercept.cookies_without_worker() {
                Some(SynCookies::Always) => cookies_always |= bit,
                Some(SynCookies::Auto) => cookies_auto |= bit,
                _ => {}
            }
        }
        Self {
            v4: policy.to.v4.iter().map(|(prefix, bits)| (prefix, *bits)).collect(),
            v6: policy.to.v6.iter().map(|(prefix, bits)| (prefix, *bits)).collect(),
            ports: ports.into_iter().collect(),
            from: policy.from.clone(),
            relay_mask,
            cookies_always,
            cookies_auto,
            translated,
        }
    }
}

/// The bit of each intercept, in order.
fn bits() -> impl Iterator<Item = u64> {
    (0..u64::BITS).map(|i| 1 << i)
}

/// Destination prefixes with the bits of all intercepts that hold them.
#[derive(Clone, Debug, Default)]
pub(super) struct Destinations {
    pub v4: PrefixMap<Ipv4Net, u64>,
    pub v6: PrefixMap<Ipv6Net, u64>,
}

impl Destinations {
    pub fn new(intercepts: &[Intercept]) -> Self {
        let mut own = Self::default();
        for (bit, intercept) in bits().zip(intercepts) {
            for prefix in intercept.to().iter() {
                match prefix {
                    IpNet::V4(p) => *own.v4.entry(p).or_default() |= bit,
                    IpNet::V6(p) => *own.v6.entry(p).or_default() |= bit,
                }
            }
        }
        Self { v4: with_covering(&own.v4), v6: with_covering(&own.v6) }
    }
}

/// Each prefix with its own bits and those of every prefix around it.
fn with_covering<P: Prefix + Copy>(own: &PrefixMap<P, u64>) -> PrefixMap<P, u64> {
    own.keys().map(|prefix| (prefix, own.cover_values(&prefix).fold(0, |all, bits| all | bits))).collect()
}

/// By number of a port or VLAN.
pub type FromBits = [u64; 1 << u8::BITS];

/// Per port of the box, and VLAN of one, the intercepts whose SYNs come from it.
pub(super) fn from_bits(intercepts: &[Intercept], vlans: &Vlans) -> FromBits {
    let mut from = [0; 1 << u8::BITS];
    let untagged = (0..MAX_PORTS as u8).map(|port| (PortId(port), PortId(port), None));
    let tagged = vlans.iter().map(|(number, of)| (number, of.port, Some(&of.vlan)));
    for (number, port, vlan) in untagged.chain(tagged) {
        let takes = |intercept: &Intercept| intercept.from.contains(port) && intercept.vlan.takes(vlan);
        let all = bits().zip(intercepts).filter(|(_, intercept)| takes(intercept));
        if let Some(word) = from.get_mut(usize::from(number.0)) {
            *word = all.fold(0, |all, (bit, _)| all | bit);
        }
    }
    from
}
