//! A TCP packet as nft's expressions see it.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use crate::explain::socket::Socket;

/// What is known of the packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// The device that it comes in by.
    pub iif: String,
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// It is a SYN; else one of a connection that is open.
    pub opens: bool,
    /// What `fib daddr type` says.
    pub fib: String,
    /// The connected socket of the client's leg.
    pub socket: Option<Socket>,
    /// The port of the relay's listener, if it is there.
    pub listener: Option<u16>,
}

impl Packet {
    /// What the left side of a match is for this packet; none where that is not known, `Some(None)` where it has no value, so
    /// that the rule does not match.
    pub fn value(&self, left: &Value) -> Option<Option<Value>> {
        if let Some(key) = left["meta"]["key"].as_str() {
            return self.meta(key).map(Some);
        }
        if left["fib"]["result"] == "type" && left["fib"]["flags"] == serde_json::json!(["daddr"]) {
            return Some(Some(self.fib.clone().into()));
        }
        if let Some(key) = left["socket"]["key"].as_str() {
            return self.socket(key);
        }
        let flag = if self.opens { "syn" } else { "ack" };
        if let Some(masked) = left["&"].as_array() {
            // The one flag that it has is left under every mask that holds it.
            let is_held = masked.get(1).is_some_and(|mask| has(mask, &flag.into()));
            let is_flags = masked.first().is_some_and(|of| of["payload"]["field"] == "flags");
            return (is_flags && is_held).then(|| Some(flag.into()));
        }
        let (protocol, field) = (left["payload"]["protocol"].as_str()?, left["payload"]["field"].as_str()?);
        match (protocol, field, self.to.is_ipv4()) {
            ("tcp", "dport", _) => Some(Some(self.to.port().into())),
            ("tcp", "sport", _) => Some(Some(self.from.port().into())),
            ("tcp", "flags", _) => Some(Some(flag.into())),
            ("ip", "daddr", true) | ("ip6", "daddr", false) => Some(Some(self.to.ip().to_string().into())),
            ("ip", "saddr", true) | ("ip6", "saddr", false) => Some(Some(self.from.ip().to_string().into())),
            ("ip", _, false) | ("ip6", _, true) | ("udp", ..) => Some(None),
            _ => None,
        }
    }

    fn meta(&self, key: &str) -> Option<Value> {
        Some(match key {
            "l4proto" => "tcp".into(),
            "nfproto" if self.to.is_ipv4() => "ipv4".into(),
            "nfproto" => "ipv6".into(),
            // nft prints an index as the name of the device that has it.
            "iifname" | "iif" => self.iif.clone().into(),
            "mark" => 0.into(),
            _ => return None,
        })
    }

    /// The socket match finds a connected socket, or the listener when the packet is to its very port.
    fn socket(&self, key: &str) -> Option<Option<Value>> {
        let listens = self.listener == Some(self.to.port());
        match (key, &self.socket) {
            ("transparent", Some(socket)) => {
                Some(socket.transparent.map(|transparent| u8::from(transparent).into()))
            }
            ("wildcard", Some(_)) => Some(Some(0.into())),
            ("transparent" | "wildcard", None) if listens => Some(Some(1.into())),
            ("transparent" | "wildcard", None) => Some(None),
            _ => None,
        }
    }
}

/// Whether the right side of a match has a value: a value itself, a list, a set, a range, a prefix.
pub fn has(right: &Value, value: &Value) -> bool {
    if let Some(list) = right.as_array().or_else(|| right["set"].as_array()) {
        return list.iter().any(|element| has(element, value));
    }
    if let Some([first, last]) = right["range"].as_array().map(Vec::as_slice) {
        return match (first.as_u64(), last.as_u64(), value.as_u64()) {
            (Some(first), Some(last), Some(value)) => (first..=last).contains(&value),
            _ => in_addresses(first, last, value),
        };
    }
    if let (Some(address), Some(length)) = (right["prefix"]["addr"].as_str(), right["prefix"]["len"].as_u64())
    {
        let net: Option<ipnet::IpNet> = format!("{address}/{length}").parse().ok();
        return net.zip(address_of(value)).is_some_and(|(net, address)| net.contains(&address));
    }
    match (address_of(right), address_of(value)) {
        (Some(right), Some(value)) => right == value,
        _ => right == value,
    }
}

fn in_addresses(first: &Value, last: &Value, value: &Value) -> bool {
    match (address_of(first), address_of(last), address_of(value)) {
        (Some(first), Some(last), Some(value)) => first <= value && value <= last,
        _ => false,
    }
}

fn address_of(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}
