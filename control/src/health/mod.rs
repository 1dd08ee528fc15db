//! Which servers of the pools are up.
//!
//! [`Health`] is the pure machine: results of probes, failures of connections and commands in, states out. [`Board`] is
//! the one of the running gateway, which everybody who reports or asks shares. [`run`] carries out the checks of the
//! configuration ([`probe`]), reads the failures that the dataplane reports, and gives servers without a check another
//! try. Whoever waits for [`Board::changed`] publishes a policy with the new states.

mod board;
mod machine;
pub mod probe;
mod runner;
#[cfg(test)]
mod tests;

pub use board::{Board, DrainError};
pub use machine::{Health, PoolView, ServerView};
pub use runner::{Passive, Pools, run};
