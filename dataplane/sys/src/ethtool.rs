//! What a network device is and can, by ioctl: these follow the calling thread's namespace, /sys/class/net does not.
//!
//! Called by `weir doctor`, by `weir run` for the queues of a port, and by tests.

use std::io;
use std::sync::OnceLock;

use crate::ioctl::{call, control_socket, request};

/// Commands of linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCOALESCE: u32 = 0x0e;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SRXFHINDIR: u32 = 0x39;
const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_GRSSH: u32 = 0x46;
/// The sets of the names of statistics and of features.
const ETH_SS_STATS: u32 = 1;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;
/// More features than any kernel has: bounds what is asked for.
const MAX_FEATURES: u32 = 1024;
/// More statistics than any driver has.
const MAX_STATISTICS: u32 = 16_384;
/// The same of the indirection table's entries and the key's octets.
const MAX_RSS: u32 = 65_536;

/// Queues of a device (`struct ethtool_channels`), as configured, and the most there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    pub rx: u32,
    pub tx: u32,
    pub combined: u32,
    pub max_rx: u32,
    pub max_tx: u32,
    pub max_combined: u32,
}

impl Channels {
    /// How many queues receive, and so can have an AF_XDP socket.
    pub const fn receiving(&self) -> u32 {
        self.rx + self.combined
    }
}

/// Descriptors of each ring of a device (`struct ethtool_ringparam`), and the most there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    pub rx: u32,
    pub tx: u32,
    pub max_rx: u32,
    pub max_tx: u32,
}

/// When a device tells of packets that it received (of `struct ethtool_coalesce`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coalescing {
    /// Microseconds after the first of them; 0: not by time.
    pub rx_us: u32,
    /// When there are so many; 0: not by their number.
    pub rx_packets: u32,
    /// The driver chooses by the load.
    pub adaptive: bool,
}

/// A feature (offload) and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The kernel's name, such as `tx-checksum-ip-generic`, `rx-lro`, `rx-gro-hw`, `rx-vlan-hw-parse`.
    pub name: &'static str,
    pub active: bool,
    /// Whether it can be changed.
    pub changeable: bool,
}

/// How a device spreads packets over its receive queues (`struct ethtool_rxfh`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rss {
    /// The queue of each value of the hash, by its remainder.
    pub indirection: Vec<u32>,
    /// The key of the hash.
    pub key: Vec<u8>,
    /// `ETH_RSS_HASH_*`: 1 is Toeplitz, 2 is XOR, 4 is CRC32.
    pub function: u8,
    /// `RXH_XFRM_*`: addresses and ports are mixed before they are hashed, so that both directions look the same.
    pub mixed: u8,
}

/// The interface index of a device.
///
/// # Errors
/// ENODEV: there is none of this name in this namespace.
pub fn index_of(device: &str) -> io::Result<u32> {
    let mut request = request(device)?;
    // SAFETY: SIOCGIFINDEX takes an ifreq with a name and follows no pointer.
    unsafe { call(control_socket()?, libc::SIOCGIFINDEX as libc::c_ulong, &mut request) }?;
    // SAFETY: the call wrote the index; any bytes are an integer.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    u32::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
}

/// The device's Ethernet address.
///
/// # Errors
/// ENODEV.
pub fn mac_of(device: &str) -> io::Result<[u8; 6]> {
    let mut request = request(device)?;
    // SAFETY: SIOCGIFHWADDR takes an ifreq with a name and follows no pointer.
    unsafe { call(control_socket()?, libc::SIOCGIFHWADDR as libc::c_ulong, &mut request) }?;
    // SAFETY: the call wrote a sockaddr; any bytes are one.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    Ok(std::array::from_fn(|place| address.sa_data[place] as u8))
}

/// The device's MTU in bytes.
///
/// # Errors
/// ENODEV.
pub fn mtu_of(device: &str) -> io::Result<u32> {
    let mut request = request(device)?;
    // SAFETY: SIOCGIFMTU takes an ifreq with a name and follows no pointer.
    unsafe { call(control_socket()?, libc::SIOCGIFMTU as libc::c_ulong, &mut request) }?;
    // SAFETY: the call wrote the MTU; any bytes are an integer.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u32::try_from(mtu).unwrap_or(0))
}

/// Whether the device is up (IFF_UP).
///
/// # Errors
/// ENODEV.
pub fn is_up(device: &str) -> io::Result<bool> {
    let mut request = request(device)?;
    Ok(flags(&mut request)? & libc::IFF_UP as libc::c_short != 0)
}

