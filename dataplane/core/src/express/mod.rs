//! The express lane as this crate sees it: what the XDP program has to know of a connection to carry its packets without a
//! worker, and which connections that may be.
//!
//! A connection enters when there is nothing left to think about: the verdict is taken, and the server has acknowledged what was
//! inspected and what weir itself wrote before it. All that is done to its packets is then constants, which are written down once.
//! Whatever is not a plain segment of an established connection the program hands to the worker. What the worker knew of windows and
//! sequence numbers is of before from then on ([`crate::tcp::track`]), and it does not pretend otherwise.
//!
//! The pipeline ([`crate::stage::express`]) yields [`ExpressOp`]s; whoever carries them out answers with what came of it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::drop::reasons;
use crate::flow::key::{FlowKey, Tuple};
use crate::flow::record::Verdict;
use crate::flow::second::HelloRetry;
use crate::ids::{MAX_PORTS, Nanos, PortId, PortSet};
use crate::policy::Protocol;
use crate::tcp::translate::{TimestampMode, Translation};
use crate::verify::Verified;
use crate::wire::addr::Addr;

/// Between which ports the lane carries, and between which it stands by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lanes {
    /// For each port that packets come in by, those that they may leave by.
    pub between: [PortSet; MAX_PORTS],
    /// The same of connections that their workers carry, and the lane when there is no worker.
    pub standby: [PortSet; MAX_PORTS],
}

impl Lanes {
    /// No lane anywhere.
    pub const NONE: Self = Self { between: [PortSet::NONE; MAX_PORTS], standby: [PortSet::NONE; MAX_PORTS] };

    /// Whether a connection between these two ports may take it: both directions.
    pub fn carry(&self, a: PortId, b: PortId) -> bool {
        Self::both_ways(&self.between, a, b)
    }

    /// Whether it stands by for a connection between these two ports: both directions.
    pub fn stand_by(&self, a: PortId, b: PortId) -> bool {
        Self::both_ways(&self.standby, a, b)
    }

    pub fn is_empty(&self) -> bool {
        self.between.iter().chain(&self.standby).all(|ports| ports.is_empty())
    }

    fn both_ways(lanes: &[PortSet; MAX_PORTS], a: PortId, b: PortId) -> bool {
        let one =
            |from: PortId, to: PortId| lanes.get(usize::from(from.0)).is_some_and(|ports| ports.contains(to));
        one(a, b) && one(b, a)
    }
}

/// Where the packets of a connection are carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// By the worker.
    #[default]
    Worker,
    /// By the worker again, and for good: it is ending.
    Back,
    /// By the worker: the program had no room.
    NoRoom,
    /// By the worker, until the program has it.
    Entering,
    /// By the program.
    Express,
    /// By the worker, and by the program when there is none.
    Standby,
}

impl Place {
    /// Whether the program has it, to carry it now or later.
    pub const fn is_in_map(self) -> bool {
        matches!(self, Self::Express | Self::Standby)
    }
}

reasons! {
    /// Why a connection stays with the worker.
    Stay {
        Off = "express-off", "The express lane is off, or not used between these two ports.";
        Vlan = "vlan", "It comes or leaves with a VLAN tag: the program carries untagged packets alone.";
        Undecided = "undecided", "No verdict lets it pass yet.";
        Unacknowledged = "unacknowledged", "The server has not acknowledged what was inspected, or what weir wrote before it.";
        Unanswered = "unanswered", "The server may yet ask the client for a second ClientHello.";
        Clock = "own-clock", "The client was promised timestamps that its server does not make: weir makes them, packet by packet.";
        NoWay = "no-way", "The next hop on one side is not known.";
        Unsummed = "unsummed", "A sender leaves checksums to a NIC that there is not: each packet gets them here.";
        Ending = "ending", "A FIN or an RST was seen, or something else that needs thought.";
        NoRoom = "no-room", "The program had no room for it.";
        Standby = "standby", "The program has it, and carries it only when there is no worker: the worker is the faster one between zero-copy ports.";
        Young = "young", "It has not had enough packets yet, nor lived long enough.";
    }
}

