//! VLAN sub-interfaces of ports: what the kernel calls the VLANs that come in by a port. A pure function of the links.
//!
//! The fast road knows each by a number of its own, which it keeps as long as weir runs.

use std::collections::HashMap;

use weir_core::fib::Vlans;
use weir_core::ids::PortId;
use weir_core::vlan::Vlan;

use super::link::LinkInfo;

/// A sub-interface with one tag, or two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubInterface {
    /// The port whose frames bear its tags.
    pub port: PortId,
    /// The index of the port's device.
    pub device: u32,
    pub vlan: Vlan,
    pub link: LinkInfo,
}

/// Those of the ports, in the order of ports and VLANs. One that belongs to another device (a bridge, a bond) is that one's.
pub fn of_ports(ports: &[(PortId, String)], links: &[LinkInfo]) -> Vec<SubInterface> {
    let by_index: HashMap<u32, &LinkInfo> = links.iter().map(|link| (link.ifindex, link)).collect();
    let port_at = |index: u32| {
        let link = by_index.get(&index)?;
        ports.iter().find(|(_, device)| *device == link.name).map(|(port, _)| *port)
    };
    let of = |link: &&LinkInfo| {
        let (tag, lower) = (link.vlan?, link.lower?);
        if link.controller.is_some() {
            return None;
        }
        let found = |port, device, vlan| SubInterface { port, device, vlan, link: (*link).clone() };
        if let Some(port) = port_at(lower) {
            return Some(found(port, lower, Vlan { outer: tag, inner: None }));
        }
        let below = by_index.get(&lower)?;
        let (outer, device) = (below.vlan?, below.lower?);
        Some(found(port_at(device)?, device, Vlan { outer, inner: Some(tag) }))
    };
    let mut all: Vec<SubInterface> = links.iter().filter_map(|link| of(&link)).collect();
    all.sort_by_key(|sub| (sub.port, sub.vlan));
    all
}

/// The numbers that have been given.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    given: HashMap<(PortId, Vlan), PortId>,
}

impl Numbers {
    /// Each with its number. Those that there is no number for are left out; one that is gone gives its own away only to them.
    pub fn number(&mut self, all: Vec<SubInterface>) -> Vec<(PortId, SubInterface)> {
        let is_there = |key: &(PortId, Vlan)| all.iter().any(|sub| (sub.port, sub.vlan) == *key);
        let gone: Vec<_> = self.given.keys().filter(|key| !is_there(key)).copied().collect();
        let mut numbered = Vec::with_capacity(all.len());
        for sub in all {
            let key = (sub.port, sub.vlan);
            let number = self.given.get(&key).copied().or_else(|| self.free()).or_else(|| {
                let old = gone.iter().find(|key| self.given.contains_key(key))?;
                self.given.remove(old)
            });
            let Some(number) = number else { continue };
            self.given.insert(key, number);
            numbered.push((number, sub));
        }
        numbered
    }

    fn free(&self) -> Option<PortId> {
        let number = Vlans::NUMBERS.start + self.given.len();
        u8::try_from(number).ok().filter(|_| Vlans::NUMBERS.contains(&number)).map(PortId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_core::vlan::{DOT1AD, DOT1Q, Tag};

    fn link(name: &str, ifindex: u32, over: Option<(u32, u16, u16)>) -> LinkInfo {
        let tag = over.map(|(_, protocol, id)| Tag { protocol, id });
        LinkInfo {
            name: name.to_owned(),
            ifindex,
            lower: over.map(|(lower, ..)| lower),
            vlan: tag,
            ..LinkInfo::default()
        }
    }

    fn ports() -> Vec<(PortId, String)> {
        vec![(PortId(0), "eth1".to_owned()), (PortId(1), "eth2".to_owned())]
    }

    #[test]
    fn sub_interfaces_of_ports_are_found_by_their_tags_one_or_two() {
        let mut taken = link("eth1.30", 9, Some((2, DOT1Q, 30)));
        taken.controller = Some(20);
        let links = [
            link("eth0", 1, None),
            link("eth1", 2, None),
            link("eth2", 3, None),
            link("eth0.10", 4, Some((1, DOT1Q, 10))),
            link("eth2.10", 5, Some((3, DOT1Q, 10))),
            link("eth1.100.10", 7, Some((6, DOT1Q, 10))),
            link("eth1.100", 6, Some((2, DOT1AD, 100))),
            link("eth1.100.10.5", 8, Some((7, DOT1Q, 5))),
            taken,
        ];
        let found = of_ports(&ports(), &links);
        let found: Vec<_> =
            found.iter().map(|sub| (sub.port.0, sub.device, sub.link.name.as_str())).collect();
        assert_eq!(found, [(0, 2, "eth1.100"), (0, 2, "eth1.100.10"), (1, 3, "eth2.10")]);
        assert_eq!(of_ports(&ports(), &links)[1].vlan, Vlan::stacked(100, 10));
    }

    #[test]
    fn numbers_stay_and_those_of_what_is_gone_are_given_away_last() {
        let subs = |ids: std::ops::Range<u16>| {
            let one = |id| SubInterface {
                port: PortId(0),
                device: 2,
                vlan: Vlan::new(id),
                link: LinkInfo::default(),
            };
            ids.map(one).collect::<Vec<_>>()
        };
        let mut numbers = Numbers::default();
        let of = |numbered: &[(PortId, SubInterface)]| numbered.iter().map(|(n, _)| n.0).collect::<Vec<_>>();
        assert_eq!(of(&numbers.number(subs(10..13))), [32, 33, 34]);
        assert_eq!(of(&numbers.number(subs(12..14))), [34, 35], "12 keeps its own, and 13 takes nobody's");
        let many = numbers.number(subs(100..4000));
        assert_eq!(many.len(), Vlans::NUMBERS.len(), "as many as there are numbers, with those of 10 to 13");
        let mut all = of(&many);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all, (32..255).collect::<Vec<u8>>());
        assert_eq!(numbers.number(subs(100..4000)), many);
    }
}
