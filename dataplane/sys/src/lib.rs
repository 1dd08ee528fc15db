//! weir-sys: the only unsafe code of weir. AF_XDP, BPF loading, io_uring, socket options, TUN, affinity, namespaces.
//!
//! It knows the kernel and nothing of weir's rules or flows: its types are std's and its own. weir-dataplane and
//! weir-control call it; every `unsafe` block here names the invariant that makes it sound.
#![allow(unsafe_code)]

pub mod affinity;
pub mod bell;
pub mod capture;
pub mod clock;
pub mod ethtool;
pub mod gate;
mod ioctl;
pub mod keeper;
pub mod memory;
pub mod mounts;
pub mod netns;
pub mod packet;
pub mod pipe;
pub mod process;
pub mod sockopt;
pub mod steering;
pub mod thread;
pub mod tun;
pub mod uring;
pub mod waiter;
pub mod writes;
pub mod xdp_features;
pub mod xsk;
