//! What `weir explain` says before a connection is what the connection then does, and what the kernel's own tools say.

mod changed;
mod down;
mod firewalls;
mod living;
mod roads;

use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use serde_json::Value;
use weir_control::demo::client;
use weir_control::demo::stage::Family;

use crate::world::World;

/// One explanation.
#[derive(Debug)]
pub struct Explained(Value);

impl Explained {
    pub fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or("")
    }

    fn road(&self) -> &str {
        self.text("road")
    }

    /// The answers of a layer, in order; each with its question and details.
    pub fn steps(&self, layer: &str) -> std::vec::IntoIter<&Value> {
        let steps = self.0["steps"].as_array().expect("a list of steps");
        steps.iter().filter(|step| step["layer"] == layer).collect::<Vec<_>>().into_iter()
    }

    /// The answer to the question of a layer that has these words.
    #[track_caller]
    pub fn answer(&self, layer: &str, question: &str) -> &str {
        let found = self.steps(layer).find(|step| step["question"].as_str().unwrap().contains(question));
        let found = found.unwrap_or_else(|| panic!("{layer} is not asked {question:?}: {:#}", self.0));
        found["answer"].as_str().expect("text")
    }

    #[track_caller]
    pub fn assert_says(&self, road: &str, words: &[&str]) {
        assert_eq!(self.road(), road, "{:#}", self.0);
        for word in words {
            assert!(
                self.text("reason").contains(word),
                "no {word:?} in: {}\n{:#}",
                self.text("reason"),
                self.0
            );
        }
    }

    /// Why it is not intercepted, or arrives locally: the answer, the mend and the chain, as one text.
    #[track_caller]
    fn because(&self, key: &str) -> String {
        let because = &self.0[key];
        assert!(because.is_object(), "no {key}: {:#}", self.0);
        because.to_string()
    }
}

/// `weir explain -c FILE --from FROM --to TO --json MORE`, in the gateway. It must be answered.
#[track_caller]
pub fn explain(world: &World<'_>, from: SocketAddr, to: SocketAddr, more: &[&str]) -> Explained {
    let mut command = world.weir.command("explain");
    command.args(["--json", "--from", &from.to_string(), "--to", &to.to_string()]).args(more);
    let told = world.weir.finish(command);
    assert_eq!(told.code(), 0, "{told:?}");
    Explained(serde_json::from_str(&told.output).unwrap_or_else(|error| panic!("{error}: {told:?}")))
}

/// As a table, for people.
#[track_caller]
fn told(world: &World<'_>, from: SocketAddr, to: SocketAddr, more: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(["explain", "--admin", "/run/weir/admin.sock"]);
    command.args(["--from", &from.to_string(), "--to", &to.to_string()]).args(more);
    let told = world.weir.finish(command);
    assert_eq!(told.code(), 0, "{told:?}");
    told.output
}

/// A client of a port that was asked about.
#[track_caller]
fn connect(world: &World<'_>, from: SocketAddr, to: SocketAddr) -> TcpStream {
    client::connect(&world.lab.client, from, to).expect("the client can connect")
}

/// JSON that a tool prints in the gateway.
fn json(world: &World<'_>, line: &str) -> Value {
    let text = world.sh(&world.lab.gateway, line);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
}

/// `ip -j route get`, of a packet of the connection that comes in by a device.
fn route_get(world: &World<'_>, iif: &str, mark: u32, from: SocketAddr, to: SocketAddr) -> Value {
    let mark = if mark == 0 { String::new() } else { format!("mark {mark:#x}") };
    let (f, t) = (from.ip(), to.ip());
    let (sport, dport) = (from.port(), to.port());
    let line = format!(
        "ip -j -d route get fibmatch {t} from {f} iif {iif} {mark} ipproto tcp sport {sport} dport {dport}"
    );
    json(world, &line)[0].clone()
}

