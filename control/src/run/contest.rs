//! Who wins when somebody keeps removing what weir puts back: a pure machine, asked before every repair.
//!
//! The first repairs are done at once: somebody reloaded a firewall, or typed a wrong command. When the same thing is missing
//! again and again, the pause before the next repair doubles up to a ceiling, and the thing counts as contested until it has
//! stayed for a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::host::{Culprit, Kind};

/// Repairs of one thing that are done at once.
const AT_ONCE: u32 = 3;
/// The first pause.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest.
const CEILING: Duration = Duration::from_secs(60);
/// The longest after an attempt that failed: nobody fights there, and what was in the way may be gone.
const FAILED_CEILING: Duration = Duration::from_secs(5);
/// How long a thing must stay before its history is forgotten, at least; else as long as the last pause.
const QUIET: Duration = Duration::from_secs(5);

/// One thing that was missing at least once.
#[derive(Clone, Debug)]
pub struct Item {
    pub kind: Kind,
    /// Repairs in a row.
    pub repairs: u32,
    /// When it was repaired last.
    last: Instant,
    /// It is missing now, and waits for its turn.
    pub is_missing: bool,
    /// Who removed it, as well as it is known.
    pub by: Option<Culprit>,
    /// Why the last attempt failed.
    pub failure: Option<String>,
}

impl Item {
    /// How long the next repair has to wait after the last.
    fn pause(&self) -> Duration {
        let ceiling = if self.failure.is_some() { FAILED_CEILING } else { CEILING };
        match self.repairs.checked_sub(AT_ONCE) {
            None => Duration::ZERO,
            Some(more) => FIRST_PAUSE.saturating_mul(1 << more.min(16)).min(ceiling),
        }
    }

    fn due(&self) -> Instant {
        self.last + self.pause()
    }

    /// Whether somebody keeps removing it, or it cannot be repaired.
    pub fn is_contested(&self) -> bool {
        self.repairs > AT_ONCE || self.failure.is_some()
    }

    /// How long until it is put back; none while it is there.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        self.is_missing.then(|| self.due().saturating_duration_since(now))
    }
}

/// Everything that was missing lately, by the command that puts it back.
#[derive(Clone, Debug, Default)]
pub struct Contests {
    items: BTreeMap<String, Item>,
}

impl Contests {
    /// Before a round of repairs: what is found missing is told by [`Self::may`] from now on.
    pub fn begin(&mut self) {
        self.items.values_mut().for_each(|item| item.is_missing = false);
    }

    /// `title` is missing: whether it may be repaired now.
    pub fn may(&mut self, title: &str, kind: Kind, now: Instant) -> bool {
        match self.items.get_mut(title) {
            None => true,
            Some(item) => {
                item.is_missing = true;
                item.kind = kind;
                item.due() <= now
            }
        }
    }

    /// `title` was repaired, or the attempt failed. Whether that made it contested, and it was not before.
    pub fn repaired(
        &mut self,
        title: &str,
        kind: Kind,
        by: Option<&Culprit>,
        failure: Option<String>,
        now: Instant,
    ) -> bool {
        let item = self.items.entry(title.to_owned()).or_insert_with(|| Item {
            kind,
            repairs: 0,
            last: now,
            is_missing: false,
            by: None,
            failure: None,
        });
        let was = item.is_contested();
        // What was in the way has gone: that was no fight.
        let gave_way = item.failure.is_some() && failure.is_none();
        item.repairs = if gave_way { 1 } else { item.repairs + 1 };
        item.last = now;
        item.is_missing = failure.is_some();
        item.failure = failure;
        // A short-lived program is not always caught alive: the best that was ever known counts.
        if let Some(by) = by
            && item.by.as_ref().is_none_or(|known| known.certainty() <= by.certainty())
        {
            item.by = Some(by.clone());
        }
        item.is_contested() && !was
    }

    /// After a round: forgets what has stayed for long enough; returns what of it was contested.
    pub fn settle(&mut self, now: Instant) -> Vec<String> {
        let over = |item: &Item| !item.is_missing && now >= item.last + QUIET.max(item.pause());
        let mut holds = Vec::new();
        self.items.retain(|title, item| {
            let stays = !over(item);
            if !stays && item.is_contested() {
                holds.push(title.clone());
            }
            stays
        });
        holds
    }

