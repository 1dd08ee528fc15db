//! Tests of the policy, by the question asked.

mod decide;
mod names;
mod pools;
mod sets;
mod steering;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::*;

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn names(patterns: &[&str]) -> Option<Arc<NameSet>> {
    Some(Arc::new(NameSet::parse(patterns.iter().copied()).unwrap()))
}

/// The only intercept of a policy with this one.
pub(super) fn compiled(spec: InterceptSpec) -> Intercept {
    PolicyBuilder::new(1).intercept(spec).build().unwrap().intercepts()[0].clone()
}

/// Numbers by a seed (splitmix64).
pub(super) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}
