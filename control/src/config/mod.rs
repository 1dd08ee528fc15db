//! Configuration files: read, checked, compiled into a [`weir_core::policy::Policy`].
