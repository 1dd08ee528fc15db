//! What the program would make of one TCP packet: its maps read, entry by entry, and its own answer on a copy of them.
//!
//! For `weir explain`. [`Maps`] reads what the running program reads, and changes nothing: neither a counter moves nor is a
//! flow seen. [`Maps::ask_program`] loads the program once more, gives it the entries that a [`Look`] found, and lets the
//! kernel run it on a frame (BPF_PROG_TEST_RUN), so that the answer is the program's and the counters are the copy's.
//! [`Look::outcome`] is the order of `weir_steer` in dataplane/bpf/weir.bpf.c; the tests hold it against the program.

mod lane;

use std::net::{IpAddr, SocketAddr};

use aya::maps::MapData;
use aya::programs::{ProgramError, ProgramInfo, loaded_programs};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::express::layout::{Head, Key};
use super::layout::{
    Address, Bits, Config, Flow, FlowKey, MAX_PORTS, POOL_ADDRESS, POOL_GATEWAY, PoolKey, PoolValue, Prefix4,
    Prefix6, VlanKey, VlanValue,
};
use super::map::{Headed, Map};
use super::vlans::{self, VlanTags};
use super::{
    FormerLane, KernelFlow, Outcome, PROGRAM, Sizes, Steering, SteeringError, former, map_of, pin, set,
};
use crate::clock;
use lane::LaneMaps;
pub use lane::{InFormer, InLane};

/// Lanes of other layouts that are followed: more than there are layouts.
const FORMER: usize = 16;

/// The flows of such a lane.
type FormerFlows = Headed<Key, Head>;

/// A TCP packet that came in by a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// The device's index.
    pub ifindex: u32,
    /// The tags that it bears.
    pub tags: Option<VlanTags>,
}

/// Intercept bits that are found by one endpoint of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Of the longest prefix that holds the address; none where no prefix does.
    pub prefix: Option<u64>,
    /// Of the TCP port.
    pub tcp: u64,
}

/// All that the program looks up for one TCP packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// When it was looked, ns of CLOCK_MONOTONIC; so are the other times.
    pub now: u64,
    /// The express lane is open.
    pub has_lane: bool,
    /// What it has of the packet's direction.
    pub lane: Option<InLane>,
    /// What the lane of a weir of another layout has, which is asked next.
    #[serde(default)]
    pub former: Option<InFormer>,
    /// The destination is in the map of the box's own addresses.
    pub own: bool,
    /// The ports that the gateway connects to the source from, where that is such a server of a pool.
    pub gateway_ports: Option<(u16, u16)>,
    /// The packet is of a connection that the gateway makes: to one of those ports.
    pub for_gateway: bool,
    pub enabled: bool,
    pub heartbeat: u64,
    /// A heartbeat older than this many ns is no sign of life.
    pub limit: u64,
    /// For so many ns beyond the limit it may come back.
    pub doubt: u64,
    /// The box fails closed.
    pub closed: bool,
    /// The number of the port that the device is.
    pub port: Option<u32>,
    pub mac: Option<[u8; 6]>,
    /// The packet bears tags.
    #[serde(default)]
    pub tagged: bool,
    /// The number of its VLAN, and the index of the sub-interface.
    #[serde(default)]
    pub vlan: Option<(u32, u32)>,
    /// What the kernel map has of the flow.
    pub kernel_flow: Option<KernelFlow>,
    /// Bits of intercepts whose handshake is `relay`.
    pub relay_mask: u64,
    /// Bits of intercepts whose connections the kernel cannot go on with.
    pub translated: u64,
    /// Bits of intercepts whose clients are behind the port, or in its VLAN.
    pub from_port: u64,
    /// By the destination: from client to server.
    pub to_server: Found,
    /// By the source: from server to client.
    pub to_client: Found,
    /// The source is a server of a pool.
    pub pool_server: bool,
}

