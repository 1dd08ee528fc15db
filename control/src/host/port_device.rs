//! Which devices can be ports, and what of a port's traffic is not the fast road's: a pure function of the links.

use super::link::LinkInfo;

/// Kinds of devices whose frames are those of other devices, and what to do instead.
const KINDS: [(&str, &str, &str); 7] = [
    ("vlan", "a VLAN sub-interface", "give the VLAN a device of its own, or let the switch send it untagged"),
    ("bond", "a bond", "make each of its members a port with addresses of its own, and route over both"),
    ("team", "a team", "make each of its members a port with addresses of its own, and route over both"),
    ("bridge", "a bridge", "make its members ports with addresses of their own: weir routes"),
    ("macvlan", "a macvlan", "name the device below it"),
    ("ipvlan", "an ipvlan", "name the device below it"),
    ("vrf", "a VRF", "put the ports into the main table: the fast road knows no other"),
];

/// Why a device can be no port, in a sentence for the operator; `None` when it can.
///
/// AF_XDP has queues of real devices: what is stacked upon them is made by the kernel after XDP, and what a bond, a bridge or a VRF
/// takes in has left the device's own routes.
pub fn unfit(link: &LinkInfo, links: &[LinkInfo]) -> Option<String> {
    let device = &link.name;
    let kind = link.kind.as_deref().unwrap_or_default();
    if let Some((_, what, instead)) = KINDS.iter().find(|(name, ..)| *name == kind) {
        return Some(format!(
            "device {device} is {what}, and has no queues of its own for AF_XDP: {instead}"
        ));
    }
    let controller = links.iter().find(|other| Some(other.ifindex) == link.controller)?;
    let kind = controller.kind.as_deref().unwrap_or("other device");
    Some(format!(
        "device {device} belongs to the {kind} {}, which takes its frames: take it out (ip link set {device} nomaster), or leave it out \
         of the ports",
        controller.name
    ))
}

/// What to know about a device that is a port: its VLANs are forwarded, and not looked at.
pub fn warning(link: &LinkInfo, links: &[LinkInfo]) -> Option<String> {
    let is_vlan =
        |other: &&LinkInfo| other.kind.as_deref() == Some("vlan") && other.lower == Some(link.ifindex);
    let vlans: Vec<&str> = links.iter().filter(is_vlan).map(|vlan| vlan.name.as_str()).collect();
    (!vlans.is_empty()).then(|| {
        format!(
            "device {}: what comes tagged, to {}, is not intercepted: the kernel forwards it",
            link.name,
            vlans.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, name: &str, kind: Option<&str>) -> LinkInfo {
        LinkInfo { ifindex, name: name.into(), kind: kind.map(Into::into), ..LinkInfo::default() }
    }

    #[test]
    fn stacked_devices_are_refused_with_what_to_do() {
        for (kind, word) in
            [("vlan", "untagged"), ("bond", "members"), ("bridge", "weir routes"), ("macvlan", "below it")]
        {
            let why = unfit(&link(2, "dev0", Some(kind)), &[]).expect(kind);
            assert!(why.contains("dev0") && why.contains(word), "{why}");
        }
        for kind in [None, Some("veth"), Some("tun")] {
            assert_eq!(unfit(&link(2, "eth0", kind), &[]), None);
        }
    }

    #[test]
    fn members_of_a_bond_are_refused_by_its_name() {
        let links = [link(7, "bond0", Some("bond"))];
        let member = LinkInfo { controller: Some(7), ..link(2, "eth0", None) };
        let why = unfit(&member, &links).expect("a member");
        assert!(why.contains("the bond bond0") && why.contains("nomaster"), "{why}");
    }

    #[test]
    fn vlans_on_a_port_are_told() {
        let port = link(2, "eth0", None);
        let vlan = LinkInfo { lower: Some(2), ..link(9, "eth0.10", Some("vlan")) };
        let other = LinkInfo { lower: Some(3), ..link(10, "eth1.10", Some("vlan")) };
        assert_eq!(warning(&port, std::slice::from_ref(&other)), None);
        let told = warning(&port, &[vlan, other]).expect("a VLAN");
        assert!(told.contains("eth0.10") && !told.contains("eth1.10"), "{told}");
    }
}
