//! Connections of the lane that no worker knows: a process before this one has left them, and this one has no room for them in its tables.
//! The program carries all of their packets, as when there is no worker; here it is seen to that their entries go when they have ended.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use weir_core::express::Names;
use weir_core::ids::Nanos;
use weir_core::stage::timers;
use weir_sys::steering::{Express, Seen};

use super::ends;

/// So many are looked at in one call, with two system calls each.
const LOOKS: usize = 512;

/// All of them.
#[derive(Debug, Default)]
pub struct Strays(Mutex<VecDeque<Names>>);

impl Strays {
    fn all(&self) -> MutexGuard<'_, VecDeque<Names>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// Leaves a connection to the program.
    ///
    /// # Errors
    /// The map cannot be written: the connection goes on as far as it can without a worker.
    pub fn add(&self, express: &Express, names: Names) -> io::Result<()> {
        express.set_stray(ends(&names.client), ends(&names.server), true)?;
        self.all().push_back(names);
        Ok(())
    }

    /// Looks at some of them, at `now`, and takes out those that have ended: called about once a second.
    ///
    /// # Errors
    /// What the kernel says; the connection is looked at again.
    pub fn look(&self, express: &Express, now: Nanos) -> io::Result<()> {
        for _ in 0..LOOKS.min(self.count()) {
            let Some(names) = self.all().pop_front() else { break };
            let (client, server) = (ends(&names.client), ends(&names.server));
            let stays = match express.seen(client, server) {
                // Somebody has put another in its place, or has taken it out.
                Ok(seen) if !seen.iter().flatten().any(|seen| seen.is_stray) => Ok(false),
                Ok(seen) if is_over(&seen, now) => express.take(client, server).map(|_| false),
                Ok(_) => Ok(true),
                Err(error) => Err(error),
            };
            if *stays.as_ref().unwrap_or(&true) {
                self.all().push_back(names);
            }
            stays?;
        }
        Ok(())
    }
}

fn is_over(seen: &[Option<Seen>; 2], now: Nanos) -> bool {
    let of = |is: fn(&Seen) -> bool| seen.iter().flatten().filter(|seen| is(seen)).count();
    let time = match (of(|seen| seen.rst), of(|seen| seen.fin), of(|seen| seen.fin || seen.says)) {
        (0, 2, _) => timers::CLOSED,
        (0, _, 0 | 1) => timers::IDLE,
        _ => timers::RESET,
    };
    let last = seen.iter().flatten().map(|seen| seen.last_seen).max().unwrap_or(0);
    of(|seen| seen.is_void) > 0 || Nanos(last).saturating_add(time) <= now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_of_which_an_end_was_never_acknowledged_is_over_in_time() {
        let last = Nanos::from_secs(10_000);
        let seen = |fin, says| Some(Seen { fin, says, last_seen: last.0, ..Seen::default() });
        for (up, down, time) in [
            (seen(true, true), seen(true, false), timers::CLOSED),
            (seen(false, true), seen(true, true), timers::RESET),
            (seen(true, true), seen(false, false), timers::IDLE),
        ] {
            let end = last.saturating_add(time);
            assert!(is_over(&[up, down], end) && !is_over(&[up, down], Nanos(end.0 - 1)), "{time:?}");
        }
    }
}
