//! Pins: what keeps the program on its devices without the process, for `fail = "closed"`.
//!
//! A folder on a BPF file system holds one file per link (`link-IFINDEX-vN`), the kernel map (`kernel_flows-vN`) and the maps of
//! the express lane (`express_flows-vN` and so on), N being the version of the layout (a BPF file system has no names with
//! dots). There is none unless `Steering::pin` was called.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::error::SteeringError;
use super::layout::LAYOUT;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The pin of the link on a device.
pub(super) fn link_path(folder: &Path, ifindex: u32) -> PathBuf {
    folder.join(format!("link-{ifindex}-v{LAYOUT}"))
}

/// The pin of the link on a device that a process before left. The layout of maps says nothing of links: the pin of
/// another version becomes this one's.
pub(super) fn take_link(folder: &Path, ifindex: u32) -> Option<PathBuf> {
    let path = link_path(folder, ifindex);
    if !path.exists() {
        let of_device = format!("link-{ifindex}-v");
        let is_of_device = |name: &OsStr| name.as_bytes().starts_with(of_device.as_bytes());
        let other = pins(folder).ok()?.into_iter().find(|pin| pin.file_name().is_some_and(is_of_device))?;
        std::fs::rename(other, &path).ok()?;
    }
    Some(path)
}

/// The maps that outlive the process: flows that were given to the kernel, and those in the express lane, with what these need.
pub(super) const MAPS: [&str; 6] =
    ["kernel_flows", "express_flows", "express_notes", "express_hops", "express_links", "express_ports"];

/// The pin of a map.
pub(super) fn map_path(folder: &Path, map: &str) -> PathBuf {
    folder.join(format!("{map}-v{LAYOUT}"))
}

/// Whether a map is one of the express lane's.
pub(super) fn is_of_lane(map: &str) -> bool {
    map.starts_with("express_")
}

/// The maps of this layout that a process before left pinned. Those of the express lane make sense together, or not at all.
pub(super) fn whole(folder: &Path) -> Vec<(&'static str, PathBuf)> {
    let mut found: Vec<_> =
        MAPS.into_iter().map(|map| (map, map_path(folder, map))).filter(|(_, path)| path.exists()).collect();
    let parts = |maps: &[(&str, PathBuf)]| maps.iter().filter(|(map, _)| is_of_lane(map)).count();
    if parts(&found) < MAPS.into_iter().filter(|map| is_of_lane(map)).count() {
        found.retain(|(map, _)| !is_of_lane(map));
    }
    found
}

/// Whether a process before has left its express lane there, in this layout.
pub fn holds_lane(folder: &Path) -> bool {
    whole(folder).iter().any(|(map, _)| is_of_lane(map))
}

/// Makes the folder, and sees to it that it is on a BPF file system.
pub(super) fn prepare(folder: &Path) -> Result<(), SteeringError> {
    std::fs::create_dir_all(folder).map_err(|source| error(folder, "making the folder", source))?;
    match rustix::fs::statfs(folder) {
        Ok(stat) if stat.f_type as u64 == BPF_FS_MAGIC => Ok(()),
        Ok(_) => {
            let _ = std::fs::remove_dir(folder);
            let source = io::Error::from_raw_os_error(libc::EINVAL);
            Err(error(folder, "pinning outside a BPF file system", source))
        }
        Err(source) => Err(error(folder, "looking at the folder", source.into())),
    }
}

/// Removes weir's pins from a folder, and the folder: links that no process holds leave their devices, within
/// milliseconds (the kernel frees them later). Other files stay.
/// Returns what was removed. A folder that does not exist holds none.
///
/// # Errors
/// What could not be removed, and why.
pub fn unpin(folder: &Path) -> Result<Vec<PathBuf>, SteeringError> {
    let mut removed = Vec::new();
    for path in pins(folder)? {
        remove(&path)?;
        removed.push(path);
    }
    if !removed.is_empty() {
        // Others may keep files there.
        let _ = std::fs::remove_dir(folder);
    }
    Ok(removed)
}

/// Removes one pin.
pub(super) fn remove(path: &Path) -> Result<(), SteeringError> {
    std::fs::remove_file(path).map_err(|source| error(path, "removing the pin", source))
}

/// weir's pins in a folder, of any layout.
///
/// # Errors
/// When the folder cannot be read; that it does not exist is no error.
pub fn pins(folder: &Path) -> Result<Vec<PathBuf>, SteeringError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(folder, "reading the folder", source)),
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_of = |map: &str| name.strip_prefix(map).is_some_and(|rest| rest.starts_with("-v"));
            name.starts_with("link-") || MAPS.into_iter().any(is_of)
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    Ok(found)
}

/// Pins a map.
pub(super) fn pin_map(fd: i32, path: &Path) -> Result<(), SteeringError> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| error(path, "naming the pin", io::Error::from_raw_os_error(libc::EINVAL)))?;
    // SAFETY: the name is a terminated string that outlives the call; the kernel checks the descriptor.
    let code = unsafe { libbpf_sys::bpf_obj_pin(fd, name.as_ptr()) };
    if code < 0 {
        return Err(error(path, "pinning the map", io::Error::last_os_error()));
    }
    Ok(())
}

/// An error with a path and what to do.
pub(super) fn error(path: &Path, action: &'static str, source: io::Error) -> SteeringError {
    let hint = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run as root, or with CAP_BPF",
        Some(libc::EEXIST) => "another weir left it there: weir clean",
        _ => "it must be on a BPF file system: mount -t bpf bpf /sys/fs/bpf",
    };
    SteeringError::Pin { path: path.into(), action, source, hint }
}
