//! Tests of the machine by what is reported, and of probes against servers on the loopback.

mod machine;
mod servers;

use std::net::SocketAddr;
use std::time::Duration;

use weir_core::ids::{Nanos, PoolId, ServerId};
use weir_core::policy::{PoolSpec, Server, ServerState};

use super::*;
use crate::config::{Check, Pool, Probe};

pub(super) fn check(probe: Probe) -> Check {
    let time = Duration::from_millis(200);
    Check { probe, interval: time, timeout: time, rise: 2, fall: 3 }
}

pub(super) fn pool(name: &str, servers: &[SocketAddr], check: Option<Check>) -> Pool {
    let servers = servers.iter().copied().map(Server::new).collect();
    Pool { spec: PoolSpec { servers, ..PoolSpec::new(name) }, check }
}
