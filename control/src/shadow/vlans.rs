//! VLANs of a running gateway, as far as its connections come by them: by numbers of their own.

use weir_core::fib::{Link, VlanLink, Vlans};
use weir_core::ids::PortId;
use weir_core::vlan::Vlan;

/// Each with a number; of what there is no number for it is not known where it comes in.
pub fn of(all: impl IntoIterator<Item = (PortId, Vlan)>) -> Vlans {
    let mut vlans = Vlans::default();
    let mut numbers = Vlans::NUMBERS.filter_map(|number| u8::try_from(number).ok()).map(PortId);
    for (port, vlan) in all {
        if vlans.find(port, &vlan).is_none()
            && let Some(number) = numbers.next()
        {
            let link = Link { mac: [0; 6], mtu: 0, up: true, v4: None, v6: None };
            vlans.insert(number, VlanLink { port, vlan, link });
        }
    }
    vlans
}

/// A VLAN as `weir flows` writes it.
pub fn parse(text: &str) -> Option<Vlan> {
    match text.split_once('.') {
        Some((outer, inner)) => Some(Vlan::stacked(outer.parse().ok()?, inner.parse().ok()?)),
        None => Some(Vlan::new(text.parse().ok()?)),
    }
}
