//! The XDP steering program: loading, attaching, feeding.
//!
//! Called by weir-control (load, attach, intercepts, pools, own addresses, limits) and by weir-dataplane (sockets, heartbeat,
//! kernel flows). The program is dataplane/bpf/weir.bpf.c: one object, loaded once, attached to every port; ports are
//! told apart by the interface index. Nothing outlives the process, unless [`Steering::pin`] was called.
//!
//! The order at start: load, own addresses, intercepts, pools, limits, then for each port `set_port` and `attach`, then its
//! queues are opened and `set_socket`; the heartbeat begins when every worker runs. Until then an open box passes
//! everything, and a box that fails closed drops what is intercepted, from the moment of the attachment.

mod attach;
mod cookies;
mod error;
mod express;
mod flows;
mod former;
mod intercepts;
mod layout;
mod look;
mod map;
mod outcome;
mod pin;
mod pools;
#[cfg(test)]
mod tests;
mod trial;
mod vlans;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::PathBuf;

use aya::maps::{Map as AyaMap, MapData, PerCpuArray};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use ipnet::IpNet;

pub use attach::{AttachMode, AttachedMode};
pub use cookies::{CookieKey, CookiePromise, CookieState, CookieSwitch};
pub use error::SteeringError;
pub use express::{
    Change, Ends, Express, ExpressBatch, ExpressEntry, ExpressFlow, ExpressHop, ExpressLink, ExpressMemory,
    ExpressNote, Seen, Splice, Sweep,
};
pub use flows::{KernelFlow, KernelFlows};
pub use former::{FormerFlow, FormerLane, FormerTimes, Left, Refused};
pub use intercepts::InterceptTable;
pub use layout::{LAYOUT, MAX_LINKS, MAX_PORTS, MAX_QUEUES, WAYS_LAYOUT};
pub use look::{Found, InFormer, InLane, Look, Maps, Packet};
pub use outcome::{Counters, Outcome};
pub use pin::{holds_lane, is_lane, pins, unpin};
pub use pools::PoolServer;
pub use trial::Trial;
pub use vlans::{VlanPlace, VlanTag, VlanTags};

pub(crate) use map::Map;

use crate::keeper::SignPlace;
use attach::Attachment;
use intercepts::Intercepts;
use layout::{Address, Config};
use pools::Pools;
use vlans::Vlans;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir.bpf.o"));

const PROGRAM: &str = "weir_steer";
/// What of it comes after every lane.
const REST: &str = "weir_rest";

/// What is decided when the program is loaded.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Flows that the kernel map can hold.
    pub kernel_flows: u32,
    /// Flows that the express lane has room for; 0: there is none, and none is taken over.
    pub express_flows: u32,
    /// A folder of pins: links, kernel flows and the express lane that a process before left there are taken over. Of lanes of other
    /// layouts see [`Steering::tie_former_lanes`].
    pub adopt: Option<PathBuf>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { kernel_flows: 65_536, express_flows: 0, adopt: None }
    }
}

/// The loaded program. Dropping it takes the program off every device, unless pinned.
pub struct Steering {
    ebpf: Ebpf,
    attached: Vec<Attachment>,
    adopt: Option<PathBuf>,
    pinned: Option<PathBuf>,
    /// Lanes of other layouts that are tied behind this one's, in their order.
    former: Vec<FormerLane>,
    config: Map<u32, u64>,
    own: Map<Address, u32>,
    own_written: BTreeSet<Address>,
    own_room: usize,
    port_ids: Map<u32, u32>,
    port_macs: Map<u32, u64>,
    port_socks: Map<u32, u32>,
    vlans: Vlans,
    flows: KernelFlows,
    express: Express,
    intercepts: Intercepts,
    pools: Pools,
    counters: PerCpuArray<MapData, u64>,
    cookies: CookieSwitch,
}

/// The writer of the heartbeat: cheap to clone, for any thread.
#[derive(Clone, Debug)]
pub struct Pulse {
    config: Map<u32, u64>,
}

impl Pulse {
    /// Says that the dataplane is alive at `now` (ns, CLOCK_MONOTONIC). One system call.
    ///
    /// # Errors
    /// What the kernel says; none is expected.
    pub fn beat(&self, now: u64) -> Result<(), SteeringError> {
        set(&self.config, "config", &(Config::Heartbeat as u32), &now)
    }