    /// When the next repair is due; none when nothing is missing.
    pub fn next(&self) -> Option<Instant> {
        self.items.values().filter(|item| item.is_missing).map(Item::due).min()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What is missing or contested.
    pub fn items(&self) -> impl Iterator<Item = (&str, &Item)> {
        self.items.iter().map(|(title, item)| (title.as_str(), item))
    }

    /// Whether something of this kind is missing and has to wait.
    pub fn waits(&self, kind: Kind) -> bool {
        self.items.values().any(|item| item.is_missing && item.kind == kind)
    }

    /// Whether somebody keeps removing something of this kind, be it there just now or not.
    pub fn contests(&self, kind: Kind) -> bool {
        self.items.values().any(|item| item.is_contested() && item.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "ip rule add";

    fn culprit(name: Option<&str>) -> Culprit {
        Culprit { pid: 7, name: name.map(str::to_owned), parent: None }
    }

    /// Somebody removes it the moment it is back, for `span`; the times of the repairs, since the start.
    fn fight(contests: &mut Contests, start: Instant, span: Duration) -> Vec<Duration> {
        let mut repairs = Vec::new();
        let mut now = start;
        while now < start + span {
            contests.begin();
            if contests.may(RULE, Kind::Rule, now) {
                contests.repaired(RULE, Kind::Rule, None, None, now);
                repairs.push(now - start);
            }
            assert!(contests.settle(now).is_empty());
            now += Duration::from_millis(10);
        }
        repairs
    }

    #[test]
    fn thing_removed_at_once_again_and_again_is_repaired_at_pauses_that_double_up_to_a_ceiling() {
        let (mut contests, start) = (Contests::default(), Instant::now());
        let repairs = fight(&mut contests, start, Duration::from_secs(400));
        let pauses: Vec<u64> = repairs.windows(2).map(|two| (two[1] - two[0]).as_millis() as u64).collect();
        assert_eq!(
            pauses,
            [
                10, 10, 250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000, 60_000,
                60_000
            ]
        );
    }

    #[test]
    fn thing_that_stays_is_forgotten_and_repaired_at_once_the_next_time() {
        let (mut contests, start) = (Contests::default(), Instant::now());
        let last = fight(&mut contests, start, Duration::from_secs(3)).pop().unwrap();
        contests.begin();
        assert!(contests.items().all(|(_, item)| item.is_contested()));
        assert_eq!(contests.settle(start + last + Duration::from_secs(4)), Vec::<String>::new());
        assert_eq!(contests.settle(start + last + Duration::from_secs(5)), [RULE]);
        assert!(contests.is_empty() && contests.may(RULE, Kind::Rule, start));
    }

    #[test]
    fn removal_now_and_then_is_never_contested() {
        let (mut contests, mut now) = (Contests::default(), Instant::now());
        for _ in 0..20 {
            contests.begin();
            assert!(contests.may(RULE, Kind::Rule, now));
            assert!(!contests.repaired(RULE, Kind::Rule, None, None, now));
            now += Duration::from_secs(6);
            contests.begin();
            assert!(contests.settle(now).is_empty() && contests.is_empty());
        }
    }

    #[test]
    fn thing_that_cannot_be_repaired_is_contested_at_once_and_tried_again() {
        let (mut contests, now) = (Contests::default(), Instant::now());
        assert!(contests.repaired(RULE, Kind::Rule, None, Some("no".into()), now));
        assert!(contests.waits(Kind::Rule) && !contests.waits(Kind::Route));
        assert_eq!(contests.next(), Some(now));
        assert!(!contests.repaired(RULE, Kind::Rule, None, Some("no".into()), now), "said once");
        contests.repaired(RULE, Kind::Rule, None, None, now);
        contests.begin();
        assert_eq!(contests.next(), None);
    }

    #[test]
    fn culprit_that_was_named_once_stays_named() {
        let (mut contests, now) = (Contests::default(), Instant::now());
        for name in [None, Some("NetworkManager"), None] {
            contests.repaired(RULE, Kind::Rule, Some(&culprit(name)), None, now);
        }
        let (_, item) = contests.items().next().unwrap();
        assert_eq!(item.by.as_ref().unwrap().to_string(), "NetworkManager (process 7)");
    }
}
