//! Questions about names, from workers and the relay's threads to control, which has a resolver.
//!
//! One bounded lock-free queue, and a bell for control's event loop. Who finds it full has the answer at once: unknown.

use std::io;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use weir_core::verify::Question;
use weir_sys::bell::Bell;
use weir_sys::uring::Key;

/// Questions that wait for control at most.
const ROOM: usize = 4096;

/// Who asks, and so where the answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    Worker(usize),
    /// A thread of the relay, for that connection of its.
    Relay(usize, Key),
}

/// The queue. [`Dataplane::answer`](crate::gateway::Dataplane::answer) and
/// [`RelayHandle::answer`](crate::relay::RelayHandle::answer) take the answers.
#[derive(Debug)]
pub struct Questions {
    queue: ArrayQueue<(Asker, Question)>,
    bell: Bell,
}

impl Questions {
    /// # Errors
    /// No more descriptors.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { queue: ArrayQueue::new(ROOM), bell: Bell::new()? }))
    }

    /// False: there is no room. [`Self::ring`] comes after the batch.
    pub fn ask(&self, asker: Asker, question: Question) -> bool {
        // push (Release) pairs with pop (Acquire) in next().
        self.queue.push((asker, question)).is_ok()
    }

    pub fn ring(&self) {
        self.bell.ring();
    }

    /// Rings when there is something to take.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    pub fn next(&self) -> Option<(Asker, Question)> {
        self.queue.pop()
    }
}

#[cfg(test)]
mod tests {
    use weir_core::flow::key::{FlowKey, Tuple};
    use weir_core::inspect::Name;
    use weir_core::verify::Tag;
    use weir_core::wire::addr::Endpoint;

    use super::*;

    #[test]
    fn full_queue_takes_no_more_until_one_is_taken() {
        let questions = Questions::new().unwrap();
        let end = Endpoint::default();
        let question = Question {
            key: FlowKey::of(&Tuple { src: end, dst: end }),
            client: end,
            destination: end,
            name: Name::new(b"www.example").unwrap(),
            tag: Tag::default(),
            waits: true,
        };
        for _ in 0..ROOM {
            assert!(questions.ask(Asker::Worker(0), question));
        }
        assert!(!questions.ask(Asker::Worker(0), question));
        assert!(questions.next().is_some());
        assert!(questions.ask(Asker::Worker(1), question));
        assert!(!questions.ask(Asker::Worker(1), question));
    }
}
