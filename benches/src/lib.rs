//! Benchmarks of weir, and what they share.
#![forbid(unsafe_code)]

pub mod bed;
pub mod cpu;
pub mod entries;
pub mod report;

/// What goes wrong is told and ends the benchmark.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
