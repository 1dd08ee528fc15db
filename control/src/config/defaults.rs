//! What holds where the file is silent.
//!
//! An intercept's own defaults are those of [`weir_core::policy::InterceptSpec::new`]: handshake `through`, hold 16 KiB
//! and 3 s, full `kernel`, otherwise and unidentified `allow`, midstream `reset` after 60 s. A `[[pool]]` balances by
//! `maglev` and shows the client's address. `name`, `device`, `from`, `to`, `tcp`, `action` and `servers` have none and
//! must be written.

use super::model::{Cores, Express, Fail, Fallback, Gateway, Idle, Mark, Mode, Queues, Workers};

/// `[gateway]`: fails open, admin API at /run/weir/admin.sock, no metrics.
pub fn gateway() -> Gateway {
    Gateway { fail: Fail::Open, admin: "/run/weir/admin.sock".into(), metrics: None }
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
