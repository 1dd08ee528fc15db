//! Which devices can be ports, and what of a port's traffic is taken for what it is not: a pure function of the links.
//!
//! `weir run`, `weir check` and `weir doctor` ask it, and the watch when a device comes back or changes: one list, one answer.

use std::fmt;

use super::link::LinkInfo;
use super::sysctl::Key;

/// AF_XDP has queues of real devices: what is stacked upon them is made by the kernel after XDP.
const STACKED: &str = "its frames are another device's, which has the queues for AF_XDP";
const TUNNEL: &str = "the kernel takes its packets out of other packets after XDP";
const NO_ETHERNET: &str = "its packets have no Ethernet header, and the fast road forwards Ethernet frames";
const TAKEN: &str = "what it receives is not routed by its own addresses and routes";

/// What may stand in the way of the fast road alone: the relay's connections are the kernel's, which knows all devices.
const RELAY: &str = "or write handshake = \"relay\" in every intercept, which takes any device";

/// Kinds of devices whose frames are those of other devices: the kernel's name, what they are, why not, and what to do instead.
const KINDS: [(&str, &str, &str, &str); 17] = [
    (
        "vlan",
        "a VLAN sub-interface",
        STACKED,
        "make the device below it the port, and name the VLAN in the intercepts (vlan = [10])",
    ),
    (
        "bond",
        "a bond",
        STACKED,
        "make each of its members a port with addresses of its own and route over both",
    ),
    (
        "team",
        "a team",
        STACKED,
        "make each of its members a port with addresses of its own and route over both",
    ),
    ("bridge", "a bridge", STACKED, "make its members ports with addresses of their own, since weir routes"),
    ("openvswitch", "an Open vSwitch bridge", STACKED, "make its members ports with addresses of their own"),
    ("macvlan", "a macvlan", STACKED, "name the device below it"),
    ("macvtap", "a macvtap", STACKED, "name the device below it"),
    ("ipvlan", "an ipvlan", STACKED, "name the device below it"),
    ("ipvtap", "an ipvtap", STACKED, "name the device below it"),
    ("macsec", "a MACsec device", STACKED, "end the encryption on another device"),
    ("hsr", "an HSR or PRP ring", STACKED, "end the ring on another device"),
    ("vxlan", "a VXLAN", TUNNEL, "end the tunnel on another machine"),
    ("geneve", "a GENEVE tunnel", TUNNEL, "end the tunnel on another machine"),
    ("gretap", "a GRE tunnel", TUNNEL, "end the tunnel on another machine"),
    ("ip6gretap", "a GRE tunnel", TUNNEL, "end the tunnel on another machine"),
    ("erspan", "an ERSPAN tunnel", TUNNEL, "end the tunnel on another machine"),
    ("batadv", "a mesh", TUNNEL, "end the mesh on another machine"),
];

/// Why a device can be no port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    pub device: String,
    /// Whether it belongs to another device, and is not itself of the wrong kind.
    pub is_member: bool,
    /// A predicate: "is a bridge".
    pub what: String,
    pub why: &'static str,
    pub instead: String,
    /// A command that mends it, where there is one.
    pub mend: Option<String>,
}

/// A sentence for the operator.
impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, what, why, instead, .. } = self;
        write!(f, "device {device} {what}, and can be no port: {why}; {instead}")
    }
}

/// Why a device can be no port of the fast road; `None` when it can.
pub fn unfit(link: &LinkInfo, links: &[LinkInfo]) -> Option<Unfit> {
    of_kind(link).or_else(|| of_member(link, links))
}