    /// Where it is, for a [`Keeper`](crate::keeper::Keeper).
    ///
    /// # Errors
    /// No more descriptors.
    pub fn place(&self) -> std::io::Result<SignPlace> {
        Ok(SignPlace { map: self.config.duplicate()?, slot: Config::Heartbeat as u32 })
    }
}

impl Steering {
    /// Loads the program and makes its maps. Everything passes until [`Steering::set_limits`].
    ///
    /// # Errors
    /// [`SteeringError::NotPermitted`], [`SteeringError::Load`] with what the kernel's verifier said.
    pub fn load(sizes: &Sizes) -> Result<Self, SteeringError> {
        crate::process::raise_limits();
        Self::load_as_is(sizes)
    }

    /// As [`Steering::load`], within the limits of the process as they are.
    fn load_as_is(sizes: &Sizes) -> Result<Self, SteeringError> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("kernel_flows", sizes.kernel_flows.max(1));
        loader.map_max_entries("express_flows", sizes.express_flows.saturating_mul(2).max(1));
        loader.map_max_entries("express_notes", sizes.express_flows.max(1));
        let mut pinned = sizes.adopt.as_deref().map(pin::whole).unwrap_or_default();
        pinned.retain(|(map, _)| sizes.express_flows > 0 || !pin::is_of_lane(map));
        for (map, path) in &pinned {
            loader.map_pin_path(map, path.clone());
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| short_of_memory(error, sizes))?;
        xdp(&mut ebpf, PROGRAM)?.load().map_err(|error| load_error(EbpfError::ProgramError(error)))?;
        let is_adopted = pinned.iter().any(|(map, _)| *map == "express_flows");
        let intercepts = Intercepts::new(
            map_of(&ebpf, "config")?,
            [map_of(&ebpf, "prefixes4_0")?, map_of(&ebpf, "prefixes4_1")?],
            [map_of(&ebpf, "prefixes6_0")?, map_of(&ebpf, "prefixes6_1")?],
            map_of(&ebpf, "tcp_ports")?,
            map_of(&ebpf, "from_ports")?,
        );
        let own_room =
            Map::<Address, u32>::room("own_addresses", map_data(&ebpf, "own_addresses")?)? as usize;
        let syns = ebpf.take_map("syns").and_then(|map| PerCpuArray::try_from(map).ok());
        let syns = syns.ok_or(SteeringError::NoMap { map: "syns" })?;
        let counters = ebpf.take_map("counters").and_then(|map| PerCpuArray::try_from(map).ok());
        Ok(Self {
            cookies: CookieSwitch::new(map_of(&ebpf, "config")?, map_of(&ebpf, "cookies")?, syns),
            config: map_of(&ebpf, "config")?,
            own: map_of(&ebpf, "own_addresses")?,
            own_written: BTreeSet::new(),
            own_room,
            port_ids: map_of(&ebpf, "port_ids")?,
            port_macs: map_of(&ebpf, "port_macs")?,
            port_socks: map_of(&ebpf, "port_socks")?,
            vlans: Vlans::new(map_of(&ebpf, "vlans")?, map_of(&ebpf, "port_macs")?),
            flows: KernelFlows::new(map_of(&ebpf, "kernel_flows")?),
            express: Express::new(&mut ebpf, is_adopted)?,
            intercepts,
            pools: Pools::new(map_of(&ebpf, "pool_servers")?),
            counters: counters.ok_or(SteeringError::NoMap { map: "counters" })?,
            attached: Vec::new(),
            adopt: sizes.adopt.clone(),
            pinned: None,
            former: Vec::new(),
            ebpf,
        })
    }

    /// Attaches the program to a device of the calling thread's network namespace; says in which mode it runs.
    ///
    /// # Errors
    /// [`SteeringError::NoDevice`], [`SteeringError::AlreadyTaken`], [`SteeringError::NoXdp`],
    /// [`SteeringError::NotPermitted`].
    pub fn attach(
        &mut self,
        device: &str,
        ifindex: u32,
        mode: AttachMode,
    ) -> Result<AttachedMode, SteeringError> {
        let program = xdp(&mut self.ebpf, PROGRAM)?;
        let adopted = match &self.adopt {
            Some(folder) => Attachment::adopt(program, device, ifindex, folder),
            None => None,
        };
        let (attachment, mode) = match adopted {
            Some(adopted) => adopted,
            None => Attachment::new(program, device, ifindex, mode)?,
        };
        self.attached.push(attachment);
        Ok(mode)
    }

    /// Takes the program off a device; whether it was on it. A pin of it goes too.
    ///
    /// # Errors
    /// [`SteeringError::Pin`] when the pin cannot be removed; the program then stays.
    pub fn detach(&mut self, ifindex: u32) -> Result<bool, SteeringError> {
        let Some(place) = self.attached.iter().position(|at| at.ifindex == ifindex) else { return Ok(false) };
        self.attached[place].unpin()?;
        self.attached.swap_remove(place);
        self.unset_port(ifindex)?;
        self.port_macs.remove(&ifindex).map_err(SteeringError::of_map("port_macs", "removing from"))?;
        Ok(true)
    }

    /// Says that a device is no port: its packets pass.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn unset_port(&self, ifindex: u32) -> Result<(), SteeringError> {
        self.port_ids.remove(&ifindex).map_err(SteeringError::of_map("port_ids", "removing from")).map(drop)
    }

    /// Devices that are there and that somebody has taken the program off: name and index.
    ///
    /// # Errors
    /// [`SteeringError::Load`]: there is no program; not expected.
    pub fn detached(&mut self) -> Result<Vec<(String, u32)>, SteeringError> {
        let program = xdp(&mut self.ebpf, PROGRAM)?;
        let off = self.attached.iter().filter(|at| at.is_off(program));
        Ok(off.map(|at| (at.device.clone(), at.ifindex)).collect())
    }

    /// Puts the program on a device again that it was taken off, in the mode that it had, and pins it where it was pinned, if that can be
    /// done now: else [`Steering::misses_pins`] tells. Sockets, maps and counters stay as they are.
    ///
    /// # Errors
    /// As [`Steering::attach`]; [`SteeringError::NoDevice`] when it never was on that device.
    pub fn reattach(&mut self, ifindex: u32) -> Result<(), SteeringError> {
        let program = xdp(&mut self.ebpf, PROGRAM)?;
        let Some(attachment) = self.attached.iter_mut().find(|at| at.ifindex == ifindex) else {
            return Err(SteeringError::NoDevice { device: format!("with index {ifindex}") });
        };
        attachment.renew(program)?;
        if let Some(folder) = &self.pinned
            && let Err(error) = attachment.pin(folder)
        {
            tracing::debug!(%error, "attached, and not pinned");
        }
        Ok(())
    }

    /// The devices that the program is on: name and index.
    pub fn attached(&self) -> impl Iterator<Item = (&str, u32)> {
        self.attached.iter().map(|at| (at.device.as_str(), at.ifindex))
    }

    /// Says which port a device is. Packets of a device that is none pass.
    ///
    /// # Errors
    /// [`SteeringError::PortNumber`] from 32 on.
    pub fn set_port(&self, ifindex: u32, port: u32) -> Result<(), SteeringError> {
        if port >= MAX_PORTS {
            return Err(SteeringError::PortNumber { device: format!("with index {ifindex}"), port });
        }
        set(&self.port_ids, "port_ids", &ifindex, &port)
    }

    /// Says what a device's Ethernet address is. Frames for another station pass: a promiscuous device sees them too, and
    /// to forward them would double them. Until it is said, every frame counts as the device's.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn set_mac(&self, ifindex: u32, mac: [u8; 6]) -> Result<(), SteeringError> {
        set(&self.port_macs, "port_macs", &ifindex, &mac_word(mac))
    }

    /// Says which tagged frames are of VLANs of the box, and which: all others pass. Compared with those before: only differences
    /// are written, and one that stays is never missing.
    ///
    /// # Errors
    /// [`SteeringError::PortNumber`] of a number that is none of a VLAN's, before anything is changed; [`SteeringError::Map`].
    pub fn set_vlans(&mut self, places: &[VlanPlace]) -> Result<(), SteeringError> {
        self.vlans.set(places)
    }

    /// Sends what is intercepted on a port's queue to an AF_XDP socket. The kernel takes it out when the socket closes.
    ///
    /// # Errors
    /// [`SteeringError::PortNumber`], [`SteeringError::QueueNumber`], or that `socket` is none of AF_XDP.
    pub fn set_socket(&self, port: u32, queue: u32, socket: impl AsFd) -> Result<(), SteeringError> {
        if port >= MAX_PORTS {
            return Err(SteeringError::PortNumber { device: format!("of queue {queue}"), port });
        }
        if queue >= MAX_QUEUES {
            return Err(SteeringError::QueueNumber { queue });
        }
        let fd = u32::try_from(socket.as_fd().as_raw_fd()).unwrap_or(u32::MAX);
        set(&self.port_socks, "port_socks", &(port * MAX_QUEUES + queue), &fd)
    }

    /// The addresses of this box, which are never intercepted. Compared with those before: only differences are written,
    /// and an address that stays is never missing. Returns those that the map has no room for (it has for 4,096): they
    /// belong in [`InterceptTable::exempt`] of the next [`Steering::set_intercepts`].
    ///
    /// # Errors
    /// [`SteeringError::Map`]: what the kernel says; none is expected.
    pub fn set_own_addresses(&mut self, addresses: &[IpAddr]) -> Result<Vec<IpNet>, SteeringError> {
        let wanted: BTreeSet<Address> = addresses.iter().copied().map(Address::from).collect();
        // What is not the box's any more goes first: it makes room.
        let gone: Vec<Address> = self.own_written.difference(&wanted).copied().collect();
        for address in gone {
            self.own.remove(&address).map_err(SteeringError::of_map("own_addresses", "removing from"))?;
            self.own_written.remove(&address);
        }
        let mut without_room = Vec::new();
        for address in wanted {
            if self.own_written.contains(&address) {
                continue;
            }
            if self.own_written.len() >= self.own_room {
                without_room.push(IpNet::from(IpAddr::from(address)));
                continue;
            }
            set(&self.own, "own_addresses", &address, &1)?;
            self.own_written.insert(address);
        }
        Ok(without_room)
    }

    /// Makes a table of intercepts hold, all at once. When it fails, the table before still does.
    ///
    /// # Errors
    /// [`SteeringError::Map`]; above 65,536 prefixes of a family the map is full.
    pub fn set_intercepts(&mut self, table: &InterceptTable) -> Result<(), SteeringError> {
        self.intercepts.set(table).map_err(|(map, source)| SteeringError::Map {
            map,
            action: "storing in",
            source,
        })
    }

    /// The servers of all pools: what they send is for the fast road, and where the gateway is the source, what they send
    /// to its ports. Compared with those before: only differences are written, and a server that stays is never missing.
    ///
    /// # Errors
    /// [`SteeringError::PoolPorts`], before anything is changed; [`SteeringError::Map`]: above 65,536 endpoints and
    /// addresses the map is full.
    pub fn set_pool_servers(&mut self, servers: &[PoolServer]) -> Result<(), SteeringError> {
        self.pools.set(servers)
    }

    /// Enables steering. Without a heartbeat younger than `heartbeat_limit` (ns) everything passes, or, with `closed`,
    /// packets of intercepts are dropped.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn set_limits(&self, heartbeat_limit: u64, closed: bool) -> Result<(), SteeringError> {
        set(&self.config, "config", &(Config::Limit as u32), &heartbeat_limit)?;
        set(&self.config, "config", &(Config::Closed as u32), &u64::from(closed))?;
        set(&self.config, "config", &(Config::Enabled as u32), &1)
    }

    /// How long beyond the limit (ns) a dataplane that is late may come back: so long, packets of intercepts that translate are
    /// dropped, to be sent again, since the kernel would end their connections with a RST. A connection that begins then is the
    /// kernel's. A heartbeat of 0 says that the process is gone, without a doubt.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn set_doubt(&self, doubt: u64) -> Result<(), SteeringError> {
        set(&self.config, "config", &(Config::Doubt as u32), &doubt)
    }

    /// Lets everything pass, until [`Steering::set_limits`], flows of the express lane too, until [`Express::enable`].
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn disable(&self) -> Result<(), SteeringError> {
        self.express.enable(false)?;
        set(&self.config, "config", &(Config::Enabled as u32), &0)
    }

    /// Says that the dataplane is alive at `now` (ns, CLOCK_MONOTONIC).
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn heartbeat(&self, now: u64) -> Result<(), SteeringError> {
        self.pulse().beat(now)
    }

    /// A handle for writing the heartbeat from another thread.
    pub fn pulse(&self) -> Pulse {
        Pulse { config: self.config.clone() }
    }

    /// A handle for answering SYNs with cookies in the program, for any thread.
    pub fn cookies(&self) -> CookieSwitch {
        self.cookies.clone()
    }

    /// A handle on the flows that were given to the kernel.
    pub fn kernel_flows(&self) -> KernelFlows {
        self.flows.clone()
    }

    /// A handle on the express lane.
    pub fn express(&self) -> Express {
        self.express.clone()
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn counters(&self) -> Result<Counters, SteeringError> {
        let mut counters = Counters::default();
        for outcome in Outcome::ALL {
            let per_cpu = self.counters.get(&outcome.slot(), 0).map_err(|error| SteeringError::Map {
                map: "counters",
                action: "reading",
                source: std::io::Error::other(error),
            })?;
            counters.set(outcome, per_cpu.iter().sum());
        }
        Ok(counters)
    }
}

