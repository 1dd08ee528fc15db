//! The sysctls that a plan is about, and how each stands.
//!
//! | status | what it means of a sysctl |
//! | --- | --- |
//! | present | it is as weir needs it, by weir or by nobody who is known |
//! | foreign | it is as weir needs it, and a file of sysctl.d says so: it stays when weir goes |
//! | missing | it is not, and nobody is known to want that |
//! | conflicting | it is not, since somebody changed what weir had set, or a file of sysctl.d says otherwise |

use std::collections::BTreeSet;

use super::{Action, Status, Step};
use crate::host::HostSpec;
use crate::host::observe::Observed;
use crate::host::sysctl::{Key, MERGING_OFFLOADS, VLAN_OFFLOADS};

/// Everything that weir needs of sysctls, in the order in which it is set.
pub(crate) fn sysctl_steps(spec: &HostSpec, seen: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    let value = |key: &Key| seen.sysctls.get(key).map(String::as_str);
    let mut want = |key: Key, wanted: &str, satisfied: bool| {
        let (status, note) = state(&key, wanted, satisfied, seen);
        let device = value(&key).is_none().then(|| key.device().map(str::to_owned)).flatten();
        let mut step = Step::new(Action::SetSysctl { key, value: wanted.to_owned() }, status);
        step.note = note;
        if let Some(device) = device {
            step.wait_for(&device, seen);
        }
        steps.push(step);
    };
    let forward = Key::new("net/ipv4/ip_forward");
    let forwarding = value(&forward) == Some("1");
    want(forward, "1", forwarding);
    for device in spec.devices() {
        // Writing ip_forward sets every device's own switch, so it matters only where somebody has turned one off since.
        let key = Key::of_device(4, device, "forwarding");
        if forwarding && value(&key) == Some("0") {
            want(key, "1", false);
        }
    }
    if seen.ipv6 {
        for key in accept_ra(seen) {
            let kept = value(&key) == Some("2");
            want(key, "2", kept);
        }
        let key = Key::new("net/ipv6/conf/all/forwarding");
        let on = value(&key).is_some_and(|v| v != "0");
        want(key, "1", on);
    }
    // With it, a marked packet's source is looked up in weir's table too, and found to be local: a martian.
    for device in std::iter::once("all").chain(spec.devices().map(String::as_str)) {
        let key = Key::of_device(4, device, "src_valid_mark");
        if value(&key).is_some_and(|v| v != "0") {
            want(key, "0", false);
        }
    }
    // The value in force is the larger of `all` and the device's own; 2 on the device is loose whatever `all` says.
    let all = value(&Key::of_device(4, "all", "rp_filter")).unwrap_or("0");
    for device in spec.tuns() {
        let key = Key::of_device(4, device, "rp_filter");
        let loose = value(&key).is_some_and(|own| own.max(all) != "1");
        want(key, "2", loose);
    }
    // A device is born as `default` says: the kernel would drop what is written into it.
    let born = value(&Key::of_device(6, "default", "disable_ipv6")).unwrap_or("0");
    for device in spec.tuns().filter(|_| seen.ipv6) {
        let key = Key::of_device(6, device, "disable_ipv6");
        let now = value(&key);
        if born != "0" || now.is_some_and(|now| now != "0") {
            want(key, "0", now == Some("0"));
        }
    }
    // What is not in the frame the XDP program cannot see, and would take for what has no tag; and merged segments are no frame.
    for key in offloads(spec).filter(|key| value(key) == Some("on")) {
        want(key, "off", false);
    }
    // What weir sends from the gateway's own address comes out of this device when the kernel has to find the next hop.
    for device in spec.punt_tun.iter().filter(|_| spec.gateway_source) {
        let key = Key::of_device(4, device, "accept_local");
        let on = value(&key) == Some("1");
        want(key, "1", on);
    }
    steps
}

/// Switches of devices whose IPv6 default route came by a router's advertisements, or has yet to, and would go when forwarding is switched
/// on, or never come: the kernel then deletes such routes and takes no further advertisements, but where accept_ra is 2 already
/// (net/ipv6/route.c, __rt6_purge_dflt_routers; include/net/ipv6.h, ipv6_accept_ra). Where it is 0 the kernel has taken none: the route is
/// another program's, and stays. What weir has set is wanted for as long as nobody wants no advertisements at all.
fn accept_ra(seen: &Observed) -> BTreeSet<Key> {
    let value = |key: &Key| seen.sysctls.get(key).map(String::as_str);
    let off = value(&Key::new("net/ipv6/conf/all/forwarding")) == Some("0");
    let learned = seen.ra_default_routes.iter().map(|device| Key::of_device(6, device, "accept_ra"));
    let in_danger = learned.filter(|key| off && value(key) == Some("1"));
    let set = seen.set.keys().filter(|key| key.is_accept_ra() && matches!(value(key), Some("1" | "2")));
    in_danger.chain(set.cloned()).collect()
}

/// Offloads that must be off, in the order in which they are switched.
fn offloads(spec: &HostSpec) -> impl Iterator<Item = Key> {
    let tags = spec.trunks.iter().flat_map(|device| VLAN_OFFLOADS.map(|name| Key::of_offload(device, name)));
    let merging =
        spec.steered.iter().flat_map(|device| MERGING_OFFLOADS.map(|of| Key::of_offload(device, of.name)));
    tags.chain(merging)
}

/// How a sysctl stands that should be `wanted`, and what to know.
fn state(key: &Key, wanted: &str, satisfied: bool, seen: &Observed) -> (Status, Option<String>) {
    let Some(now) = seen.sysctls.get(key) else {
        return (if satisfied { Status::Present } else { Status::Missing }, None);
    };
    let (said, set) = (seen.said.get(key), seen.set.get(key));
    let differs = || (now != wanted).then(|| format!("now {now}"));
    match (said, set) {
        (Some(said), None) if satisfied && said.value == *now => {
            (Status::Foreign, Some(format!("{} says {now}: left as it is", said.place)))
        }
        (Some(said), _) if satisfied && said.value != wanted && said.value != *now => {
            let back = format!(
                "{} says {}: so it is again after a reboot, or `sysctl --system`",
                said.place, said.value
            );
            (Status::Present, Some(back))
        }
        _ if satisfied => (Status::Present, differs()),
        (Some(said), _) if said.value == *now => {
            let text = format!(
                "now {now}, as {} says: change it there too, or it is so again after a reboot",
                said.place
            );
            (Status::Conflicting, Some(text))
        }
        (_, Some(set)) if set != now => {
            let text = format!("now {now}: weir had set it to {set}, and somebody has changed it since");
            (Status::Conflicting, Some(text))
        }
        _ => (Status::Missing, differs()),
    }
}
