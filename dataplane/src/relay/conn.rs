//! One connection: the machine, its judge, and what the loop holds for it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use weir_core::ids::Nanos;
use weir_core::policy::{Action, Policy};
use weir_core::reevaluate::{Outcome, Standing, Tally};
use weir_core::relay::{Failure, Judge, Relay, Side, Verdict};
use weir_core::verify::Answers;
use weir_sys::sockopt;
use weir_sys::uring::{Errno, Key, Readiness};

use super::stock::Stock;

/// What the loop keeps of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub machine: Relay,
    pub judge: Judge,
    /// Of the leg to the server, where that does not go from the client to where it wanted to go.
    elsewhere: Option<Box<Ends>>,
    /// Client's and server's.
    pub legs: [Leg; 2],
    /// Octets that came from the client, and from the server.
    pub stocks: [Stock; 2],
    /// How often a leg to the server was opened.
    pub attempts: u8,
    /// The DSCP of the client's SYN, which goes on to the server.
    pub class: u8,
    /// It counts as one of its source's.
    pub counted: bool,
    pub ending_counted: bool,
    pub check_counted: bool,
    pub change_counted: bool,
    /// It is to be looked at again in the next turn.
    pub again: bool,
}

/// The ends of a leg to a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// Port 0: as the kernel will choose when it is connected.
    pub source: SocketAddr,
    pub server: SocketAddr,
    /// [`Hooks::opened`](super::Hooks::opened) was told of it apart from the connection itself.
    pub told: bool,
}

/// One leg's socket, what it is ready for, and what the machine wants of it that could not be done yet.
#[derive(Debug, Default)]
pub(super) struct Leg {
    pub socket: Option<OwnedFd>,
    /// Octets to receive at most.
    pub receives: Option<u32>,
    /// Octets to send at most.
    pub sends: Option<u32>,
    pub connects: bool,
    /// It is to be told when it hangs.
    pub watched: bool,
    pub ready: Readiness,
    /// With each receive the kernel says whether it leaves anything.
    pub tells: bool,
    /// It has received without that.
    pub heard: bool,
    /// What it brought is the last before its end.
    pub closes: bool,
    /// FIN was sent to it.
    pub shut: bool,
    /// What was sent to it may wait for the FIN that is to go with it.
    pub waits: bool,
    /// The kernel looks after it, as far as that is wanted.
    pub kept_up: bool,
    /// What comes from it, comes in bulk, and goes on through a pipe.
    pub bulk: bool,
    /// So many more receives into a pipe are taken to be worth it.
    pub trust: u8,
    /// Octets that are to be copied before a pipe is tried.
    pub copies: u32,
}

impl Connection {
    pub fn new(machine: Relay, judge: Judge, socket: OwnedFd) -> Self {
        Self {
            machine,
            judge,
            elsewhere: None,
            // Its listener has been told to.
            legs: [Leg { tells: true, ..Leg::new(socket) }, Leg::default()],
            stocks: Default::default(),
            attempts: 0,
            class: 0,
            counted: false,
            ending_counted: false,
            check_counted: false,
            change_counted: false,
            again: false,
        }
    }

    pub fn leg(&mut self, side: Side) -> &mut Leg {
        &mut self.legs[side as usize]
    }

    pub fn socket(&self, side: Side) -> Option<&OwnedFd> {
        self.legs[side as usize].socket.as_ref()
    }

    /// What the ring calls the watch of a leg now.
    pub fn token(&self, key: Key, side: Side) -> u64 {
        let attempt = if side == Side::Client { 0 } else { self.attempts };
        Task::Leg(side, attempt).token(key)
    }

    pub fn client(&self) -> SocketAddr {
        self.judge.client()
    }

    /// Where the client wanted to go.
    pub fn destination(&self) -> SocketAddr {
        self.judge.destination()
    }

    /// The leg to the server.
    pub fn ends(&self) -> Ends {
        let plain = Ends { source: self.client(), server: self.destination(), told: false };
        self.elsewhere.as_deref().copied().unwrap_or(plain)
    }

    pub fn set_ends(&mut self, ends: Ends) {
        let plain = (ends.source, ends.server) == (self.client(), self.destination());
        self.elsewhere = (!plain).then(|| Box::new(ends));
    }

    /// Whether it is to be judged when the policy changes.
    pub fn standing(&self) -> Standing {
        match (self.machine.ending(), self.machine.is_held()) {
            (Some(_), _) => Standing::Over,
            (None, true) => Standing::Undecided,
            (None, false) => Standing::Judged,
        }
    }

