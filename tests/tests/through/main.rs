//! `handshake = "through"`, packet by packet: what leaves, what is held, which counters move.

mod bypass;
