//! What holds where the file is silent.
//!
//! An intercept's own defaults are those of [`weir_core::policy::InterceptSpec::new`]: handshake `through`, hold 16 KiB
//! and 3 s, full `kernel`, SYN cookies `auto`, QUIC `pass`, otherwise and unidentified `allow`, midstream `reset` after
//! 60 s. A pool's own are those of [`weir_core::policy::PoolSpec::new`]: it balances by `maglev` and the client's address,
//! shows servers the client's address, writes no PROXY header and checks nothing; a server has weight 1. `name`,
//! `device`, `from`, `to`, `tcp`, `action`, `servers` and the `kind` of a check have none and must be written.

use std::sync::Arc;
use std::time::Duration;

use weir_core::policy::{Action, HeldFull, NameSet};
use weir_dataplane::heartbeat::LIMIT;

use super::model::{
    Check, Cores, Express, Fail, Fallback, Gateway, Identity, Idle, Limits, Mark, Mode, Probe, Queues, Relay,
    Workers,
};

/// `[gateway]`: fails open, admin API at /run/weir/admin.sock, no metrics, hangs after 45 ms.
pub fn gateway() -> Gateway {
    Gateway { fail: Fail::Open, admin: "/run/weir/admin.sock".into(), metrics: None, heartbeat: LIMIT }
}

/// `[workers]`: cores chosen by weir, sleeping when idle, room for 1,048,576 flows.
pub fn workers() -> Workers {
    Workers { cores: Cores::Auto, idle: Idle::Adaptive, express: Express::Auto, flows: 1_048_576 }
}

/// `[fallback]`: mark 0x77/0xff, table 177, priority 1077, listener on port 12377.
pub fn fallback() -> Fallback {
    Fallback { mark: Mark { value: 0x77, mask: 0xff }, table: 177, priority: 1077, listen: 12377 }
}

/// `[[port]]`, `queues`: all of them.
pub const QUEUES: Queues = Queues::All;

/// `[[port]]`, `mode`: the best that the driver has.
pub const MODE: Mode = Mode::Auto;

/// `[limits]`: an eighth of `flows` half-open, 64 MiB held, segments wait for room, no bounds on sources.
pub fn limits(flows: u32) -> Limits {
    Limits {
        half_open: (flows / 8).max(1),
        held: 64 << 20,
        held_full: HeldFull::Wait,
        source_flows: None,
        source_rate: None,
        source_over: Action::Drop,
    }
}

/// `[relay]`: 15 s for a server to answer, 7 s for one of a pool; an hour of silence, ten minutes when one end has closed; a silent
/// end is asked after five minutes; octets may stay unacknowledged as long as the kernel tries.
pub const fn relay() -> Relay {
    Relay {
        connect: Duration::from_secs(15),
        pool_connect: Duration::from_secs(7),
        idle: Duration::from_secs(3600),
        half_closed: Duration::from_secs(600),
        keepalive: Some(Duration::from_secs(300)),
        user_timeout: None,
    }
}

/// `[identity]`: the public name of the one operator who hides millions of sites behind it.
pub fn identity() -> Identity {
    let names = NameSet::parse(["cloudflare-ech.com"]).unwrap_or_default();
    Identity { ech_public_names: Arc::new(names) }
}

/// `check` of a `[[pool]]`: every 2 s, at most 1 s long; up after 2 that succeed, down after 3 that fail.
pub const fn check(probe: Probe) -> Check {
    Check { probe, interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 2, fall: 3 }
}

/// `path` of an HTTP check.
pub const CHECK_PATH: &str = "/";

/// `status` of an HTTP check.
pub const CHECK_STATUS: std::ops::RangeInclusive<u16> = 200..=399;
