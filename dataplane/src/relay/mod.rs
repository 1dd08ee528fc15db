//! The relay: transparent listeners, one io_uring a thread, the pure machine of [`weir_core::relay`] in between.
