//! From dumps of the kernel's tables to what the fast road can use: a pure function.
//!
//! Only the main table is read. What the dataplane cannot do as the kernel would (another device, blackhole, encapsulation, a
//! route with an MTU of its own, TOS or source routing, local prefixes) becomes [`Route::Kernel`]; so does a prefix about which
//! there is doubt. A multipath route becomes a group where all its ways leave by ports. Where one does not, the whole route is
//! the kernel's: servers may answer by any of the ways, and what the kernel gets of a connection that weir translates it would
//! reset.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType,
};
use weir_core::fib::{Fib, Group, Link, Mac, Member, Route, VlanLink};
use weir_core::ids::PortId;

use super::link::LinkInfo;
use super::nexthops::{Hop, Objects, hops};
use super::plan::DUMMY_ADDRESS;
use super::port_device;
use super::rule::{SeenRoute, SeenRule, table_of};
use super::source;
use super::spec::Family;
use super::sub_interface::{self, Numbers, SubInterface};
use super::{PUNT_TUN, RELAY_TUN};

const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;
const TABLE_DEFAULT: u32 = 253;

/// The kernel's tables as dumped.
#[derive(Clone, Debug, Default)]
pub struct Dumps {
    pub links: Vec<LinkInfo>,
    pub addresses: Vec<AddressMessage>,
    /// Of all tables, IPv4 and IPv6.
    pub routes: Vec<(Family, RouteMessage)>,
    /// Those that the routes name, at least.
    pub nexthops: Objects,
    pub neighbours: Vec<NeighbourMessage>,
    pub rules: Vec<SeenRule>,
}

/// The box's own addresses: what must never be intercepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses {
    /// Every address of every device, loopback and weir's TUN devices included; the broadcast addresses of its subnets and
    /// its anycast addresses, as the kernel's local tables have them. Sorted. Multicast groups are not listed: TCP knows none.
    pub addresses: Vec<IpAddr>,
    /// Local prefixes that are longer than one address: 127.0.0.0/8, and what somebody gave with `ip route add local`.
    pub prefixes: Vec<IpNet>,
}

/// A neighbour as the kernel has it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub port: PortId,
    pub ifindex: u32,
    pub address: IpAddr,
    /// None while it is not resolved.
    pub mac: Option<Mac>,
    pub state: NeighbourState,
}

/// What one moment's dumps come to.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub fib: Arc<Fib>,
    pub own: Arc<OwnAddresses>,
    /// Per port, in the caller's order: its device, if there is one of that name.
    pub ports: Vec<Option<LinkInfo>>,
    /// Per port, why its device is not fit for one.
    pub unfit: Vec<Option<String>>,
    /// VLANs of the ports that the fast road knows, by number.
    pub vlans: Arc<[(PortId, SubInterface)]>,
    /// All neighbours on the ports, resolved or not.
    pub neighbours: Vec<Neighbour>,
    /// Routers that routes through the ports lead to.
    pub routers: BTreeSet<(PortId, IpAddr)>,
    pub warnings: Vec<String>,
    /// weir's own rules, routes, TUN devices and their addresses, and the programs on the ports, as text: when this changes,
    /// somebody has touched them.
    pub ours: Vec<String>,
}

