//! Benchmarks of weir, and what they share.
#![forbid(unsafe_code)]

pub mod bed;
pub mod contender;
pub mod cpu;
mod crowd;
pub mod ends;
pub mod entries;
pub mod flood;
pub mod lab;
mod live;
pub mod machine;
mod made;
pub mod nic;
pub mod plot;
pub mod probe;
pub mod report;
mod small;
pub mod stand;

/// What goes wrong is told and ends the benchmark.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
