//! Capture sockets (AF_PACKET): every frame that a device sends or receives, with what the kernel knows about it.
//!
//! For captures in the lab and in namespace tests; `packet.rs` is for sending and for what comes in. packet(7) describes what is used here: `sockaddr_ll`,
//! PACKET_AUXDATA; socket(7): SO_TIMESTAMPNS.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// Bytes of one socket's receive buffer: a burst of several thousand frames may wait before it is read.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Room for the control messages of one frame: a timestamp and the auxiliary data.
const CONTROL_BYTES: usize = 128;

/// What the kernel tells about one frame, besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameInfo {
    /// Bytes of the frame on the device; more than were copied when the buffer was too small.
    pub length: usize,
    /// When the kernel saw it.
    pub time: SystemTime,
    /// The device sent it, else it received it.
    pub outgoing: bool,
    /// The TCP or UDP checksum is only the pseudo header's so far: an offload was to complete it
    /// (TP_STATUS_CSUMNOTREADY), as veth leaves it.
    pub checksum_partial: bool,
    /// The VLAN tag that the kernel took out of the frame.
    pub vlan: Option<u16>,
}

/// A socket bound to one device of the namespace that the opening thread is in.
#[derive(Debug)]
pub struct CaptureSocket {
    fd: OwnedFd,
}

impl CaptureSocket {
    /// Opens a socket for all protocols on the device with index `ifindex`. It does not block.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW, `ENODEV` when there is no such device.
    pub fn open(ifindex: u32) -> io::Result<Self> {
        // Protocol 0 until bind: nothing of other devices gets into the queue in between.
        let socket = Socket::new_raw(Domain::PACKET, Type::RAW.nonblocking(), Some(Protocol::from(0)))?;
        // The hard limit of the machine may be lower; a smaller buffer loses frames only under load.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        set_flag(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)?;
        set_flag(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA)?;
        socket.bind(&link_address(ifindex)?)?;
        Ok(Self { fd: socket.into() })
    }

    /// Takes the next frame, as far as it fits into `buffer`. `Ok(None)`: none is waiting.
    ///
    /// # Errors
    /// `ENETDOWN` once after the device went down or away.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<FrameInfo>> {
        // SAFETY: all three are plain C structures of integers and pointers, for which zero is valid.
        let (mut address, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
        let mut control = [0u64; CONTROL_BYTES / 8];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES;
        // SAFETY: every pointer in `message` names a live local or the caller's buffer, with its true length.
        let length = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_TRUNC) };
        if length < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        let mut info = FrameInfo {
            length: length as usize,
            time: UNIX_EPOCH,
            outgoing: address.sll_pkttype == libc::PACKET_OUTGOING,
            checksum_partial: false,
            vlan: None,
        };
        read_control(&message, &mut info);
        Ok(Some(info))
    }
}

impl AsFd for CaptureSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads the timestamp and the auxiliary data that recvmsg(2) left in `message`.
fn read_control(message: &libc::msghdr, info: &mut FrameInfo) {
    // SAFETY: `message` was filled by recvmsg, so its control area holds whole cmsghdr records up to
    // msg_controllen; CMSG_FIRSTHDR and CMSG_NXTHDR stay inside it and return null at the end.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: not null, so a whole header in the control area, which is aligned to 8 bytes.
        let header = unsafe { *next };
        // SAFETY: as above; the payload follows its header.
        let data = unsafe { libc::CMSG_DATA(next) };
        let holds = |bytes: usize| header.cmsg_len >= size_of::<libc::cmsghdr>() + bytes;
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) if holds(size_of::<libc::timespec>()) => {
                // SAFETY: the level and type say what the payload is, and `holds` that it is whole.
                let time: libc::timespec = unsafe { data.cast::<libc::timespec>().read_unaligned() };
                info.time = UNIX_EPOCH + Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
            }
            (libc::SOL_PACKET, libc::PACKET_AUXDATA) if holds(size_of::<libc::tpacket_auxdata>()) => {
                // SAFETY: as above.
                let aux = unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
                info.checksum_partial = aux.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0;
                info.vlan = (aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some(aux.tp_vlan_tci);
            }
            _ => {}
        }
        // SAFETY: `next` came from this very `message`.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
}

fn link_address(ifindex: u32) -> io::Result<SockAddr> {
    let index = i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the platform's socket addresses and smaller than the storage.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    link.sll_ifindex = index;
    // SAFETY: the storage holds a sockaddr_ll, filled above, and the length is that type's.
    Ok(unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as u32) })
}

fn set_flag(socket: &Socket, level: i32, name: i32) -> io::Result<()> {
    let on: i32 = 1;
    // SAFETY: the option value is an int that lives through the call, with its own size.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), size_of::<i32>() as u32)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// A datagram over the loopback of a namespace of its own is seen twice: going out and coming in.
    #[test]
    fn datagram_on_loopback_is_seen_leaving_and_arriving() {
        let seen = std::thread::spawn(|| {
            crate::netns::enter_new().expect("a network namespace (needs root)");
            let up = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
            bring_loopback_up(&up);
            let packets = CaptureSocket::open(1).expect("a packet socket");
            let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
            sender.send_to(b"over the weir", sender.local_addr().expect("bound")).expect("sent");
            let mut buffer = [0; 256];
            let mut frames = Vec::new();
            while let Some(info) = packets.receive(&mut buffer).expect("received") {
                frames.push((info, buffer[..info.length].to_vec()));
            }
            frames
        })
        .join()
        .expect("the namespace's thread");
        assert_eq!(seen.len(), 2);
        assert!(seen[0].0.outgoing && !seen[1].0.outgoing);
        for (info, bytes) in &seen {
            assert!(bytes.ends_with(b"over the weir"));
            assert!(info.checksum_partial, "loopback leaves the checksum to nobody");
            assert!(info.time.elapsed().expect("a past time") < Duration::from_secs(5));
        }
    }

    fn bring_loopback_up(socket: &Socket) {
        // SAFETY: zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { zeroed() };
        request.ifr_name[0] = b'l' as _;
        request.ifr_name[1] = b'o' as _;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
        // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives through the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
        assert_eq!(result, 0, "loopback comes up");
    }
}
