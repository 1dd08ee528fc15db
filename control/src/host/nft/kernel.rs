//! The program nft: what is there, what is loaded, and how it would print what is wanted.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use weir_sys::ethtool;
use weir_sys::netns::Namespace;
use weir_sys::process::die_with_parent;

use super::super::HostError;
use super::listing::{SeenTable, with_indexes};
use super::{Ruleset, TABLE};

/// The table of this namespace, if there is one; devices that it tells by their indexes are in it with these, whatever has them now.
///
/// # Errors
/// [`HostError::NftMissing`]; nft's own complaint.
pub fn read() -> Result<Option<SeenTable>, HostError> {
    let index_of = |device: &str| ethtool::index_of(device).ok();
    Ok(list(&["--stateless"])?.map(|text| SeenTable::parse(&with_indexes(&text, index_of))))
}

/// How nft prints that table with these options of its.
///
/// # Errors
/// As [`read`].
pub fn list(options: &[&str]) -> Result<Option<String>, HostError> {
    let mut command = Command::new("nft");
    // What it says is read: in English.
    command.args(options).args(["list", "table", "inet", "weir"]).stdin(Stdio::null()).env("LC_ALL", "C");
    let output = command.output().map_err(cannot_run)?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    if reason.contains("No such file or directory") {
        return Ok(None);
    }
    if reason.contains("Operation not permitted") {
        let why = "CAP_NET_ADMIN is missing, without which nft shows no tables: run weir as root";
        return Err(HostError::Permission(why.to_owned()));
    }
    Err(HostError::Command { command: format!("nft list table {TABLE}"), reason: one_line(&reason) })
}

/// How this nft prints `ruleset`: it is loaded into an empty network namespace, which is gone when this returns. None where
/// no namespace can be made; what is there is then known by its comments alone.
pub fn rendered(ruleset: &Ruleset) -> Option<SeenTable> {
    /// The last one: a running weir asks for the same again and again.
    static LAST: Mutex<Option<(Ruleset, SeenTable)>> = Mutex::new(None);
    let mut last = LAST.lock().ok()?;
    if let Some((_, table)) = last.as_ref().filter(|(of, _)| of == ruleset) {
        return Some(table.clone());
    }
    let table = Namespace::new().ok()?.run(|| {
        ruleset.load().ok()?;
        read().ok().flatten()
    });
    let table = table.ok().flatten()?;
    *last = Some((ruleset.clone(), table.clone()));
    Some(table)
}

/// Removes the table. Returns the process id of the nft that did it.
///
/// # Errors
/// [`HostError::Command`] with the kernel's reason.
pub fn delete() -> Result<u32, HostError> {
    run_script(&format!("delete table {TABLE}\n"), &[]).map_err(|reason| HostError::Command {
        command: format!("nft delete table {TABLE}"),
        reason: reason.to_string(),
    })
}

/// Whether this kernel would take `script`; nothing is changed (`nft --check` stops before the commit).
///
/// # Errors
/// [`HostError::Kernel`] with its reason.
pub fn check(script: &str) -> Result<(), HostError> {
    run_script(script, &["--check"]).map(drop)
}

/// Feeds a script to nft, which carries it out as one transaction; the process id that it had.
///
/// # Errors
/// [`HostError::Kernel`] with nft's reason; nothing of the script holds then.
pub fn run_script(script: &str, args: &[&str]) -> Result<u32, HostError> {
    let mut command = Command::new("nft");
    command.args(args).args(["-f", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A weir that is killed must not install a table afterwards, behind the back of `weir clean`.
    let mut child = die_with_parent(&mut command).spawn().map_err(cannot_run)?;
    let pid = child.id();
    let fed = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(cannot_run)?;
    if output.status.success() {
        return fed.map(|()| pid).map_err(cannot_run);
    }
    Err(HostError::Kernel(one_line(&String::from_utf8_lossy(&output.stderr))))
}

fn cannot_run(error: io::Error) -> HostError {
    match error.kind() {
        io::ErrorKind::NotFound => HostError::NftMissing,
        _ => HostError::Kernel(format!("cannot run nft: {error}")),
    }
}

/// nft's complaints take several lines with a drawing of carets; the first says what is wrong.
fn one_line(stderr: &str) -> String {
    let line =
        stderr.lines().find(|l| l.contains("Error")).or(stderr.lines().next()).unwrap_or("no reason given");
    line.rsplit_once("Error: ").map_or(line, |(_, reason)| reason).trim().to_owned()
}
