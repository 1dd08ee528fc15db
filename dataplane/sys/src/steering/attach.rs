//! Putting the program on devices, and keeping it there: links held by descriptor, or pinned for boxes that fail closed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpError, XdpMode, loaded_programs};

use super::error::SteeringError;
use super::pin;
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

#[derive(Debug)]
enum Link {
    Held(FdLink),
    /// And where.
    Pinned(FdLink, PathBuf),
}

impl Attachment {
    /// Attaches, natively first where the mode leaves it open.
    pub fn new(
        program: &mut Xdp,
        device: &str,
        ifindex: u32,
        mode: AttachMode,
    ) -> Result<(Self, AttachedMode), SteeringError> {
        let missing = || SteeringError::NoDevice { device: device.into() };
        if ethtool::index_of(device).map_err(|_| missing())? != ifindex {
            return Err(missing());
        }
        // With an old kernel aya attaches over netlink, and that would replace a program already there.
        match attached_to(ifindex).map_err(|_| missing())? {
            0 => {}
            id => return Err(taken(device, id)),
        }
        let native = |program: &mut Xdp| attach(program, device, ifindex, XdpMode::Driver);
        let generic = |program: &mut Xdp| attach(program, device, ifindex, XdpMode::Skb);
        let (link, mode) = match mode {
            AttachMode::Native => (native(program)?, AttachedMode::Native),
            AttachMode::Generic => (generic(program)?, AttachedMode::Generic),
            AttachMode::Auto => match native(program) {
                Ok(link) => (link, AttachedMode::Native),
                Err(SteeringError::NoXdp { reason, .. }) => {
                    tracing::warn!(
                        "device {device} has no XDP in native mode ({reason}): using generic mode"
                    );
                    (generic(program)?, AttachedMode::Generic)
                }
                Err(error) => return Err(error),
            },
        };
        let link = Some(Link::Held(link));
        Ok((Self { device: device.into(), ifindex, mode, link }, mode))
    }

    /// Takes over the link that a process before left pinned on this device: its program is replaced in one step, so
    /// that no packet meets a device without a program. `None` when there is no such link, or the device is a new one.
    pub fn adopt(
        program: &mut Xdp,
        device: &str,
        ifindex: u32,
        folder: &Path,
    ) -> Option<(Self, AttachedMode)> {
        let path = pin::take_link(folder, ifindex)?;
        let pinned = PinnedLink::from_pin(&path).ok()?;
        let replaced = XdpLink::try_from(FdLink::from(pinned))
            .map_err(|error| error.to_string())
            .and_then(|link| program.attach_to_link(link).map_err(|error| error.to_string()))
            .and_then(|id| program.take_link(id).map_err(|error| error.to_string()));
        match replaced {
            Ok(_) if attached_to(ifindex).unwrap_or(0) == program_id(program) => {
                let link = PinnedLink::from_pin(&path).ok().map(|link| Link::Pinned(link.into(), path));
                let mode = mode_on(ifindex);
                Some((Self { device: device.into(), ifindex, mode, link }, mode))
            }
            Ok(_) => {
                let _ = std::fs::remove_file(&path);
                None
            }
            Err(reason) => {
                tracing::warn!("{}: not taken over ({reason}): removed", path.display());
                let _ = std::fs::remove_file(&path);
                None
            }
        }
    }

    /// Whether the device is there without this program: `bpftool link detach` does that, also to a pinned link.
    pub fn is_off(&self, program: &Xdp) -> bool {
        attached_to(self.ifindex).is_ok_and(|id| id != program_id(program))
            && ethtool::index_of(&self.device).is_ok_and(|index| index == self.ifindex)
    }

    /// Puts the program on again, in the mode that it had. The link that was detached is of no more use, nor is its pin.
    pub fn renew(&mut self, program: &mut Xdp) -> Result<(), SteeringError> {
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

    /// Pins the link, so that the program stays when the process ends; again when somebody has removed the pin.
    pub fn pin(&mut self, folder: &Path) -> Result<(), SteeringError> {
        let path = pin::link_path(folder, self.ifindex);
        match self.link.take() {
            Some(Link::Pinned(link, pin)) if pin == path && path.exists() => {
                self.link = Some(Link::Pinned(link, pin));
            }
            Some(Link::Held(link) | Link::Pinned(link, _)) => {
                let pinned = link.pin(&path).map_err(|error| pin::error(&path, "pinning", pin_io(error)))?;
                self.link = Some(Link::Pinned(pinned.into(), path));
            }
            None => {}
        }
        Ok(())
    }

    /// Whether the program is on the device by a link of this process's.
    pub const fn has_link(&self) -> bool {
        self.link.is_some()
    }

    /// Removes the pin and holds the link by descriptor again.
    pub fn unpin(&mut self) -> Result<(), SteeringError> {
        match self.link.take() {
            Some(Link::Pinned(link, path)) => {
                self.link = Some(Link::Held(link));
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(pin::error(&path, "unpinning", error));
                    }
                    _ => {}
                }
            }
            held => self.link = held,
        }
        Ok(())
    }
}

fn attach(program: &mut Xdp, device: &str, ifindex: u32, mode: XdpMode) -> Result<FdLink, SteeringError> {
    let asked = if mode == XdpMode::Skb { AttachMode::Generic } else { AttachMode::Native };
    let reject = |reason: String| SteeringError::NoXdp { device: device.into(), mode: asked, reason };
    let id = program
        .attach_to_if_index(ifindex, mode)
        .map_err(|error| attach_error(device, ifindex, asked, error))?;
    let link = program.take_link(id).map_err(|error| reject(error.to_string()))?;
    // A link over netlink (Linux before 5.9) would outlive a crash; dropping it detaches.
    FdLink::try_from(link).map_err(|_| reject("this kernel has no BPF links for XDP (Linux 5.9)".into()))
}

fn attach_error(device: &str, ifindex: u32, mode: AttachMode, error: ProgramError) -> SteeringError {
    let code = match &error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::XdpError(XdpError::NetlinkError(_)) => Some(libc::EINVAL),
        _ => None,
    };
    let device = device.to_owned();
    match code {
        Some(libc::EPERM | libc::EACCES) => SteeringError::NotPermitted {
            action: format!("attach the XDP program to {device}"),
            reason: "the kernel refused".into(),
        },
        Some(libc::EBUSY | libc::EEXIST) => taken(&device, attached_to(ifindex).unwrap_or(0)),
        Some(libc::ENODEV) => SteeringError::NoDevice { device },
        Some(code) => {
            let reason = io::Error::from_raw_os_error(code).to_string();
            SteeringError::NoXdp { device, mode, reason }
        }
        None => SteeringError::NoXdp { device, mode, reason: error.to_string() },
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

fn pin_io(error: aya::pin::PinError) -> io::Error {
    match error {
        aya::pin::PinError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}
