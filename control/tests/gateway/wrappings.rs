//! Ways to wrap a request, as no kernel would and as the standards let one.

use weir_control::demo::stage::Family;

use crate::config::{DENIED, DROPPED};
use crate::raw::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING, RawClient, fragment_header, padded};

const TCP: u8 = 6;

/// What becomes of an allowed request in this wrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// The server answers.
    Answered,
    /// Weir drops it, for a reason that is counted under this name.
    Dropped(&'static str),
}

/// One way to wrap a request.
pub struct Wrapping {
    pub name: &'static str,
    pub families: &'static [Family],
    pub allowed: Allowed,
    pub send: fn(&mut RawClient, &[u8]),
}

const BOTH: &[Family] = &Family::BOTH;
const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];

pub const WRAPPINGS: [Wrapping; 20] = [
    Wrapping { name: "plain", families: BOTH, allowed: Allowed::Answered, send: plain },
    Wrapping { name: "two fragments", families: BOTH, allowed: Allowed::Answered, send: two_fragments },
    Wrapping { name: "fragments, last first", families: BOTH, allowed: Allowed::Answered, send: backwards },
    Wrapping {
        name: "fragments of 24 bytes",
        families: BOTH,
        allowed: Allowed::Answered,
        send: small_pieces,
    },
    Wrapping {
        name: "fragments of 8 bytes",
        families: BOTH,
        // The first has no whole TCP header (RFC 1858, RFC 7112).
        allowed: Allowed::Dropped("bad-fragment"),
        send: tiny_pieces,
    },
    Wrapping {
        name: "overlapping fragments",
        families: BOTH,
        allowed: Allowed::Dropped("fragment-overlap"),
        send: overlapping,
    },
    Wrapping { name: "IPv4 options", families: V4, allowed: Allowed::Answered, send: ipv4_options },
    Wrapping { name: "hop-by-hop options", families: V6, allowed: Allowed::Answered, send: hop_by_hop },
    Wrapping { name: "destination options", families: V6, allowed: Allowed::Answered, send: destination },
    Wrapping { name: "a long header chain", families: V6, allowed: Allowed::Answered, send: long_chain },
    Wrapping { name: "an atomic fragment", families: V6, allowed: Allowed::Answered, send: atomic },
    Wrapping {
        name: "fragments behind options",
        families: V6,
        allowed: Allowed::Answered,
        send: behind_options,
    },
    Wrapping { name: "a routing header", families: V6, allowed: Allowed::Answered, send: routing },
    Wrapping { name: "one byte a segment", families: BOTH, allowed: Allowed::Answered, send: one_byte },
    Wrapping { name: "segments, last first", families: BOTH, allowed: Allowed::Answered, send: out_of_order },
    Wrapping {
        name: "a wrong checksum first",
        families: BOTH,
        allowed: Allowed::Answered,
        send: wrong_first,
    },
    Wrapping {
        name: "another name first, wrong checksum",
        families: BOTH,
        allowed: Allowed::Answered,
        send: decoy,
    },
    Wrapping {
        name: "overlapping segments",
        families: BOTH,
        allowed: Allowed::Answered,
        send: overlapping_segments,
    },
    Wrapping { name: "FIN with the request", families: BOTH, allowed: Allowed::Answered, send: with_fin },
    Wrapping { name: "urgent data", families: BOTH, allowed: Allowed::Answered, send: urgent },
];

pub fn plain(client: &mut RawClient, request: &[u8]) {
    client.send_segment(client.next, request, |_| {});
}

fn two_fragments(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_fragments(&segment, &[0..40, 40..segment.len()]);
}

fn backwards(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_fragments(&segment, &[64..segment.len(), 24..64, 0..24]);
}

fn small_pieces(client: &mut RawClient, request: &[u8]) {
    pieces_of(client, request, 24);
}

fn tiny_pieces(client: &mut RawClient, request: &[u8]) {
    pieces_of(client, request, 8);
}

