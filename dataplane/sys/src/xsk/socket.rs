//! One AF_XDP socket with its four rings, as the afxdp crate makes them, and what its descriptor tells.

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::sync::Arc;

use afxdp::socket::{Socket, SocketNewError, SocketOptions, SocketRx, SocketTx};
use afxdp::umem::{Umem, UmemCompletionQueue, UmemFillQueue, UmemNewError};

use super::area::Area;
use super::error::{XskError, from_libbpf, socket_hint, umem_hint};
use super::frame::{Buf, Mark};
use super::queue::RingSizes;

/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h (6.17): packets that one send call may move in copy mode.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Send buffer per TX descriptor in copy mode: what the kernel charges for an skb of a page.
const SEND_BUFFER_PER_PACKET: u32 = 8192;

/// How a socket asks to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Zero-copy where the driver can, copy otherwise: the kernel chooses.
    Auto,
    /// Zero-copy or an error.
    ZeroCopy,
    /// Copy, even where the driver can do without.
    Copy,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "mode auto",
            Self::ZeroCopy => "mode zero-copy",
            Self::Copy => "mode copy",
        })
    }
}

/// The kernel's counters of one socket (`struct xdp_statistics`), in packets since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Dropped for another reason than a full ring.
    pub rx_dropped: u64,
    pub rx_invalid_descs: u64,
    pub tx_invalid_descs: u64,
    /// Dropped because the worker did not read fast enough.
    pub rx_ring_full: u64,
    /// Times there was no frame to receive into.
    pub rx_fill_ring_empty: u64,
    pub tx_ring_empty: u64,
}

/// The crate's parts of one socket. Dropping it takes them down in the only order that is sound.
pub(super) struct Rings {
    /// First, so that it is dropped first: libbpf unmaps the rings below through pointers into them.
    socket: Arc<Socket<'static, Mark>>,
    pub rx: ManuallyDrop<SocketRx<'static, Mark>>,
    pub tx: ManuallyDrop<SocketTx<'static, Mark>>,
    pub completion: UmemCompletionQueue<'static, Mark>,
    pub fill: UmemFillQueue<'static, Mark>,
    pub fd: RawFd,
}

impl Rings {
    /// A UMEM over the area, and a socket on it bound to the queue of the device. `supply` goes into the fill ring before that;
    /// what does not fit stays.
    pub fn open(
        area: &Area,
        device: &str,
        queue: u32,
        mode: Mode,
        sizes: RingSizes,
        supply: &mut Vec<Buf>,
    ) -> Result<Self, XskError> {
        let (umem, completion, mut fill) =
            Umem::new(area.mmap(), sizes.completion, sizes.fill).map_err(|error| {
                let source = match error {
                    UmemNewError::Create(error) => from_libbpf(error),
                    UmemNewError::RingNotPowerOfTwo => io::Error::from_raw_os_error(libc::EINVAL),
                };
                let hint = umem_hint(&source);
                XskError::Umem { device: device.into(), queue, source, hint }
            })?;
        // SAFETY: the pointer is of a live xsk_umem; the call reads one field of it. The first socket of a UMEM, and
        // ours is the only one, has the UMEM's own descriptor.
        let fd = unsafe { libbpf_sys::xsk_umem__fd(umem.get_ptr()) };
        let asked = supply.len();
        let _ = fill.fill(supply, asked);
        let options = SocketOptions {
            zero_copy_mode: mode == Mode::ZeroCopy,
            copy_mode: mode == Mode::Copy,
            tx_ring_size: sizes.tx,
            rx_ring_size: sizes.rx,
        };
        let (socket, rx, tx) = Socket::new(umem, device, queue as usize, sizes.rx, sizes.tx, options)
            .map_err(|error| {
                let source = match error {
                    SocketNewError::Create(error) => from_libbpf(error),
                    SocketNewError::RingNotPowerOfTwo => io::Error::from_raw_os_error(libc::EINVAL),
                };
                let hint = socket_hint(&source);
                XskError::Socket { device: device.into(), queue, mode, source, hint }
            })?;
        Ok(Self { socket, rx: ManuallyDrop::new(rx), tx: ManuallyDrop::new(tx), completion, fill, fd })
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        // xsk_socket__delete, run when the last reference to the Socket goes, reads the ring structs that SocketRx and
        // SocketTx own. Dropping those two first would free the structs before that; so they are left in place (about
        // a hundred bytes per closed socket), and only the references they hold are given up.
        let socket = Arc::as_ptr(&self.socket);
        // SAFETY: `rx` and `tx` each hold one strong reference, are never dropped and never used after this; the third
        // is `self.socket`, dropped next, while `fill` and `completion` below it are still alive.
        unsafe {
            Arc::decrement_strong_count(socket);
            Arc::decrement_strong_count(socket);
        }
    }
}

