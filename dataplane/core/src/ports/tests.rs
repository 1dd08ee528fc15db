use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::*;

fn end(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().unwrap().into()
}

const SOURCE: Addr = Addr::v4([192, 0, 2, 1]);

fn any(_: u16) -> bool {
    true
}

fn prepared(server: &Endpoint, range: RangeInclusive<u16>) -> PortAllocator {
    let mut ports = PortAllocator::new();
    ports.prepare([(*server, range)]);
    ports
}

#[test]
fn every_port_of_the_range_is_taken_once_and_then_none() {
    for server in [end("10.2.0.10:443"), end("[fd00::10]:443")] {
        for range in [1..=1, 10_000..=10_063, 10_000..=10_064, 10_007..=10_300, 65_000..=65_535] {
            let mut ports = prepared(&server, range.clone());
            let mut seen = BTreeSet::new();
            for i in 0..range.len() as u64 {
                let hash = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let port = ports.take(&server, &SOURCE, hash, any).unwrap();
                assert!(range.contains(&port) && seen.insert(port), "{port} of {range:?}");
            }
            assert_eq!(ports.take(&server, &SOURCE, 7, any), None, "{range:?}");
            assert_eq!(ports.in_use(&server), range.len() as u32);
            let one = *seen.first().unwrap();
            ports.give(&server, one);
            assert_eq!(ports.take(&server, &SOURCE, 9, any), Some(one), "the only free one, rested or not");
        }
    }
}

#[test]
fn full_server_takes_nothing_from_another() {
    let (a, b) = (end("10.2.0.10:443"), end("10.2.0.10:80"));
    let mut ports = PortAllocator::new();
    ports.prepare([(a, 10_000..=10_000), (b, 10_000..=10_000)]);
    assert_eq!(ports.take(&a, &SOURCE, 0, any), Some(10_000));
    assert_eq!(ports.take(&a, &SOURCE, 0, any), None);
    assert_eq!(ports.take(&b, &SOURCE, 0, any), Some(10_000));
    assert_eq!(ports.total(), 2);
}

#[test]
fn unknown_server_and_ports_not_taken_change_nothing() {
    let server = end("10.2.0.10:443");
    let mut ports = prepared(&server, 10_000..=10_063);
    assert_eq!(ports.take(&end("10.2.0.11:443"), &SOURCE, 0, any), None);
    ports.give(&end("10.2.0.11:443"), 10_000);
    for port in [0, 9_999, 10_000, 10_064, u16::MAX] {
        ports.give(&server, port);
    }
    assert_eq!(ports.total(), 0);
    let port = ports.take(&server, &SOURCE, 0, any).unwrap();
    ports.give(&server, port);
    ports.give(&server, port);
    assert_eq!(ports.in_use(&server), 0);
}

#[test]
fn port_given_back_rests_until_all_others_were_used() {
    let server = end("10.2.0.10:443");
    let mut ports = prepared(&server, 10_000..=10_199);
    let first = ports.take(&server, &SOURCE, 5, any).unwrap();
    ports.give(&server, first);
    let mut seen = BTreeSet::from([first]);
    for _ in 1..200 {
        let port = ports.take(&server, &SOURCE, 5, any).unwrap();
        assert!(seen.insert(port), "{port} did not rest");
        ports.give(&server, port);
    }
    assert_eq!(seen.len(), 200);
    assert!(ports.take(&server, &SOURCE, 5, any).is_some());
}

#[test]
fn workers_take_what_fits_and_ask_about_each_port_once() {
    let server = end("10.2.0.10:443");
    let mut ports = prepared(&server, 10_000..=10_999);
    let asked = std::cell::Cell::new(0);
    let mine = |port: u16| {
        asked.set(asked.get() + 1);
        port % 4 == 1
    };
    let taken: BTreeSet<u16> =
        (0..250).map(|i| ports.take(&server, &SOURCE, i * 77, mine).unwrap()).collect();
    assert!(taken.len() == 250 && taken.iter().all(|port| port % 4 == 1));
    for i in 0..100 {
        assert_eq!(ports.take(&server, &SOURCE, i, mine), None);
    }
    assert_eq!(asked.get(), 1000);
    // From another address other tuples are ours.
    let other = Addr::v4([192, 0, 2, 2]);
    assert_eq!(ports.take(&server, &other, 0, |port| port == 10_002), Some(10_002));
}

#[test]
fn new_policy_keeps_ports_in_use() {
    let (a, b, c) = (end("10.2.0.10:443"), end("10.2.0.11:443"), end("10.2.0.12:443"));
    let mut ports = PortAllocator::new();
    ports.prepare([(a, 10_000..=10_001), (b, 10_000..=10_001), (c, 10_000..=10_001)]);
    let taken = ports.take(&a, &SOURCE, 0, any).unwrap();
    ports.take(&b, &SOURCE, 0, any).unwrap();
    // b is not named any more, c neither, and a has more ports.
    ports.prepare([(a, 10_000..=10_002)]);
    assert_eq!((ports.in_use(&a), ports.in_use(&b), ports.servers.len()), (1, 1, 2));
    let rest: BTreeSet<u16> = std::iter::from_fn(|| ports.take(&a, &SOURCE, 0, any)).collect();
    assert!(rest.len() == 2 && !rest.contains(&taken));
    for port in [10_000, 10_001] {
        ports.give(&b, port);
    }
    ports.prepare([(a, 10_002..=10_003)]);
    assert_eq!((ports.in_use(&a), ports.servers.len()), (1, 1));
    assert_eq!(ports.take(&a, &SOURCE, 0, any), Some(10_003));
    ports.prepare([(a, 10_002..=10_003), (a, 1..=1)]);
    assert_eq!(ports.take(&a, &SOURCE, 0, any), None);
}