/// Puts it together. `ports`: identity and device of each. `numbers`: of VLANs, to be kept from one picture to the next.
pub fn picture(ports: &[(PortId, String)], dumps: &Dumps, numbers: &mut Numbers) -> Picture {
    let devices: Vec<Option<LinkInfo>> =
        ports.iter().map(|(_, device)| dumps.links.iter().find(|l| l.name == *device).cloned()).collect();
    let subs = sub_interface::of_ports(ports, &dumps.links);
    let count = subs.len();
    let vlans = numbers.number(subs);
    let untagged = ports.iter().zip(&devices).filter_map(|((id, _), link)| Some((*id, link.as_ref()?)));
    let tagged = vlans.iter().map(|(number, sub)| (*number, &sub.link));
    let by_index: HashMap<u32, (PortId, u32)> =
        untagged.chain(tagged).map(|(id, link)| (link.ifindex, (id, link.ip_mtu()))).collect();
    let neighbours: Vec<Neighbour> =
        dumps.neighbours.iter().filter_map(|m| neighbour(m, &by_index)).collect();
    let mut fib = Fib::default();
    let mut routers = BTreeSet::new();
    let (routes, groups) = routes(dumps, &by_index);
    for (prefix, Candidate { route, source, .. }) in routes {
        fib.preferred.extend(source.map(|source| (prefix, source)));
        if let Route::Via(port, router) = route {
            routers.insert((port, router));
        }
        match prefix {
            IpNet::V4(net) => drop(fib.v4.insert(net, route)),
            IpNet::V6(net) => drop(fib.v6.insert(net, route)),
        }
    }
    routers.extend(
        groups.iter().flat_map(Group::members).filter_map(|member| Some((member.port, member.router?))),
    );
    fib.groups = groups;
    let usable = |n: &&Neighbour| is_usable(n.state);
    fib.neighbours = neighbours
        .iter()
        .filter(usable)
        .filter_map(|n| n.mac.map(|mac| ((n.port, n.address), mac)))
        .collect();
    for ((id, _), link) in ports.iter().zip(&devices) {
        if let (Some(place), Some(link)) = (fib.links.get_mut(usize::from(id.0)), link) {
            *place = link_of(link, dumps);
        }
    }
    for (number, sub) in &vlans {
        if let Some(link) = link_of(&sub.link, dumps) {
            fib.vlans.insert(*number, VlanLink { port: sub.port, vlan: sub.vlan, link });
        }
    }
    let mut warnings = warnings(dumps);
    warnings.extend(beyond(count, vlans.len()));
    Picture {
        fib: Arc::new(fib),
        own: Arc::new(own_addresses(dumps)),
        ours: ours(dumps, &devices),
        unfit: devices.iter().map(|link| unfit(link.as_ref()?, &dumps.links)).collect(),
        ports: devices,
        neighbours,
        routers,
        warnings,
        vlans: vlans.into(),
    }
}

/// What is to be said where there are more VLANs than the fast road has numbers for.
fn beyond(count: usize, known: usize) -> Option<String> {
    (known < count).then(|| {
        format!(
            "the ports have {count} VLAN sub-interfaces, and the fast road knows {known} of them: what comes by the others, or leaves \
             by them, takes the kernel road"
        )
    })
}

fn link_of(link: &LinkInfo, dumps: &Dumps) -> Option<Link> {
    Some(Link {
        mac: link.mac?,
        mtu: u16::try_from(link.ip_mtu()).unwrap_or(u16::MAX),
        up: link.up,
        v4: source::primary_v4(&dumps.addresses, link.ifindex),
        v6: source::primary_v6(&dumps.addresses, link.ifindex),
    })
}

fn unfit(link: &LinkInfo, links: &[LinkInfo]) -> Option<String> {
    port_device::unfit(link, links).map(|unfit| unfit.to_string())
}

/// States in which the kernel itself would send to the address it has (NUD_VALID, less what has none).
fn is_usable(state: NeighbourState) -> bool {
    use NeighbourState as S;
    matches!(state, S::Reachable | S::Stale | S::Delay | S::Probe | S::Permanent | S::Noarp)
}

fn neighbour(message: &NeighbourMessage, ports: &HashMap<u32, (PortId, u32)>) -> Option<Neighbour> {
    let header = &message.header;
    let (port, _) = *ports.get(&header.ifindex)?;
    if header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut found =
        Neighbour { port, ifindex: header.ifindex, address: [0; 4].into(), mac: None, state: header.state };
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(*a)),
            // Group addresses belong to the kernel's entries for multicast and broadcast.
            NeighbourAttribute::LinkLayerAddress(octets) => {
                found.mac = Mac::try_from(octets.as_slice()).ok().filter(|m| m[0] & 1 == 0 && *m != [0; 6]);
            }
            _ => {}
        }
    }
    found.address = address.filter(|a| !a.is_multicast())?;
    Some(found)
}

/// One route of the main table, before the best of its prefix is chosen.
struct Candidate {
    metric: u32,
    route: Route,
    /// The source address that it names.
    source: Option<IpAddr>,
}

impl Candidate {
    const KERNEL: Self = Self { metric: 0, route: Route::Kernel, source: None };
}

