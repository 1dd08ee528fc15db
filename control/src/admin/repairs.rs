//! What weir had to put back: counts by kind, and what somebody keeps removing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::state::Count;
use crate::host::Kind;

/// Something that is missing, or that somebody keeps removing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contested {
    /// The command that puts it back.
    pub what: String,
    pub kind: Kind,
    /// Repairs in a row.
    pub repairs: u32,
    /// It was removed again too often, or cannot be put back.
    pub is_contested: bool,
    /// Who removes it, as far as it is known.
    pub by: Option<String>,
    /// Milliseconds until it is put back, while it is missing.
    pub retry_ms: Option<u64>,
    /// Why it could not be put back.
    pub failure: Option<String>,
}

impl Contested {
    /// A sentence for the operator.
    fn sentence(&self) -> String {
        let Self { what, repairs, .. } = self;
        if let Some(failure) = &self.failure {
            return format!("`{what}` cannot be put back: {failure}");
        }
        let by = self.by.as_deref().unwrap_or("somebody");
        let now = match self.retry_ms {
            Some(wait) => format!("it is missing, and put back in {:.1} s", wait as f64 / 1000.0),
            None => "it is there now".to_owned(),
        };
        format!(
            "`{what}` was removed {repairs} times by {by}: {now}; stop that program from removing what weir needs"
        )
    }
}

/// Written by the repairing part, read by whoever asks.
#[derive(Debug, Default)]
pub struct Repairs {
    counts: [AtomicU64; Kind::ALL.len()],
    rounds: AtomicU64,
    contested: Mutex<Vec<Contested>>,
}

impl Repairs {
    /// One repair.
    pub fn count(&self, kind: Kind) {
        if let Some(count) = self.counts.get(kind as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Everything was compared once.
    pub fn count_round(&self) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }

    /// How often everything was compared since the start.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// What is missing or contested now.
    pub fn set(&self, contested: Vec<Contested>) {
        if let Ok(mut now) = self.contested.lock() {
            *now = contested;
        }
    }

    /// Repairs since the start, by kind.
    pub fn counts(&self) -> Vec<Count> {
        let count = |(kind, count): (Kind, &AtomicU64)| Count {
            name: kind.name(),
            count: count.load(Ordering::Relaxed),
            meaning: kind.sentence(),
        };
        Kind::ALL.into_iter().zip(&self.counts).map(count).collect()
    }

    pub fn contested(&self) -> Vec<Contested> {
        self.contested.lock().map(|contested| contested.clone()).unwrap_or_default()
    }

    /// What the operator must see to.
    pub fn unhealthy(&self) -> impl Iterator<Item = String> + use<> {
        let contested = self.contested().into_iter().filter(|contested| contested.is_contested);
        contested.map(|contested| contested.sentence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contested() -> Contested {
        Contested {
            what: "ip rule add".into(),
            kind: Kind::Rule,
            repairs: 5,
            is_contested: true,
            by: Some("NetworkManager (process 7)".into()),
            retry_ms: Some(500),
            failure: None,
        }
    }

    #[test]
    fn contested_thing_is_told_with_who_removes_it_and_what_comes_next() {
        let repairs = Repairs::default();
        let calm = Contested { is_contested: false, ..contested() };
        repairs.set(vec![contested(), calm]);
        assert_eq!(
            repairs.unhealthy().collect::<Vec<_>>(),
            [
                "`ip rule add` was removed 5 times by NetworkManager (process 7): it is missing, and put back in 0.5 s; \
              stop that program from removing what weir needs"
            ]
        );
        let failed = Contested { failure: Some("no such device".into()), ..contested() };
        repairs.set(vec![failed]);
        assert_eq!(
            repairs.unhealthy().collect::<Vec<_>>(),
            ["`ip rule add` cannot be put back: no such device"]
        );
        repairs.set(Vec::new());
        assert_eq!(repairs.unhealthy().count(), 0);
    }

    #[test]
    fn every_kind_has_a_count_of_its_own() {
        let repairs = Repairs::default();
        Kind::ALL.into_iter().for_each(|kind| (0..=kind as u64).for_each(|_| repairs.count(kind)));
        let counts: Vec<u64> = repairs.counts().iter().map(|count| count.count).collect();
        assert_eq!(counts, (1..=Kind::ALL.len() as u64).collect::<Vec<_>>());
    }
}
