//! weir-sys: the only unsafe code of weir. AF_XDP, BPF loading, io_uring, socket options, TUN, affinity, namespaces.
#![allow(unsafe_code)]

pub mod affinity;
pub mod sockopt;
pub mod uring;
