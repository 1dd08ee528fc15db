use std::net::SocketAddr;

use super::*;
use crate::flow::key::Tuple;
use crate::ids::ServerId;
use crate::wire::addr::Endpoint;
use ServerState::{Down, Draining, Up};

fn end(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().unwrap().into()
}

/// Servers of both families, with these weights.
fn servers(weights: &[u16]) -> Vec<Server> {
    let server = |addr: String, weight: u16| Server { weight, ..Server::new(addr.parse().unwrap()) };
    let v4 = (0..).zip(weights).map(|(i, w)| server(format!("10.2.{}.{}:443", i / 250, i % 250 + 1), *w));
    let v6 = (0..).zip(weights).map(|(i, w)| server(format!("[fd00:2::{:x}]:443", i + 1), *w));
    v4.chain(v6).collect()
}

fn pool(servers: Vec<Server>) -> Pool {
    Pool::new(PoolSpec { servers, ..PoolSpec::new("intranet") })
}

/// Connections of as many clients of each family.
fn tuples(clients: u32) -> impl Iterator<Item = Tuple> {
    (0..clients).flat_map(|i| {
        let [_, b, c, d] = i.to_be_bytes();
        [
            Tuple { src: end(&format!("10.{b}.{c}.{d}:40000")), dst: end("192.0.2.10:443") },
            Tuple { src: end(&format!("[2001:db8:{i:x}::1]:40000")), dst: end("[2001:db8::10]:443") },
        ]
    })
}

fn shares(pool: &Pool, clients: u32) -> Vec<f64> {
    let mut counts = vec![0_u32; pool.servers.len()];
    for tuple in tuples(clients) {
        counts[usize::from(pool.pick(&tuple, None).unwrap().0)] += 1;
    }
    counts.into_iter().map(|count| f64::from(count) / f64::from(clients)).collect()
}

#[test]
fn clients_are_shared_by_weight() {
    for weights in [vec![1; 3], vec![1, 2, 5], vec![256, 1, 128, 64], vec![1; 50], vec![7, 0, 3]] {
        let pool = pool(servers(&weights));
        let whole: f64 = weights.iter().copied().map(f64::from).sum();
        for (share, weight) in shares(&pool, 40_000).into_iter().zip(weights.iter().chain(&weights)) {
            let fair = f64::from(*weight) / whole;
            // Of 40,000 clients; the table itself is far more even.
            let chance = 5.0 * (fair * (1.0 - fair) / 40_000.0).sqrt();
            assert!((share - fair).abs() <= 0.02 * fair + chance, "{share} for {fair} of {weights:?}");
        }
    }
}

#[test]
fn server_is_of_the_clients_family() {
    let both = pool(servers(&[1, 1, 1]));
    for tuple in tuples(1000) {
        let server = both.server(both.pick(&tuple, None).unwrap()).unwrap();
        assert_eq!(server.endpoint().addr.is_v4(), tuple.src.addr.is_v4());
    }
    let v6 = pool(servers(&[1, 1]).split_off(2));
    let [four, six] = tuples(1).collect::<Vec<_>>()[..] else { panic!() };
    assert_eq!(v6.pick(&four, None), None);
    assert!(v6.pick(&six, None).is_some());
    assert!(v6.serves(&six.src.addr) && !v6.serves(&four.src.addr));
    assert_eq!(pool(Vec::new()).pick(&four, None), None);
}

#[test]
fn server_that_goes_and_comes_back_moves_few_others() {
    for size in [3_usize, 10, 100] {
        let before = pool(servers(&vec![1; size]));
        let mut states = vec![Up; size * 2];
        states[1] = Down;
        states[size + 1] = Draining;
        let gone = before.with_states(&states);
        let (mut moved, mut kept) = (0, 0);
        for tuple in tuples(20_000) {
            let was = before.pick(&tuple, None).unwrap();
            let is = gone.pick(&tuple, None).unwrap();
            assert!(gone.server(is).unwrap().state == Up);
            if before.server(was) == gone.server(was) {
                if is == was { kept += 1 } else { moved += 1 }
            }
        }
        assert!(f64::from(moved) < 0.03 * f64::from(kept), "{moved} of {kept} moved, {size} servers");
        let back = gone.with_states(&vec![Up; size * 2]);
        assert!(tuples(2000).all(|tuple| back.pick(&tuple, None) == before.pick(&tuple, None)));
    }
}

#[test]
fn order_of_servers_in_the_file_does_not_matter() {
    let forward = pool(servers(&[1, 2, 3]));
    let mut list = servers(&[1, 2, 3]);
    list.reverse();
    let backward = pool(list);
    for tuple in tuples(2000) {
        let [a, b] =
            [&forward, &backward].map(|pool| pool.server(pool.pick(&tuple, None).unwrap()).unwrap().addr);
        assert_eq!(a, b);
    }
}

#[test]
fn every_gateway_picks_the_same() {
    // Written down once: another version or another machine gives the same, or connections move at an upgrade.
    let pool = pool(servers(&[1, 2, 3, 4, 5]));
    let picked: Vec<u16> = tuples(12).map(|tuple| pool.pick(&tuple, None).unwrap().0).collect();
    assert_eq!(picked, [1, 8, 3, 7, 4, 6, 2, 7, 4, 6, 3, 8, 2, 8, 4, 9, 4, 8, 1, 6, 4, 7, 4, 5]);
}

