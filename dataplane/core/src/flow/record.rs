//! One connection as the dataplane remembers it.

use crate::drop::PuntReason;
use crate::ids::{InterceptId, Nanos, PortId, RuleId};
use crate::policy::{Action, Cause, Protocol};
use crate::tcp::seq::Seq;

use super::key::{FlowKey, Tuple};
use super::names::NameRef;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A SYN went to the server; no SYN-ACK came yet.
    SynSent,
    /// The handshake passes or has passed; the client's bytes are held until there is a verdict.
    Held,
    /// Allowed: both directions pass.
    Splice,
    /// Refused by a verdict, and stays so until the tuple is used again.
    Refused,
    /// Given to the kernel.
    Kernel,
    /// Over; lingers for retransmissions.
    Closed,
}

/// Which end a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// One end, as seen from the middle: what it has sent and what it allows the other to send.
#[derive(Clone, Copy, Debug, Default)]
pub struct End {
    /// The sequence number after the last octet of it that was passed on.
    pub nxt: Seq,
    /// The last acknowledgment it sent.
    pub ack: Seq,
    /// The right edge of the window it offers.
    pub edge: Seq,
    /// Window shift it announced; applies when both did.
    pub shift: u8,
    pub fin: bool,
    pub fin_acked: bool,
    pub packets: u64,
    pub bytes: u64,
}

/// The verdict and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub action: Action,
    pub cause: Cause,
}

impl Verdict {
    /// Whether the connection's packets pass. `relay` comes too late once the handshake has passed (after a reload), and
    /// means the same (see `Intercept::decide`).
    #[inline]
    pub const fn passes(self) -> bool {
        matches!(self.action, Action::Allow | Action::Relay)
    }
}

/// A connection.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub key: FlowKey,
    pub client_is_low: bool,
    pub stage: Stage,
    /// Its intercept in the configuration `epoch`. In another configuration the number may mean another one.
    pub intercept: InterceptId,
    /// The port its SYN came from.
    pub port: PortId,
    /// The SYN-ACK has been seen.
    pub answered: bool,
    /// Bytes of the client reached the server past weir, before the verdict.
    pub bypassed: bool,
    pub protocol: Option<Protocol>,
    pub verdict: Option<Verdict>,
    /// Why it is on the kernel road.
    pub punted: Option<PuntReason>,
    pub epoch: u32,
    pub name: NameRef,
    /// Its hold, if it has one.
    pub hold: u32,
    /// The client's initial sequence number.
    pub isn: Seq,
    pub client: End,
    pub server: End,
    pub created: Nanos,
    pub seen: Nanos,
}

impl Flow {
    /// No hold.
    pub const NO_HOLD: u32 = u32::MAX;

    /// A connection that starts with the packet `tuple`, which comes from the client, at `port`.
    pub fn new(tuple: &Tuple, port: PortId, intercept: InterceptId, epoch: u32, now: Nanos) -> Self {
        let key = FlowKey::of(tuple);
        Self {
            client_is_low: key.low == tuple.src,
            key,
            stage: Stage::SynSent,
            intercept,
            port,
            answered: false,
            bypassed: false,
            protocol: None,
            verdict: None,
            punted: None,
            epoch,
            name: NameRef::NONE,
            hold: Self::NO_HOLD,
            isn: Seq(0),
            client: End::default(),
            server: End::default(),
            created: now,
            seen: now,
        }
    }

    /// Source and destination of the client's packets.
    #[inline]
    pub const fn tuple(&self) -> Tuple {
        if self.client_is_low {
            Tuple { src: self.key.low, dst: self.key.high }
        } else {
            Tuple { src: self.key.high, dst: self.key.low }
        }
    }

    /// Which end sent a packet of this connection.
    #[inline]
    pub fn side(&self, tuple: &Tuple) -> Side {
        if (tuple.src == self.key.low) == self.client_is_low { Side::Client } else { Side::Server }
    }

    /// The end on `side` and the one opposite.
    #[inline]
    pub fn ends(&mut self, side: Side) -> (&mut End, &mut End) {
        match side {
            Side::Client => (&mut self.client, &mut self.server),
            Side::Server => (&mut self.server, &mut self.client),
        }
    }

    /// Whether a verdict lets it pass.
    #[inline]
    pub fn passes(&self) -> bool {
        self.verdict.is_some_and(Verdict::passes)
    }

    /// The rule that decided, if one did.
    pub fn rule(&self) -> Option<RuleId> {
        match self.verdict?.cause {
            Cause::Rule(id) => Some(id),
            _ => None,
        }
    }
}
