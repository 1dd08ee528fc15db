//! Which differences between two configurations a running gateway cannot take: what it was started on.

use crate::config::{Config, Places, Port};

use super::convert;

/// Why `new` cannot take the place of `now` without a restart, in one sentence with the line of the file; none when it
/// can.
pub fn refusal(now: &Config, new: &Config, places: &Places) -> Option<String> {
    gateway(now, new, places)
        .or_else(|| ports(now, new, places))
        .or_else(|| workers(now, new, places))
        .or_else(|| relay(now, new, places))
        .or_else(|| road(now, new, places))
}

fn sentence(place: &str, what: &str) -> String {
    format!("{place}: {what} cannot change while weir runs: put it back, or restart weir to have it so")
}

fn gateway(now: &Config, new: &Config, places: &Places) -> Option<String> {
    let of =
        |section: &str, key: &str| sentence(&places.of(section, 0, key), &format!("`{key}` in [{section}]"));
    let (before, after) = (&now.gateway, &new.gateway);
    [
        (before.fail != after.fail, "gateway", "fail"),
        (before.heartbeat != after.heartbeat, "gateway", "heartbeat"),
        (before.admin != after.admin, "gateway", "admin"),
        (before.metrics != after.metrics, "gateway", "metrics"),
        (now.fallback.listen != new.fallback.listen, "fallback", "listen"),
    ]
    .into_iter()
    .find(|(differs, ..)| *differs)
    .map(|(_, section, key)| of(section, key))
}

fn ports(now: &Config, new: &Config, places: &Places) -> Option<String> {
    let is_same = |a: &Port, b: &Port| (&a.device, &a.queues, a.mode) == (&b.device, &b.queues, b.mode);
    let pairs = now.ports.iter().zip(&new.ports).enumerate();
    if let Some((at, (before, after))) = pairs.into_iter().find(|(_, (a, b))| !is_same(a, b)) {
        let (key, was) = if before.device != after.device {
            ("device", before.device.clone())
        } else if before.mode != after.mode {
            ("mode", before.mode.name().to_owned())
        } else {
            ("queues", format!("{:?}", before.queues).to_lowercase())
        };
        let what = format!("`{key}` of port {} (now {was})", after.name);
        return Some(sentence(&places.of("port", at, key), &what));
    }
    let (before, after) = (now.ports.len(), new.ports.len());
    (before != after).then(|| {
        let at = before.min(after.saturating_sub(1));
        let what = format!("the number of ports (now {before})");
        sentence(&places.of("port", at, "name"), &what)
    })
}

fn workers(now: &Config, new: &Config, places: &Places) -> Option<String> {
    let (before, after) = (&now.workers, &new.workers);
    let key = [
        (before.cores != after.cores, "cores"),
        (before.idle != after.idle, "idle"),
        (before.express != after.express, "express"),
        (before.flows != after.flows, "flows"),
    ]
    .into_iter()
    .find(|(differs, _)| *differs)
    .map(|(_, key)| key)?;
    Some(sentence(&places.of("workers", 0, key), &format!("`{key}` in [workers]")))
}

fn relay(now: &Config, new: &Config, places: &Places) -> Option<String> {
    let (before, after) = (&now.relay, &new.relay);
    let (_, key) = [
        (before.connect != after.connect, "connect"),
        (before.pool_connect != after.pool_connect, "pool_connect"),
        (before.idle != after.idle, "idle"),
        (before.half_closed != after.half_closed, "half_closed"),
        (before.keepalive != after.keepalive, "keepalive"),
        (before.user_timeout != after.user_timeout, "user_timeout"),
    ]
    .into_iter()
    .find(|(differs, _)| *differs)?;
    Some(sentence(&places.of("relay", 0, key), &format!("`{key}` in [relay]")))
}

/// A box with a fast road has programs and devices that one without has not.
fn road(now: &Config, new: &Config, places: &Places) -> Option<String> {
    let what = match (convert::has_fast_road(now), convert::has_fast_road(new)) {
        (false, true) => "that no intercept has a fast road (`handshake = \"relay\"`)",
        (true, false) => "that some intercept has a fast road (a handshake other than `relay`)",
        _ => return None,
    };
    Some(sentence(&places.of("intercept", 0, "handshake"), what))
}

/// The pool of `new` whose gateway ports differ from those of the pool of its name in `now`, and its line.
pub fn moved_ports(now: &Config, new: &Config, places: &Places) -> Option<(String, String)> {
    let of = |config: &Config, name: &str| {
        config.pools.iter().find(|pool| pool.spec.name == name).map(|pool| pool.spec.ports.clone())
    };
    let mut pools = new.pools.iter().enumerate();
    let (at, pool) =
        pools.find(|(_, pool)| of(now, &pool.spec.name).is_some_and(|ports| ports != pool.spec.ports))?;
    Some((pool.spec.name.clone(), places.of("pool", at, "ports")))
}
