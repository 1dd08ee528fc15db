//! TUN devices: how frames are handed to the kernel as if they had come in by a device.
//!
//! The punt road of weir-dataplane writes IP packets to one; they enter the kernel's stack there. The device is held by
//! its descriptor and vanishes with it, so a crash leaves none.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, OFlags, open};

use crate::ethtool;
use crate::ioctl::{call, control_socket, request};

/// An L3 TUN device without packet information, non-blocking.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    /// Another one after [`Tun::restore`].
    index: AtomicU32,
}

impl Tun {
    /// Creates the device in the calling thread's network namespace. It is down, and has MTU 1500.
    ///
    /// # Errors
    /// EBUSY: there is a device with this name. EPERM without CAP_NET_ADMIN. ENOENT: the host has no /dev/net/tun.
    /// EINVAL: not a name for a device.
    pub fn create(name: &str) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd: OwnedFd = open("/dev/net/tun", flags, Mode::empty())?;
        make(&fd, name)?;
        let index = AtomicU32::new(ethtool::index_of(name)?);
        Ok(Self { file: File::from(fd), name: name.into(), index })
    }

    /// The device that another process has made, by a descriptor of its ([`Tun::descriptor`]): it is there as long as either has it.
    ///
    /// # Errors
    /// ENODEV: there is no device of that name.
    pub fn adopt(fd: OwnedFd, name: &str) -> io::Result<Self> {
        let index = AtomicU32::new(ethtool::index_of(name)?);
        Ok(Self { file: File::from(fd), name: name.into(), index })
    }

    /// For another process to adopt.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Makes the device again after somebody has deleted it (`ip link del`): the descriptor stays the same, so whoever
    /// writes to it need not know. It is down, and has MTU 1500 and another index. A device that somebody has renamed gets its
    /// name back; it may be down then.
    ///
    /// # Errors
    /// EEXIST: the device is still there, or was renamed and another has its name. EBUSY: it was deleted and another has its
    /// name. EPERM without CAP_NET_ADMIN.
    pub fn restore(&self) -> io::Result<()> {
        let is_it = |name: &String| ethtool::index_of(name).is_ok_and(|index| index == self.index());
        if let Some(other) = self.present_name()?.filter(|name| *name != self.name).filter(is_it) {
            return rename(&other, &self.name);
        }
        make(&self.file, &self.name)?;
        self.index.store(ethtool::index_of(&self.name)?, Ordering::Relaxed);
        Ok(())
    }

    /// What the descriptor's device is called now, in whatever network namespace it is. None: it has been deleted.
    fn present_name(&self) -> io::Result<Option<String>> {
        let mut request = request(&self.name)?;
        // SAFETY: TUNGETIFF fills in an ifreq with a name and flags, and follows no pointer.
        match unsafe { call(&self.file, libc::TUNGETIFF as libc::c_ulong, &mut request) } {
            Ok(()) => {
                let name: Vec<u8> = request.ifr_name.iter().flat_map(|octet| octet.to_ne_bytes()).collect();
                Ok(Some(ethtool::text(&name)))
            }
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the device is there, and is the one that this made.
    pub fn exists(&self) -> bool {
        ethtool::index_of(&self.name).is_ok_and(|index| index == self.index())
    }

    /// Whether the device is up.
    ///
    /// # Errors
    /// ENODEV: it is gone.
    pub fn is_up(&self) -> io::Result<bool> {
        ethtool::is_up(&self.name)
    }

    /// The interface index.
    pub fn index(&self) -> u32 {
        self.index.load(Ordering::Relaxed)
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hands an IPv4 or IPv6 packet, without an Ethernet header, to the kernel: it enters the stack as if received on
    /// this device. Returns once it has been taken. One system call.
    ///
    /// # Errors
    /// EINVAL: empty, or neither IPv4 nor IPv6. EIO: the device is down. ENOBUFS, EAGAIN: no room.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        match (&self.file).write(packet)? {
            written if written == packet.len() => Ok(()),
            written => Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("{}: {written} of {} bytes taken", self.name, packet.len()),
            )),
        }
    }

    /// Reads a packet that the kernel routed to this device; its length.
    ///
    /// # Errors
    /// EAGAIN: there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Sets the device up or down.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN.
    pub fn set_up(&self, up: bool) -> io::Result<()> {
        ethtool::set_up(&self.name, up)
    }

    /// Sets the MTU, in bytes: up to 65,535, so that nothing that a port received is too large.
    ///
    /// # Errors
    /// EINVAL: below 68 or above 65,535.
    pub fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        let mtu = i32::try_from(mtu).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut request = request(&self.name)?;
        request.ifr_ifru.ifru_mtu = mtu;
        // SAFETY: SIOCSIFMTU takes an ifreq with a number, and follows no pointer.
        unsafe { call(control_socket()?, libc::SIOCSIFMTU as libc::c_ulong, &mut request) }
    }

    /// Sets how many packets that the kernel routes to the device may wait to be read.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN.
    pub fn set_tx_queue(&self, packets: u32) -> io::Result<()> {
        let packets = i32::try_from(packets).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut request = request(&self.name)?;
        request.ifr_ifru.ifru_metric = packets;
        // SAFETY: SIOCSIFTXQLEN takes an ifreq with a number (it shares its place with the metric), no pointer.
        unsafe { call(control_socket()?, libc::SIOCSIFTXQLEN as libc::c_ulong, &mut request) }
    }
}

/// Attaches a new device to a descriptor of /dev/net/tun that has none.
fn make(fd: &impl AsFd, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    let kind = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = kind as libc::c_short;
    // SAFETY: TUNSETIFF takes an ifreq with a name and flags, and follows no pointer.
    unsafe { call(fd, libc::TUNSETIFF as libc::c_ulong, &mut request) }
}

