//! Tells systemd how far we are (sd_notify(3)), when it asked to be told.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The gateway does its work.
pub fn ready() {
    // A process that has taken another's place is the service's from now on.
    send(&format!("MAINPID={}\nREADY=1\n", std::process::id()));
}

/// The gateway is being taken out.
pub fn stopping() {
    send("STOPPING=1\n");
}

fn send(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|a| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &a));
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd was not told");
    }
}
