//! The routing policy: which rule matches, which table and route the kernel chooses. Asked of the kernel (RTM_GETROUTE), for
//! the packet as it comes in, and for the same packet with weir's mark.

use std::io;
use std::net::{IpAddr, SocketAddr};

use futures::TryStreamExt as _;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteProtocol,
    RouteType, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::ingress::Ingress;
use super::kernel::Kernel;
use super::{Layer, Question, Source, Step, nft};
use crate::host::error::errno;
use crate::host::netlink::address_family;
use crate::host::rule::table_of;
use crate::host::spec::Family;

/// What is looked up.
#[derive(Clone, Debug)]
pub struct Lookup {
    pub to: IpAddr,
    /// The whole tuple, for a packet that comes in; none: the box itself asks.
    pub packet: Option<(SocketAddr, SocketAddr)>,
    /// The device that it comes in by.
    pub iif: Option<u32>,
    pub mark: u32,
}

/// What the kernel chose.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub kind: RouteType,
    pub table: u32,
    pub oif: Option<u32>,
    pub gateway: Option<IpAddr>,
    /// Of the route, where it has one.
    pub mtu: Option<u32>,
    /// The route as `ip route` prints it.
    pub text: String,
    /// The rule that led to the table, as `ip rule` prints it.
    pub rule: Option<String>,
}

/// For the packet as it is, and for it with weir's mark.
#[derive(Debug, Default)]
pub struct Routes {
    pub plain: Option<Result<Chosen, String>>,
    pub marked: Option<Result<Chosen, String>>,
    /// The mark that was asked with.
    pub mark: u32,
}

impl Lookup {
    /// The way to an address, for the box itself.
    pub const fn to(to: IpAddr) -> Self {
        Self { to, packet: None, iif: None, mark: 0 }
    }

    /// What a person would type.
    pub fn command(&self, kernel: &Kernel) -> String {
        let mut text = format!("ip route get {}", self.to);
        if let Some((from, _)) = self.packet {
            text += &format!(" from {}", from.ip());
        }
        if let Some(iif) = self.iif {
            text += &format!(" iif {}", kernel.name(iif));
        }
        if self.mark != 0 {
            text += &format!(" mark {:#x}", self.mark);
        }
        if let Some((from, to)) = self.packet {
            text += &format!(" ipproto tcp sport {} dport {}", from.port(), to.port());
        }
        text
    }

    fn family(&self) -> Family {
        if self.to.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    fn message(&self, match_only: bool) -> RouteMessage {
        let bits = if self.to.is_ipv4() { 32 } else { 128 };
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(self.family());
        message.header.destination_prefix_length = bits;
        message.header.flags = RouteFlags::LookupTable;
        if match_only {
            message.header.flags |= RouteFlags::FibMatch;
        }
        message.attributes.push(RouteAttribute::Destination(address(self.to)));
        if let Some((from, to)) = self.packet {
            message.header.source_prefix_length = bits;
            message.attributes.push(RouteAttribute::Source(address(from.ip())));
            message.attributes.push(RouteAttribute::IpProto(TCP));
            message.attributes.push(RouteAttribute::Sport(from.port()));
            message.attributes.push(RouteAttribute::Dport(to.port()));
        }
        message.attributes.extend(self.iif.map(RouteAttribute::Iif));
        if self.mark != 0 {
            message.attributes.push(RouteAttribute::Mark(self.mark));
        }
        message
    }
}

const TCP: u8 = 6;

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

/// Asks the kernel.
///
/// # Errors
/// What the kernel says: ENETUNREACH where there is no route, EXDEV where the source is not expected there (rp_filter).
pub async fn lookup(kernel: &Kernel, lookup: &Lookup) -> io::Result<Chosen> {
    let answer = get(kernel, lookup.message(false)).await?;
    let table = table_of(&answer);
    // The first answer is of this address; the second is the route's own line. Not every kernel gives it for every route.
    let route = get(kernel, lookup.message(true)).await.unwrap_or_else(|_| answer.clone());
    let mut chosen = Chosen {
        kind: answer.header.kind,
        table,
        oif: None,
        gateway: None,
        mtu: None,
        text: text(kernel, &route),
        rule: rule(kernel, lookup, table),
    };
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Oif(index) => chosen.oif = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(a)) | RouteAttribute::Via(RouteVia::Inet(a)) => {
                chosen.gateway = Some(IpAddr::V4(*a));
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(a)) | RouteAttribute::Via(RouteVia::Inet6(a)) => {
                chosen.gateway = Some(IpAddr::V6(*a));
            }
            RouteAttribute::Metrics(metrics) => {
                chosen.mtu =
                    metrics.iter().find_map(|m| if let RouteMetric::Mtu(n) = m { Some(*n) } else { None });
            }
            _ => {}
        }
    }
    Ok(chosen)
}

async fn get(kernel: &Kernel, message: RouteMessage) -> io::Result<RouteMessage> {
    let answer = kernel.netlink.handle().route().get(message).execute().try_next().await.map_err(errno)?;
    answer.ok_or_else(|| io::Error::other("the kernel said nothing"))
}

