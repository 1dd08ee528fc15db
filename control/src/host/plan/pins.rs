//! What is pinned on the BPF file system, as lines of a plan: there while weir runs with an express lane or `fail = "closed"`, and
//! after it was killed. Nothing is to be done about it; `weir clean` removes it.

use std::path::Path;

use weir_sys::steering::{LAYOUT, WAYS_LAYOUT};

use super::script::Line;
use super::{Observed, Status};
use crate::host::link::name_of;

/// A line for each: a command that shows it, and what it is.
pub(super) fn lines(seen: &Observed) -> Vec<Line> {
    seen.pins.iter().filter_map(|pin| line(pin, seen)).collect()
}

fn line(pin: &Path, seen: &Observed) -> Option<Line> {
    let (name, version) = pin.file_name()?.to_str()?.rsplit_once("-v")?;
    let (object, mut what) = match name.strip_prefix("link-").map(str::parse) {
        Some(Ok(index)) => {
            let device = name_of(&seen.links, index);
            let of = device.unwrap_or_else(|| format!("a device that is gone (index {index})"));
            ("link", format!("the steering program on {of}"))
        }
        _ if name == "steer" => ("prog", "the express lane: the program that carries it".to_owned()),
        _ => ("map", map(name).to_owned()),
    };
    let is_of_ways = matches!(name, "express_hops" | "express_links" | "express_ports");
    if version.parse() != Ok(if is_of_ways { WAYS_LAYOUT } else { LAYOUT }) {
        what += ", of another version of weir";
    }
    let command = format!("bpftool {object} show pinned {}", pin.display());
    Some(Line { command, status: Status::Present, note: Some(what), runs: false })
}

fn map(name: &str) -> &'static str {
    match name {
        "kernel_flows" => "connections that are the kernel's",
        "express_flows" => "the express lane: its connections",
        "express_notes" => "the express lane: what is known of its connections",
        "express_next" => "the express lane: who has what is not of it",
        "express_hops" => "the express lane: its next hops",
        _ => "the express lane: its devices",
    }
}
