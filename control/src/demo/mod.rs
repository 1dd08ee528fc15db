//! `weir demo`: real traffic on every road, a report.
pub mod client;
pub mod content;
pub mod origin;
