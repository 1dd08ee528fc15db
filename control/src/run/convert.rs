//! What a configuration means to each of the parts: the kernel's side, the steering program, the dataplane.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use ipnet::IpNet;
use rustix::process::{Resource, getrlimit};
use weir_core::ids::{Nanos, PortId};
use weir_core::policy::{Handshake, InterceptSpec, Policy, PoolSpec, Quic, Server, Source};
use weir_core::relay;
use weir_core::vlan::{Tag, Vlan};
use weir_dataplane::gateway::{PortSpec, Spec};
use weir_dataplane::relay::RelayConfig;
use weir_dataplane::thread;
use weir_sys::sockopt::Upkeep;
use weir_sys::steering::{AttachMode, InterceptTable, PoolServer, VlanPlace, VlanTags};
use weir_sys::{affinity, ethtool, xsk};

use crate::config::{Config, Cores, Express, Fail, Idle, Mode, Port, Queues, Relay};
use crate::exit::Failure;
use crate::host::{self, HostError, HostSpec, LinkInfo, LocalPorts, SubInterface};

/// The ports by their numbers, each with its device.
pub fn ports(config: &Config) -> Vec<(PortId, String)> {
    (0..).map(PortId).zip(config.ports.iter().map(|port| port.device.clone())).collect()
}

/// The kernel's side, where the ports have these VLANs.
pub fn host_spec<'v>(config: &Config, vlans: impl IntoIterator<Item = &'v SubInterface>) -> HostSpec {
    let vlans: Vec<&SubInterface> = vlans.into_iter().collect();
    let devices = |intercept: &InterceptSpec| {
        let ports = config.ports.iter().zip(0..).filter(|_| intercept.vlan.untagged);
        let ports = ports.filter(|(_, at)| intercept.from.contains(PortId(*at)));
        let takes =
            |sub: &&&SubInterface| intercept.from.contains(sub.port) && intercept.vlan.takes(Some(&sub.vlan));
        let tagged = vlans.iter().filter(takes).map(|sub| sub.link.name.clone());
        ports.map(|(port, _)| port.device.clone()).chain(tagged).collect()
    };
    let is_trunk = |at: PortId| {
        let takes = |intercept: &InterceptSpec| intercept.from.contains(at) && intercept.vlan.takes_tagged();
        vlans.iter().any(|sub| sub.port == at) || config.intercepts.iter().any(takes)
    };
    let intercepts = config.intercepts.iter().map(|intercept| host::InterceptSpec {
        name: intercept.name.clone(),
        from: devices(intercept),
        tagged: intercept.vlan.takes_tagged(),
        to: intercept.to.clone(),
        ports: intercept.tcp.iter().map(|range| (*range.start(), *range.end())).collect(),
        reject_quic: intercept.quic == Quic::Reject,
    });
    let fast = has_fast_road(config);
    let is_uplink = |at: PortId| !config.intercepts.iter().any(|intercept| intercept.from.contains(at));
    let uplinks = ports(config).into_iter().filter(|(at, _)| is_uplink(*at)).map(|(_, device)| device);
    let vlans_of_uplinks = vlans.iter().filter(|sub| is_uplink(sub.port)).map(|sub| sub.link.name.clone());
    let sees = fast && config.gateway.fail == Fail::Closed;
    let devices_of_ports: Vec<String> = config.ports.iter().map(|port| port.device.clone()).collect();
    HostSpec {
        mark: config.fallback.mark.value,
        mask: config.fallback.mark.mask,
        table: config.fallback.table,
        priority: config.fallback.priority,
        listen: config.fallback.listen,
        intercepts: intercepts.collect(),
        relay_tun: fast.then(|| host::RELAY_TUN.to_owned()),
        punt_tun: fast.then(|| host::PUNT_TUN.to_owned()),
        ports: devices_of_ports.clone(),
        vlans: vlans.iter().map(|sub| sub.link.name.clone()).collect(),
        trunks: ports(config).into_iter().filter(|(at, _)| fast && is_trunk(*at)).map(|(_, of)| of).collect(),
        steered: if fast { devices_of_ports } else { Vec::new() },
        gateway_source: config.pools.iter().any(|pool| pool.spec.source == Source::Gateway),
        fail: match config.gateway.fail {
            Fail::Open => host::Fail::Open,
            Fail::Closed => host::Fail::Closed,
        },
        lost: Vec::new(),
        indexes: vlans.iter().filter(|_| sees).map(|sub| sub.link.ifindex).collect(),
        uplinks: uplinks.chain(vlans_of_uplinks).collect(),
    }
}

