//! What a network device is, from one RTM_GETLINK message.

use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags,
    LinkInfo as InfoAttribute, LinkLayerType, LinkMessage, LinkXdp,
};
use serde::Serialize;
use weir_core::vlan::{DOT1Q, Tag};

use super::netlink::Netlink;
use super::{Host, HostError};

/// A device at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LinkInfo {
    pub name: String,
    pub ifindex: u32,
    /// None when it has no Ethernet address (TUN, loopback has zeros).
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet, in octets.
    pub mtu: u32,
    /// Its IPv6 MTU, which a router's advertisements or an administrator may have set lower.
    pub mtu6: Option<u32>,
    /// Administratively up, and with a carrier.
    pub up: bool,
    /// `veth`, `tun`, `bond`, ...; none for real NICs.
    pub kind: Option<String>,
    pub rx_queues: u32,
    pub tx_queues: u32,
    /// The bridge, bond or VRF that it belongs to, by index.
    pub controller: Option<u32>,
    /// The device below it, by index: of a VLAN sub-interface, a macvlan.
    pub lower: Option<u32>,
    /// Of a VLAN sub-interface, the tag that its packets bear on the device below.
    pub vlan: Option<Tag>,
    /// Its frames have Ethernet headers.
    pub is_ethernet: bool,
    pub is_loopback: bool,
    /// The XDP program that is attached to it, by id.
    pub xdp: Option<u32>,
}

impl LinkInfo {
    pub(crate) fn of(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut info = Self {
            ifindex: message.header.index,
            up: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
            is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            is_loopback: flags.contains(LinkFlags::Loopback),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => info.name.clone_from(name),
                LinkAttribute::Address(octets) => info.mac = octets.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => info.mtu = *mtu,
                LinkAttribute::AfSpecUnspec(specs) => info.mtu6 = mtu6(specs),
                LinkAttribute::NumRxQueues(n) => info.rx_queues = *n,
                LinkAttribute::NumTxQueues(n) => info.tx_queues = *n,
                LinkAttribute::Controller(index) => info.controller = Some(*index),
                LinkAttribute::Link(index) => info.lower = Some(*index),
                LinkAttribute::LinkInfo(infos) => (info.kind, info.vlan) = (kind(infos), tag(infos)),
                LinkAttribute::Xdp(xdp) => {
                    info.xdp = xdp.iter().find_map(|x| match x {
                        LinkXdp::ProgId(id) if *id != 0 => Some(*id),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        // A device of another network namespace is below it, whose index says nothing here.
        if message.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkNetNsId(_))) {
            info.lower = None;
        }
        info
    }

    fn is_above(&self, lower: &Self) -> bool {
        lower.controller == Some(self.ifindex) || self.lower == Some(lower.ifindex)
    }

    /// Largest packet of either family, in octets: the fast road has one MTU for a port. Larger packets go to the kernel,
    /// which knows better.
    pub fn ip_mtu(&self) -> u32 {
        self.mtu6.map_or(self.mtu, |mtu6| mtu6.min(self.mtu))
    }
}

fn mtu6(specs: &[AfSpecUnspec]) -> Option<u32> {
    let inet6 = specs.iter().find_map(|s| if let AfSpecUnspec::Inet6(all) = s { Some(all) } else { None })?;
    inet6.iter().find_map(|s| match s {
        AfSpecInet6::DevConf(conf) => u32::try_from(conf.mtu6).ok().filter(|mtu| *mtu > 0),
        _ => None,
    })
}

fn kind(infos: &[InfoAttribute]) -> Option<String> {
    infos.iter().find_map(|i| match i {
        InfoAttribute::Kind(InfoKind::Other(name)) => Some(name.clone()),
        InfoAttribute::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

fn tag(infos: &[InfoAttribute]) -> Option<Tag> {
    let vlan = infos.iter().find_map(|info| match info {
        InfoAttribute::Data(InfoData::Vlan(vlan)) => Some(vlan),
        _ => None,
    })?;
    let mut tag = Tag { protocol: DOT1Q, id: 0 };
    for attribute in vlan {
        match attribute {
            InfoVlan::Id(id) => tag.id = *id,
            InfoVlan::Protocol(protocol) => tag.protocol = u16::from(*protocol),
            _ => {}
        }
    }
    (tag.id != 0).then_some(tag)
}

/// Devices one above the other, at most (include/linux/netdevice.h, MAX_NEST_DEV).
const NESTED: usize = 8;

/// How many devices there are above one, each above the other: its bond, a VLAN of that.
pub(crate) fn above(links: &[LinkInfo], device: &str) -> usize {
    let mut level: Vec<&LinkInfo> = links.iter().filter(|link| link.name == device).collect();
    let mut levels = 0;
    // The two ends of a veth pair each call the other what is below.
    while levels < NESTED {
        level = links.iter().filter(|upper| level.iter().any(|lower| upper.is_above(lower))).collect();
        if level.is_empty() {
            break;
        }
        levels += 1;
    }
    levels
}

/// The name of the device with this index.
pub(crate) fn name_of(links: &[LinkInfo], index: u32) -> Option<String> {
    links.iter().find(|l| l.ifindex == index).map(|l| l.name.clone())
}

/// Finds `device` among `links`, or says which there are.
pub(crate) fn find<'a>(links: &'a [LinkInfo], device: &str) -> Result<&'a LinkInfo, HostError> {
    links.iter().find(|l| l.name == device).ok_or_else(|| HostError::NoSuchDevice {
        device: device.to_owned(),
        existing: links.iter().map(|l| l.name.clone()).collect(),
    })
}

/// All devices.
pub(crate) async fn links(netlink: &Netlink) -> Result<Vec<LinkInfo>, HostError> {
    Ok(netlink.links().await?.iter().map(LinkInfo::of).collect())
}

impl Host {
    /// What `device` is. The error for an unknown name lists the known ones.
    pub async fn link_info(&self, device: &str) -> Result<LinkInfo, HostError> {
        find(&links(&self.netlink).await?, device).cloned()
    }

    /// All devices of this network namespace.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn all_links(&self) -> Result<Vec<LinkInfo>, HostError> {
        links(&self.netlink).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_above_are_bonds_bridges_and_vlans() {
        let link = |name: &str, ifindex, controller, lower| LinkInfo {
            name: name.into(),
            ifindex,
            controller,
            lower,
            ..LinkInfo::default()
        };
        let links = [
            link("eth0", 2, Some(4), None),
            link("eth1", 3, Some(4), None),
            link("bond0", 4, None, None),
            link("bond0.10", 5, Some(6), Some(4)),
            link("br0", 6, None, None),
            link("veth0", 7, None, Some(8)),
            link("veth1", 8, None, Some(7)),
        ];
        for (name, levels) in [
            ("eth0", 3),
            ("eth1", 3),
            ("bond0", 2),
            ("bond0.10", 1),
            ("br0", 0),
            ("veth0", NESTED),
            ("gone", 0),
        ] {
            assert_eq!(above(&links, name), levels, "{name}");
        }
    }
}
