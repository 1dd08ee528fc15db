//! What may stand between an IP header and TCP: IPv6 extension headers (RFC 8200 section 4, RFC 4302), IPv4 options (RFC 791).

use super::{ETH_LEN, IPV6_FRAGMENT_LEN, IPV6_LEN};

/// The most IPv6 extension headers that are followed.
pub const MAX_EXTENSION_HEADERS: usize = 8;

pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const AUTHENTICATION: u8 = 51;
pub const DESTINATION: u8 = 60;

// IPv4 options (RFC 791 section 3.1).
const END: u8 = 0;
const NOP: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

/// Whether `protocol` is an extension header that is followed.
#[inline]
pub const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

/// The length of the extension header `kind` at `at`, in octets, and the protocol that follows it; `None` past the end.
#[inline]
pub fn read(bytes: &[u8], kind: u8, at: usize) -> Option<(usize, u8)> {
    let (next, units) = (*bytes.get(at)?, usize::from(*bytes.get(at + 1)?));
    let len = match kind {
        FRAGMENT => IPV6_FRAGMENT_LEN,
        AUTHENTICATION => (units + 2) * 4,
        _ => (units + 1) * 8,
    };
    Some((len, next))
}

/// Whether the addresses of a packet cannot be changed: it has a source route to follow, so that the checksum counts another
/// destination than the header's (RFC 8200 section 8.1, RFC 1122 section 3.2.1.8), or it is authenticated (RFC 4302).
/// `l4` is where TCP or ICMP starts.
#[inline]
pub fn fixes_addresses(frame: &[u8], v6: bool, l4: usize) -> bool {
    let bare = ETH_LEN + if v6 { IPV6_LEN } else { 20 };
    l4 > bare && if v6 { fixes_v6(frame, l4) } else { fixes_v4(frame, l4) }
}

fn fixes_v6(frame: &[u8], l4: usize) -> bool {
    let Some(mut kind) = frame.get(ETH_LEN + 6).copied() else { return true };
    let mut at = ETH_LEN + IPV6_LEN;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        if at >= l4 {
            return false;
        }
        let segments_left = kind == ROUTING && frame.get(at + 3).is_none_or(|left| *left != 0);
        if segments_left || kind == AUTHENTICATION {
            return true;
        }
        let Some((len, next)) = read(frame, kind, at) else { return true };
        at += len;
        kind = next;
    }
    true
}

fn fixes_v4(frame: &[u8], l4: usize) -> bool {
    let options = frame.get(ETH_LEN + 20..l4).unwrap_or_default();
    let mut at = 0;
    while let Some(kind) = options.get(at) {
        match *kind {
            END => return false,
            NOP => at += 1,
            kind => {
                let Some(len) = options.get(at + 1).copied().filter(|len| *len >= 2) else { return false };
                let is_route = kind == LOOSE_SOURCE_ROUTE || kind == STRICT_SOURCE_ROUTE;
                // The route is used up when the pointer, from 1, is past its end.
                if is_route && options.get(at + 2).is_some_and(|pointer| *pointer <= len) {
                    return true;
                }
                at += usize::from(len);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(kind: u8, extension: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETH_LEN + IPV6_LEN];
        frame[ETH_LEN + 6] = kind;
        [&frame, extension].concat()
    }

    fn v4(options: &[u8]) -> Vec<u8> {
        [&[0; ETH_LEN + 20], options].concat()
    }

    #[test]
    fn addresses_are_fixed_by_routes_to_follow_and_by_authentication() {
        let route = |left| [6, 2, 4, left].into_iter().chain([0; 20]).collect::<Vec<_>>();
        let behind = [&[ROUTING, 0, 0, 0, 0, 0, 0, 0][..], &route(1)].concat();
        for (fixed, frame) in [
            (true, v6(ROUTING, &route(1))),
            (false, v6(ROUTING, &route(0))),
            (true, v6(DESTINATION, &behind)),
            (false, v6(HOP_BY_HOP, &[6, 0, 0, 0, 0, 0, 0, 0])),
            (true, v6(AUTHENTICATION, &[6, 4, 0, 0, 0, 0, 0, 0])),
            (false, v6(FRAGMENT, &[6, 99, 0, 0, 0, 0, 0, 0])),
            (false, v6(6, &[])),
        ] {
            assert_eq!(fixes_addresses(&frame, true, frame.len()), fixed, "{frame:?}");
        }
        for (fixed, frame) in [
            (true, v4(&[131, 7, 4, 1, 2, 3, 4, 0])),
            (true, v4(&[1, 137, 7, 4, 1, 2, 3, 4])),
            (false, v4(&[131, 7, 8, 1, 2, 3, 4, 0])),
            (false, v4(&[7, 7, 4, 0, 0, 0, 0, 0])),
            (false, v4(&[131, 0, 4, 0])),
            (false, v4(&[0, 137, 7, 4])),
            (false, v4(&[])),
        ] {
            assert_eq!(fixes_addresses(&frame, false, frame.len()), fixed, "{frame:?}");
        }
    }
}
