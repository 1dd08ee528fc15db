//! What the kernel says: its tables as dumped, and single questions over the same connection.

use std::net::IpAddr;

use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::rule::RuleMessage;
use weir_core::ids::PortId;

use crate::host::HostError;
use crate::host::link::LinkInfo;
use crate::host::netlink::Netlink;
use crate::host::nexthops::Objects;
use crate::host::picture::{Dumps, Picture, picture};
use crate::host::rule::SeenRule;
use crate::host::spec::Family;
use crate::host::sub_interface::Numbers;

/// One moment of the host, and a connection for more questions.
#[derive(Debug)]
pub struct Kernel {
    pub netlink: Netlink,
    pub links: Vec<LinkInfo>,
    /// Of both families, as dumped, in the order in which the kernel tries them.
    pub rules: Vec<(Family, RuleMessage)>,
    pub neighbours: Vec<NeighbourMessage>,
    /// Routes and neighbours as the fast road has them, by the code that makes them for it.
    pub picture: Picture,
}

impl Kernel {
    /// Dumps links, addresses, routes, rules and neighbours. `ports`: devices of the ports, in the configuration's order.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn read(ports: Vec<String>) -> Result<Self, HostError> {
        let netlink = Netlink::open()?;
        let links: Vec<LinkInfo> = netlink.links().await?.iter().map(LinkInfo::of).collect();
        let (mut rules, mut routes) = (Vec::new(), Vec::new());
        for family in Family::BOTH {
            rules.extend(netlink.rules(family).await?.into_iter().map(|rule| (family, rule)));
            routes.extend(netlink.routes(family).await?.into_iter().map(|route| (family, route)));
        }
        let neighbours = netlink.neighbours().await?;
        let dumps = Dumps {
            links: links.clone(),
            addresses: netlink.addresses().await?,
            nexthops: Objects::of(&routes).await?,
            routes,
            neighbours: neighbours.clone(),
            rules: rules.iter().map(|(family, rule)| SeenRule::of(*family, rule)).collect(),
        };
        let ports: Vec<(PortId, String)> = (0..).map(PortId).zip(ports).collect();
        let picture = picture(&ports, &dumps, &mut Numbers::default());
        Ok(Self { netlink, links, rules, neighbours, picture })
    }

    pub fn link(&self, index: u32) -> Option<&LinkInfo> {
        self.links.iter().find(|link| link.ifindex == index)
    }

    pub fn link_named(&self, name: &str) -> Option<&LinkInfo> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The name of a device, or its number when it is gone.
    pub fn name(&self, index: u32) -> String {
        self.link(index).map_or_else(|| format!("device {index}"), |link| link.name.clone())
    }

    /// Whether the address is the box's own.
    pub fn is_own(&self, address: IpAddr) -> bool {
        let own = &self.picture.own;
        own.addresses.contains(&address) || own.prefixes.iter().any(|prefix| prefix.contains(&address))
    }

    /// The neighbour entry of an address on a device: its state, and its link-layer address if it has one.
    pub fn neighbour(&self, device: u32, address: IpAddr) -> Option<(String, Option<String>)> {
        let entry = self.neighbours.iter().find(|entry| {
            entry.header.ifindex == device
                && entry.attributes.iter().any(|a| match a {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => IpAddr::V4(*v4) == address,
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                        IpAddr::V6(*v6) == address
                    }
                    _ => false,
                })
        })?;
        let mac = entry.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::LinkLayerAddress(octets) => Some(mac(octets)),
            _ => None,
        });
        Some((format!("{:?}", entry.header.state).to_uppercase(), mac))
    }
}

/// An Ethernet address as tools write it.
pub fn mac(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":")
}
