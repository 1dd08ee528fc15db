//! Simulated TCP pairs, namespace labs, packet builders.
#![forbid(unsafe_code)]

pub mod corpus;
