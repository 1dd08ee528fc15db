//! weir-control: configuration, the kernel's side, admin API, demo lab.
#![forbid(unsafe_code)]

pub mod config;
pub mod demo;
pub mod host;
pub mod lab;
pub mod replay;
