//! weir-control: configuration, the kernel's side, admin API, demo lab.
#![forbid(unsafe_code)]

pub mod admin;
pub mod cli;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod exit;
pub mod explain;
pub mod health;
pub mod host;
pub mod lab;
pub mod lists;
pub mod replay;
pub mod resolve;
pub mod run;
pub mod shadow;