#[test]
fn hash_by_client_keeps_a_clients_connections_together_and_by_flow_spreads_them() {
    let spec = PoolSpec { servers: servers(&[1; 8]), ..PoolSpec::new("intranet") };
    for (hash, distinct) in [(HashBy::Client, 1), (HashBy::Flow, 8)] {
        let pool = Pool::new(PoolSpec { hash, ..spec.clone() });
        for tuple in tuples(1) {
            let mut src = tuple.src;
            let picked: std::collections::BTreeSet<ServerId> = (1..=500)
                .map(|port| {
                    src.port = port;
                    pool.pick(&Tuple { src, ..tuple }, None).unwrap()
                })
                .collect();
            assert_eq!(picked.len(), distinct);
        }
    }
}

#[test]
fn retry_goes_to_another_server_of_the_same_kind_or_nowhere() {
    let pool = pool(servers(&[1, 4, 1]));
    let mut seen = std::collections::BTreeSet::new();
    for tuple in tuples(2000) {
        let first = pool.pick(&tuple, None).unwrap();
        let second = pool.pick(&tuple, Some(first)).unwrap();
        assert_ne!(first, second);
        assert_eq!(pool.pick(&tuple, Some(second)), Some(first), "nobody moves who need not");
        seen.insert((first, second));
    }
    assert_eq!(seen.len(), 12, "{seen:?}");

    let alone = pool.with_states(&[Down, Up, Draining, Down, Up, Down]);
    for tuple in tuples(100) {
        let only = alone.pick(&tuple, None).unwrap();
        assert_eq!(alone.pick(&tuple, Some(only)), None);
        let other = ServerId(if only.0 == 1 { 0 } else { 3 });
        assert_eq!(alone.pick(&tuple, Some(other)), Some(only));
    }
}

#[test]
fn servers_down_are_tried_when_none_is_up_and_draining_ones_at_the_very_last() {
    // IPv4: 0 to 2; IPv6: 3 to 5.
    for (states, expected) in [
        ([Up, Down, Draining], [0].as_slice()),
        ([Down, Down, Draining], &[0, 1]),
        ([Draining, Draining, Down], &[2]),
        ([Draining, Draining, Draining], &[0, 1, 2]),
    ] {
        let pool = pool(servers(&[1, 1, 1])).with_states(&[states, [Up; 3]].concat());
        let four = tuples(1000).filter(|tuple| tuple.src.addr.is_v4());
        let picked: std::collections::BTreeSet<u16> =
            four.map(|tuple| pool.pick(&tuple, None).unwrap().0).collect();
        assert!(picked.iter().eq(expected), "{states:?}: {picked:?}");
    }
    let by_weight = pool(servers(&[0, 1])).with_states(&[Up, Down]);
    assert!(
        tuples(100).filter(|t| t.src.addr.is_v4()).all(|t| by_weight.pick(&t, None) == Some(ServerId(1)))
    );
    let all_draining = pool(servers(&[0]));
    assert!(tuples(100).all(|tuple| all_draining.pick(&tuple, None).is_some()));
}

#[test]
fn most_servers_each_have_a_share() {
    let pool = pool(servers(&[&[256; MAX_SERVERS / 2 - 1][..], &[1]].concat()));
    assert_eq!(pool.servers.len(), MAX_SERVERS);
    let shares = shares(&pool, 60_000);
    assert!(shares.iter().all(|share| *share < 0.003), "{shares:?}");
    assert!(shares.iter().filter(|share| **share > 0.001).count() >= MAX_SERVERS - 2, "{shares:?}");
}

#[test]
fn policy_with_other_states_shares_everything_else() {
    let spec = InterceptSpec::new("web").from_port(PortId(0)).to_any().tcp([443]);
    let pools = [PoolSpec::new("a").server("10.2.0.1:443".parse().unwrap()), {
        let spec = PoolSpec::new("b").server("10.2.0.1:443".parse().unwrap());
        spec.server("10.2.0.2:443".parse().unwrap())
    }];
    let builder = PolicyBuilder::new(7).intercept(spec).limits(Limits { half_open: 5, ..Limits::default() });
    let policy = pools.into_iter().fold(builder, PolicyBuilder::pool).build().unwrap();
    let other = policy.with_pools(&[vec![Up], vec![Down, Up]]);
    assert_eq!((other.epoch, other.limits), (7, policy.limits));
    assert!(Arc::ptr_eq(&policy.intercepts, &other.intercepts));
    let states = |policy: &Policy| {
        policy.pools().iter().flat_map(|p| p.servers.iter().map(|s| s.state)).collect::<Vec<_>>()
    };
    assert_eq!(states(&policy), [Up, Up, Up]);
    assert_eq!(states(&other), [Up, Down, Up]);
    for tuple in tuples(50).filter(|tuple| tuple.src.addr.is_v4()) {
        assert_eq!(other.pool(PoolId(1)).unwrap().pick(&tuple, None), Some(ServerId(1)));
    }
    assert_eq!(states(&other.with_pools::<Vec<ServerState>>(&[])), states(&other));
}
