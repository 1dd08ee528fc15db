//! The running gateway: what it is asked, and the side of it that answers.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use weir_core::policy::ServerState;
use weir_core::view::FlowView;
use weir_sys::steering::{Look, Maps, Packet, VlanTags};

use super::Question;
use super::ingress::Ingress;
use crate::admin::listing::Incomplete;
use crate::admin::state::State;
use crate::admin::{self, Request};
use crate::config::{self, Config};
use crate::run::convert;

/// How long the first answer may take: a gateway that hangs is explained, too, and whoever asks about it is in a hurry.
const PATIENCE: Duration = Duration::from_secs(3);

/// What steering makes of the connection's packets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Steered {
    pub look: Look,
    /// What the program itself said of a SYN, on a copy of what was found; or why it was not asked.
    pub syn: Result<String, String>,
    /// And of a packet that follows.
    pub segment: Result<String, String>,
}

/// What the gateway says of one connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    pub uptime_s: u64,
    /// None: it has no steering program, or the connection comes in by no device; or why it could not be looked at.
    pub steered: Option<Result<Steered, String>>,
    /// Queues of the device that a worker's socket serves.
    pub queues: Vec<u32>,
    /// Why the device is not on the fast road although a port is: it went away, say.
    pub lost: Option<String>,
    /// The flow, as in `weir flows`.
    pub flow: Option<Value>,
    /// Whose flows it was not looked for in; none: it was in all.
    #[serde(default)]
    pub incomplete: Option<Incomplete>,
    /// What it remembers of the name's addresses; none: it has not looked it up lately.
    #[serde(default)]
    pub addresses: Option<Vec<IpAddr>>,
}

/// The gateway, as far as it answers.
#[derive(Debug, Default)]
pub struct Gateway {
    /// The status that it gave.
    status: Option<Value>,
    /// Why it gave none.
    pub silent: Option<String>,
    pub seen: Option<Seen>,
    /// Why it did not say more.
    pub unseen: Option<String>,
}

/// Asks the gateway how it is.
pub fn status(admin: &Path) -> Gateway {
    match admin::client::ask_within(admin, Request::Status, PATIENCE) {
        Ok(status) => Gateway { status: Some(status), ..Gateway::default() },
        Err(failure) => Gateway { silent: Some(failure.message), ..Gateway::default() },
    }
}

impl Gateway {
    pub const fn is_running(&self) -> bool {
        self.status.is_some()
    }

    /// Somebody accepted the connection and did not answer: it hangs, or is stopped.
    pub fn is_stuck(&self) -> bool {
        self.silent.as_deref().is_some_and(|why| why.contains(admin::client::NO_ANSWER))
    }

    pub fn pid(&self) -> Option<u64> {
        self.status.as_ref()?["pid"].as_u64()
    }

    /// The configuration file that it runs with; a relative name is from its own folder.
    pub fn config_file(&self) -> Option<PathBuf> {
        let name = PathBuf::from(self.status.as_ref()?["config"].as_str()?);
        let folder = self.pid().map(|pid| PathBuf::from(format!("/proc/{pid}/cwd")));
        Some(if name.is_absolute() { name } else { folder?.join(name) })
    }

    /// Flows of workers now: on the fast road, and given to the kernel.
    pub fn flows(&self) -> Option<u64> {
        let status = self.status.as_ref()?;
        Some(status["flows_fast"].as_u64()? + status["flows_kernel"].as_u64()?)
    }

    /// Reads that file, when it can be read.
    pub fn config(&self) -> Option<Config> {
        config::load(&self.config_file()?).ok().map(|(config, _)| config)
    }

    /// What is to be known of the file that was read, when it may not be what the gateway runs with.
    pub fn doubts(&self, read: &Path) -> Option<String> {
        let running = self.config_file()?;
        if !config::is_same_file(&running, read) {
            return Some(format!("the gateway runs with another file, {}", running.display()));
        }
        let age = std::fs::metadata(read).ok()?.modified().ok()?.elapsed().ok()?.as_secs();
        let since_read = self.status.as_ref()?["config_read_s"].as_u64()?;
        (age < since_read).then(|| {
            format!(
                "{} was written after the gateway read it, and other rules may be in force: `weir reload` puts it in force",
                read.display()
            )
        })
    }

    /// States of the pools' servers, in the order of the configuration; those that the gateway does not know are up.
    pub fn pools(&self, config: &Config) -> Vec<Vec<ServerState>> {
        let state = |pool: &str, server: SocketAddr| -> Option<ServerState> {
            let pools = self.status.as_ref()?["pools"].as_array()?;
            let servers = pools.iter().find(|at| at["name"] == pool)?["servers"].as_array()?;
            let found = servers.iter().find(|at| at["address"] == server.to_string())?;
            serde_json::from_value(found["state"].clone()).ok()
        };
        let of = |pool: &config::Pool| {
            let servers = pool.spec.servers.iter();
            servers.map(|server| state(&pool.spec.name, server.addr).unwrap_or_default()).collect()
        };
        config.pools.iter().map(of).collect()
    }