/// A route as `ip route` prints it.
fn text(kernel: &Kernel, route: &RouteMessage) -> String {
    let header = &route.header;
    let mut words = match header.kind {
        RouteType::Unicast => String::new(),
        kind => format!("{kind:?} ").to_lowercase(),
    };
    let (mut to, mut hop, mut tail) = ("default".to_owned(), String::new(), String::new());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(at) if header.destination_prefix_length > 0 => {
                let at = match at {
                    RouteAddress::Inet(a) => IpAddr::V4(*a),
                    RouteAddress::Inet6(a) => IpAddr::V6(*a),
                    _ => continue,
                };
                let whole = if at.is_ipv4() { 32 } else { 128 };
                let length = header.destination_prefix_length;
                to = if length == whole { at.to_string() } else { format!("{at}/{length}") };
            }
            RouteAttribute::Gateway(RouteAddress::Inet(a)) => hop = format!(" via {a}{hop}"),
            RouteAttribute::Gateway(RouteAddress::Inet6(a)) => hop = format!(" via {a}{hop}"),
            RouteAttribute::Oif(index) => hop += &format!(" dev {}", kernel.name(*index)),
            RouteAttribute::MultiPath(ways) => ways.iter().for_each(|way| hop += &way_text(kernel, way)),
            RouteAttribute::Priority(metric) => tail = format!(" metric {metric}"),
            _ => {}
        }
    }
    words += &format!("{to}{hop} table {}", table_name(table_of(route)));
    if header.protocol == RouteProtocol::from(crate::host::PROTOCOL) {
        words += &format!(" proto {}", crate::host::PROTOCOL);
    }
    words + &tail
}

/// One of several ways, as `ip route` prints it.
fn way_text(kernel: &Kernel, way: &RouteNextHop) -> String {
    let router = way.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(a)) | RouteAttribute::Via(RouteVia::Inet(a)) => {
            Some(IpAddr::V4(*a))
        }
        RouteAttribute::Gateway(RouteAddress::Inet6(a)) | RouteAttribute::Via(RouteVia::Inet6(a)) => {
            Some(IpAddr::V6(*a))
        }
        _ => None,
    });
    let via = router.map(|router| format!(" via {router}")).unwrap_or_default();
    // The kernel counts weights from 0.
    let (device, weight) = (kernel.name(way.interface_index), u32::from(way.hops) + 1);
    format!(" nexthop{via} dev {device} weight {weight}")
}

fn table_name(table: u32) -> String {
    match table {
        253 => "default".to_owned(),
        254 => "main".to_owned(),
        255 => "local".to_owned(),
        other => other.to_string(),
    }
}

/// The first rule that holds for the packet and looks up the table that the kernel chose.
fn rule(kernel: &Kernel, lookup: &Lookup, table: u32) -> Option<String> {
    let family = lookup.family();
    let mut rules = kernel.rules.iter().filter(|(of, _)| *of == family).map(|(_, rule)| rule);
    let found = rules.find(|rule| rule_table(rule) == Some(table) && holds(kernel, rule, lookup))?;
    Some(rule_text(found))
}

fn rule_table(rule: &RuleMessage) -> Option<u32> {
    let attribute = rule.attributes.iter().find_map(|a| match a {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    (rule.header.action == RuleAction::ToTable)
        .then(|| attribute.unwrap_or_else(|| u32::from(rule.header.table)))
}

/// Whether the selectors of a rule hold, as fib_rule_match and its families see them.
fn holds(kernel: &Kernel, rule: &RuleMessage, lookup: &Lookup) -> bool {
    let number = |wanted: fn(&RuleAttribute) -> Option<u32>| rule.attributes.iter().find_map(wanted);
    let mark = number(|a| if let RuleAttribute::FwMark(n) = a { Some(*n) } else { None });
    let mask = number(|a| if let RuleAttribute::FwMask(n) = a { Some(*n) } else { None });
    let from = lookup.packet.map(|(from, _)| from);
    let within = |prefix: IpAddr, length: u8, ip: Option<IpAddr>| {
        let net = ipnet::IpNet::new(prefix, length).ok();
        net.zip(ip).is_some_and(|(net, ip)| net.contains(&ip))
    };
    let mut all = lookup.mark & mask.unwrap_or(0) == mark.unwrap_or(0) & mask.unwrap_or(0);
    for attribute in &rule.attributes {
        all &= match attribute {
            RuleAttribute::Iifname(name) => lookup.iif.is_some_and(|iif| kernel.name(iif) == *name),
            // Known only when the way out is; none is asked for here.
            RuleAttribute::Oifname(_) | RuleAttribute::L3MDev(true) | RuleAttribute::TunId(_) => false,
            RuleAttribute::Source(ip) => within(*ip, rule.header.src_len, from.map(|from| from.ip())),
            RuleAttribute::Destination(ip) => within(*ip, rule.header.dst_len, Some(lookup.to)),
            RuleAttribute::IpProtocol(protocol) => {
                lookup.packet.is_some() && i32::from(*protocol) == i32::from(TCP)
            }
            RuleAttribute::SourcePortRange(ports) => {
                from.is_some_and(|from| (ports.start..=ports.end).contains(&from.port()))
            }
            RuleAttribute::DestinationPortRange(ports) => {
                lookup.packet.is_some_and(|(_, to)| (ports.start..=ports.end).contains(&to.port()))
            }
            _ => true,
        };
    }
    all != rule.header.flags.contains(RuleFlags::Invert)
}

/// A rule as `ip rule` prints it.
fn rule_text(rule: &RuleMessage) -> String {
    let (mut priority, mut from, mut words) = (0, "all".to_owned(), String::new());
    let (mut mark, mut mask) = (None, u32::MAX);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Priority(n) => priority = *n,
            RuleAttribute::Source(ip) => from = format!("{ip}/{}", rule.header.src_len),
            RuleAttribute::Destination(ip) => words += &format!(" to {ip}/{}", rule.header.dst_len),
            RuleAttribute::FwMark(n) => mark = Some(*n),
            RuleAttribute::FwMask(n) => mask = *n,
            RuleAttribute::Iifname(name) => words += &format!(" iif {name}"),
            RuleAttribute::Oifname(name) => words += &format!(" oif {name}"),
            _ => {}
        }
    }
    if let Some(mark) = mark.filter(|mark| *mark != 0 || mask != u32::MAX).filter(|_| mask != 0) {
        words += &format!(" fwmark {mark:#x}/{mask:#x}");
    }
    let table = rule_table(rule).map_or("no table".to_owned(), table_name);
    let not = if rule.header.flags.contains(RuleFlags::Invert) { "not " } else { "" };
    format!("{priority}: {not}from {from}{words} lookup {table}")
}

