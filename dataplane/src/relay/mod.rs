//! The relay: transparent listeners, one io_uring a thread, the pure machine of [`weir_core::relay`] in between.
//!
//! Intercepted connections that the fast road does not carry arrive here (nft tproxy, DESIGN section 7): the accepted
//! socket's local address is the destination that the client meant. Each is judged like on the fast road, connected
//! from the client's own address and port, and relayed with half-close and back-pressure. Control starts it with
//! [`RelayHandle::start`] and asks it through the handle.
//!
//! A connection goes through `listener.rs -> ring.rs -> weir_core::relay -> pump.rs -> weir_sys::uring`.

mod conn;
mod flows;
mod handle;
mod listener;
mod pump;
mod ring;
mod stats;
mod timers;

pub use flows::RelayFlow;
pub use handle::{Hook, Hooks, RelayConfig, RelayError, RelayHandle};
pub use stats::{Counter, Counters};
