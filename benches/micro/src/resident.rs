//! What memory connections hold: that of a process which has established them in a pipeline, and does nothing else.

use std::io;
use std::process::{Command, Stdio};

use crate::bed::Bed;

/// Connections of the measure.
pub const FLOWS: u32 = 1_000_000;
/// The ways in which they are established.
pub const HANDSHAKES: [&str; 2] = ["through", "answer"];

/// What the measure is called.
pub fn name(handshake: &str) -> String {
    format!("resident/{handshake}/{FLOWS}")
}

/// Octets of resident memory of one connection, in a process of its own.
///
/// # Errors
/// The process cannot be run, or does not say what is expected.
pub fn of_a_flow(handshake: &str) -> io::Result<f64> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.args(["--resident", handshake]).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    said.trim().parse().map_err(|_| io::Error::other(format!("no number of octets: {said}")))
}

/// Establishes them here, and says what each has added.
///
/// # Errors
/// The kernel does not say how much memory is resident.
pub fn establish(handshake: &str) -> io::Result<f64> {
    let before = resident()?;
    let bed = if handshake == "answer" { Bed::answered(FLOWS, false) } else { Bed::new(FLOWS, false) };
    let octets = resident()?.saturating_sub(before) as f64 / f64::from(FLOWS);
    drop(bed);
    Ok(octets)
}

/// Octets of this process's resident memory (proc_pid_status(5)).
fn resident() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map(|kib: u64| kib * 1024).ok_or_else(|| io::Error::other("/proc/self/status without VmRSS"))
}
