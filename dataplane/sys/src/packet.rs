//! Packet sockets: whole frames to and from a device, as a test or a probe sees them.
//!
//! Called by tests that send crafted frames and look at what is on a link, and by `weir doctor`. See packet(7).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::ethtool;

/// A socket on one device: receives every frame that comes in by it, sends frames as they are.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens it on a device of the calling thread's network namespace. Frames that the host itself sends by the device
    /// are not seen.
    ///
    /// # Errors
    /// ENODEV: no such device. EPERM without CAP_NET_RAW.
    pub fn open(device: &str) -> io::Result<Self> {
        let index = ethtool::index_of(device)?;
        // Made deaf (protocol 0), so that no frame of another device gets in before it is bound.
        let fd = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        ignore_outgoing(&fd)?;
        bind(&fd, index)?;
        Ok(Self { fd })
    }

    /// Sends one frame, Ethernet header first.
    ///
    /// # Errors
    /// ENETDOWN, EMSGSIZE (larger than the MTU), ENOBUFS.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(&self.fd, frame, SendFlags::empty())?;
        Ok(())
    }

    /// Room for so many octets of frames that wait to be received, as far as the host allows.
    ///
    /// # Errors
    /// Of setsockopt(2); not that the host allows less.
    pub fn set_receive_buffer(&self, octets: usize) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_recv_buffer_size(&self.fd, octets)?)
    }

    /// Frames that found no room since the last call.
    ///
    /// # Errors
    /// Of getsockopt(2).
    pub fn take_dropped(&self) -> io::Result<u32> {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        let (fd, place) = (self.fd.as_raw_fd(), std::ptr::from_mut(&mut stats).cast());
        // SAFETY: `place` is valid for writing `len` bytes.
        let code =
            unsafe { libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, place, &raw mut len) };
        if code < 0 { Err(io::Error::last_os_error()) } else { Ok(stats.tp_drops) }
    }

    /// The next frame, if one comes within `timeout`: its first bytes in `buffer`, and how many those are.
    ///
    /// # Errors
    /// ENETDOWN, once, when the device goes down.
    pub fn recv(&self, buffer: &mut [u8], timeout: Duration) -> io::Result<Option<usize>> {
        let deadline = Instant::now() + timeout;
        loop {
            match recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((len, _)) => return Ok(Some(len)),
                Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn ignore_outgoing(fd: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let place = std::ptr::from_ref(&on).cast();
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `place` is valid for reading `len` bytes.
    let code = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, place, len)
    };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn bind(fd: &OwnedFd, index: u32) -> io::Result<()> {
    // SAFETY: sockaddr_ll is integers and an array of them: all zeros is a value of it.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is valid for reading `len` bytes.
    let code = unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), len) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
