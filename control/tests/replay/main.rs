//! `weir replay`: captures built here, through the binary and through the library, IPv4 and IPv6 alike.

mod capture;

mod cli;
mod handshakes;
mod wire;
