//! What is remembered about a connection, in a table of fixed size, with timers.

pub mod key;
pub mod legs;
pub mod names;
pub mod record;
pub mod second;
pub mod table;
pub mod wheel;
