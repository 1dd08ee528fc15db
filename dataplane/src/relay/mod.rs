//! The relay: transparent listeners, one io_uring a thread, the pure machine of [`weir_core::relay`] in between.
//!
//! Intercepted connections that the fast road does not carry arrive here (nft tproxy, DESIGN section 7): the accepted
//! socket's local address is the destination that the client meant. Each is judged like on the fast road, connected
//! from the client's own address and port, and relayed with half-close and back-pressure. Control starts it with
//! [`RelayHandle::start`] and asks it through the handle.
//!
//! A connection goes through `listener.rs -> ring.rs -> weir_core::relay -> pump.rs -> transfer.rs -> stock.rs`.
//!
//! # How octets are moved, and why so
//!
//! The ring (one a thread: SINGLE_ISSUER, DEFER_TASKRUN) brings connections (multishot accept) and says what each socket is ready
//! for (one multishot poll a socket, submitted once in its life). What is ready is received into the thread's one buffer, which
//! stays in the cache, and sent on at once; only what the other end does not take is kept with the connection. Receives of 16 KiB
//! and more go on through a pipe (splice) until they get small again; where they turn out to lie in small pieces, as packets of an
//! MTU do, they are copied after all, which the pipe's 16 slots tell. So an idle connection has no buffer, in the process or in
//! the kernel's request for it, and a slow receiver holds at most [`Limits::buffer`](weir_core::relay::Limits::buffer) octets.
//!
//! Measured before the choice, with prototypes of 200 lines in the arrangement of `make bench-relay` (its CPU time of the
//! gateway, kernel 6.18, one run of 2 s each; what differs by less than a tenth is the same):
//!
//! | way | new connection, us | request, us | bulk, large packets, ns/KiB | bulk, MTU, ns/KiB |
//! | --- | --- | --- | --- | --- |
//! | receive into a buffer of its own (64 KiB), send, both in the ring | 85 | 11.2 | 761 | 2281 |
//! | the same with 256 KiB | 83 | 11.0 | 817 | 2128 |
//! | multishot receive into provided buffers (256 of 4 KiB), send in the ring | 64 | 10.3 | 1609 | 2497 |
//! | the same, sent by send(2) | 64 | 10.1 | 1539 | 2747 |
//! | poll in the ring, recv(2) and send(2) with one buffer of 64 KiB for all | 61 | 10.6 | 709 | 2209 |
//! | poll in the ring, splice(2) through a pipe of 1 MiB a direction | 75 | 12.1 | 434 | 2094 |
//! | nobody in between: the kernel forwards | | | | 988 |
//!
//! In the relay as it is, packets of an MTU cost 2730 to 2950 ns/KiB through pipes and 2410 to 2650 copied; HAProxy 2260 to 2560 in the
//! same runs, and the first of these ways 2200 to 2340, whose receives wait longer and bring more. Large ones cost 520 to 580, HAProxy 780 to 850.
//!
//! Provided buffers win nothing over one buffer that is always warm, have to be large for bulk and small for memory, and
//! receive beyond what the other end takes before they can be stopped. Direct descriptors do not fit: where a client wanted to go is
//! its socket's own address, which the ring cannot tell before Linux 6.19, and its shutdown always takes a worker thread; their
//! table is bound by RLIMIT_NOFILE as well. Deadlines are one wheel's, not linked timeouts: those are an operation more each time.

mod conn;
mod flows;
mod handle;
mod listener;
mod pump;
mod ring;
mod stats;
mod stock;
mod timers;
mod transfer;

pub use flows::RelayFlow;
pub use handle::{Hook, Hooks, RelayConfig, RelayError, RelayHandle};
pub use stats::{Counter, Counters};
