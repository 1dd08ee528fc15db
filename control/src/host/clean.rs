//! Removes what weir installed, by its tags alone: with no configuration, after any crash, as often as one likes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;

use super::error::errno;
use super::instance;
use super::journal::Journal;
use super::link;
use super::netlink::{Netlink, Routes};
use super::nft::{self, TABLE};
use super::plan::DUMMY_ADDRESS;
use super::rule::{SeenRoute, SeenRule};
use super::spec::Family;
use super::sysctl::Key;
use super::{Host, HostError, PROTOCOL, PUNT_TUN, RELAY_TUN};

/// What was removed: as the commands that it came to, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    pub commands: Vec<String>,
}

/// How often, and after which pause, is looked whether unpinned programs are off their devices.
const DETACH_LOOKS: u32 = 50;
const DETACH_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

impl Host {
    /// What stop does: the table, then rules, routes, addresses of the TUN devices, sysctls. Whatever of it is missing is
    /// passed over. TUN devices, programs and sockets end with the process that holds them.
    ///
    /// Goes on after an error, and returns the first one at the end.
    pub async fn remove(&self) -> Result<Removed, HostError> {
        self.remove_but(false).await
    }

    async fn remove_but(&self, keep_table: bool) -> Result<Removed, HostError> {
        let mut removed = Removed::default();
        let mut first = Ok(());
        let mut keep = |result: Result<Vec<String>, HostError>| match result {
            Ok(commands) => removed.commands.extend(commands),
            Err(e) if first.is_ok() => first = Err(e),
            Err(_) => {}
        };
        if !keep_table {
            keep(remove_table());
        }
        for family in Family::BOTH {
            keep(remove_rules(&self.netlink, family).await);
        }
        for family in Family::BOTH {
            keep(remove_routes(&self.netlink, family).await);
        }
        keep(self.remove_addresses().await);
        keep(self.restore(|key| !key.is_merging()));
        keep(instance::remove_crashed(&self.paths.instance));
        first.map(|()| removed)
    }

    fn restore(&self, chosen: impl Fn(&Key) -> bool) -> Result<Vec<String>, HostError> {
        Journal::load(&self.paths.journal)?.restore(&self.paths.journal, chosen, |_| 0)
    }

    /// Has devices merge segments again. Those above come first: a device merges nothing while one above it is not to
    /// (net/core/dev.c, netdev_sync_upper_features).
    async fn restore_merging(&self) -> Result<Vec<String>, HostError> {
        let mut journal = Journal::load(&self.paths.journal)?;
        let links = link::links(&self.netlink).await?;
        let above = |key: &Key| (key.clone(), key.device().map_or(0, |device| link::above(&links, device)));
        let merging = journal.entries.iter().map(|entry| &entry.key).filter(|key| key.is_merging());
        let above: BTreeMap<Key, usize> = merging.map(above).collect();
        let above = |key: &Key| above.get(key).copied().unwrap_or_default();
        journal.restore(&self.paths.journal, Key::is_merging, above)
    }

    /// What `weir clean` does: [`Self::remove`], and what a crash or a closed failure mode left: pinned programs and maps,
    /// TUN devices without a process.
    pub async fn clean(&self) -> Result<Removed, HostError> {
        let removed = self.remove().await;
        let pins = remove_pins(&self.paths.pins);
        let tuns = self.remove_tuns().await;
        let mut removed = removed?;
        let pins = pins?;
        let merged = Journal::load(&self.paths.journal)?.has(Key::is_merging);
        if merged || !pins.is_empty() {
            self.wait_for_detachment().await?;
        }
        // No driver merges segments while it has an XDP program.
        removed.commands.extend(self.restore_merging().await?);
        removed.commands.extend(pins);
        removed.commands.extend(tuns?);
        Ok(removed)
    }

    /// The kernel takes a program off its device a few milliseconds after the link's last reference goes. Another's program
    /// stays, and the wait for it is short.
    async fn wait_for_detachment(&self) -> Result<(), HostError> {
        for _ in 0..DETACH_LOOKS {
            if link::links(&self.netlink).await?.iter().all(|link| link.xdp.is_none()) {
                break;
            }
            tokio::time::sleep(DETACH_PAUSE).await;
        }
        Ok(())
    }

    /// As [`Self::clean`], and the pins stay: the express lane goes on with what it carries, and the next weir takes it over.
    pub async fn clean_but_lane(&self) -> Result<Removed, HostError> {
        let removed = self.remove().await;
        let tuns = self.remove_tuns().await;
        let mut removed = removed?;
        removed.commands.extend(tuns?);
        Ok(removed)
    }

    /// As [`Self::clean`], and what keeps a box closed stays: the pins, and the table, whose rules drop what no listener
    /// takes. For the start of a box that fails closed, which takes both over, and for its end when nobody asked for it.
    pub async fn clean_but_closed(&self) -> Result<Removed, HostError> {
        let removed = self.remove_but(true).await;
        let tuns = self.remove_tuns().await;
        let mut removed = removed?;
        removed.commands.extend(tuns?);
        Ok(removed)
    }