/// The way out of one direction: the port, and the neighbour there that gets the packets.
pub type WayOut = (PortId, Addr);

/// A connection as the program is to carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    pub names: Names,
    pub to_server: WayOut,
    pub to_client: WayOut,
    /// How packets cross between the two legs; `None`: nothing changes but TTL and Ethernet addresses.
    pub up: Option<Translation>,
    /// Only when there is no worker.
    pub stands_by: bool,
}

/// A connection as the program calls it: source and destination of the client's packets as they come in, and as they leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    pub client: Tuple,
    pub server: Tuple,
}

impl Names {
    /// What the worker calls it.
    pub fn key(&self) -> FlowKey {
        FlowKey::of(&self.client)
    }
}

/// A change of what the program carries, for whoever feeds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpressOp {
    /// Let the program have it, so that it overtakes nothing of what is in hand here; then [`Pipeline::handle_entered`].
    ///
    /// [`Pipeline::handle_entered`]: crate::pipeline::Pipeline::handle_entered
    Enter(Carried),
    /// Take it back; then [`Pipeline::handle_passed`] with the last numbers.
    ///
    /// [`Pipeline::handle_passed`]: crate::pipeline::Pipeline::handle_passed
    Leave(Names),
    /// The program only stands by for it from now on, and is to know of these ends, of the client and of the server, and of those that say
    /// so and may yet be somebody else's word: for the next process, which sees no acknowledgment that passes before it. Then
    /// [`Pipeline::handle_ending`] with the numbers of before.
    ///
    /// [`Pipeline::handle_ending`]: crate::pipeline::Pipeline::handle_ending
    Ending { names: Names, fins: (bool, bool), says: (bool, bool) },
    /// What is known of it has changed: note it anew ([`Pipeline::note`]).
    ///
    /// [`Pipeline::note`]: crate::pipeline::Pipeline::note
    Note(Names),
    /// Ask what passed and when; then [`Pipeline::handle_seen`].
    ///
    /// [`Pipeline::handle_seen`]: crate::pipeline::Pipeline::handle_seen
    Ask(Names),
}

/// What the program has carried of a connection, and when the last of it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    pub packets_to_server: u64,
    pub packets_to_client: u64,
    pub bytes_to_server: u64,
    pub bytes_to_client: u64,
    pub seen: Nanos,
    /// FINs that it knows of, of the client, of the server; while there was no sign of life it has sent on an RST.
    pub fins: (bool, bool),
    pub rst: bool,
}

/// What is known of a connection besides what the program has to know, for the process after this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note<'a> {
    pub created: Nanos,
    /// Its rule, if one decided, is one of those that the policy remembers of before it ([`Policy::remembering`]).
    ///
    /// [`Policy::remembering`]: crate::policy::Policy::remembering
    pub verdict: Verdict,
    pub protocol: Option<Protocol>,
    pub verified: Option<Verified>,
    pub hello_retry: HelloRetry,
    pub ech: bool,
    pub signed: bool,
    /// Some of its names are missing.
    pub partial: bool,
    pub host: Option<Cow<'a, str>>,
    /// ALPN names, in wire form.
    pub alpn: Cow<'a, [u8]>,
    /// What passed before the lane had it, but for what the worker had in hand at that time.
    pub passed: Passed,
}

/// A connection that the program went on carrying when the process before this one had ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    pub names: Names,
    pub up: Option<Translation>,
    /// When its last packet passed.
    pub seen: Nanos,
    /// The client has sent a FIN, the server has, as far as anybody could tell.
    pub fins: (bool, bool),
    /// It is for a worker, now that there is one again.
    pub stands_by: bool,
    /// What that process knew of it; none where it found no room for a note.
    pub note: Option<Note<'static>>,
}

/// Whether all that a translation does is constants, so that it can be written down once: weir makes no timestamps of its own, and
/// there is nothing left that the server has to acknowledge first.
pub const fn is_constant(up: &Translation) -> bool {
    up.acked && !matches!(up.timestamps, TimestampMode::ClientOnly { .. })
}

#[cfg(test)]
mod tests;