/// Sets the device up or down.
///
/// # Errors
/// ENODEV; EPERM without CAP_NET_ADMIN.
pub fn set_up(device: &str, up: bool) -> io::Result<()> {
    let mut request = request(device)?;
    let is = flags(&mut request)?;
    let bit = libc::IFF_UP as libc::c_short;
    request.ifr_ifru.ifru_flags = if up { is | bit } else { is & !bit };
    // SAFETY: SIOCSIFFLAGS takes an ifreq with flags and follows no pointer.
    unsafe { call(control_socket()?, libc::SIOCSIFFLAGS as libc::c_ulong, &mut request) }
}

fn flags(request: &mut libc::ifreq) -> io::Result<libc::c_short> {
    // SAFETY: SIOCGIFFLAGS takes an ifreq with a name and follows no pointer.
    unsafe { call(control_socket()?, libc::SIOCGIFFLAGS as libc::c_ulong, request) }?;
    // SAFETY: the call wrote the flags; any bytes are an integer.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

/// The name of the device's driver, such as `veth`, `virtio_net`, `ixgbe`.
///
/// # Errors
/// ENODEV; EOPNOTSUPP: the driver does not say.
pub fn driver_of(device: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: cmd, then driver[32], and 160 bytes more.
    let mut info = [0u32; 49];
    info[0] = ETHTOOL_GDRVINFO;
    ethtool(device, &mut info)?;
    let bytes: Vec<u8> = info[1..9].iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(text(&bytes))
}

/// The device's queues. One that does not say has one.
///
/// # Errors
/// ENODEV.
pub fn channels_of(device: &str) -> io::Result<Channels> {
    // struct ethtool_channels: cmd, max_rx, max_tx, max_other, max_combined, rx, tx, other, combined.
    let mut raw = [0u32; 9];
    raw[0] = ETHTOOL_GCHANNELS;
    match ethtool(device, &mut raw) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return Ok(Channels { rx: 0, tx: 0, combined: 1, max_rx: 0, max_tx: 0, max_combined: 1 });
        }
        Err(error) => return Err(error),
    }
    let [_, max_rx, max_tx, _, max_combined, rx, tx, _, combined] = raw;
    Ok(Channels { rx, tx, combined, max_rx, max_tx, max_combined })
}

/// The device's rings.
///
/// # Errors
/// EOPNOTSUPP: it does not say. ENODEV.
pub fn rings_of(device: &str) -> io::Result<Rings> {
    // struct ethtool_ringparam: cmd, rx_max, rx_mini_max, rx_jumbo_max, tx_max, rx, rx_mini, rx_jumbo, tx.
    let mut raw = [0u32; 9];
    raw[0] = ETHTOOL_GRINGPARAM;
    ethtool(device, &mut raw)?;
    let [_, max_rx, _, _, max_tx, rx, _, _, tx] = raw;
    Ok(Rings { rx, tx, max_rx, max_tx })
}

/// How the device gathers interrupts for what it receives.
///
/// # Errors
/// EOPNOTSUPP: it does not say. ENODEV.
pub fn coalescing_of(device: &str) -> io::Result<Coalescing> {
    // struct ethtool_coalesce: cmd, rx_coalesce_usecs, rx_max_coalesced_frames, seven more, use_adaptive_rx_coalesce, twelve more.
    let mut raw = [0u32; 23];
    raw[0] = ETHTOOL_GCOALESCE;
    ethtool(device, &mut raw)?;
    Ok(Coalescing { rx_us: raw[1], rx_packets: raw[2], adaptive: raw[10] != 0 })
}

/// How the device spreads packets over its queues.
///
/// # Errors
/// EOPNOTSUPP: it does not, or does not say. ENODEV. EINVAL: it was changed while it was read.
pub fn rss_of(device: &str) -> io::Result<Rss> {
    // struct ethtool_rxfh: cmd, rss_context, indir_size, key_size, hfunc and input_xfrm in one word with two reserved
    // octets, a reserved word; then the table, then the key.
    const HEAD: usize = 6;
    let mut head = [0u32; HEAD];
    head[0] = ETHTOOL_GRSSH;
    ethtool(device, &mut head)?;
    let [_, _, entries, octets, ..] = head;
    if entries > MAX_RSS || octets > MAX_RSS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{device} has a hash of {entries} queues"),
        ));
    }
    // The kernel refuses other sizes than the device's own, so it writes as much as there is room for.
    let (entries, octets) = (entries as usize, octets as usize);
    let mut raw = vec![0u32; HEAD + entries + octets.div_ceil(4)];
    raw[0] = ETHTOOL_GRSSH;
    raw[2] = head[2];
    raw[3] = head[3];
    ethtool(device, &mut raw)?;
    let [function, mixed, ..] = raw[4].to_ne_bytes();
    let mut key: Vec<u8> = raw[HEAD + entries..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    key.truncate(octets);
    Ok(Rss { indirection: raw[HEAD..HEAD + entries].to_vec(), key, function, mixed })
}

