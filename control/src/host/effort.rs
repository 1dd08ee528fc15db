//! What a piece of work has cost, as whoever paces himself by it wants to know it.

use std::time::Duration;

use weir_sys::thread;

/// Measures CPU time of the calling thread, and of children that were waited for. The kernel makes a dump in the call that reads it,
/// so that a full table is in, and nft is such a child; any other wait is not: who was stopped in the middle of a round for a minute must not rest for four afterwards.
#[derive(Debug)]
pub struct Effort {
    began: Duration,
}

impl Effort {
    pub fn begin() -> Self {
        Self { began: so_far() }
    }

    /// Since [`Self::begin`], which this thread must have called.
    pub fn spent(&self) -> Duration {
        so_far().saturating_sub(self.began)
    }
}

fn so_far() -> Duration {
    Duration::from_nanos(thread::cpu_time(thread::current()).unwrap_or(0)) + thread::children_time()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_is_counted_and_a_wait_is_not() {
        let wait = Duration::from_millis(300);
        let effort = Effort::begin();
        std::thread::sleep(wait);
        assert!(effort.spent() < wait / 2, "{effort:?}");
        let end = Instant::now() + Duration::from_secs(30);
        while effort.spent() < wait / 2 {
            assert!(Instant::now() < end, "work is not counted");
        }
    }
}
