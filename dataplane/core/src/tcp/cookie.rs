//! SYN cookies (RFC 4987 section 3.6): the initial sequence number of a SYN-ACK carries what would otherwise be remembered,
//! so that a SYN costs no memory.
//!
//! The layout is fixed, since an XDP program computes the same:
//!
//! ```text
//! time       in periods of 64 s: period = ns / 64e9
//! secret     octets 0..16: K, octets 16..32: C
//! key        k = SipHash-2-4-128(K; period: u64 little-endian), 16 octets: the key of one period
//! input      source address 16 | destination address 16 | source port 2 | destination port 2 | client's ISN 4
//!            = 40 octets as on the wire (big-endian), client -> destination; IPv4 addresses as v4-mapped IPv6
//! h          = SipHash-2-4(k; input), 64 bits
//! bits       = MSS index << 5 | shift << 1 | SACK permitted; shift 15: no window scale
//! mac        = SipHash-2-4(k; h: u64 little-endian | bits: 1 octet), its low 24 bits
//! ISN        = (bits ^ h >> 56) << 24 | mac
//! TSval      = ns / 1e6 + SipHash-2-4(C; the input's first 36 octets), modulo 2^32
//! ```
//!
//! The eight bits are masked by `h` because connections with the same options would otherwise have the same leading octet, and
//! whoever forges data blindly would have 24 bits to guess, less the window, instead of 32 (RFC 6528). Whether the client has timestamps
//! is not carried: its ACK has them or not.
//!
//! A guess at a cookie is right once in 2^23 (24 bits, two periods). A forged connection is one that the client's end did not
//! ask for; it still passes the verdict like any other.

use siphasher::{sip, sip128};

use super::seq::Seq;
use crate::flow::key::Tuple;
use crate::ids::Nanos;
use crate::wire::put;

/// How long one key makes cookies, in nanoseconds.
pub const PERIOD: Nanos = Nanos::from_secs(64);
/// The MSS values that a cookie can carry: the smallest that Linux lets a user ask for (`TCP_MIN_MSS`), the defaults of IPv4 and IPv6
/// (RFC 9293 section 3.7.1), tunnels, mobile networks and firewalls, Ethernet under IPv6 and IPv4, jumbo frames.
pub const MSS_TABLE: [u16; 8] = [88, 536, 1220, 1300, 1380, 1440, 1460, 8940];
/// In the bits of the shift: the client has no window scale.
const NO_SHIFT: u8 = 15;
/// Octets of the tuple and of all that is hashed.
const TUPLE_LEN: usize = 36;
const INPUT_LEN: usize = 40;

/// What a cookie carries of the client's SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Comes back as the largest entry of [`MSS_TABLE`] that is not above it (or the first entry, if all are).
    pub mss: u16,
    /// Shift count, at most 14 (RFC 7323 section 2.3).
    pub window_scale: Option<u8>,
    /// SACK permitted.
    pub sack: bool,
}

impl Carried {
    fn to_bits(self) -> u8 {
        let index = MSS_TABLE.iter().rposition(|mss| *mss <= self.mss).unwrap_or(0);
        let shift = self.window_scale.map_or(NO_SHIFT, |shift| shift.min(14));
        (index as u8) << 5 | shift << 1 | u8::from(self.sack)
    }

    fn from_bits(bits: u8) -> Option<Self> {
        let shift = bits >> 1 & 0xf;
        Some(Self {
            mss: *MSS_TABLE.get(usize::from(bits >> 5))?,
            window_scale: (shift != NO_SHIFT).then_some(shift),
            sack: bits & 1 != 0,
        })
    }
}

/// Makes and checks cookies. All workers of a box, and its XDP program, share one secret and one clock.
#[derive(Clone)]
pub struct Cookies {
    /// K: makes the key of each period.
    periods: sip128::SipHasher24,
    /// C: hides the clock.
    clock: sip::SipHasher24,
}

impl std::fmt::Debug for Cookies {
    /// The secret is not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cookies").finish_non_exhaustive()
    }
}

