//! VLAN tags (IEEE 802.1Q, 802.1ad): taken off where a frame comes in, put on where it leaves.
//!
//! Between the two nobody knows of tags: a VLAN of a port is a link with a number of its own ([`crate::fib::Vlans`]), with the
//! address, the MTU and the neighbours of the kernel's sub-interface. So what is routed from one VLAN to another is rewritten as
//! it is from one NIC to another, and untagged frames pay nothing. Called by the worker.
//!
//! The priority (PCP and DEI) of a tag goes with its frame ([`Frame::priority`]), and is that of the tag that the frame leaves with.

use std::fmt;

use crate::drop::DropReason;
use crate::frame::Frame;
use crate::wire::{get_u16, put};

/// Octets of a tag.
pub const TAG_LEN: usize = 4;
/// The most tags that a link of ours may have.
pub const MAX_TAGS: usize = 2;
/// VLANs that there are: 0 is none, and 4095 is reserved.
pub const IDS: std::ops::RangeInclusive<u16> = 1..=4094;
/// The protocols of tags: of a customer's, and of a provider's.
pub const DOT1Q: u16 = 0x8100;
pub const DOT1AD: u16 = 0x88a8;

/// Where a frame has its EtherType, or its first tag.
const TYPE: usize = 12;
const ID: u16 = 0x0fff;

/// A tag without its priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Tag {
    /// [`DOT1Q`] or [`DOT1AD`].
    pub protocol: u16,
    pub id: u16,
}

/// The tags of a link, as they stand in its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vlan {
    pub outer: Tag,
    pub inner: Option<Tag>,
}

impl Vlan {
    /// One tag of a customer's.
    pub const fn new(id: u16) -> Self {
        Self { outer: Tag { protocol: DOT1Q, id }, inner: None }
    }

    /// One tag in another's (QinQ): a provider's, and in it a customer's.
    pub const fn stacked(outer: u16, inner: u16) -> Self {
        Self { outer: Tag { protocol: DOT1AD, id: outer }, inner: Some(Tag { protocol: DOT1Q, id: inner }) }
    }

    /// Octets of its tags.
    pub const fn tags_len(&self) -> usize {
        if self.inner.is_some() { 2 * TAG_LEN } else { TAG_LEN }
    }
}

/// `10`, or `100.10`.
impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.inner {
            None => write!(f, "{}", self.outer.id),
            Some(inner) => write!(f, "{}.{}", self.outer.id, inner.id),
        }
    }
}

/// Whether the frame has a tag, of a VLAN or of a priority alone.
#[inline]
pub fn is_tagged(frame: &[u8]) -> bool {
    matches!(get_u16(frame, TYPE), Some(DOT1Q | DOT1AD))
}

/// Takes the tags off, and leaves their priority with the frame. None: it had none, or one of VLAN 0, which is a priority and no
/// VLAN: to everyone but a switch such a frame is untagged.
///
/// # Errors
/// More tags than that, or one of VLAN 0 among others: steering lets no such frame come here.
pub fn take<F: Frame>(frame: &mut F) -> Result<Option<Vlan>, DropReason> {
    let Some((outer, first)) = tag_at(frame.data(), TYPE) else { return Ok(None) };
    let Some((inner, second)) = tag_at(frame.data(), TYPE + TAG_LEN) else {
        cut(frame, TAG_LEN);
        frame.set_priority(first << 4 | first);
        return Ok((outer.id != 0).then_some(Vlan { outer, inner: None }));
    };
    if outer.id == 0 || inner.id == 0 || tag_at(frame.data(), TYPE + 2 * TAG_LEN).is_some() {
        return Err(DropReason::NestedTag);
    }
    cut(frame, 2 * TAG_LEN);
    frame.set_priority(first << 4 | second);
    Ok(Some(Vlan { outer, inner: Some(inner) }))
}

/// Puts the tags of a link on, with the priority of the frame; whether it had room for them.
pub fn put_on<F: Frame>(frame: &mut F, vlan: &Vlan) -> bool {
    let (len, tags) = (frame.data().len(), vlan.tags_len());
    if len < TYPE || len + tags > frame.capacity() {
        return false;
    }
    let priority = frame.priority();
    frame.set_len(len + tags);
    let bytes = frame.data_mut();
    bytes.copy_within(TYPE..len, TYPE + tags);
    put_tag(bytes, TYPE, &vlan.outer, priority >> 4);
    if let Some(inner) = &vlan.inner {
        put_tag(bytes, TYPE + TAG_LEN, inner, priority & 15);
    }
    true
}

/// The tag at `at`, and its priority.
fn tag_at(frame: &[u8], at: usize) -> Option<(Tag, u8)> {
    let protocol = get_u16(frame, at).filter(|protocol| matches!(*protocol, DOT1Q | DOT1AD))?;
    let tci = get_u16(frame, at + 2)?;
    Some((Tag { protocol, id: tci & ID }, (tci >> 12) as u8))
}

fn put_tag(frame: &mut [u8], at: usize, tag: &Tag, priority: u8) {
    put(frame, at, &tag.protocol.to_be_bytes());
    put(frame, at + 2, &(u16::from(priority) << 12 | tag.id & ID).to_be_bytes());
}

/// Takes octets out behind the Ethernet addresses.
fn cut<F: Frame>(frame: &mut F, octets: usize) {
    let bytes = frame.data_mut();
    let len = bytes.len();
    if let Some(rest) = len.checked_sub(octets).filter(|rest| *rest >= TYPE) {
        bytes.copy_within(TYPE + octets.., TYPE);
        frame.set_len(rest);
    }
}

#[cfg(test)]
mod tests;
