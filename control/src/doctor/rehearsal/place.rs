//! What of a host stands in the namespace of a rehearsal.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::doctor::ground::Ground;
use crate::host::HostSpec;

/// A host, as far as a rehearsal shows it.
#[derive(Clone, Debug)]
pub struct Place {
    pub spec: HostSpec,
    /// Whether weir's table is there.
    pub has_table: bool,
    /// Devices that get stand-ins, beside weir's own.
    pub devices: Vec<String>,
    /// Their addresses, with the lengths of the prefixes.
    pub own: Vec<(String, IpAddr, u8)>,
    /// Who listens.
    pub listens: Vec<SocketAddr>,
}

impl Place {
    /// Ports, their addresses, and weir's table and listeners as if it ran.
    pub fn of(ground: &Ground<'_>) -> Self {
        let of_port = |index: u32| ground.ports().find(|(_, link)| link.ifindex == index);
        let own = ground.own.iter().filter_map(|(address, index, length)| {
            Some((of_port(*index)?.0.device.clone(), *address, *length))
        });
        Self {
            // Stand-ins have indexes of their own.
            spec: HostSpec { indexes: BTreeSet::new(), ..ground.spec.clone() },
            has_table: true,
            devices: ground.config.ports.iter().map(|port| port.device.clone()).collect(),
            own: own.collect(),
            listens: relay(ground.spec.listen),
        }
    }
}

/// Where the relay listens.
pub fn relay(port: u16) -> Vec<SocketAddr> {
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    any.map(|ip| SocketAddr::new(ip, port)).to_vec()
}
