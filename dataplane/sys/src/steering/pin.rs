//! Pins: what keeps the program on its devices without the process, for `fail = "closed"`.
//!
//! A folder on a BPF file system holds one file per link (`link-IFINDEX-vN`), the kernel map (`kernel_flows-vN`), the maps of
//! the express lane (`express_flows-vN` and so on) and the program that carries them (`steer-vN`), N being the version of the layout (a
//! BPF file system has no names with dots). There is none unless `Steering::pin` was called. What of another version is found there is
//! for [`super::former`].

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use aya::EbpfError;

use super::error::SteeringError;
use super::layout::{LAYOUT, WAYS_LAYOUT};
use super::{PROGRAM, Steering, former, load_error, map_data, xdp};

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
pub(super) const MAPS: [&str; 7] = [
    "kernel_flows",
    "express_flows",
    "express_notes",
    NEXT,
    "express_hops",
    "express_links",
    "express_ports",
];
/// The lane's way on.
pub(super) const NEXT: &str = "express_next";
/// The program's pin, which is no map's.
const STEER: &str = "steer";

/// The pin of a map.
pub(super) fn map_path(folder: &Path, map: &str) -> PathBuf {
    let layout = if is_of_ways(map) { WAYS_LAYOUT } else { LAYOUT };
    path_of(folder, map, layout)
}

/// The pin of the program of a layout.
pub(super) fn program_path(folder: &Path, layout: u32) -> PathBuf {
    path_of(folder, STEER, layout)
}

/// The pin of a map of a layout.
pub(super) fn path_of(folder: &Path, map: &str, layout: u32) -> PathBuf {
    folder.join(format!("{map}-v{layout}"))
}

/// Whether a map is one of the express lane's.
pub(super) fn is_of_lane(map: &str) -> bool {
    map.starts_with("express_")
}

/// Whether that is the pin of an express lane's flows.
pub fn is_lane(pin: &Path) -> bool {
    pin.file_name().is_some_and(|name| name.as_bytes().starts_with(b"express_flows-v"))
}

/// Whether it is of the lane's devices and next hops.
fn is_of_ways(map: &str) -> bool {
    matches!(map, "express_hops" | "express_links" | "express_ports")
}

/// The maps of this layout that a process before left pinned. Those of the express lane make sense together, or not at all; but for
/// devices and next hops, which a lane of another layout may name as well.
pub(super) fn whole(folder: &Path) -> Vec<(&'static str, PathBuf)> {
    let mut found: Vec<_> =
        MAPS.into_iter().map(|map| (map, map_path(folder, map))).filter(|(_, path)| path.exists()).collect();
    let has_all = |is: fn(&str) -> bool| {
        MAPS.into_iter().filter(|map| is(map)).all(|map| found.iter().any(|(name, _)| *name == map))
    };
    let (has_lane, has_ways) = (has_all(is_of_lane), has_all(is_of_ways));
    let shares_ways = has_ways && !former::layouts(folder).is_empty();
    found.retain(|(map, _)| has_lane || !is_of_lane(map) || shares_ways && is_of_ways(map));
    found
}

/// Whether a process before has left its express lane there, in this layout or in one whose flows can be carried on.
pub fn holds_lane(folder: &Path) -> bool {
    whole(folder).iter().any(|(map, _)| is_of_lane(map)) || !former::layouts(folder).is_empty()
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
            name.starts_with("link-") || is_of(STEER) || MAPS.into_iter().any(is_of)
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    Ok(found)
}

/// Pins a map or a program.
pub(super) fn pin_object(fd: i32, path: &Path) -> Result<(), SteeringError> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| error(path, "naming the pin", io::Error::from_raw_os_error(libc::EINVAL)))?;
    // SAFETY: the name is a terminated string that outlives the call; the kernel checks the descriptor.
    let code = unsafe { libbpf_sys::bpf_obj_pin(fd, name.as_ptr()) };
    if code < 0 {
        return Err(error(path, "pinning", io::Error::last_os_error()));
    }
    Ok(())
}

/// What is pinned there.
pub(super) fn open_object(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the name is a terminated string that outlives the call.
    owned(unsafe { libbpf_sys::bpf_obj_get(name.as_ptr()) })
}

