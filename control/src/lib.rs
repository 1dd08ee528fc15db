//! weir-control: configuration, the kernel's side, admin API, demo lab.
#![forbid(unsafe_code)]

pub mod admin;
pub mod cli;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod exit;
pub mod health;
pub mod host;
pub mod lab;
pub mod replay;
pub mod run;
