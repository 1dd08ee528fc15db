//! Configurations for tests: the lab's two ports, one intercept, and what a test wants otherwise.

use std::fmt;

/// Everything a test may choose. The default allows what no test denies.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Queues of each device, and so workers.
    pub queues: u32,
    /// `fail` of `[gateway]`.
    pub fail: &'static str,
    /// `heartbeat` of `[gateway]`. Test machines stand still for longer than the default now and then.
    pub heartbeat: &'static str,
    /// More lines of `[gateway]`.
    pub gateway: String,
    /// `mode` of both ports.
    pub mode: &'static str,
    /// `handshake` of the intercept.
    pub handshake: &'static str,
    /// `grace` of the intercept.
    pub grace: &'static str,
    /// More lines of the intercept.
    pub intercept: &'static str,
    /// Elements of the intercept's `rules`.
    pub rules: &'static str,
    /// `express` of `[workers]`.
    pub express: &'static str,
    /// Room for connections.
    pub flows: u32,
    /// `listen` of `[fallback]`.
    pub listen: u16,
    /// Further sections.
    pub more: String,
}

/// A name that [`Settings::default`] refuses with a reset.
pub const DENIED: &str = "denied.example";
/// A name that it refuses in silence.
pub const DROPPED: &str = "dropped.example";
/// A name that no rule mentions.
pub const ALLOWED: &str = "www.example";

impl Default for Settings {
    fn default() -> Self {
        Self {
            queues: 1,
            fail: "open",
            heartbeat: "5s",
            gateway: String::new(),
            mode: "auto",
            handshake: "through",
            grace: "60s",
            intercept: "",
            rules: r#"
                { from = ["10.77.1.9/32", "fd77:1::9/128"], action = "relay" },
                { host = ["denied.example"], action = "reset" },
                { host = ["dropped.example"], action = "drop" },
            "#,
            express: "auto",
            flows: 4096,
            listen: 12377,
            more: String::new(),
        }
    }
}

impl Settings {
    /// With the heartbeat that weir has unless told otherwise: for tests in which it hangs.
    pub fn prompt() -> Self {
        Self { heartbeat: "45ms", ..Self::default() }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fail, heartbeat, gateway, mode, handshake, grace, intercept, rules, listen, more, .. } =
            self;
        let Self { express, flows, .. } = self;
        writeln!(f, "[gateway]\nfail = \"{fail}\"\nheartbeat = \"{heartbeat}\"\n{gateway}")?;
        for (name, device) in [("lan", "lan0"), ("wan", "wan0")] {
            writeln!(f, "[[port]]\nname = \"{name}\"\ndevice = \"{device}\"\nmode = \"{mode}\"")?;
        }
        writeln!(f, "[workers]\nexpress = \"{express}\"\nflows = {flows}\n[fallback]\nlisten = {listen}")?;
        writeln!(f, "[[intercept]]\nname = \"web\"\nfrom = \"lan\"\nto = [\"0.0.0.0/0\", \"::/0\"]")?;
        writeln!(f, "tcp = [80, 443, 7777]\nhandshake = \"{handshake}\"")?;
        writeln!(
            f,
            "midstream = {{ action = \"reset\", grace = \"{grace}\" }}\n{intercept}\nrules = [{rules}]\n{more}"
        )
    }
}