    /// Asks for the connection.
    pub fn ask(&mut self, admin: &Path, question: &Question, ingress: &Ingress) {
        if !self.is_running() {
            return;
        }
        let device = ingress.wire().map(|link| link.name.clone());
        let tags = ingress.vlan.as_ref().map(|vlan| convert::vlan_tags(&vlan.sub.vlan));
        let Question { from, to, host, .. } = question.clone();
        let request = Request::Explain { from, to, device, tags, host };
        let seen = admin::client::ask(admin, request).map_err(|failure| failure.message);
        let seen = seen.and_then(|seen| serde_json::from_value(seen).map_err(|error| error.to_string()));
        match seen {
            Ok(seen) => self.seen = Some(seen),
            Err(why) => self.unseen = Some(why),
        }
    }
}

/// Answers [`Request::Explain`]. `device`: the one that the client's packets come in by, and the tags that they bear; `host`: the
/// name that it asks for.
pub fn answer(
    state: &State,
    (from, to): (SocketAddr, SocketAddr),
    (device, tags): (Option<&str>, Option<VlanTags>),
    host: Option<&str>,
) -> Seen {
    let status = state.status();
    let port = status.ports.iter().find(|port| Some(port.state.device.as_str()) == device);
    let index = device.and_then(|name| weir_sys::ethtool::index_of(name).ok());
    let is_of = |client: SocketAddr, others: [SocketAddr; 2]| {
        (client == from && others.contains(&to)) || (client == to && others.contains(&from))
    };
    let listing = state.flows();
    let flows = &listing.flows;
    // A client's port may be that of one connection to an address, and of another that was sent there.
    let goes = |flow: &&FlowView| is_of(flow.client, [flow.destination; 2]);
    let sent = |flow: &&FlowView| is_of(flow.client, [flow.server; 2]);
    let flow = flows.iter().rfind(goes).or_else(|| flows.iter().rfind(sent));
    let maps = state.steering.lock().ok().and_then(|steering| steering.as_ref().map(|s| s.maps()));
    let steered = index.zip(maps).map(|(ifindex, maps)| match maps {
        Ok(maps) => steer(&maps, &Packet { from, to, ifindex, tags }),
        Err(error) => Err(error.to_string()),
    });
    let names = state.names.lock().ok();
    let known = host.and_then(|host| names?.look(Instant::now(), host));
    Seen {
        uptime_s: status.uptime_s,
        steered,
        queues: port.map(|port| port.state.queues.clone()).unwrap_or_default(),
        lost: device.and_then(|device| state.lost().remove(device)),
        flow: flow.and_then(|flow| serde_json::to_value(flow).ok()),
        incomplete: listing.incomplete,
        addresses: known.map(|(addresses, _)| addresses.to_vec()),
    }
}

/// Looks into the maps of a program, and asks the program.
///
/// # Errors
/// The maps cannot be read.
pub fn steer(maps: &Maps, packet: &Packet) -> Result<Steered, String> {
    let look = maps.look(packet).map_err(|error| error.to_string())?;
    if look.former.is_some_and(|former| !former.is_over) {
        let why = "of what another version of weir has left, its own program decides".to_owned();
        return Ok(Steered { look, syn: Err(why.clone()), segment: Err(why) });
    }
    let [syn, segment] = [true, false].map(|opens| frame(packet, look.mac.unwrap_or_default(), opens));
    let said = Maps::ask_program(&look, packet, [&syn, &segment]);
    let [syn, segment] = match said {
        Ok(said) => said.map(|outcome| Ok(outcome.name().to_owned())),
        Err(error) => [Err(error.to_string()), Err(error.to_string())],
    };
    Ok(Steered { look, syn, segment })
}

/// Where a frame has its tags.
const TAGS: usize = 12;

/// The frame that the client's router or the client would send.
fn frame(packet: &Packet, mac: [u8; 6], opens: bool) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], mac);
    let (from, to) = (packet.from, packet.to);
    let ip = match (from.ip(), to.ip()) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
            ethernet.ipv4(from.octets(), to.octets(), 64)
        }
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => {
            ethernet.ipv6(from.octets(), to.octets(), 64)
        }
        _ => return Vec::new(),
    };
    let tcp = ip.tcp(from.port(), to.port(), 1, 4096);
    let tcp = if opens { tcp.syn() } else { tcp.ack(1) };
    let mut frame = Vec::with_capacity(tcp.size(0));
    // A vector takes everything.
    drop(tcp.write(&mut frame, &[]));
    let (outer, inner) = packet.tags.unzip();
    // The inner one first: it stands behind the other.
    for (protocol, id) in inner.flatten().into_iter().chain(outer) {
        frame.splice(TAGS..TAGS, [protocol, id].into_iter().flat_map(u16::to_be_bytes));
    }
    frame
}
