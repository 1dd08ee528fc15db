//! What can go wrong with AF_XDP, in sentences for the operator.

use std::io;

use super::socket::Mode;

/// Why a memory area or a queue could not be had.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    #[error("frames of {asked} bytes are not possible: use 2048 or 4096")]
    FrameSize { asked: usize },
    #[error(
        "a memory area of {asked} frames is not possible: ask for at least one, and for less than the memory"
    )]
    NoFrames { asked: usize },
    #[error(
        "no {bytes} bytes of memory for frames: {source}; list fewer `queues` in each [[port]], or give the process more memory"
    )]
    Memory { bytes: usize, source: io::Error },
    #[error("a ring of {asked} entries is not possible: use a power of two from 64 to 4096")]
    RingSize { asked: u32 },
    #[error(
        "device {device}: no XDP program is attached, so no packet would reach an AF_XDP socket; attach weir's first"
    )]
    NoProgram { device: String },
    #[error("device {device} queue {queue}: the UMEM was refused: {source}; {hint}")]
    Umem { device: String, queue: u32, source: io::Error, hint: &'static str },
    #[error("device {device} queue {queue}: no AF_XDP socket ({mode}): {source}; {hint}")]
    Socket { device: String, queue: u32, mode: Mode, source: io::Error, hint: &'static str },
    #[error("device {device} queue {queue}: reading {what} of the AF_XDP socket failed: {source}")]
    Option { device: String, queue: u32, what: &'static str, source: io::Error },
}

/// What to do about a refused UMEM.
pub(super) fn umem_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run as root, or with CAP_NET_RAW, CAP_BPF and CAP_NET_ADMIN",
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            "raise the memlock limit (LimitMEMLOCK=infinity), or use fewer frames"
        }
        Some(libc::EAFNOSUPPORT) => "this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)",
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files",
        _ => "see the kernel's log",
    }
}

/// What to do about a refused socket.
pub(super) fn socket_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run as root, or with CAP_NET_RAW, CAP_BPF and CAP_NET_ADMIN",
        Some(libc::EBUSY) => {
            "another process has an AF_XDP socket on this queue: stop it, or leave the queue out"
        }
        Some(libc::ENODEV | libc::ENXIO) => "the device does not exist in this network namespace",
        Some(libc::ENETDOWN) => "the device is down: ip link set up",
        Some(libc::EINVAL) => "the device has no such queue, or its MTU is too large for the frame size",
        Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => {
            "the driver cannot do this mode: use mode = \"auto\" or \"copy\""
        }
        Some(libc::ENOENT) => {
            "the attached XDP program is not weir's: detach it (ip link set DEVICE xdp off)"
        }
        Some(libc::ENOBUFS | libc::ENOMEM) => "raise the memlock limit (LimitMEMLOCK=infinity)",
        _ => "see the kernel's log",
    }
}

/// The crate hands on what libbpf returns, and that is a negative errno.
pub(super) fn from_libbpf(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) if code < 0 => io::Error::from_raw_os_error(-code),
        _ => error,
    }
}
