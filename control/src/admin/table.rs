//! Answers as tables, for people.

use std::fmt::Write as _;

use serde_json::Value;

use super::listing;
use crate::shadow;

/// `weir drain` of the box.
pub fn drained(value: &Value) -> String {
    let number = |key: &str| value[key].as_u64().unwrap_or(0);
    let (relay, fast) = (number("cut_relay"), number("cut_fast"));
    let cut = match relay + fast {
        0 => "nothing was cut".to_owned(),
        _ => format!("cut: {relay} on the relay, {fast} on the fast road"),
    };
    format!("drained in {} ms: {} connections were open, {cut}\n", number("took_ms"), number("open"))
}

/// `weir status`: what matters first; counters that moved.
pub fn status(value: &Value) -> String {
    let text = |key: &str| plain(&value[key]);
    let mut out = String::new();
    let health = if value["healthy"] == true { "healthy" } else { "NOT HEALTHY" };
    let _ =
        writeln!(out, "weir {} (pid {}), {health}, up {} s", text("version"), text("pid"), text("uptime_s"));
    for reason in value["unhealthy"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "NOT HEALTHY: {}", plain(reason));
    }
    let _ = writeln!(out, "config {} (epoch {}), {} workers", text("config"), text("epoch"), text("workers"));
    let frames = &value["frames"];
    let _ = writeln!(
        out,
        "flows  fast {} (express {}, standby {}), kernel {}, relay {}\nlanes  express {} packets, worker {}\nframes {} of {} free, {} held, {} sending, {} lost",
        text("flows_fast"),
        text("flows_express"),
        text("flows_standby"),
        text("flows_kernel"),
        text("flows_relay"),
        plain(&value["lanes"]["express"]),
        plain(&value["lanes"]["worker"]),
        plain(&frames["free"]),
        plain(&frames["total"]),
        plain(&frames["held"]),
        plain(&frames["sending"]),
        plain(&frames["lost"]),
    );
    if value["flows_former"].as_u64().is_some_and(|flows| flows > 0) {
        let flows = text("flows_former");
        let _ = writeln!(out, "lane of another version  {flows} flows, until they end");
    }
    for port in value["ports"].as_array().into_iter().flatten() {
        let gone = if port["lost"] == true { "GONE, was " } else { "" };
        let copy = if port["zero_copy"] == true { "zero-copy" } else { "copy" };
        let _ = writeln!(
            out,
            "port   {}: {gone}XDP {}, AF_XDP {copy} (asked {}), queues {}, rx {}, tx {}",
            plain(&port["device"]),
            plain(&port["xdp"]),
            plain(&port["asked"]),
            port["queues"],
            plain(&port["rx_packets"]),
            plain(&port["tx_packets"]),
        );
    }
    for pool in value["pools"].as_array().into_iter().flatten() {
        out += &self::pool(pool);
    }
    for list in value["lists"].as_array().into_iter().flatten() {
        out += &self::list(list);
    }
    for family in ["flows", "drops", "punts", "steering", "relay", "repairs"] {
        for count in value[family].as_array().into_iter().flatten().filter(|c| c["count"] != 0) {
            let (name, meaning) = (plain(&count["name"]), plain(&count["meaning"]));
            let _ = writeln!(out, "{family:<9}{name:<20}{:>12}  {meaning}", plain(&count["count"]));
        }
    }
    for warning in value["warnings"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "warning: {}", plain(warning));
    }
    out
}

/// In `weir status`: a row for a list of names or prefixes.
fn list(list: &Value) -> String {
    format!(
        "list   {}: {} {}, {} bad lines, read {} s ago in {} ms\n",
        plain(&list["file"]),
        plain(&list["entries"]),
        plain(&list["kind"]),
        plain(&list["bad_lines"]),
        plain(&list["loaded_ago_s"]),
        plain(&list["load_ms"]),
    )
}

/// `weir reload`: what was found in the file, and whether it is in force.
pub fn reload(value: &Value) -> String {
    let mut out = String::new();
    for finding in value["findings"].as_array().into_iter().flatten() {
        let line = finding["line"].as_u64().map(|line| format!(":{line}")).unwrap_or_default();
        let (file, severity) = (plain(&finding["file"]), plain(&finding["severity"]));
        let _ = writeln!(out, "{file}{line}: {severity}: {}", plain(&finding["message"]));
    }
    if let Some(refused) = value["refused"].as_str() {
        let _ = writeln!(out, "{refused}");
    }
    let (config, epoch) = (plain(&value["config"]), plain(&value["epoch"]));
    let _ = if value["ok"] == true {
        writeln!(out, "{config} is in force (epoch {epoch})")
    } else {
        writeln!(out, "nothing was changed: the configuration of epoch {epoch} is in force")
    };
    if let Ok(tally) = serde_json::from_value(value["reevaluated"].clone()) {
        let _ = writeln!(out, "live connections, judged again: {}", shadow::counts(&tally));
    }
    if let Some(incomplete) = value["incomplete"].as_str() {
        let _ = writeln!(out, "{incomplete}");
    }
    out
}

/// `weir drain`, and in `weir status`: a row for each server of the pool.
pub fn pool(value: &Value) -> String {
    let mut out = String::new();
    for server in value["servers"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "pool   {}: {:<24} {:<8} weight {:<3} for {} s: {}",
            plain(&value["name"]),
            plain(&server["address"]),
            plain(&server["state"]),
            plain(&server["weight"]),
            plain(&server["since_s"]),
            plain(&server["why"]),
        );
    }
    out
}

/// `weir flows`: one row a flow.
pub fn flows(value: &Value) -> String {
    const COLUMNS: [&str; 9] =
        ["client", "destination", "host", "proto", "verdict", "rule", "road", "reason", "bytes up/down"];
    let mut rows: Vec<[String; 9]> = vec![COLUMNS.map(str::to_owned)];
    let (flows, incomplete) = listing::parts(value);
    for flow in flows {
        let field = |key: &str| plain(&flow[key]);
        rows.push([
            field("client"),
            field("destination"),
            field("host"),
            protocol(flow),
            field("verdict"),
            field("rule"),
            road(flow),
            field("reason"),
            format!("{}/{}", field("bytes_to_server"), field("bytes_to_client")),
        ]);
    }
    let mut widths = [0; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in &rows {
        let line: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let _ = writeln!(out, "{} flows", flows.len());
    if let Some(incomplete) = incomplete {
        let _ = writeln!(out, "{incomplete}");
    }
    out
}

/// The road; and the lane where it is the express lane.
fn road(flow: &Value) -> String {
    let lane = if flow["lane"] == "express" { "/express" } else { "" };
    plain(&flow["road"]) + lane
}

/// The protocol; that Encrypted ClientHello is offered, so that the name may be an outer one; and that the server asked for a
/// second hello, which may say something else.
fn protocol(flow: &Value) -> String {
    let ech = if flow["ech"] == true { "+ech" } else { "" };
    let retry = match flow["hello_retry"].as_str() {
        Some("changed") => "+retry!",
        Some(_) => "+retry",
        None => "",
    };
    plain(&flow["protocol"]) + ech + retry
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
