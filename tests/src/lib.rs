//! Simulated TCP pairs, namespace labs, packet builders.
