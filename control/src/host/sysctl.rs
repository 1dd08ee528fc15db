//! Sysctls below net.ipv4, net.ipv6 and net.bridge of the calling thread's network namespace, and offloads of its devices: switches
//! as these are, that ethtool sets.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::HostError;
use weir_sys::ethtool;

/// The offloads by which a device takes VLAN tags out of frames before anybody sees them, by the kernel's names.
pub const VLAN_OFFLOADS: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

/// The offloads by which a device merges segments before anybody sees them. Large packets are not for the XDP program, so XDP in the
/// kernel's stack (net/core/dev.c, dev_xdp_install) and some drivers switch these off when it comes, and nobody on again.
pub const MERGING_OFFLOADS: [MergingOffload; 2] = [
    MergingOffload { name: LRO, words: "large receive offload" },
    MergingOffload { name: "rx-gro-hw", words: "GRO in hardware" },
];

/// The one that the kernel switches off on every device of a host that forwards.
const LRO: &str = "rx-lro";

/// One of [`MERGING_OFFLOADS`].
#[derive(Clone, Copy, Debug)]
pub struct MergingOffload {
    /// The kernel's name of it, which `ethtool -K` takes.
    pub name: &'static str,
    /// What people call it.
    pub words: &'static str,
}

/// Where all keys but those of offloads are.
const FOLDER: &str = "/proc/sys";

/// Where keys of offloads begin.
const OFFLOAD: &str = "ethtool/";

/// A key as its path below /proc/sys: a device's name may hold dots, so the dotted form is only for people. Or an offload, as
/// `ethtool/DEVICE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// `net.ipv4.conf.DEVICE.NAME` or its IPv6 sibling.
    pub fn of_device(version: u8, device: &str, name: &str) -> Self {
        Self(format!("net/ipv{version}/conf/{device}/{name}"))
    }

    /// As sysctl(8) takes it, the inverse of how it is shown: dots and slashes change places, unless a slash comes first.
    pub fn from_dotted(text: &str) -> Self {
        match text.find(['.', '/']).and_then(|at| text.get(at..at + 1)) {
            Some(".") => Self(text.chars().map(swapped).collect()),
            _ => Self(text.to_owned()),
        }
    }

    /// Its path below /proc/sys.
    pub fn as_path(&self) -> &str {
        &self.0
    }

    /// The same switch by another name (devinet.c, ipv4_devconf).
    pub fn alias(&self) -> Option<Self> {
        (self.0 == "net/ipv4/ip_forward").then(|| Self::of_device(4, "all", "forwarding"))
    }

    /// An offload of a device; its values are `on` and `off`.
    pub fn of_offload(device: &str, name: &str) -> Self {
        Self(format!("{OFFLOAD}{device}/{name}"))
    }

    /// The [`MERGING_OFFLOADS`] that the driver of a device lets go of.
    pub fn of_merging(device: &str) -> Vec<Self> {
        let features = ethtool::features_of(device).unwrap_or_default();
        let can = |of: &MergingOffload| features.iter().any(|has| has.name == of.name && has.changeable);
        MERGING_OFFLOADS.into_iter().filter(can).map(|of| Self::of_offload(device, of.name)).collect()
    }

    /// Whether this is one of [`MERGING_OFFLOADS`].
    pub fn is_merging(&self) -> bool {
        self.offload().is_some_and(|(_, name)| MERGING_OFFLOADS.iter().any(|of| of.name == name))
    }

    /// Whether it is no sysctl.
    pub fn is_offload(&self) -> bool {
        self.offload().is_some()
    }

    /// Device and name of an offload.
    fn offload(&self) -> Option<(&str, &str)> {
        self.0.strip_prefix(OFFLOAD)?.rsplit_once('/')
    }

    /// The device that it is a switch of; none for `all`, `default` and what belongs to no device.
    pub fn device(&self) -> Option<&str> {
        if let Some((device, _)) = self.offload() {
            return Some(device);
        }
        let (device, _) =
            self.0.strip_prefix("net/ipv")?.get(1..)?.strip_prefix("/conf/")?.rsplit_once('/')?;
        (!matches!(device, "all" | "default")).then_some(device)
    }

    /// Whether it says which advertisements of routers are taken.
    pub(super) fn is_accept_ra(&self) -> bool {
        self.switch() == "ipv6/accept_ra"
    }

    /// Its file.
    pub(super) fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.0)
    }

    /// The key of a file.
    pub(super) fn of_path(path: &Path) -> Option<Self> {
        path.strip_prefix(FOLDER).ok()?.to_str().map(Self::new)
    }

    /// Family and name of a switch, be it that of all devices or of one.
    pub(super) fn switch(&self) -> String {
        let named = self.alias();
        let path = named.as_ref().unwrap_or(self).as_path();
        let mut parts = path.split('/').skip(1);
        format!("{}/{}", parts.next().unwrap_or_default(), parts.last().unwrap_or_default())
    }

    /// The value without its newline; none when there is no such key (no such device, no IPv6).
    pub fn read(&self) -> Result<Option<String>, HostError> {
        if let Some((device, name)) = self.offload() {
            // No such device, or one without ethtool.
            let features = ethtool::features_of(device).unwrap_or_default();
            let found = features.iter().find(|feature| feature.name == name);
            return Ok(found.map(|feature| if feature.active { "on" } else { "off" }.to_owned()));
        }
        match read_short(&self.path()) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(HostError::file("read", &self.path(), e)),
        }
    }

    pub fn write(&self, value: &str) -> io::Result<()> {
        if let Some((device, name)) = self.offload() {
            return ethtool::set_feature(device, name, value == "on");
        }
        fs::write(self.path(), value)
    }

    /// The command that sets it.
    pub fn command(&self, value: &str) -> String {
        if let Some((device, name)) = self.offload() {
            return format!("ethtool -K {device} {name} {value}");
        }
        format!("sysctl -w {self}={value}")
    }

    /// Keys whose values the kernel changes by itself when this one is written, with their values now.
    ///
    /// devinet.c, inet_forward_change: forwarding of every device, and accept_redirects of `all` to the opposite.
    /// addrconf.c, addrconf_fixup_forwarding: forwarding of every device.
    /// Both, and devinet_sysctl_forward of one device: large receive offload, which goes off with forwarding on, and is not
    /// switched on again (net/core/dev.c, dev_disable_lro).
    ///
    /// # Errors
    /// [`HostError::File`].
    pub fn side_effects(&self) -> Result<BTreeMap<Key, String>, HostError> {
        let mut keys = Vec::new();
        match self.0.as_str() {
            "net/ipv4/ip_forward" => {
                keys.push(Self::of_device(4, "all", "accept_redirects"));
                let devices = devices(4)?;
                keys.extend(devices.iter().map(|d| Self::of_device(4, d, "forwarding")));
                keys.extend(devices.iter().map(|d| Self::of_offload(d, LRO)));
            }
            "net/ipv6/conf/all/forwarding" => {
                let mut devices = devices(6)?;
                devices.retain(|d| d != "all");
                keys.extend(devices.iter().map(|d| Self::of_device(6, d, "forwarding")));
                keys.extend(devices.iter().map(|d| Self::of_offload(d, LRO)));
            }
            _ if self.switch() == "ipv4/forwarding" => {
                keys.extend(self.device().map(|device| Self::of_offload(device, LRO)));
            }
            _ => {}
        }
        let mut values = BTreeMap::new();
        for key in keys {
            if let Some(value) = key.read()? {
                values.insert(key, value);
            }
        }
        values.retain(|key, value| !key.is_offload() || value.as_str() == "on");
        Ok(values)
    }
}

