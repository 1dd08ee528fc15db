//! What is known of a flow in the lane, for a process that takes it over: the mirror of `struct weir_express_note`.

use std::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Octets that the texts of a note have together.
const TEXT: usize = 116;
/// Texts of a note.
pub const TEXTS: usize = 3;

/// A note beside a flow of the lane. The program does not look at it; what codes and texts mean is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExpressNote {
    /// When the flow began, ns of CLOCK_MONOTONIC.
    pub created: u64,
    /// What passed before the lane had it, to the server and to the client: octets of payload, packets.
    pub bytes: [u64; 2],
    pub packets: [u32; 2],
    pub codes: [u8; 8],
    lengths: [u8; 4],
    text: [u8; TEXT],
}

const _: () = {
    assert!(size_of::<ExpressNote>() == 160);
    assert!(offset_of!(ExpressNote, codes) == 32);
    assert!(offset_of!(ExpressNote, text) == 44);
};

impl ExpressNote {
    /// A note without texts.
    pub const fn new(created: u64, bytes: [u64; 2], packets: [u32; 2], codes: [u8; 8]) -> Self {
        Self { created, bytes, packets, codes, lengths: [0; 4], text: [0; TEXT] }
    }

    /// Adds a text behind those before; whether there was room for it. One that finds none is empty.
    pub fn put(&mut self, number: usize, text: &[u8]) -> bool {
        let at: usize = self.lengths.iter().map(|length| usize::from(*length)).sum();
        let (Some(length), Some(place)) =
            (self.lengths.get_mut(number), self.text.get_mut(at..at + text.len()))
        else {
            return false;
        };
        place.copy_from_slice(text);
        *length = text.len() as u8;
        true
    }

    /// The texts, in the order in which they were added.
    pub fn texts(&self) -> [&[u8]; TEXTS] {
        let mut rest = &self.text[..];
        std::array::from_fn(|number| {
            let (text, behind) = rest.split_at(usize::from(self.lengths[number]).min(rest.len()));
            rest = behind;
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_fit_are_read_back_and_one_that_does_not_is_empty() {
        let mut note = ExpressNote::new(1, [2, 3], [4, 5], [6; 8]);
        assert!(note.put(0, b"www.example.com"));
        assert!(!note.put(1, &[b'x'; TEXT]));
        assert!(note.put(2, &[b'y'; TEXT - 15]));
        assert_eq!(note.texts(), [&b"www.example.com"[..], b"", &[b'y'; TEXT - 15]]);
        assert!(!note.put(2, b"z"), "no octet is left");
    }
}