/// Groups of multipath routes; each once, as thousands of routes may have the same.
#[derive(Default)]
struct Groups {
    all: Vec<Group>,
    known: HashMap<Vec<Member>, u32>,
}

impl Groups {
    fn route(&mut self, members: Vec<Member>) -> Route {
        if let Some(number) = self.known.get(&members) {
            return Route::Group(*number);
        }
        let Some(group) = Group::new(members.iter().copied()) else { return Route::Kernel };
        let number = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.push(group);
        self.known.insert(members, number);
        Route::Group(number)
    }
}

fn routes(dumps: &Dumps, ports: &HashMap<u32, (PortId, u32)>) -> (BTreeMap<IpNet, Candidate>, Vec<Group>) {
    let mut best: BTreeMap<IpNet, Candidate> = BTreeMap::new();
    let mut groups = Groups::default();
    for (family, message) in dumps.routes.iter().filter(|(_, m)| table_of(m) == TABLE_MAIN) {
        let dead = RouteFlags::Dead | RouteFlags::Cloned;
        let Some(prefix) = destination(*family, message).filter(|_| !message.header.flags.intersects(dead))
        else {
            continue;
        };
        let hops = hops(message, &dumps.nexthops);
        if !hops.is_empty() && hops.iter().all(|hop| hop.dead) {
            continue;
        }
        let next = candidate(message, &hops, ports, &mut groups);
        match best.get_mut(&prefix) {
            None => drop(best.insert(prefix, next)),
            // The dataplane looks at destinations alone.
            Some(known) if special(message) || known.metric == next.metric && known.route != next.route => {
                *known = Candidate { metric: known.metric.min(next.metric), ..Candidate::KERNEL };
            }
            Some(known) if next.metric < known.metric => *known = next,
            Some(_) => {}
        }
    }
    // The local table comes first, so a local prefix hides the same prefix in the main table.
    for (family, message) in dumps.routes.iter().filter(|(_, m)| table_of(m) == TABLE_LOCAL) {
        best.extend(destination(*family, message).map(|prefix| (prefix, Candidate::KERNEL)));
    }
    for never in ["0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8"] {
        best.extend(never.parse::<IpNet>().ok().map(|prefix| (prefix, Candidate::KERNEL)));
    }
    // Every device's link-local subnet is in the table, and none is ever routed.
    best.retain(|prefix, _| !matches!(prefix, IpNet::V6(p) if p.addr().is_unicast_link_local() && p.prefix_len() > 10));
    (best, groups.all)
}

/// Chosen by more than the destination.
fn special(message: &RouteMessage) -> bool {
    message.header.tos != 0 || message.header.source_prefix_length != 0
}

fn candidate(
    message: &RouteMessage,
    hops: &[Hop],
    ports: &HashMap<u32, (PortId, u32)>,
    groups: &mut Groups,
) -> Candidate {
    let (mut metric, mut route_mtu, mut source) = (0, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(n) => metric = *n,
            RouteAttribute::PrefSource(RouteAddress::Inet(a)) => source = Some(IpAddr::V4(*a)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(a)) => source = Some(IpAddr::V6(*a)),
            RouteAttribute::Metrics(all) => {
                route_mtu =
                    all.iter().find_map(|m| if let RouteMetric::Mtu(n) = m { Some(*n) } else { None });
            }
            _ => {}
        }
    }
    let simple = message.header.kind == RouteType::Unicast && !special(message);
    let member = |hop: &Hop| {
        let (port, mtu) = *ports.get(&hop.ifindex?)?;
        // A way has no MTU of its own in the picture: where a route's is smaller, the kernel keeps it.
        let plain = simple && !hop.special && route_mtu.is_none_or(|m| m >= mtu);
        plain.then_some(Member { port, router: hop.gateway, weight: hop.weight, dead: hop.dead || hop.down })
    };
    let route = match hops.iter().map(member).collect::<Option<Vec<Member>>>().as_deref() {
        Some(&[Member { port, router: None, .. }]) => Route::OnLink(port),
        Some(&[Member { port, router: Some(router), .. }]) => Route::Via(port, router),
        Some(members) => groups.route(members.to_vec()),
        None => Route::Kernel,
    };
    Candidate { metric, route, source: source.filter(|_| route != Route::Kernel) }
}

