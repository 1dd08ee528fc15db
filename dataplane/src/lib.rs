//! weir-dataplane: the glue between the pure core and the kernel: workers, drivers, handoff, punt, relay.
#![forbid(unsafe_code)]

pub mod relay;
pub mod snapshot;
