//! Cookies come back as they were made, expire, and nothing else is one.

use std::net::SocketAddr;

use super::*;
use crate::wire::addr::Endpoint;

const NOW: Nanos = Nanos::from_secs(1000);
const V4: (&str, &str) = ("10.0.0.1:5000", "192.0.2.1:443");
const V6: (&str, &str) = ("[2001:db8::1]:5000", "[fd00::1]:443");
const LINUX: Carried = Carried { mss: 1460, window_scale: Some(7), sack: true };

fn cookies() -> Cookies {
    Cookies::new(std::array::from_fn(|i| i as u8))
}

fn end(s: &str) -> Endpoint {
    s.parse::<SocketAddr>().unwrap().into()
}

fn tuple((src, dst): (&str, &str)) -> Tuple {
    Tuple { src: end(src), dst: end(dst) }
}

/// Reproducible numbers (xorshift64).
fn random(state: &mut u64) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 16) as u32
}

/// Every client of a sweep: its own port and ISN.
fn clients(ends: (&str, &str), count: u32) -> impl Iterator<Item = (Tuple, Seq)> {
    let first = tuple(ends);
    (0..count).map(move |i| {
        let mut tuple = first;
        tuple.src.port = (1024 + i % 60_000) as u16;
        (tuple, Seq(i.wrapping_mul(64_000)))
    })
}

#[test]
fn layout_equals_an_independent_implementation() {
    // Made by a SipHash in Python that passes the vectors of its authors, from the layout in the module's description.
    for (ends, isn, clock) in [(V4, 0xd8f4_64b9, 0x2826_a955), (V6, 0xd040_c09f, 0xffca_f346)] {
        let (cookies, tuple) = (cookies(), tuple(ends));
        assert_eq!(cookies.make(&tuple, Seq(0xdead_beef), &LINUX, NOW), Seq(isn), "{ends:?}");
        assert_eq!(cookies.clock(&tuple, NOW), clock, "{ends:?}");
    }
}

#[test]
fn every_combination_comes_back() {
    let shifts = (0..=14).map(Some).chain([None]);
    let all = shifts.flat_map(|shift| [(shift, false), (shift, true)]);
    for (window_scale, sack) in all {
        for mss in MSS_TABLE {
            for ends in [V4, V6] {
                let (cookies, tuple) = (cookies(), tuple(ends));
                let carried = Carried { mss, window_scale, sack };
                let isn = cookies.make(&tuple, Seq(u32::MAX), &carried, NOW);
                assert_eq!(cookies.check(&tuple, Seq(u32::MAX), isn, NOW), Some(carried));
            }
        }
    }
}

#[test]
fn mss_is_rounded_down_and_shift_is_bounded() {
    let table = [
        (0, 88),
        (87, 88),
        (535, 88),
        (536, 536),
        (1239, 1220),
        (1452, 1440),
        (1460, 1460),
        (9000, 8940),
        (65535, 8940),
    ];
    for (mss, expected) in table {
        let (cookies, tuple) = (cookies(), tuple(V4));
        let isn = cookies.make(&tuple, Seq(1), &Carried { mss, window_scale: Some(200), sack: false }, NOW);
        let found = cookies.check(&tuple, Seq(1), isn, NOW);
        assert_eq!(found, Some(Carried { mss: expected, window_scale: Some(14), sack: false }), "{mss}");
    }
}

#[test]
fn cookie_is_valid_in_its_own_period_and_the_next() {
    let cookies = cookies();
    for ends in [V4, V6] {
        for period in [0, 1, 15, 1 << 20] {
            let start = period * PERIOD.0;
            for made in [start, start + PERIOD.0 / 2, start + PERIOD.0 - 1] {
                let tuple = tuple(ends);
                let isn = cookies.make(&tuple, Seq(9), &LINUX, Nanos(made));
                let valid = |at| cookies.check(&tuple, Seq(9), isn, Nanos(at)).is_some();
                assert!(valid(made) && valid(start + 2 * PERIOD.0 - 1), "{period}");
                assert!(!valid(start + 2 * PERIOD.0) && !valid(start + 9 * PERIOD.0), "{period}");
                assert!(start == 0 || !valid(start - 1), "{period}");
            }
        }
    }
}