fn destination(family: Family, message: &RouteMessage) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(a)) => Some(IpAddr::V4(*a)),
        RouteAttribute::Destination(RouteAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
        _ => None,
    });
    let default = match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    };
    Some(IpNet::new(address.unwrap_or(default), message.header.destination_prefix_length).ok()?.trunc())
}

fn own_addresses(dumps: &Dumps) -> OwnAddresses {
    let mut addresses = BTreeSet::new();
    let mut prefixes = BTreeSet::new();
    for (family, message) in dumps.routes.iter().filter(|(_, m)| table_of(m) == TABLE_LOCAL) {
        let own = [RouteType::Local, RouteType::Broadcast, RouteType::Anycast].contains(&message.header.kind);
        let Some(prefix) = destination(*family, message).filter(|_| own) else { continue };
        if prefix.prefix_len() == prefix.max_prefix_len() {
            addresses.insert(prefix.addr());
        } else {
            prefixes.insert(prefix);
        }
    }
    // Addresses of devices that are down, or still being checked for duplicates, are in no table yet.
    for message in &dumps.addresses {
        let local = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        // On a point-to-point link IFA_ADDRESS is the other end's; IPv6 has IFA_LOCAL only there.
        addresses.extend(local.or(address));
    }
    OwnAddresses { addresses: addresses.into_iter().collect(), prefixes: prefixes.into_iter().collect() }
}

/// Rules that could send forwarded packets elsewhere than the main table would.
fn warnings(dumps: &Dumps) -> Vec<String> {
    let kernels = |r: &SeenRule| {
        let places = [(0, TABLE_LOCAL), (32766, TABLE_MAIN), (32767, TABLE_DEFAULT)];
        !r.narrower && r.mask == 0 && places.iter().any(|&(p, t)| r.priority == p && r.table == Some(t))
    };
    let mut warnings: Vec<String> = dumps
        .rules
        .iter()
        .filter(|r| !r.is_ours() && !r.only_own && !kernels(r))
        .map(|r| {
            format!(
                "the rule with priority {} ({}) may route forwarded packets elsewhere than table main does, and the fast road \
                 looks at nothing else: see `{} rule show`",
                r.priority,
                r.table.map_or("no lookup".to_owned(), |t| format!("lookup {t}")),
                r.family.ip(),
            )
        })
        .collect();
    warnings.dedup();
    warnings
}

