//! Follows routes, neighbours, links, addresses and rules, and tells the caller what became of them.
//!
//! `weir run` starts one watch and turns its events into snapshots for the workers. The loop: hear that something of a kind
//! changed, wait a moment for the rest of the burst, dump that kind, compare, tell. A picture is thus at most
//! [`Options::settle`] and a dump old; where dumps cost much (full tables), the loop leaves the kernel four times their CPU time
//! in peace.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tracing::warn;
use weir_core::fib::Fib;
use weir_core::ids::PortId;

use super::HostError;
use super::culprit::Removal;
use super::effort::Effort;
use super::keepalive::Keepalive;
use super::link::{self, LinkInfo};
use super::netlink::Netlink;
use super::nexthops::Objects;
use super::notify::{Changed, Notifications};
use super::picture::{Dumps, OwnAddresses, Picture, picture};
use super::rule::SeenRule;
use super::spec::Family;
use super::sub_interface::{Numbers, SubInterface};

/// Events that may wait for the caller; while it does not take them, the watch waits too, and later pictures replace none.
const QUEUE: usize = 64;

/// How long to wait before a failed dump is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// Something changed.
#[derive(Clone, Debug)]
pub enum HostEvent {
    /// Routes, neighbours, or what the ports are like.
    Fib(Arc<Fib>),
    /// VLANs of the ports by their numbers in the fast road, after the routes that know them.
    Vlans(Arc<[(PortId, SubInterface)]>),
    /// What must never be intercepted.
    Own(Arc<OwnAddresses>),
    Port {
        port: PortId,
        device: String,
        change: PortChange,
    },
    /// All that should be known now about rules that the fast road does not follow; empty when there is nothing any more.
    Warnings(Vec<String>),
    /// Somebody (a network manager, `nft flush ruleset`) changed rules, routes, addresses, tables, programs or forwarding, perhaps
    /// weir's own: `apply` again, which changes nothing when nothing is missing. weir's own changes are announced like anybody's.
    /// With it comes who removed something of weir's, as far as the kernel told.
    KernelSideTouched(Vec<Removal>),
    /// The kernel does not answer any more: the last picture stays, and the watch has ended.
    Ended(String),
}

/// What happened to a port's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortChange {
    /// There is a device of the port's name; another one than before if there was one before.
    Appeared {
        link: LinkInfo,
        /// Why it can be no port of the fast road.
        unfit: Option<String>,
    },
    Up,
    Down,
    /// Its address or MTU is another.
    Changed(LinkInfo),
    /// It has become unfit for a port, and why; or it is fit again.
    Fitness(Option<String>),
    Removed,
}

/// Times, all with a production default.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long after a first change the kernel is asked.
    pub settle: Duration,
    /// How often stale neighbours are asked about.
    pub keepalive: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { settle: Duration::from_millis(5), keepalive: Duration::from_secs(15) }
    }
}

/// A running watch; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Starts watching. `ports`: identity and device of each, in the order of their identities. The first events tell
    /// everything that is there. Must be called on a tokio runtime, whose thread stays in this network namespace.
    ///
    /// Errors: the kernel gives no netlink sockets.
    pub fn start(
        ports: Vec<(PortId, String)>,
        options: Options,
    ) -> Result<(Self, mpsc::Receiver<HostEvent>), HostError> {
        // Subscribed before the first dump: what changes in between is heard.
        let notifications = Notifications::subscribe()?;
        let netlink = Netlink::open()?;
        let (events, receiver) = mpsc::channel(QUEUE);
        let watcher = Watcher {
            netlink,
            ports,
            options,
            events,
            dumps: Dumps::default(),
            picture: None,
            keepalive: Keepalive::default(),
            numbers: Numbers::default(),
        };
        Ok((Self { task: tokio::spawn(watcher.run(notifications)) }, receiver))
    }
}

struct Watcher {
    netlink: Netlink,
    ports: Vec<(PortId, String)>,
    options: Options,
    events: mpsc::Sender<HostEvent>,
    dumps: Dumps,
    picture: Option<Picture>,
    keepalive: Keepalive,
    numbers: Numbers,
}

impl Watcher {
    async fn run(mut self, mut notifications: Notifications) {
        let mut changed = Changed { host: false, ..Changed::ALL };
        let mut due = Instant::now();
        let mut quiet_until = due;
        let mut keepalive = interval(self.options.keepalive);
        keepalive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        keepalive.tick().await;
        loop {
            tokio::select! {
                heard = notifications.next() => match heard {
                    Ok(news) => {
                        if !changed.any() {
                            due = (Instant::now() + self.options.settle).max(quiet_until);
                        }
                        changed.add(news.changed);
                        self.own_at_once(&news.added).await;
                        // Before any dump: full tables take seconds.
                        if !news.removals.is_empty() {
                            let _ = self.events.send(HostEvent::KernelSideTouched(news.removals)).await;
                        }
                    }
                    Err(error) => {
                        let _ = self.events.send(HostEvent::Ended(error.to_string())).await;
                        return;
                    }
                },
                () = sleep_until(due.into()), if changed.any() => {
                    let these = std::mem::take(&mut changed);
                    match self.refresh(these).await {
                        Ok(cost) => quiet_until = Instant::now() + 4 * cost,
                        Err(error) => {
                            warn!(%error, "asking the kernel again");
                            changed.add(these);
                            due = Instant::now() + RETRY;
                        }
                    }
                },
                _ = keepalive.tick() => {
                    if let Some(picture) = &self.picture {
                        self.keepalive.round(&self.netlink, picture).await;
                    }
                },
                () = self.events.closed() => return,
            }
        }
    }