/// The device's features with their states, in the kernel's order.
///
/// # Errors
/// ENODEV.
pub fn features_of(device: &str) -> io::Result<Vec<Feature>> {
    let names = feature_names(device)?;
    let count = names.len() as u32;
    // struct ethtool_gfeatures: cmd, size, then per 32 features: available, requested, active, never_changed.
    let blocks = count.div_ceil(32);
    let mut raw = vec![0u32; 2 + 4 * blocks as usize];
    raw[0] = ETHTOOL_GFEATURES;
    raw[1] = blocks;
    ethtool(device, &mut raw)?;
    let bit = |place: usize, of: usize| {
        raw.get(2 + 4 * (place / 32) + of).is_some_and(|word| word & (1 << (place % 32)) != 0)
    };
    let (available, active, never_changed) = (0, 2, 3);
    let features = names.iter().enumerate().filter(|(_, name)| !name.is_empty());
    Ok(features
        .map(|(place, name)| Feature {
            name,
            active: bit(place, active),
            changeable: bit(place, available) && !bit(place, never_changed),
        })
        .collect())
}

/// Sets the table by which the device's hash leads to queues, as `ethtool -X`.
///
/// # Errors
/// ENODEV; EINVAL: not as many entries as the device has, or a queue that it has not; EOPNOTSUPP; EPERM without CAP_NET_ADMIN.
pub fn set_indirection(device: &str, table: &[u32]) -> io::Result<()> {
    // struct ethtool_rxfh_indir: cmd, size, the table.
    let size = u32::try_from(table.len()).map_err(io::Error::other)?;
    let mut raw = [&[ETHTOOL_SRXFHINDIR, size], table].concat();
    ethtool(device, &mut raw)
}

/// Switches a feature, by the kernel's name.
///
/// # Errors
/// ENODEV; EPERM without CAP_NET_ADMIN; EOPNOTSUPP: the device has no such feature, or its driver does not let go of it.
pub fn set_feature(device: &str, name: &str, on: bool) -> io::Result<()> {
    let unsupported = || io::Error::from_raw_os_error(libc::EOPNOTSUPP);
    let names = feature_names(device)?;
    let count = names.len() as u32;
    let place = names.iter().position(|known| known == name).ok_or_else(unsupported)?;
    // struct ethtool_sfeatures: cmd, size, then per 32 features: valid, requested.
    let blocks = count.div_ceil(32);
    let mut raw = vec![0u32; 2 + 2 * blocks as usize];
    raw[0] = ETHTOOL_SFEATURES;
    raw[1] = blocks;
    let block = raw.get_mut(2 + 2 * (place / 32)..).ok_or_else(unsupported)?;
    block[0] = 1 << (place % 32);
    block[1] = u32::from(on) << (place % 32);
    ethtool(device, &mut raw)?;
    let features = features_of(device)?;
    let holds = features.iter().any(|feature| feature.name == name && feature.active == on);
    if holds { Ok(()) } else { Err(unsupported()) }
}

/// Has the kernel write whole checksums into the frames that the device sends, and with that cut segments to the MTU; or
/// leaves both to the device again.
///
/// # Errors
/// ENODEV; EOPNOTSUPP: the device cannot; EPERM without CAP_NET_ADMIN.
pub fn set_tx_checksums(device: &str, offloaded: bool) -> io::Result<()> {
    // struct ethtool_value: cmd, data.
    ethtool(device, &mut [ETHTOOL_STXCSUM, u32::from(offloaded)])
}

/// The kernel's names of features, which are the same for all devices (net/ethtool/common.c, netdev_features_strings). Asked once.
fn feature_names(device: &str) -> io::Result<&'static [String]> {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    if let Some(names) = NAMES.get() {
        return Ok(names);
    }
    let names = names_of(device, ETH_SS_FEATURES, count_of(device, ETH_SS_FEATURES, MAX_FEATURES)?)?;
    Ok(NAMES.get_or_init(|| names))
}

