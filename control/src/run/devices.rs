//! The devices of the ports: whether they can be ports, and what to know about them. `weir run` refuses what `weir check` finds.

use crate::config::{Config, Finding, Port, Severity};
use crate::exit::Failure;
use crate::host::{self, Host, LinkInfo, Paths, port_device, sysctl};

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
        for (severity, why) in judge(config, &link, &all) {
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
            let told = judge(config, link, &links);
            found.extend(told.into_iter().map(|(severity, why)| finding(port, severity, why)));
        }
    }
    found
}

fn judge(config: &Config, link: &LinkInfo, all: &[LinkInfo]) -> Vec<(Severity, String)> {
    let (unfit, warning) = match convert::has_fast_road(config) {
        true => (port_device::unfit(link, all), port_device::warning(link, all)),
        false => (port_device::unfit_for_relay(link, all, &sysctl::bridge_calls()), None),
    };
    let unfit = unfit.map(|unfit| (Severity::Error, unfit.to_string()));
    unfit.into_iter().chain(warning.map(|warning| (Severity::Warning, warning))).collect()
}

fn finding(port: &Port, severity: Severity, message: String) -> Finding {
    let (file, line) = port.origin.rsplit_once(':').unwrap_or((&port.origin, ""));
    Finding { severity, file: file.to_owned(), line: line.parse().ok(), column: None, message }
}
