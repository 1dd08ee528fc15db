//! The mirror of the express lane's part of dataplane/bpf/maps.h, byte for byte. See steering/layout.rs.

use std::mem::offset_of;
use std::net::SocketAddr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::steering::layout::Address;

/// Next hops.
pub const HOPS: u32 = 65_536;
/// Devices.
pub const LINKS: u32 = 32;
/// In an entry's `link`: the flow is its worker's, as long as there is one.
pub const STANDBY: u8 = 128;
/// And: no worker knows the flow.
pub const STRAY: u8 = 64;
/// And: its worker may have packets in hand that came before.
pub const CHANGES: u8 = 32;

// What is done to a packet of a direction.
pub const TO_CLIENT: u8 = 1;
pub const READDRESS: u8 = 2;
pub const TIMESTAMPS: u8 = 4;
pub const SACK_MAP: u8 = 8;
pub const SACK_REMOVE: u8 = 16;
pub const CLEAR_ECN: u8 = 32;
pub const TRANSLATED: u8 = 64;
pub const VOID: u8 = 128;

// What of FIN and RST is noted in `ended`, as in TCP's flags.
pub const FIN: u8 = 1;
pub const RST: u8 = 4;
/// And: the worker has had a FIN that nobody had acknowledged yet.
pub const SAID: u8 = 2;

/// Frames of the device may come with checksums that a device was to finish.
pub const UNFINISHED_SUMS: u8 = 1;

/// Source and destination of a packet as it comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(in crate::steering) struct Key {
    pub src: Address,
    pub dst: Address,
    pub sport: [u8; 2],
    pub dport: [u8; 2],
}

impl Key {
    pub fn new(src: SocketAddr, dst: SocketAddr) -> Self {
        Self {
            src: src.ip().into(),
            dst: dst.ip().into(),
            sport: src.port().to_be_bytes(),
            dport: dst.port().to_be_bytes(),
        }
    }

    /// `weir_express_check`: a number that few other keys have.
    pub fn check(&self) -> u32 {
        const FACTORS: [u64; 5] = [
            0x9e37_79b9_7f4a_7c15,
            0xbf58_476d_1ce4_e5b9,
            0x94d0_49bb_1331_11eb,
            0xd6e8_feb8_6659_fd93,
            0xa076_1d64_78bd_642f,
        ];
        let word = |octets: &[u8]| octets.try_into().map_or(0, u64::from_ne_bytes);
        let [a, b, c, d] =
            [word(&self.src.0[..8]), word(&self.src.0[8..]), word(&self.dst.0[..8]), word(&self.dst.0[8..])];
        let ports = u32::from_ne_bytes([self.sport[0], self.sport[1], self.dport[0], self.dport[1]]);
        let sum = [a, b, c, d, u64::from(ports)]
            .into_iter()
            .zip(FACTORS)
            .fold(0_u64, |sum, (word, factor)| sum.wrapping_add(word.wrapping_mul(factor)));
        (sum >> 32) as u32
    }

    pub fn endpoints(&self) -> (SocketAddr, SocketAddr) {
        endpoints(&self.src, self.sport, &self.dst, self.dport)
    }
}

fn endpoints(src: &Address, sport: [u8; 2], dst: &Address, dport: [u8; 2]) -> (SocketAddr, SocketAddr) {
    let end = |address: &Address, port| SocketAddr::new((*address).into(), u16::from_be_bytes(port));
    (end(src, sport), end(dst, dport))
}

/// What an entry begins with, in every layout from 8 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(in crate::steering) struct Head {
    src: Address,
    dst: Address,
    sport: [u8; 2],
    dport: [u8; 2],
    pub last_seen: u32,
    pub hop: u16,
    pub flags: u8,
    pub ended: u8,
}

impl Head {
    /// Of packets that go out so.
    pub fn new(goes: &Key, last_seen: u32) -> Self {
        let Key { src, dst, sport, dport } = *goes;
        Self { src, dst, sport, dport, last_seen, hop: 0, flags: 0, ended: 0 }
    }

    /// Source and destination of the packets as they go out.
    pub fn endpoints(&self) -> (SocketAddr, SocketAddr) {
        endpoints(&self.src, self.sport, &self.dst, self.dport)
    }

    /// The key of the flow's other direction.
    pub const fn back(&self) -> Key {
        Key { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }
}

/// A direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(in crate::steering) struct Entry {
    pub head: Head,
    pub check: u32,
    pub given: u32,
    pub worker: u8,
    pub reserved: [u8; 3],
    pub packets: u64,
    pub bytes: u64,
    pub delta: u32,
    pub clock: u32,
    pub floor: u32,
    pub behind: u32,
    pub tcp_change: u16,
    pub ip_change: u16,
    pub link: u8,
    pub shift: i8,
    pub tick: u16,
}

impl Entry {
    /// The device that the packets have to come in by.
    pub const fn link(&self) -> u8 {
        self.link & (LINKS as u8 - 1)
    }

    /// The program carries it only when there is no worker.
    pub const fn stands_by(&self) -> bool {
        self.link & STANDBY != 0
    }

    /// Its worker has it until it has been seen with nothing in hand.
    pub const fn changes(&self) -> bool {
        self.link & CHANGES != 0
    }

    /// No worker knows it.
    pub const fn is_stray(&self) -> bool {
        self.link & STRAY != 0
    }
}

/// A way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(in crate::steering) struct HopValue {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    pub mtu: u16,
    pub link: u8,
    pub up: u8,
}

/// A device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(in crate::steering) struct LinkValue {
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub flags: u8,
    pub reserved: u8,
}

const _: () = {
    assert!(HOPS == 1 << u16::BITS, "a hop is named in 16 bits");
    assert!(LINKS.is_power_of_two() && LINKS as u8 <= CHANGES, "a device is named in the other bits");
    assert!(size_of::<Key>() == 36);
    assert!(size_of::<Entry>() == 96);
    assert!(size_of::<Head>() == 44);
    assert!(offset_of!(Head, sport) == 32);
    assert!(offset_of!(Head, last_seen) == 36);
    assert!(offset_of!(Head, hop) == 40);
    assert!(offset_of!(Head, flags) == 42);
    assert!(offset_of!(Head, ended) == 43);
    assert!(offset_of!(Entry, check) == 44);
    assert!(offset_of!(Entry, given) == 48 && offset_of!(Entry, worker) == 52);
    assert!(offset_of!(Entry, packets) == 56);
    assert!(offset_of!(Entry, tick) == 94);
    assert!(size_of::<HopValue>() == 16);
    assert!(size_of::<LinkValue>() == 12);
};
