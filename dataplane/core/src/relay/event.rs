//! The words that the relay's machine and its driver speak.

use crate::ids::Nanos;

use super::{Span, Towards};

/// One of the two legs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// The bounds of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most octets that wait in each direction.
    pub buffer: u32,
    /// From when a server is wanted (at accept, or from the verdict on) to its SYN-ACK.
    pub connect: Nanos,
    /// Likewise, of a server of a pool: another can be tried.
    pub pooled: Nanos,
    /// Without a byte in either direction.
    pub idle: Nanos,
    /// Likewise, once one end has sent FIN.
    pub half_closed: Nanos,
    /// How long a dropped client is left without an answer.
    pub quiet: Nanos,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            buffer: 256 * 1024,
            connect: Nanos::from_secs(15),
            // As long as the fast road waits: three SYNs.
            pooled: Nanos::from_secs(7),
            idle: Nanos::from_secs(3600),
            half_closed: Nanos::from_secs(600),
            quiet: Nanos::from_secs(60),
        }
    }
}

/// What is known when the connection is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The verdict waits for the client's first bytes, for at most so many octets and so long. `ahead`: the server is
    /// connected meanwhile, so that it can speak first; else none is before the verdict, since that may name another.
    Held { bytes: u32, time: Nanos, ahead: bool },
    /// There is nothing to wait for. With a verdict that refuses, no server is ever connected.
    Settled(Verdict),
}

/// The policy's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// The rules let it pass, and a resolver is to say whether its name has the address that it goes to: it stays held, and
    /// another verdict follows; [`Ask::Unverified`] at the latest.
    Wait,
    /// The connection goes to a server of a pool, from this end; `spare`: there is another, to be tried when the first does
    /// not take it. Where a server was connected ahead this is a [`Verdict::Reset`].
    Send {
        from: LocalEnd,
        spare: bool,
    },
    /// RST to both ends.
    Reset,
    /// RST to the server, silence towards the client for [`Limits::quiet`].
    ///
    /// The handshake is over and the kernel acknowledges what comes until its receive buffer is full: that is as
    /// silent as a socket can be. Then the client gets a RST after all, since with the socket gone its next segment
    /// would be forwarded to the server.
    Drop,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// RST from the far end (ECONNRESET, EPIPE, ECONNABORTED).
    Reset,
    Refused,
    /// ICMP says so, or there is no route.
    Unreachable,
    TimedOut,
    /// EADDRINUSE, EADDRNOTAVAIL: the source address and port belong to another connection.
    AddressTaken,
    /// Stopped by [`Command::Reset`] or [`Command::Cancel`], or to be tried again.
    Cancelled,
    /// No file descriptors, memory or ports on this box.
    NoResources,
    Other,
}

impl Failure {
    pub const ALL: [Self; 8] = [
        Self::Reset,
        Self::Refused,
        Self::Unreachable,
        Self::TimedOut,
        Self::AddressTaken,
        Self::Cancelled,
        Self::NoResources,
        Self::Other,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed-out",
            Self::AddressTaken => "address-taken",
            Self::Cancelled => "cancelled",
            Self::NoResources => "no-resources",
            Self::Other => "other",
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Connected,
    ConnectFailed(Failure),
    /// `len` octets (more than 0) of [`Command::Recv`] are there, behind those that wait.
    Received {
        from: Side,
        len: u32,
    },
    /// FIN, after the last octet.
    Eof(Side),
    /// There was no memory to receive into; the receive is over. May only follow where octets of that direction wait to be
    /// sent: once some are, it is asked for again.
    NoRoom(Side),
    /// A receive found no room among what all connections hold before their verdicts: [`Relay::handle_room`] follows when there is.
    ///
    /// [`Relay::handle_room`]: super::Relay::handle_room
    HoldFull(Side),
    RecvFailed(Side, Failure),
    /// `len` octets of [`Command::Send`] are with the kernel; may be fewer than asked.
    Sent {
        to: Side,
        len: u32,
    },
    SendFailed(Side, Failure),
    /// [`Command::Watch`] saw that the leg was reset, or is lost.
    Hangup(Side),
    /// [`Command::Watch`] was stopped.
    Unwatched(Side),
    Timer,
}

/// Where the leg to the server comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalEnd {
    /// The client's address and port.
    Client,
    /// The client's address and any port.
    ClientAnyPort,
    /// An address and port of this box, as the kernel chooses them.
    Gateway,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Open a socket to that server.
    Connect { to: Towards, from: LocalEnd },
    /// That server of a pool did not take the connection: tell whoever looks after it.
    Blame(Towards),
    /// Receive at most so many octets.
    Recv { from: Side, most: u32 },
    /// Send so many of the octets that wait from the other side, the first ones.
    Send { to: Side, len: u32 },
    /// FIN: no more bytes to this side.
    Shutdown(Side),
    /// Tell when the leg is reset or lost, now that nothing is received from it. FIN in both directions is neither.
    Watch(Side),
    /// The leg ends with a RST when it is closed (SO_LINGER 0); stop what is under way on it.
    Reset(Side),
    /// Stop what is under way on the leg.
    Cancel(Side),
    /// Nothing of it is under way: close the socket.
    Close(Side),
    /// Replaces the timer armed before.
    ArmTimer(Nanos),
}

/// What the verdict needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Read the first `len` octets of the client's; it can never hold more than `budget`.
    Inspect { len: u32, budget: u32 },
    /// There will be nothing to read: decide without.
    Unidentified(Unread),
    /// The resolver did not answer in time: decide without.
    Unverified,
    /// Read what the server says, from octet `at` of its stream on: the answer goes to [`super::Relay::handle_answer`].
    Answer { at: u32, span: Span },
    /// Read what the client says behind its first hello: the answer goes to [`super::Relay::handle_behind`].
    Behind { span: Span },
    /// Read the second hello, which can never have more than `budget` octets: the answer goes to
    /// [`super::Relay::handle_second`], as do those to the next two.
    Second { span: Span, budget: u32 },
    /// There will be no more of it to read: decide without.
    SecondUnread,
    /// The resolver did not answer in time about its name.
    SecondUnverified,
}

/// Why the client's first bytes were not read to a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unread {
    ServerFirst,
    HoldTime,
    HoldFull,
    ClientClosed,
}

impl Unread {
    pub const fn name(self) -> &'static str {
        match self {
            Self::ServerFirst => "server-first",
            Self::HoldTime => "hold-time",
            Self::HoldFull => "hold-full",
            Self::ClientClosed => "client-closed",
        }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// FIN in both directions, every byte delivered.
    Finished,
    /// The verdict was reset.
    Denied,
    /// The verdict was drop.
    Dropped,
    ConnectFailed(Failure),
    /// A leg failed; the other got a RST.
    Failed(Side, Failure),
    Idle,
    Stopped,
}

impl Ending {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Denied => "denied",
            Self::Dropped => "dropped",
            Self::ConnectFailed(_) => "connect-failed",
            Self::Failed(Side::Client, _) => "client-failed",
            Self::Failed(Side::Server, _) => "server-failed",
            Self::Idle => "idle",
            Self::Stopped => "stopped",
        }
    }
}
