//! One connection as the dataplane remembers it.

use std::hint::select_unpredictable;
use std::slice::from_ref;

use prefetch_index::prefetch_index;

use crate::drop::PuntReason;
use crate::express::Place;
use crate::fib::Way;
use crate::hops::HopNumbers;
use crate::ids::{InterceptId, Nanos, PortId, RuleId};
use crate::policy::{Action, Cause, Protocol};
use crate::tcp::seq::Seq;
use crate::verify::HostCheck;
use crate::wire::addr::{Addr, Endpoint};

use super::key::{FlowKey, Tuple};
use super::names::NameRef;
use super::second::Second;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A SYN went to the server; no SYN-ACK came yet.
    SynSent,
    /// weir answered the client's SYN itself; the client's ACK is awaited.
    SynRcvd,
    /// The handshake passes or has passed; the client's bytes are held until there is a verdict.
    Held,
    /// The client has a handshake with weir; its bytes are held until there is a verdict. There is no server leg.
    Answered,
    /// The verdict is taken and a server leg is being opened; the client's bytes are held.
    Dialing,
    /// Allowed: both directions pass.
    Splice,
    /// Refused by a verdict, and stays so until the tuple is used again.
    Refused,
    /// Given to the kernel.
    Kernel,
    /// Over; lingers for retransmissions.
    Closed,
    /// The server leg of a connection that another worker owns: its packets go there.
    Elsewhere,
}

impl Stage {
    /// Whether the handshake with the client is not complete.
    #[inline]
    pub const fn is_half_open(self) -> bool {
        matches!(self, Self::SynSent | Self::SynRcvd)
    }
}

/// What the client offered in its SYN, as far as a server leg has to be opened with the same; cut down to what was agreed
/// with the client once that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// The client's MSS.
    pub mss: u16,
    pub sack: bool,
    pub timestamps: bool,
    pub window_scale: bool,
    /// Explicit congestion notification (RFC 3168).
    pub ecn: bool,
    /// TSval of the client's SYN, or the first one known of it.
    pub tsval: u32,
    /// The last TSval that the client was shown before a server leg was opened.
    pub shown: u32,
}

/// Why the server leg that a verdict asked for did not come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It answered with an RST, or an ICMP error said that it cannot be reached.
    Refused,
    /// It did not answer.
    TimedOut,
    /// No server, no route by a port, no free source port, or the addresses are in use for another connection.
    Unavailable,
}

impl Failure {
    /// As reasons are spelled in `weir flows`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "server-refused",
            Self::TimedOut => "server-timed-out",
            Self::Unavailable => "no-server",
        }
    }
}

/// Which end a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    #[inline]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// One end, as seen from the middle: what it has sent and what it allows the other to send. What each packet needs.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct End {
    /// The sequence number after the last octet of it that was passed on.
    pub nxt: Seq,
    /// The last acknowledgment it sent.
    pub ack: Seq,
    /// The right edge of the window it offers.
    pub edge: Seq,
    /// The lower parts of what [`Flow::packets`] and [`Flow::bytes`] say.
    pub(crate) packets: u32,
    pub(crate) bytes: u32,
}

/// The same end, as far as plain segments neither need nor change it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rest {
    /// The upper parts of the counts.
    packets: u16,
    bytes: u16,
    /// Its numbers are of before the express lane: the connection has gone on without them.
    pub lost: bool,
    /// Window shift it announced; applies when both did.
    pub shift: u8,
    pub fin: bool,
    pub fin_acked: bool,
}

/// Where an end would have got to by a segment that its peer's window does not take; believed when the peer acknowledges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub at: Seq,
    /// A FIN ended there.
    pub fin: bool,
}

/// What both ends claim, in few octets.
#[derive(Clone, Copy, Debug)]
pub struct Claims {
    client: Seq,
    server: Seq,
    /// Whether there is a FIN at that place; none: there is no claim.
    client_fin: Option<bool>,
    server_fin: Option<bool>,
}

impl Claims {
    pub const NONE: Self = Self { client: Seq(0), server: Seq(0), client_fin: None, server_fin: None };

    pub const fn get(&self, side: Side) -> Option<Claim> {
        match (side, self.client_fin, self.server_fin) {
            (Side::Client, Some(fin), _) => Some(Claim { at: self.client, fin }),
            (Side::Server, _, Some(fin)) => Some(Claim { at: self.server, fin }),
            _ => None,
        }
    }