impl Look {
    /// How old the heartbeat is, ns.
    pub const fn age(&self) -> u64 {
        self.now.saturating_sub(self.heartbeat)
    }

    /// Whether the dataplane gave a sign of life within the limit.
    pub const fn is_alive(&self) -> bool {
        self.age() <= self.limit
    }

    /// Whether it gave none, but may just be late.
    pub const fn is_in_doubt(&self) -> bool {
        !self.is_alive() && self.heartbeat != 0 && self.age() <= self.limit.saturating_add(self.doubt)
    }

    /// Bits of the intercepts that the packet is of, from client to server.
    pub fn server_bits(&self) -> u64 {
        self.to_server.prefix.unwrap_or(0) & self.to_server.tcp & self.from_port
    }

    /// Bits of the intercepts that the packet is of, from server to client.
    pub fn client_bits(&self) -> u64 {
        self.to_client.prefix.unwrap_or(0) & self.to_client.tcp
    }

    /// What the program makes of the packet: of a SYN (`opens`), or of one that follows. Whether the queue it comes by has a
    /// socket is not known: with [`Outcome::Redirect`] and its like, there must be one.
    pub fn outcome(&self, opens: bool) -> Outcome {
        if self.tagged && self.vlan.is_none() {
            return Outcome::Vlan;
        }
        self.crossed(opens).or_else(|| self.crossed_before(opens)).unwrap_or_else(|| self.steered(opens))
    }

    /// `steer` of the program.
    fn steered(&self, opens: bool) -> Outcome {
        let for_gateway = !opens && self.for_gateway;
        if self.own && !for_gateway {
            return Outcome::OwnAddress;
        }
        if !self.enabled {
            return Outcome::Disabled;
        }
        let alive = self.is_alive();
        let doubt = self.is_in_doubt();
        if !alive && (!(self.closed || doubt) || self.port.is_none()) {
            return Outcome::StalePass;
        }
        if !opens && self.kernel_flow.is_some() {
            return if alive { Outcome::KernelFlow } else { Outcome::StalePass };
        }
        if self.port.is_none() {
            return Outcome::UnknownPort;
        }
        let outcome = self.judged(opens, for_gateway);
        match (outcome.is_redirect(), alive) {
            (_, true) => outcome,
            (true, false) if self.closed => Outcome::StaleDrop,
            (true, false) if !opens && self.is_translated(outcome) => Outcome::DoubtDrop,
            (_, false) => Outcome::StalePass,
        }
    }

    /// Of a packet for a worker: whether the kernel cannot go on with its connection.
    fn is_translated(&self, outcome: Outcome) -> bool {
        let first = self.server_bits() & self.server_bits().wrapping_neg();
        outcome != Outcome::Redirect || (first | self.client_bits()) & self.translated != 0
    }

    /// `outcome_of` of the program.
    fn judged(&self, opens: bool, for_gateway: bool) -> Outcome {
        let own = self.own || self.to_server.prefix == Some(0);
        if own {
            return if for_gateway { Outcome::RedirectGateway } else { Outcome::OwnAddress };
        }
        let first = |bits: u64| bits & bits.wrapping_neg() & !self.relay_mask != 0;
        if first(self.server_bits()) || first(self.client_bits()) {
            return Outcome::Redirect;
        }
        if !opens && self.pool_server { Outcome::RedirectPool } else { Outcome::NoIntercept }
    }
}

/// The maps that the program reads, by descriptors of their own. They hold as long as this does.
#[derive(Clone, Debug)]
pub struct Maps {
    config: Map<u32, u64>,
    own: Map<Address, u32>,
    port_ids: Map<u32, u32>,
    port_macs: Map<u32, u64>,
    flows: Map<FlowKey, Flow>,
    prefixes4: [Map<Prefix4, u64>; 2],
    prefixes6: [Map<Prefix6, u64>; 2],
    tcp_ports: Map<u32, Bits>,
    from_ports: Map<u32, Bits>,
    pools: Map<PoolKey, PoolValue>,
    vlans: Map<VlanKey, VlanValue>,
    lane: LaneMaps,
    former: Vec<FormerFlows>,
}

