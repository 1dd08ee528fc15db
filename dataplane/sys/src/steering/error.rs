//! What can go wrong with the steering program, in sentences for the operator.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::attach::AttachMode;

/// Why the program could not be loaded, attached, fed or pinned.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    #[error(
        "not permitted to {action}: {reason}; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    NotPermitted { action: String, reason: String },
    #[error(
        "the kernel did not take the XDP program: {reason}; weir needs Linux 5.19 or newer with BPF_SYSCALL and \
             XDP_SOCKETS"
    )]
    Load { reason: String },
    #[error(
        "the kernel has no memory for the map {map}{}: {source}; lower `flows` in [workers], or raise what bounds the memory of \
             weir's service (MemoryMax=; before Linux 5.11, LimitMEMLOCK=)",
        entries.map(|entries| format!(" of {entries} entries")).unwrap_or_default()
    )]
    NoMemory {
        map: String,
        /// Of those that follow `flows`.
        entries: Option<u32>,
        source: io::Error,
    },
    #[error(
        "the kernel has no memory for the XDP program: {reason}; raise what bounds the memory of weir's service (MemoryMax=)"
    )]
    NoMemoryForProgram { reason: String },
    #[error("the XDP program has no map {map}: weir was built from sources that do not fit together")]
    NoMap { map: &'static str },
    #[error("map {map} is not laid out as weir expects: remove pins of another version with weir clean")]
    Layout { map: &'static str },
    #[error("{action} map {map}: {source}")]
    Map { map: &'static str, action: &'static str, source: io::Error },
    #[error("there is no device {device} in this network namespace: correct `device` of the port")]
    NoDevice { device: String },
    #[error(
        "device {device} is already taken by another XDP program ({program}): detach it (ip link set {device} \
             xdp off, or stop the process that holds it), or take the port out of the configuration"
    )]
    AlreadyTaken { device: String, program: String },
    #[error("device {device} has no XDP in {mode}: {reason}; use mode = \"generic\", or a lower MTU")]
    NoXdp { device: String, mode: AttachMode, reason: String },
    #[error("device {device}: the port's number {port} is too large: at most 32 ports")]
    PortNumber { device: String, port: u32 },
    #[error("queue {queue} is too large: at most 64 queues of a port")]
    QueueNumber { queue: u32 },
    #[error(
        "server {server} is in several pools with source = \"gateway\" whose ports are apart ({}-{} and {}-{}): give them \
             the same ports", one.start(), one.end(), other.start(), other.end()
    )]
    PoolPorts { server: SocketAddr, one: RangeInclusive<u16>, other: RangeInclusive<u16> },
    #[error("{}: {action}: {source}; {hint}", path.display())]
    Pin { path: PathBuf, action: &'static str, source: io::Error, hint: &'static str },
}

impl SteeringError {
    pub(crate) fn of_map(map: &'static str, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Map { map, action, source }
    }
}