impl std::fmt::Display for Key {
    /// As sysctl(8) takes it: dots and slashes change places.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some((device, name)) = self.offload() {
            return write!(f, "{name} of {device}");
        }
        self.0.chars().map(swapped).try_for_each(|c| write!(f, "{c}"))
    }
}

const fn swapped(c: char) -> char {
    match c {
        '/' => '.',
        '.' => '/',
        other => other,
    }
}

/// Names below net.ipvN.conf: `all`, `default` and every device.
/// Switches by which the IP firewall is run beneath bridges, as far as they are on.
pub fn bridge_calls() -> Vec<Key> {
    let keys =
        ["iptables", "ip6tables"].map(|tables| Key::new(format!("net/bridge/bridge-nf-call-{tables}")));
    keys.into_iter()
        .filter(|key| key.read().is_ok_and(|value| value.is_some_and(|value| value != "0")))
        .collect()
}

/// The text of a file of /proc/sys. Most hold a number, which is asked for again and again: that is had by one read.
fn read_short(path: &Path) -> io::Result<String> {
    let mut octets = [0; 64];
    let read = File::open(path)?.read(&mut octets)?;
    match octets.get(..read).map(str::from_utf8) {
        Some(Ok(text)) if read < octets.len() => Ok(text.to_owned()),
        _ => fs::read_to_string(path),
    }
}

fn devices(version: u8) -> Result<Vec<String>, HostError> {
    let path = PathBuf::from(format!("/proc/sys/net/ipv{version}/conf"));
    let entries = fs::read_dir(&path).map_err(|e| HostError::file("list", &path, e))?;
    Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
}

/// Whether this host has IPv6: a kernel can be built or booted without, and where it is switched off on `lo`, as
/// `all.disable_ipv6` does, there can be no local route (net/ipv6/route.c, ip6_route_info_create_nh).
pub fn has_ipv6() -> bool {
    let switch = Key::of_device(6, "lo", "disable_ipv6");
    switch.read().is_ok_and(|value| value.is_some_and(|value| value == "0"))
}