fn ours(dumps: &Dumps, ports: &[Option<LinkInfo>]) -> Vec<String> {
    let rules = dumps.rules.iter().filter(|r| r.is_ours()).map(|r| r.command("add"));
    let routes = dumps.routes.iter().map(|(family, m)| SeenRoute::of(*family, m));
    let routes = routes.filter(SeenRoute::is_ours).map(|r| r.command("add"));
    let tuns: Vec<&LinkInfo> =
        dumps.links.iter().filter(|l| [RELAY_TUN, PUNT_TUN].contains(&l.name.as_str())).collect();
    let devices = tuns.iter().map(|l| format!("link {} {} up {}", l.ifindex, l.name, l.up));
    let has_dummy =
        |m: &&AddressMessage| m.attributes.contains(&AddressAttribute::Local(DUMMY_ADDRESS.into()));
    let addresses = dumps.addresses.iter().filter(has_dummy).map(|m| m.header.index);
    let addresses = addresses.filter(|index| tuns.iter().any(|tun| tun.ifindex == *index));
    let programs = ports.iter().flatten().map(|l| format!("xdp {} {:?}", l.ifindex, l.xdp));
    rules
        .chain(routes)
        .chain(devices)
        .chain(addresses.map(|index| format!("address {index}")))
        .chain(programs)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_core::fib::NextHop;
    use weir_core::flow::key::{FlowKey, Tuple};
    use weir_core::vlan::{DOT1AD, DOT1Q, Tag, Vlan};

    fn link(name: &str, ifindex: u32, over: Option<(u32, u16, u16)>) -> LinkInfo {
        LinkInfo {
            name: name.to_owned(),
            ifindex,
            mac: Some([2, 0, 0, 0, 0, ifindex as u8]),
            mtu: 1500 - ifindex,
            up: true,
            is_ethernet: true,
            kind: over.map(|_| "vlan".to_owned()),
            lower: over.map(|(lower, ..)| lower),
            vlan: over.map(|(_, protocol, id)| Tag { protocol, id }),
            ..LinkInfo::default()
        }
    }

    fn on_link(net: &str, ifindex: u32) -> (Family, RouteMessage) {
        let net: IpNet = net.parse().unwrap();
        let (family, address) = match net.network() {
            IpAddr::V4(a) => (Family::V4, RouteAddress::Inet(a)),
            IpAddr::V6(a) => (Family::V6, RouteAddress::Inet6(a)),
        };
        let mut message = RouteMessage::default();
        message.header.table = TABLE_MAIN as u8;
        message.header.kind = RouteType::Unicast;
        message.header.destination_prefix_length = net.prefix_len();
        message.attributes = vec![RouteAttribute::Destination(address), RouteAttribute::Oif(ifindex)];
        (family, message)
    }

    fn resolved(address: &str, ifindex: u32) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = ifindex;
        message.header.state = NeighbourState::Reachable;
        let address = match address.parse().unwrap() {
            IpAddr::V4(a) => NeighbourAddress::Inet(a),
            IpAddr::V6(a) => NeighbourAddress::Inet6(a),
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(address),
            NeighbourAttribute::LinkLayerAddress(vec![4, 0, 0, 0, 0, ifindex as u8]),
        ];
        message
    }

    /// The ways by a port, by its VLAN, and by one in another, in both families.
    #[test]
    fn routes_and_neighbours_of_sub_interfaces_lead_by_their_tags() {
        let links = vec![
            link("eth1", 2, None),
            link("eth1.10", 3, Some((2, DOT1Q, 10))),
            link("eth1.100", 4, Some((2, DOT1AD, 100))),
            link("eth1.100.10", 5, Some((4, DOT1Q, 10))),
            link("eth9.10", 6, Some((9, DOT1Q, 10))),
        ];
        let nets = [("10.0.2.0/24", 2), ("10.0.3.0/24", 3), ("10.0.5.0/24", 5), ("10.0.6.0/24", 6)];
        let nets6 = [("fd00:2::/64", 2), ("fd00:3::/64", 3), ("fd00:5::/64", 5), ("fd00:6::/64", 6)];
        let dumps = Dumps {
            links,
            routes: nets.iter().chain(&nets6).map(|(net, index)| on_link(net, *index)).collect(),
            neighbours: [2, 3, 5, 6]
                .into_iter()
                .flat_map(|n| [resolved(&format!("10.0.{n}.9"), n), resolved(&format!("fd00:{n}::9"), n)])
                .collect(),
            ..Dumps::default()
        };
        let seen = picture(&[(PortId(0), "eth1".to_owned())], &dumps, &mut Numbers::default());
        let fib = &seen.fib;
        for (index, vlan) in [(2, None), (3, Some(Vlan::new(10))), (5, Some(Vlan::stacked(100, 10)))] {
            for address in [format!("10.0.{index}.9"), format!("fd00:{index}::9")] {
                let address: IpAddr = address.parse().unwrap();
                let end = |port| weir_core::wire::addr::Endpoint { addr: address.into(), port };
                let key = FlowKey::of(&Tuple { src: end(1), dst: end(2) });
                let NextHop::Forward { port, src_mac, dst_mac, mtu } = fib.next_hop(address, &key) else {
                    panic!("{address}: {:?}", fib.next_hop(address, &key))
                };
                assert_eq!((src_mac[5], dst_mac[5], mtu), (index, index, 1500 - u16::from(index)));
                assert_eq!(fib.vlans.get(port).map(|of| of.vlan), vlan, "{address}");
                assert_eq!(fib.carrier(port), PortId(0));
            }
        }
        let elsewhere = fib.ways("10.0.6.9".parse().unwrap());
        assert_eq!(elsewhere, weir_core::fib::Ways::One(NextHop::Kernel), "of a device that is no port");
        let numbered: Vec<_> = seen.vlans.iter().map(|(n, sub)| (n.0, sub.link.name.as_str())).collect();
        assert_eq!(numbered, [(32, "eth1.10"), (33, "eth1.100"), (34, "eth1.100.10")]);
    }
}
