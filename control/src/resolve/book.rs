//! What is known of names, and who waits for which: no clock, no sockets.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_core::verify::Question;
use weir_dataplane::questions::Asker;

/// Names whose addresses are kept at most.
pub const NAMES: usize = 65_536;
/// How long addresses are kept. The resolver's own cache knows what the zone says; this one spares it the connections of a
/// minute.
pub const LIFE: Duration = Duration::from_secs(60);
/// How long it is kept that there are none.
pub const LIFE_OF_NONE: Duration = Duration::from_secs(10);
/// Lookups at a time: each has a thread.
pub const LOOKUPS: usize = 64;
/// Questions that wait for lookups at most.
pub const WAITING: usize = 16_384;

/// A name's addresses; none: it has none, or nobody says.
pub type Known = Arc<[IpAddr]>;

/// A question, and whose it is.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub asker: Asker,
    pub question: Question,
}

/// What is to be done about a question.
#[derive(Debug)]
pub enum Now {
    /// It is answered, and the answer holds for this long.
    Known(Known, Duration),
    /// [`Book::finished`] will return it.
    Later,
    /// Too many wait.
    Full,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    until: Instant,
}

#[derive(Debug, Default)]
pub struct Book {
    known: HashMap<Box<str>, Entry>,
    /// Names in the order in which they were learned. A name that was learned again stands there twice.
    order: VecDeque<(Box<str>, Instant)>,
    waiting: HashMap<Box<str>, Vec<Asked>>,
    /// Names that wait for a lookup to begin.
    queue: VecDeque<Box<str>>,
    waits: usize,
    lookups: usize,
}

impl Book {
    pub fn ask(&mut self, now: Instant, asked: Asked) -> Now {
        let name = asked.question.name.as_str();
        if let Some((known, left)) = self.look(now, name) {
            return Now::Known(known, left);
        }
        if self.waits == WAITING {
            return Now::Full;
        }
        self.waits += 1;
        match self.waiting.get_mut(name) {
            Some(waiting) => waiting.push(asked),
            None => {
                self.waiting.insert(name.into(), vec![asked]);
                self.queue.push_back(name.into());
            }
        }
        Now::Later
    }

    /// What is known of a name, and for how long it still holds.
    pub fn look(&self, now: Instant, name: &str) -> Option<(Known, Duration)> {
        let entry = self.known.get(name).filter(|entry| entry.until > now)?;
        Some((entry.known.clone(), entry.until - now))
    }

    /// The next name to be looked up, while there may be another lookup.
    pub fn next_lookup(&mut self) -> Option<Box<str>> {
        if self.lookups == LOOKUPS {
            return None;
        }
        let name = self.queue.pop_front()?;
        self.lookups += 1;
        Some(name)
    }

    /// A lookup has ended: what is known now, for how long, and the questions that waited for it.
    pub fn finished(
        &mut self,
        now: Instant,
        name: &str,
        addresses: Vec<IpAddr>,
    ) -> (Known, Duration, Vec<Asked>) {
        self.lookups = self.lookups.saturating_sub(1);
        let asked = self.waiting.remove(name).unwrap_or_default();
        self.waits = self.waits.saturating_sub(asked.len());
        let life = if addresses.is_empty() { LIFE_OF_NONE } else { LIFE };
        let (known, until): (Known, _) = (addresses.into(), now + life);
        while self.order.len() >= NAMES {
            self.forget_first();
        }
        self.order.push_back((name.into(), until));
        self.known.insert(name.into(), Entry { known: known.clone(), until });
        (known, life, asked)
    }

