//! The clock of the dataplane: the one that the XDP program reads too.

use rustix::time::{ClockId, clock_gettime};

/// Now, in ns of CLOCK_MONOTONIC: the base of `bpf_ktime_get_ns`. Called once per breath of a worker.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let rest = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

#[cfg(test)]
mod tests {
    #[test]
    fn clock_read_twice_does_not_go_back() {
        let first = super::monotonic_ns();
        assert!(first > 0);
        assert!(super::monotonic_ns() >= first);
    }
}
