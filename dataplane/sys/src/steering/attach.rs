//! Putting the program on devices, and keeping it there: links held by descriptor, or pinned for boxes that fail closed.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use aya::EbpfError;
use aya::programs::{Xdp, loaded_programs};

use super::error::SteeringError;
use super::{load_error, pin};
use crate::ethtool;

/// How the program is to run on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver if it can, else generic.
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's stack, after the skb was made: works on every device.
    Generic,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto mode",
            Self::Native => "native mode",
            Self::Generic => "generic mode",
        })
    }
}

/// How it does run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    Native,
    Generic,
}

impl AttachedMode {
    /// The word for it in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// The program on one device. Dropped, the program leaves the device, unless it is pinned.
#[derive(Debug)]
pub(super) struct Attachment {
    pub device: String,
    pub ifindex: u32,
    /// As it was attached, and is again after somebody has taken the program off.
    mode: AttachedMode,
    link: Option<Link>,
}

/// The kernel's link of program and device, which ends with its last descriptor and pin. aya's own loses the descriptor when it cannot be
/// pinned.
#[derive(Debug)]
struct Link {
    fd: OwnedFd,
    pin: Option<PathBuf>,
}

impl Link {
    /// Puts a program on a device; `flags`: `XDP_FLAGS_...` of linux/if_link.h.
    fn create(program: i32, ifindex: u32, flags: u32) -> io::Result<Self> {
        let ifindex = i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
        let options = libbpf_sys::bpf_link_create_opts {
            sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
            flags,
            ..Default::default()
        };
        // SAFETY: the options are initialized, say their size and outlive the call; the kernel checks descriptor and index.
        let fd = unsafe { libbpf_sys::bpf_link_create(program, ifindex, libbpf_sys::BPF_XDP, &options) };
        Ok(Self { fd: pin::owned(fd)?, pin: None })
    }

    /// The one that is pinned there.
    fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { fd: pin::open_object(&path)?, pin: Some(path) })
    }

    /// Puts another program in the place of the one on the device, in one step.
    fn replace(&self, program: i32) -> io::Result<()> {
        // SAFETY: there may be no options; the kernel checks the descriptors.
        let code = unsafe { libbpf_sys::bpf_link_update(self.fd.as_raw_fd(), program, std::ptr::null()) };
        if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn descriptor(program: &Xdp) -> Result<i32, SteeringError> {
    let fd = program.fd().map_err(|error| load_error(EbpfError::ProgramError(error)))?;
    Ok(fd.as_fd().as_raw_fd())
}

impl Attachment {
    /// Attaches, natively first where the mode leaves it open.
    pub fn new(
        program: &Xdp,
        device: &str,
        ifindex: u32,
        mode: AttachMode,
    ) -> Result<(Self, AttachedMode), SteeringError> {
        let missing = || SteeringError::NoDevice { device: device.into() };
        if ethtool::index_of(device).map_err(|_| missing())? != ifindex {
            return Err(missing());
        }
        match attached_to(ifindex).map_err(|_| missing())? {
            0 => {}
            id => return Err(taken(device, id)),
        }
        let native = || attach(program, device, ifindex, AttachedMode::Native);
        let generic = || attach(program, device, ifindex, AttachedMode::Generic);
        let (link, mode) = match mode {
            AttachMode::Native => (native()?, AttachedMode::Native),
            AttachMode::Generic => (generic()?, AttachedMode::Generic),
            AttachMode::Auto => match native() {
                Ok(link) => (link, AttachedMode::Native),
                Err(SteeringError::NoXdp { reason, .. }) => {
                    tracing::warn!(
                        "device {device} has no XDP in native mode ({reason}): using generic mode"
                    );
                    (generic()?, AttachedMode::Generic)
                }
                Err(error) => return Err(error),
            },
        };
        Ok((Self { device: device.into(), ifindex, mode, link: Some(link) }, mode))
    }

    /// Takes over the link that a process before left pinned on this device: its program is replaced in one step, so
    /// that no packet meets a device without a program. `None` when there is no such link, or the device is a new one.
    pub fn adopt(program: &Xdp, device: &str, ifindex: u32, folder: &Path) -> Option<(Self, AttachedMode)> {
        let path = pin::take_link(folder, ifindex)?;
        let link = Link::open(path.clone()).ok()?;
        let replaced = descriptor(program)
            .map_err(|error| error.to_string())
            .and_then(|program| link.replace(program).map_err(|error| error.to_string()));
        match replaced {
            Ok(()) if attached_to(ifindex).unwrap_or(0) == program_id(program) => {
                let mode = mode_on(ifindex);
                return Some((Self { device: device.into(), ifindex, mode, link: Some(link) }, mode));
            }
            Ok(()) => {}
            Err(reason) => tracing::warn!("{}: not taken over ({reason}): removed", path.display()),
        }
        let _ = std::fs::remove_file(&path);
        None
    }

    /// Whether the device is there without this program: `bpftool link detach` does that, also to a pinned link.
    pub fn is_off(&self, program: &Xdp) -> bool {
        attached_to(self.ifindex).is_ok_and(|id| id != program_id(program))
            && ethtool::index_of(&self.device).is_ok_and(|index| index == self.ifindex)
    }

    /// Puts the program on again, in the mode that it had. The link that was detached is of no more use, nor is its pin.
    pub fn renew(&mut self, program: &Xdp) -> Result<(), SteeringError> {
        drop(self.unpin());
        self.link = None;
        let mode = match self.mode {
            AttachedMode::Native => AttachMode::Native,
            AttachedMode::Generic => AttachMode::Generic,
        };
        let (new, _) = Self::new(program, &self.device, self.ifindex, mode)?;
        self.link = new.link;
        Ok(())
    }

    /// Pins the link, so that the program stays when the process ends; again when somebody has removed the pin. On an error it is held
    /// by descriptor, as before.
    pub fn pin(&mut self, folder: &Path) -> Result<(), SteeringError> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let path = pin::link_path(folder, self.ifindex);
        if link.pin.as_ref() != Some(&path) || !path.exists() {
            pin::pin_object(link.fd.as_raw_fd(), &path)?;
            link.pin = Some(path);
        }
        Ok(())
    }

    /// Whether the program is on the device by a link of this process's.
    pub const fn has_link(&self) -> bool {
        self.link.is_some()
    }

    /// Removes the pin and holds the link by descriptor again.
    pub fn unpin(&mut self) -> Result<(), SteeringError> {
        let Some(path) = self.link.as_mut().and_then(|link| link.pin.take()) else { return Ok(()) };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(pin::error(&path, "unpinning", error))
            }
            _ => Ok(()),
        }
    }
}

