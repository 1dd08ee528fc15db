//! Simulated TCP pairs, namespace labs, packet builders.

pub mod bench;
pub mod hello;
mod host;
pub mod packet;
pub mod pair;
pub mod random;