    fn forget_first(&mut self) {
        if let Some((name, until)) = self.order.pop_front()
            && self.known.get(&name).is_some_and(|entry| entry.until == until)
        {
            self.known.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_core::flow::key::{FlowKey, Tuple};
    use weir_core::inspect::Name;
    use weir_core::verify::Tag;
    use weir_core::wire::addr::Endpoint;

    use super::*;

    fn asked(name: &str) -> Asked {
        let end = Endpoint::default();
        let question = Question {
            key: FlowKey::of(&Tuple { src: end, dst: end }),
            client: end,
            destination: end,
            name: Name::new(name.as_bytes()).unwrap(),
            tag: Tag::default(),
            waits: true,
        };
        Asked { asker: Asker::Worker(0), question }
    }

    fn addresses(book: &mut Book, now: Instant, name: &str) -> Option<(usize, Duration)> {
        match book.ask(now, asked(name)) {
            Now::Known(known, left) => Some((known.len(), left)),
            Now::Later | Now::Full => None,
        }
    }

    #[test]
    fn name_is_looked_up_once_for_all_who_wait_and_then_known_for_a_minute() {
        let (mut book, start) = (Book::default(), Instant::now());
        for _ in 0..3 {
            assert!(matches!(book.ask(start, asked("a.example")), Now::Later));
        }
        assert_eq!(book.next_lookup().as_deref(), Some("a.example"));
        assert_eq!(book.next_lookup(), None);
        assert!(matches!(book.ask(start, asked("a.example")), Now::Later), "it is under way");
        assert_eq!(book.next_lookup(), None);
        let ip = "192.0.2.1".parse().unwrap();
        let (known, life, waited) = book.finished(start, "a.example", vec![ip]);
        assert_eq!((&known[..], life, waited.len()), (&[ip][..], LIFE, 4));
        let later = start + Duration::from_secs(20);
        assert_eq!(addresses(&mut book, later, "a.example"), Some((1, Duration::from_secs(40))));
        assert_eq!(addresses(&mut book, start + LIFE, "a.example"), None);
        assert_eq!(book.next_lookup().as_deref(), Some("a.example"));
    }

    #[test]
    fn name_without_addresses_is_known_for_ten_seconds() {
        let (mut book, start) = (Book::default(), Instant::now());
        assert_eq!(addresses(&mut book, start, "no.example"), None);
        book.next_lookup();
        assert_eq!(book.finished(start, "no.example", Vec::new()).1, LIFE_OF_NONE);
        assert_eq!(addresses(&mut book, start, "no.example"), Some((0, LIFE_OF_NONE)));
        assert_eq!(addresses(&mut book, start + LIFE_OF_NONE, "no.example"), None);
    }

    #[test]
    fn lookups_and_questions_at_their_limits_wait_and_are_refused() {
        let (mut book, now) = (Book::default(), Instant::now());
        for n in 0..WAITING {
            assert!(matches!(book.ask(now, asked(&format!("n{n}.example"))), Now::Later));
        }
        assert!(matches!(book.ask(now, asked("more.example")), Now::Full));
        assert!(matches!(book.ask(now, asked("n0.example")), Now::Full));
        for n in 0..LOOKUPS {
            assert_eq!(book.next_lookup(), Some(format!("n{n}.example").into()));
        }
        assert_eq!(book.next_lookup(), None);
        book.finished(now, "n0.example", Vec::new());
        assert_eq!(book.next_lookup(), Some(format!("n{LOOKUPS}.example").into()));
        assert_eq!(book.next_lookup(), None);
        assert!(matches!(book.ask(now, asked("more.example")), Now::Later));
    }

    #[test]
    fn names_at_capacity_are_forgotten_in_the_order_they_were_learned() {
        let (mut book, now) = (Book::default(), Instant::now());
        let ip: IpAddr = "2001:db8::1".parse().unwrap();
        let learn = |book: &mut Book, n: usize| {
            let name = format!("n{n}.example");
            assert!(matches!(book.ask(now, asked(&name)), Now::Later));
            book.next_lookup();
            book.finished(now, &name, vec![ip]);
        };
        (0..NAMES).for_each(|n| learn(&mut book, n));
        assert!(addresses(&mut book, now, "n0.example").is_some());
        learn(&mut book, NAMES);
        assert_eq!((book.known.len(), book.order.len(), book.waiting.len()), (NAMES, NAMES, 0));
        assert!(addresses(&mut book, now, "n1.example").is_some());
        assert_eq!(addresses(&mut book, now, "n0.example"), None);
    }
}
