//! The loads, and the names of what is measured under each.

use clap::ValueEnum;

use crate::contender::Contender;

pub const HELLO: &str = "new connections, TLS ClientHello";
pub const HELLO_CPU: &str = "CPU of a connection, TLS ClientHello";
pub const CLOSE: &str = "new connections, HTTP/1.1";
pub const CLOSE_CPU: &str = "CPU of a connection, HTTP/1.1";
pub const REQUESTS: &str = "requests, 64 kept connections";
pub const REQUEST_CPU: &str = "CPU of a request";
pub const LATENCY: [(&str, f64); 3] = [
    ("latency at a fixed rate, p50", 0.5),
    ("latency at a fixed rate, p99", 0.99),
    ("latency at a fixed rate, p99.9", 0.999),
];
pub const BULK: &str = "bulk, packets of the MTU";
pub const BULK_CPU: &str = "bulk, packets of the MTU: CPU";
pub const LARGE: &str = "bulk, offloads on";
pub const LARGE_CPU: &str = "bulk, offloads on: CPU";
pub const SMALL: &str = "small packets of one connection";
pub const SMALL_CPU: &str = "CPU of a small packet";
pub const SMALL6: &str = "small packets of one connection, IPv6";
pub const SMALL6_CPU: &str = "CPU of a small packet, IPv6";
pub const FLOOD_SUCCESS: &str = "SYN flood: connections of a real client that succeed";
pub const FLOOD_TAIL: &str = "SYN flood: a real client's time, p99";
pub const FLOOD_CPU: &str = "SYN flood: CPU of a SYN";
pub const CROWD_CPU: &str = "CPU of a gateway with 100,000 idle connections";
pub const GAPS: [(&str, &str); 4] = [
    ("longest pause of a connection, nothing happens", "packets lost, nothing happens"),
    ("longest pause of a connection, SIGKILL", "packets lost, SIGKILL"),
    ("longest pause of a connection, start after SIGKILL", "packets lost, start after SIGKILL"),
    ("longest pause of a connection, upgrade", "packets lost, upgrade"),
];
pub const MEMORY: &str = "memory of an idle connection, process";
pub const SLAB: &str = "memory of an idle connection, kernel";

/// What is put on a contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Load {
    /// New connections with a TLS ClientHello, 64 at a time.
    Hello,
    /// New connections with an HTTP/1.1 request, 64 at a time.
    Close,
    /// Requests on 64 connections that stay.
    Requests,
    /// Requests at a fixed rate: how long answers take.
    Latency,
    /// Four streams in packets of the MTU.
    Bulk,
    /// Four streams with all offloads of veth.
    BulkLarge,
    /// Segments of one connection without payload, 64 octets on a wire over IPv4, as many as are carried.
    Small,
    /// SYNs from random addresses, 50,000 a second, and a real client beside them.
    Flood,
    /// Connections that say nothing after their first request: their memory.
    Idle,
    /// A hundred thousand connections that say nothing: the CPU time of the gateway that remembers them.
    Crowd,
    /// weir is killed, started, and replaced: for how long a connection stands still, by a packet each millisecond.
    Gap,
}

impl Load {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether a contender is measured under it. A program in XDP takes no packets larger than a frame; a proxy passes no segments on;
    /// who carries nothing itself needs no memory for connections, and ceilings carry what is given to them.
    pub fn suits(self, contender: Contender) -> bool {
        let inspects = contender == Contender::HaproxyInspects;
        let is_proxy =
            inspects || matches!(contender, Contender::Nginx | Contender::Haproxy | Contender::Relay);
        let is_worker = matches!(contender, Contender::ThroughWorker | Contender::AnswerWorker);
        let is_ceiling = matches!(contender, Contender::Redirect | Contender::Bypass);
        match self {
            Self::BulkLarge => !inspects && (is_proxy || contender == Contender::Forwarding),
            Self::Small => !is_proxy,
            Self::Flood => !is_ceiling && !inspects,
            // Of an idle connection there is the same in memory with and without the lane, or rules.
            Self::Idle => !is_ceiling && !inspects && !is_worker && contender != Contender::Forwarding,
            Self::Crowd => is_worker || matches!(contender, Contender::Through | Contender::Answer),
            Self::Gap => matches!(contender, Contender::Through | Contender::Answer),
            _ => true,
        }
    }

    /// Whether it needs a contender that has carried nothing before.
    pub const fn needs_fresh(self) -> bool {
        matches!(self, Self::Flood | Self::Idle | Self::Crowd | Self::Gap)
    }
}
