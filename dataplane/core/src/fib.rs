//! Where a packet goes next: an immutable picture of the kernel's routes and neighbours.
//!
//! Control builds it from rtnetlink and publishes a new one when something changed; workers only read it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use crate::ids::{MAX_PORTS, PortId};

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
    /// Something the dataplane does not do (another device, multipath, blackhole, encapsulation): the kernel forwards.
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

/// Routes, neighbours and links at one moment.
#[derive(Clone, Debug, Default)]
pub struct Fib {
    pub v4: PrefixMap<Ipv4Net, Route>,
    pub v6: PrefixMap<Ipv6Net, Route>,
    pub neighbours: HashMap<(PortId, IpAddr), Mac, foldhash::fast::FixedState>,
    pub links: [Option<Link>; MAX_PORTS],
    /// Routes that name the source address of connections made by them (RTA_PREFSRC), and that address.
    pub preferred: HashMap<IpNet, IpAddr, foldhash::fast::FixedState>,
}

impl Fib {
    /// The port that the route to `dst` leaves by, whether or not the neighbour is resolved.
    pub fn egress(&self, dst: IpAddr) -> Option<PortId> {
        match self.route(dst)? {
            Route::OnLink(port) | Route::Via(port, _) => Some(port),
            Route::Kernel => None,
        }
    }

    /// Longest prefix, then its neighbour.
    pub fn next_hop(&self, dst: IpAddr) -> NextHop {
        let (port, gateway) = match self.route(dst) {
            Some(Route::OnLink(port)) => (port, dst),
            Some(Route::Via(port, gateway)) => (port, gateway),
            Some(Route::Kernel) | None => return NextHop::Kernel,
        };
        let Some(link) = self.links.get(port.0 as usize).copied().flatten() else {
            return NextHop::Kernel;
        };
        match self.neighbours.get(&(port, gateway)) {
            Some(&dst_mac) if link.up => NextHop::Forward { port, src_mac: link.mac, dst_mac, mtu: link.mtu },
            _ => NextHop::Unresolved(port),
        }
    }

    /// The gateway's own address for a connection of its own to `dst`, chosen as the kernel does: the route's preferred
    /// source, or that of the subnet which the router is in, or the primary address of the port. None where the kernel
    /// forwards, and where the port has no address of the family.
    pub fn source(&self, dst: IpAddr) -> Option<IpAddr> {
        let (net, route) = self.lookup(dst)?;
        let (port, subnet) = match route {
            Route::OnLink(port) => (port, None),
            Route::Via(port, router) if router.is_ipv4() == dst.is_ipv4() => {
                (port, self.lookup(router).filter(|(_, of)| *of == Route::OnLink(port)))
            }
            Route::Via(port, _) => (port, None),
            Route::Kernel => return None,
        };
        let preferred = self.preferred.get(&net);
        let preferred = preferred.or_else(|| self.preferred.get(&subnet?.0));
        preferred.copied().or_else(|| {
            let link = self.links.get(port.0 as usize)?.as_ref()?;
            match dst {
                IpAddr::V4(_) => link.v4.map(IpAddr::V4),
                IpAddr::V6(_) => link.v6.map(IpAddr::V6),
            }
        })
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
