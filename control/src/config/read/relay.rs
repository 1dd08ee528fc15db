//! `[relay]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::within;
use crate::config::model::Relay;
use crate::config::section::{Item, Reader, Section};
use crate::config::{defaults, values};

const KEYS: [&str; 6] = ["connect", "pool_connect", "idle", "half_closed", "keepalive", "user_timeout"];

const SECOND: u64 = 1_000_000_000;
const CONNECT: RangeInclusive<u64> = SECOND / 10..=300 * SECOND;
const IDLE: RangeInclusive<u64> = SECOND..=7 * 24 * 3600 * SECOND;
/// TCP_KEEPIDLE goes to 32,767 s.
const KEEPALIVE: RangeInclusive<u64> = SECOND..=9 * 3600 * SECOND;

pub fn read(reader: &mut Reader<'_>, item: &Item<'_>) -> Relay {
    let mut relay = defaults::relay();
    let Some(section) = reader.table(item, "[relay]", &KEYS) else { return relay };
    let time = |reader: &mut Reader<'_>, key: &str, allowed: RangeInclusive<u64>, shown: &str, default| {
        let parse = |text: &str| within(text, values::time(text)?.0, allowed.clone(), shown);
        let read = section.get(key).and_then(|item| reader.parsed(&item, parse));
        read.map_or(default, Duration::from_nanos)
    };
    relay.connect = time(reader, "connect", CONNECT, "100ms to 300s", relay.connect);
    relay.pool_connect = time(reader, "pool_connect", CONNECT, "100ms to 300s", relay.pool_connect);
    relay.idle = time(reader, "idle", IDLE, "1s to 168h", relay.idle);
    // A short time that is written alone shortens the other, too.
    let half_closed = relay.half_closed.min(relay.idle);
    relay.half_closed = time(reader, "half_closed", IDLE, "1s to 168h", half_closed);
    relay.keepalive = time_or_off(reader, &section, "keepalive", relay.keepalive);
    relay.user_timeout = time_or_off(reader, &section, "user_timeout", relay.user_timeout);
    relay
}

fn time_or_off(
    reader: &mut Reader<'_>,
    section: &Section<'_>,
    key: &str,
    default: Option<Duration>,
) -> Option<Duration> {
    let parse = |text: &str| match text {
        "off" => Ok(None),
        _ => {
            let time = values::time(text).map_err(|error| format!("{error}, or `off`"))?;
            within(text, time.0, KEEPALIVE, "1s to 9h, or off").map(Duration::from_nanos).map(Some)
        }
    };
    section.get(key).and_then(|item| reader.parsed(&item, parse)).unwrap_or(default)
}
