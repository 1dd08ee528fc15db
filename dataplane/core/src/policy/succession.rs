//! One configuration after another: which numbers of intercepts, rules and pools still mean the same, and what those that
//! do not meant.

use std::sync::Arc;

use super::{Intercept, Policy};
use crate::ids::{InterceptId, PoolId, RuleId};

/// Configurations of before whose rules are remembered, and the most rules of all of them: long ago is forgotten.
const EARLIER: usize = 64;
const EARLIER_RULES: usize = 65_536;

/// What the numbers of an earlier configuration meant.
#[derive(Debug)]
pub(super) struct Earlier {
    /// The epochs in which they meant it.
    first: u32,
    last: u32,
    /// Where the rules of each intercept stand.
    rules: Vec<Vec<String>>,
    pools: Vec<String>,
}

impl Earlier {
    fn of(policy: &Policy) -> Self {
        let origins = |intercept: &Intercept| intercept.rules().iter().map(|r| r.origin.clone()).collect();
        Self {
            first: policy.numbered,
            last: policy.epoch,
            rules: policy.intercepts.iter().map(origins).collect(),
            pools: policy.pools.iter().map(|pool| pool.name.clone()).collect(),
        }
    }

    fn len(&self) -> usize {
        self.rules.iter().map(Vec::len).sum()
    }

    const fn has(&self, epoch: u32) -> bool {
        // Numbers of configurations go round.
        epoch.wrapping_sub(self.first) <= self.last.wrapping_sub(self.first)
    }
}

impl Policy {
    /// The same policy under the number of a later configuration that differs from `before` in the contents of lists only:
    /// its intercepts and rules are the same ones.
    pub fn succeeding(self, before: &Self) -> Self {
        let (numbered, earlier) = (before.numbered, before.earlier.clone());
        self.numbered_as(before.epoch.wrapping_add(1), numbered, earlier)
    }

    /// The same policy as the configuration after `before`, with intercepts, rules and pools of its own.
    pub fn replacing(self, before: &Self) -> Self {
        let mut room = EARLIER_RULES;
        let newest = Arc::new(Earlier::of(before));
        let all = std::iter::once(newest).chain(before.earlier.iter().cloned());
        let kept = all.take(EARLIER).take_while(|earlier| {
            let fits = earlier.len() <= room;
            room = room.saturating_sub(earlier.len());
            fits
        });
        let earlier = kept.collect();
        let epoch = before.epoch.wrapping_add(1);
        self.numbered_as(epoch, epoch, earlier)
    }

    /// The epoch of connections that a process before this one decided: none of its own configurations has this number.
    pub const BEFORE: u32 = 0;

    /// The same policy, and where rules stand that a process before this one decided connections by: those of the epoch
    /// [`Self::BEFORE`] and the intercept 0, in this order.
    #[must_use]
    pub fn remembering(self, rules: Vec<String>) -> Self {
        let (epoch, numbered) = (self.epoch, self.numbered);
        let before =
            Earlier { first: Self::BEFORE, last: Self::BEFORE, rules: vec![rules], pools: Vec::new() };
        let earlier = std::iter::once(Arc::new(before)).chain(self.earlier.iter().cloned()).collect();
        self.numbered_as(epoch, numbered, earlier)
    }

    fn numbered_as(mut self, epoch: u32, numbered: u32, earlier: Arc<[Arc<Earlier>]>) -> Self {
        self.bare = self.bare.map(|bare| {
            Arc::new(Self { epoch, numbered, earlier: earlier.clone(), ..Arc::unwrap_or_clone(bare) })
        });
        Self { epoch, numbered, earlier, ..self }
    }

    /// Whether a number of an intercept or a rule, given in `epoch`, means the same one here.
    pub const fn numbers_since(&self, epoch: u32) -> bool {
        // Numbers of configurations go round.
        epoch.wrapping_sub(self.numbered) <= self.epoch.wrapping_sub(self.numbered)
    }

    /// The first epoch whose intercepts, rules and pools have the numbers of this one.
    pub const fn numbered(&self) -> u32 {
        self.numbered
    }

