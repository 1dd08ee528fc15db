//! Simulated TCP pairs, namespace labs, packet builders.
#![forbid(unsafe_code)]

pub mod bench;
pub mod corpus;
pub mod hello;
pub mod host;
pub mod packet;
pub mod pair;
pub mod random;
pub mod renumber;
pub mod script;
pub mod soak;
