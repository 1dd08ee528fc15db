//! Where a packet goes next: an immutable picture of the kernel's routes and neighbours.
//!
//! Control builds it from rtnetlink and publishes a new one when something changed; workers only read it.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::{Ipv4Net, Ipv6Net};
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

    fn route(&self, dst: IpAddr) -> Option<Route> {
        match dst {
            IpAddr::V4(a) => self.v4.get_lpm(&Ipv4Net::from(a)).map(|(_, r)| *r),
            IpAddr::V6(a) => self.v6.get_lpm(&Ipv6Net::from(a)).map(|(_, r)| *r),
        }
    }
}