/// Asks for both.
pub async fn ask(
    kernel: &Kernel,
    ingress: &Ingress,
    nft: &nft::Answer,
    mark: u32,
    question: &Question,
    steps: &mut Vec<Step>,
) -> Routes {
    let Some(iif) = ingress.ifindex() else {
        steps.push(Step::new(
            Layer::Rule,
            Source::Kernel,
            "which route has the packet?",
            "not asked: it is not known where it comes in",
        ));
        return Routes::default();
    };
    // A packet that is given to the relay comes in by the relay's device.
    let relayed = nft.iif.as_deref().and_then(|name| kernel.link_named(name)).map(|link| link.ifindex);
    let packet = Some((question.from, question.to));
    let plain = Lookup { to: question.to.ip(), packet, iif: Some(iif), mark: 0 };
    let mark = nft.hit.as_ref().and_then(|hit| hit.mark).filter(|mark| *mark != 0).unwrap_or(mark);
    let marked = Lookup { iif: relayed.or(Some(iif)), mark, ..plain.clone() };
    let mut routes = Routes { mark, ..Routes::default() };
    let what = "without a mark (plain forwarding)";
    routes.plain = Some(one(kernel, ingress.local, &plain, what, steps).await);
    let what = "with weir's mark (to the relay)";
    routes.marked = Some(one(kernel, ingress.local, &marked, what, steps).await);
    routes
}

async fn one(
    kernel: &Kernel,
    local: bool,
    packet: &Lookup,
    what: &str,
    steps: &mut Vec<Step>,
) -> Result<Chosen, String> {
    // What the box itself sends comes in by no device.
    let packet = &if local { Lookup { packet: None, iif: None, ..packet.clone() } } else { packet.clone() };
    let command = packet.command(kernel);
    match lookup(kernel, packet).await {
        Ok(chosen) => {
            let rule = chosen.rule.clone().unwrap_or_else(|| "none of the rules that were dumped".to_owned());
            let asked = format!("which ip rule, {what}?");
            let table = format!("table {}", table_name(chosen.table));
            steps.push(
                Step::new(Layer::Rule, Source::Kernel, &asked, rule).detail([format!("leads to {table}")]),
            );
            let asked = format!("which route, {what}?");
            steps
                .push(Step::new(Layer::Route, Source::Kernel, &asked, chosen.text.clone()).detail([command]));
            Ok(chosen)
        }
        Err(error) => {
            let why = refusal(&error);
            let asked = format!("which route, {what}?");
            steps.push(
                Step::new(Layer::Route, Source::Kernel, &asked, format!("none: {why}")).detail([command]),
            );
            Err(why)
        }
    }
}

/// What the kernel means.
fn refusal(error: &io::Error) -> String {
    let errno = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    let meaning = match errno {
        Some(rustix::io::Errno::XDEV) => "answers would not leave there, and rp_filter is strict: dropped",
        Some(rustix::io::Errno::NETUNREACH | rustix::io::Errno::HOSTUNREACH) => "no route, or no forwarding",
        Some(rustix::io::Errno::ACCESS) => "a rule or route prohibits it",
        Some(rustix::io::Errno::INVAL) => {
            "a blackhole route, or a source that cannot come in there (one of this box's own)"
        }
        _ => "the kernel drops it",
    };
    format!("{meaning} ({error})")
}