/// Whether any intercept uses the fast road. Without one no device gets an XDP program.
pub fn has_fast_road(config: &Config) -> bool {
    config.intercepts.iter().any(|intercept| intercept.handshake != Handshake::Relay)
}

/// The table that steering matches packets with; `own` are prefixes of the box itself.
pub fn intercept_table(policy: &Policy, own: &[IpNet]) -> InterceptTable {
    let table = policy.steering();
    let v4 = table.v4.iter().map(|(net, bits)| (IpNet::V4(*net), *bits));
    let v6 = table.v6.iter().map(|(net, bits)| (IpNet::V6(*net), *bits));
    InterceptTable {
        prefixes: v4.chain(v6).collect(),
        tcp_ports: table.ports.iter().map(|(port, bits)| (*port, *port, *bits)).collect(),
        from: (0..).zip(*table.from).filter(|(_, bits)| *bits != 0).collect(),
        relay_mask: table.relay_mask,
        cookies_always: table.cookies_always,
        cookies_auto: table.cookies_auto,
        translated: table.translated,
        exempt: own.to_vec(),
    }
}

/// The ports that the gateway connects to a pool's servers from; none where servers see the client.
fn gateway_ports(pool: &PoolSpec) -> Option<RangeInclusive<u16>> {
    (pool.source == Source::Gateway).then(|| pool.ports.clone())
}

/// The tags of a VLAN, as steering has them.
pub fn vlan_tags(vlan: &Vlan) -> VlanTags {
    let tag = |tag: Tag| (tag.protocol, tag.id);
    (tag(vlan.outer), vlan.inner.map(tag))
}

/// The VLANs of the ports, for steering.
pub fn vlan_places(vlans: &[(PortId, SubInterface)]) -> Vec<VlanPlace> {
    let place = |(number, sub): &(PortId, SubInterface)| {
        let mac = sub.link.mac?;
        let (outer, inner) = vlan_tags(&sub.vlan);
        Some(VlanPlace {
            link: u32::from(number.0),
            device: sub.device,
            outer,
            inner,
            ifindex: sub.link.ifindex,
            mac,
        })
    };
    vlans.iter().filter_map(place).collect()
}

/// The servers of all pools, for steering.
pub fn pool_servers(config: &Config) -> Vec<PoolServer> {
    let of = |pool: &PoolSpec| {
        let gateway_ports = gateway_ports(pool);
        let server = |server: &Server| PoolServer { addr: server.addr, gateway_ports: gateway_ports.clone() };
        pool.servers.iter().map(server).collect::<Vec<_>>()
    };
    config.pools.iter().flat_map(|pool| of(&pool.spec)).collect()
}

/// Refuses pools whose gateway ports the kernel gives to the box's own connections, too.
///
/// # Errors
/// As [`LocalPorts::refuse_overlap`] and [`LocalPorts::read`].
pub fn check_gateway_ports(config: &Config) -> Result<(), HostError> {
    let specs = config.pools.iter().map(|pool| &pool.spec);
    let mut pools = specs.filter_map(|pool| Some((pool, gateway_ports(pool)?))).peekable();
    if pools.peek().is_none() {
        return Ok(());
    }
    let local = LocalPorts::read()?;
    pools.try_for_each(|(pool, ports)| local.refuse_overlap(&pool.name, &ports))
}