impl fmt::Debug for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steering")
            .field("attached", &self.attached)
            .field("pinned", &self.pinned)
            .finish_non_exhaustive()
    }
}

/// As the map `port_macs` has it.
const fn mac_word([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

fn set<K, V>(map: &Map<K, V>, name: &'static str, key: &K, value: &V) -> Result<(), SteeringError>
where
    K: zerocopy::IntoBytes + zerocopy::FromBytes + zerocopy::Immutable,
    V: zerocopy::IntoBytes + zerocopy::FromBytes + zerocopy::Immutable,
{
    map.set(key, value).map_err(SteeringError::of_map(name, "storing in"))
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, SteeringError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| SteeringError::Load { reason: format!("the object has no XDP program {name}") })
}

/// Loads a program of the object that is for user space to run.
fn routine(ebpf: &mut Ebpf, name: &str) -> Result<trial::Routine, SteeringError> {
    let program = xdp(ebpf, name)?;
    program.load().map_err(|error| load_error(EbpfError::ProgramError(error)))?;
    let fd = program.fd().map_err(|error| load_error(EbpfError::ProgramError(error)))?;
    let fd = fd.as_fd().try_clone_to_owned();
    fd.map(trial::Routine::new).map_err(|error| SteeringError::Load { reason: error.to_string() })
}

fn map_of<K, V>(ebpf: &Ebpf, name: &'static str) -> Result<Map<K, V>, SteeringError>
where
    K: zerocopy::IntoBytes + zerocopy::FromBytes + zerocopy::Immutable,
    V: zerocopy::IntoBytes + zerocopy::FromBytes + zerocopy::Immutable,
{
    Map::new(name, map_data(ebpf, name)?)
}

fn map_data<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a MapData, SteeringError> {
    match ebpf.map(name) {
        Some(
            AyaMap::Array(data)
            | AyaMap::HashMap(data)
            | AyaMap::LruHashMap(data)
            | AyaMap::LpmTrie(data)
            | AyaMap::DevMap(data)
            | AyaMap::ProgramArray(data)
            | AyaMap::XskMap(data),
        ) => Ok(data),
        _ => Err(SteeringError::NoMap { map: name }),
    }
}

/// The maps whose sizes are the operator's choice are those of flows.
fn short_of_memory(error: EbpfError, sizes: &Sizes) -> SteeringError {
    match error {
        EbpfError::MapError(aya::maps::MapError::CreateError { name, io_error })
            if matches!(io_error.raw_os_error(), Some(libc::ENOMEM | libc::E2BIG)) =>
        {
            let entries = match name.as_str() {
                "express_flows" => Some(sizes.express_flows.saturating_mul(2)),
                "express_notes" => Some(sizes.express_flows),
                "kernel_flows" => Some(sizes.kernel_flows),
                _ => None,
            };
            SteeringError::NoMemory { map: name, entries, source: io_error }
        }
        other => load_error(other),
    }
}

pub(crate) fn load_error(error: EbpfError) -> SteeringError {
    let code = match &error {
        EbpfError::MapError(aya::maps::MapError::CreateError { io_error, .. })
        | EbpfError::ProgramError(ProgramError::LoadError { io_error, .. }) => io_error.raw_os_error(),
        _ => None,
    };
    // A chain of sources: some sentences of aya's leave the kernel's out, others say it already.
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let words = cause.to_string();
        if !reason.contains(&words) {
            reason = format!("{reason}: {words}");
        }
        source = cause.source();
    }
    // The verifier says nothing about what the kernel does not even read.
    reason.truncate(reason.trim_end().trim_end_matches(". Verifier output:").len());
    match code {
        Some(libc::EPERM | libc::EACCES) if !reason.contains("processed") => {
            SteeringError::NotPermitted { action: "load the XDP program".into(), reason }
        }
        Some(libc::ENOMEM) => SteeringError::NoMemoryForProgram { reason },
        _ => SteeringError::Load { reason },
    }
}

const _: () = {
    const fn is_send<T: Send>() {}
    const fn is_shareable<T: Send + Sync>() {}
    is_send::<Steering>();
    is_shareable::<KernelFlows>();
    is_shareable::<Pulse>();
};
