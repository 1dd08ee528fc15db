//! `[gateway]`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::within;
use crate::config::model::{Fail, Gateway};
use crate::config::section::{Item, Reader};
use crate::config::{defaults, values};

/// Longest path of a Unix socket: `sun_path` without its terminating zero (unix(7)).
const SOCKET_PATH: usize = 107;

/// What `heartbeat` may be, in ns: signs of a box at work are up to 10 ms old, and a scheduler is allowed as much.
const HEARTBEAT: RangeInclusive<u64> = 20_000_000..=10_000_000_000;

/// `listen` is the transparent listener's port, which metrics must leave alone.
pub fn read(reader: &mut Reader<'_>, item: &Item<'_>, listen: u16) -> Gateway {
    let mut gateway = defaults::gateway();
    let Some(section) = reader.table(item, "[gateway]", &["fail", "heartbeat", "admin", "metrics"]) else {
        return gateway;
    };
    if let Some(item) = section.get("fail") {
        let fail = reader.choice(&item, &[("open", Fail::Open), ("closed", Fail::Closed)]);
        gateway.fail = fail.unwrap_or(gateway.fail);
    }
    if let Some(item) = section.get("heartbeat") {
        let time = |text: &str| within(text, values::time(text)?.0, HEARTBEAT, "20ms to 10s");
        gateway.heartbeat = reader.parsed(&item, time).map_or(gateway.heartbeat, Duration::from_nanos);
    }
    if let Some(item) = section.get("admin") {
        gateway.admin = reader.parsed(&item, socket_path).unwrap_or(gateway.admin);
    }
    if let Some(item) = section.get("metrics") {
        gateway.metrics = reader.parsed(&item, values::socket_address);
        if gateway.metrics.is_some_and(|address| address.port() == listen) {
            reader.wrong::<()>(&item, &format!("port {listen} is that of `listen` in [fallback]"));
        }
    }
    gateway
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') {
        return Err(format!("`{text}` is no absolute path; write one like `/run/weir/admin.sock`"));
    }
    if text.ends_with('/') {
        return Err(format!("`{text}` is a folder; the socket needs a name in it"));
    }
    if text.len() > SOCKET_PATH {
        return Err(format!("the path has {} octets; a socket's may have {SOCKET_PATH}", text.len()));
    }
    Ok(text.into())
}
