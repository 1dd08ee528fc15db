//! `[[port]]`.

use weir_core::ids::MAX_PORTS;

use super::{Seen, indices, name, sections};
use crate::config::model::{Mode, Port, Queues};
use crate::config::section::{Item, Reader, Section};
use crate::config::{defaults, values};

/// Highest queue index that the steering program has room for. What the device has is looked up when it is opened.
const HIGHEST_QUEUE: u16 = 63;

pub fn read_all(reader: &mut Reader<'_>, top: &Section<'_>) -> Vec<Port> {
    let keys = ["name", "device", "queues", "mode"];
    let sections = sections(reader, top, "port", MAX_PORTS, &keys);
    if sections.is_empty() {
        reader.error(&top.span, "there is no [[port]]; name at least one device that weir owns");
    }
    let (mut names, mut devices) = (Seen::default(), Seen::default());
    sections.iter().map(|section| read(reader, section, &mut names, &mut devices)).collect()
}

fn read(reader: &mut Reader<'_>, section: &Section<'_>, names: &mut Seen, devices: &mut Seen) -> Port {
    let name = name(reader, section, names);
    let mut device = String::new();
    if let Some(item) = reader.require(section, "device")
        && let Some(given) = reader.parsed(&item, values::device)
    {
        devices.check(reader, &item, &given);
        device = given;
    }
    let queues = section.get("queues").and_then(|item| queues(reader, &item));
    let modes = [Mode::Auto, Mode::ZeroCopy, Mode::Copy, Mode::Generic].map(|mode| (mode.name(), mode));
    let mode = section.get("mode").and_then(|item| reader.choice(&item, &modes));
    Port {
        name,
        device,
        queues: queues.unwrap_or(defaults::QUEUES),
        mode: mode.unwrap_or(defaults::MODE),
        origin: reader.origin(&section.span),
    }
}

fn queues(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Queues> {
    if item.is_string() {
        return reader.choice(item, &[("all", ())]).map(|()| Queues::All);
    }
    Some(Queues::List(indices(reader, item, HIGHEST_QUEUE)))
}
