//! One connection: the machine, its judge, and what the ring holds for it.

use std::net::SocketAddr;
use std::sync::Arc;

use weir_core::ids::Nanos;
use weir_core::policy::{Action, Policy};
use weir_core::reevaluate::{Outcome, Standing, Tally};
use weir_core::relay::{Event, Failure, Judge, Relay, Side, Verdict};
use weir_core::verify::Answers;
use weir_sys::uring::{self, BufferId, Errno, Key, SocketId};

/// What the loop keeps of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub machine: Relay,
    pub judge: Judge,
    pub client: SocketAddr,
    /// Where the client wanted to go.
    pub destination: SocketAddr,
    /// Where the leg to the server goes: there, unless the verdict names a pool's server.
    pub server: SocketAddr,
    /// Where that leg comes from. Port 0: as the kernel will choose when it is connected.
    pub source: SocketAddr,
    /// The ends of that leg, where [`Hooks::opened`](super::Hooks::opened) was told of it apart from the connection itself.
    pub told: Option<(SocketAddr, SocketAddr)>,
    /// Client's and server's.
    pub sockets: [Option<SocketId>; 2],
    /// Of what comes from the client, and from the server.
    pub buffers: Option<[BufferId; 2]>,
    /// The deadline that counts; others of this connection are stale.
    pub timer: Option<Nanos>,
    /// The DSCP of the client's SYN, which goes on to the server.
    pub class: u8,
    /// It counts as one of its source's.
    pub counted: bool,
    pub ending_counted: bool,
    pub check_counted: bool,
    pub change_counted: bool,
}

impl Connection {
    pub fn socket(&self, side: Side) -> Option<SocketId> {
        self.sockets[side as usize]
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
        let known = self.judge.known(answers, now);
        let again = self.judge.judge_again(policy, self.server, self.machine.is_connected(), known);
        tally.count(&again);
        if again.outcome != Outcome::Ended {
            return false;
        }
        let drops = again.decision.is_some_and(|decision| decision.action == Action::Drop);
        self.machine.handle_refusal(now, if drops { Verdict::Drop } else { Verdict::Reset });
        true
    }

    /// The buffer of what comes from `side`.
    pub fn buffer_from(&self, side: Side) -> Option<BufferId> {
        self.buffers.map(|buffers| buffers[side as usize])
    }
}

/// What an operation of the ring is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// On the listener of this number.
    Accept,
    Connect,
    Recv(Side),
    Send(Side),
    Watch(Side),
}

impl Task {
    const ALL: [Self; 8] = [
        Self::Accept,
        Self::Connect,
        Self::Recv(Side::Client),
        Self::Recv(Side::Server),
        Self::Send(Side::Client),
        Self::Send(Side::Server),
        Self::Watch(Side::Client),
        Self::Watch(Side::Server),
    ];
    const SHIFT: u32 = 56;

    /// The ring's word for this operation of that connection (or listener). A slab's generations leave the top free.
    pub fn token(self, key: Key) -> u64 {
        let tag = Self::ALL.iter().position(|task| *task == self).unwrap_or(0) as u64;
        tag << Self::SHIFT | key.to_bits()
    }

    pub fn of_token(token: u64) -> Option<(Self, Key)> {
        let task = Self::ALL.get((token >> Self::SHIFT) as usize)?;
        Some((*task, Key::from_bits(token & ((1 << Self::SHIFT) - 1))))
    }

    /// What the machine is told about the outcome.
    pub fn event(self, outcome: &uring::Outcome) -> Option<Event> {
        let result = match outcome {
            uring::Outcome::Done(n) => Ok(*n),
            uring::Outcome::Failed(errno) => Err(failure(*errno)),
            uring::Outcome::Accepted(_) | uring::Outcome::Woken => return None,
        };
        Some(match (self, result) {
            (Self::Accept, _) => return None,
            (Self::Connect, Ok(_)) => Event::Connected,
            (Self::Connect, Err(why)) => Event::ConnectFailed(why),
            (Self::Recv(from), Ok(0)) => Event::Eof(from),
            (Self::Recv(from), Ok(len)) => Event::Received { from, len },
            (Self::Recv(from), Err(why)) => Event::RecvFailed(from, why),
            (Self::Send(to), Ok(len)) => Event::Sent { to, len },
            (Self::Send(to), Err(why)) => Event::SendFailed(to, why),
            (Self::Watch(side), Ok(_)) => Event::Hangup(side),
            (Self::Watch(side), Err(_)) => Event::Unwatched(side),
        })
    }

    /// The event of an operation that could not even begin.
    pub fn not_begun(self) -> Option<Event> {
        self.event(&uring::Outcome::Failed(Errno::NOBUFS))
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
        for task in Task::ALL {
            assert_eq!(Task::of_token(task.token(key)), Some((task, key)));
        }
        assert_eq!(Task::of_token(u64::MAX), None);
    }

    #[test]
    fn zero_octets_received_are_the_end_of_the_stream() {
        assert_eq!(Task::Recv(Side::Server).event(&uring::Outcome::Done(0)), Some(Event::Eof(Side::Server)));
    }
}
