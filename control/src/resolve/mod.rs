//! Names for `verify_host`: control's end of the questions that workers and relay ask.
//!
//! The system's resolver (`getaddrinfo`: `/etc/hosts`, `/etc/resolv.conf`, as nsswitch.conf orders them) is asked in threads
//! beside the event loop. What it says is kept for a while in a [`Book`], which also sees to it that a name is looked up
//! once however many connections wait for it, and that nothing grows without a bound.

mod book;
mod logged;

use std::net::IpAddr;
use std::net::ToSocketAddrs as _;
use std::sync::{Arc, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::net::unix::pipe;
use tokio::task::JoinSet;
use weir_core::ids::Nanos;
use weir_core::verify::Verified;
use weir_dataplane::questions::Questions;

use crate::admin::state::State;
pub use book::Book;
use book::{Asked, Known, Now};
use logged::Logged;

/// Questions taken before lookups and other tasks have their turn.
const BATCH: usize = 256;

/// A lookup that has ended: the name and its addresses, none when there is no answer.
type Found = (Box<str>, Vec<IpAddr>);

/// Answers questions until it is dropped.
pub async fn run(questions: Arc<Questions>, state: Arc<State>) {
    let bell = questions.bell().heard_at().and_then(pipe::Receiver::from_owned_fd);
    let bell = match bell {
        Ok(bell) => bell,
        Err(error) => return tracing::error!(%error, "names cannot be looked up: all are unknown"),
    };
    let mut resolver = Resolver { state, logged: Logged::default() };
    let mut lookups: JoinSet<Found> = JoinSet::new();
    loop {
        tokio::select! {
            heard = bell.readable() => {
                if let Err(error) = heard {
                    return tracing::error!(%error, "names are looked up no more: all are unknown");
                }
                // Silence first: who asks from now on rings again.
                let _silent = bell.try_read(&mut [0; BATCH]);
                resolver.take(&questions);
                tokio::task::yield_now().await;
            }
            Some(ended) = lookups.join_next(), if !lookups.is_empty() => {
                if let Ok::<Found, _>((name, addresses)) = ended {
                    resolver.finished(&name, addresses);
                }
            }
        }
        while let Some(name) = resolver.book().next_lookup() {
            lookups.spawn(look_up(name));
        }
    }
}

/// All addresses of both families. A lookup that takes too long is the resolver's own to end (`options timeout` in
/// resolv.conf): until then it has its thread.
async fn look_up(name: Box<str>) -> Found {
    let asked = name.clone();
    let addresses = tokio::task::spawn_blocking(move || addresses(&asked)).await.unwrap_or_default();
    (name, addresses)
}

/// Asks the system's resolver, and waits for it.
fn addresses(name: &str) -> Vec<IpAddr> {
    match (name, 0).to_socket_addrs() {
        Ok(found) => found.map(|address| address.ip().to_canonical()).collect(),
        Err(error) => {
            tracing::debug!(%name, %error, "no address");
            Vec::new()
        }
    }
}

/// The same for somebody who waits so long and no longer; none: there was no answer. The lookup itself goes on until the
/// resolver ends it, or the process ends.
pub fn look_up_within(name: &str, patience: Duration) -> Option<Vec<IpAddr>> {
    let (tell, told) = mpsc::channel();
    let name = name.to_owned();
    // Nobody may listen any more when it is answered.
    std::thread::spawn(move || drop(tell.send(addresses(&name))));
    told.recv_timeout(patience).ok()
}

/// Whether a destination is among a name's addresses.
pub fn verified(known: &[IpAddr], destination: IpAddr) -> Verified {
    match known {
        [] => Verified::Unknown,
        addresses if addresses.contains(&destination) => Verified::Matches,
        _ => Verified::Differs,
    }
}

struct Resolver {
    state: Arc<State>,
    logged: Logged,
}

impl Resolver {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.state.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes questions; where there are more, the bell goes on ringing.
    fn take(&mut self, questions: &Questions) {
        for _ in 0..BATCH {
            let Some((asker, question)) = questions.next() else { return };
            let asked = Asked { asker, question };
            let now = self.book().ask(Instant::now(), asked);
            match now {
                Now::Known(known, left) => self.answer(&asked, &known, left),
                Now::Later => {}
                Now::Full => self.state.answer_host(asker, question.answer(Verified::Unknown, Nanos(0))),
            }
        }
        questions.ring();
    }

    fn finished(&mut self, name: &str, addresses: Vec<IpAddr>) {
        let (known, left, asked) = self.book().finished(Instant::now(), name, addresses);
        for asked in asked {
            self.answer(&asked, &known, left);
        }
    }

    fn answer(&mut self, asked: &Asked, known: &Known, left: Duration) {
        let question = &asked.question;
        let verified = verified(known, question.destination.addr.ip());
        if verified == Verified::Differs
            && !question.waits
            && let Some(suppressed) = self.logged.admit(Instant::now())
        {
            tracing::warn!(
                client = %question.client.socket_addr(),
                name = question.name.as_str(),
                destination = %question.destination.socket_addr(),
                addresses = ?known,
                suppressed,
                "the destination is not an address of the name (verify_host)"
            );
        }
        let life = Nanos(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX));
        self.state.answer_host(asked.asker, question.answer(verified, life));
    }
}