impl Cookies {
    /// `secret` is random, and new with every start: the cookies of before are then lost.
    pub fn new(secret: [u8; 32]) -> Self {
        let (mut k, mut c) = ([0; 16], [0; 16]);
        for ((k, c), (a, b)) in k.iter_mut().zip(&mut c).zip(secret.iter().zip(secret.iter().skip(16))) {
            (*k, *c) = (*a, *b);
        }
        Self { periods: sip128::SipHasher24::new_with_key(&k), clock: sip::SipHasher24::new_with_key(&c) }
    }

    /// The initial sequence number of the SYN-ACK to a SYN of `tuple` (client to destination) with `client_isn`.
    pub fn make(&self, tuple: &Tuple, client_isn: Seq, carried: &Carried, now: Nanos) -> Seq {
        seal(&self.key(period(now)), &input(tuple, client_isn), |_| carried.to_bits()).0
    }

    /// What was carried, when `isn` was made by [`Self::make`] for this tuple and client in this period or the one before. The
    /// client's first ACK acknowledges `isn` + 1 and starts at `client_isn` + 1.
    pub fn check(&self, tuple: &Tuple, client_isn: Seq, isn: Seq, now: Nanos) -> Option<Carried> {
        let input = input(tuple, client_isn);
        let last = period(now);
        let valid = |period| {
            let (made, bits) = seal(&self.key(period), &input, |mask| (isn.0 >> 24) as u8 ^ mask);
            (made == isn).then_some(bits)
        };
        let bits = valid(last).or_else(|| valid(last.checked_sub(1)?))?;
        Carried::from_bits(bits)
    }

    /// TSval of a segment that weir makes for `tuple` (client to destination): milliseconds plus an offset by connection, so
    /// that nobody reads the uptime (RFC 7323 section 5.4) and a tuple used again finds its clock gone on (section 5.2).
    pub fn clock(&self, tuple: &Tuple, now: Nanos) -> u32 {
        let input = input(tuple, Seq(0));
        let offset = self.clock.hash(input.get(..TUPLE_LEN).unwrap_or_default());
        ((now.0 / 1_000_000) as u32).wrapping_add(offset as u32)
    }

    /// The key that hides the clock.
    pub fn clock_key(&self) -> [u8; 16] {
        self.clock.key()
    }

    /// The key of a period. An XDP program is given those of the present and the last one, not the secret.
    pub fn key(&self, period: u64) -> [u8; 16] {
        self.periods.hash(&period.to_le_bytes()).as_bytes()
    }
}

/// The number of the period that `now` is in.
pub const fn period(now: Nanos) -> u64 {
    now.0 / PERIOD.0
}

/// The ISN of an input under a key, and the bits it carries; `bits` is given the mask they will have.
fn seal(key: &[u8; 16], input: &[u8; INPUT_LEN], bits: impl FnOnce(u8) -> u8) -> (Seq, u8) {
    let hasher = sip::SipHasher24::new_with_key(key);
    let h = hasher.hash(input);
    let mask = (h >> 56) as u8;
    let bits = bits(mask);
    let [a, b, c, d, e, f, g, i] = h.to_le_bytes();
    let mac = hasher.hash(&[a, b, c, d, e, f, g, i, bits]) as u32 & 0x00ff_ffff;
    (Seq(u32::from(bits ^ mask) << 24 | mac), bits)
}

/// What is hashed, as in the layout above.
fn input(tuple: &Tuple, client_isn: Seq) -> [u8; INPUT_LEN] {
    let mut input = [0; INPUT_LEN];
    put(&mut input, 0, &tuple.src.addr.0);
    put(&mut input, 16, &tuple.dst.addr.0);
    put(&mut input, 32, &tuple.src.port.to_be_bytes());
    put(&mut input, 34, &tuple.dst.port.to_be_bytes());
    put(&mut input, 36, &client_isn.0.to_be_bytes());
    input
}

#[cfg(test)]
mod tests;
