//! The kernel's notifications, read only for what kind of thing changed.
//!
//! The messages themselves are not believed: the watcher dumps what changed. So a lost message, a route that vanished with its
//! link without a word (IPv4 does that) and an overrun socket are all the same case as an ordinary change. Only who removed
//! something of weir's is taken from them, since no dump tells that; and new addresses, which must not wait for a dump.

use std::io;
use std::net::IpAddr;

use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

use super::HostError;
use super::culprit::Removal;
use super::removals::{Batch, IFA_LOCAL, IFADDRMSG, attributes, route_removal};

/// Kinds of things that may have changed, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    pub links: bool,
    pub addresses: bool,
    pub routes: bool,
    pub neighbours: bool,
    pub rules: bool,
    /// nft tables of anybody, or a device's switches (forwarding, rp_filter).
    pub host: bool,
}

impl Changed {
    /// What is assumed at the start, and after the kernel could not deliver a message.
    pub const ALL: Self =
        Self { links: true, addresses: true, routes: true, neighbours: true, rules: true, host: true };

    pub fn any(self) -> bool {
        self != Self::default()
    }

    pub fn add(&mut self, other: Self) {
        self.links |= other.links;
        self.addresses |= other.addresses;
        self.routes |= other.routes;
        self.neighbours |= other.neighbours;
        self.rules |= other.rules;
        self.host |= other.host;
    }

    /// From one message's type (linux/rtnetlink.h). What depends on a thing is taken to have changed with it.
    fn by_type(kind: u16) -> Self {
        let none = Self::default();
        match kind {
            16..=19 => Self { links: true, addresses: true, routes: true, neighbours: true, ..none },
            20..=22 => Self { addresses: true, routes: true, ..none },
            24..=26 | 104..=106 => Self { routes: true, ..none },
            28..=30 => Self { neighbours: true, ..none },
            32..=34 => Self { rules: true, ..none },
            80..=82 => Self { host: true, ..none },
            _ => none,
        }
    }
}

const GROUPS: [MulticastGroup; 11] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Ipv4Netconf,
    MulticastGroup::Ipv6Netconf,
    MulticastGroup::Nexthop,
];

/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h): changes of any nft table.
const NFNLGRP_NFTABLES: u32 = 7;

/// Octets of the receive buffer; beyond it the kernel says ENOBUFS, and everything is dumped again.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Octets of one datagram that are looked at.
pub(crate) const DATAGRAM: usize = 1 << 16;

/// The sockets that hear everything.
pub(crate) struct Notifications {
    route: TokioSocket,
    nft: TokioSocket,
    heard_route: Vec<u8>,
    heard_nft: Vec<u8>,
    /// The transaction of nft that is being announced.
    batch: Batch,
}

/// What one datagram told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    pub changed: Changed,
    /// What was removed of weir's, and by whom.
    pub removals: Vec<Removal>,
    /// Addresses that devices of this host got.
    pub added: Vec<IpAddr>,
}

impl Notifications {
    /// Subscribes. Must be called on a tokio runtime, before the first dump.
    pub fn subscribe() -> Result<Self, HostError> {
        let route = socket(NETLINK_ROUTE, GROUPS.iter().map(|g| *g as u32));
        let nft = socket(NETLINK_NETFILTER, std::iter::once(NFNLGRP_NFTABLES));
        let failed = |source| HostError::Netlink { what: "notifications", source };
        Ok(Self {
            route: route.map_err(failed)?,
            nft: nft.map_err(failed)?,
            heard_route: Vec::with_capacity(DATAGRAM),
            heard_nft: Vec::with_capacity(DATAGRAM),
            batch: Batch::default(),
        })
    }

    /// Waits for the next news. May be dropped at any time without losing any.
    pub async fn next(&mut self) -> Result<News, HostError> {
        self.heard_route.clear();
        self.heard_nft.clear();
        let heard = tokio::select! {
            heard = self.route.recv_from(&mut self.heard_route) => heard.map(|_| of_route(&self.heard_route)),
            heard = self.nft.recv_from(&mut self.heard_nft) => heard.map(|_| {
                let removals = messages(&self.heard_nft).filter_map(|message| self.batch.hear(message)).collect();
                News { changed: Changed { host: true, ..Changed::default() }, removals, added: Vec::new() }
            }),
        };
        match heard {
            Ok(news) => Ok(news),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                Ok(News { changed: Changed::ALL, ..News::default() })
            }
            Err(source) => Err(HostError::Netlink { what: "notifications", source }),
        }
    }
}

