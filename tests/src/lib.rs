//! Simulated TCP pairs, namespace labs, packet builders.

pub mod corpus;
