//! The ways of a multipath route, and which of them a flow takes.
//!
//! Weighted rendezvous hashing (Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998; weights as
//! in Resch and Volvovski, "New Hashing Algorithms for Data Storage", 2015): every flow has a mark for every member, and
//! takes the member that lives and has the best. So a member that dies moves its own flows and no others, which the
//! kernel's hash threshold does not promise. A flow remembers its member besides, so that it stays where it has gone to when
//! its first one is back, where firewalls and address translators further on know it.

use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use crate::flow::key::FlowKey;
use crate::ids::{PortId, PortSet};
use crate::policy::maglev::hash_endpoint;
use crate::wire::addr::Addr;

/// The most members of a group that the fast road takes: each costs a new flow some nanoseconds.
pub const MAX_MEMBERS: usize = 256;

/// One of the ways that a route has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    pub port: PortId,
    /// None: the neighbour is the destination itself.
    pub router: Option<IpAddr>,
    /// Its share of the flows; at least 1.
    pub weight: u16,
    /// The kernel says that it is dead, or its link down.
    pub dead: bool,
}

/// Which member a flow has taken: the same number in every picture that has the member in the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way(u16);

impl Way {
    /// None yet.
    pub const NONE: Self = Self(0);
}

/// A member, and what its marks and its number are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    member: Member,
    id: u64,
    way: Way,
}

/// All ways of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group(Box<[Named]>);

impl Group {
    /// `None`: there are no members, or more than [`MAX_MEMBERS`]. One that is named twice has both shares.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Option<Self> {
        let mut named: Vec<Named> = Vec::new();
        for member in members {
            let same =
                named.iter_mut().find(|n| (n.member.port, n.member.router) == (member.port, member.router));
            if let Some(Named { member: known, .. }) = same {
                known.weight = known.weight.saturating_add(member.weight);
                known.dead &= member.dead;
                continue;
            }
            if named.len() == MAX_MEMBERS {
                return None;
            }
            let id = id(&member);
            let mut way = (id as u16).max(1);
            while named.iter().any(|n| n.way == Way(way)) {
                way = way.wrapping_add(1).max(1);
            }
            named.push(Named {
                member: Member { weight: member.weight.max(1), ..member },
                id,
                way: Way(way),
            });
        }
        (!named.is_empty()).then(|| Self(named.into()))
    }

    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.0.iter().map(|named| &named.member)
    }

    /// The ports that the ways leave by.
    pub fn ports(&self) -> PortSet {
        let mut ports = PortSet::default();
        self.members().for_each(|member| ports.insert(member.port));
        ports
    }

    /// The member that has the number, if it is still one.
    pub(super) fn numbered(&self, way: Way) -> Option<&Member> {
        self.0.iter().find(|named| named.way == way).map(|named| &named.member)
    }

    /// Of the members that are `eligible`, the one with the best mark for a flow.
    pub(super) fn choose(&self, flow: &FlowKey, eligible: impl Fn(&Member) -> bool) -> Option<(Member, Way)> {
        let hash = path_hash(flow);
        let named = self.0.iter().filter(|named| eligible(&named.member));
        let best = named.min_by(|a, b| a.mark(hash).total_cmp(&b.mark(hash)))?;
        Some((best.member, best.way))
    }
}

impl Named {
    /// Exponentially distributed, with the weight as its rate: the smallest of several is each one's with the probability
    /// of its share.
    fn mark(&self, hash: u64) -> f64 {
        let unit = (mix(hash ^ self.id) >> 11) as f64 + 0.5;
        -(unit / (1_u64 << 53) as f64).ln() / f64::from(self.member.weight)
    }
}

/// The same for both directions, in every process and on every machine: a start anew moves no flow. Keys that no pool hashes
/// with, so that a pool's servers do not go with the ways.
fn path_hash(flow: &FlowKey) -> u64 {
    let low = hash_endpoint(&SipHasher13::new_with_keys(3, 0), &flow.low);
    hash_endpoint(&SipHasher13::new_with_keys(3, low), &flow.high)
}

fn id(member: &Member) -> u64 {
    let hasher = SipHasher13::new_with_keys(4, u64::from(member.port.0));
    match member.router {
        None => hasher.hash(&[]),
        Some(router) => hasher.hash(&Addr::from(router).0),
    }
}

/// Finalizer of SplitMix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014).
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