/// The descriptor that a call of libbpf's has given out.
pub(super) fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Steering {
    /// Pins links, kernel flows and the express lane in a folder of a BPF file system, so that the program stays on its devices
    /// when the process ends: for boxes that fail closed, and for the express lane. Again after each `attach`.
    ///
    /// # Errors
    /// [`SteeringError::Pin`]. What was pinned before the error stays pinned.
    pub fn pin(&mut self, folder: &Path) -> Result<(), SteeringError> {
        prepare(folder)?;
        self.pinned = Some(folder.into());
        for map in self.lasting_maps() {
            let path = map_path(folder, map);
            if !path.exists() {
                pin_object(map_data(&self.ebpf, map)?.fd().as_fd().as_raw_fd(), &path)?;
            }
        }
        if self.express.capacity() > 0 {
            self.pin_program(folder)?;
        }
        for attachment in &mut self.attached {
            attachment.pin(folder)?;
        }
        Ok(())
    }

    /// In the place of the one that a process before has pinned, in one step.
    fn pin_program(&mut self, folder: &Path) -> Result<(), SteeringError> {
        let fresh = folder.join(format!("{STEER}-v{LAYOUT}-fresh"));
        let _ = std::fs::remove_file(&fresh);
        let program = xdp(&mut self.ebpf, PROGRAM)?;
        let fd = program.fd().map_err(|error| load_error(EbpfError::ProgramError(error)))?;
        pin_object(fd.as_fd().as_raw_fd(), &fresh)?;
        let path = program_path(folder, LAYOUT);
        std::fs::rename(&fresh, &path).map_err(|source| error(&path, "naming the pin", source))
    }

    /// The maps that are pinned: those of the express lane only if there is one.
    fn lasting_maps(&self) -> impl Iterator<Item = &'static str> {
        let has_lane = self.express.capacity() > 0;
        MAPS.into_iter().filter(move |map| has_lane || !is_of_lane(map))
    }

    /// What is pinned there, if nobody has removed it: links, maps, and the lane's program.
    fn own_pins(&self, folder: &Path) -> impl Iterator<Item = PathBuf> {
        let links = self.attached.iter().filter(|at| at.has_link()).map(|at| link_path(folder, at.ifindex));
        let program = (self.express.capacity() > 0).then(|| program_path(folder, LAYOUT));
        links.chain(self.lasting_maps().map(|map| map_path(folder, map))).chain(program)
    }

    /// The folder of the pins, if somebody has removed one: without it the program would end with the process.
    pub fn misses_pins(&self) -> Option<&Path> {
        self.pinned.as_deref().filter(|folder| self.own_pins(folder).any(|pin| !pin.exists()))
    }

    /// Pins again what [`Self::misses_pins`].
    ///
    /// # Errors
    /// As [`Self::pin`].
    pub fn restore_pins(&mut self) -> Result<(), SteeringError> {
        match self.pinned.clone() {
            Some(folder) => self.pin(&folder),
            None => Ok(()),
        }
    }

    /// Removes pins in a folder that are of no device that the program is on: of ports that were taken out of the
    /// configuration, of devices that are gone, of what is in another layout and cannot be
    /// carried on. Returns what was removed.
    ///
    /// # Errors
    /// [`SteeringError::Pin`].
    pub fn unpin_others(&self, folder: &Path) -> Result<Vec<PathBuf>, SteeringError> {
        let mut ours: Vec<PathBuf> = self.own_pins(folder).collect();
        if self.express.capacity() > 0 {
            ours.extend(self.former.iter().flat_map(|lane| former::pins_of(folder, lane.layout)));
        }
        let others: Vec<PathBuf> = pins(folder)?.into_iter().filter(|path| !ours.contains(path)).collect();
        for path in &others {
            remove(path)?;
        }
        Ok(others)
    }

    /// Removes the pins: the program leaves its devices with the process again.
    ///
    /// # Errors
    /// [`SteeringError::Pin`].
    pub fn unpin(&mut self) -> Result<(), SteeringError> {
        for attachment in &mut self.attached {
            attachment.unpin()?;
        }
        match self.pinned.take() {
            Some(folder) => unpin(&folder).map(drop),
            None => Ok(()),
        }
    }
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
