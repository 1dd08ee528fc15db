use ServerState::{Down, Draining, Up};

use super::*;

const POOL: PoolId = PoolId(0);
const A: ServerId = ServerId(0);
const B: ServerId = ServerId(1);

fn addresses() -> Vec<SocketAddr> {
    ["10.2.0.10:443", "[fd00:2::10]:443"].map(|addr| addr.parse().unwrap()).to_vec()
}

fn checked() -> Health {
    Health::new(&[pool("intranet", &addresses(), Some(check(Probe::Tcp)))], Nanos(0))
}

fn unchecked() -> Health {
    Health::new(&[pool("intranet", &addresses(), None)], Nanos(0))
}

fn s(seconds: u64) -> Nanos {
    Nanos::from_secs(seconds)
}

fn good() -> Result<String, String> {
    Ok("takes connections".to_owned())
}

fn bad() -> Result<String, String> {
    Err("no connection: refused".to_owned())
}

fn states(health: &Health) -> Vec<ServerState> {
    health.states().concat()
}

/// Results of probes one second apart, and whether each changed the state.
fn probe_all(health: &mut Health, from: u64, results: &[(Result<String, String>, bool)]) {
    for (at, (result, changes)) in (from..).zip(results) {
        assert_eq!(health.probed(s(at), POOL, A, result), *changes, "at {at} s");
    }
}

#[test]
fn server_falls_after_failures_in_a_row_and_rises_after_successes_in_a_row() {
    let mut health = checked();
    assert_eq!(states(&health), [Up, Up]);
    let (good, bad) = (good(), bad());
    probe_all(
        &mut health,
        1,
        &[
            (good.clone(), false),
            (bad.clone(), false),
            (bad.clone(), false),
            (good.clone(), false),
            (bad.clone(), false),
            (bad.clone(), false),
            (bad.clone(), true),
        ],
    );
    assert_eq!(states(&health), [Down, Up]);
    let more =
        [(bad.clone(), false), (good.clone(), false), (bad, false), (good.clone(), false), (good, true)];
    probe_all(&mut health, 8, &more);
    assert_eq!(states(&health), [Up, Up]);
}

#[test]
fn failed_connections_count_with_failed_probes() {
    let mut health = checked();
    assert!(!health.passive_failure(s(1), POOL, B));
    assert!(!health.probed(s(2), POOL, B, &bad()));
    assert!(health.passive_failure(s(2), POOL, B));
    assert_eq!(states(&health), [Up, Down]);
    // Time alone does not bring it back where there is a check.
    assert!(!health.tick(s(1000)));
    assert!(!health.probed(s(1001), POOL, B, &good()));
    assert!(health.probed(s(1002), POOL, B, &good()));
}

#[test]
fn probe_that_succeeds_forgives_failed_connections() {
    let mut health = checked();
    for at in 1..20 {
        assert!(!health.passive_failure(s(at), POOL, A));
        assert!(!health.passive_failure(s(at), POOL, A));
        assert!(!health.probed(s(at), POOL, A, &good()));
    }
}

#[test]
fn failing_probes_far_apart_are_in_a_row() {
    let slow = Check { interval: Duration::from_secs(3600), ..check(Probe::Tcp) };
    let mut health = Health::new(&[pool("p", &addresses(), Some(slow))], Nanos(0));
    let [first, second, third] = [1, 2, 3].map(|hour| health.probed(s(hour * 3900), POOL, A, &bad()));
    assert_eq!([first, second, third], [false, false, true]);
}

#[test]
fn server_without_a_check_is_down_for_ten_seconds_and_then_has_one_more_try() {
    let mut health = unchecked();
    assert!(!health.passive_failure(s(100), POOL, A));
    assert!(!health.passive_failure(s(101), POOL, A));
    assert!(health.passive_failure(s(102), POOL, A));
    assert_eq!(states(&health), [Down, Up]);
    assert!(!health.tick(Nanos(s(112).0 - 1)));
    assert!(health.tick(s(112)));
    assert_eq!(states(&health), [Up, Up]);
    // One more failure is enough now.
    assert!(health.passive_failure(s(113), POOL, A));
    assert!(health.tick(s(123)));
    // Once it has been well for as long, three are needed again.
    assert!(!health.passive_failure(s(134), POOL, A));
    assert!(!health.passive_failure(s(134), POOL, A));
    assert!(health.passive_failure(s(134), POOL, A));
}