/// Lets one call send all that the TX ring holds, where the kernel can be told so. Copy mode only; failure is slower,
/// not wrong.
pub(super) fn widen_send(fd: RawFd, tx_ring: u32) {
    let bytes = tx_ring.saturating_mul(SEND_BUFFER_PER_PACKET).min(i32::MAX as u32 / 2);
    let _ = set_u32(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes);
    let _ = set_u32(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, tx_ring);
}

/// Whether the kernel bound the socket in zero-copy mode.
pub(super) fn is_zero_copy(fd: RawFd) -> io::Result<bool> {
    let mut options = libc::xdp_options { flags: 0 };
    get(fd, libc::XDP_OPTIONS, &mut options)?;
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// The kernel's counters.
pub(super) fn stats(fd: RawFd) -> io::Result<QueueStats> {
    let mut raw = libc::xdp_statistics {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    };
    get(fd, libc::XDP_STATISTICS, &mut raw)?;
    Ok(QueueStats {
        rx_dropped: raw.rx_dropped,
        rx_invalid_descs: raw.rx_invalid_descs,
        tx_invalid_descs: raw.tx_invalid_descs,
        rx_ring_full: raw.rx_ring_full,
        rx_fill_ring_empty: raw.rx_fill_ring_empty_descs,
        tx_ring_empty: raw.tx_ring_empty_descs,
    })
}

/// Makes the kernel look at the TX ring. Never blocks.
///
/// # Errors
/// ENXIO: the device is gone. EAGAIN: there is more to send. ENOBUFS, EBUSY: the driver is full. ENETDOWN: it is down.
pub(super) fn kick_tx(fd: RawFd) -> io::Result<()> {
    // SAFETY: no memory is passed; the kernel checks the descriptor.
    let sent = unsafe { libc::sendto(fd, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the driver look at the fill ring. Never blocks. Errors as for [`kick_tx`].
pub(super) fn kick_rx(fd: RawFd) -> io::Result<()> {
    let nothing = std::ptr::null_mut();
    // SAFETY: no memory is passed; the kernel checks the descriptor.
    let got = unsafe {
        libc::recvfrom(fd, nothing, 0, libc::MSG_DONTWAIT, std::ptr::null_mut(), std::ptr::null_mut())
    };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The program attached to a device, 0 if none, as the calling thread's network namespace sees it.
pub(super) fn attached_program(ifindex: u32) -> io::Result<u32> {
    let mut program = 0;
    let ifindex = i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    // SAFETY: the call writes one u32 through a pointer to a local.
    let code = unsafe { libbpf_sys::bpf_get_link_xdp_id(ifindex, &mut program, 0) };
    if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(program) }
}

fn get<T>(fd: RawFd, name: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    let place = std::ptr::from_mut(value).cast();
    // SAFETY: `place` is valid for writing `len` bytes, and T is one of libc's plain structs of integers.
    let code = unsafe { libc::getsockopt(fd, libc::SOL_XDP, name, place, &mut len) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_u32(fd: RawFd, level: libc::c_int, name: libc::c_int, value: u32) -> io::Result<()> {
    let place = std::ptr::from_ref(&value).cast();
    let len = size_of::<u32>() as libc::socklen_t;
    // SAFETY: `place` is valid for reading `len` bytes.
    let code = unsafe { libc::setsockopt(fd, level, name, place, len) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
