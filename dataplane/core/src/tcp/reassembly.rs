//! Which octets of a stream's first stretch have come: ranges, bounded in number (RFC 9293 section 3.10.7.4).

/// The most separate ranges; a segment that would make one more is refused and comes again.
pub const MAX_RANGES: usize = 16;

/// Sorted, separate ranges `[start, end)` of octets that have come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ranges {
    ranges: [(u32, u32); MAX_RANGES],
    len: usize,
}

/// One range too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyRanges;

impl Ranges {
    fn used(&self) -> &[(u32, u32)] {
        self.ranges.get(..self.len).unwrap_or_default()
    }

    /// Octets from 0 on without a gap.
    pub fn contiguous(&self) -> u32 {
        match self.used().first() {
            Some(&(0, end)) => end,
            _ => 0,
        }
    }

    /// Whether the octet has come.
    pub fn contains(&self, at: u32) -> bool {
        self.used().iter().any(|&(s, e)| s <= at && at < e)
    }

    /// The parts of `[start, end)` that have come already.
    pub fn overlap(&self, start: u32, end: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.used().iter().map(move |&(s, e)| (s.max(start), e.min(end))).filter(|(s, e)| s < e)
    }

    /// Whether all of `[start, end)` has come.
    pub fn covers(&self, start: u32, end: u32) -> bool {
        self.used().iter().any(|&(s, e)| s <= start && end <= e)
    }

    /// Adds `[start, end)`, joining what touches. With one range too many nothing is changed.
    pub fn add(&mut self, start: u32, end: u32) -> Result<(), TooManyRanges> {
        if start >= end {
            return Ok(());
        }
        let (mut low, mut high) = (start, end);
        let mut kept = Self::default();
        let mut placed = false;
        for &(s, e) in self.used() {
            if e < low {
                kept.push((s, e))?;
            } else if s > high {
                if !placed {
                    kept.push((low, high))?;
                    placed = true;
                }
                kept.push((s, e))?;
            } else {
                low = low.min(s);
                high = high.max(e);
            }
        }
        if !placed {
            kept.push((low, high))?;
        }
        *self = kept;
        Ok(())
    }

    fn push(&mut self, range: (u32, u32)) -> Result<(), TooManyRanges> {
        *self.ranges.get_mut(self.len).ok_or(TooManyRanges)? = range;
        self.len += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_in_any_order_equals_a_bitmap() {
        let mut seed = 42_u64;
        let mut random = move |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        for _ in 0..2_000 {
            let mut ranges = Ranges::default();
            let mut bitmap = [false; 64];
            for _ in 0..20 {
                let start = random(60) as u32;
                let end = start + random(6) as u32;
                if ranges.add(start, end).is_ok() {
                    bitmap[start as usize..end.min(64) as usize].fill(true);
                }
                let contiguous = bitmap.iter().take_while(|b| **b).count() as u32;
                assert_eq!(ranges.contiguous(), contiguous);
                for (at, set) in bitmap.iter().enumerate() {
                    assert_eq!(ranges.contains(at as u32), *set);
                }
            }
        }
    }

    #[test]
    fn add_at_the_bound_is_refused_and_changes_nothing() {
        let mut ranges = Ranges::default();
        for n in 0..MAX_RANGES as u32 {
            ranges.add(n * 10 + 1, n * 10 + 5).unwrap();
        }
        assert_eq!(ranges.add(1000, 1001), Err(TooManyRanges));
        assert!(!ranges.contains(1000));
        ranges.add(0, 1).unwrap();
        assert_eq!(ranges.contiguous(), 5);
    }
}
