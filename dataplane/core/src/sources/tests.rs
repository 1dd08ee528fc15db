use std::sync::atomic::AtomicU32;

use super::*;

fn addr(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn flows(most: u32) -> SourceLimits {
    SourceLimits { flows: Some(most), rate: None }
}

fn rate(per_second: u32) -> SourceLimits {
    SourceLimits { flows: None, rate: Some(per_second) }
}

#[test]
fn source_at_its_flows_is_refused_until_one_leaves() {
    for source in [addr("192.0.2.7"), addr("2001:db8::7")] {
        let sources = Sources::new(64, 1);
        for _ in 0..3 {
            assert_eq!(sources.admit(Nanos(0), &source, &flows(3)), Ok(()));
        }
        assert_eq!(sources.admit(Nanos(0), &source, &flows(3)), Err(Over::Flows));
        assert_eq!(sources.flows(&source), 3);
        sources.leave(&source);
        assert_eq!(sources.admit(Nanos(0), &source, &flows(3)), Ok(()));
        assert_eq!(sources.admit(Nanos(0), &source, &flows(3)), Err(Over::Flows));
    }
}

#[test]
fn addresses_of_one_64_are_one_source_and_ipv4_addresses_are_each_their_own() {
    let sources = Sources::new(64, 1);
    assert_eq!(sources.admit(Nanos(0), &addr("2001:db8:1:2::1"), &flows(1)), Ok(()));
    assert_eq!(sources.admit(Nanos(0), &addr("2001:db8:1:2:ffff::1"), &flows(1)), Err(Over::Flows));
    assert_eq!(sources.admit(Nanos(0), &addr("2001:db8:1:3::1"), &flows(1)), Ok(()));
    assert_eq!(sources.admit(Nanos(0), &addr("192.0.2.1"), &flows(1)), Ok(()));
    assert_eq!(sources.admit(Nanos(0), &addr("192.0.2.2"), &flows(1)), Ok(()));
}

#[test]
fn rate_grants_a_second_at_once_and_then_one_for_each_price() {
    let source = addr("192.0.2.7");
    let sources = Sources::new(64, 1);
    let start = Nanos::from_secs(100);
    for _ in 0..10 {
        assert_eq!(sources.admit(start, &source, &rate(10)), Ok(()));
    }
    assert_eq!(sources.admit(start, &source, &rate(10)), Err(Over::Rate));
    let just_before = start.saturating_add(Nanos(99_999_999));
    assert_eq!(sources.admit(just_before, &source, &rate(10)), Err(Over::Rate));
    let a_tenth_later = start.saturating_add(Nanos::from_millis(100));
    assert_eq!(sources.admit(a_tenth_later, &source, &rate(10)), Ok(()));
    assert_eq!(sources.admit(a_tenth_later, &source, &rate(10)), Err(Over::Rate));
}

#[test]
fn rate_over_a_long_time_is_the_rate() {
    let source = addr("2001:db8::7");
    let sources = Sources::new(64, 1);
    let tries = (0..10_000).map(Nanos::from_millis);
    let admitted = tries.filter(|now| sources.admit(*now, &source, &rate(50)).is_ok()).count();
    assert!((540..=551).contains(&admitted), "{admitted}");
}

#[test]
fn refused_flow_costs_nothing() {
    let source = addr("192.0.2.7");
    let both = SourceLimits { flows: Some(1), rate: Some(2) };
    let sources = Sources::new(64, 1);
    assert_eq!(sources.admit(Nanos(0), &source, &both), Ok(()));
    for _ in 0..5 {
        assert_eq!(sources.admit(Nanos(0), &source, &both), Err(Over::Flows));
    }
    sources.leave(&source);
    assert_eq!(sources.admit(Nanos(0), &source, &both), Ok(()));
    sources.leave(&source);
    assert_eq!(sources.admit(Nanos(0), &source, &both), Err(Over::Rate));
    assert_eq!(sources.flows(&source), 0);
}

#[test]
fn bounds_of_nought_refuse_and_leave_no_trace() {
    let sources = Sources::new(1, 1);
    for i in 0..100 {
        let source = Addr::v4([10, 0, 0, i]);
        assert_eq!(sources.admit(Nanos(0), &source, &flows(0)), Err(Over::Flows));
        assert_eq!(sources.admit(Nanos(0), &source, &rate(0)), Err(Over::Rate));
    }
    assert_eq!(sources.untracked(), 0);
}

#[test]
fn full_table_lets_in_uncounted_and_never_grows() {
    let sources = Sources::new(WAYS, 1);
    for i in 0..WAYS as u8 {
        assert_eq!(sources.admit(Nanos(0), &Addr::v4([10, 0, 0, i]), &flows(1)), Ok(()));
    }
    let late = Addr::v4([10, 0, 1, 0]);
    for n in 1..=5 {
        assert_eq!(sources.admit(Nanos(0), &late, &flows(1)), Ok(()));
        assert_eq!(sources.untracked(), n);
    }
    // Those with slots keep their bounds, and an uncounted flow that ends changes nothing.
    sources.leave(&late);
    assert_eq!(sources.admit(Nanos(0), &Addr::v4([10, 0, 0, 3]), &flows(1)), Err(Over::Flows));
    sources.leave(&Addr::v4([10, 0, 0, 3]));
    assert_eq!(sources.admit(Nanos(0), &late, &flows(1)), Ok(()));
    assert_eq!(sources.admit(Nanos(0), &late, &flows(1)), Err(Over::Flows));
    assert_eq!(sources.sets.len(), 1);
}

#[test]
fn slot_of_a_source_that_left_is_kept_until_its_rate_is_paid() {
    let sources = Sources::new(WAYS, 1);
    for i in 0..WAYS as u8 {
        let source = Addr::v4([10, 0, 0, i]);
        assert_eq!(sources.admit(Nanos(0), &source, &rate(1)), Ok(()));
        sources.leave(&source);
    }
    let late = Addr::v4([10, 0, 1, 0]);
    assert_eq!(sources.admit(Nanos(1), &late, &rate(1)), Ok(()));
    assert_eq!(sources.untracked(), 1, "all slots still pay");
    assert_eq!(sources.admit(BURST, &late, &rate(1)), Ok(()));
    assert_eq!(sources.untracked(), 1);
    assert_eq!(sources.admit(BURST, &late, &rate(1)), Err(Over::Rate));
}

#[test]
fn no_bounds_count_nothing() {
    let sources = Sources::new(1, 1);
    for _ in 0..100 {
        assert_eq!(sources.admit(Nanos(0), &addr("192.0.2.7"), &SourceLimits::default()), Ok(()));
    }
    assert_eq!(sources.flows(&addr("192.0.2.7")), 0);
}

#[test]
fn threads_that_share_sources_lose_no_slot() {
    // Few slots, many sources: they are taken and given back all the time.
    let (sources, limits) = (Sources::new(2 * WAYS, 7), flows(3));
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (sources, limits) = (&sources, &limits);
            scope.spawn(move || {
                let mut mine = Vec::new();
                for step in 0..200_000_u64 {
                    let of = (step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59) as u8 % 24;
                    if (step ^ thread) % 3 > 0 {
                        if sources.admit(Nanos(0), &Addr::v4([10, 0, 0, of]), limits).is_ok() {
                            mine.push(of);
                        }
                    } else if let Some(of) = mine.pop() {
                        sources.leave(&Addr::v4([10, 0, 0, of]));
                    }
                }
                for of in mine {
                    sources.leave(&Addr::v4([10, 0, 0, of]));
                }
            });
        }
    });
    let left: u32 = sources.sets.iter().flatten().map(|slot| slot.state().flows).sum();
    assert_eq!(left, 0, "every slot is free again");
}

#[test]
fn bound_holds_for_all_threads_together() {
    let (sources, limits) = (Sources::new(64, 7), SourceLimits { flows: Some(100), rate: Some(1000) });
    let admitted = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let tries =
                    (0..1000).filter(|_| sources.admit(Nanos(0), &addr("2001:db8::7"), &limits).is_ok());
                admitted.fetch_add(tries.count() as u32, SeqCst);
            });
        }
    });
    assert_eq!((admitted.into_inner(), sources.flows(&addr("2001:db8::7"))), (100, 100));
}
