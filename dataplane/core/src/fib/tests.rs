//! Which way flows take where a route has several.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::*;
use crate::flow::key::Tuple;

/// Documentation addresses behind ways by ports 1, 2 and 3.
struct Place {
    dst: IpAddr,
    routers: Vec<IpAddr>,
    client: fn(u16) -> SocketAddr,
    net: IpNet,
}

fn places() -> [Place; 2] {
    let v4 = |n: u8| IpAddr::from([10, 0, n, 9]);
    let v6 = |n: u16| IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, n]);
    [
        Place {
            dst: "198.51.100.7".parse().unwrap(),
            routers: (1..4).map(v4).collect(),
            client: |n| SocketAddr::from(([10, 9, (n >> 8) as u8, n as u8], 40_000)),
            net: "0.0.0.0/0".parse().unwrap(),
        },
        Place {
            dst: "2001:db8:7::7".parse().unwrap(),
            routers: (1..4).map(v6).collect(),
            client: |n| SocketAddr::from(([0xfd09, 0, 0, 0, 0, 0, 0, n], 40_000)),
            net: "::/0".parse().unwrap(),
        },
    ]
}

impl Place {
    fn flow(&self, n: u16) -> FlowKey {
        let src = (self.client)(n).into();
        FlowKey::of(&Tuple { src, dst: SocketAddr::new(self.dst, 443).into() })
    }

    fn members(&self, weights: &[u16]) -> Vec<Member> {
        let ways = (1..).map(PortId).zip(&self.routers).zip(weights);
        ways.map(|((port, router), &weight)| Member { port, router: Some(*router), weight, dead: false })
            .collect()
    }

    /// A default route with as many ways as there are weights; all live.
    fn fib(&self, weights: &[u16]) -> Fib {
        let mut fib = Fib { groups: vec![Group::new(self.members(weights)).unwrap()], ..Fib::default() };
        match self.net {
            IpNet::V4(net) => fib.v4.insert(net, Route::Group(0)),
            IpNet::V6(net) => fib.v6.insert(net, Route::Group(0)),
        };
        for (n, router) in (1..).zip(&self.routers) {
            let (v4, v6) =
                (Some([10, 0, n, 1].into()), Some([0xfd00, 0, 0, 0, 0, 0, u16::from(n), 1].into()));
            fib.links[usize::from(n)] = Some(Link { mac: [2; 6], mtu: 1500, up: true, v4, v6 });
            fib.neighbours.insert((PortId(n), *router), [n; 6]);
        }
        fib
    }
}

const FLOWS: u16 = 6000;

