//! `[fallback]`.

use crate::config::model::Fallback;
use crate::config::section::{Item, Reader};
use crate::config::{defaults, values};

/// Tables that belong to the kernel and to the host (rt_tables in iproute2).
const TAKEN_TABLES: [(u32, &str); 4] = [(0, "unspec"), (253, "default"), (254, "main"), (255, "local")];

/// The rule must come after that of table `local` (0) and before that of `main` (32766), which has a route for everything.
const PRIORITIES: std::ops::RangeInclusive<u32> = 1..=32765;

pub fn read(reader: &mut Reader<'_>, item: &Item<'_>) -> Fallback {
    let mut fallback = defaults::fallback();
    let keys = ["mark", "table", "priority", "listen"];
    let Some(section) = reader.table(item, "[fallback]", &keys) else { return fallback };
    if let Some(item) = section.get("mark") {
        fallback.mark = reader.parsed(&item, values::mark).unwrap_or(fallback.mark);
    }
    if let Some(item) = section.get("table") {
        fallback.table = reader.integer(&item, 0..=u32::MAX).unwrap_or(fallback.table);
        if let Some((table, name)) = TAKEN_TABLES.iter().find(|(table, _)| *table == fallback.table) {
            let message =
                format!("table {table} is the host's own (`{name}`); allowed: any but 0 and 253 to 255");
            reader.wrong::<()>(&item, &message);
        }
    }
    if let Some(item) = section.get("priority") {
        fallback.priority = reader.integer(&item, PRIORITIES).unwrap_or(fallback.priority);
    }
    if let Some(item) = section.get("listen") {
        let listen = reader.integer(&item, 1..=65535).and_then(|port| u16::try_from(port).ok());
        fallback.listen = listen.unwrap_or(fallback.listen);
    }
    fallback
}