/// How the steering program is attached for a port's mode.
pub const fn attach_mode(mode: Mode) -> AttachMode {
    match mode {
        Mode::Auto => AttachMode::Auto,
        Mode::ZeroCopy | Mode::Copy => AttachMode::Native,
        Mode::Generic => AttachMode::Generic,
    }
}

/// Failures of servers that wait to be looked at, at most.
pub const FAILURES: usize = 1024;

/// The dataplane, on devices as they are now.
///
/// # Errors
/// A queue that a device has not got; what the device does not tell.
pub fn dataplane_spec(config: &Config, links: &[LinkInfo]) -> Result<Spec, Failure> {
    let ports = config.ports.iter().zip(links).map(|(port, link)| port_spec(port, link));
    let hold = config.intercepts.iter().map(|intercept| intercept.hold_bytes).max().unwrap_or(0);
    Ok(Spec {
        ports: ports.collect::<Result<_, _>>()?,
        cores: cores(&config.workers.cores),
        idle: match config.workers.idle {
            Idle::Adaptive => thread::Idle::Adaptive,
            Idle::Busy => thread::Idle::Busy,
        },
        flows: config.workers.flows as usize,
        kernel_flows: kernel_flows(config) as usize,
        hold_bytes: hold as usize,
        holds: holds(config.limits.held, hold, config.workers.flows),
        answer_window: answer_window(config),
        failures: Arc::new(ArrayQueue::new(FAILURES)),
        questions: None,
        express: None,
        adopted: Arc::from([]),
        heartbeat: config.gateway.heartbeat,
    })
}

