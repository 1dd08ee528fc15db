//! weir-dataplane: the glue between the pure core and the kernel: workers, drivers, handoff, punt, relay.
//!
//! A packet's way: [`thread`] -> [`worker`] -> [`driver`] -> `weir_core::parse` -> `weir_core::pipeline` -> [`driver`];
//! over the top: [`punt`] -> kernel -> [`relay`].
#![forbid(unsafe_code)]

pub mod driver;
pub mod express;
pub mod flood;
pub mod gateway;
pub mod handoff;
pub mod heartbeat;
mod needs;
pub mod punt;
pub mod questions;
mod random;
pub mod relay;
pub mod rooms;
pub mod snapshot;
mod sockets;
pub mod stats;
pub mod thread;
pub mod worker;