    /// Where a rule stands (`file:line`) whose number was given in `epoch`. `None` also where that is too long ago.
    pub fn origin(&self, epoch: u32, intercept: InterceptId, rule: RuleId) -> Option<&str> {
        if self.numbers_since(epoch) {
            return Some(self.get(intercept)?.rule(rule)?.origin.as_str());
        }
        let earlier = self.earlier.iter().find(|earlier| earlier.has(epoch))?;
        Some(earlier.rules.get(usize::from(intercept.0))?.get(usize::from(rule.0))?.as_str())
    }

    /// The pool that a number given in `epoch` means, as it is numbered here: the one of the same name.
    pub fn pool_since(&self, epoch: u32, pool: PoolId) -> Option<PoolId> {
        if self.numbers_since(epoch) {
            return Some(pool);
        }
        let earlier = self.earlier.iter().find(|earlier| earlier.has(epoch))?;
        let name = earlier.pools.get(usize::from(pool.0))?;
        let place = self.pools.iter().position(|pool| pool.name == *name)?;
        Some(PoolId(u16::try_from(place).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Action, InterceptSpec, PolicyBuilder, PoolSpec, RuleSpec};

    fn policy(origins: &[&str], pools: &[&str]) -> Policy {
        let spec = origins.iter().fold(InterceptSpec::new("web").to_any().tcp([80]), |spec, origin| {
            spec.rule(RuleSpec { origin: (*origin).to_owned(), ..RuleSpec::new(Action::Allow) })
        });
        let builder = PolicyBuilder::new(1).intercept(spec);
        pools.iter().fold(builder, |b, name| b.pool(PoolSpec::new(name))).build().unwrap()
    }

    #[test]
    fn rules_of_earlier_configurations_are_found_by_the_epoch_of_their_numbers() {
        let first = policy(&["a:1", "a:2"], &["one", "two"]);
        let listed = policy(&["a:1", "a:2"], &["one", "two"]).succeeding(&first);
        let second = policy(&["b:1"], &["two", "three"]).replacing(&listed);
        let third = policy(&["c:1", "c:2"], &["two"]).replacing(&second);
        assert_eq!((listed.epoch, second.epoch, third.epoch), (2, 3, 4));
        let origin = |epoch, rule| third.origin(epoch, InterceptId(0), RuleId(rule));
        for (epoch, rule, wanted) in [
            (1, 1, Some("a:2")),
            (2, 0, Some("a:1")),
            (3, 0, Some("b:1")),
            (3, 1, None),
            (4, 1, Some("c:2")),
            (5, 0, None),
        ] {
            assert_eq!(origin(epoch, rule), wanted, "epoch {epoch}, rule {rule}");
        }
        assert_eq!(third.pool_since(2, PoolId(1)), Some(PoolId(0)));
        assert_eq!(third.pool_since(3, PoolId(1)), None, "its pool is gone");
        assert!(!third.numbers_since(3) && third.numbers_since(4));
    }

    #[test]
    fn rules_of_connections_from_before_are_found_through_reloads() {
        let first = policy(&["a:1"], &[]).remembering(vec!["old:7".to_owned(), "old:9".to_owned()]);
        let second = policy(&["b:1"], &[]).replacing(&first);
        for policy in [&first, &second] {
            assert_eq!(policy.origin(Policy::BEFORE, InterceptId(0), RuleId(1)), Some("old:9"));
            assert!(!policy.numbers_since(Policy::BEFORE));
        }
        assert_eq!(first.origin(1, InterceptId(0), RuleId(0)), Some("a:1"));
    }

    #[test]
    fn rules_of_long_ago_are_forgotten() {
        let mut now = policy(&["first"], &[]);
        for _ in 0..EARLIER + 5 {
            now = policy(&["later"], &[]).replacing(&now);
        }
        assert_eq!(now.earlier.len(), EARLIER);
        assert_eq!(now.origin(1, InterceptId(0), RuleId(0)), None);
        assert_eq!(now.origin(now.epoch - 1, InterceptId(0), RuleId(0)), Some("later"));
    }
}
