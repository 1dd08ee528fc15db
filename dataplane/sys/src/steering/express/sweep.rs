//! Reading the lane's map in pieces: for idle timers, counters, and a process that takes it over.

use std::io;
use std::net::SocketAddr;

use super::Seen;
use super::layout::{CLEAR_ECN, Entry, Key, SACK_REMOVE, TO_CLIENT, TRANSLATED};
use crate::steering::map::Map;

/// Entries read by one system call. The kernel reads whole buckets, and the fullest one must fit.
const ROOM: usize = 4096;

/// A direction of a flow as it is in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpressEntry {
    /// It goes to the client.
    pub is_to_client: bool,
    /// Something but Ethernet addresses and TTL is changed in the flow's packets.
    pub is_translated: bool,
    /// Source and destination as the packets come in, and as they go out.
    pub came: (SocketAddr, SocketAddr),
    pub goes: (SocketAddr, SocketAddr),
    pub link: u8,
    pub hop: u16,
    /// The program carries it only when there is no worker.
    pub stands_by: bool,
    /// No worker knows it.
    pub is_stray: bool,
    /// It changes over from a worker.
    pub changes: bool,
    pub seen: Seen,
    pub change: Change,
}

/// What is done to the packets of a direction, as [`super::Splice`] has it for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// To the client: added to seq and TSval; to the server: to ack and SACK edges, and to TSecr.
    pub delta: u32,
    pub clock: u32,
    /// The first octet of the stream that is acknowledged, and how far before it something lies before it.
    pub floor: u32,
    pub behind: u32,
    pub shift: i8,
    /// SACK options are removed; ECN is taken out.
    pub removes_sack: bool,
    pub clears_ecn: bool,
}

/// A reading of the map that goes on from call to call. Holds about half a megabyte.
#[derive(Debug)]
pub struct Sweep {
    keys: Vec<Key>,
    values: Vec<Entry>,
    read: usize,
    at: Option<u32>,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { keys: zeroed(), values: zeroed(), read: 0, at: None }
    }
}

impl Sweep {
    /// What the last call of [`Express::sweep`](super::Express::sweep) has read.
    pub fn entries(&self) -> impl Iterator<Item = ExpressEntry> + '_ {
        self.keys.iter().zip(&self.values).take(self.read).map(|(key, entry)| ExpressEntry {
            is_to_client: entry.head.flags & TO_CLIENT != 0,
            is_translated: entry.head.flags & TRANSLATED != 0,
            came: key.endpoints(),
            goes: entry.head.endpoints(),
            link: entry.link(),
            hop: entry.head.hop,
            stands_by: entry.stands_by(),
            is_stray: entry.is_stray(),
            changes: entry.changes(),
            seen: Seen::from(entry),
            change: Change {
                delta: entry.delta,
                clock: entry.clock,
                floor: entry.floor,
                behind: entry.behind,
                shift: entry.shift,
                removes_sack: entry.head.flags & SACK_REMOVE != 0,
                clears_ecn: entry.head.flags & CLEAR_ECN != 0,
            },
        })
    }

    /// Starts from the beginning with the next call.
    pub const fn restart(&mut self) {
        self.at = None;
        self.read = 0;
    }

    pub(super) fn read(&mut self, map: &Map<Key, Entry>) -> io::Result<bool> {
        self.read = 0;
        (self.read, self.at) = map.read_all(self.at, &mut self.keys, &mut self.values)?;
        Ok(self.at.is_some())
    }
}

fn zeroed<T: zerocopy::FromBytes + Clone>() -> Vec<T> {
    vec![T::new_zeroed(); ROOM]
}
