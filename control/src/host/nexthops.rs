//! The next hops of a route, in each of the ways in which the kernel tells them: in the route itself, as a list there
//! (RTA_MULTIPATH), or as a nexthop object (RTA_NH_ID), which may be a group of others.
//!
//! An object is spelled out in its routes only while `net.ipv4.nexthop_compat_mode` is 1, and there with weights of 8 bits. So the
//! objects are asked for themselves (RTM_GETNEXTHOP, linux/nexthop.h) where a route names one. rtnetlink has no such messages.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteVia,
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

use super::HostError;
use super::notify::{DATAGRAM, messages};
use super::removals::attributes;
use super::spec::Family;

// linux/netlink.h, linux/rtnetlink.h and linux/nexthop.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NHMSG: usize = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
const NHA_FDB: u16 = 11;
/// Octets of struct nexthop_grp: number, low and high octet of the weight less one, and two of padding.
const NEXTHOP_GRP: usize = 8;
/// Where `nh_flags` is in struct nhmsg.
const NH_FLAGS: usize = 4;

/// One next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    pub ifindex: Option<u32>,
    pub gateway: Option<IpAddr>,
    pub weight: u16,
    /// The kernel does not send there.
    pub dead: bool,
    /// Its link has no carrier; the kernel sends there all the same, unless a sysctl says otherwise.
    pub down: bool,
    /// Encapsulation, or what the kernel may come to do else.
    pub special: bool,
}

impl Default for Hop {
    fn default() -> Self {
        Self { ifindex: None, gateway: None, weight: 1, dead: false, down: false, special: false }
    }
}

impl Hop {
    fn flagged(mut self, flags: RouteNextHopFlags) -> Self {
        self.dead = flags.contains(RouteNextHopFlags::Dead);
        self.down = flags.contains(RouteNextHopFlags::Linkdown);
        self
    }

    fn of_list(hop: &RouteNextHop) -> Self {
        let mut own = Self { weight: u16::from(hop.hops) + 1, ..Self::default() }.flagged(hop.flags);
        own.ifindex = Some(hop.interface_index);
        hop.attributes.iter().for_each(|attribute| own.take(attribute));
        own
    }

    fn take(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Oif(index) => self.ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(a)) | RouteAttribute::Via(RouteVia::Inet(a)) => {
                self.gateway = Some(IpAddr::V4(*a));
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(a)) | RouteAttribute::Via(RouteVia::Inet6(a)) => {
                self.gateway = Some(IpAddr::V6(*a));
            }
            RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::EncapType(_)
            | RouteAttribute::Encap(_) => self.special = true,
            _ => {}
        }
    }
}

/// The next hops of a route: one, or those of its list.
pub fn hops(message: &RouteMessage, objects: &Objects) -> Vec<Hop> {
    let (mut own, mut listed, mut object) = (Hop::default(), None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::MultiPath(list) => listed = Some(list.iter().map(Hop::of_list).collect()),
            RouteAttribute::NhId(id) => object = objects.hops(*id),
            attribute => own.take(attribute),
        }
    }
    object.or(listed).unwrap_or_else(|| vec![own])
}

/// The nexthop objects of a host, by number.
#[derive(Clone, Debug, Default)]
pub struct Objects(HashMap<u32, Object>);

#[derive(Clone, Debug)]
enum Object {
    Hop(Hop),
    /// Numbers and weights.
    Group(Vec<(u32, u16)>),
}

impl Objects {
    /// Asks for them, if one of the routes names any. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn of(routes: &[(Family, RouteMessage)]) -> Result<Self, HostError> {
        let named = |(_, message): &(Family, RouteMessage)| {
            message.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::NhId(_)))
        };
        if !routes.iter().any(named) {
            return Ok(Self::default());
        }
        Self::dump().await.map_err(|source| HostError::Netlink { what: "nexthop objects", source })
    }

    async fn dump() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        let mut request = (16 + NHMSG as u32).to_ne_bytes().to_vec();
        request.extend(RTM_GETNEXTHOP.to_ne_bytes());
        request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
        request.resize(16 + NHMSG, 0);
        socket.send_to(&request, &SocketAddr::new(0, 0)).await?;
        let (mut objects, mut heard) = (Self::default(), Vec::with_capacity(DATAGRAM));
        loop {
            heard.clear();
            socket.recv_from(&mut heard).await?;
            for message in messages(&heard) {
                match message.kind {
                    NLMSG_DONE => return Ok(objects),
                    NLMSG_ERROR => return Err(refusal(message.body)),
                    RTM_NEWNEXTHOP => objects.take(message.body),
                    _ => {}
                }
            }
        }
    }

    /// Takes one RTM_NEWNEXTHOP.
    fn take(&mut self, body: &[u8]) {
        let (mut id, mut hop, mut group) = (None, Hop::default(), None);
        let flags = body.get(NH_FLAGS).copied().unwrap_or(0);
        for (kind, value) in attributes(body, NHMSG) {
            match kind {
                NHA_ID => id = number(value),
                NHA_OIF => hop.ifindex = number(value),
                NHA_GATEWAY => hop.gateway = address(value),
                NHA_GROUP => group = Some(value.chunks_exact(NEXTHOP_GRP).filter_map(entry).collect()),
                NHA_BLACKHOLE | NHA_ENCAP_TYPE | NHA_FDB => hop.special = true,
                _ => {}
            }
        }
        let hop = hop.flagged(RouteNextHopFlags::from_bits_retain(flags));
        if let Some(id) = id {
            self.0.insert(id, group.map_or(Object::Hop(hop), Object::Group));
        }
    }

    /// Those of one object; none where it, or a member of it, is not known. Groups hold no groups.
    fn hops(&self, id: u32) -> Option<Vec<Hop>> {
        match self.0.get(&id)? {
            Object::Hop(hop) => Some(vec![*hop]),
            Object::Group(members) => {
                let hop = |&(id, weight): &(u32, u16)| match self.0.get(&id)? {
                    Object::Hop(hop) => Some(Hop { weight, ..*hop }),
                    Object::Group(_) => None,
                };
                members.iter().map(hop).collect()
            }
        }
    }
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
    four.or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
}

fn entry(octets: &[u8]) -> Option<(u32, u16)> {
    let (id, rest) = octets.split_at_checked(4)?;
    Some((number(id)?, u16::from_le_bytes([*rest.first()?, *rest.get(1)?]).saturating_add(1)))
}

/// What a struct nlmsgerr says.
fn refusal(body: &[u8]) -> io::Error {
    let code = body.get(..4).and_then(number).unwrap_or(0);
    io::Error::from_raw_os_error(code.cast_signed().saturating_neg())
}