/// The port of every flow.
fn chosen(place: &Place, fib: &Fib) -> Vec<u8> {
    (0..FLOWS)
        .map(|n| match fib.next_hop(place.dst, &place.flow(n)) {
            NextHop::Forward { port, dst_mac, .. } => {
                assert_eq!(dst_mac, [port.0; 6]);
                port.0
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn flows_spread_by_weight() {
    for place in places() {
        for weights in [&[1, 1][..], &[1, 1, 1], &[1, 2, 3], &[255, 1, 256]] {
            let mut counts = BTreeMap::<u8, u32>::new();
            for port in chosen(&place, &place.fib(weights)) {
                *counts.entry(port).or_default() += 1;
            }
            let sum: u32 = weights.iter().map(|w| u32::from(*w)).sum();
            for (port, weight) in (1..).zip(weights) {
                let share = f64::from(u32::from(FLOWS) * u32::from(*weight)) / f64::from(sum);
                let count = f64::from(*counts.get(&port).unwrap_or(&0));
                // Four standard deviations.
                assert!((count - share).abs() < 4.0 * share.sqrt() + 1.0, "{weights:?}: {counts:?}");
            }
        }
    }
}

#[test]
fn both_directions_and_every_order_of_members_choose_the_same() {
    for place in places() {
        let fib = place.fib(&[1, 2, 3]);
        let mut turned = fib.clone();
        let mut members = place.members(&[1, 2, 3]);
        members.reverse();
        turned.groups = vec![Group::new(members).unwrap()];
        assert_eq!(chosen(&place, &fib), chosen(&place, &turned));
    }
}

#[test]
fn member_that_dies_moves_its_own_flows_only() {
    for place in places() {
        let fib = place.fib(&[1, 2, 3]);
        let before = chosen(&place, &fib);
        let mut dead = fib.clone();
        let mut members = place.members(&[1, 2, 3]);
        members[1].dead = true;
        dead.groups = vec![Group::new(members).unwrap()];
        let mut gone = fib.clone();
        gone.groups =
            vec![Group::new(place.members(&[1, 2, 3]).into_iter().filter(|m| m.port.0 != 2)).unwrap()];
        let mut down = fib.clone();
        down.links[2].as_mut().unwrap().up = false;
        let mut failed = fib.clone();
        failed.neighbours.remove(&(PortId(2), place.routers[1]));
        for (what, fib) in [("dead", dead), ("gone", gone), ("down", down), ("failed", failed)] {
            let after = chosen(&place, &fib);
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            let were_there = before.iter().filter(|port| **port == 2).count();
            assert_eq!(moved, were_there, "{what}");
            assert!(!after.contains(&2) && after.contains(&1) && after.contains(&3), "{what}");
        }
    }
}

#[test]
fn flow_stays_where_it_has_gone_to_when_its_first_member_is_back() {
    for place in places() {
        let whole = place.fib(&[1, 1, 1]);
        let mut down = whole.clone();
        down.links[2].as_mut().unwrap().up = false;
        for n in 0..200 {
            let key = place.flow(n);
            let (first, way) = whole.member(0, place.dst, &key, Way::NONE);
            let (second, moved) = down.member(0, place.dst, &key, way);
            assert_eq!(first == second, first.port() != Some(PortId(2)));
            assert_eq!(whole.member(0, place.dst, &key, moved), (second, moved));
            // It has gone nowhere while nothing lived.
            let mut nothing = whole.clone();
            nothing.neighbours.clear();
            let (hop, kept) = nothing.member(0, place.dst, &key, moved);
            assert!(matches!(hop, NextHop::Unresolved(_)), "{hop:?}");
            assert_eq!(kept, moved);
        }
    }
}

#[test]
fn own_connection_has_the_address_of_the_way_that_its_packets_take() {
    for place in places() {
        let fib = place.fib(&[1, 1, 1]);
        for n in 0..200 {
            let key = place.flow(n);
            let (hop, way) = fib.member(0, place.dst, &key, Way::NONE);
            let link = fib.links[usize::from(hop.port().unwrap().0)].unwrap();
            let own: IpAddr =
                if place.dst.is_ipv4() { link.v4.unwrap().into() } else { link.v6.unwrap().into() };
            assert_eq!(fib.source(place.dst, &key, way), Some(own));
            assert_eq!(fib.source(place.dst, &key, Way::NONE), Some(own));
        }
    }
}

#[test]
fn group_without_a_member_or_with_too_many_is_none_and_one_named_twice_has_both_shares() {
    let member = |n: u32| Member {
        port: PortId(1),
        router: Some(IpAddr::from(n.to_be_bytes())),
        weight: 1,
        dead: false,
    };
    assert_eq!(Group::new([]), None);
    assert!(Group::new((0..MAX_MEMBERS as u32).map(member)).is_some());
    assert_eq!(Group::new((0..=MAX_MEMBERS as u32).map(member)), None);
    let twice = Group::new([member(7), Member { dead: true, weight: u16::MAX, ..member(7) }]).unwrap();
    assert_eq!(twice.members().collect::<Vec<_>>(), [&Member { weight: u16::MAX, ..member(7) }]);
    // Numbers are 16 bits of a hash; those that are equal are told apart.
    let many = Group::new((0..MAX_MEMBERS as u32).map(member)).unwrap();
    let key = places()[0].flow(1);
    let ways: std::collections::BTreeSet<String> = (0..MAX_MEMBERS as u32)
        .map(|n| format!("{:?}", many.choose(&key, |m| *m == member(n)).unwrap().1))
        .collect();
    assert_eq!(ways.len(), MAX_MEMBERS);
}

#[test]
fn largest_packet_is_that_of_the_narrowest_way_and_ports_are_those_of_all() {
    for place in places() {
        let mut fib = place.fib(&[1, 1, 1]);
        fib.links[2].as_mut().unwrap().mtu = 1400;
        assert_eq!(fib.mtu(place.dst), Some(1400));
        assert_eq!(fib.ports(place.dst).iter().map(|port| port.0).collect::<Vec<_>>(), [1, 2, 3]);
        fib.links = [None; MAX_PORTS];
        assert_eq!(fib.next_hop(place.dst, &place.flow(1)), NextHop::Kernel);
        assert_eq!(fib.mtu(place.dst), None);
    }
}

#[test]
fn port_without_an_address_speaks_in_the_name_of_another() {
    for place in places() {
        let mut fib = place.fib(&[1, 1, 1]);
        let key = place.flow(1);
        let port = fib.next_hop(place.dst, &key).port().unwrap();
        let bare = fib.links[usize::from(port.0)].as_mut().unwrap();
        (bare.v4, bare.v6) = (None, None);
        let own = fib.source(place.dst, &key, Way::NONE).unwrap();
        let others = fib.links.iter().flatten().flat_map(|l| [l.v4.map(IpAddr::V4), l.v6.map(IpAddr::V6)]);
        assert!(others.flatten().any(|address| address == own), "{own}");
        fib.links.iter_mut().flatten().for_each(|link| (link.v4, link.v6) = (None, None));
        assert_eq!(fib.source(place.dst, &key, Way::NONE), None);
    }
}
