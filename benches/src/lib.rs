//! Benchmarks of weir.
#![forbid(unsafe_code)]