impl Steering {
    /// The program's maps, for reading.
    ///
    /// # Errors
    /// [`SteeringError::Map`]: no descriptor is left.
    pub fn maps(&self) -> Result<Maps, SteeringError> {
        let ebpf = &self.ebpf;
        Ok(Maps {
            config: self.config.clone(),
            own: self.own.clone(),
            port_ids: self.port_ids.clone(),
            port_macs: self.port_macs.clone(),
            flows: map_of(ebpf, "kernel_flows")?,
            prefixes4: [map_of(ebpf, "prefixes4_0")?, map_of(ebpf, "prefixes4_1")?],
            prefixes6: [map_of(ebpf, "prefixes6_0")?, map_of(ebpf, "prefixes6_1")?],
            tcp_ports: map_of(ebpf, "tcp_ports")?,
            from_ports: map_of(ebpf, "from_ports")?,
            pools: map_of(ebpf, "pool_servers")?,
            vlans: map_of(ebpf, "vlans")?,
            lane: LaneMaps {
                flows: map_of(ebpf, "express_flows")?,
                hops: map_of(ebpf, "express_hops")?,
                links: map_of(ebpf, "express_links")?,
                ports: map_of(ebpf, "express_ports")?,
            },
            former: self.former.iter().map(FormerLane::table).collect(),
        })
    }
}

impl Maps {
    /// The maps of a program that is attached somewhere, by the program's id; none when it is no steering program of weir's.
    /// This is how a process that hangs, or is gone and left its program pinned, is looked at.
    ///
    /// # Errors
    /// Not permitted, a program that is gone, or maps of another layout.
    pub fn of_program(id: u32) -> Result<Option<Self>, SteeringError> {
        let Some(maps) = maps_of(id)? else { return Ok(None) };
        let mut former = Vec::new();
        let mut next = next_of(&maps)?;
        // Each leads to the next, and the last of them to this program's rest.
        while let Some(maps) =
            next.take().filter(|_| former.len() < FORMER).map(maps_of).transpose()?.flatten()
        {
            former.push(FormerFlows::new("express_flows", data(&maps, "express_flows")?)?);
            next = next_of(&maps)?;
        }
        Self::of_data(&maps, former).map(Some)
    }

    fn of_data(maps: &[(String, MapData)], former: Vec<FormerFlows>) -> Result<Self, SteeringError> {
        Ok(Self {
            former,
            config: named(maps, "config")?,
            own: named(maps, "own_addresses")?,
            port_ids: named(maps, "port_ids")?,
            port_macs: named(maps, "port_macs")?,
            flows: named(maps, "kernel_flows")?,
            prefixes4: [named(maps, "prefixes4_0")?, named(maps, "prefixes4_1")?],
            prefixes6: [named(maps, "prefixes6_0")?, named(maps, "prefixes6_1")?],
            tcp_ports: named(maps, "tcp_ports")?,
            from_ports: named(maps, "from_ports")?,
            pools: named(maps, "pool_servers")?,
            vlans: named(maps, "vlans")?,
            lane: LaneMaps {
                flows: named(maps, "express_flows")?,
                hops: named(maps, "express_hops")?,
                links: named(maps, "express_links")?,
                ports: named(maps, "express_ports")?,
            },
        })
    }

