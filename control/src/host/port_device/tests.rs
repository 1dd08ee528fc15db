//! Devices as the kernel tells them: RTM_NEWLINK messages, laid out as in linux/if_link.h.

use rtnetlink::packet_core::Parseable as _;
use rtnetlink::packet_route::link::LinkMessage;

use super::*;

const ARPHRD_ETHER: u16 = 1;
const ARPHRD_TUNNEL: u16 = 768;
const ARPHRD_NONE: u16 = 0xfffe;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const NESTED: u16 = 0x8000;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut octets = (4 + value.len() as u16).to_ne_bytes().to_vec();
    octets.extend(kind.to_ne_bytes());
    octets.extend(value);
    octets.resize(octets.len().next_multiple_of(4), 0);
    octets
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, format!("{value}\0").as_bytes())
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_ne_bytes())
}

/// What IFLA_LINKINFO holds.
fn info(attributes: &[Vec<u8>]) -> Vec<u8> {
    attribute(IFLA_LINKINFO | NESTED, &attributes.concat())
}

fn kind(kind: &str) -> Vec<u8> {
    info(&[text(IFLA_INFO_KIND, kind)])
}

fn link_of(index: u32, layer: u16, flags: u32, name: &str, more: &[Vec<u8>]) -> LinkInfo {
    let mut octets = vec![0, 0];
    octets.extend(layer.to_ne_bytes());
    octets.extend(index.to_ne_bytes());
    octets.extend(flags.to_ne_bytes());
    octets.extend([0; 4]);
    octets.extend(text(IFLA_IFNAME, name));
    octets.extend(more.concat());
    LinkInfo::of(&LinkMessage::parse(&octets).expect("a message"))
}

fn ethernet(index: u32, name: &str, more: &[Vec<u8>]) -> LinkInfo {
    link_of(index, ARPHRD_ETHER, 0x1_1043, name, more)
}

