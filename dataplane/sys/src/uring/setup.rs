//! Making a ring, and saying why there is none.

use io_uring::{IoUring, Probe, opcode};
use thiserror::Error;

/// Why this host has no ring for us.
#[derive(Debug, Error)]
pub enum UringError {
    #[error(
        "this kernel has no io_uring: Linux 5.19 or newer, built with CONFIG_IO_URING, is needed for the relay"
    )]
    Missing,
    #[error(
        "io_uring is not permitted here: set the sysctl kernel.io_uring_disabled to 0, or lift the seccomp filter that \
         a container runtime puts on io_uring_setup"
    )]
    Forbidden,
    #[error("this kernel's io_uring lacks {0}: Linux 5.19 or newer is needed for the relay")]
    TooOld(&'static str),
    #[error("io_uring: {0} failed: {1}")]
    System(&'static str, #[source] std::io::Error),
}

impl UringError {
    fn of_setup(error: std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Self::Missing,
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden,
            // None of the flags since 5.19.
            Some(libc::EINVAL) => Self::TooOld("IORING_SETUP_COOP_TASKRUN"),
            _ => Self::System("io_uring_setup", error),
        }
    }
}

/// When the kernel does what completions need of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Only when it waits: since Linux 6.1.
    Deferred,
    /// Whenever it enters the kernel: since 5.19.
    Cooperative,
}

/// A ring with the cheapest notification the kernel has, and every operation that [`super::Ring`] submits.
pub(super) fn build(entries: u32) -> Result<IoUring, UringError> {
    match build_with(entries, Notice::Deferred) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            tracing::info!("io_uring before Linux 6.1: completions interrupt the relay's threads more often");
            checked(build_with(entries, Notice::Cooperative))
        }
        other => checked(other),
    }
}

/// As [`build`], with this notification only.
pub(super) fn build_with(entries: u32, notice: Notice) -> std::io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(entries.saturating_mul(8)).setup_clamp().setup_submit_all();
    match notice {
        Notice::Deferred => builder.setup_single_issuer().setup_defer_taskrun(),
        Notice::Cooperative => builder.setup_coop_taskrun(),
    };
    builder.build(entries)
}

/// A ring that has all that is needed.
pub(super) fn checked(built: std::io::Result<IoUring>) -> Result<IoUring, UringError> {
    let ring = built.map_err(UringError::of_setup)?;
    check(&ring)?;
    Ok(ring)
}

fn check(ring: &IoUring) -> Result<(), UringError> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|e| match e.raw_os_error() {
        Some(libc::EINVAL) => UringError::TooOld("the probe for operations"),
        _ => UringError::System("io_uring_register", e),
    })?;
    let operations = [
        (opcode::Accept::CODE, "accept"),
        (opcode::PollAdd::CODE, "poll"),
        (opcode::PollRemove::CODE, "the end of a poll"),
        (opcode::AsyncCancel::CODE, "cancel"),
        // Not used: it is of the same kernel as accepts that complete more than once, for which there is no flag.
        (opcode::Socket::CODE, "accepts that go on"),
    ];
    if let Some((_, name)) = operations.iter().find(|(code, _)| !probe.is_supported(*code)) {
        return Err(UringError::TooOld(name));
    }
    let params = ring.params();
    let features = [
        (params.is_feature_nodrop(), "IORING_FEAT_NODROP"),
        (params.is_feature_ext_arg(), "IORING_FEAT_EXT_ARG"),
        (params.is_feature_skip_cqe_on_success(), "IORING_FEAT_CQE_SKIP"),
    ];
    match features.iter().find(|(there, _)| !there) {
        Some((_, name)) => Err(UringError::TooOld(name)),
        None => Ok(()),
    }
}

/// Whether this host has what [`super::Ring`] needs; for `weir doctor` and before anything is installed.
pub fn probe() -> Result<(), UringError> {
    build(8).map(drop)
}
