//! What the probes look at, gathered once: the configuration and what it wants, the kernel's tables, the running gateway.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Instant;

use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;
use serde_json::Value;

use super::ruleset::{self, Chain};
use crate::admin::{self, Request};
use crate::config::Config;
use crate::exit::Failure;
use crate::host::sockets;
use crate::host::spec::Family;
use crate::host::{self, Host, HostError, HostSpec, LinkInfo, Paths, Plan, lock, sub_interface};
use crate::run::convert;

/// The process that holds weir's lock, 0 when it cannot be seen which, and its status when it is this configuration's. Whoever
/// neither answers nor has written down that it runs may be one that has ended, whose name is taken for a moment still.
fn who_runs(config: &Config, paths: &Paths) -> (Option<i32>, Option<Value>) {
    let deadline = Instant::now() + lock::DYING;
    loop {
        let Some(holder) = sockets::holder_of_lock() else { return (None, None) };
        let status = admin::client::ask(&config.gateway.admin, Request::Status).ok();
        // The socket's file may be shared with a weir of another network namespace.
        if let Some(status) = status.filter(|status| holder == 0 || status["pid"] == holder) {
            return (Some(holder), Some(status));
        }
        let named = host::Instance::read(&paths.instance).and_then(|of| i32::try_from(of.pid).ok());
        if named.is_some_and(|pid| (holder == 0 || holder == pid) && lock::is_alive(pid))
            || Instant::now() > deadline
        {
            return (Some(holder), None);
        }
        std::thread::sleep(lock::PAUSE);
    }
}

/// One moment of a host. Reading it changes nothing.
#[derive(Debug)]
pub struct Ground<'a> {
    pub config: &'a Config,
    pub spec: HostSpec,
    /// Whether the configuration has a fast road, and so uses XDP.
    pub fast: bool,
    /// The status that the gateway of this namespace gives, when it runs.
    pub running: Option<Value>,
    /// The process that holds weir's lock in this namespace.
    pub holder: Option<i32>,
    pub paths: Paths,
    pub links: Vec<LinkInfo>,
    /// Addresses of this host, with the index of their device and the length of their prefix.
    pub own: Vec<(IpAddr, u32, u8)>,
    pub rules: Vec<(Family, RuleMessage)>,
    pub routes: Vec<(Family, RouteMessage)>,
    /// What the configuration needs of the kernel, and what of it is there; or why that cannot be said.
    pub plan: Result<Plan, String>,
    /// Netfilter's chains that are not weir's; or why they cannot be read.
    pub chains: Result<Vec<Chain>, String>,
    /// Where sysfs is.
    pub sys: PathBuf,
    /// Where procfs is.
    pub proc: PathBuf,
}

impl<'a> Ground<'a> {
    /// Asks the kernel and the gateway.
    ///
    /// # Errors
    /// The kernel gives no links, addresses, rules or routes: without these there is nothing to look at.
    pub fn gather(config: &'a Config) -> Result<Self, Failure> {
        let paths = Paths::of_this_namespace().map_err(Failure::refused)?;
        let (holder, running) = who_runs(config, &paths);
        let (dump, spec) = host::wait(dump(paths.clone(), config)).map_err(Failure::refused)?;
        Ok(Self {
            fast: convert::has_fast_road(config),
            config,
            running,
            holder,
            paths,
            links: dump.links.iter().map(LinkInfo::of).collect(),
            own: dump.addresses.iter().filter_map(own).collect(),
            rules: dump.rules,
            routes: dump.routes,
            plan: dump.plan.map_err(|error| error.to_string()),
            chains: ruleset::read(),
            spec,
            sys: PathBuf::from("/sys"),
            proc: PathBuf::from("/proc"),
        })
    }

    pub fn link(&self, device: &str) -> Option<&LinkInfo> {
        self.links.iter().find(|link| link.name == device)
    }

    /// Ports whose devices are there.
    pub fn ports(&self) -> impl Iterator<Item = (&'a crate::config::Port, &LinkInfo)> {
        self.config.ports.iter().filter_map(|port| Some((port, self.link(&port.device)?)))
    }

    /// What the running gateway says about a port.
    pub fn status_of(&self, device: &str) -> Option<&Value> {
        let ports = self.running.as_ref()?["ports"].as_array()?;
        ports.iter().find(|port| port["device"] == device)
    }

    /// Whether any intercept takes this TCP port.
    pub fn takes_port(&self, first: u16, last: u16) -> bool {
        self.config.intercepts.iter().flat_map(|i| &i.tcp).any(|r| *r.start() <= last && first <= *r.end())
    }
}

struct Dump {
    links: Vec<LinkMessage>,
    addresses: Vec<AddressMessage>,
    rules: Vec<(Family, RuleMessage)>,
    routes: Vec<(Family, RouteMessage)>,
    plan: Result<Plan, HostError>,
}

async fn dump(paths: Paths, config: &Config) -> Result<(Dump, HostSpec), HostError> {
    let host = Host::open(paths)?;
    let links = host.all_links().await?;
    let vlans = sub_interface::of_ports(&convert::ports(config), &links);
    let spec = convert::host_spec(config, &vlans).on(&links);
    let (mut rules, mut routes) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        rules.extend(host.netlink.rules(family).await?.into_iter().map(|rule| (family, rule)));
        routes.extend(host.netlink.routes(family).await?.into_iter().map(|route| (family, route)));
    }
    let dump = Dump {
        links: host.netlink.links().await?,
        addresses: host.netlink.addresses().await?,
        rules,
        routes,
        plan: host.plan(&spec).await,
    };
    Ok((dump, spec))
}

/// An address, the index of its device, and the length of its prefix.
pub fn own(message: &AddressMessage) -> Option<(IpAddr, u32, u8)> {
    let of = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    // On a point-to-point link IFA_ADDRESS is the other end's.
    let local = of(|a| if let AddressAttribute::Local(address) = a { Some(*address) } else { None });
    let address = local
        .or_else(|| of(|a| if let AddressAttribute::Address(address) = a { Some(*address) } else { None }));
    Some((address?, message.header.index, message.header.prefix_len))
}
