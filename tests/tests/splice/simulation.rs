//! Whole connections by seed: see `weir_tests::soak`.

use weir_tests::soak::{End, run};

/// Connections of a test run; `make soak` plays a million.
const SEEDS: u64 = 2000;

#[test]
fn connections_of_every_kind_arrive_whole_on_bad_wires() {
    let mut ends = [0_u64; End::COUNT];
    let mut wrong = Vec::new();
    for seed in 1..=SEEDS {
        match run(seed) {
            Ok(end) => ends[end as usize] += 1,
            Err(why) => wrong.push(why),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} failed; `make soak SEED=n` plays one again:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let of = |end: End| ends[end as usize];
    assert!(of(End::NoServer) + of(End::Silent) + of(End::Stack) <= SEEDS / 100, "{ends:?}");
}
