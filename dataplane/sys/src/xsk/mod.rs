//! AF_XDP on the afxdp crate: one memory area for the whole box, one socket per port and queue.
//!
//! Called by the AF_XDP driver of weir-dataplane. A [`Frame`] has one owner at any time: the caller, or a ring of a
//! [`Queue`]. Frames received on one queue are sent on any other without a copy, because every queue's UMEM is the same
//! [`Area`]. Kernel side: `Documentation/networking/af_xdp.rst`.
//!
//! What the crate leaves open is closed here: the socket's descriptor (asked from the libbpf it is built on), the mode
//! the kernel really chose, the kick of outstanding TX, the panic of `try_send` when a device is gone, the order in
//! which sockets and rings must be taken down, and the frames that are in rings when that happens.

mod area;
mod error;
mod frame;
mod held;
mod queue;
mod quiet;
mod socket;

pub use area::{Area, FrameSize};
pub use error::XskError;
pub use frame::{Frame, frames_lost};
pub use queue::{Closing, Queue, RingSizes};
pub use socket::{Mode, QueueStats};
