//! What weir could have changed in a namespace, as text: links with their offloads, policy rules, all routing
//! tables, the nft ruleset and the network sysctls. Taken before and after, the two texts are compared line by line.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use futures::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::links::{refused, with_netlink};
use super::namespace::system;
use super::{LabError, Namespace};

/// Sysctls that change by themselves.
const LIVE_SYSCTLS: [&str; 2] = ["nf_conntrack_count", "tcp_fastopen_key"];

/// Describes the state of `namespace`: one line per link, rule, route, line of the nft ruleset and sysctl,
/// sorted where the kernel's order means nothing. Counters, ages and neighbours are left out.
///
/// # Errors
/// [`LabError`] when netlink refuses a dump, or `nft` is installed and fails.
pub fn host_state(namespace: &Namespace) -> Result<String, LabError> {
    namespace.run(current_state)
}

/// Like [`host_state`], of the namespace that the calling thread is in.
///
/// # Errors
/// As [`host_state`].
pub fn current_state() -> Result<String, LabError> {
    let mut lines = with_netlink(dump_netlink)?;
    lines.sort();
    lines.extend(nft_ruleset()?);
    lines.extend(offloads());
    let mut sysctls = Vec::new();
    collect_sysctls(Path::new("/proc/sys/net"), &mut sysctls);
    sysctls.sort();
    lines.append(&mut sysctls);
    Ok(lines.join("\n"))
}

/// The lines that are only in `before` (`- `) or only in `after` (`+ `), in order. Empty when they are equal.
pub fn differences(before: &str, after: &str) -> String {
    let mut text = String::new();
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    for (mark, from, other) in [("-", &old, &new), ("+", &new, &old)] {
        let mut rest = other.clone();
        for line in from {
            match rest.iter().position(|candidate| candidate == line) {
                Some(found) => drop(rest.remove(found)),
                None => _ = writeln!(text, "{mark} {line}"),
            }
        }
    }
    text
}

async fn dump_netlink(handle: Handle) -> Result<Vec<String>, LabError> {
    let mut lines = dump_links(&handle).await?;
    for (name, version) in [("IPv4", IpVersion::V4), ("IPv6", IpVersion::V6)] {
        let mut rules = handle.rule().get(version.clone()).execute();
        while let Some(rule) = rules.try_next().await.map_err(refused("list the policy rules"))? {
            let (header, attributes) = (&rule.header, &rule.attributes);
            lines.push(format!(
                "rule {name} from/{} to/{} tos {} table {} {:?} {:?} {attributes:?}",
                header.src_len, header.dst_len, header.tos, header.table, header.action, header.flags
            ));
        }
        lines.append(&mut dump_routes(&handle, name, version).await?);
    }
    Ok(lines)
}

async fn dump_links(handle: &Handle) -> Result<Vec<String>, LabError> {
    let mut lines = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(mut link) = links.try_next().await.map_err(refused("list the links"))? {
        link.attributes.retain(|attribute| !is_counter(attribute));
        let header = &link.header;
        lines.push(format!("link {} {:?} {:?}", header.index, header.flags, link.attributes));
    }
    let mut addresses = handle.address().get().execute();
    while let Some(mut address) = addresses.try_next().await.map_err(refused("list the addresses"))? {
        address.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::CacheInfo(_)));
        lines.push(format!("address {:?} {:?}", address.header, address.attributes));
    }
    Ok(lines)
}

/// What a link tells that changes with traffic or time, or that the sysctls tell as well.
fn is_counter(attribute: &LinkAttribute) -> bool {
    matches!(
        attribute,
        LinkAttribute::Stats(_)
            | LinkAttribute::Stats64(_)
            | LinkAttribute::AfSpecUnspec(_)
            | LinkAttribute::AfSpecUnknown(_)
            | LinkAttribute::CarrierChanges(_)
            | LinkAttribute::CarrierUpCount(_)
            | LinkAttribute::CarrierDownCount(_)
    )
}

async fn dump_routes(handle: &Handle, name: &str, version: IpVersion) -> Result<Vec<String>, LabError> {
    let mut lines = Vec::new();
    let mut routes = handle.route().get(route_filter(version)).execute();
    while let Some(mut route) = routes.try_next().await.map_err(refused("list the routes"))? {
        route.attributes.retain(|attribute| {
            !matches!(attribute, RouteAttribute::CacheInfo(_) | RouteAttribute::Expires(_))
        });
        let header = &route.header;
        lines.push(format!(
            "route {name} table {} /{} from/{} tos {} {:?} {:?} {:?} {:?}",
            header.table,
            header.destination_prefix_length,
            header.source_prefix_length,
            header.tos,
            header.protocol,
            header.scope,
            header.kind,
            route.attributes
        ));
    }
    Ok(lines)
}

fn route_filter(version: IpVersion) -> RouteMessage {
    match version {
        IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    }
}

/// The nft ruleset as `nft` prints it. Without `nft` on the host, weir has put nothing there either.
fn nft_ruleset() -> Result<Vec<String>, LabError> {
    let mut command = Command::new("nft");
    command.args(["--stateless", "list", "ruleset"]).stdin(std::process::Stdio::null());
    let output = match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(system("run nft"))?,
    };
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(system("list the nft ruleset")(std::io::Error::other(message)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(|line| format!("nft {line}")).collect())
}

/// What `ethtool -k` tells of every device; nothing where ethtool is not installed. XDP on one end of a veth
/// pair switches offloads of the other.
fn offloads() -> Vec<String> {
    let mut lines = Vec::new();
    for device in with_netlink(device_names).unwrap_or_default() {
        let Ok(output) = Command::new("ethtool").args(["-k", &device]).output() else { return lines };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        lines.extend(text.lines().skip(1).map(|line| format!("offload {device} {}", line.trim())));
    }
    lines
}

async fn device_names(handle: Handle) -> Result<Vec<String>, LabError> {
    let mut names = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(refused("list the links"))? {
        names.extend(link.attributes.into_iter().filter_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        }));
    }
    Ok(names)
}

fn collect_sysctls(folder: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let live = path.file_name().is_some_and(|name| LIVE_SYSCTLS.iter().any(|live| *live == name));
        if path.is_dir() {
            collect_sysctls(&path, lines);
        } else if let (false, Ok(value)) = (live, fs::read_to_string(&path)) {
            // Write-only entries (route/flush) and unset secrets cannot be read; weir does not write them.
            let name = path.strip_prefix("/proc/sys").unwrap_or(&path).display();
            lines.push(format!("sysctl {name} = {}", value.trim_end().replace('\n', " | ")));
        }
    }
}