fn socket(protocol: isize, groups: impl Iterator<Item = u32>) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_ref().set_rx_buf_sz(RECEIVE_BUFFER)?;
    for group in groups {
        socket.socket_ref().add_membership(group)?;
    }
    Ok(socket)
}

fn of_route(datagram: &[u8]) -> News {
    let mut news = News::default();
    for message in messages(datagram) {
        news.changed.add(Changed::by_type(message.kind));
        news.removals.extend(route_removal(message));
        news.added.extend(added_address(message));
    }
    news
}

/// RTM_NEWADDR and IFA_ADDRESS of rtnetlink(7).
const NEW_ADDRESS: u16 = 20;
const IFA_ADDRESS: u16 = 1;

/// The address that a message announces: on a point-to-point link IFA_LOCAL, as IFA_ADDRESS is the other end's.
fn added_address(message: Message<'_>) -> Option<IpAddr> {
    if message.kind != NEW_ADDRESS {
        return None;
    }
    let read = |value: &[u8]| {
        let four = <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
        four.or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
    };
    let of = |wanted| {
        let mut found = attributes(message.body, IFADDRMSG).filter(|(kind, _)| *kind == wanted);
        found.find_map(|(_, value)| read(value))
    };
    of(IFA_LOCAL).or_else(|| of(IFA_ADDRESS))
}

/// One message: its type, the port id of whoever asked for what it announces, and what follows its head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub kind: u16,
    pub port: u32,
    pub body: &'a [u8],
}

/// Walks the messages of a datagram: length, type, flags, sequence number and port id at the head of each (struct nlmsghdr).
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = Some(datagram);
    std::iter::from_fn(move || {
        let from = rest?;
        let (head, _) = from.split_at_checked(16)?;
        let length = (u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize).max(16);
        rest = from.get(length.next_multiple_of(4)..);
        Some(Message {
            kind: u16::from_ne_bytes([head[4], head[5]]),
            port: u32::from_ne_bytes([head[12], head[13], head[14], head[15]]),
            body: from.get(16..length).unwrap_or_default(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, length: u32) -> Vec<u8> {
        let mut octets = length.to_ne_bytes().to_vec();
        octets.extend(kind.to_ne_bytes());
        octets.resize(length.next_multiple_of(4).max(16) as usize, 0);
        octets
    }

    #[test]
    fn datagram_of_several_messages_yields_every_kind() {
        let datagram = [message(28, 30), message(24, 16)].concat();
        let changed = of_route(&datagram).changed;
        assert_eq!(changed, Changed { neighbours: true, routes: true, ..Changed::default() });
    }

    #[test]
    fn address_that_is_announced_is_read_for_both_families() {
        let attribute = |kind: u16, value: &[u8]| {
            let length = 4 + value.len() as u16;
            [length.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), value].concat()
        };
        let announced = |attributes: &[Vec<u8>]| {
            let body = [vec![0; 8], attributes.concat()].concat();
            let mut octets = message(NEW_ADDRESS, 16 + body.len() as u32);
            octets[16..16 + body.len()].copy_from_slice(&body);
            of_route(&octets).added
        };
        let far = attribute(IFA_ADDRESS, &[192, 0, 2, 9]);
        let own = attribute(IFA_LOCAL, &[192, 0, 2, 1]);
        assert_eq!(announced(&[far, own]), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let six = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap();
        assert_eq!(announced(&[attribute(IFA_ADDRESS, &six.octets())]), [IpAddr::V6(six)]);
        assert!(announced(&[attribute(7, &[1, 2])]).is_empty());
    }

    #[test]
    fn datagram_with_a_nonsensical_length_ends_the_walk() {
        assert_eq!(of_route(&message(32, 16)[..10]), News::default());
        let zero = message(32, 0);
        assert!(of_route(&zero).changed.rules);
        let huge = [u32::MAX.to_ne_bytes().as_slice(), &[0; 12]].concat();
        assert_eq!(of_route(&huge), News::default());
    }
}
