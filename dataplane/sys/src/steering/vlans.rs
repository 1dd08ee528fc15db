//! VLANs of ports, as the program finds them: by the tags of a frame.

use std::collections::BTreeMap;

use super::error::SteeringError;
use super::layout::{MAX_LINKS, MAX_PORTS, VlanKey, VlanValue};
use super::map::Map;
use super::set;

/// A tag: its EtherType and its number.
pub type VlanTag = (u16, u16);
/// The tags of a frame: the outer one, and the one in it.
pub type VlanTags = (VlanTag, Option<VlanTag>);

/// What the map has of a device's frames with these tags.
pub(super) fn key(device: u32, (outer, inner): VlanTags) -> VlanKey {
    let inner = inner.unwrap_or((0, 0));
    VlanKey {
        ifindex: device,
        outer: outer.0.to_be_bytes(),
        outer_id: outer.1,
        inner: inner.0.to_be_bytes(),
        inner_id: inner.1,
    }
}

/// What says that the device has VLANs.
pub(super) const fn mark(device: u32) -> VlanKey {
    VlanKey { ifindex: device, outer: [0; 2], outer_id: 0, inner: [0; 2], inner_id: 0 }
}

/// A VLAN of a port that has a sub-interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanPlace {
    /// Its number, from [`MAX_PORTS`] on.
    pub link: u32,
    /// The device whose frames bear its tags.
    pub device: u32,
    pub outer: VlanTag,
    pub inner: Option<VlanTag>,
    /// The sub-interface, and its Ethernet address.
    pub ifindex: u32,
    pub mac: [u8; 6],
}

/// The map, and what is in it.
#[derive(Debug)]
pub(super) struct Vlans {
    map: Map<VlanKey, VlanValue>,
    macs: Map<u32, u64>,
    written: BTreeMap<VlanKey, VlanValue>,
}

impl Vlans {
    pub const fn new(map: Map<VlanKey, VlanValue>, macs: Map<u32, u64>) -> Self {
        Self { map, macs, written: BTreeMap::new() }
    }

    /// Compared with those before: what is gone goes first, then come the new ones.
    pub fn set(&mut self, places: &[VlanPlace]) -> Result<(), SteeringError> {
        let mut wanted = BTreeMap::new();
        for place in places {
            if !(MAX_PORTS..MAX_LINKS).contains(&place.link) {
                let device = format!("with index {}", place.ifindex);
                return Err(SteeringError::PortNumber { device, port: place.link });
            }
            let value = VlanValue { link: place.link, ifindex: place.ifindex };
            wanted.insert(key(place.device, (place.outer, place.inner)), value);
            wanted.entry(mark(place.device)).or_default();
        }
        let gone: Vec<VlanKey> =
            self.written.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            self.map.remove(&key).map_err(SteeringError::of_map("vlans", "removing from"))?;
            if let Some(value) = self.written.remove(&key).filter(|value| value.ifindex != 0) {
                self.macs
                    .remove(&value.ifindex)
                    .map_err(SteeringError::of_map("port_macs", "removing from"))?;
            }
        }
        for place in places {
            set(&self.macs, "port_macs", &place.ifindex, &super::mac_word(place.mac))?;
        }
        for (key, value) in wanted {
            if self.written.get(&key) != Some(&value) {
                set(&self.map, "vlans", &key, &value)?;
                self.written.insert(key, value);
            }
        }
        Ok(())
    }
}