    async fn remove_tuns(&self) -> Result<Vec<String>, HostError> {
        let mut done = Vec::new();
        for link in link::links(&self.netlink).await? {
            // Somebody may have named another kind of device so.
            if is_tun_name(&link.name) && link.kind.as_deref() == Some("tun") {
                let command = format!("ip link del {}", link.name);
                let deleted = self.netlink.handle().link().del(link.ifindex).execute().await;
                refused(deleted, &command)?;
                done.push(command);
            }
        }
        Ok(done)
    }

    async fn remove_addresses(&self) -> Result<Vec<String>, HostError> {
        let links = link::links(&self.netlink).await?;
        let mut done = Vec::new();
        for address in self.netlink.addresses().await? {
            let Some(device) = link::name_of(&links, address.header.index).filter(|n| is_tun_name(n)) else {
                continue;
            };
            if address.attributes.contains(&AddressAttribute::Local(DUMMY_ADDRESS.into())) {
                let command = format!("ip addr del {DUMMY_ADDRESS}/32 dev {device}");
                refused(self.netlink.handle().address().del(address).execute().await, &command)?;
                done.push(command);
            }
        }
        Ok(done)
    }
}

/// Whether a weir has left something pinned there.
pub fn is_pinned(pins: &Path) -> bool {
    fs::read_dir(pins).is_ok_and(|mut folder| folder.next().is_some())
}

fn is_tun_name(name: &str) -> bool {
    [RELAY_TUN, PUNT_TUN].contains(&name)
}

fn remove_table() -> Result<Vec<String>, HostError> {
    match nft::read()? {
        Some(table) if table.is_ours() => {
            nft::delete()?;
            Ok(vec![format!("nft delete table {TABLE}")])
        }
        _ => Ok(Vec::new()),
    }
}

async fn remove_rules(netlink: &Netlink, family: Family) -> Result<Vec<String>, HostError> {
    let mut done = Vec::new();
    for message in netlink.rules(family).await? {
        let rule = SeenRule::of(family, &message);
        if rule.is_ours() {
            let command = rule.command("del");
            refused(netlink.handle().rule().del(message).execute().await, &command)?;
            done.push(command);
        }
    }
    Ok(done)
}

async fn remove_routes(netlink: &Netlink, family: Family) -> Result<Vec<String>, HostError> {
    let mut done = Vec::new();
    let ours = netlink.routes_of(family, Routes::Protocol(PROTOCOL)).await?;
    for message in ours.into_iter().filter(is_ours) {
        let command = SeenRoute::of(family, &message).command("del");
        refused(netlink.handle().route().del(message).execute().await, &command)?;
        done.push(command);
    }
    Ok(done)
}

fn is_ours(route: &RouteMessage) -> bool {
    u8::from(route.header.protocol) == PROTOCOL
}

/// Removes weir's own rule that looks like `rule`; as it was.
pub(crate) async fn delete_rule(
    netlink: &Netlink,
    rule: &SeenRule,
) -> Result<Option<RuleMessage>, HostError> {
    let found = netlink.rules(rule.family).await?.into_iter().find(|m| SeenRule::of(rule.family, m) == *rule);
    if let Some(message) = found.clone() {
        refused(netlink.handle().rule().del(message).execute().await, &rule.command("del"))?;
    }
    Ok(found)
}

/// Removes weir's own route that looks like `route`; as it was.
pub(crate) async fn delete_route(
    netlink: &Netlink,
    route: &SeenRoute,
) -> Result<Option<RouteMessage>, HostError> {
    let found =
        netlink.routes(route.family).await?.into_iter().find(|m| SeenRoute::of(route.family, m) == *route);
    if let Some(message) = found.clone() {
        refused(netlink.handle().route().del(message).execute().await, &route.command("del"))?;
    }
    Ok(found)
}

/// An error, unless it says that the thing is gone already.
fn refused(result: Result<(), rtnetlink::Error>, command: &str) -> Result<(), HostError> {
    let Err(error) = result else { return Ok(()) };
    let error = errno(error);
    let gone = [rustix::io::Errno::NOENT, rustix::io::Errno::SRCH, rustix::io::Errno::NODEV];
    if gone.iter().any(|g| error.raw_os_error() == Some(g.raw_os_error())) {
        return Ok(());
    }
    Err(HostError::Command { command: command.to_owned(), reason: error.to_string() })
}

/// Unpinning detaches: a pinned link is all that keeps its program attached.
fn remove_pins(folder: &Path) -> Result<Vec<String>, HostError> {
    match fs::remove_dir_all(folder) {
        Ok(()) => {
            // The folder of all namespaces, if this was the last; it does not matter when it was not.
            let _ = folder.parent().map(fs::remove_dir);
            Ok(vec![format!("rm -r {}", folder.display())])
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(HostError::file("remove", folder, e)),
    }
}