fn attach(program: &Xdp, device: &str, ifindex: u32, mode: AttachedMode) -> Result<Link, SteeringError> {
    let (asked, flags) = match mode {
        AttachedMode::Native => (AttachMode::Native, libbpf_sys::XDP_FLAGS_DRV_MODE),
        AttachedMode::Generic => (AttachMode::Generic, libbpf_sys::XDP_FLAGS_SKB_MODE),
    };
    Link::create(descriptor(program)?, ifindex, flags)
        .map_err(|error| attach_error(device, ifindex, asked, &error))
}

fn attach_error(device: &str, ifindex: u32, mode: AttachMode, error: &io::Error) -> SteeringError {
    let device = device.to_owned();
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => SteeringError::NotPermitted {
            action: format!("attach the XDP program to {device}"),
            reason: "the kernel refused".into(),
        },
        Some(libc::EBUSY | libc::EEXIST) => taken(&device, attached_to(ifindex).unwrap_or(0)),
        Some(libc::ENODEV) => SteeringError::NoDevice { device },
        _ => SteeringError::NoXdp { device, mode, reason: error.to_string() },
    }
}

fn taken(device: &str, id: u32) -> SteeringError {
    let name = loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned));
    let program = match name {
        Some(name) if !name.is_empty() => format!("program id {id}, named {name}"),
        _ => format!("program id {id}"),
    };
    SteeringError::AlreadyTaken { device: device.into(), program }
}

/// The id of the program on a device, 0 if none, as the calling thread's network namespace sees it.
pub(super) fn attached_to(ifindex: u32) -> io::Result<u32> {
    Ok(attached_info(ifindex)?.prog_id)
}

fn attached_info(ifindex: u32) -> io::Result<libbpf_sys::xdp_link_info> {
    let mut info = libbpf_sys::xdp_link_info::default();
    let ifindex = i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    let size = size_of::<libbpf_sys::xdp_link_info>() as libbpf_sys::size_t;
    // SAFETY: the call writes at most `size` bytes to a local of that size.
    let code = unsafe { libbpf_sys::bpf_get_link_xdp_info(ifindex, &mut info, size, 0) };
    if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(info) }
}

fn mode_on(ifindex: u32) -> AttachedMode {
    match attached_info(ifindex) {
        Ok(info) if info.skb_prog_id != 0 => AttachedMode::Generic,
        _ => AttachedMode::Native,
    }
}

fn program_id(program: &Xdp) -> u32 {
    program.info().map_or(0, |info| info.id())
}
