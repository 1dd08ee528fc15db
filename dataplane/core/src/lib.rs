//! weir-core: what happens to a packet, as pure functions of bytes, time and randomness.
//!
//! Nothing here opens a socket, reads a clock or starts a thread; every run can be replayed from a seed.
//! Read it in the order a packet meets it: [`parse`], [`flow`], [`stage`], [`tcp`], [`verdict`], [`inspect`],
//! [`rewrite`]; [`pipeline`] calls the stages.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

pub mod batch;
pub mod drop;
pub mod express;
pub mod fib;
pub mod flow;
pub mod footprint;
pub mod fragments;
pub mod frame;
pub mod hold;
pub mod hops;
pub mod ids;
pub mod inspect;
pub mod output;
pub mod pace;
pub mod parse;
pub mod pipeline;
pub mod policy;
pub mod ports;
pub mod proxy;
pub mod reevaluate;
pub mod relay;
pub mod rewrite;
pub mod sources;
pub mod stage;
pub mod tcp;
pub mod totals;
pub mod verdict;
pub mod verify;
pub mod view;
pub mod vlan;
pub mod wire;
