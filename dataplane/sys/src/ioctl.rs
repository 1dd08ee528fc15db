//! ioctls on a network device, which, unlike sysfs, follow the calling thread's namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// A socket for device ioctls, in the namespace of the thread that opened it.
pub(crate) fn control_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// An empty request for a device.
///
/// # Errors
/// EINVAL: no device can have this name (empty, or longer than 15 bytes, or with a zero in it).
pub(crate) fn request(device: &str) -> io::Result<libc::ifreq> {
    let name = device.as_bytes();
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: ifreq is integers, arrays of them and a union of such: all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name) {
        *place = *byte as libc::c_char;
    }
    Ok(request)
}

/// One ioctl with an ifreq.
///
/// # Safety
/// `code` is an ioctl whose argument is an ifreq; if it follows `ifr_data`, that points to what the command expects.
pub(crate) unsafe fn call(fd: impl AsFd, code: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the request is valid for reads and writes of its size, and the caller vouches for the rest.
    let result =
        unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), code as libc::Ioctl, std::ptr::from_mut(request)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