    /// Whether it drops what is intercepted without a sign of life.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn fails_closed(&self) -> Result<bool, SteeringError> {
        Ok(get(&self.config, "config", &(Config::Closed as u32))?.is_some_and(|closed| closed != 0))
    }

    /// Reads all that the program would look up. Does not count as a packet.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn look(&self, packet: &Packet) -> Result<Look, SteeringError> {
        let word = |slot: Config| get(&self.config, "config", &(slot as u32)).map(Option::unwrap_or_default);
        let generation = word(Config::Generation)? & 1;
        let (relay, translated) = match generation {
            0 => (Config::RelayMask, Config::Translated),
            _ => (Config::RelayMask1, Config::Translated1),
        };
        let bits = |bits: Option<Bits>| bits.unwrap_or_default().of[generation as usize];
        let port = get(&self.port_ids, "port_ids", &packet.ifindex)?;
        let vlan = match packet.tags {
            Some(tags) => get(&self.vlans, "vlans", &vlans::key(packet.ifindex, tags))?,
            None => None,
        };
        let vlan = vlan.map(|vlan| (vlan.link, vlan.ifindex));
        let from_port = match (port, vlan) {
            (Some(_), Some((number, _))) | (Some(number), None) => {
                bits(get(&self.from_ports, "from_ports", &number)?)
            }
            (None, _) => 0,
        };
        let station = vlan.map_or(packet.ifindex, |(_, ifindex)| ifindex);
        // Tagged frames are the workers'.
        let untagged = packet.tags.is_none();
        let found = |at: SocketAddr| -> Result<Found, SteeringError> {
            let tcp = bits(get(&self.tcp_ports, "tcp_ports", &u32::from(at.port()))?);
            Ok(Found { prefix: self.prefix(at.ip(), generation as usize)?, tcp })
        };
        let server = self.server(packet.from)?;
        let gateway_ports =
            server.filter(|s| s.flags & POOL_GATEWAY != 0).map(|server| (server.first, server.last));
        let is_gateways = |(first, last)| (first..=last).contains(&packet.to.port());
        // Read before the clock, as the program does: a beat after it is fresh.
        let heartbeat = word(Config::Heartbeat)?;
        let lane = if untagged { self.lane.look(packet)? } else { None };
        // What is in no lane of this program's goes on to those before.
        let goes_on = untagged && lane.is_none();
        Ok(Look {
            now: clock::monotonic_ns(),
            has_lane: untagged && word(Config::Express)? != 0,
            lane,
            former: if goes_on { lane::look_before(&self.former, packet)? } else { None },
            own: get(&self.own, "own_addresses", &packet.to.ip().into())?.is_some(),
            gateway_ports,
            for_gateway: gateway_ports.is_some_and(is_gateways),
            enabled: word(Config::Enabled)? != 0,
            heartbeat,
            limit: word(Config::Limit)?,
            doubt: word(Config::Doubt)?,
            closed: word(Config::Closed)? != 0,
            port,
            mac: get(&self.port_macs, "port_macs", &station)?.map(mac),
            tagged: !untagged,
            vlan,
            kernel_flow: get(&self.flows, "kernel_flows", &FlowKey::new(packet.from, packet.to))?
                .map(KernelFlow::from),
            relay_mask: word(relay)?,
            translated: word(translated)?,
            from_port,
            to_server: found(packet.to)?,
            to_client: found(packet.from)?,
            pool_server: server.is_some(),
        })
    }

    fn prefix(&self, address: IpAddr, generation: usize) -> Result<Option<u64>, SteeringError> {
        match address {
            IpAddr::V4(v4) => {
                let key = Prefix4 { length: 32, bytes: v4.octets() };
                get(&self.prefixes4[generation], "prefixes4", &key)
            }
            IpAddr::V6(v6) => {
                let key = Prefix6 { length: 128, bytes: v6.octets() };
                get(&self.prefixes6[generation], "prefixes6", &key)
            }
        }
    }

    fn server(&self, at: SocketAddr) -> Result<Option<PoolValue>, SteeringError> {
        let key = PoolKey { address: at.ip().into(), port: at.port().to_be_bytes() };
        let server = get(&self.pools, "pool_servers", &key)?;
        Ok(server.filter(|server| server.flags & POOL_ADDRESS == 0))
    }

    /// What the program says of each of `frames`, which carry `packet`: it is loaded again with what `look` found, as old as
    /// it was then, with a socket on queue 0 of the port, and run by the kernel. Nothing of the running program is touched.
    /// Takes as long as the verifier: some tens of milliseconds.
    ///
    /// # Errors
    /// [`SteeringError::NotPermitted`], [`SteeringError::Load`], [`SteeringError::Map`]; the device is gone.
    pub fn ask_program<const N: usize>(
        look: &Look,
        packet: &Packet,
        frames: [&[u8]; N],
    ) -> Result<[Outcome; N], SteeringError> {
        let express_flows = u32::from(look.lane.is_some());
        let mut copy = Steering::load_as_is(&Sizes { kernel_flows: 1, express_flows, adopt: None })?;
        let _socket = fill(&copy, look, packet)?;
        let mut said = [Outcome::Malformed; N];
        for (frame, said) in frames.into_iter().zip(&mut said) {
            *said = copy.run(look, packet, frame)?;
        }
        Ok(said)
    }
}

