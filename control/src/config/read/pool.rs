//! `[[pool]]`.

use std::net::SocketAddr;

use weir_core::policy::{Balance, MAX_POOLS, PoolSpec, Server, Source};

use super::{Seen, name, sections};
use crate::config::section::{Reader, Section};
use crate::config::source::Span;
use crate::config::values;

/// All pools, and where each stands.
pub fn read_all(reader: &mut Reader<'_>, top: &Section<'_>) -> (Vec<PoolSpec>, Vec<Span>) {
    let keys = ["name", "servers", "balance", "source", "proxy_protocol"];
    let mut names = Seen::default();
    let sections = sections(reader, top, "pool", MAX_POOLS, &keys);
    sections.iter().map(|section| (read(reader, section, &mut names), section.span.clone())).unzip()
}

fn read(reader: &mut Reader<'_>, section: &Section<'_>, names: &mut Seen) -> PoolSpec {
    let name = name(reader, section, names);
    let servers = servers(reader, section);
    let balance =
        section.get("balance").and_then(|item| reader.choice(&item, &[("maglev", Balance::Maglev)]));
    let source = section.get("source").and_then(|item| {
        let source = reader.choice(&item, &[("client", Source::Client), ("gateway", Source::Gateway)])?;
        if source == Source::Gateway {
            reader.unavailable(&item, "gateway", "client");
        }
        Some(source)
    });
    if let Some(item) = section.get("proxy_protocol")
        && reader.choice(&item, &[("v1", ()), ("v2", ())]).is_some()
    {
        reader.error(&item.key, "`proxy_protocol` is not available in this version of weir; leave it out");
    }
    PoolSpec {
        servers: servers.into_iter().map(Server::new).collect(),
        balance: balance.unwrap_or_default(),
        source: source.unwrap_or_default(),
        ..PoolSpec::new(&name)
    }
}

fn servers(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    let mut seen = Seen::default();
    let Some(item) = reader.require(section, "servers") else { return servers };
    for element in reader.list(&item) {
        if let Some(server) = reader.parsed(&element, values::socket_address) {
            seen.check(reader, &element, &server.to_string());
            servers.push(server);
        }
    }
    servers
}
