//! Random numbers of a start: what nobody outside may guess.

use std::hash::{BuildHasher, Hasher, RandomState};

/// From the system's random numbers, so that nobody outside can choose colliding flows.
pub fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// From the same.
pub fn secret() -> [u8; 32] {
    let mut secret = [0; 32];
    for part in secret.chunks_exact_mut(8) {
        part.copy_from_slice(&seed().to_ne_bytes());
    }
    secret
}
