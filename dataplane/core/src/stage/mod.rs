//! One handler for each stage of a connection. They are methods of [`crate::pipeline::Pipeline`]: each takes a packet
//! and either sends it on, holds it, answers it, gives it to the kernel, or drops it with a reason.

pub mod adopt;
pub mod answer;
pub mod arrive;
pub mod closing;
pub mod dial;
pub mod express;
pub mod held;
pub mod icmp;
pub mod join;
pub mod kernel;
pub mod open;
pub mod reevaluate;
pub mod refused;
pub mod second;
pub mod splice;
pub mod straight;
pub mod timers;
pub mod verifying;
