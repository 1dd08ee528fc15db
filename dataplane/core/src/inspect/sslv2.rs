//! The ClientHello in SSLv2's format (RFC 5246 appendix E.2), with which old clients, and today's scanners, ask for SSLv3 and TLS.
//!
//! It has no extensions, and so no name: it is TLS that asks for none, as a hello without server_name is.

use super::{Alpn, Asked, Found, Outcome};
use crate::policy::Protocol;

const CLIENT_HELLO: u8 = 1;
/// Length, message type, version, and the three lengths.
const HEADER: usize = 11;
/// What the length field counts of the header: all but itself.
const COUNTED: usize = HEADER - 2;

/// Whether the stream begins with one. `prefix` is not empty and its first octet has the high bit set.
pub(super) fn inspect(prefix: &[u8]) -> Outcome {
    if prefix.get(2).is_some_and(|&kind| kind != CLIENT_HELLO)
        || prefix.get(3).is_some_and(|&major| major != 0 && major != 3)
        || prefix.get(3..5).is_some_and(|version| version == [0, 0])
    {
        return Outcome::OTHER;
    }
    let Some(header) = prefix.get(..HEADER).and_then(|header| <&[u8; HEADER]>::try_from(header).ok()) else {
        return Outcome::More;
    };
    let [l0, l1, _, _, _, c0, c1, s0, s1, r0, r1] = *header;
    let len = usize::from(u16::from_be_bytes([l0 & 0x7f, l1]));
    let ciphers = usize::from(u16::from_be_bytes([c0, c1]));
    let session = usize::from(u16::from_be_bytes([s0, s1]));
    let challenge = usize::from(u16::from_be_bytes([r0, r1]));
    let whole = COUNTED + ciphers + session + challenge;
    if len == whole && ciphers > 0 && ciphers.is_multiple_of(3) && (16..=32).contains(&challenge) {
        return Outcome::Done(Found::named(Protocol::Tls, Asked::Nothing, Alpn::EMPTY));
    }
    Outcome::OTHER
}