impl Steering {
    /// Lets the kernel run the program on one frame; which counter moved.
    fn run(&mut self, look: &Look, packet: &Packet, frame: &[u8]) -> Result<Outcome, SteeringError> {
        let before = self.counters()?;
        // As old as it was; the load took longer than the limit.
        self.heartbeat(clock::monotonic_ns().saturating_sub(look.age()))?;
        self.run_on(packet.ifindex, frame)?;
        let after = self.counters()?;
        let moved = Outcome::ALL.into_iter().find(|outcome| after.of(*outcome) != before.of(*outcome));
        moved.ok_or_else(|| SteeringError::Load { reason: "it counted nothing".into() })
    }
}

/// Puts what was found into the maps of a copy. The socket is bound to nothing: enough for the map, as long as it lives.
fn fill(
    copy: &Steering,
    look: &Look,
    packet: &Packet,
) -> Result<Option<std::os::fd::OwnedFd>, SteeringError> {
    let maps = copy.maps()?;
    for (slot, value) in [
        (Config::Limit, look.limit),
        (Config::Doubt, look.doubt),
        (Config::Closed, u64::from(look.closed)),
        (Config::Generation, 0),
        (Config::RelayMask, look.relay_mask),
        (Config::Translated, look.translated),
        (Config::Enabled, u64::from(look.enabled)),
    ] {
        set(&maps.config, "config", &(slot as u32), &value)?;
    }
    set(&maps.config, "config", &(Config::Express as u32), &u64::from(look.has_lane))?;
    if let Some(lane) = &look.lane {
        maps.lane.fill(lane, packet)?;
    }
    if look.own {
        set(&maps.own, "own_addresses", &packet.to.ip().into(), &1)?;
    }
    if let Some(flow) = &look.kernel_flow {
        let value = Flow { last_seen: flow.last_seen, ..Flow::default() };
        set(&maps.flows, "kernel_flows", &FlowKey::new(packet.from, packet.to), &value)?;
    }
    for (at, found) in [(packet.to, look.to_server), (packet.from, look.to_client)] {
        set(&maps.tcp_ports, "tcp_ports", &u32::from(at.port()), &Bits { of: [found.tcp, 0] })?;
        match (found.prefix, at.ip()) {
            (Some(bits), IpAddr::V4(v4)) => {
                set(&maps.prefixes4[0], "prefixes4", &Prefix4 { length: 32, bytes: v4.octets() }, &bits)?;
            }
            (Some(bits), IpAddr::V6(v6)) => {
                set(&maps.prefixes6[0], "prefixes6", &Prefix6 { length: 128, bytes: v6.octets() }, &bits)?;
            }
            (None, _) => {}
        }
    }
    if look.pool_server {
        let (first, last) = look.gateway_ports.unwrap_or_default();
        let flags = if look.gateway_ports.is_some() { POOL_GATEWAY } else { 0 };
        let key = PoolKey { address: packet.from.ip().into(), port: packet.from.port().to_be_bytes() };
        set(&maps.pools, "pool_servers", &key, &PoolValue { flags, first, last })?;
    }
    if let (Some(tags), Some((link, ifindex))) = (packet.tags, look.vlan) {
        set(&maps.vlans, "vlans", &vlans::mark(packet.ifindex), &VlanValue::default())?;
        set(&maps.vlans, "vlans", &vlans::key(packet.ifindex, tags), &VlanValue { link, ifindex })?;
    }
    if let Some(mac) = look.mac {
        copy.set_mac(look.vlan.map_or(packet.ifindex, |(_, ifindex)| ifindex), mac)?;
    }
    let Some(port) = look.port.filter(|port| *port < MAX_PORTS) else { return Ok(None) };
    copy.set_port(packet.ifindex, port)?;
    let number = look.vlan.map_or(port, |(number, _)| number);
    set(&maps.from_ports, "from_ports", &number, &Bits { of: [look.from_port, 0] })?;
    let family = rustix::net::AddressFamily::XDP;
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, rustix::net::SocketType::RAW, flags, None)
        .map_err(|error| SteeringError::of_map("port_socks", "opening a socket for")(error.into()))?;
    copy.set_socket(port, 0, &socket)?;
    Ok(Some(socket))
}

