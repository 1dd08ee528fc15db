//! Where a packet goes next: an immutable picture of the kernel's routes and neighbours.
//!
//! Control builds it from rtnetlink and publishes a new one when something changed; workers only read it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use crate::flow::key::FlowKey;
use crate::ids::{MAX_PORTS, PortId, PortSet};

mod group;
#[cfg(test)]
mod tests;
mod vlans;

pub use group::{Group, MAX_MEMBERS, Member, Way};
pub use vlans::{VlanLink, Vlans};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What a port looks like on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub mac: Mac,
    /// Largest IP packet, in octets.
    pub mtu: u16,
    pub up: bool,
    /// The port's primary global addresses: what the gateway calls itself by when it opens connections there.
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

/// One route of the kernel's main table, as far as the dataplane can use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// On a port's own link: the neighbour is the destination itself.
    OnLink(PortId),
    /// By way of a router.
    Via(PortId, IpAddr),
    /// By one of several ways, which depends on the flow: the group of this number in [`Fib::groups`].
    Group(u32),
    /// Something the dataplane does not do (another device, blackhole, encapsulation): the kernel forwards.
    Kernel,
}

/// The answer for one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    Forward {
        port: PortId,
        src_mac: Mac,
        dst_mac: Mac,
        mtu: u16,
    },
    /// The route is known and its neighbour is not resolved (yet), or its link is down: the kernel takes this packet.
    Unresolved(PortId),
    /// No port of ours, or no route: the kernel's business.
    Kernel,
}

impl NextHop {
    /// The port of ours that the route leaves by.
    pub const fn port(&self) -> Option<PortId> {
        match *self {
            Self::Forward { port, .. } | Self::Unresolved(port) => Some(port),
            Self::Kernel => None,
        }
    }
}

/// What the routes say of a destination, before they know the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    One(NextHop),
    /// It depends on the flow: see [`Fib::member`].
    Several(u32),
}

/// Routes, neighbours and links at one moment.
#[derive(Clone, Debug, Default)]
pub struct Fib {
    pub v4: PrefixMap<Ipv4Net, Route>,
    pub v6: PrefixMap<Ipv6Net, Route>,
    /// Of multipath routes.
    pub groups: Vec<Group>,
    pub neighbours: HashMap<(PortId, IpAddr), Mac, foldhash::fast::FixedState>,
    pub links: [Option<Link>; MAX_PORTS],
    /// VLANs of these, as links with numbers of their own.
    pub vlans: Vlans,
    /// Routes that name the source address of connections made by them (RTA_PREFSRC), and that address.
    pub preferred: HashMap<IpNet, IpAddr, foldhash::fast::FixedState>,
}

impl Fib {
    /// The ports that routes to `dst` leave by, whether or not the neighbour is resolved.
    pub fn ports(&self, dst: IpAddr) -> PortSet {
        let mut ports = PortSet::default();
        match self.route(dst) {
            Some(Route::OnLink(port) | Route::Via(port, _)) => ports.insert(port),
            Some(Route::Group(group)) => ports = self.group(group).map_or(ports, Group::ports),
            Some(Route::Kernel) | None => {}
        }
        ports
    }

    /// Where a packet of `flow` to `dst` goes that has gone no way yet: longest prefix, then its neighbour. One that has is
    /// sent on its way by `Pipeline::next_hop`.
    pub fn next_hop(&self, dst: IpAddr, flow: &FlowKey) -> NextHop {
        match self.ways(dst) {
            Ways::One(hop) => hop,
            Ways::Several(group) => self.member(group, dst, flow, Way::NONE).0,
        }
    }

    /// The port and the neighbour by which packets of `flow` to `dst` leave, whether or not the neighbour is resolved. Of several
    /// ways it is the one that it `stays` on.
    pub fn gateway(&self, dst: IpAddr, flow: &FlowKey, stays: Way) -> Option<(PortId, IpAddr)> {
        match self.route(dst)? {
            Route::OnLink(port) => Some((port, dst)),
            Route::Via(port, router) => Some((port, router)),
            Route::Group(group) => {
                self.pick(group, dst, flow, stays).0.map(|member| (member.port, member.router.unwrap_or(dst)))
            }
            Route::Kernel => None,
        }
    }

    /// What a neighbour is reached with, when it is resolved and its link is up: the port's link, and its address.
    pub fn neighbour(&self, port: PortId, neighbour: IpAddr) -> Option<(Link, Mac)> {
        let link = self.link(port).copied().filter(|link| link.up)?;
        Some((link, *self.neighbours.get(&(port, neighbour))?))
    }

    /// The part of it that is the same for all flows.
    pub fn ways(&self, dst: IpAddr) -> Ways {
        Ways::One(match self.route(dst) {
            Some(Route::OnLink(port)) => self.hop(port, dst),
            Some(Route::Via(port, router)) => self.hop(port, router),
            Some(Route::Group(group)) => return Ways::Several(group),
            Some(Route::Kernel) | None => NextHop::Kernel,
        })
    }

