//! `[[pool]]`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use weir_core::policy::{
    Balance, HashBy, MAX_POOLS, MAX_SERVERS, MAX_WEIGHT, PoolSpec, ProxyVersion, Server, Source,
};
use weir_core::wire::addr::Endpoint;

use super::{Seen, check, name, sections};
use crate::config::model::Pool;
use crate::config::section::{Item, Reader, Section};
use crate::config::source::Span;
use crate::config::values;

const KEYS: [&str; 8] = ["name", "servers", "balance", "hash", "source", "ports", "proxy_protocol", "check"];

/// Ports below are for services of the gateway's own.
const LOWEST_PORT: u16 = 1024;

/// All pools, and where each stands.
pub fn read_all(reader: &mut Reader<'_>, top: &Section<'_>) -> (Vec<Pool>, Vec<Span>) {
    let mut names = Seen::default();
    let sections = sections(reader, top, "pool", MAX_POOLS, &KEYS);
    sections.iter().map(|section| (read(reader, section, &mut names), section.span.clone())).unzip()
}

fn read(reader: &mut Reader<'_>, section: &Section<'_>, names: &mut Seen) -> Pool {
    let mut spec = PoolSpec::new(&name(reader, section, names));
    if let Some(item) = reader.require(section, "servers") {
        spec.servers = servers(reader, &item);
    }
    if let Some(item) = section.get("balance") {
        spec.balance = reader.choice(&item, &[("maglev", Balance::Maglev)]).unwrap_or(spec.balance);
    }
    if let Some(item) = section.get("hash") {
        let choices = [("client", HashBy::Client), ("flow", HashBy::Flow)];
        spec.hash = reader.choice(&item, &choices).unwrap_or(spec.hash);
    }
    if let Some(item) = section.get("source") {
        let choices = [("client", Source::Client), ("gateway", Source::Gateway)];
        spec.source = reader.choice(&item, &choices).unwrap_or(spec.source);
    }
    if let Some(item) = section.get("ports") {
        spec.ports = reader.parsed(&item, ports).unwrap_or(spec.ports);
        if spec.source != Source::Gateway {
            let message = "`ports` in [[pool]] are those of the gateway: only for `source = \"gateway\"`";
            reader.error(&item.key, message);
        }
    }
    if let Some(item) = section.get("proxy_protocol") {
        let choices = [ProxyVersion::V1, ProxyVersion::V2].map(|version| (version.name(), version));
        spec.proxy = reader.choice(&item, &choices);
    }
    let check = section.get("check").and_then(|item| check::read(reader, &item));
    Pool { spec, check }
}

fn servers(reader: &mut Reader<'_>, item: &Item<'_>) -> Vec<Server> {
    let mut seen = Seen::default();
    let elements = reader.list(item);
    if elements.len() > MAX_SERVERS {
        let message = format!("{} servers; at most {MAX_SERVERS} are allowed", elements.len());
        reader.wrong::<()>(item, &message);
    }
    let servers: Vec<Server> =
        elements.iter().filter_map(|element| server(reader, element, &mut seen)).collect();
    if !servers.is_empty() && servers.iter().all(|server| server.weight == 0) {
        let message = "all servers have weight 0, which means draining; they are used for want of others";
        reader.warn(&item.span, format!("{}: {message}", item.what()));
    }
    servers
}

/// `"10.2.0.10:443"`, or `{ address = "10.2.0.10:443", weight = 2 }`.
fn server(reader: &mut Reader<'_>, element: &Item<'_>, seen: &mut Seen) -> Option<Server> {
    if element.is_string() {
        return address(reader, element, seen).map(Server::new);
    }
    if !element.is_table() {
        return reader.wrong_type(element, "an address with a port, or a table with `address` and `weight`");
    }
    let section = reader.table(element, "a server", &["address", "weight"])?;
    let weight = section.get("weight").map(|item| reader.integer(&item, 0..=u32::from(MAX_WEIGHT)));
    let item = reader.require(&section, "address")?;
    let server = Server::new(address(reader, &item, seen)?);
    match weight {
        None => Some(server),
        Some(weight) => {
            Some(Server { weight: weight.and_then(|weight| u16::try_from(weight).ok())?, ..server })
        }
    }
}

fn address(reader: &mut Reader<'_>, item: &Item<'_>, seen: &mut Seen) -> Option<SocketAddr> {
    let server = reader.parsed(item, server_address)?;
    seen.check(reader, item, &server.to_string());
    Some(server)
}

/// An address that packets can be sent to.
fn server_address(text: &str) -> Result<SocketAddr, String> {
    let server = values::socket_address(text)?;
    if server.is_ipv6() && server.ip().to_canonical().is_ipv4() {
        return Err(format!("`{text}` is an IPv4 address in IPv6 form; write the IPv4 address"));
    }
    if Endpoint::from(server).addr.is_martian() {
        return Err(format!("`{text}` is not an address that the gateway can forward packets to"));
    }
    Ok(server)
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = values::ports(text)?;
    if *range.start() < LOWEST_PORT {
        return Err(format!("`{text}` is not allowed; allowed: {LOWEST_PORT} to 65535"));
    }
    Ok(range)
}
