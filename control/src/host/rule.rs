//! weir's two kinds of routing state: the rule that looks up marked packets in its table, and the table's only route.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::netlink::{address_family, done};
use super::spec::Family;
use super::{HostSpec, PROTOCOL};

/// A policy rule as it was found, as far as weir looks at one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRule {
    pub family: Family,
    pub priority: u32,
    pub mark: u32,
    pub mask: u32,
    /// The table it looks up, or none when it does something else.
    pub table: Option<u32>,
    pub protocol: u8,
    /// It selects by more than the mark (address, device, user, ...), or is inverted.
    pub narrower: bool,
    /// It can only match packets that this box itself sends.
    pub only_own: bool,
}

/// `ip rule add fwmark MARK/MASK lookup TABLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkRule {
    pub family: Family,
    pub mark: u32,
    pub mask: u32,
    pub table: u32,
    pub priority: u32,
}

/// `ip route add local default dev lo table TABLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalRoute {
    pub family: Family,
    pub table: u32,
}

/// A route that is in weir's table or carries its protocol number, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRoute {
    pub family: Family,
    pub table: u32,
    pub protocol: u8,
    /// It is a local default route.
    pub local_default: bool,
    /// As `ip route` takes it.
    pub text: String,
}

impl MarkRule {
    pub fn of(spec: &HostSpec, family: Family) -> Self {
        Self { family, mark: spec.mark, mask: spec.mask, table: spec.table, priority: spec.priority }
    }

    /// `verb` is add or del.
    pub fn command(&self, verb: &str) -> String {
        let Self { family, mark, mask, table, priority } = self;
        let ip = family.ip();
        format!(
            "{ip} rule {verb} fwmark {mark:#x}/{mask:#x} lookup {table} priority {priority} protocol {PROTOCOL}"
        )
    }

    /// Whether `seen` does exactly this, whoever put it there.
    pub fn same_effect(&self, seen: &SeenRule) -> bool {
        self.family == seen.family
            && (self.mark, self.mask, self.priority) == (seen.mark, seen.mask, seen.priority)
            && seen.table == Some(self.table)
            && !seen.narrower
    }

    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = address_family(self.family);
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mask),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
        ];
        message
    }

    pub(crate) async fn add(&self, handle: &Handle) -> io::Result<()> {
        let mut request = handle.rule().add();
        *request.message_mut() = self.message();
        done(request.execute().await)
    }

    pub(crate) async fn delete(&self, handle: &Handle) -> io::Result<()> {
        done(handle.rule().del(self.message()).execute().await)
    }
}

impl LocalRoute {
    pub fn command(&self, verb: &str) -> String {
        format!(
            "{} route {verb} local default dev lo table {} proto {PROTOCOL}",
            self.family.ip(),
            self.table
        )
    }

    fn message(&self, lo: u32) -> RouteMessage {
        let mut message = match self.family {
            Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        message.header.kind = RouteType::Local;
        message.header.protocol = RouteProtocol::from(PROTOCOL);
        message.header.scope = match self.family {
            Family::V4 => RouteScope::Host,
            Family::V6 => RouteScope::Universe,
        };
        message.header.table = 0;
        message.attributes = vec![RouteAttribute::Table(self.table), RouteAttribute::Oif(lo)];
        message
    }

    /// `lo` is the index of the loopback device.
    pub(crate) async fn add(&self, handle: &Handle, lo: u32) -> io::Result<()> {
        done(handle.route().add(self.message(lo)).execute().await)
    }

    pub(crate) async fn delete(&self, handle: &Handle, lo: u32) -> io::Result<()> {
        done(handle.route().del(self.message(lo)).execute().await)
    }
}

impl SeenRule {
    pub(crate) fn of(family: Family, message: &RuleMessage) -> Self {
        let mut seen = Self {
            family,
            priority: 0,
            mark: 0,
            mask: 0,
            table: None,
            protocol: 0,
            narrower: message.header.src_len != 0
                || message.header.dst_len != 0
                || message.header.tos != 0
                || message.header.flags.contains(RuleFlags::Invert),
            only_own: false,
        };
        let mut table = u32::from(message.header.table);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(n) => seen.priority = *n,
                RuleAttribute::FwMark(n) => seen.mark = *n,
                RuleAttribute::FwMask(n) => seen.mask = *n,
                RuleAttribute::Table(n) => table = *n,
                RuleAttribute::Protocol(p) => seen.protocol = u8::from(*p),
                // Both are always there: u32::MAX means that nothing is suppressed.
                RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
                RuleAttribute::Iifname(name) if name == "lo" => (seen.narrower, seen.only_own) = (true, true),
                RuleAttribute::UidRange(_) => (seen.narrower, seen.only_own) = (true, true),
                RuleAttribute::Goto(_) => {}
                _ => seen.narrower = true,
            }
        }
        if message.header.action == RuleAction::ToTable {
            seen.table = Some(table);
        }
        seen
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }

    pub fn command(&self, verb: &str) -> String {
        let mut text = format!("{} rule {verb}", self.family.ip());
        if self.mask != 0 {
            text.push_str(&format!(" fwmark {:#x}/{:#x}", self.mark, self.mask));
        }
        if let Some(table) = self.table {
            text.push_str(&format!(" lookup {table}"));
        }
        text.push_str(&format!(" priority {}", self.priority));
        if self.protocol != 0 {
            text.push_str(&format!(" protocol {}", self.protocol));
        }
        text
    }
}

/// The table that a route is in: the attribute, since the header holds eight bits only.
pub(crate) fn table_of(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(u32::from(message.header.table))
}

impl SeenRoute {
    pub(crate) fn of(family: Family, message: &RouteMessage) -> Self {
        let (header, table) = (&message.header, table_of(message));
        let mut destination = "default".to_owned();
        for attribute in &message.attributes {
            if let RouteAttribute::Destination(address) = attribute {
                destination = match address {
                    rtnetlink::packet_route::route::RouteAddress::Inet(a) => a.to_string(),
                    rtnetlink::packet_route::route::RouteAddress::Inet6(a) => a.to_string(),
                    other => format!("{other:?}"),
                };
                destination.push_str(&format!("/{}", header.destination_prefix_length));
            }
        }
        let local = header.kind == RouteType::Local;
        let kind = if local { "local " } else { "" };
        Self {
            family,
            table,
            protocol: header.protocol.into(),
            local_default: local && header.destination_prefix_length == 0,
            text: format!("{kind}{destination} table {table} proto {}", u8::from(header.protocol)),
        }
    }

    pub fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }

    pub fn command(&self, verb: &str) -> String {
        format!("{} route {verb} {}", self.family.ip(), self.text)
    }
}
