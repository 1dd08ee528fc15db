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
use crate::lists::{Kind, List, Stamp};
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
        config::load_leniently(&self.config_file()?).ok().map(|(config, _)| config)
    }

    /// What is to be known of the file that was read, when it may not be what the gateway runs with.
    pub fn doubts(&self, read: &Config) -> Option<String> {
        let (running, file) = (self.config_file()?, read.file.display());
        if !config::is_same_file(&running, &read.file) {
            return Some(format!("the gateway runs with another file, {}", running.display()));
        }
        let in_force = self.status.as_ref()?.get("config_stamp")?;
        (Stamp::deserialize(in_force).ok() != read.stamp).then(|| {
            format!(
                "{file} was written or replaced after the gateway read it, and other rules may be in force: `weir reload` puts it in force"
            )
        })
    }

    /// Why the gateway may have other contents in force than what was read of a list.
    pub fn doubts_list(&self, config: &Config, read: &List) -> Option<String> {
        let kind = read.content.kind();
        let in_force = Stamp::deserialize(self.list(config, &read.path, kind)?.get("stamp")?).ok()?;
        let news = || {
            "was written or replaced after the gateway read it, which it does anew within a second".to_owned()
        };
        (in_force != read.stamp()).then(|| self.warning(config, &read.path, kind).unwrap_or_else(news))
    }

    /// What the gateway says of a list whose file is not in force.
    pub fn warning(&self, config: &Config, path: &Path, kind: Kind) -> Option<String> {
        self.list(config, path, kind)?["warning"].as_str().map(str::to_owned)
    }

    /// What it says of a list of its file, by the name that the list has there; none where it runs with another file.
    pub fn list(&self, config: &Config, path: &Path, kind: Kind) -> Option<&Value> {
        if !config::is_same_file(&self.config_file()?, &config.file) {
            return None;
        }
        let status = self.status.as_ref()?;
        let folder = Path::new(status["config"].as_str()?).parent();
        let is_it = |list: &&Value| {
            let file = list["file"].as_str().map(Path::new);
            let is_same =
                file.is_some_and(|file| name_in(file, folder) == name_in(path, config.file.parent()));
            is_same && list["kind"] == kind.nouns()
        };
        status["lists"].as_array()?.iter().find(is_it)
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

/// As the configuration in that folder names a file.
fn name_in<'p>(path: &'p Path, folder: Option<&Path>) -> &'p Path {
    folder.and_then(|folder| path.strip_prefix(folder).ok()).unwrap_or(path)
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

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    const TEXT: &str = "[[port]]\nname = \"lan\"\ndevice = \"a\"\n[[intercept]]\nname = \"web\"\nfrom = \"lan\"\n\
        to = [\"0.0.0.0/0\", \"::/0\"]\ntcp = 443\nrules = [{ host_file = \"names.txt\", action = \"drop\" }]\n";

    /// A gateway that has this in force.
    fn running(config: &Config, warning: Option<&str>) -> Gateway {
        let list = &config.lists[0];
        let list = json!({ "file": list.path, "kind": "names", "stamp": list.stamp(), "warning": warning });
        let status = json!({ "config": config.file, "config_stamp": config.stamp, "lists": [list] });
        Gateway { status: Some(status), ..Gateway::default() }
    }

    #[test]
    fn what_is_on_disk_is_doubted_when_it_is_not_what_was_read() {
        let folder = std::env::temp_dir().join(format!("weir-explain-{}-disk", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (file, names) = (folder.join("weir.toml"), folder.join("names.txt"));
        // Older than all that is in force, as a file that was prepared and then put in place.
        let new = folder.join("new.toml");
        fs::write(&new, TEXT).unwrap();
        fs::write(&file, TEXT).unwrap();
        fs::write(&names, "old.example\n").unwrap();
        let read = || config::load_leniently(&file).unwrap_or_else(|report| panic!("{report}")).0;
        let in_force = read();
        let gateway = running(&in_force, None);
        assert_eq!(gateway.doubts(&in_force), None);
        assert_eq!(gateway.doubts_list(&in_force, &in_force.lists[0]), None);

        fs::rename(&new, &file).unwrap();
        assert!(gateway.doubts(&read()).unwrap().contains("other rules may be in force"));
        fs::write(&names, "").unwrap();
        let now = read();
        let doubt = gateway.doubts_list(&now, &now.lists[0]).unwrap();
        assert!(doubt.contains("after the gateway read it"), "{doubt}");
        let refused = running(&in_force, Some("is empty; the 1 names of before stay in force"));
        let doubt = refused.doubts_list(&now, &now.lists[0]).unwrap();
        assert_eq!(doubt, "is empty; the 1 names of before stay in force");
        fs::remove_dir_all(&folder).unwrap();
    }
}
