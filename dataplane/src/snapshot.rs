//! Configuration reaches workers and relays as immutable snapshots with an epoch.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use weir_core::express::Lanes;
use weir_core::fib::Fib;
use weir_core::policy::Policy;

/// One moment's rules and routes.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub policy: Arc<Policy>,
    pub fib: Arc<Fib>,
    /// Between which ports the express lane carries.
    pub lanes: Lanes,
}

/// Control's end: the newest snapshot replaces one not yet taken.
#[derive(Clone, Debug)]
pub struct Publisher {
    mailboxes: Vec<Arc<ArrayQueue<Arc<Snapshot>>>>,
}

/// A worker's end.
#[derive(Debug)]
pub struct Subscriber {
    mailbox: Arc<ArrayQueue<Arc<Snapshot>>>,
}

impl Publisher {
    pub fn new() -> Self {
        Self { mailboxes: Vec::new() }
    }

    pub fn subscribe(&mut self) -> Subscriber {
        let mailbox = Arc::new(ArrayQueue::new(1));
        self.mailboxes.push(mailbox.clone());
        Subscriber { mailbox }
    }

    pub fn publish(&self, snapshot: &Arc<Snapshot>) {
        for mailbox in &self.mailboxes {
            // force_push (Release) pairs with pop (Acquire) in take().
            drop(mailbox.force_push(snapshot.clone()));
        }
    }

    /// Whether all have taken what was published last. Who has goes by it for all packets from then on.
    pub fn is_taken(&self) -> bool {
        self.mailboxes.iter().all(|mailbox| mailbox.is_empty())
    }
}

impl Default for Publisher {
    fn default() -> Self {
        Self::new()
    }
}

impl Subscriber {
    /// The newest snapshot, if one came since the last call. Once per breath.
    pub fn take(&self) -> Option<Arc<Snapshot>> {
        self.mailbox.pop()
    }
}

#[cfg(test)]
mod tests {
    use weir_core::policy::PolicyBuilder;

    use super::*;

    #[test]
    fn snapshot_is_taken_when_the_last_has_taken_the_newest() {
        let mut publisher = Publisher::new();
        let [a, b] = [publisher.subscribe(), publisher.subscribe()];
        assert!(publisher.is_taken(), "there is none yet");
        let snapshot = Arc::new(Snapshot {
            policy: Arc::new(PolicyBuilder::new(1).build().expect("no rules")),
            fib: Arc::new(Fib::default()),
            lanes: Lanes::NONE,
        });
        publisher.publish(&snapshot);
        assert!(a.take().is_some() && !publisher.is_taken());
        publisher.publish(&snapshot);
        assert!(b.take().is_some() && !publisher.is_taken(), "the second is on its way to the first");
        assert!(a.take().is_some() && publisher.is_taken());
    }
}