#[test]
fn flipped_bits_are_refused() {
    let cookies = cookies();
    for ends in [V4, V6] {
        for (tuple, client) in clients(ends, 100) {
            let isn = cookies.make(&tuple, client, &LINUX, NOW);
            let refused = |tuple: &Tuple, client, isn| cookies.check(tuple, client, isn, NOW).is_none();
            assert!(!refused(&tuple, client, isn));
            assert!(refused(&tuple.reversed(), client, isn));
            for bit in 0..32 {
                assert!(refused(&tuple, client, Seq(isn.0 ^ 1 << bit)), "ISN, bit {bit}");
                assert!(refused(&tuple, Seq(client.0 ^ 1 << bit), isn), "client's ISN, bit {bit}");
            }
            for bit in 0..144_usize {
                let flip = |mut end: Endpoint| {
                    match bit.checked_sub(128) {
                        None => end.addr.0[bit / 8] ^= 1 << (bit % 8),
                        Some(bit) => end.port ^= 1 << bit,
                    }
                    end
                };
                assert!(refused(&Tuple { src: flip(tuple.src), ..tuple }, client, isn), "source, bit {bit}");
                assert!(refused(&Tuple { dst: flip(tuple.dst), ..tuple }, client, isn), "dest., bit {bit}");
            }
        }
    }
}

#[test]
fn other_secret_is_refused() {
    let isn = cookies().make(&tuple(V4), Seq(1), &LINUX, NOW);
    for octet in 0..16 {
        let other = Cookies::new(std::array::from_fn(|i| i as u8 ^ u8::from(i == octet)));
        assert_eq!(other.check(&tuple(V4), Seq(1), isn, NOW), None, "octet {octet}");
    }
}

#[test]
fn forging_succeeds_once_in_two_to_the_23() {
    let (cookies, mut state, mut forged) = (cookies(), 0x9e37_79b9_7f4a_7c15, 0);
    // 2^22 guesses find 0.5 on average; five or more would be one run in 5,800.
    for (tuple, client) in clients(V4, 1 << 22) {
        forged += u32::from(cookies.check(&tuple, client, Seq(random(&mut state)), NOW).is_some());
    }
    assert!(forged < 5, "{forged}");
}

#[test]
fn one_mac_of_all_is_right_per_period() {
    let (cookies, tuple) = (cookies(), tuple(V6));
    let isn = cookies.make(&tuple, Seq(1), &LINUX, NOW);
    // One 256th of the space, around the right one, and the same in the next period.
    for now in [NOW, NOW.saturating_add(PERIOD)] {
        let guesses = (0..1 << 16).map(|low| Seq(isn.0 & 0xffff_0000 | low));
        let right: Vec<_> =
            guesses.filter(|guess| cookies.check(&tuple, Seq(1), *guess, now).is_some()).collect();
        assert_eq!(right, [isn]);
    }
}

#[test]
fn bits_of_cookies_and_clocks_are_even() {
    const COUNT: u32 = 1 << 16;
    let cookies = cookies();
    for ends in [V4, V6] {
        let (mut ones, mut leading) = ([0_u32; 64], [0_u32; 256]);
        for (tuple, client) in clients(ends, COUNT) {
            // A clock's offset depends on the tuple alone; the ports of a sweep come again.
            let mut other = tuple;
            other.dst.addr.0[13] = (client.0 >> 16) as u8;
            let isn = cookies.make(&tuple, client, &LINUX, NOW).0;
            let both = u64::from(isn) << 32 | u64::from(cookies.clock(&other, NOW));
            for (bit, ones) in ones.iter_mut().enumerate() {
                *ones += (both >> bit & 1) as u32;
            }
            leading[(isn >> 24) as usize] += 1;
        }
        // Six standard deviations of a fair coin are 768.
        assert!(ones.iter().all(|n| n.abs_diff(COUNT / 2) < 768), "{ones:?}");
        // Chi-squared with 255 degrees of freedom: mean 255, standard deviation 22.6.
        let mean = f64::from(COUNT) / 256.0;
        let chi: f64 = leading.iter().map(|n| (f64::from(*n) - mean).powi(2) / mean).sum();
        assert!((120.0..390.0).contains(&chi), "{chi}");
    }
}

#[test]
fn one_flipped_input_bit_changes_half_of_the_cookie() {
    let (cookies, mut changed, mut count) = (cookies(), 0, 0);
    for (tuple, client) in clients(V4, 500) {
        let isn = cookies.make(&tuple, client, &LINUX, NOW);
        for bit in 0..32 {
            let other = cookies.make(&tuple, Seq(client.0 ^ 1 << bit), &LINUX, NOW);
            changed += (isn.0 ^ other.0).count_ones();
            count += 1;
        }
    }
    let mean = f64::from(changed) / f64::from(count);
    assert!((15.9..16.1).contains(&mean), "{mean}");
}

#[test]
fn clock_counts_milliseconds_and_wraps() {
    let (cookies, tuple) = (cookies(), tuple(V6));
    let at = |ms| cookies.clock(&tuple, Nanos::from_millis(ms));
    assert_eq!(at(5000).wrapping_sub(at(0)), 5000);
    assert_eq!(at((1 << 32) + 7).wrapping_sub(at(0)), 7);
    assert_eq!(cookies.clock(&tuple, Nanos(999_999)), at(0));
    assert_ne!(at(0), cookies.clock(&tuple.reversed(), Nanos(0)));
}
