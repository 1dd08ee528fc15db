//! The devices of the ports: whether they can be ports, and what to know about them. `weir run` refuses what `weir check` finds.

use weir_core::policy::InterceptSpec;
use weir_core::vlan::Vlan;

use crate::config::{Config, Finding, Port, Severity};
use crate::exit::Failure;
use crate::host::{self, Host, LinkInfo, Paths, SubInterface, port_device, sub_interface, sysctl};

use super::convert;

/// The device of each port, which must be fit for one; and what to know about them.
///
/// # Errors
/// A device is missing or unfit; the kernel lists no devices.
pub async fn of_ports(config: &Config, host: &Host) -> Result<(Vec<LinkInfo>, Vec<String>), Failure> {
    let all = host.all_links().await.map_err(Failure::refused)?;
    let (mut links, mut warnings) = (Vec::new(), Vec::new());
    for port in &config.ports {
        let refused = |why: &dyn std::fmt::Display| Failure::refused(format!("{}: {why}", port.origin));
        let link = host.link_info(&port.device).await.map_err(|error| refused(&error))?;
        for (severity, why) in judge(config, port, &link, &all) {
            match severity {
                Severity::Error => return Err(refused(&why)),
                Severity::Warning => warnings.push(why),
            }
        }
        links.push(link);
    }
    Ok((links, warnings))
}

/// The same for a file that is checked: of devices that there are, since it may be meant for another machine.
pub fn findings(config: &Config) -> Vec<Finding> {
    let links = Paths::of_this_namespace()
        .and_then(|paths| host::wait(async { Host::open(paths)?.all_links().await }))
        .unwrap_or_default();
    let mut found = Vec::new();
    for port in &config.ports {
        if let Some(link) = links.iter().find(|link| link.name == port.device) {
            let told = judge(config, port, link, &links);
            found.extend(told.into_iter().map(|(severity, why)| finding(port, severity, why)));
        }
    }
    found
}

fn judge(config: &Config, port: &Port, link: &LinkInfo, all: &[LinkInfo]) -> Vec<(Severity, String)> {
    let (unfit, warning) = match convert::has_fast_road(config) {
        true => (port_device::unfit(link, all), port_device::warning(link, all)),
        false => (port_device::unfit_for_relay(link, all, &sysctl::bridge_calls()), None),
    };
    let unfit = unfit.map(|unfit| (Severity::Error, unfit.to_string()));
    let vlans = vlans(config, port, all)
        .into_iter()
        .map(|(what, why)| format!("device {}: {what}: {why}", link.name));
    let warnings = warning.into_iter().chain(vlans).map(|warning| (Severity::Warning, warning));
    unfit.into_iter().chain(warnings).collect()
}

/// VLANs of a port that are there and of no intercept, and those that an intercept names and that are not there: what it is, and
/// what comes of it.
pub fn vlans(config: &Config, port: &Port, all: &[LinkInfo]) -> Vec<(String, String)> {
    let Some((id, _)) = config.port(&port.name) else { return Vec::new() };
    let all = sub_interface::of_ports(&convert::ports(config), all);
    let there: Vec<&SubInterface> = all.iter().filter(|sub| sub.port == id).collect();
    let from_here: Vec<&InterceptSpec> = config.intercepts.iter().filter(|i| i.from.contains(id)).collect();
    let is_nobodys = |sub: &&&SubInterface| !from_here.iter().any(|i| i.vlan.takes(Some(&sub.vlan)));
    let nobodys: Vec<&str> = there.iter().filter(is_nobodys).map(|sub| sub.link.name.as_str()).collect();
    let mut told = Vec::new();
    if !nobodys.is_empty() && !from_here.is_empty() {
        told.push((
            format!("what comes tagged, to {}, is of no intercept", nobodys.join(", ")),
            "the kernel forwards it; `vlan` in an [[intercept]] names what is to be intercepted".to_owned(),
        ));
    }
    for intercept in from_here {
        let single = intercept
            .vlan
            .ids
            .iter()
            .filter(|ids| ids.start() == ids.end())
            .map(|ids| Vlan::new(*ids.start()));
        let stacked = intercept.vlan.stacked.iter().map(|(outer, inner)| Vlan::stacked(*outer, *inner));
        let is_there = |vlan: &Vlan| {
            let ids = |vlan: &Vlan| (vlan.outer.id, vlan.inner.map(|inner| inner.id));
            there.iter().any(|sub| ids(&sub.vlan) == ids(vlan))
        };
        let missing: Vec<String> =
            single.chain(stacked).filter(|vlan| !is_there(vlan)).map(|vlan| vlan.to_string()).collect();
        if !missing.is_empty() {
            told.push((
                format!("intercept {} names VLANs that have no sub-interface on it: {}", intercept.name, missing.join(", ")),
                "nothing of these is intercepted until there is one with addresses of its own (ip link add link DEVICE name \
                 DEVICE.10 type vlan id 10)"
                    .to_owned(),
            ));
        }
    }
    told
}

fn finding(port: &Port, severity: Severity, message: String) -> Finding {
    let (file, line) = port.origin.rsplit_once(':').unwrap_or((&port.origin, ""));
    Finding { severity, file: file.to_owned(), line: line.parse().ok(), column: None, message }
}
