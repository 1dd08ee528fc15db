//! The bodies that origins serve: bytes that anyone can compute from their position, and their hash.

use sha2::{Digest, Sha256};

/// Fills `buffer` with the bytes at `offset` and after of the one endless body that every origin serves.
///
/// Each eight bytes are SplitMix64 of their index: no run repeats, so that swapped, lost and repeated
/// segments all change the hash.
pub fn fill(offset: u64, buffer: &mut [u8]) {
    for (at, byte) in (offset..).zip(buffer.iter_mut()) {
        *byte = word(at / 8).to_le_bytes()[(at % 8) as usize];
    }
}

fn word(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// SHA-256, in hexadecimal, of the first `length` bytes of the body.
pub fn hash(length: u64) -> String {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 64 << 10];
    let mut offset = 0;
    while offset < length {
        let part = usize::try_from(length - offset).unwrap_or(usize::MAX).min(buffer.len());
        fill(offset, &mut buffer[..part]);
        hasher.update(&buffer[..part]);
        offset += part as u64;
    }
    hasher.finish()
}

/// SHA-256 over what is fed to it piece by piece.
#[derive(Clone, Debug, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash in hexadecimal.
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_read_in_pieces_equals_body_read_at_once() {
        let mut whole = [0; 1000];
        fill(0, &mut whole);
        for cut in [1, 7, 8, 9, 500] {
            let mut pieces = [0; 1000];
            let (head, tail) = pieces.split_at_mut(cut);
            fill(0, head);
            fill(cut as u64, tail);
            assert_eq!(pieces, whole, "cut at {cut}");
        }
        let mut hasher = Hasher::default();
        hasher.update(&whole);
        assert_eq!(hash(1000), hasher.finish());
    }

    #[test]
    fn hash_of_nothing_is_sha256_of_nothing() {
        assert!(hash(0).starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
    }
}
