//! The scenarios of the demo, as a table. Each plays on one family and says what it saw.

mod before;
mod case;
mod denied;
mod forwarded;
pub mod kill;
mod relay;
mod sent;

pub use before::EarlyConnection;
pub use case::{Case, Variant};
pub use kill::play_kill;

use super::stage::{Differs, Seen, Stage};

/// A name that no rule of the demo's configuration mentions.
pub const ALLOWED_NAME: &str = "www.example";
/// A name that the demo's configuration refuses with a reset.
pub const DENIED_NAME: &str = "denied.example";
/// A name that it sends to a pool.
pub const SENT_NAME: &str = "pool.example";
/// A name that it sends to nginx, with a PROXY header.
pub const NGINX_NAME: &str = "nginx.example";
/// A name that it sends to a pool whose servers see the gateway's address.
pub const GATEWAY_NAME: &str = "gateway.example";
/// A name that it sends to a pool where nobody listens.
pub const NOBODY_NAME: &str = "nobody.example";
/// Where the demo's configuration gives everything to the relay.
pub const RELAY_PORT: u16 = 8000;

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
    /// The ways to play it.
    pub variants: &'static [Variant],
    /// Plays it.
    pub play: fn(&Stage<'_>, Case) -> Result<Seen, Differs>,
}

/// The scenarios that need nothing but a running gateway.
pub const SCENARIOS: [Scenario; 11] = [
    Scenario {
        name: "https-allowed",
        asked: "HTTPS: a large body from a host that may be asked",
        expected: "hash of the body equal",
        road: "fast",
        variants: Variant::ALL,
        play: forwarded::play_https,
    },
    Scenario {
        name: "https-denied",
        asked: "HTTPS: denied.example by SNI",
        expected: "client reset, no payload byte on the servers' link",
        road: "fast",
        variants: Variant::DIRECT,
        play: denied::play_https,
    },
    Scenario {
        name: "http-denied",
        asked: "HTTP: denied.example by Host",
        expected: "client reset, no payload byte on the servers' link",
        road: "fast",
        variants: Variant::DIRECT,
        play: denied::play_http,
    },
    Scenario {
        name: "no-server",
        asked: "HTTP: nobody.example, a pool whose servers refuse",
        expected: "client reset after two of them were asked",
        road: "fast",
        variants: Variant::TO_POOL,
        play: denied::play_no_server,
    },
    Scenario {
        name: "post-quantum",
        asked: "HTTPS: ClientHello with X25519MLKEM768 over two segments",
        expected: "handshake done",
        road: "fast",
        variants: Variant::ALL,
        play: forwarded::play_post_quantum,
    },
    Scenario {
        name: "server-first",
        asked: "ports 7777 and 7778, where the server speaks first",
        expected: "greeting, then echo",
        road: "fast",
        variants: Variant::ALL,
        play: forwarded::play_server_first,
    },
    Scenario {
        name: "proxy-v1",
        asked: "HTTP: 1 MiB from nginx, which wants a PROXY header (v1)",
        expected: "nginx names client and destination, hash equal",
        road: "fast",
        variants: Variant::TO_POOL,
        play: sent::play_nginx_http,
    },
    Scenario {
        name: "proxy-v2",
        asked: "HTTPS: 1 MiB from nginx, which wants a PROXY header (v2)",
        expected: "nginx names client and destination, hash equal",
        road: "fast",
        variants: Variant::TO_POOL,
        play: sent::play_nginx_https,
    },
    Scenario {
        name: "gateway-source",
        asked: "HTTP: a pool that says source = \"gateway\"",
        expected: "the origin sees the gateway's address",
        road: "fast",
        variants: Variant::TO_POOL,
        play: sent::play_from_gateway,
    },
    Scenario {
        name: "relay",
        asked: "HTTP from a client with a relay rule",
        expected: "each end sees the other's own address and port",
        road: "relay",
        variants: Variant::DIRECT,
        play: relay::play,
    },
    Scenario {
        name: "relay-send",
        asked: "HTTP: pool.example on port 8000, where handshake = \"relay\"",
        expected: "the pool's server sees the client's own address and port",
        road: "relay",
        variants: &[Variant::RelaySend],
        play: sent::play_by_relay,
    },
];