/// `ip link add link eth0 name eth0.10 type vlan id 10`
fn vlan(index: u32, name: &str, below: u32) -> LinkInfo {
    const IFLA_VLAN_ID: u16 = 1;
    const IFLA_VLAN_FLAGS: u16 = 2;
    const IFLA_VLAN_PROTOCOL: u16 = 5;
    let data = [
        attribute(IFLA_VLAN_PROTOCOL, &[0x81, 0x00]),
        attribute(IFLA_VLAN_ID, &10u16.to_ne_bytes()),
        attribute(IFLA_VLAN_FLAGS, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
    ];
    let vlan = info(&[text(IFLA_INFO_KIND, "vlan"), attribute(IFLA_INFO_DATA | NESTED, &data.concat())]);
    ethernet(index, name, &[number(IFLA_LINK, below), vlan])
}

/// `ip link add bond0 type bond mode 802.3ad`
fn bond(index: u32) -> LinkInfo {
    const IFLA_BOND_MODE: u16 = 1;
    const IFLA_BOND_MIIMON: u16 = 3;
    let data = [attribute(IFLA_BOND_MODE, &[4]), number(IFLA_BOND_MIIMON, 100)];
    let bond = info(&[text(IFLA_INFO_KIND, "bond"), attribute(IFLA_INFO_DATA | NESTED, &data.concat())]);
    ethernet(index, "bond0", &[bond])
}

/// `ip link set eth0 master ...`
fn member(kind: &str, of: u32) -> LinkInfo {
    const IFLA_BOND_SLAVE_STATE: u16 = 1;
    let data = if kind == "bond" { attribute(IFLA_BOND_SLAVE_STATE, &[0]) } else { Vec::new() };
    let info = info(&[text(IFLA_INFO_SLAVE_KIND, kind), attribute(IFLA_INFO_SLAVE_DATA | NESTED, &data)]);
    ethernet(2, "eth0", &[number(IFLA_MASTER, of), info])
}

/// The sentence for a device that is refused.
#[track_caller]
fn refused(link: &LinkInfo, links: &[LinkInfo]) -> String {
    unfit(link, links).unwrap_or_else(|| panic!("{} is taken for a port", link.name)).to_string()
}

#[test]
fn stacked_devices_are_refused_with_what_to_do() {
    for (link, what, instead) in [
        (vlan(9, "eth0.10", 2), "is a VLAN sub-interface", "vlan = [10]"),
        (bond(9), "is a bond", "members"),
        (ethernet(9, "team0", &[kind("team")]), "is a team", "members"),
        (ethernet(9, "br0", &[kind("bridge")]), "is a bridge", "weir routes"),
        (ethernet(9, "mv0", &[number(IFLA_LINK, 2), kind("macvlan")]), "is a macvlan", "below it"),
        (ethernet(9, "mt0", &[number(IFLA_LINK, 2), kind("macvtap")]), "is a macvtap", "below it"),
        (ethernet(9, "iv0", &[number(IFLA_LINK, 2), kind("ipvlan")]), "is an ipvlan", "below it"),
        (ethernet(9, "vx0", &[kind("vxlan")]), "is a VXLAN", "end the tunnel"),
        (link_of(9, ARPHRD_NONE, 0x1_00c1, "wg0", &[kind("wireguard")]), "a tunnel (wireguard)", "relay"),
        (link_of(9, ARPHRD_TUNNEL, 0xc1, "tunl0", &[kind("ipip")]), "a tunnel (ipip)", "relay"),
        (link_of(9, ARPHRD_NONE, 0x1_10d1, "tun0", &[kind("tun")]), "a tunnel (tun)", "relay"),
        (link_of(9, 32, 0x1043, "ib0", &[]), "is not Ethernet", "relay"),
        (link_of(1, 772, 0x1_0049, "lo", &[]), "is the loopback", "clients and servers"),
        (link_of(9, ARPHRD_ETHER, 0x4c1, "vrf0", &[kind("vrf")]), "is a VRF", "main table"),
    ] {
        let why = refused(&link, &[]);
        assert!(why.starts_with(&format!("device {} ", link.name)), "{why}");
        assert!(why.contains(what) && why.contains(instead), "{why}");
    }
}

#[test]
fn devices_with_queues_of_their_own_are_ports() {
    for link in [
        ethernet(2, "eth0", &[]),
        ethernet(2, "veth0", &[number(IFLA_LINK, 7), kind("veth")]),
        ethernet(2, "tap0", &[kind("tun")]),
        ethernet(2, "sim0", &[kind("netdevsim")]),
    ] {
        assert_eq!(unfit(&link, &[]), None);
    }
}

#[test]
fn members_are_refused_by_the_name_of_what_they_belong_to() {
    for (controller, name) in [
        (bond(7), "bond0 (bond)"),
        (ethernet(7, "br0", &[kind("bridge")]), "br0 (bridge)"),
        (ethernet(7, "vrf0", &[kind("vrf")]), "vrf0 (vrf)"),
    ] {
        let kind = controller.kind.clone().unwrap_or_default();
        let found = unfit(&member(&kind, 7), std::slice::from_ref(&controller)).expect("a member");
        assert!(found.is_member && found.to_string().contains(name), "{found}");
        assert_eq!(found.mend.as_deref(), Some("ip link set dev eth0 nomaster"));
    }
    // Its datapath takes no `nomaster`; and a controller that came after the dump has no name yet.
    let ovs = ethernet(7, "ovs-system", &[kind("openvswitch")]);
    let found = unfit(&member("openvswitch", 7), &[ovs]).expect("a member");
    assert_eq!(found.mend.as_deref(), Some("ovs-vsctl del-port eth0"));
    assert!(refused(&member("bridge", 7), &[]).contains("another device"));
}

#[test]
fn what_shares_a_port_is_told() {
    let port = ethernet(2, "eth0", &[]);
    let elsewhere = ethernet(10, "iv1", &[number(IFLA_LINK, 3), kind("ipvlan")]);
    // The index of a device in another network namespace.
    let foreign =
        ethernet(11, "eth9.10", &[number(IFLA_LINK, 2), number(IFLA_LINK_NETNSID, 0), kind("ipvlan")]);
    assert_eq!(warning(&port, &[vlan(9, "eth0.10", 2), elsewhere, foreign]), None);
    let ipvlan = ethernet(12, "iv0", &[number(IFLA_LINK, 2), kind("ipvlan")]);
    let told = warning(&port, &[ipvlan]).expect("an ipvlan");
    assert!(told.contains("iv0") && told.contains("macvlan"), "{told}");
}

#[test]
fn relay_takes_any_device_but_members_and_bridges_beneath_which_the_firewall_runs() {
    let calls =
        [Key::new("net/bridge/bridge-nf-call-iptables"), Key::new("net/bridge/bridge-nf-call-ip6tables")];
    let bridge = ethernet(7, "br0", &[kind("bridge")]);
    assert_eq!(unfit_for_relay(&bridge, &[], &[]), None);
    assert_eq!(unfit_for_relay(&vlan(9, "eth0.10", 2), &[], &calls), None);
    let found = unfit_for_relay(&bridge, &[], &calls[1..]).expect("a bridge");
    assert_eq!(found.mend.as_deref(), Some("sysctl -w net.bridge.bridge-nf-call-ip6tables=0"));
    assert!(found.to_string().contains("no answer"), "{found}");
    assert!(unfit_for_relay(&member("bridge", 7), &[bridge], &[]).is_some_and(|found| found.is_member));
}