    /// Tells of new addresses before anything is asked: clients may connect to them at once.
    async fn own_at_once(&mut self, added: &[IpAddr]) {
        let Some(picture) = &mut self.picture else { return };
        let mut own = OwnAddresses::clone(&picture.own);
        let known = own.addresses.len();
        own.addresses.extend(added);
        own.addresses.sort_unstable();
        own.addresses.dedup();
        if own.addresses.len() > known {
            picture.own = Arc::new(own);
            let _ = self.events.send(HostEvent::Own(picture.own.clone())).await;
        }
    }

    /// Dumps what changed, compares, tells. Returns what the dumps cost, without the telling: who is told may do other
    /// things on this thread first, and a start does.
    async fn refresh(&mut self, changed: Changed) -> Result<Duration, HostError> {
        let (new, cost) = self.look(changed).await?;
        self.tell(changed, new).await;
        Ok(cost)
    }

    /// Dumps what changed; the picture that comes of it, and what that cost.
    async fn look(&mut self, changed: Changed) -> Result<(Picture, Duration), HostError> {
        let effort = Effort::begin();
        if changed.links {
            self.dumps.links = link::links(&self.netlink).await?;
        }
        if changed.addresses {
            self.dumps.addresses = self.netlink.addresses().await?;
        }
        if changed.routes {
            let mut routes = Vec::new();
            for family in Family::BOTH {
                routes.extend(self.netlink.routes(family).await?.into_iter().map(|m| (family, m)));
            }
            self.dumps.nexthops = Objects::of(&routes).await?;
            self.dumps.routes = routes;
        }
        if changed.neighbours {
            self.dumps.neighbours = self.netlink.neighbours().await?;
        }
        if changed.rules {
            let mut rules = Vec::new();
            for family in Family::BOTH {
                rules.extend(self.netlink.rules(family).await?.iter().map(|m| SeenRule::of(family, m)));
            }
            self.dumps.rules = rules;
        }
        let new = picture(&self.ports, &self.dumps, &mut self.numbers);
        Ok((new, effort.spent()))
    }

    /// Compares with the picture before, and tells what is different.
    async fn tell(&mut self, changed: Changed, new: Picture) {
        let first = self.picture.is_none();
        let old = self.picture.take().unwrap_or_default();
        let mut events = self.port_events(&old, &new);
        if first || old.own != new.own {
            events.push(HostEvent::Own(new.own.clone()));
        }
        if first || !same_fib(&old.fib, &new.fib) {
            events.push(HostEvent::Fib(new.fib.clone()));
        }
        if first || old.vlans != new.vlans {
            events.push(HostEvent::Vlans(new.vlans.clone()));
        }
        if old.warnings != new.warnings {
            events.push(HostEvent::Warnings(new.warnings.clone()));
        }
        if changed.host || (!first && old.ours != new.ours) {
            events.push(HostEvent::KernelSideTouched(Vec::new()));
        }
        let new_routers = first || old.routers != new.routers;
        self.picture = Some(new);
        for event in events {
            // Nobody listens any more: the loop sees that for itself.
            let _ = self.events.send(event).await;
        }
        if let (true, Some(picture)) = (new_routers, &self.picture) {
            self.keepalive.round(&self.netlink, picture).await;
        }
    }

    fn port_events(&self, old: &Picture, new: &Picture) -> Vec<HostEvent> {
        let mut events = Vec::new();
        for (at, (port, device)) in self.ports.iter().enumerate() {
            let before = old.ports.get(at).and_then(Option::as_ref);
            let now = new.ports.get(at).and_then(Option::as_ref);
            let unfit = |picture: &Picture| picture.unfit.get(at).cloned().flatten();
            for change in port_changes((before, unfit(old)), (now, unfit(new))) {
                events.push(HostEvent::Port { port: *port, device: device.clone(), change });
            }
        }
        events
    }
}

/// A port's device, and why it is not fit for one.
type Seen<'a> = (Option<&'a LinkInfo>, Option<String>);

fn port_changes((before, was): Seen<'_>, (now, unfit): Seen<'_>) -> Vec<PortChange> {
    let updown = |up| if up { PortChange::Up } else { PortChange::Down };
    let appeared =
        |now: &LinkInfo, unfit| [PortChange::Appeared { link: now.clone(), unfit }, updown(now.up)];
    match (before, now) {
        (None, None) => Vec::new(),
        (Some(_), None) => vec![PortChange::Removed],
        (None, Some(now)) => appeared(now, unfit).into(),
        (Some(before), Some(now)) if before.ifindex != now.ifindex => {
            [PortChange::Removed].into_iter().chain(appeared(now, unfit)).collect()
        }
        (Some(before), Some(now)) => {
            let mut changes = Vec::new();
            if (before.mac, before.ip_mtu()) != (now.mac, now.ip_mtu()) {
                changes.push(PortChange::Changed(now.clone()));
            }
            if was != unfit {
                changes.push(PortChange::Fitness(unfit));
            }
            if before.up != now.up {
                changes.push(updown(now.up));
            }
            changes
        }
    }
}

fn same_fib(a: &Fib, b: &Fib) -> bool {
    a.v4 == b.v4
        && a.v6 == b.v6
        && a.groups == b.groups
        && a.neighbours == b.neighbours
        && a.links == b.links
        && a.vlans == b.vlans
        && a.preferred == b.preferred
}
