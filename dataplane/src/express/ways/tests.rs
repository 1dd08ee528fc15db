//! Numbers of next hops when they run short, with the maps of a program that is on no device.

use std::net::{Ipv4Addr, Ipv6Addr};

use weir_core::wire::addr::Addr;
use weir_sys::steering::{Ends, ExpressBatch, ExpressFlow, Sizes, Splice, Steering};

use super::*;

/// The `n`th neighbour, of IPv4 and IPv6 by turns.
fn neighbour(n: u32) -> WayOut {
    let ip = match n.is_multiple_of(2) {
        true => IpAddr::V4(Ipv4Addr::from_bits(10 << 24 | n)),
        false => IpAddr::V6(Ipv6Addr::from_bits(0xfd << 120 | u128::from(n))),
    };
    (PortId(0), Addr::from(ip))
}

fn ways() -> (Steering, Ways) {
    let steering = Steering::load(&Sizes { express_flows: 16, ..Sizes::default() }).unwrap();
    let ways = Ways::new(steering.express(), Vec::new());
    ways.set_link(PortId(0), Some(3));
    (steering, ways)
}

/// Asks for the numbers of all neighbours that there is room for.
fn take_all(ways: &Ways) -> Vec<u16> {
    let numbers: Vec<u16> = (0..NUMBERS as u32).map(|n| ways.number(neighbour(n)).unwrap().1).collect();
    assert_eq!(ways.number(neighbour(NUMBERS as u32)), None);
    numbers
}

/// A connection of each family whose ways out have these numbers.
fn enter(ways: &Ways, [server_hop, client_hop]: [u16; 2]) -> Vec<Ends> {
    let mut batch = ExpressBatch::new(2);
    let ends = [("10.1.0.2:40000", "192.0.2.10:443"), ("[fd00::2]:40000", "[2001:db8::10]:443")]
        .map(|(client, server)| (client.parse().unwrap(), server.parse().unwrap()));
    let flows = ends.map(|ends| ExpressFlow {
        client: ends,
        server: ends,
        client_link: 0,
        server_link: 1,
        server_hop,
        client_hop,
        stands_by: false,
        from: None,
        splice: Splice::default(),
    });
    assert_eq!(ways.express().insert(&mut batch, &flows).unwrap(), 2);
    ends.into()
}

#[test]
fn numbers_that_no_connection_names_are_given_again() {
    let (_steering, ways) = ways();
    let worker = ways.enrol();
    let numbers = take_all(&ways);
    let kept = [numbers[40], numbers[65_001]];
    let ends = enter(&ways, kept);

    assert!(!ways.wants_sweep(), "a period begins");
    assert!(!ways.wants_sweep(), "the worker has not learned of it");
    assert!(ways.learn_period(&worker) && !ways.learn_period(&worker));
    // Its entry is not yet in the map.
    let (_, asked) = ways.number(neighbour(7)).unwrap();
    assert_eq!(asked, numbers[7]);
    assert!(ways.wants_sweep());
    assert!(!ways.wants_sweep(), "somebody sweeps");
    ways.free_numbers().unwrap();

    // Those in use keep their meaning; all others have another one now.
    for n in [40, 65_001, 7] {
        assert_eq!(ways.number(neighbour(n as u32)).unwrap().1, numbers[n]);
    }
    let fresh: Vec<u16> =
        (0..NUMBERS as u32 - 3).map(|n| ways.number(neighbour(NUMBERS as u32 + n)).unwrap().1).collect();
    let mut given = fresh.clone();
    given.extend([kept[0], kept[1], asked]);
    given.sort_unstable();
    assert_eq!(given, (0..=u16::MAX).collect::<Vec<u16>>());
    assert_eq!(ways.number(neighbour(0)), None, "all are taken again");

    // When the connections have left, their numbers are free as well: after a rest.
    for (client, server) in ends {
        ways.express().take((client, server), (client, server)).unwrap();
    }
    for _ in 0..=REST {
        assert!(!ways.wants_sweep());
    }
    ways.learn_period(&worker);
    assert!(ways.wants_sweep());
    ways.free_numbers().unwrap();
    assert_eq!(ways.known().taken(), 0);
}

#[test]
fn worker_that_has_ended_is_not_waited_for() {
    let (_steering, ways) = ways();
    let worker = ways.enrol();
    take_all(&ways);
    assert!(!ways.wants_sweep());
    drop(worker);
    assert!(ways.wants_sweep());
}

#[test]
fn number_of_a_process_before_that_means_nothing_is_given_when_it_is_named_no_more() {
    let (_steering, ways) = ways();
    let key = FlowKey::of(&weir_core::flow::key::Tuple {
        src: "10.1.0.2:40000".parse::<std::net::SocketAddr>().unwrap().into(),
        dst: "192.0.2.10:443".parse::<std::net::SocketAddr>().unwrap().into(),
    });
    // There is no route there.
    ways.known().recall(50_000, "192.0.2.10".parse().unwrap(), &key);
    enter(&ways, [50_000, 50_000]);
    let first = ways.number(neighbour(0)).unwrap().1;
    assert_eq!(first, 50_001);
    assert!(!ways.wants_sweep() && ways.wants_sweep());
    ways.free_numbers().unwrap();
    let given: Vec<u16> = (1..=100).map(|n| ways.number(neighbour(n)).unwrap().1).collect();
    assert_eq!(given, (0..100).collect::<Vec<u16>>());
    let all = take_all_but(&ways, 100);
    assert!(!all.contains(&50_000));
}

/// The rest of the numbers.
fn take_all_but(ways: &Ways, taken: u32) -> Vec<u16> {
    (taken + 1..).map_while(|n| ways.number(neighbour(n))).map(|(_, number)| number).collect()
}