    pub fn set(&mut self, side: Side, claim: Claim) {
        match side {
            Side::Client => (self.client, self.client_fin) = (claim.at, Some(claim.fin)),
            Side::Server => (self.server, self.server_fin) = (claim.at, Some(claim.fin)),
        }
    }

    /// Whether that end says that it has finished.
    pub fn has_fin(&self, side: Side) -> bool {
        self.get(side).is_some_and(|claim| claim.fin)
    }

    /// Of the claims those of an end are left.
    pub fn keep_fins(&mut self) {
        self.client_fin = self.client_fin.filter(|fin| *fin);
        self.server_fin = self.server_fin.filter(|fin| *fin);
    }

    pub fn clear(&mut self, side: Side) {
        match side {
            Side::Client => self.client_fin = None,
            Side::Server => self.server_fin = None,
        }
    }
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
        matches!(self.action, Action::Allow | Action::Relay | Action::Send(_))
    }
}

/// Whose connection it was at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This process's.
    Here,
    /// One that a process before this one decided, and noted what it knew of it.
    Adopted,
    /// The same, but nothing is known of it.
    Unknown,
}

/// A connection. What a packet of a running one needs is in the first cache line; of IPv6, whose addresses have no room there, in the
/// first two.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Flow {
    pub seen: Nanos,
    /// Its [`Short`] ends, as the client sends.
    addrs: u64,
    ports: u32,
    /// The line that its plain segments take without a thought ([`crate::hops::Hops::line`]): it was looked at as a whole, and nobody has
    /// had it in hand since. 0: they need one.
    pub(super) line: u32,
    pub client: End,
    pub server: End,

    pub key: FlowKey,
    pub stage: Stage,
    /// Who carries its packets.
    pub place: Place,
    /// The end that its key names first; none: there is no connection.
    pub low: Option<Side>,
    /// A sender left a checksum to a NIC that there is not.
    pub unsummed: bool,
    /// Where its packets leave.
    pub hops: HopNumbers,
    /// Its server leg, where that is another connection than the client's.
    pub leg: u32,
    pub client_rest: Rest,
    pub server_rest: Rest,
    /// The client's initial sequence number.
    pub isn: Seq,
    pub created: Nanos,
    /// The second hello that its server may ask for.
    pub second: Second,
    pub claims: Claims,
    pub offer: Offer,
    pub verdict: Option<Verdict>,
    /// The number that an RST bears by which `asked` answers, as the client counts.
    pub answer: Seq,
    pub epoch: u32,
    /// A hash of the ways that the program sends them out by.
    pub ways: u32,
    /// Its hold, if it has one.
    pub hold: u32,
    pub name: NameRef,
    /// The ALPN names that the client offered, in wire form.
    pub alpn: NameRef,
    /// Of several ways to its ends, those that it has taken.
    pub to_client: Way,
    pub to_server: Way,
    /// Its intercept in the configuration `epoch`. In another configuration the number may mean another one.
    pub intercept: InterceptId,
    /// The port its SYN came from.
    pub port: PortId,
    /// The SYN-ACK has been seen.
    pub answered: bool,
    /// Who was asked whether it still has the connection.
    pub asked: Option<Side>,
    /// Bytes of the client reached the server past weir, before the verdict.
    pub bypassed: bool,
    /// weir answered the client's SYN itself.
    pub by_weir: bool,
    /// Counted with its source's connections.
    pub counted: bool,
    pub origin: Origin,
    /// An RST was passed on of which nobody knows whether it ended the connection.
    pub reset: bool,
    /// The client's SYN is signed (TCP-MD5, TCP-AO): nobody else can speak for its ends.
    pub signed: bool,
    /// How far the check of its name is (`verify_host`).
    pub check: HostCheck,
    /// SYNs, SYN-ACKs or PROXY headers that weir has sent and sends again.
    pub tries: u8,
    pub failure: Option<Failure>,
    pub protocol: Option<Protocol>,
    /// Why it is on the kernel road.
    pub punted: Option<PuntReason>,
    /// The client offered Encrypted ClientHello.
    pub ech: bool,
    /// Its name or its ALPN names found no room in their store.
    pub partial: bool,
    /// Of an end the program alone has said that it has finished: whether that was acknowledged is not known.
    pub hearsay: bool,
}

