//! `check` of a `[[pool]]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::within;
use crate::config::model::{Check, Probe};
use crate::config::section::{Item, Reader, Section};
use crate::config::{defaults, values};

const KEYS: [&str; 8] = ["kind", "interval", "timeout", "rise", "fall", "path", "host", "status"];
const INTERVAL: RangeInclusive<u64> = 100_000_000..=3_600_000_000_000;
const TIMEOUT: RangeInclusive<u64> = 10_000_000..=60_000_000_000;
const IN_A_ROW: RangeInclusive<u32> = 1..=100;
/// Statuses of answers (RFC 9110, section 15).
const STATUS: RangeInclusive<u16> = 100..=599;

/// Only valid checks; errors are in the report.
pub fn read(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Check> {
    let section = reader.table(item, "check", &KEYS)?;
    let kind = reader.require(&section, "kind")?;
    let mut check = defaults::check(probe(reader, &section, &kind)?);
    let time = |reader: &mut Reader<'_>, key: &str, allowed: RangeInclusive<u64>, shown: &str, default| {
        let parse = |text: &str| within(text, values::time(text)?.0, allowed.clone(), shown);
        let read = section.get(key).and_then(|item| reader.parsed(&item, parse));
        read.map_or(default, Duration::from_nanos)
    };
    check.interval = time(reader, "interval", INTERVAL, "100ms to 1h", check.interval);
    // A short interval that is written alone shortens the timeout, too.
    let timeout = check.timeout.min(check.interval);
    check.timeout = time(reader, "timeout", TIMEOUT, "10ms to 60s", timeout);
    if check.timeout > check.interval {
        reader
            .error(&section.span, "`timeout` in check is longer than `interval`; allowed: up to `interval`");
    }
    let mut count = |key: &str, default| {
        section.get(key).and_then(|item| reader.integer(&item, IN_A_ROW)).unwrap_or(default)
    };
    check.rise = count("rise", check.rise);
    check.fall = count("fall", check.fall);
    Some(check)
}

fn probe(reader: &mut Reader<'_>, section: &Section<'_>, kind: &Item<'_>) -> Option<Probe> {
    let kind = reader.choice(kind, &[("tcp", "tcp"), ("tls", "tls"), ("http", "http")])?;
    let only = |reader: &mut Reader<'_>, key: &str, kinds: &str| {
        if let Some(item) = section.get(key) {
            reader.error(&item.key, format!("`{key}` in check is only for `kind = {kinds}`"));
        }
    };
    let host = section.get("host");
    if kind != "http" {
        only(reader, "path", "\"http\"");
        only(reader, "status", "\"http\"");
    }
    match kind {
        "tls" => Some(Probe::Tls { host: host.and_then(|item| reader.parsed(&item, tls_name)) }),
        "http" => Some(Probe::Http {
            path: section
                .get("path")
                .and_then(|item| reader.parsed(&item, path))
                .unwrap_or_else(|| defaults::CHECK_PATH.to_owned()),
            host: host.and_then(|item| reader.parsed(&item, http_host)),
            status: section.get("status").map_or_else(
                || vec![defaults::CHECK_STATUS],
                |item| reader.list(&item).iter().filter_map(|status| statuses(reader, status)).collect(),
            ),
        }),
        _ => {
            only(reader, "host", "\"tls\" or \"http\"");
            Some(Probe::Tcp)
        }
    }
}

fn tls_name(text: &str) -> Result<String, String> {
    match ServerName::try_from(text) {
        Ok(ServerName::DnsName(_)) => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is no name of a host; write one like `www.example`")),
    }
}

fn http_host(text: &str) -> Result<String, String> {
    let fits = |octet: u8| octet.is_ascii_alphanumeric() || b"-._:[]".contains(&octet);
    if text.is_empty() || !text.bytes().all(fits) {
        return Err(format!("`{text}` is no host; write one like `www.example`, with a port or without"));
    }
    Ok(text.to_owned())
}

fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.bytes().all(|octet| octet.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is no path; write one like `/healthz`, in ASCII and without blanks"))
    }
}

/// One status, or a range of them like `200-399`.
fn statuses(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<RangeInclusive<u16>> {
    if item.is_integer() {
        let status = reader.integer(item, u32::from(*STATUS.start())..=u32::from(*STATUS.end()))?;
        return u16::try_from(status).ok().map(|status| status..=status);
    }
    if !item.is_string() {
        return reader.wrong_type(item, "a status or a range like \"200-399\"");
    }
    reader.parsed(item, |text| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last && STATUS.contains(&first) && STATUS.contains(&last) => {
                Ok(first..=last)
            }
            _ => Err(format!("`{text}` is neither a status (100 to 599) nor a range like `200-399`")),
        }
    })
}
