//! Whether a server asks a client to say its hello again: a HelloRetryRequest is a ServerHello with one certain random
//! (RFC 8446 section 4.1.3).
//!
//! All of it stands in the first 43 octets of the server's stream, at fixed places. What is remembered is which of them have
//! come, so that a server's segments can be looked at in any order while they pass, and none is kept. One octet that differs
//! is enough to know, which is as good as certain with the first segment of any other answer. A server that cuts its first
//! record within those octets is taken to ask: then it is the client's next handshake that tells.

/// Octets from the first record's header to the end of the random.
const LEN: usize = 43;
const RECORD_HEADER: usize = 5;
/// Octets of handshake that a record has which holds the random.
const LEAST: u8 = 38;
/// SHA-256 of "HelloRetryRequest".
const RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// What a server's first octets were found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Show more.
    More,
    /// It asks for a second hello.
    Retry,
    /// Anything else.
    Other,
}

/// Which of a server's first octets have come, and were those of a HelloRetryRequest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
// It may stand at any word: connections keep it.
#[repr(C, packed(4))]
pub struct Watch {
    seen: u64,
}

impl Watch {
    /// Octets of the server's stream that matter.
    pub const LEN: u32 = LEN as u32;
    const ALL: u64 = (1 << LEN) - 1;

    /// `bytes` stand `at` octets behind the beginning of the server's stream.
    pub fn read(&mut self, at: u32, bytes: &[u8]) -> Said {
        let mut end = LEN;
        let mut high = None;
        for (place, &octet) in (at as usize..).zip(bytes) {
            if place >= end {
                break;
            }
            if expected(place).is_some_and(|wanted| wanted != octet) {
                return Said::Other;
            }
            if place == 3 {
                high = Some(octet);
            }
            if place == 4 && octet < LEAST && high.unwrap_or(0) == 0 {
                end = RECORD_HEADER.saturating_add(usize::from(octet));
            }
            self.seen |= 1 << place;
        }
        if end < LEN || self.seen == Self::ALL { Said::Retry } else { Said::More }
    }
}

/// The octet that stands at a place, where it is always the same.
fn expected(place: usize) -> Option<u8> {
    match place {
        0 => Some(22),
        1 => Some(3),
        5 => Some(2),
        9 | 10 => Some(3),
        11.. => RANDOM.get(place.saturating_sub(11)).copied(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Vec<u8> {
        let head = [22, 3, 3, 0, 88, 2, 0, 0, 84, 3, 3];
        [&head[..], &RANDOM, &[0; 49]].concat()
    }

    #[test]
    fn request_is_recognised_however_its_segments_are_cut_and_ordered() {
        let stream = request();
        for cut in 1..=stream.len() {
            let parts: Vec<(usize, &[u8])> =
                stream.chunks(cut).enumerate().map(|(n, part)| (n * cut, part)).collect();
            for reversed in [false, true] {
                let mut watch = Watch::default();
                let order: Vec<_> =
                    if reversed { parts.iter().rev().collect() } else { parts.iter().collect() };
                let said: Vec<Said> = order.iter().map(|(at, part)| watch.read(*at as u32, part)).collect();
                assert!(said.contains(&Said::Retry) && !said.contains(&Said::Other), "cut {cut} {reversed}");
                let first = said.iter().position(|said| *said == Said::Retry).expect("recognised");
                let shown: usize = order[..first]
                    .iter()
                    .map(|(at, part)| (LEN.min(at + part.len())).saturating_sub(*at))
                    .sum();
                assert!(shown < LEN, "not before all of it was there");
            }
        }
    }

    #[test]
    fn any_other_answer_is_known_by_one_octet() {
        for place in (0..LEN).filter(|place| expected(*place).is_some()) {
            let mut stream = request();
            stream[place] ^= 1;
            assert_eq!(Watch::default().read(0, &stream), Said::Other, "at {place}");
            assert_eq!(Watch::default().read(place as u32, &stream[place..=place]), Said::Other);
        }
        assert_eq!(Watch::default().read(0, b"HTTP/1.1 400"), Said::Other);
        assert_eq!(Watch::default().read(0, &[21, 3, 3, 0, 2, 2, 40]), Said::Other, "an alert");
        assert_eq!(Watch::default().read(43, &[0; 60]), Said::More, "none of what matters");
    }

    /// Records that are cut in the middle of the random have their octets elsewhere.
    #[test]
    fn first_record_that_is_cut_counts_as_a_request() {
        let head = [22, 3, 3, 0, 6, 2, 0, 0, 84, 3, 3, 22, 3, 3, 0, 82];
        assert_eq!(Watch::default().read(0, &head), Said::Retry);
        assert_eq!(Watch::default().read(0, &head[..4]), Said::More);
        assert_eq!(Watch::default().read(0, &[22, 3, 3, 0, 6, 11]), Said::Other, "no ServerHello");
        assert_eq!(Watch::default().read(0, &[22, 3, 3, 1, 6, 2, 0]), Said::More, "a long one");
    }
}
