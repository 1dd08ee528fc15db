//! What can go wrong between weir and the kernel, as sentences for the operator. The binary exits 3 on any of them.

use std::io;
use std::path::{Path, PathBuf};

/// Each variant's text says what was wrong, where, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The wanted state makes no sense; no system was asked.
    #[error("{0}")]
    Spec(String),
    /// A change was refused. `command` is what a person would have typed.
    #[error("`{command}` failed: {reason}")]
    Command { command: String, reason: String },
    /// A question to the kernel failed.
    #[error("cannot read {what} from the kernel: {source}")]
    Netlink { what: &'static str, source: io::Error },
    #[error("no device named {device} here; there are: {}", existing.join(", "))]
    NoSuchDevice { device: String, existing: Vec<String> },
    /// Something of somebody else's is in the way.
    #[error("{0}")]
    Foreign(String),
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the program nft is missing: install the package nftables")]
    NftMissing,
    #[error(
        "another weir runs in this network namespace{}{}: stop it first (it holds the socket @weir)",
        holder.map(|pid| format!(" as process {pid}")).unwrap_or_default(),
        config.as_ref().map(|file| format!(" with the configuration {}", file.display())).unwrap_or_default()
    )]
    Locked { holder: Option<i32>, config: Option<PathBuf> },
    #[error("{0}")]
    Permission(String),
    #[error("{0}")]
    Kernel(String),
}

impl HostError {
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_path_buf(), source }
    }
}

/// rtnetlink's error as the errno it carries.
pub(crate) fn errno(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
