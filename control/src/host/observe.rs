//! What the kernel has now of what a [`HostSpec`] is about. Reads only.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};

use super::link::{LinkInfo, name_of};
use super::netlink::{Netlink, Routes};
use super::nft::{self, Ruleset, SeenTable};
use super::plan::DUMMY_ADDRESS;
use super::rule::{SeenRoute, SeenRule, table_of};
use super::spec::Family;
use super::sysctl::{self, Key, VLAN_OFFLOADS};
use super::sysctl_files::{Said, SysctlFiles};
use super::{HostError, HostSpec, PROTOCOL};

/// One moment of a host.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub ipv6: bool,
    /// All rules of both families.
    pub rules: Vec<SeenRule>,
    /// Routes in the wanted table and routes that carry weir's protocol number, of both families.
    pub routes: Vec<SeenRoute>,
    pub nft: Option<SeenTable>,
    /// What nft makes of the wanted table; only asked where there is one to compare with.
    pub nft_wanted: Option<SeenTable>,
    /// Values of the keys that matter; a key that does not exist is missing.
    pub sysctls: BTreeMap<Key, String>,
    /// What the files of sysctl.d say of these.
    pub said: BTreeMap<Key, Said>,
    /// What weir has set, and the kernel along with it, as the journal says.
    pub set: BTreeMap<Key, String>,
    pub links: Vec<LinkInfo>,
    /// Devices that have the dummy address.
    pub with_dummy_address: Vec<String>,
    /// weir's pins on the BPF file system.
    pub pins: Vec<PathBuf>,
    /// Devices whose IPv6 default route was learned from a router's advertisements, or may be yet: there is none.
    pub ra_default_routes: Vec<String>,
}

/// Asks the kernel, nft and /proc/sys. `set`: what the journal says.
///
/// # Errors
/// The kernel does not answer, nft fails, or a file cannot be read.
pub async fn observe(
    netlink: &Netlink,
    spec: &HostSpec,
    set: BTreeMap<Key, String>,
) -> Result<Observed, HostError> {
    let mut seen = Observed { ipv6: sysctl::has_ipv6(), nft: nft::read()?, set, ..Observed::default() };
    if seen.nft.as_ref().is_some_and(SeenTable::is_ours) {
        seen.nft_wanted = nft::rendered(&Ruleset::of(spec));
    }
    seen.links = netlink.links().await?.iter().map(LinkInfo::of).collect();
    for family in Family::BOTH {
        seen.rules.extend(netlink.rules(family).await?.iter().map(|m| SeenRule::of(family, m)));
        for route in netlink.routes_of(family, Routes::Table(spec.table)).await? {
            seen.routes.push(SeenRoute::of(family, &route));
        }
        let ours = netlink.routes_of(family, Routes::Protocol(PROTOCOL)).await?;
        let elsewhere = ours.iter().filter(|route| table_of(route) != spec.table);
        seen.routes.extend(elsewhere.map(|route| SeenRoute::of(family, route)));
    }
    let learned = netlink.routes_of(Family::V6, Routes::Protocol(RouteProtocol::Ra.into())).await?;
    seen.ra_default_routes.extend(learned.iter().filter_map(|route| default_device(route, &seen.links)));
    if !spec.uplinks.is_empty() && seen.ipv6 && waits_for_router(netlink).await? {
        let is_there = |device: &&String| seen.links.iter().any(|link| link.name == **device);
        let uplinks: Vec<String> = spec.uplinks.iter().filter(is_there).cloned().collect();
        seen.ra_default_routes.extend(uplinks);
    }
    for address in netlink.addresses().await? {
        if address.attributes.contains(&AddressAttribute::Local(DUMMY_ADDRESS.into())) {
            seen.with_dummy_address.extend(name_of(&seen.links, address.header.index));
        }
    }
    read_sysctls(spec, &mut seen)?;
    let files = SysctlFiles::read();
    seen.said = seen.sysctls.keys().filter_map(|key| Some((key.clone(), files.of(key)?))).collect();
    Ok(seen)
}

/// Whether the host takes routers' advertisements, since it does not forward IPv6, and has no default route of it.
async fn waits_for_router(netlink: &Netlink) -> Result<bool, HostError> {
    if Key::new("net/ipv6/conf/all/forwarding").read()?.as_deref() != Some("0") {
        return Ok(false);
    }
    let is_default = |route: &RouteMessage| {
        route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
    };
    Ok(!netlink.routes(Family::V6).await?.iter().any(is_default))
}

/// The device of a default route.
fn default_device(route: &RouteMessage, links: &[LinkInfo]) -> Option<String> {
    let index = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    index.filter(|_| route.header.destination_prefix_length == 0).and_then(|index| name_of(links, index))
}

/// The sysctls alone, which nobody announces: cheap enough to ask for every second. `set`: as of [`observe`].
///
/// # Errors
/// [`HostError::File`].
pub fn observe_sysctls(spec: &HostSpec, set: BTreeMap<Key, String>) -> Result<Observed, HostError> {
    let mut seen = Observed { ipv6: sysctl::has_ipv6(), set, ..Observed::default() };
    read_sysctls(spec, &mut seen)?;
    Ok(seen)
}

fn read_sysctls(spec: &HostSpec, seen: &mut Observed) -> Result<(), HostError> {
    for key in keys(spec, &seen.ra_default_routes, &seen.set) {
        if let Some(value) = key.read()? {
            seen.sysctls.insert(key, value);
        }
    }
    Ok(())
}

/// The sysctls among the keys, and those whose writing changes them along. `set`: as of [`observe`].
pub fn switches(spec: &HostSpec, set: &BTreeMap<Key, String>) -> Vec<Key> {
    let mut keys = keys(spec, &[], set);
    let aliases: Vec<Key> = keys.iter().filter_map(Key::alias).collect();
    keys.extend(aliases);
    keys.push(Key::of_device(6, "all", "disable_ipv6"));
    keys.retain(|key| !key.is_offload());
    keys
}

/// Keys that [`super::plan::plan`] looks at.
fn keys(spec: &HostSpec, ra: &[String], set: &BTreeMap<Key, String>) -> Vec<Key> {
    let mut keys = vec![
        Key::new("net/ipv4/ip_forward"),
        Key::new("net/ipv6/conf/all/forwarding"),
        Key::new("net/ipv4/tcp_fwmark_accept"),
        Key::of_device(4, "all", "src_valid_mark"),
        Key::of_device(4, "all", "rp_filter"),
        Key::of_device(6, "default", "disable_ipv6"),
    ];
    for device in spec.devices() {
        for name in ["forwarding", "src_valid_mark", "rp_filter", "accept_local"] {
            keys.push(Key::of_device(4, device, name));
        }
    }
    let offloads = |device: &String| VLAN_OFFLOADS.map(|name| Key::of_offload(device, name));
    keys.extend(spec.trunks.iter().flat_map(offloads));
    keys.extend(spec.steered.iter().flat_map(|device| Key::of_merging(device)));
    keys.extend(spec.tuns().map(|device| Key::of_device(6, device, "disable_ipv6")));
    keys.extend(ra.iter().map(|device| Key::of_device(6, device, "accept_ra")));
    keys.extend(set.keys().filter(|key| key.is_accept_ra()).cloned());
    keys
}
