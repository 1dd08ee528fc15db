//! `handshake = "through"`, packet by packet: what leaves, what is held, which counters move.

mod bypass;
mod closing;
mod held;
mod kernel;
mod limits;
mod reload;
mod second;
mod simulation;
mod verdict;
mod verify;
mod ways;
