//! The scenarios of the demo, as a table. Each plays on one family and says what it saw.

mod before;
mod denied;
mod forwarded;
pub mod kill;
mod relay;

pub use before::EarlyConnection;
pub use kill::play_kill;

use super::stage::{Differs, Family, Seen, Stage};

/// A name that no rule of the demo's configuration mentions.
pub const ALLOWED_NAME: &str = "www.example";
/// A name that the demo's configuration refuses with a reset.
pub const DENIED_NAME: &str = "denied.example";
/// Bytes of the large body.
pub const BODY_BYTES: u64 = 10 << 20;

/// One line of the table below.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Short name, for `--json` and tests.
    pub name: &'static str,
    /// What is asked.
    pub asked: &'static str,
    /// What should happen.
    pub expected: &'static str,
    /// The road it should take.
    pub road: &'static str,
    /// Plays it.
    pub play: fn(&Stage<'_>, Family) -> Result<Seen, Differs>,
}

/// The scenarios that need nothing but a running gateway.
pub const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "https-allowed",
        asked: "HTTPS: 10 MiB from www.example",
        expected: "allowed, hash of the body equal",
        road: "fast",
        play: forwarded::play_https,
    },
    Scenario {
        name: "https-denied",
        asked: "HTTPS: denied.example by SNI",
        expected: "client reset, no payload byte on the servers' link",
        road: "fast",
        play: denied::play_https,
    },
    Scenario {
        name: "http-denied",
        asked: "HTTP: denied.example by Host",
        expected: "client reset, no payload byte on the servers' link",
        road: "fast",
        play: denied::play_http,
    },
    Scenario {
        name: "post-quantum",
        asked: "HTTPS: ClientHello with X25519MLKEM768 over two segments",
        expected: "allowed, handshake done",
        road: "fast",
        play: forwarded::play_post_quantum,
    },
    Scenario {
        name: "server-first",
        asked: "port 7777, where the server speaks first",
        expected: "greeting, then echo",
        road: "fast",
        play: forwarded::play_server_first,
    },
    Scenario {
        name: "relay",
        asked: "HTTP from a client with a relay rule",
        expected: "each end sees the other's own address and port",
        road: "relay",
        play: relay::play,
    },
];
