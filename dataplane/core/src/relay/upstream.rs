//! The leg to the server, until it stands: to whom and from where it is opened, and what happens when it is not taken.

use crate::ids::Nanos;

use super::{Command, Ending, Failure, Leg, LocalEnd, Phase, Relay, Side};

/// A server that the leg is opened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Towards {
    /// The one that the client asked for.
    Destination,
    /// Of the pool that the verdict named.
    Server,
    /// Another one of that pool.
    Spare,
}

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connect {
    pub to: Towards,
    pub from: LocalEnd,
}

impl Connect {
    /// To where the client wanted to go, in its name.
    pub const AHEAD: Self = Self { to: Towards::Destination, from: LocalEnd::Client };
}

/// How far the leg is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upstream {
    /// The verdict says where it goes.
    Waiting,
    Wanted(Connect),
    Connecting(Connect),
    /// Its time is over, and another server is tried as soon as it has stopped; unless it stands first.
    Overdue(Connect),
    Connected,
}

impl Upstream {
    pub const fn is_under_way(self) -> bool {
        matches!(self, Self::Connecting(_) | Self::Overdue(_))
    }
}

impl Relay {
    /// From now on this leg is wanted. One that was opened ahead stays.
    pub(super) fn call(&mut self, now: Nanos, connect: Connect) {
        if self.upstream == Upstream::Waiting {
            self.upstream = Upstream::Wanted(connect);
            self.called = now;
        }
    }

    pub(super) fn connected(&mut self, now: Nanos) {
        match self.upstream {
            Upstream::Connecting(_) => {}
            // It was told to stop, and was faster.
            Upstream::Overdue(_) => self.server = Leg::Open,
            Upstream::Waiting | Upstream::Wanted(_) | Upstream::Connected => return,
        }
        self.upstream = Upstream::Connected;
        self.active = now;
    }

    pub(super) fn connect_failed(&mut self, now: Nanos, failure: Failure) {
        let (connect, failure) = match self.upstream {
            Upstream::Connecting(connect) => (connect, failure),
            Upstream::Overdue(connect) if failure == Failure::Cancelled => (connect, Failure::TimedOut),
            Upstream::Overdue(connect) => (connect, failure),
            Upstream::Waiting | Upstream::Wanted(_) | Upstream::Connected => return,
        };
        self.upstream = Upstream::Wanted(connect);
        if self.phase != Phase::Running {
            return;
        }
        // The client's port is still taken by an earlier connection of the same pair (TIME_WAIT): keep the
        // address, let the kernel choose the port.
        if failure == Failure::AddressTaken && connect.from == LocalEnd::Client {
            self.upstream = Upstream::Wanted(Connect { from: LocalEnd::ClientAnyPort, ..connect });
            return;
        }
        self.not_taken(connect, failure);
        if self.has_spare(connect) {
            let from = match connect.from {
                LocalEnd::Gateway => LocalEnd::Gateway,
                LocalEnd::Client | LocalEnd::ClientAnyPort => LocalEnd::Client,
            };
            self.upstream = Upstream::Wanted(Connect { to: Towards::Spare, from });
            self.called = now;
        } else {
            self.finish(Ending::ConnectFailed(failure));
        }
    }

    /// The leg's time is over.
    pub(super) fn unanswered(&mut self) {
        match self.upstream {
            Upstream::Connecting(connect) if self.has_spare(connect) => {
                self.upstream = Upstream::Overdue(connect);
            }
            Upstream::Wanted(connect) | Upstream::Connecting(connect) => {
                self.not_taken(connect, Failure::TimedOut);
                self.finish(Ending::ConnectFailed(Failure::TimedOut));
            }
            Upstream::Waiting | Upstream::Overdue(_) | Upstream::Connected => {}
        }
    }

    /// Until when the server must have answered.
    pub(super) fn call_deadline(&self) -> Option<Nanos> {
        match self.upstream {
            Upstream::Wanted(connect) | Upstream::Connecting(connect) => {
                let patience = match connect.to {
                    Towards::Destination => self.limits.connect,
                    Towards::Server | Towards::Spare => self.limits.pooled,
                };
                Some(self.called.saturating_add(patience))
            }
            Upstream::Waiting | Upstream::Overdue(_) | Upstream::Connected => None,
        }
    }

    pub(super) fn poll_upstream(&mut self) -> Option<Command> {
        match self.upstream {
            Upstream::Wanted(_) if matches!(self.server, Leg::Open | Leg::Stopping) => {
                // The socket of the attempt before this one.
                self.server = Leg::Absent;
                Some(Command::Close(Side::Server))
            }
            Upstream::Wanted(connect) => {
                self.server = Leg::Open;
                self.upstream = Upstream::Connecting(connect);
                Some(Command::Connect { to: connect.to, from: connect.from })
            }
            Upstream::Overdue(_) if self.server == Leg::Open => {
                self.server = Leg::Stopping;
                Some(Command::Cancel(Side::Server))
            }
            Upstream::Waiting | Upstream::Connecting(_) | Upstream::Overdue(_) | Upstream::Connected => None,
        }
    }

    fn has_spare(&self, connect: Connect) -> bool {
        connect.to == Towards::Server && self.spare
    }

    /// What counts against a pool's server is what it, or the way to it, has said or not said.
    fn not_taken(&mut self, connect: Connect, failure: Failure) {
        let servers =
            matches!(failure, Failure::Refused | Failure::Reset | Failure::Unreachable | Failure::TimedOut);
        if servers && connect.to != Towards::Destination {
            self.blamed = Some(connect.to);
        }
    }
}