#[test]
fn rare_failures_of_connections_put_nobody_down() {
    let mut health = unchecked();
    assert!((1..100).all(|n| !health.passive_failure(s(n * 11), POOL, A)));
    assert_eq!(states(&health), [Up, Up]);
}

#[test]
fn probe_results_without_a_check_and_unknown_servers_change_nothing() {
    let mut health = unchecked();
    for _ in 0..10 {
        assert!(!health.probed(s(1), POOL, A, &bad()));
        assert!(!health.passive_failure(s(1), PoolId(1), A));
        assert!(!health.passive_failure(s(1), POOL, ServerId(2)));
        assert!(!health.drain(s(1), POOL, ServerId(2), true));
    }
    assert_eq!(states(&health), [Up, Up]);
}

#[test]
fn drained_server_stays_so_whatever_probes_say_until_it_is_undone() {
    let mut health = checked();
    assert!(health.drain(s(1), POOL, A, true));
    assert!(!health.drain(s(2), POOL, A, true));
    assert_eq!(states(&health), [Draining, Up]);
    let bad = bad();
    probe_all(&mut health, 3, &[(bad.clone(), false), (bad.clone(), false), (bad, false)]);
    assert!(health.drain(s(9), POOL, A, false), "it is down by now");
    assert_eq!(states(&health), [Down, Up]);
    probe_all(&mut health, 10, &[(good(), false), (good(), true)]);
}

#[test]
fn server_of_weight_nought_is_draining() {
    let mut one = pool("p", &addresses(), None);
    one.spec.servers[1].weight = 0;
    let mut health = Health::new(&[one], Nanos(0));
    assert_eq!(states(&health), [Up, Draining]);
    assert!((0..5).all(|_| !health.passive_failure(s(1), POOL, B)));
    assert_eq!(health.views(s(1))[0].servers[1].why, "its weight is 0");
}

#[test]
fn view_says_the_state_why_and_since() {
    let mut health = checked();
    let view = |health: &Health, now| {
        let server = health.views(s(now))[0].servers[0].clone();
        (server.state, server.why, server.since_s)
    };
    assert_eq!(view(&health, 5), ("up", "not checked yet".to_owned(), 5));
    health.probed(s(6), POOL, A, &good());
    assert_eq!(view(&health, 7), ("up", "takes connections".to_owned(), 7));
    for at in 8..=10 {
        health.probed(s(at), POOL, A, &bad());
    }
    assert_eq!(view(&health, 15), ("down", "no connection: refused".to_owned(), 5));
    health.drain(s(16), POOL, A, true);
    assert_eq!(view(&health, 16), ("draining", "drained by command".to_owned(), 0));
    let views = unchecked().views(s(3));
    assert_eq!((views[0].check, views[0].servers[0].why.as_str()), (None, "no check, and no failure"));
    assert!(views[0].has_server_up());
}

#[test]
fn server_is_found_by_names_or_what_there_is_is_told() {
    let health = checked();
    assert_eq!(health.find("intranet", addresses()[1]), Ok((POOL, B)));
    assert_eq!(health.find("internet", addresses()[1]), Err(vec!["intranet".to_owned()]));
    let there = addresses().iter().map(SocketAddr::to_string).collect();
    assert_eq!(health.find("intranet", "10.2.0.10:80".parse().unwrap()), Err(there));
}

#[test]
fn board_drains_and_tells_who_waits() {
    let board = Board::new(&[pool("intranet", &addresses(), None)], 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = board.drain("internet", addresses()[0], true).unwrap_err();
    assert_eq!(error.to_string(), "no pool is named `internet`; there are: intranet");
    let error = board.drain("intranet", "10.2.0.10:80".parse().unwrap(), true).unwrap_err();
    let sentence = "pool `intranet` has no server 10.2.0.10:80; it has: 10.2.0.10:443, [fd00:2::10]:443";
    assert_eq!(error.to_string(), sentence);
    let waits = |board: &Board| {
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_millis(20), board.changed()).await.is_err()
        })
    };
    assert!(waits(&board), "nothing has changed");
    let view = board.drain("intranet", addresses()[0], true).unwrap();
    assert_eq!(view.servers[0].state, "draining");
    assert!(!waits(&board));
    assert_eq!(board.states(), [[Draining, Up]]);
    board.drain("intranet", addresses()[0], true).unwrap();
    assert!(waits(&board), "it was draining before");
}
