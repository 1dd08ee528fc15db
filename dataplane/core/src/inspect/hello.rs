//! The ClientHello itself (RFC 8446 section 4.1.2), once all of it is there.
//!
//! A hello whose lengths do not add up is refused by servers and is unidentified here. The extensions:
//!
//! - server_name (RFC 6066 section 3): one name is allowed; more, in one extension or several, are read when they
//!   are the same and otherwise unidentified. So is a name that is no host name: a zero octet or a blank in it is
//!   read differently by different servers. An empty list or an empty name asks for nothing.
//! - application_layer_protocol_negotiation (RFC 7301): a list that is malformed, repeated with another content or
//!   larger than [`super::ALPN_BYTES`] makes the hello unidentified.
//! - encrypted_client_hello (RFC 9849, section 5): noted where it is that of an outer hello, and not decrypted. The name
//!   is that of the outer hello, which is the one that the network is meant to see. An inner hello, as a split-mode
//!   server passes on, bears its true name.
//! - supported_versions (RFC 8446 section 4.2.1): only who offers TLS 1.3 can be asked to say the hello again.

use super::cursor::Cursor;
use super::{ALPN_BYTES, Alpn, Asked, Found, HelloEnd, Outcome};
use crate::policy::Protocol;

const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;
const ECH: u16 = 0xfe0d;
const TLS_1_2: u16 = 0x0303;
/// ECHClientHelloType.
const OUTER: u8 = 0;
const RANDOM: usize = 32;
const MAX_SESSION: usize = 32;
/// Longer names are not host names.
const MAX_NAME: usize = 256;

/// Reads a handshake message that is there in full and ends at `end`; `hello` covers exactly it.
pub(super) fn read(mut hello: Cursor<'_>, end: HelloEnd) -> Outcome {
    body(&mut hello, end).map_or(Outcome::OTHER, Outcome::Done)
}

fn body(hello: &mut Cursor<'_>, end: HelloEnd) -> Option<Found> {
    let (_type, _len) = (hello.u8()?, hello.u24()?);
    let _version = hello.u16()?;
    hello.skip(RANDOM)?;
    let session = usize::from(hello.u8()?);
    hello.skip(session)?;
    let suites = usize::from(hello.u16()?);
    hello.skip(suites)?;
    let compressions = usize::from(hello.u8()?);
    hello.skip(compressions)?;
    if session > MAX_SESSION || suites == 0 || !suites.is_multiple_of(2) || compressions == 0 {
        return None;
    }
    if hello.left() == 0 {
        // Before TLS 1.2, extensions were optional.
        return Some(Found::named(Protocol::Tls, Asked::Nothing, Alpn::EMPTY));
    }
    let len = hello.u16()?;
    if usize::from(len) != hello.left() {
        return None;
    }
    extensions(hello, end)
}

fn extensions(hello: &mut Cursor<'_>, end: HelloEnd) -> Option<Found> {
    let (mut ech, mut newer) = (false, false);
    let mut asked = Asked::Nothing;
    let mut offered: Option<Alpn> = None;
    while hello.left() > 0 {
        let kind = hello.u16()?;
        let len = hello.u16()?;
        let mut extension = hello.take(usize::from(len))?;
        match kind {
            SERVER_NAME => asked = asked.and(server_name(&mut extension)?),
            ALPN => {
                let alpn = protocols(&mut extension)?;
                if offered.is_some_and(|before| before != alpn) {
                    return None;
                }
                offered = Some(alpn);
            }
            SUPPORTED_VERSIONS => newer |= offers_newer(&mut extension),
            ECH => ech |= extension.u8() == Some(OUTER),
            _ => {}
        }
    }
    let found = Found::named(Protocol::Tls, asked, offered.unwrap_or_default());
    let is_tls = found.protocol == Protocol::Tls;
    Some(Found { ech: ech && is_tls, end: Some(end).filter(|_| newer && is_tls), ..found })
}

/// Whether a list of versions has one above TLS 1.2. Values that are there to be ignored (RFC 8701) count, too.
fn offers_newer(extension: &mut Cursor<'_>) -> bool {
    let _len = extension.u8();
    std::iter::from_fn(|| extension.u16()).any(|version| version > TLS_1_2)
}

fn server_name(extension: &mut Cursor<'_>) -> Option<Asked> {
    if extension.left() == 0 {
        return Some(Asked::Nothing);
    }
    let len = extension.u16()?;
    if usize::from(len) != extension.left() {
        return None;
    }
    let mut asked = Asked::Nothing;
    while extension.left() > 0 {
        let kind = extension.u8()?;
        let len = usize::from(extension.u16()?);
        let mut entry = extension.take(len)?;
        let mut room = [0; MAX_NAME];
        asked = asked.and(match (kind, room.get_mut(..len)) {
            (HOST_NAME, Some(text)) => {
                entry.copy(text)?;
                Asked::name(text)
            }
            // No other type was ever defined; what a server makes of it is unknown.
            _ => Asked::Unreadable,
        });
    }
    Some(asked)
}

fn protocols(extension: &mut Cursor<'_>) -> Option<Alpn> {
    let len = usize::from(extension.u16()?);
    if len != extension.left() {
        return None;
    }
    let mut room = [0; ALPN_BYTES];
    let wire = room.get_mut(..len)?;
    extension.copy(wire)?;
    Alpn::from_wire(wire)
}
