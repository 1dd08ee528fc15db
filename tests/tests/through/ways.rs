//! A server behind two uplinks: which one a connection takes, and by which its answers may come.

use std::net::IpAddr;
use std::sync::Arc;

use weir_core::drop::DropReason;
use weir_core::fib::{Fib, Group, Link, Member, Route};
use weir_core::ids::PortId;
use weir_tests::bench::Moved::{self, Drop as DROP};
use weir_tests::bench::{Bench, Came, LAN, Setup, WAN, fib, policy};
use weir_tests::hello::client_hello;
use weir_tests::packet::BOTH;

/// The second uplink.
const OTHER: PortId = PortId(2);

/// The servers' networks are behind a router on each uplink.
fn both_uplinks() -> Fib {
    let mut fib = fib(1500);
    let router =
        |n: u8| -> [IpAddr; 2] { [[10, 9, n, 1].into(), [0xfe80, 0, 0, 0, 0, 0, 9, u16::from(n)].into()] };
    for (at, routers) in [router(1), router(2)].iter().enumerate() {
        for router in routers {
            fib.neighbours.insert(([WAN, OTHER][at], *router), [at as u8; 6]);
        }
    }
    fib.links[usize::from(OTHER.0)] = Some(Link { mac: [9; 6], mtu: 1500, up: true, v4: None, v6: None });
    fib.groups = (0..2)
        .map(|family| {
            let member = |(port, n)| Member { port, router: Some(router(n)[family]), weight: 1, dead: false };
            Group::new([(WAN, 1), (OTHER, 2)].map(member)).expect("two members")
        })
        .collect();
    fib.v4.insert("192.0.2.0/24".parse().unwrap(), Route::Group(0));
    fib.v6.insert("2001:db8:2::/64".parse().unwrap(), Route::Group(1));
    fib
}

/// The port of the only segment that left.
fn port(came: &Came) -> PortId {
    assert_eq!((came.punt.len(), came.tx.len()), (0, 1), "{came:?}");
    came.tx[0].0
}

fn allowed(b: &mut Bench, answers_by: PortId) -> (PortId, u32) {
    let taken = port(&b.lan(&b.syn(), &[Moved::Opened]));
    b.give(LAN, &b.syn_ack().frame(), &[DROP(DropReason::WrongPort)]);
    b.give(answers_by, &b.syn_ack().frame(), &[]).one_to_client();
    let hello = client_hello("fine.example", 0);
    assert_eq!(port(&b.lan(&b.c(0), &[])), taken);
    assert_eq!(port(&b.lan(&b.c(0).payload(&hello), &[Moved::Allowed])), taken);
    let n = hello.len() as u32;
    b.give(LAN, &b.s(0, n).frame(), &[DROP(DropReason::WrongPort)]);
    b.give(answers_by, &b.s(0, n).frame(), &[]).one_to_client();
    (taken, n)
}

#[test]
fn connection_keeps_its_uplink_and_is_answered_by_either() {
    for family in BOTH {
        let mut taken = Vec::new();
        for n in 0..16 {
            for answers_by in [WAN, OTHER] {
                let mut b = Bench::of(family, Setup { fib: both_uplinks(), ..Setup::new() });
                b.client.1 += n;
                let (port, _) = allowed(&mut b, answers_by);
                taken.push(port);
            }
        }
        assert!(taken.contains(&WAN) && taken.contains(&OTHER), "{taken:?}");
        assert!(taken.chunks(2).all(|same| same[0] == same[1]), "{taken:?}");
    }
}

#[test]
fn connection_moves_when_its_uplink_dies_and_stays_there_when_that_is_back() {
    for family in BOTH {
        for n in 0..8 {
            let mut b = Bench::of(family, Setup { fib: both_uplinks(), ..Setup::new() });
            b.client.1 += n;
            let (first, octets) = allowed(&mut b, WAN);
            let publish = |b: &mut Bench, dead: Option<PortId>| {
                let mut fib = both_uplinks();
                if let Some(dead) = dead {
                    fib.links[usize::from(dead.0)].as_mut().unwrap().up = false;
                }
                b.pipe.set_snapshot(b.now, Arc::new(policy(1, [Setup::new().spec])), Arc::new(fib));
            };
            let other = if first == WAN { OTHER } else { WAN };
            let segment = b.c(octets).payload("x");
            for (dead, by) in [
                (None, first),
                (Some(other), first),
                (Some(first), other),
                (None, other),
                (Some(other), first),
            ] {
                publish(&mut b, dead);
                assert_eq!(port(&b.lan(&segment, &[])), by, "{dead:?}");
                let (views, _) = b.pipe.views(b.now, 0, 1);
                assert_eq!(views[0].way.map(|way| way.port), Some(by.0));
            }
        }
    }
}
