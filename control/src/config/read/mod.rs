//! From a parsed document to a [`Config`], section by section.
//!
//! Every reader goes on after an error, with the default in place of what was wrong; the result counts only when the
//! report has no errors.

mod check;
mod fallback;
mod gateway;
mod identity;
mod intercept;
mod limits;
mod lists;
mod pool;
mod port;
mod relay;
mod rule;
mod workers;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::Path;

use toml::Spanned;
use toml::de::DeTable;

use super::check::whole;
use super::defaults;
use super::model::Config;
use super::section::{Item, Reader, Section};
use super::source::Span;
use lists::ListFiles;
pub use lists::Reading;

const KEYS: [&str; 9] =
    ["gateway", "port", "workers", "fallback", "limits", "relay", "identity", "intercept", "pool"];

/// Reads all sections, and the files that rules name, and checks how they fit together.
pub fn document(
    reader: &mut Reader<'_>,
    path: &Path,
    document: &Spanned<DeTable<'_>>,
    lists: Reading,
) -> Config {
    let top = reader.section(document.get_ref(), document.span(), "", &KEYS);
    let fallback = top.get("fallback").map(|item| fallback::read(reader, &item));
    let fallback = fallback.unwrap_or_else(defaults::fallback);
    let gateway = top.get("gateway").map(|item| gateway::read(reader, &item, fallback.listen));
    let workers = top.get("workers").map(|item| workers::read(reader, &item));
    let workers = workers.unwrap_or_else(defaults::workers);
    let limits = top.get("limits").map(|item| limits::read(reader, &item, workers.flows));
    let relay = top.get("relay").map(|item| relay::read(reader, &item));
    let ports = port::read_all(reader, &top);
    let (pools, pool_spans) = pool::read_all(reader, &top);
    let folder = path.parent().unwrap_or(Path::new(""));
    let lists = ListFiles::new(folder, lists);
    let mut context = intercept::Context { ports: &ports, pools: &pools, lists };
    let (intercepts, spans) = intercept::read_all(reader, &top, &mut context);
    let ListFiles { read: lists, missing, .. } = context.lists;
    let identity = top.get("identity").map(|item| identity::read(reader, &item));
    let config = Config {
        file: path.to_owned(),
        gateway: gateway.unwrap_or_else(defaults::gateway),
        ports,
        limits: limits.unwrap_or_else(|| defaults::limits(workers.flows)),
        workers,
        relay: relay.unwrap_or_else(defaults::relay),
        fallback,
        identity: identity.unwrap_or_else(defaults::identity),
        intercepts,
        pools,
        lists,
        missing,
        stamp: None,
    };
    if reader.report.is_ok() {
        whole(reader, &config, &spans, &pool_spans);
    }
    config
}

/// The sections of a list such as `[[port]]`; those beyond `most` are an error.
fn sections<'t>(
    reader: &mut Reader<'_>,
    top: &Section<'t>,
    key: &str,
    most: usize,
    keys: &[&str],
) -> Vec<Section<'t>> {
    let title = format!("[[{key}]]");
    let sections = top.get(key).map(|item| reader.tables(&item, &title, keys)).unwrap_or_default();
    if let Some(first) = sections.get(most) {
        reader.error(&first.span, format!("{} of {title}; at most {most} are allowed", sections.len()));
    }
    sections
}

/// Values that may appear once only, and the line where each first did.
#[derive(Debug, Default)]
struct Seen(HashMap<String, usize>);

impl Seen {
    fn check(&mut self, reader: &mut Reader<'_>, item: &Item<'_>, value: &str) {
        let line = reader.source.line(item.span.start);
        if let Some(first) = self.0.insert(value.to_owned(), line) {
            reader.wrong::<()>(item, &format!("`{value}` is taken already, at line {first}"));
        }
    }
}

/// The `name` of a section; empty when there is none that could be used.
fn name(reader: &mut Reader<'_>, section: &Section<'_>, seen: &mut Seen) -> String {
    let Some(item) = reader.require(section, "name") else { return String::new() };
    let name = reader.parsed(&item, super::values::name).unwrap_or_default();
    if !name.is_empty() {
        seen.check(reader, &item, &name);
    }
    name
}

/// The value, or a sentence with what is allowed.
fn within(text: &str, value: u64, allowed: RangeInclusive<u64>, shown: &str) -> Result<u64, String> {
    if allowed.contains(&value) {
        Ok(value)
    } else {
        Err(format!("`{text}` is not allowed; allowed: {shown}"))
    }
}

/// A list of small numbers, each once: queues or cores.
fn indices(reader: &mut Reader<'_>, item: &Item<'_>, highest: u16) -> Vec<u16> {
    let mut seen = Seen::default();
    let mut indices = Vec::new();
    for element in reader.list(item) {
        let index = reader.integer(&element, 0..=u32::from(highest));
        if let Some(index) = index.and_then(|index| u16::try_from(index).ok()) {
            seen.check(reader, &element, &index.to_string());
            indices.push(index);
        }
    }
    indices
}

/// Where an intercept and its parts stand.
#[derive(Clone, Debug)]
pub struct InterceptSpans {
    pub section: Span,
    pub tcp: Span,
    pub rules: Vec<Span>,
}
