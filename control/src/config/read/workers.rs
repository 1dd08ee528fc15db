//! `[workers]`.

use super::indices;
use crate::config::defaults;
use crate::config::model::{Cores, Express, Idle, Workers};
use crate::config::section::{Item, Reader};

/// Highest core that sched_setaffinity(2) takes in its usual form (CPU_SETSIZE - 1).
const HIGHEST_CORE: u16 = 1023;

/// Fewest and most flows that a box can be asked to hold.
const FLOWS: std::ops::RangeInclusive<u32> = 16..=1 << 26;

pub fn read(reader: &mut Reader<'_>, item: &Item<'_>) -> Workers {
    let mut workers = defaults::workers();
    let keys = ["cores", "idle", "express", "flows"];
    let Some(section) = reader.table(item, "[workers]", &keys) else { return workers };
    if let Some(item) = section.get("cores") {
        workers.cores = cores(reader, &item).unwrap_or(workers.cores);
    }
    if let Some(item) = section.get("idle") {
        let idle = reader.choice(&item, &[("adaptive", Idle::Adaptive), ("busy", Idle::Busy)]);
        workers.idle = idle.unwrap_or(workers.idle);
    }
    if let Some(item) = section.get("express") {
        let choices = [
            ("auto", Express::Auto),
            ("always", Express::Always),
            ("standby", Express::Standby),
            ("never", Express::Never),
        ];
        workers.express = reader.choice(&item, &choices).unwrap_or(workers.express);
    }
    if let Some(item) = section.get("flows") {
        workers.flows = reader.integer(&item, FLOWS).unwrap_or(workers.flows);
    }
    workers
}

fn cores(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Cores> {
    if item.is_string() {
        return reader.choice(item, &[("auto", ())]).map(|()| Cores::Auto);
    }
    Some(Cores::List(indices(reader, item, HIGHEST_CORE)))
}