fn get<K, V>(map: &Map<K, V>, name: &'static str, key: &K) -> Result<Option<V>, SteeringError>
where
    K: IntoBytes + FromBytes + Immutable,
    V: IntoBytes + FromBytes + Immutable,
{
    map.get(key).map_err(SteeringError::of_map(name, "reading"))
}

fn named<K, V>(maps: &[(String, MapData)], wanted: &'static str) -> Result<Map<K, V>, SteeringError>
where
    K: IntoBytes + FromBytes + Immutable,
    V: IntoBytes + FromBytes + Immutable,
{
    Map::new(wanted, data(maps, wanted)?)
}

fn data<'a>(maps: &'a [(String, MapData)], wanted: &'static str) -> Result<&'a MapData, SteeringError> {
    let found = maps.iter().find(|(name, _)| name == wanted);
    found.map(|(_, data)| data).ok_or(SteeringError::NoMap { map: wanted })
}

/// The maps of a loaded program, by its id; none when it is no steering program.
fn maps_of(id: u32) -> Result<Option<Vec<(String, MapData)>>, SteeringError> {
    let failed = |error: &dyn std::fmt::Display| SteeringError::NotPermitted {
        action: format!("look at the XDP program {id}"),
        reason: error.to_string(),
    };
    // Others' programs may go while this looks for one.
    let mut refused = None;
    let mut is_it = |info: Result<ProgramInfo, ProgramError>| match info {
        Ok(info) => (info.id() == id).then_some(info),
        Err(error) => {
            refused = Some(error);
            None
        }
    };
    let program = loaded_programs().find_map(&mut is_it);
    if let (None, Some(error)) = (&program, refused) {
        return Err(failed(&error));
    }
    let Some(program) = program.filter(|info| info.name_as_str() == Some(PROGRAM)) else {
        return Ok(None);
    };
    let mut maps = Vec::new();
    for map in program.map_ids().map_err(|error| failed(&error))?.unwrap_or_default() {
        let data = MapData::from_id(map).map_err(|error| failed(&error))?;
        let name = data.info().ok().and_then(|info| info.name_as_str().map(str::to_owned));
        maps.extend(name.map(|name| (name, data)));
    }
    Ok(Some(maps))
}

/// The id of the program that is asked after that one.
fn next_of(maps: &[(String, MapData)]) -> Result<Option<u32>, SteeringError> {
    get(&named::<u32, u32>(maps, pin::NEXT)?, pin::NEXT, &former::NEXT)
}

fn mac(word: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = word.to_ne_bytes();
    [a, b, c, d, e, f]
}
