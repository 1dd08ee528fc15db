//! The configuration of a weir in the gateway of a lab, as the benchmarks have it: two ports, one intercept of both families.

use std::fmt;

use weir_control::lab::{LAN_DEVICE, WAN_DEVICE};

/// Refuses by name what no client of a benchmark asks for: weir has to look.
pub const DENIED: &str = r#"{ host = ["denied.example"], action = "reset" }"#;

/// What differs between them; lines of TOML, or nothing.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// Of `[gateway]`.
    pub gateway: &'a str,
    /// Of `[workers]`.
    pub workers: &'a str,
    /// Sections before the intercept.
    pub more: &'a str,
    /// TCP ports of the intercept.
    pub tcp: &'a [u16],
    /// Of the intercept.
    pub intercept: &'a str,
    /// Rules of the intercept.
    pub rules: &'a str,
}

impl Default for Config<'_> {
    fn default() -> Self {
        Self { gateway: "", workers: "", more: "", tcp: &[], intercept: "", rules: DENIED }
    }
}

impl fmt::Display for Config<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gateway, workers, more, tcp, intercept, rules } = self;
        write!(
            f,
            r#"[gateway]
{gateway}

[[port]]
name   = "lan"
device = "{LAN_DEVICE}"

[[port]]
name   = "wan"
device = "{WAN_DEVICE}"

[workers]
{workers}

{more}

[[intercept]]
name = "web"
from = "lan"
to   = ["0.0.0.0/0", "::/0"]
tcp  = {tcp:?}
{intercept}
rules = [{rules}]
"#
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_of_every_benchmark_is_one_that_weir_takes() {
        let pool = "[[pool]]\nname = \"pool\"\nservers = [\"192.0.2.11:80\", \"[2001:db8:2::11]:80\"]";
        for config in [
            Config { workers: "cores = [0]", tcp: &[80, 443], ..Config::default() },
            Config {
                gateway: "fail = \"closed\"",
                more: pool,
                tcp: &[80],
                intercept: "handshake = \"answer\"",
                rules: r#"{ host = ["www.example"], action = "send", pool = "pool" }"#,
                ..Config::default()
            },
        ] {
            let read = weir_control::config::parse("weir.toml".as_ref(), config.to_string());
            assert!(read.is_ok(), "{config}\n{read:?}");
        }
    }
}