/// Plain forwarding, as iproute2 has it.
#[track_caller]
fn assert_plain_route(world: &World<'_>, explained: &Explained, from: SocketAddr, to: SocketAddr) {
    let tool = route_get(world, "lan0", 0, from, to);
    let answer = explained.answer("route", "without a mark");
    let device = tool["dev"].as_str().unwrap_or("lo");
    assert!(answer.contains(&format!("dev {device} ")), "{answer}; {tool}");
    let prefix = tool["dst"].as_str().unwrap_or("none");
    assert!(answer.contains(prefix), "{answer}; {tool}");
    assert_eq!(answer.starts_with("local "), tool["type"] == "local", "{answer}; {tool}");
    let rule = explained.answer("rule", "without a mark");
    assert_rule(world, rule, from);
}

/// The rule is one that `ip -j rule` lists, of that table.
#[track_caller]
fn assert_rule(world: &World<'_>, rule: &str, client: SocketAddr) {
    let version = if client.is_ipv4() { "-4" } else { "-6" };
    let rules = json(world, &format!("ip {version} -j rule"));
    let (priority, rest) = rule.split_once(':').unwrap_or_else(|| panic!("{rule}"));
    let priority = priority.parse().ok();
    let listed = rules.as_array().unwrap().iter().find(|listed| listed["priority"].as_u64() == priority);
    let table = listed.unwrap_or_else(|| panic!("{rule}: {rules}"))["table"].as_str().unwrap();
    assert!(rest.ends_with(&format!("lookup {table}")), "{rule}: {rules}");
}

/// What is marked, as iproute2, nft and ss have it: the rule of nft, the ip rule, the local route, the listener.
#[track_caller]
fn assert_local_delivery(
    world: &World<'_>,
    explained: &Explained,
    iif: &str,
    from: SocketAddr,
    to: SocketAddr,
) {
    let tool = route_get(world, iif, 0x77, from, to);
    let answer = explained.answer("route", "with weir's mark");
    assert_eq!(tool["type"], "local", "{tool}");
    assert!(answer.starts_with("local default dev lo") && answer.contains("table 177"), "{answer}; {tool}");
    let rule = explained.answer("rule", "with weir's mark");
    assert!(rule.contains("fwmark 0x77/0xff"), "{rule}");
    assert_rule(world, rule, from);
    let words = if from.is_ipv4() { "web IPv4" } else { "web IPv6" };
    let listing = json(world, "nft -j -a list table inet weir");
    let listed = listing["nftables"].as_array().unwrap().iter().map(|object| &object["rule"]);
    let ours = listed.into_iter().find(|rule| rule["comment"] == words).expect("the rule is there");
    let nft = explained.answer("nft", "takes its SYN");
    assert!(nft.starts_with(&format!("handle {}: ", ours["handle"])), "{nft}; {ours}");
    let text = world.sh(&world.lab.gateway, "nft -a list table inet weir");
    let line = nft.split_once(": ").expect("a rule").1;
    assert!(text.lines().any(|listed| listed.trim().starts_with(line)), "{line}\n{text}");
    let listener = explained.answer("socket", "listener");
    assert!(listener.starts_with("LISTEN ") && listener.contains(":12377"), "{listener}");
    let version = if from.is_ipv4() { "-4" } else { "-6" };
    let ss = world.sh(&world.lab.gateway, &format!("ss {version} -Htlne sport = :12377"));
    let inode = listener.rsplit_once("inode ").expect("an inode").1;
    assert!(ss.contains(&format!("ino:{inode}")), "{listener}\n{ss}");
}

/// The neighbour and device of the server's next hop, as iproute2 has them.
#[track_caller]
fn assert_next_hop(world: &World<'_>, explained: &Explained, who: &str, address: std::net::IpAddr) {
    let answer = explained.answer("next-hop", &format!("has the {who}"));
    let device = json(world, &format!("ip -j route get {address}"))[0]["dev"].as_str().unwrap().to_owned();
    let neighbours = json(world, &format!("ip -j neigh show {address} dev {device}"));
    assert!(answer.contains(&format!("on {device}:")), "{answer}");
    if let Some(mac) = neighbours[0]["lladdr"].as_str() {
        assert!(answer.contains(mac), "{answer}; {neighbours}");
    }
}

/// Client and server of a test, by a port of its own.
fn ends(family: Family, port: u16, to: u16) -> (SocketAddr, SocketAddr) {
    (SocketAddr::new(family.addresses().client, port), family.origin(to))
}
