//! Benchmarks of weir, and what they share.
//!
//! | program | measures |
//! | --- | --- |
//! | `weir-bench lab` ([`lab`]) | weir's roads, the kernel's forwarding, HAProxy and nginx side by side, and the project's bars |
//! | `weir-bench nic` ([`nic`]) | any box between two ports of this machine: RFC 2544 throughput, RFC 8219 latency |
//! | `syn_flood` | a SYN flood against weir and nft's synproxy |
//! | `outage` | how long traffic stops when weir fails, or somebody takes from it what it has installed |
//! | `lists` | lists of a million names and prefixes |
//!
//! Single steps in memory are measured by `benches/micro`. A contender in its lab is a [`stand::Stand`]: [`bed`] says whose CPUs are
//! whose, [`config`] what a weir there is told, [`contender`] starts it, [`ends`] and [`flood`] put loads on it, [`cpu`] reads what it used, [`report`] makes medians of it,
//! [`plot`] pictures.
#![forbid(unsafe_code)]

pub mod bed;
pub mod config;
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