/// Gives a device another name. Kernels before 6.2 refuse that (EBUSY) while it is up: it is down afterwards there.
fn rename(from: &str, to: &str) -> io::Result<()> {
    let wanted = request(to)?.ifr_name;
    let once = || {
        let mut request = request(from)?;
        request.ifr_ifru.ifru_newname = wanted;
        // SAFETY: SIOCSIFNAME takes an ifreq with two names, and follows no pointer.
        unsafe { call(control_socket()?, libc::SIOCSIFNAME as libc::c_ulong, &mut request) }
    };
    match once() {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            ethtool::set_up(from, false)?;
            once()
        }
        result => result,
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::Namespace;
    use std::net::UdpSocket;

    /// Runs `work` in a new namespace with loopback up.
    fn in_namespace(work: impl FnOnce() + Send) {
        Namespace::new()
            .unwrap()
            .run(|| {
                ethtool::set_up("lo", true).unwrap();
                work();
            })
            .unwrap();
    }

    #[test]
    fn tun_dropped_takes_its_device_with_it() {
        in_namespace(|| {
            let tun = Tun::create("weir-punt").unwrap();
            assert_eq!(ethtool::index_of("weir-punt").unwrap(), tun.index());
            tun.set_mtu(65_535).unwrap();
            tun.set_tx_queue(8).unwrap();
            tun.set_up(true).unwrap();
            assert!(ethtool::is_up("weir-punt").unwrap());
            assert_eq!(ethtool::mtu_of("weir-punt").unwrap(), 65_535);
            drop(tun);
            assert_eq!(ethtool::index_of("weir-punt").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        });
    }

    #[test]
    fn tun_deleted_by_somebody_is_made_again_for_the_same_descriptor() {
        in_namespace(|| {
            let tun = Tun::create("weir-punt").unwrap();
            tun.set_up(true).unwrap();
            assert_eq!(tun.restore().unwrap_err().raw_os_error(), Some(libc::EEXIST));
            let deleted = std::process::Command::new("ip").args(["link", "del", "weir-punt"]).status();
            assert!(deleted.unwrap().success() && !tun.exists());
            assert!(tun.is_up().is_err() && tun.write(&[0x45; 20]).is_err());
            tun.restore().unwrap();
            assert!(tun.exists() && !tun.is_up().unwrap());
            tun.set_mtu(65_535).unwrap();
            tun.set_up(true).unwrap();
            assert_eq!(ethtool::mtu_of("weir-punt").unwrap(), 65_535);
            assert!(tun.write(&[0x45; 20]).is_ok());
        });
    }

    #[test]
    fn tun_renamed_by_somebody_has_its_name_again_and_is_the_same_device() {
        let ip = |words: &str| {
            let done = std::process::Command::new("ip").args(words.split(' ')).status();
            assert!(done.unwrap().success(), "ip {words}");
        };
        in_namespace(|| {
            let tun = Tun::create("weir-punt").unwrap();
            let index = tun.index();
            for state in ["down", "up"] {
                // Before Linux 6.2 only a device that is down can be renamed.
                tun.set_up(false).unwrap();
                ip("link set weir-punt name elsewhere");
                ip(&format!("link set elsewhere {state}"));
                assert!(!tun.exists(), "{state}");
                let other = Tun::create("weir-punt").unwrap();
                assert_eq!(tun.restore().unwrap_err().raw_os_error(), Some(libc::EEXIST), "{state}");
                drop(other);
                tun.restore().unwrap();
                assert!(tun.exists() && tun.index() == index, "{state}");
                assert_eq!(ethtool::index_of("elsewhere").unwrap_err().raw_os_error(), Some(libc::ENODEV));
                tun.set_up(true).unwrap();
                assert!(tun.write(&[0x45; 20]).is_ok(), "{state}");
            }
        });
    }

    #[test]
    fn tun_of_a_taken_name_is_busy() {
        in_namespace(|| {
            let _first = Tun::create("weir-punt").unwrap();
            assert_eq!(Tun::create("weir-punt").unwrap_err().raw_os_error(), Some(libc::EBUSY));
            for bad in ["", "a-name-of-16-byt", "nul\0"] {
                assert_eq!(Tun::create(bad).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{bad:?}");
            }
        });
    }

    #[test]
    fn packet_written_arrives_at_a_local_socket() {
        in_namespace(|| {
            let tun = Tun::create("weir-punt").unwrap();
            tun.set_up(true).unwrap();
            // A packet between two of the host's own addresses is refused as martian unless this says otherwise.
            std::fs::write("/proc/thread-self/net/../sys/net/ipv4/conf/all/accept_local", "1")
                .or_else(|_| std::fs::write("/proc/sys/net/ipv4/conf/all/accept_local", "1"))
                .unwrap();
            std::fs::write("/proc/sys/net/ipv4/conf/weir-punt/route_localnet", "1").unwrap();
            let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
            receiver.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
            let builder = etherparse::PacketBuilder::ipv4([127, 0, 0, 2], [127, 0, 0, 1], 64)
                .udp(9, receiver.local_addr().unwrap().port());
            let mut packet = Vec::new();
            builder.write(&mut packet, b"over the top").unwrap();
            tun.write(&packet).unwrap();
            let mut got = [0; 64];
            let (len, from) = receiver.recv_from(&mut got).unwrap();
            assert_eq!((&got[..len], from.to_string()), (&b"over the top"[..], "127.0.0.2:9".into()));
            assert_eq!(tun.write(&[0x00, 1, 2]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        });
    }
}