    /// The other part: the way of `flow` through a group, and the member's number. `stays` is the way that it has taken
    /// before, and takes for as long as that lives: link up, neighbour resolved. Where no member does, the kernel gets one
    /// packet to resolve a neighbour with, and the flow keeps its number.
    pub fn member(&self, group: u32, dst: IpAddr, flow: &FlowKey, stays: Way) -> (NextHop, Way) {
        let (chosen, way) = self.pick(group, dst, flow, stays);
        (chosen.map_or(NextHop::Kernel, |member| self.hop_by(&member, dst)), way)
    }

    /// The same for those who look on: which member it is, and its number.
    pub fn pick(&self, group: u32, dst: IpAddr, flow: &FlowKey, stays: Way) -> (Option<Member>, Way) {
        let Some(group) = self.group(group) else { return (None, Way::NONE) };
        let lives = |member: &Member| matches!(self.hop_by(member, dst), NextHop::Forward { .. });
        if let Some(member) = group.numbered(stays).filter(|member| lives(member)) {
            return (Some(*member), stays);
        }
        if let Some((member, way)) = group.choose(flow, lives) {
            return (Some(member), way);
        }
        let exists = |member: &Member| self.hop_by(member, dst) != NextHop::Kernel;
        (group.choose(flow, exists).map(|(member, _)| member), stays)
    }

    /// Where a member leads on the way to `dst`.
    pub fn hop_by(&self, member: &Member, dst: IpAddr) -> NextHop {
        match self.hop(member.port, member.router.unwrap_or(dst)) {
            NextHop::Forward { port, .. } if member.dead => NextHop::Unresolved(port),
            hop => hop,
        }
    }

    fn hop(&self, port: PortId, neighbour: IpAddr) -> NextHop {
        let Some(link) = self.link(port) else { return NextHop::Kernel };
        match self.neighbours.get(&(port, neighbour)) {
            Some(&dst_mac) if link.up => NextHop::Forward { port, src_mac: link.mac, dst_mac, mtu: link.mtu },
            _ => NextHop::Unresolved(port),
        }
    }

    /// The largest packet that fits every way to `dst`. None where the kernel forwards.
    pub fn mtu(&self, dst: IpAddr) -> Option<u16> {
        self.ports(dst).iter().filter_map(|port| self.link(port)).map(|link| link.mtu).min()
    }

    /// The gateway's own address for a connection of its own to `dst`, chosen as the kernel does: the route's preferred
    /// source, or that of the subnet which the router is in, or the primary address of the port. None where the kernel
    /// forwards, and where no port has an address of the family. Of several ways it is that of `flow`, which `stays` on the
    /// one that it has taken.
    pub fn source(&self, dst: IpAddr, flow: &FlowKey, stays: Way) -> Option<IpAddr> {
        let (net, route) = self.lookup(dst)?;
        let (port, router) = match route {
            Route::OnLink(port) => (port, None),
            Route::Via(port, router) => (port, Some(router)),
            Route::Group(group) => {
                let member = self.pick(group, dst, flow, stays).0?;
                (member.port, member.router)
            }
            Route::Kernel => return None,
        };
        let near = router.filter(|router| router.is_ipv4() == dst.is_ipv4());
        let subnet = near.and_then(|router| self.lookup(router)).filter(|(_, of)| *of == Route::OnLink(port));
        let preferred = self.preferred.get(&net);
        let preferred = preferred.or_else(|| self.preferred.get(&subnet?.0));
        // A port without one speaks in the name of another, as every device does on Linux.
        let others =
            self.links.iter().map(Option::as_ref).chain(self.vlans.iter().map(|(_, of)| Some(&of.link)));
        let links = [self.link(port)].into_iter().chain(others).flatten();
        preferred.copied().or_else(|| {
            links.into_iter().find_map(|link| match dst {
                IpAddr::V4(_) => link.v4.map(IpAddr::V4),
                IpAddr::V6(_) => link.v6.map(IpAddr::V6),
            })
        })
    }

    /// A group of a multipath route.
    pub fn group(&self, number: u32) -> Option<&Group> {
        self.groups.get(number as usize)
    }

    fn link(&self, port: PortId) -> Option<&Link> {
        match self.links.get(port.0 as usize) {
            Some(link) => link.as_ref(),
            None => self.vlans.get(port).map(|of| &of.link),
        }
    }

    /// The port whose frames are a link's: itself, where it is no VLAN.
    pub fn carrier(&self, link: PortId) -> PortId {
        self.vlans.get(link).map_or(link, |of| of.port)
    }

    fn route(&self, dst: IpAddr) -> Option<Route> {
        self.lookup(dst).map(|(_, route)| route)
    }

    fn lookup(&self, dst: IpAddr) -> Option<(IpNet, Route)> {
        match dst {
            IpAddr::V4(a) => self.v4.get_lpm(&Ipv4Net::from(a)).map(|(net, r)| (IpNet::V4(net), *r)),
            IpAddr::V6(a) => self.v6.get_lpm(&Ipv6Net::from(a)).map(|(net, r)| (IpNet::V6(net), *r)),
        }
    }
}