fn pieces_of(client: &mut RawClient, request: &[u8], size: usize) {
    let segment = client.segment(client.next, request, |_| {});
    let pieces: Vec<_> =
        (0..segment.len()).step_by(size).map(|at| at..(at + size).min(segment.len())).collect();
    client.send_fragments(&segment, &pieces);
}

/// The middle comes twice, the second time with other bytes.
fn overlapping(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_fragment(&segment[..40], 0, true);
    client.send_fragment(&[b'x'; 16], 32, true);
    client.send_fragment(&segment[40..], 40, false);
}

fn ipv4_options(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    // Router alert (RFC 2113), then no operation.
    client.send_ip(&segment, &[0x94, 4, 0, 0, 1, 1, 1, 0], TCP);
}

fn hop_by_hop(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_ip(&segment, &padded(TCP, 1), HOP_BY_HOP);
}

fn destination(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_ip(&segment, &padded(TCP, 5), DESTINATION);
}

fn long_chain(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    let mut chain = padded(DESTINATION, 2);
    for _ in 0..4 {
        chain.extend(padded(DESTINATION, 3));
    }
    chain.extend(padded(TCP, 1));
    client.send_ip(&segment, &chain, HOP_BY_HOP);
}

fn atomic(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_ip(&segment, &fragment_header(TCP, 0, false, 7), FRAGMENT);
}

fn behind_options(client: &mut RawClient, request: &[u8]) {
    let segment = [padded(TCP, 2), client.segment(client.next, request, |_| {})].concat();
    for (from, to) in [(0, 48), (48, segment.len())] {
        let header = fragment_header(DESTINATION, from, to < segment.len(), 9);
        client.send_ip(&segment[from..to], &header, FRAGMENT);
    }
}

/// Type 4 (SRv6 has it) with no segments left: receivers skip it (RFC 8200, section 4.4).
fn routing(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_ip(&segment, &[TCP, 0, 253, 0, 0, 0, 0, 0], ROUTING);
}

/// As many segments as are held for one connection would be too many: the rest of the request is one.
fn one_byte(client: &mut RawClient, request: &[u8]) {
    let (bytes, rest) = request.split_at(60);
    for (at, byte) in (client.next..).zip(bytes) {
        client.send_segment(at, &[*byte], |_| {});
    }
    client.send_segment(client.next + bytes.len() as u32, rest, |_| {});
}

fn out_of_order(client: &mut RawClient, request: &[u8]) {
    let pieces: Vec<(u32, &[u8])> = (client.next..).step_by(16).zip(request.chunks(16)).collect();
    for (at, piece) in pieces.into_iter().rev() {
        client.send_segment(at, piece, |_| {});
    }
}

fn wrong_first(client: &mut RawClient, request: &[u8]) {
    let mut segment = client.segment(client.next, request, |_| {});
    segment[16] ^= 0x5a;
    client.send_ip(&segment, &[], TCP);
    plain(client, request);
}

/// A name that no rule mentions, in a segment that no server would take.
fn decoy(client: &mut RawClient, request: &[u8]) {
    let other =
        String::from_utf8_lossy(request).replace(DENIED, "innocent.host.").replace(DROPPED, "innocent.host.");
    let mut segment = client.segment(client.next, other.as_bytes(), |_| {});
    segment[16] ^= 0x5a;
    client.send_ip(&segment, &[], TCP);
    plain(client, request);
}

fn overlapping_segments(client: &mut RawClient, request: &[u8]) {
    let (first, second) = (&request[..30], &request[20..]);
    client.send_segment(client.next, first, |_| {});
    client.send_segment(client.next + 20, second, |_| {});
}

fn with_fin(client: &mut RawClient, request: &[u8]) {
    client.send_segment(client.next, request, |tcp| tcp.fin = true);
}

fn urgent(client: &mut RawClient, request: &[u8]) {
    client.send_segment(client.next, request, |tcp| {
        tcp.psh = true;
        tcp.urgent_pointer = 1;
    });
}
