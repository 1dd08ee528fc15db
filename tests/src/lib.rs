//! Simulated TCP pairs, namespace labs, packet builders.

pub mod bench;
pub mod hello;
pub mod packet;
pub mod pair;
