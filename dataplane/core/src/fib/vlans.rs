//! VLANs of ports, as links: each has a number from [`MAX_PORTS`] on, which control gives it once and for all.

use std::collections::HashMap;

use crate::ids::{MAX_LINKS, MAX_PORTS, PortId};
use crate::vlan::Vlan;

use super::Link;

/// A VLAN of a port: the kernel's sub-interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanLink {
    /// The port whose frames bear its tags.
    pub port: PortId,
    pub vlan: Vlan,
    pub link: Link,
}

/// The VLANs that there are.
#[derive(Clone, Debug, Default)]
pub struct Vlans {
    /// The first has the number [`MAX_PORTS`].
    links: Vec<Option<VlanLink>>,
    numbers: HashMap<(PortId, Vlan), PortId, foldhash::fast::FixedState>,
}

impl Vlans {
    /// Numbers that links can have.
    pub const NUMBERS: std::ops::Range<usize> = MAX_PORTS..MAX_LINKS;

    /// Adds a link, unless the number is none of a VLAN's.
    pub fn insert(&mut self, number: PortId, link: VlanLink) {
        let Some(at) = usize::from(number.0).checked_sub(MAX_PORTS).filter(|_| number.0 < MAX_LINKS as u8)
        else {
            return;
        };
        if self.links.len() <= at {
            self.links.resize(at + 1, None);
        }
        if let Some(place) = self.links.get_mut(at) {
            *place = Some(link);
            self.numbers.insert((link.port, link.vlan), number);
        }
    }

    pub fn get(&self, number: PortId) -> Option<&VlanLink> {
        self.links.get(usize::from(number.0).checked_sub(MAX_PORTS)?)?.as_ref()
    }

    /// The number of what comes in by a port with these tags.
    pub fn find(&self, port: PortId, vlan: &Vlan) -> Option<PortId> {
        self.numbers.get(&(port, *vlan)).copied()
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = (PortId, &VlanLink)> {
        let numbered = (MAX_PORTS as u8..=u8::MAX).map(PortId).zip(&self.links);
        numbered.filter_map(|(number, link)| Some((number, link.as_ref()?)))
    }

    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Whether both have the same links under the same numbers, whatever these are like.
    pub fn is_as(&self, other: &Self) -> bool {
        self.numbers == other.numbers
    }
}

impl PartialEq for Vlans {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}
