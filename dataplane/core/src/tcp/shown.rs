//! Which connections were shown a SYN cookie a short while ago: roughly, in little memory (a Bloom filter in two halves).
//!
//! A client whose first segments are lost sends one whose acknowledgment proves nothing: the cookie is bound to the number before
//! it. In the grace time that could as well be of a connection from before the start, which the kernel is to have; and there
//! it would be reset.

use crate::ids::Nanos;

/// Bits of one half: two for each connection, so that a thousand leave one in a thousand others in doubt.
const BITS: u64 = 1 << 16;

/// What was shown, for at least `life`, and for at most twice as long.
#[derive(Clone, Debug)]
pub struct Shown {
    life: Nanos,
    halves: [Vec<u64>; 2],
    /// When the first half was begun.
    since: Nanos,
    /// Until then it may have been shown to any: others answer, too.
    any_until: Nanos,
}

impl Shown {
    pub fn new(life: Nanos) -> Self {
        let half = vec![0; (BITS / u64::from(u64::BITS)) as usize];
        Self { life, halves: [half.clone(), half], since: Nanos(0), any_until: Nanos(0) }
    }

    /// A cookie was shown to the connection with this hash.
    pub fn add(&mut self, hash: u64, now: Nanos) {
        self.turn(now);
        let [first, _] = &mut self.halves;
        for (word, bit) in places(hash) {
            if let Some(word) = first.get_mut(word) {
                *word |= bit;
            }
        }
    }

    /// Until then any connection may have been shown one.
    pub fn expect_any(&mut self, until: Nanos) {
        self.any_until = self.any_until.max(until);
    }

    /// Whether the connection may have been shown one. A no is certain.
    pub fn may_have(&mut self, hash: u64, now: Nanos) -> bool {
        self.turn(now);
        let has = |half: &Vec<u64>| {
            places(hash).iter().all(|(at, bit)| half.get(*at).is_some_and(|word| word & bit != 0))
        };
        now < self.any_until || self.halves.iter().any(has)
    }

    fn turn(&mut self, now: Nanos) {
        let age = now.saturating_sub(self.since);
        if age < self.life {
            return;
        }
        let [first, second] = &mut self.halves;
        std::mem::swap(first, second);
        first.fill(0);
        if age.0 >= 2 * self.life.0 {
            second.fill(0);
        }
        self.since = now;
    }
}

/// The words and bits of a hash.
fn places(hash: u64) -> [(usize, u64); 2] {
    [hash, hash >> 32].map(|part| {
        let at = part % BITS;
        ((at / u64::from(u64::BITS)) as usize, 1 << (at % u64::from(u64::BITS)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Nanos = Nanos::from_secs(100);

    /// Numbers that look random.
    fn hash(i: u64) -> u64 {
        (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    #[test]
    fn what_was_shown_is_known_for_its_life_and_forgotten_after_two() {
        let mut shown = Shown::new(LIFE);
        shown.add(hash(1), Nanos::from_secs(1000));
        for (at, known) in [(1000, true), (1099, true), (1199, true), (1300, false), (5000, false)] {
            assert_eq!(shown.may_have(hash(1), Nanos::from_secs(at)), known, "{at}");
        }
        shown.add(hash(2), Nanos::from_secs(9000));
        assert!(!shown.may_have(hash(2), Nanos::from_secs(9200)), "nothing was asked for two lives");
    }

    #[test]
    fn few_that_were_not_shown_are_in_doubt() {
        let (mut shown, now) = (Shown::new(LIFE), Nanos::from_secs(1));
        (0..1000).for_each(|i| shown.add(hash(i), now));
        assert!((0..1000).all(|i| shown.may_have(hash(i), now)));
        let doubtful = (1000..101_000).filter(|i| shown.may_have(hash(*i), now)).count();
        assert!(doubtful < 300, "{doubtful} of 100,000");
    }

    #[test]
    fn any_may_have_been_shown_one_while_others_answer() {
        let mut shown = Shown::new(LIFE);
        shown.expect_any(Nanos::from_secs(10));
        assert!(shown.may_have(hash(1), Nanos::from_secs(9)));
        assert!(!shown.may_have(hash(1), Nanos::from_secs(10)));
    }
}