/// What the device's driver counts, as `ethtool -S` shows it.
///
/// # Errors
/// ENODEV; EOPNOTSUPP: the driver counts nothing.
pub fn statistics_of(device: &str) -> io::Result<Vec<(String, u64)>> {
    let count = count_of(device, ETH_SS_STATS, MAX_STATISTICS)?;
    let names = names_of(device, ETH_SS_STATS, count)?;
    // struct ethtool_stats: cmd, n_stats, then 64 bits for each.
    let mut raw = vec![0u32; 2 + 2 * count as usize];
    raw[0] = ETHTOOL_GSTATS;
    raw[1] = count;
    ethtool(device, &mut raw)?;
    let bytes: Vec<u8> = raw[2..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let values = bytes.chunks_exact(8).map(|chunk| chunk.try_into().map_or(0, u64::from_ne_bytes));
    Ok(names.into_iter().zip(values).collect())
}

/// How many names a set has.
fn count_of(device: &str, set: u32, most: u32) -> io::Result<u32> {
    // struct ethtool_sset_info: cmd, reserved, sset_mask (64 bits), then one length per bit that is set.
    let mut raw = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
    let mask = (1u64 << set).to_ne_bytes();
    raw[2] = u32::from_ne_bytes([mask[0], mask[1], mask[2], mask[3]]);
    raw[3] = u32::from_ne_bytes([mask[4], mask[5], mask[6], mask[7]]);
    ethtool(device, &mut raw)?;
    // The kernel will write that many names: a count that is cut down would make it write past their room.
    if raw[4] > most {
        let text = format!("{device} has {} names in its ethtool set {set}", raw[4]);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(raw[4])
}

fn names_of(device: &str, set: u32, count: u32) -> io::Result<Vec<String>> {
    // struct ethtool_gstrings: cmd, string_set, len, then the strings of 32 bytes. The kernel writes as many as it has,
    // whatever `len` says, and that is the count it told.
    let mut raw = vec![0u32; 3 + count as usize * ETH_GSTRING_LEN / 4];
    raw[0] = ETHTOOL_GSTRINGS;
    raw[1] = set;
    raw[2] = count;
    ethtool(device, &mut raw)?;
    let bytes: Vec<u8> = raw[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(bytes.chunks(ETH_GSTRING_LEN).map(text).collect())
}

/// One ethtool command; `data` starts with its number and is as long as its struct.
fn ethtool(device: &str, data: &mut [u32]) -> io::Result<()> {
    let mut request = request(device)?;
    request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
    // SAFETY: `data` is a command's struct, written by the functions above with the room that the command fills
    // (names and statistics: as many as the kernel itself said there are), and outlives the call.
    unsafe { call(control_socket()?, libc::SIOCETHTOOL as libc::c_ulong, &mut request) }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_that_is_not_there_is_enodev() {
        let code = |error: io::Error| error.raw_os_error();
        assert_eq!(code(index_of("weir-none").unwrap_err()), Some(libc::ENODEV));
        assert_eq!(code(mac_of("weir-none").unwrap_err()), Some(libc::ENODEV));
        assert_eq!(code(driver_of("weir-none").unwrap_err()), Some(libc::ENODEV));
        assert_eq!(code(channels_of("weir-none").unwrap_err()), Some(libc::ENODEV));
        assert_eq!(code(rings_of("weir-none").unwrap_err()), Some(libc::ENODEV));
        assert_eq!(code(features_of("weir-none").unwrap_err()), Some(libc::ENODEV));
    }

    #[test]
    fn loopback_has_no_hash() {
        assert_eq!(rss_of("lo").unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        assert_eq!(rss_of("weir-none").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn loopback_tells_its_features() {
        assert_eq!(mac_of("lo").unwrap(), [0; 6]);
        assert_eq!(channels_of("lo").unwrap().receiving(), 1);
        let features = features_of("lo").unwrap();
        let of =
            |name: &str| features.iter().find(|feature| feature.name == name).map(|feature| feature.active);
        assert_eq!(of("loopback"), Some(true), "{features:?}");
        assert_eq!(of("rx-lro"), Some(false));
        assert!(of("rx-gro-hw").is_some() && of("tx-checksum-ip-generic").is_some());
    }
}