fn of_kind(link: &LinkInfo) -> Option<Unfit> {
    let kind = link.kind.as_deref().unwrap_or_default();
    let refused = |what: &str, why, instead: String| Unfit {
        device: link.name.clone(),
        is_member: false,
        what: format!("is {what}"),
        why,
        instead,
        mend: None,
    };
    if kind == "vrf" {
        let instead = "name its members, and put them into the main table (ip link set DEVICE nomaster)";
        return Some(refused("a VRF", "the fast road knows the main table alone", instead.to_owned()));
    }
    if let Some((_, what, why, instead)) = KINDS.iter().find(|(name, ..)| *name == kind) {
        return Some(refused(what, why, format!("{instead}, {RELAY}")));
    }
    if link.is_loopback {
        let instead = "name the devices that clients and servers are behind";
        return Some(refused("the loopback", "nothing is forwarded by it", instead.to_owned()));
    }
    (!link.is_ethernet).then(|| {
        let what = if kind.is_empty() { "not Ethernet".to_owned() } else { format!("a tunnel ({kind})") };
        refused(&what, NO_ETHERNET, format!("end the tunnel on another machine, {RELAY}"))
    })
}

/// A member of a bridge, a bond, a VRF: what it takes in is theirs.
fn of_member(link: &LinkInfo, links: &[LinkInfo]) -> Option<Unfit> {
    let index = link.controller?;
    let device = &link.name;
    let controller = links.iter().find(|other| other.ifindex == index);
    let name = controller.map_or("another device", |controller| controller.name.as_str());
    let kind = controller.and_then(|controller| controller.kind.as_deref());
    // The members of a vSwitch hang on its datapath, by a name of the kernel's.
    let mend = match kind {
        Some("openvswitch") => format!("ovs-vsctl del-port {device}"),
        _ => format!("ip link set dev {device} nomaster"),
    };
    Some(Unfit {
        device: device.clone(),
        is_member: true,
        what: format!("belongs to {name} ({})", kind.unwrap_or("of an unknown kind")),
        why: TAKEN,
        instead: format!("take it out ({mend}), or leave it out of the ports"),
        mend: Some(mend),
    })
}

/// Why a device is no good for the relay either, which takes any other kind. `calls`: the switches of [`bridge_calls`].
///
/// With these on, prerouting runs when the bridge takes a packet, and not again when the packet is the gateway's own: by then
/// the kernel has forgotten the listener that tproxy gave it.
///
/// [`bridge_calls`]: super::sysctl::bridge_calls
pub fn unfit_for_relay(link: &LinkInfo, links: &[LinkInfo], calls: &[Key]) -> Option<Unfit> {
    if link.kind.as_deref() != Some("bridge") || calls.is_empty() {
        return of_member(link, links);
    }
    let on = calls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mend = calls.iter().map(|key| key.command("0")).collect::<Vec<_>>().join(" && ");
    Some(Unfit {
        device: link.name.clone(),
        is_member: false,
        what: format!("is a bridge, and the IP firewall runs beneath bridges ({on})"),
        why: "connections that the relay takes over would get no answer",
        instead: format!("switch that off ({mend}), or name another device"),
        mend: Some(mend),
    })
}

/// Names of the devices of these kinds that are stacked upon a device.
pub fn on<'a>(link: &LinkInfo, links: &'a [LinkInfo], kinds: &[&str]) -> Vec<&'a str> {
    let is_one = |other: &&LinkInfo| {
        other.lower == Some(link.ifindex) && other.kind.as_deref().is_some_and(|kind| kinds.contains(&kind))
    };
    links.iter().filter(is_one).map(|other| other.name.as_str()).collect()
}

/// What of a port's traffic is taken for what it is not, and what comes of it: of devices with the port's own address.
pub fn shared(link: &LinkInfo, links: &[LinkInfo]) -> Option<(String, &'static str)> {
    // These bear the address of the device below them, and nothing in a frame tells them from what is routed.
    let ipvlans = on(link, links, &["ipvlan", "ipvtap"]);
    let what = format!("shares its link-layer address with {}", ipvlans.join(", "));
    let why = "connections to what is behind these are intercepted as if they were to be routed: leave their addresses out of `to`, \
               or use macvlan";
    (!ipvlans.is_empty()).then_some((what, why))
}

/// The same as a sentence.
pub fn warning(link: &LinkInfo, links: &[LinkInfo]) -> Option<String> {
    shared(link, links).map(|(what, why)| format!("device {}: {what}: {why}", link.name))
}

#[cfg(test)]
mod tests;
