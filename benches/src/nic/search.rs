//! The highest rate without loss (RFC 2544 section 26.1), by halving.

use crate::Failure;

/// The search ends when what is not known is this part of the sender's own limit.
const RESOLUTION: f64 = 0.01;
/// Below this part of it there is nothing worth finding.
const FLOOR: f64 = 0.001;

/// Asks `loses` at rates up to `limit` frames per second; the highest found that did not lose. 0: every one did.
///
/// # Errors
/// Of a trial.
pub fn throughput(limit: f64, mut loses: impl FnMut(f64) -> Result<bool, Failure>) -> Result<f64, Failure> {
    if !loses(limit)? {
        return Ok(limit);
    }
    let (mut good, mut bad) = (0.0, limit);
    while bad - good > limit * RESOLUTION && bad > limit * FLOOR {
        let rate = f64::midpoint(good, bad);
        if loses(rate)? {
            bad = rate;
        } else {
            good = rate;
        }
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_finds_the_rate_above_which_frames_are_lost() {
        for knee in [1.0, 1_234.0, 50_000.0, 99_900.0] {
            let mut trials = 0;
            let found = throughput(100_000.0, |rate| {
                trials += 1;
                Ok(rate > knee)
            });
            let found = found.unwrap();
            assert!(found <= knee && knee - found <= 1_000.0, "{knee}: {found}");
            assert!(trials <= 12, "{trials}");
        }
    }

    #[test]
    fn sender_that_loses_nothing_at_its_limit_needs_one_trial() {
        let mut trials = 0;
        let found = throughput(100.0, |_| {
            trials += 1;
            Ok(false)
        });
        assert_eq!((found.unwrap(), trials), (100.0, 1));
    }
}
