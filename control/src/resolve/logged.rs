//! How many lines the log gets.

use std::time::{Duration, Instant};

/// Lines of a second.
const LINES: u32 = 10;

/// Counts the lines of a second, and those that were left out.
#[derive(Debug, Default)]
pub struct Logged {
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Logged {
    /// Whether a line may be written now, and how many were left out since the last one.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        let is_new = self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1));
        if is_new {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines == LINES {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_over_the_limit_are_counted_and_told_with_the_next() {
        let (mut logged, start) = (Logged::default(), Instant::now());
        for _ in 0..LINES {
            assert_eq!(logged.admit(start), Some(0));
        }
        for _ in 0..25 {
            assert_eq!(logged.admit(start + Duration::from_millis(999)), None);
        }
        assert_eq!(logged.admit(start + Duration::from_secs(1)), Some(25));
        assert_eq!(logged.admit(start + Duration::from_secs(1)), Some(0));
    }
}
