//! The servers of pools, as the program knows them: what comes from there is for the fast road.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::error::SteeringError;
use super::layout::{POOL_ADDRESS, POOL_GATEWAY, PoolKey, PoolValue};
use super::map::Map;

const MAP: &str = "pool_servers";

/// A server of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolServer {
    pub addr: SocketAddr,
    /// The ports that the gateway connects to it from; none where the client is the source.
    pub gateway_ports: Option<RangeInclusive<u16>>,
}

/// The map of the servers, and what is in it.
#[derive(Debug)]
pub(super) struct Pools {
    map: Map<PoolKey, PoolValue>,
    written: BTreeMap<PoolKey, PoolValue>,
}

impl Pools {
    pub fn new(map: Map<PoolKey, PoolValue>) -> Self {
        Self { map, written: BTreeMap::new() }
    }

    /// Makes these the servers. What is gone is removed first: it makes room.
    pub fn set(&mut self, servers: &[PoolServer]) -> Result<(), SteeringError> {
        let wanted = entries(servers)?;
        let gone: Vec<PoolKey> =
            self.written.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            self.map.remove(&key).map_err(SteeringError::of_map(MAP, "removing from"))?;
            self.written.remove(&key);
        }
        for (key, value) in wanted {
            if self.written.get(&key) != Some(&value) {
                self.map.set(&key, &value).map_err(SteeringError::of_map(MAP, "storing in"))?;
                self.written.insert(key, value);
            }
        }
        Ok(())
    }
}

/// Each endpoint and each address once. A server of several pools may be reached from the ports of all of them, as long
/// as these are one range: what lies between two is not weir's.
fn entries(servers: &[PoolServer]) -> Result<BTreeMap<PoolKey, PoolValue>, SteeringError> {
    let mut entries: BTreeMap<PoolKey, PoolValue> = BTreeMap::new();
    for server in servers {
        let address = server.addr.ip().into();
        let value = entries.entry(PoolKey { address, port: server.addr.port().to_be_bytes() }).or_default();
        if let Some(ports) = &server.gateway_ports {
            *value = joined(*value, server.addr, ports)?;
        }
        entries.insert(
            PoolKey { address, port: [0; 2] },
            PoolValue { flags: POOL_ADDRESS, ..PoolValue::default() },
        );
    }
    Ok(entries)
}

fn joined(
    value: PoolValue,
    server: SocketAddr,
    ports: &RangeInclusive<u16>,
) -> Result<PoolValue, SteeringError> {
    let (first, last) = (*ports.start(), *ports.end());
    if value.flags & POOL_GATEWAY == 0 {
        return Ok(PoolValue { flags: value.flags | POOL_GATEWAY, first, last });
    }
    if first > value.last.saturating_add(1) || value.first > last.saturating_add(1) {
        return Err(SteeringError::PoolPorts { server, one: value.first..=value.last, other: ports.clone() });
    }
    Ok(PoolValue { first: first.min(value.first), last: last.max(value.last), ..value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(addr: &str, ports: Option<RangeInclusive<u16>>) -> PoolServer {
        PoolServer { addr: addr.parse().unwrap(), gateway_ports: ports }
    }

    #[test]
    fn server_of_several_pools_is_reached_from_the_ports_of_all() {
        let at = "10.2.0.10:443";
        for (one, other, together) in [
            (Some(100..=199), None, Some((100, 199))),
            (None, Some(100..=199), Some((100, 199))),
            (Some(100..=199), Some(100..=199), Some((100, 199))),
            (Some(100..=199), Some(150..=299), Some((100, 299))),
            (Some(200..=299), Some(100..=199), Some((100, 299))),
            (Some(60_000..=65_535), Some(59_000..=59_999), Some((59_000, 65_535))),
            (Some(100..=199), Some(201..=299), None),
            (Some(201..=299), Some(100..=199), None),
        ] {
            let rows = [server(at, one), server("[::1]:443", None), server(at, other)];
            let key = PoolKey { address: rows[0].addr.ip().into(), port: 443u16.to_be_bytes() };
            let got = entries(&rows).ok().map(|entries| (entries[&key].first, entries[&key].last));
            assert_eq!(got, together, "{rows:?}");
        }
    }

    #[test]
    fn endpoints_of_one_address_share_its_entry() {
        let rows = ["10.2.0.10:443", "10.2.0.10:80", "[2001:db8::1]:80"].map(|addr| server(addr, None));
        let entries = entries(&rows).unwrap();
        assert_eq!(entries.len(), 5);
        assert_eq!(entries.values().filter(|value| value.flags == POOL_ADDRESS).count(), 2);
    }
}
