//! Which VLANs of its ports an intercept takes clients from.

use std::ops::RangeInclusive;

use crate::vlan::Vlan;

/// What of the frames of an intercept's ports is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VlanChoice {
    /// Those without a tag.
    pub untagged: bool,
    /// Those of all VLANs that the box has a sub-interface for.
    pub all: bool,
    /// Those with one tag of these numbers.
    pub ids: Vec<RangeInclusive<u16>>,
    /// Those with two, the outer one first.
    pub stacked: Vec<(u16, u16)>,
}

impl Default for VlanChoice {
    /// What has no tag.
    fn default() -> Self {
        Self { untagged: true, ..Self::NONE }
    }
}

impl VlanChoice {
    /// Nothing.
    pub const NONE: Self = Self { untagged: false, all: false, ids: Vec::new(), stacked: Vec::new() };
    /// Everything.
    pub const ALL: Self = Self { untagged: true, all: true, ids: Vec::new(), stacked: Vec::new() };

    /// Whether frames with these tags, none if there is no `vlan`, are among them.
    pub fn takes(&self, vlan: Option<&Vlan>) -> bool {
        let Some(vlan) = vlan else { return self.untagged };
        self.all
            || match vlan.inner {
                None => self.ids.iter().any(|ids| ids.contains(&vlan.outer.id)),
                Some(inner) => self.stacked.contains(&(vlan.outer.id, inner.id)),
            }
    }

    /// Whether all that is among `other`'s is among these.
    pub fn covers(&self, other: &Self) -> bool {
        let has_id = |id: u16| self.ids.iter().any(|ids| ids.contains(&id));
        let has_tagged = self.all
            || !other.all
                && other.ids.iter().flat_map(Clone::clone).all(has_id)
                && other.stacked.iter().all(|tags| self.stacked.contains(tags));
        (self.untagged || !other.untagged) && has_tagged
    }

    /// Whether some tagged frames are.
    pub const fn takes_tagged(&self) -> bool {
        self.all || !self.ids.is_empty() || !self.stacked.is_empty()
    }
}