/// The window that every intercept which answers can hold, in octets.
fn answer_window(config: &Config) -> u16 {
    let answers = config.intercepts.iter().filter(|intercept| intercept.handshake == Handshake::Answer);
    let bytes = answers.map(|intercept| intercept.hold_bytes).min().unwrap_or(16 << 10);
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

/// Connections that can be held at a time: as many as `held` octets have room for, at `hold` each, and not more than
/// there are flows.
fn holds(held: u64, hold: u32, flows: u32) -> usize {
    let room = held / u64::from(hold).max(1);
    room.min(u64::from(flows)).max(1) as usize
}

/// Room for connections on the kernel road: a quarter of what the box can hold, and not too few for a small one.
pub fn kernel_flows(config: &Config) -> u32 {
    (config.workers.flows / 4).max(4096)
}

/// Room for connections of the express lane; 0: there is none.
pub fn express_flows(config: &Config) -> u32 {
    if config.workers.express == Express::Never { 0 } else { config.workers.flows }
}

/// Descriptors that are not for connections of the relay: sockets of the fast road, rings, peers of the admin API.
pub const SPARE_FILES: u64 = 1024;

/// The relay: a thread for each core.
///
/// # Errors
/// As [`dataplane_spec`].
pub fn relay_config(config: &Config, links: &[LinkInfo]) -> Result<RelayConfig, Failure> {
    let mut workers = 0;
    if has_fast_road(config) {
        let spec = dataplane_spec(config, links)?;
        workers = spec.ports.iter().flat_map(|port| &port.queues).collect::<BTreeSet<_>>().len();
    }
    let cores = relay_cores(cores(&config.workers.cores), workers, config.workers.idle);
    let files = getrlimit(Resource::Nofile).current;
    Ok(RelayConfig {
        listen: config.fallback.listen,
        workers: cores.len().max(1),
        cores,
        connections: relay_connections(config.workers.flows, files),
        heartbeat: config.gateway.heartbeat,
        limits: relay_limits(&config.relay),
        upkeep: Upkeep { keepalive: config.relay.keepalive, user_timeout: config.relay.user_timeout },
        ..RelayConfig::default()
    })
}

/// Where the relay's threads run: on all cores, since the clients of a box with few queues can be as many as those of any other. The
/// `workers` of the fast road take the first of them. They leave what they do not need to others, unless they never sleep: then the relay
/// has the cores without one, if there are any.
fn relay_cores(mut cores: Vec<usize>, workers: usize, idle: Idle) -> Vec<usize> {
    if idle == Idle::Busy && workers < cores.len() {
        cores.drain(..workers);
    }
    cores
}

fn relay_limits(relay: &Relay) -> relay::Limits {
    let nanos = |time: Duration| Nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    relay::Limits {
        connect: nanos(relay.connect),
        pooled: nanos(relay.pool_connect),
        idle: nanos(relay.idle),
        half_closed: nanos(relay.half_closed),
        ..relay::Limits::default()
    }
}

/// The connections that the relay takes: `flows`, as far as `files` descriptors reach (none: no limit). Each connection
/// needs two. Its buffers are memory only while they are in use.
pub fn relay_connections(flows: u32, files: Option<u64>) -> u32 {
    let room = files.map_or(u64::MAX, |files| files.saturating_sub(SPARE_FILES) / 2);
    u32::try_from(room).map_or(flows, |room| flows.min(room)).max(1)
}

/// One port on its device as it is now.
///
/// # Errors
/// As [`dataplane_spec`].
pub fn port_spec(port: &Port, link: &LinkInfo) -> Result<PortSpec, Failure> {
    let device = &port.device;
    let channels = ethtool::channels_of(device).map(|channels| channels.receiving()).unwrap_or(1).max(1);
    let queues: Vec<u32> = match &port.queues {
        Queues::All => (0..channels).collect(),
        Queues::List(list) => list.iter().map(|queue| u32::from(*queue)).collect(),
    };
    if let Some(missing) = queues.iter().find(|queue| **queue >= channels) {
        return Err(Failure::refused(format!(
            "{}: device {device} has no receive queue {missing}: it has {channels} (0 to {}); correct `queues`, or see \
             `ethtool -L {device}`",
            port.origin,
            channels - 1
        )));
    }
    Ok(PortSpec {
        device: device.clone(),
        ifindex: link.ifindex,
        queues,
        asked: port.mode.name(),
        mode: match port.mode {
            Mode::Auto => xsk::Mode::Auto,
            Mode::ZeroCopy => xsk::Mode::ZeroCopy,
            Mode::Copy | Mode::Generic => xsk::Mode::Copy,
        },
        partial_checksums: may_send_partial_checksums(device),
        mtu: link.mtu,
        grain: buffer_grain(device),
    })
}

/// Octets of the steps in which the device's driver tells its NIC how much room a frame has. Of a frame of 2048 octets, of which 256 are
/// the headroom, those of Intel's that count in KiB use 1024, and cut what is longer.
pub fn buffer_grain(device: &str) -> usize {
    const IN_KIB: [&str; 3] = ["igb", "igc", "ixgbe"];
    match ethtool::driver_of(device).is_ok_and(|driver| IN_KIB.contains(&driver.as_str())) {
        true => 1024,
        false => 1,
    }
}

/// Virtual devices hand over packets whose sender left the checksum to a NIC that there is not.
pub fn may_send_partial_checksums(device: &str) -> bool {
    const VIRTUAL: [&str; 6] = ["veth", "virtio_net", "tun", "vmxnet3", "xen_netfront", "hv_netvsc"];
    ethtool::driver_of(device).is_ok_and(|driver| VIRTUAL.contains(&driver.as_str()))
}

fn cores(cores: &Cores) -> Vec<usize> {
    match cores {
        Cores::Auto => affinity::available_cpus().unwrap_or_default(),
        Cores::List(list) => list.iter().map(|core| usize::from(*core)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_core::vlan::Vlan;

    #[test]
    fn holds_are_as_many_as_have_room() {
        for (held, hold, flows, holds_) in [
            (64 << 20, 16 << 10, 1 << 20, 4096),
            (64 << 10, 64 << 10, 1 << 20, 1),
            (64 << 30, 512, 1 << 20, 1 << 20),
            (64 << 20, 16 << 10, 16, 16),
            (64 << 20, 0, 1 << 20, 1 << 20),
        ] {
            assert_eq!(holds(held, hold, flows), holds_, "{held} {hold} {flows}");
        }
    }

    #[test]
    fn relay_has_a_thread_on_every_core_where_a_worker_may_sleep() {
        for (cores, workers, idle, got) in [
            (4, 0, Idle::Adaptive, vec![0, 1, 2, 3]),
            (4, 1, Idle::Adaptive, vec![0, 1, 2, 3]),
            (4, 8, Idle::Adaptive, vec![0, 1, 2, 3]),
            (4, 0, Idle::Busy, vec![0, 1, 2, 3]),
            (4, 1, Idle::Busy, vec![1, 2, 3]),
            (4, 3, Idle::Busy, vec![3]),
            (4, 4, Idle::Busy, vec![0, 1, 2, 3]),
            (4, 8, Idle::Busy, vec![0, 1, 2, 3]),
            (0, 1, Idle::Busy, vec![]),
        ] {
            let on = relay_cores((0..cores).collect(), workers, idle);
            assert_eq!(on, got, "{cores} cores, {workers} workers, {idle:?}");
        }
    }

    #[test]
    fn relay_connections_are_the_flows_as_far_as_descriptors_reach() {
        for (flows, files, connections) in [
            (1 << 20, Some(1 << 20), ((1 << 20) - 1024) / 2),
            (1 << 20, Some(20_000), 9488),
            (4096, Some(1 << 20), 4096),
            (4096, None, 4096),
            (4096, Some(1024), 1),
            (16, Some(0), 1),
        ] {
            assert_eq!(relay_connections(flows, files), connections, "{flows} flows, {files:?} files");
        }
    }

    #[test]
    fn kernels_side_names_the_sub_interfaces_that_an_intercept_chooses_and_keeps_tags_in_frames() {
        let text = |vlan: &str| {
            format!(
                "[[port]]\nname = \"lan\"\ndevice = \"eth1\"\n[[port]]\nname = \"wan\"\ndevice = \"eth2\"\n[[intercept]]\n\
                 name = \"web\"\nfrom = \"lan\"\nto = \"::/0\"\ntcp = 80\n{vlan}\n"
            )
        };
        let named = |name: &str, port, vlan| SubInterface {
            port: PortId(port),
            device: 2,
            vlan,
            link: LinkInfo { name: name.to_owned(), ..LinkInfo::default() },
        };
        let vlans = [
            named("eth1.10", 0, Vlan::new(10)),
            named("eth1.100.10", 0, Vlan::stacked(100, 10)),
            named("eth2.10", 1, Vlan::new(10)),
        ];
        for (key, there, from, trunks) in [
            ("", 3, &["eth1"][..], &["eth1", "eth2"][..]),
            ("vlan = 10", 3, &["eth1.10"], &["eth1", "eth2"]),
            ("vlan = [\"100.10\", \"untagged\"]", 2, &["eth1", "eth1.100.10"], &["eth1"]),
            ("vlan = \"any\"", 3, &["eth1", "eth1.10", "eth1.100.10"], &["eth1", "eth2"]),
            ("vlan = 30", 0, &[], &["eth1"]),
            ("", 0, &["eth1"], &[]),
            ("vlan = 10\nhandshake = \"relay\"", 3, &["eth1.10"], &[]),
        ] {
            let (config, _) = crate::config::parse(std::path::Path::new("weir.toml"), text(key)).unwrap();
            let spec = host_spec(&config, &vlans[..there]);
            assert_eq!(spec.intercepts[0].from, from, "{key}");
            assert_eq!(spec.trunks, trunks, "{key}");
            assert_eq!(spec.vlans.len(), there);
            let rules = host::nft::Ruleset::of(&spec).commands().join("\n");
            assert!(!rules.contains("iifname {  }"), "{key}: {rules}");
            assert_eq!(rules.contains("tproxy"), !from.is_empty() || spec.relay_tun.is_some(), "{key}");
        }
    }
}
