//! Sysctls below net.ipv4, net.ipv6 and net.bridge of the calling thread's network namespace.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::HostError;

/// A key as its path below /proc/sys: a device's name may hold dots, so the dotted form is only for people.
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

    /// The device that it is a switch of; none for `all`, `default` and what belongs to no device.
    pub fn device(&self) -> Option<&str> {
        let (device, _) =
            self.0.strip_prefix("net/ipv")?.get(1..)?.strip_prefix("/conf/")?.rsplit_once('/')?;
        (!matches!(device, "all" | "default")).then_some(device)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/proc/sys").join(&self.0)
    }

    /// The value without its newline; none when there is no such key (no such device, no IPv6).
    pub fn read(&self) -> Result<Option<String>, HostError> {
        match fs::read_to_string(self.path()) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(HostError::file("read", &self.path(), e)),
        }
    }

    pub fn write(&self, value: &str) -> io::Result<()> {
        fs::write(self.path(), value)
    }

    /// The command that sets it.
    pub fn command(&self, value: &str) -> String {
        format!("sysctl -w {self}={value}")
    }

    /// Keys whose values the kernel changes by itself when this one is written, with their values now.
    ///
    /// devinet.c, inet_forward_change: forwarding of every device, and accept_redirects of `all` to the opposite.
    /// addrconf.c, addrconf_fixup_forwarding: forwarding of every device.
    pub fn side_effects(&self) -> Result<BTreeMap<Key, String>, HostError> {
        let mut keys = Vec::new();
        match self.0.as_str() {
            "net/ipv4/ip_forward" => {
                keys.push(Self::of_device(4, "all", "accept_redirects"));
                keys.extend(devices(4)?.iter().map(|d| Self::of_device(4, d, "forwarding")));
            }
            "net/ipv6/conf/all/forwarding" => {
                keys.extend(
                    devices(6)?.iter().filter(|d| *d != "all").map(|d| Self::of_device(6, d, "forwarding")),
                );
            }
            _ => {}
        }
        let mut values = BTreeMap::new();
        for key in keys {
            if let Some(value) = key.read()? {
                values.insert(key, value);
            }
        }
        Ok(values)
    }
}

impl std::fmt::Display for Key {
    /// As sysctl(8) takes it: dots and slashes change places.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            let c = match c {
                '/' => '.',
                '.' => '/',
                other => other,
            };
            write!(f, "{c}")?;
        }
        Ok(())
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