// Four cache lines, of which a packet touches one or two.
const _: () = assert!(
    size_of::<Flow>() == 256
        && std::mem::offset_of!(Flow, key) == 64
        && std::mem::offset_of!(Flow, unsummed) < 128
);

/// Source and destination over IPv4, in few octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Short {
    addrs: u64,
    ports: u32,
}

impl Short {
    /// Those of `tuple`; of IPv6 addresses the last four octets.
    #[inline(always)]
    const fn of(tuple: &Tuple) -> Self {
        let ([.., a, b, c, d], [.., e, f, g, h]) = (tuple.src.addr.0, tuple.dst.addr.0);
        Self {
            addrs: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            ports: (tuple.src.port as u32) << 16 | tuple.dst.port as u32,
        }
    }

    #[inline(always)]
    const fn reversed(self) -> Self {
        Self { addrs: self.addrs.rotate_left(32), ports: self.ports.rotate_left(16) }
    }
}

/// What is counted in 48 bits goes no further: of octets, after hours at the highest rates there are.
const MOST: u64 = (1 << 48) - 1;

/// A number of two parts.
const fn whole(high: u16, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

impl Flow {
    /// No hold.
    pub const NO_HOLD: u32 = u32::MAX;
    /// No leg.
    pub const NO_LEG: u32 = u32::MAX;

    /// No connection.
    pub const NONE: Self = {
        let nobody = Endpoint { addr: Addr([0; 16]), port: 0 };
        let end = End { nxt: Seq(0), ack: Seq(0), edge: Seq(0), packets: 0, bytes: 0 };
        let rest = Rest { packets: 0, bytes: 0, lost: false, shift: 0, fin: false, fin_acked: false };
        let offer = Offer {
            mss: 0,
            sack: false,
            timestamps: false,
            window_scale: false,
            ecn: false,
            tsval: 0,
            shown: 0,
        };
        Self {
            key: FlowKey { low: nobody, high: nobody },
            stage: Stage::SynSent,
            place: Place::Worker,
            low: None,
            unsummed: false,
            hops: HopNumbers::NONE,
            seen: Nanos(0),
            addrs: 0,
            ports: 0,
            line: 0,
            client_rest: rest,
            server_rest: rest,
            isn: Seq(0),
            hold: Self::NO_HOLD,
            leg: Self::NO_LEG,
            client: end,
            server: end,
            created: Nanos(0),
            second: Second::NONE,
            claims: Claims::NONE,
            offer,
            verdict: None,
            answer: Seq(0),
            asked: None,
            epoch: 0,
            ways: 0,
            name: NameRef::NONE,
            alpn: NameRef::NONE,
            to_client: Way::NONE,
            to_server: Way::NONE,
            intercept: InterceptId(0),
            port: PortId(0),
            answered: false,
            bypassed: false,
            by_weir: false,
            counted: false,
            origin: Origin::Here,
            reset: false,
            signed: false,
            check: HostCheck::None,
            tries: 0,
            failure: None,
            protocol: None,
            punted: None,
            ech: false,
            partial: false,
            hearsay: false,
        }
    };

    /// A connection that starts with the packet `tuple`, which comes from the client, at `port`.
    pub fn new(tuple: &Tuple, port: PortId, intercept: InterceptId, epoch: u32, now: Nanos) -> Self {
        let key = FlowKey::of(tuple);
        let low = Some(if key.low == tuple.src { Side::Client } else { Side::Server });
        let Short { addrs, ports } = Short::of(tuple);
        Self { addrs, ports, key, low, port, intercept, epoch, created: now, seen: now, ..Self::NONE }
    }

    /// Has the cache line that a packet needs fetched, or both.
    #[inline(always)]
    pub(super) fn prefetch(&self, both: bool) {
        if cfg!(target_arch = "x86_64") {
            prefetch_index(from_ref(self), 0);
            if both {
                prefetch_index(from_ref(&self.key), 0);
            }
        } else {
            // No stable Rust has an instruction for it there: reading a word of each waits, but for all that are read together at once.
            std::hint::black_box(self.line ^ if both { u32::from(self.key.low.port) } else { 0 });
        }
    }

    /// Source and destination of the client's packets.
    #[inline]
    pub const fn tuple(&self) -> Tuple {
        match self.low {
            Some(Side::Server) => Tuple { src: self.key.high, dst: self.key.low },
            _ => Tuple { src: self.key.low, dst: self.key.high },
        }
    }

    /// Which end sent a packet of this connection.
    #[inline]
    pub fn side(&self, tuple: &Tuple) -> Side {
        let low = self.low.unwrap_or(Side::Client);
        if tuple.src == self.key.low { low } else { low.opposite() }
    }

    /// The same, of a packet that may be another's.
    #[inline]
    pub fn side_of(&self, tuple: &Tuple) -> Option<Side> {
        let low = self.low?;
        let from_low = tuple.src == self.key.low;
        let (first, second) = if from_low { (&tuple.src, &tuple.dst) } else { (&tuple.dst, &tuple.src) };
        let side = if from_low { low } else { low.opposite() };
        (*first == self.key.low && *second == self.key.high).then_some(side)
    }

    /// The same in fewer steps, of a packet over the same IP: the ports say which end it may be. A packet between two equal ports may
    /// not be recognized.
    #[inline(always)]
    pub(super) fn side_at_once(&self, tuple: &Tuple, v6: bool) -> Option<Side> {
        if v6 {
            return self.side_at_once_v6(tuple);
        }
        let (packet, mine) = (Short::of(tuple), Short { addrs: self.addrs, ports: self.ports });
        let from_client = packet.ports == mine.ports;
        let expected = select_unpredictable(from_client, mine, mine.reversed());
        (packet == expected).then_some(if from_client { Side::Client } else { Side::Server })
    }

    #[inline(always)]
    fn side_at_once_v6(&self, tuple: &Tuple) -> Option<Side> {
        let low = self.low?;
        let from_low = tuple.src.port == self.key.low.port;
        let (first, second) =
            select_unpredictable(from_low, (&tuple.src, &tuple.dst), (&tuple.dst, &tuple.src));
        let is_same = (first.addr == self.key.low.addr)
            & (second.addr == self.key.high.addr)
            & (first.port == self.key.low.port)
            & (second.port == self.key.high.port);
        is_same.then_some(if from_low { low } else { low.opposite() })
    }

    /// Its client is the other end.
    pub fn turn(&mut self) {
        self.low = self.low.map(Side::opposite);
        let Short { addrs, ports } = Short { addrs: self.addrs, ports: self.ports }.reversed();
        (self.addrs, self.ports) = (addrs, ports);
    }

    /// The end on `side` and the one opposite.
    #[inline]
    pub fn ends(&mut self, side: Side) -> (&mut End, &mut End) {
        match side {
            Side::Client => (&mut self.client, &mut self.server),
            Side::Server => (&mut self.server, &mut self.client),
        }
    }

    /// What else there is of the end on `side` and of the one opposite.
    #[inline]
    pub fn rests(&mut self, side: Side) -> (&mut Rest, &mut Rest) {
        match side {
            Side::Client => (&mut self.client_rest, &mut self.server_rest),
            Side::Server => (&mut self.server_rest, &mut self.client_rest),
        }
    }

    /// Packets that the end on `side` has sent.
    pub const fn packets(&self, side: Side) -> u64 {
        match side {
            Side::Client => whole(self.client_rest.packets, self.client.packets),
            Side::Server => whole(self.server_rest.packets, self.server.packets),
        }
    }

    /// Octets of payload that it has sent.
    pub const fn bytes(&self, side: Side) -> u64 {
        match side {
            Side::Client => whole(self.client_rest.bytes, self.client.bytes),
            Side::Server => whole(self.server_rest.bytes, self.server.bytes),
        }
    }

    /// The end on `side` has sent so much more.
    #[inline]
    pub fn count(&mut self, side: Side, packets: u64, bytes: u64) {
        let packets = self.packets(side).saturating_add(packets).min(MOST);
        let bytes = self.bytes(side).saturating_add(bytes).min(MOST);
        let (end, rest) = match side {
            Side::Client => (&mut self.client, &mut self.client_rest),
            Side::Server => (&mut self.server, &mut self.server_rest),
        };
        (end.packets, end.bytes) = (packets as u32, bytes as u32);
        (rest.packets, rest.bytes) = ((packets >> 32) as u16, (bytes >> 32) as u16);
    }

    /// Whether the client has finished, and whether the server has.
    #[inline]
    pub const fn fins(&self) -> (bool, bool) {
        (self.client_rest.fin, self.server_rest.fin)
    }

    /// Whether what is known of its numbers is of before the express lane.
    #[inline]
    pub const fn is_lost(&self) -> bool {
        self.client_rest.lost || self.server_rest.lost
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
