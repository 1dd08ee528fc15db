//! What the kernel's side should look like, as plain data. Compiled from the configuration by `weir run` and `weir plan`.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

use super::{HostError, LinkInfo, PUNT_TUN, RELAY_TUN};

/// IPv4 or IPv6; whatever is installed is installed for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// How a command of iproute2 begins.
    pub(crate) const fn ip(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip -6",
        }
    }
}

/// What becomes of an intercept's new connections while weir is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Fail {
    /// They are forwarded.
    #[default]
    Open,
    /// They are dropped.
    Closed,
}

/// One intercept, as far as the kernel must know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterceptSpec {
    pub name: String,
    /// Devices that its clients are behind.
    pub from: Vec<String>,
    /// They may send tagged frames: sub-interfaces of VLANs that come later are among these devices then.
    pub tagged: bool,
    /// Destinations of both families. None matches nothing.
    pub to: Vec<IpNet>,
    /// TCP destination ports, each range with both its ends.
    pub ports: Vec<(u16, u16)>,
    /// Whether QUIC to the destinations is refused, so that its clients come by TCP.
    pub reject_quic: bool,
}

/// The whole kernel's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSpec {
    /// The mark of packets that go to local sockets, and the bits of it that weir may touch.
    pub mark: u32,
    pub mask: u32,
    pub table: u32,
    pub priority: u32,
    /// TCP port of the transparent listener, for both families.
    pub listen: u16,
    pub intercepts: Vec<InterceptSpec>,
    /// The TUN devices; none on a box that has no fast road. They must exist before `apply`.
    pub relay_tun: Option<String>,
    pub punt_tun: Option<String>,
    /// Devices of all ports.
    pub ports: Vec<String>,
    /// VLAN sub-interfaces of these that forwarded packets come in by.
    pub vlans: Vec<String>,
    /// Ports of the fast road that have VLANs: tags must be left in their frames.
    pub trunks: Vec<String>,
    /// Devices of ports that get the XDP program.
    pub steered: Vec<String>,
    /// Some pool's servers see the gateway's own address.
    pub gateway_source: bool,
    pub fail: Fail,
    /// Devices of ports that steering does not see now. What clients behind them send on, outside of the relay's connections,
    /// is dropped where it fails closed.
    pub lost: Vec<String>,
    /// Where it fails closed: the indexes of the ports' devices that steering is on, and of their VLANs. Another device of such a name is
    /// one that steering does not see.
    pub indexes: BTreeSet<u32>,
    /// Devices on the servers' side, by which a router may yet advertise an IPv6 default route: where there is none when forwarding is
    /// switched on. Only of a start.
    pub uplinks: Vec<String>,
}

impl Default for HostSpec {
    /// The numbers of an empty `[fallback]` section, with nothing to intercept.
    fn default() -> Self {
        Self {
            mark: 0x77,
            mask: 0xff,
            table: 177,
            priority: 1077,
            listen: 12377,
            intercepts: Vec::new(),
            relay_tun: Some(RELAY_TUN.to_owned()),
            punt_tun: Some(PUNT_TUN.to_owned()),
            ports: Vec::new(),
            vlans: Vec::new(),
            trunks: Vec::new(),
            steered: Vec::new(),
            gateway_source: false,
            fail: Fail::Open,
            lost: Vec::new(),
            indexes: BTreeSet::new(),
            uplinks: Vec::new(),
        }
    }
}

/// The longest device name (IFNAMSIZ without its terminating zero).
const DEVICE_NAME_MAX: usize = 15;

