//! `[limits]`.

use std::ops::RangeInclusive;

use weir_core::policy::{Action, HeldFull};

use super::within;
use crate::config::model::Limits;
use crate::config::section::{Item, Reader};
use crate::config::{defaults, values};

const KEYS: [&str; 6] = ["half_open", "held", "held_full", "source_flows", "source_rate", "source_over"];
const HELD: RangeInclusive<u64> = 64 << 10..=64 << 30;
/// Flows of one source, or new ones per second: no box has more.
const SOURCE: RangeInclusive<u32> = 1..=1 << 26;

/// `flows`: what the box can hold.
pub fn read(reader: &mut Reader<'_>, item: &Item<'_>, flows: u32) -> Limits {
    let mut limits = defaults::limits(flows);
    let Some(section) = reader.table(item, "[limits]", &KEYS) else { return limits };
    if let Some(item) = section.get("half_open") {
        // Not more than `flows` in [workers].
        limits.half_open = reader.integer(&item, 1..=flows).unwrap_or(limits.half_open);
    }
    if let Some(item) = section.get("held") {
        let size = |text: &str| within(text, values::size(text)?, HELD, "64KiB to 64GiB");
        limits.held = reader.parsed(&item, size).unwrap_or(limits.held);
    }
    if let Some(item) = section.get("held_full") {
        let choices = [("wait", HeldFull::Wait), ("reset", HeldFull::Reset), ("drop", HeldFull::Drop)];
        limits.held_full = reader.choice(&item, &choices).unwrap_or(limits.held_full);
    }
    limits.source_flows = section.get("source_flows").and_then(|item| reader.integer(&item, SOURCE));
    limits.source_rate = section.get("source_rate").and_then(|item| reader.integer(&item, SOURCE));
    if let Some(item) = section.get("source_over") {
        let choices = [Action::Drop, Action::Reset].map(|action| (action.name(), action));
        limits.source_over = reader.choice(&item, &choices).unwrap_or(limits.source_over);
        if section.get("source_flows").is_none() && section.get("source_rate").is_none() {
            let message = "there is neither `source_flows` nor `source_rate`, so this changes nothing";
            reader.warn(&item.span, format!("{}: {message}", item.what()));
        }
    }
    limits
}