    /// Judges it again by another policy; it ends where that refuses it. True: it is to be driven.
    pub fn judge_again(
        &mut self,
        now: Nanos,
        policy: &Arc<Policy>,
        answers: &Answers,
        tally: &mut Tally,
    ) -> bool {
        match self.standing() {
            Standing::Judged => {}
            standing => {
                tally.pass_over(standing);
                return false;
            }
        }
        let (known, server) = (self.judge.known(answers, now), self.ends().server);
        let again = self.judge.judge_again(policy, server, self.machine.is_connected(), known);
        tally.count(&again);
        if again.outcome != Outcome::Ended {
            return false;
        }
        let drops = again.decision.is_some_and(|decision| decision.action == Action::Drop);
        self.machine.handle_refusal(now, if drops { Verdict::Drop } else { Verdict::Reset });
        true
    }
}

impl Leg {
    /// Nothing is known of it but that there is room to send.
    pub fn new(socket: OwnedFd) -> Self {
        let ready = Readiness { writable: true, ..Readiness::default() };
        Self { socket: Some(socket), ready, ..Self::default() }
    }

    /// It was reset, or is lost: both ends' FINs make it hang, too, and its own may be behind octets not yet received.
    pub const fn is_lost(&self) -> bool {
        self.ready.failed || (self.ready.hung && !self.shut)
    }

    /// A receive came without a word of what it has left. From the second one on it is to say so, which costs a call, as that of
    /// a receive that finds nothing.
    pub fn untold(&mut self) {
        if std::mem::replace(&mut self.heard, true)
            && let Some(socket) = &self.socket
        {
            self.tells = sockopt::say_what_is_left(socket).is_ok();
        }
    }
}

/// What an operation of the ring is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// On the listener of this number.
    Accept,
    /// What a leg is ready for. Attempts to reach a server are told apart: what is late of one is nothing of the next.
    Leg(Side, u8),
}

impl Task {
    const SHIFT: u32 = 56;
    const SERVER: u64 = 2;
    /// There are at most four: two servers of a pool, from the client's port and from another.
    const ATTEMPTS: u8 = 4;

    /// The ring's word for this operation of that connection (or listener). A slab's generations leave the top free.
    pub fn token(self, key: Key) -> u64 {
        let tag = match self {
            Self::Accept => 0,
            Self::Leg(Side::Client, _) => 1,
            Self::Leg(Side::Server, attempt) => Self::SERVER + u64::from(attempt % Self::ATTEMPTS),
        };
        tag << Self::SHIFT | key.to_bits()
    }

    pub fn of_token(token: u64) -> (Self, Key) {
        let task = match token >> Self::SHIFT {
            0 => Self::Accept,
            1 => Self::Leg(Side::Client, 0),
            tag => Self::Leg(Side::Server, (tag - Self::SERVER) as u8),
        };
        (task, Key::from_bits(token & ((1 << Self::SHIFT) - 1)))
    }
}

/// Kinds of errors, as far as they are treated differently.
pub(super) fn failure(errno: Errno) -> Failure {
    match errno {
        Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED | Errno::NOTCONN => Failure::Reset,
        Errno::CONNREFUSED => Failure::Refused,
        Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::HOSTDOWN | Errno::NETDOWN | Errno::ACCESS => {
            Failure::Unreachable
        }
        Errno::TIMEDOUT => Failure::TimedOut,
        Errno::ADDRINUSE | Errno::ADDRNOTAVAIL => Failure::AddressTaken,
        Errno::CANCELED | Errno::INTR | Errno::AGAIN => Failure::Cancelled,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS => Failure::NoResources,
        _ => Failure::Other,
    }
}

/// As [`failure`], of a call's error.
pub(super) fn failure_of(error: &std::io::Error) -> Failure {
    Errno::from_io_error(error).map_or(Failure::Other, failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_tells_task_and_place_apart() {
        let key = Key { index: u32::MAX, generation: (1 << 24) - 1 };
        let legs = (0..Task::ATTEMPTS).map(|attempt| Task::Leg(Side::Server, attempt));
        for task in [Task::Accept, Task::Leg(Side::Client, 0)].into_iter().chain(legs) {
            assert_eq!(Task::of_token(task.token(key)), (task, key));
            assert!(task.token(key) < 1 << 62, "the ring's own bits are free");
        }
    }

    #[test]
    fn idle_connection_is_small() {
        // A million of them are to fit: this and what is said in the machine's and the judge's boxes.
        let size = size_of::<Connection>();
        assert!(size <= 512, "{size}");
    }
}
