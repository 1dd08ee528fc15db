//! Benchmarks of weir, and what they share.
#![forbid(unsafe_code)]

pub mod entries;
