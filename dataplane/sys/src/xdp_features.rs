//! What a device does with XDP frames, as the kernel tells it since Linux 6.3: the generic netlink family `netdev`
//! (Documentation/netlink/specs/netdev.yaml). A veth device, say, takes redirected frames only while its peer has an XDP program
//! or GRO on, and drops them otherwise.
//!
//! Called by `weir run`, before it lets the XDP program send packets on by itself, and while it does.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// linux/genetlink.h: the family that knows the others.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// linux/netdev.h.
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;
/// linux/netlink.h.
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_HEADER: usize = 16;
const GENL_HEADER: usize = 4;

/// Whether XDP frames that are redirected to a device of the calling thread's network namespace leave it now.
///
/// # Errors
/// ENOENT: the kernel does not tell (before Linux 6.3). ENODEV: there is no such device.
pub fn takes_frames(ifindex: u32) -> io::Result<bool> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::GENERIC),
    )?;
    let name = b"netdev\0";
    let found = ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, (CTRL_ATTR_FAMILY_NAME, name))?;
    let family = attribute(&found, CTRL_ATTR_FAMILY_ID).and_then(|id| id.get(..2)?.try_into().ok());
    let family = u16::from_ne_bytes(family.ok_or(io::ErrorKind::NotFound)?);
    let device = ask(&socket, family, NETDEV_CMD_DEV_GET, (NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes()))?;
    let features =
        attribute(&device, NETDEV_A_DEV_XDP_FEATURES).and_then(|bits| bits.get(..8)?.try_into().ok());
    Ok(features.map_or(0, u64::from_ne_bytes) & NETDEV_XDP_ACT_NDO_XMIT != 0)
}

/// Sends a request with one attribute; the attributes of the answer.
fn ask(socket: &OwnedFd, family: u16, command: u8, (kind, value): (u16, &[u8])) -> io::Result<Vec<u8>> {
    let mut request = Vec::with_capacity(64);
    request.extend(0_u32.to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: there is one question at a time.
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend(((value.len() + 4) as u16).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(value);
    request.resize(request.len().next_multiple_of(4), 0);
    let length = (request.len() as u32).to_ne_bytes();
    request[..4].copy_from_slice(&length);
    rustix::net::sendto(socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = vec![0; 8192];
    let (read, _) = rustix::net::recv(socket, &mut answer[..], RecvFlags::empty())?;
    answer.truncate(read);
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let of = answer.get(4..6).and_then(|of| of.try_into().ok()).ok_or_else(malformed)?;
    if u16::from_ne_bytes(of) == NLMSG_ERROR {
        let code = answer.get(NLMSG_HEADER..NLMSG_HEADER + 4).and_then(|code| code.try_into().ok());
        return Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(code.ok_or_else(malformed)?)));
    }
    answer.get(NLMSG_HEADER + GENL_HEADER..).map(<[u8]>::to_vec).ok_or_else(malformed)
}

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        // The two highest bits say of what sort the value is.
        if kind & 0x3fff == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_takes_no_frames_and_a_device_that_is_not_there_is_an_error() {
        match takes_frames(1) {
            Ok(takes) => assert!(!takes),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                return eprintln!("SKIPPED: this kernel does not tell (Linux 6.3)");
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(takes_frames(0x7fff_fff0).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