impl HostSpec {
    /// Refuses what the kernel or nft would misread.
    pub fn validate(&self) -> Result<(), HostError> {
        let wrong = |text: String| Err(HostError::Spec(text));
        if self.mark == 0 || self.mark & !self.mask != 0 {
            return wrong(format!(
                "mark {:#x}/{:#x}: the mark must be at least one bit and lie within its mask",
                self.mark, self.mask
            ));
        }
        if matches!(self.table, 0 | 253..=255) {
            return wrong(format!(
                "table {}: is one of the kernel's own; choose 1 to 252 or above 255",
                self.table
            ));
        }
        if !(1..32766).contains(&self.priority) {
            return wrong(format!(
                "priority {}: must be between 1 and 32765, after the local table's rule and before the main table's",
                self.priority
            ));
        }
        if self.listen == 0 {
            return wrong("listen: port 0 is not a port".to_owned());
        }
        for device in self.devices().chain(self.intercepts.iter().flat_map(|i| i.from.iter())) {
            device_name(device)?;
        }
        for intercept in &self.intercepts {
            if let Some((low, high)) = intercept.ports.iter().find(|(low, high)| low > high || *low == 0) {
                return wrong(format!("intercept {}: ports {low}-{high} are no range", intercept.name));
            }
        }
        Ok(())
    }

    /// Devices that forwarded packets come in by: the ports, their VLANs and the TUN devices, each once.
    pub fn devices(&self) -> impl Iterator<Item = &String> {
        let mut ports: Vec<&String> = Vec::new();
        for port in self.ports.iter().chain(&self.vlans) {
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        ports.into_iter().chain(self.tuns())
    }

    /// With the devices of its ports that are among `links`, for whoever has the program on these.
    #[must_use]
    pub fn on(mut self, links: &[LinkInfo]) -> Self {
        if self.fail == Fail::Closed {
            let is_steered = |link: &&LinkInfo| self.steered.contains(&link.name);
            let indexes: Vec<u32> = links.iter().filter(is_steered).map(|link| link.ifindex).collect();
            self.indexes.extend(indexes);
        }
        self
    }

    /// The TUN devices that are used.
    pub fn tuns(&self) -> impl Iterator<Item = &String> {
        self.relay_tun.iter().chain(self.punt_tun.iter())
    }
}

impl InterceptSpec {
    /// Destinations of one family: the fewest prefixes that cover them, none overlapping another.
    pub(crate) fn prefixes(&self, family: Family) -> Vec<IpNet> {
        match family {
            Family::V4 => {
                let nets: Vec<Ipv4Net> = self.to.iter().filter_map(v4).collect();
                Ipv4Net::aggregate(&nets).into_iter().map(IpNet::V4).collect()
            }
            Family::V6 => {
                let nets: Vec<Ipv6Net> = self.to.iter().filter_map(v6).collect();
                Ipv6Net::aggregate(&nets).into_iter().map(IpNet::V6).collect()
            }
        }
    }

    /// Port ranges in order, none touching another (nft refuses overlapping intervals in a set).
    pub(crate) fn port_ranges(&self) -> Vec<(u16, u16)> {
        let mut sorted = self.ports.clone();
        sorted.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::new();
        for (low, high) in sorted {
            match merged.last_mut() {
                Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        merged
    }
}

fn v4(net: &IpNet) -> Option<Ipv4Net> {
    match net {
        IpNet::V4(net) => Some(net.trunc()),
        IpNet::V6(_) => None,
    }
}

fn v6(net: &IpNet) -> Option<Ipv6Net> {
    match net {
        IpNet::V6(net) => Some(net.trunc()),
        IpNet::V4(_) => None,
    }
}

/// A name that the kernel takes (dev_valid_name) and that nft does not read as a pattern.
pub(super) fn device_name(name: &str) -> Result<(), HostError> {
    let fits = !name.is_empty() && name.len() <= DEVICE_NAME_MAX && name != "." && name != "..";
    let plain =
        name.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '"' | '\'' | '*' | '\\'));
    if fits && plain {
        return Ok(());
    }
    Err(HostError::Spec(format!(
        "device {name:?}: a device name has 1 to {DEVICE_NAME_MAX} printable characters and none of / : \" ' * \\"
    )))
}
