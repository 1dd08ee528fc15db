//! A flow as it enters the lane, and the two entries that the program reads of it.

use std::net::SocketAddr;

use super::layout::{
    CHANGES, CLEAR_ECN, Entry, Head, Key, READDRESS, SACK_MAP, SACK_REMOVE, STANDBY, TIMESTAMPS, TO_CLIENT,
    TRANSLATED,
};
use crate::steering::layout::Address;

/// How far before the start of a stream a SACK block of the client is taken to lie before it: that of weir-core's translation.
const BEHIND: u32 = 1 << 16;

/// Source and destination.
pub type Ends = (SocketAddr, SocketAddr);

/// A connection whose verdict has fallen and that needs no worker as long as its packets are plain segments.
///
/// What is asked of it: the inspected octets are acknowledged, and so is a PROXY header; the server has acknowledged
/// payload (`Translation::acked` of weir-core); timestamps are on both legs or on neither. All addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpressFlow {
    /// As the client sends: client to destination.
    pub client: Ends,
    /// As the server receives: source to server. The same as `client` where nothing is changed.
    pub server: Ends,
    /// Where the client's and the server's packets have to come in: numbers from [`Express::set_link`](super::Express::set_link).
    pub client_link: u8,
    pub server_link: u8,
    /// The ways out, to the server and to the client: of [`Express::set_hop`](super::Express::set_hop).
    pub server_hop: u16,
    pub client_hop: u16,
    /// The worker carries it, and the program only when there is none.
    pub stands_by: bool,
    /// The number of the worker that may have packets of it in hand: it gets those that come until it has told that it has none
    /// ([`Express::tell_idle`](super::Express::tell_idle)). None: the program carries it at once.
    pub from: Option<u8>,
    pub splice: Splice,
}

/// What is translated between the legs, as in weir-core's `Translation`, whose description is the specification. The default
/// changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Splice {
    /// Client-space is server-space plus this.
    pub delta: u32,
    /// The first octet of the client's stream.
    pub start: u32,
    /// Octets of weir's own that stood before `start` on the server's leg.
    pub prefix: u16,
    /// The first octet of the server's stream, in server-space.
    pub base: u32,
    /// The server's TSval as the client sees it is the server's plus this.
    pub clock: u32,
    /// Whether the server's leg takes SACK.
    pub sack: bool,
    /// Window fields to the client and to the server: shifted left by this, saturating, or right when negative; -14 to 14.
    pub shift_to_client: i8,
    pub shift_to_server: i8,
    /// Whether ECN was agreed end to end; if not, the server sees nothing of it.
    pub ecn: bool,
}

impl Default for Splice {
    fn default() -> Self {
        Self {
            delta: 0,
            start: 0,
            prefix: 0,
            base: 0,
            clock: 0,
            sack: true,
            shift_to_client: 0,
            shift_to_server: 0,
            ecn: true,
        }
    }
}

impl ExpressFlow {
    /// Whether the kernel could not go on with it: something but the Ethernet addresses and the TTL is changed.
    pub fn is_translated(&self) -> bool {
        let s = &self.splice;
        self.client != self.server
            || s.delta != 0
            || s.clock != 0
            || s.prefix != 0
            || s.shift_to_client != 0
            || s.shift_to_server != 0
            || !s.sack
            || !s.ecn
    }

    /// The keys of the two directions: to the server, to the client.
    pub(super) fn keys(client: Ends, server: Ends) -> [Key; 2] {
        [Key::new(client.0, client.1), Key::new(server.1, server.0)]
    }

    /// The entries of the two directions, last seen at `seen` (units of 2^30 ns).
    pub(super) fn entries(&self, seen: u32) -> ([Key; 2], [Entry; 2]) {
        let keys = Self::keys(self.client, self.server);
        let [to_server, to_client] = keys;
        let translated = if self.is_translated() { TRANSLATED } else { 0 };
        let place = match (self.stands_by, self.from) {
            (true, _) => STANDBY,
            (false, Some(_)) => CHANGES,
            (false, None) => 0,
        };
        let s = &self.splice;
        let mut up = self.entry(&to_server, self.server, seen);
        up.head.flags |= translated | self.flags_to_server();
        up.delta = s.delta.wrapping_neg();
        up.clock = s.clock.wrapping_neg();
        up.floor = s.base;
        up.behind = BEHIND;
        up.shift = s.shift_to_server.clamp(-14, 14);
        up.link = self.client_link | place;
        up.head.hop = self.server_hop;
        let mut down = self.entry(&to_client, (self.client.1, self.client.0), seen);
        down.head.flags |= translated | self.flags_to_client();
        down.delta = s.delta;
        down.clock = s.clock;
        down.floor = s.start;
        down.behind = u32::from(s.prefix);
        down.shift = s.shift_to_client.clamp(-14, 14);
        down.link = self.server_link | place;
        down.head.hop = self.client_hop;
        (keys, [up, down])
    }

    const fn flags_to_server(&self) -> u8 {
        let s = &self.splice;
        let sack = match (s.sack, s.delta) {
            (false, _) => SACK_REMOVE,
            (true, 0) => 0,
            (true, _) => SACK_MAP,
        };
        let clock = if s.clock == 0 { 0 } else { TIMESTAMPS };
        let ecn = if s.ecn { 0 } else { CLEAR_ECN };
        sack | clock | ecn
    }

    const fn flags_to_client(&self) -> u8 {
        let s = &self.splice;
        let clock = if s.clock == 0 { 0 } else { TIMESTAMPS };
        let sack = if s.prefix == 0 { 0 } else { SACK_MAP };
        TO_CLIENT | clock | sack
    }

    /// An entry with addresses and what their change does to the checksums.
    fn entry(&self, key: &Key, to: Ends, last_seen: u32) -> Entry {
        let (src, dst) = (Address::from(to.0.ip()), Address::from(to.1.ip()));
        let (sport, dport) = (to.0.port().to_be_bytes(), to.1.port().to_be_bytes());
        let new = Key { src, dst, sport, dport };
        let addresses = change(&[key.src.0, key.dst.0].concat(), &[src.0, dst.0].concat());
        let ports = change(&[key.sport, key.dport].concat(), &[sport, dport].concat());
        let mut head = Head::new(&new, last_seen);
        head.flags = if *key == new { 0 } else { READDRESS };
        Entry {
            head,
            check: key.check(),
            given: 0,
            worker: self.from.unwrap_or_default(),
            reserved: [0; 3],
            packets: 0,
            bytes: 0,
            delta: 0,
            clock: 0,
            floor: 0,
            behind: 0,
            tcp_change: folded(u32::from(addresses) + u32::from(ports)),
            ip_change: addresses,
            link: 0,
            shift: 0,
            tick: 0,
        }
    }
}

/// What a change of octets adds to a checksum over them (RFC 1624: ~m + m'), of words as they stand in memory; 0 only when
/// nothing changes.
fn change(old: &[u8], new: &[u8]) -> u16 {
    if old == new {
        return 0;
    }
    let words = |octets: &[u8]| -> u32 {
        octets.chunks_exact(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum()
    };
    folded(u32::from(!folded(words(old))) + u32::from(folded(words(new))))
}

/// A one's complement sum in 16 bits.
const fn folded(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}
