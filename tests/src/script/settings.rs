//! What stands at the head of a script: how the bench is set up.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, from_value};
use weir_core::ids::{Nanos, PoolId};
use weir_core::policy::{Action, NameSet, PoolSpec, RuleSpec};

use crate::bench::{FRAME, Setup, client_of};
use crate::packet::Family;

use super::legs::{POOL_PORT, pool_server};
use super::syntax::{Words, span};

/// The setup of a script's bench.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) setup: Setup,
    /// Only for this family.
    pub(super) family: Option<Family>,
    /// The bench starts within the grace time.
    pub(super) in_grace: bool,
    /// Rules before those of the bench; `true`: of the bench's client alone.
    rules: Vec<(RuleSpec, bool)>,
    /// How many servers the pool has, and what it is like.
    servers: u8,
    pool: Option<PoolSpec>,
}

impl Settings {
    /// The setup for one family.
    pub(super) fn setup_for(&self, family: Family) -> Setup {
        let mut setup = self.setup.clone();
        let own = self.rules.iter().cloned().map(|(mut rule, of_client)| {
            if of_client {
                rule.from = vec![client_of(family).into()];
            }
            rule
        });
        setup.spec.rules.splice(0..0, own);
        if self.servers > 0 {
            let spec = self.pool.clone().unwrap_or_else(|| PoolSpec::new("pool"));
            let server = |n| SocketAddr::from((pool_server(family, n), POOL_PORT));
            setup.pools = vec![(1..=self.servers).fold(spec, |spec, n| spec.server(server(n)))];
        }
        setup
    }

    /// Takes one setting.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<usize>().map_err(|_| format!("`{value}` is no number"));
        let (config, spec) = (&mut self.setup.config, &mut self.setup.spec);
        let (limits, pool) = (&mut self.setup.limits, self.pool.get_or_insert_with(|| PoolSpec::new("pool")));
        match key {
            "handshake" => spec.handshake = word(value)?,
            "unidentified" => spec.unidentified = action(value)?,
            "otherwise" => spec.otherwise = action(value)?,
            "midstream" => spec.midstream.action = action(value)?,
            "grace" => spec.midstream.grace = span(value)?,
            "full" => spec.full = word(value)?,
            "hold.bytes" => spec.hold_bytes = number()? as u32,
            "hold.time" => spec.hold_time = span(value)?,
            "hold.frames" => config.hold_frames = number()?,
            "holds" => config.holds = number()?,
            "flows" => config.flows.fast = number()?,
            "names" => config.names = number()?,
            "frames" => self.setup.frames = number()?,
            "mtu.lan" | "mtu.wan" => {
                let mtu = number()?;
                if mtu > FRAME {
                    return Err(format!("frames have {FRAME} octets"));
                }
                let link = &mut self.setup.fib.links[usize::from(key == "mtu.wan")];
                link.as_mut().ok_or("the bench has this link")?.mtu = mtu as u16;
            }
            "syn_cookies" => spec.syn_cookies = word(value)?,
            "limits.half_open" => limits.half_open = number()? as u32,
            "limits.flows" => limits.source.flows = Some(number()? as u32),
            "limits.rate" => limits.source.rate = Some(number()? as u32),
            "limits.over" => limits.source_over = action(value)?,
            "limits.held" => limits.held_full = word(value)?,
            "pool" => self.servers = number()? as u8,
            "pool.source" => pool.source = word(value)?,
            "pool.proxy" => pool.proxy = Some(word(value)?),
            "pool.ports" => pool.ports = number()? as u16..=number()? as u16,
            "start" if value == "grace" => self.in_grace = true,
            "family" => {
                self.family = Some(match value {
                    "IPv4" => Family::V4,
                    "IPv6" => Family::V6,
                    _ => return Err("IPv4 or IPv6".into()),
                });
            }
            "rule" => self.rules.push(rule(value)?),
            _ => return Err(format!("no such setting: `{key}`")),
        }
        Ok(())
    }

    /// The time after the start at which the script begins.
    pub(super) fn begins(&self) -> Nanos {
        if self.in_grace { Nanos(0) } else { self.setup.spec.midstream.grace }
    }
}

/// A word of the configuration, as it is spelled there.
fn word<T: serde::de::DeserializeOwned>(value: &str) -> Result<T, String> {
    from_value(Value::from(value)).map_err(|error| error.to_string())
}

fn action(value: &str) -> Result<Action, String> {
    match value {
        "allow" => Ok(Action::Allow),
        "reset" => Ok(Action::Reset),
        "drop" => Ok(Action::Drop),
        "relay" => Ok(Action::Relay),
        "send" => Ok(Action::Send(PoolId(0))),
        _ => Err(format!("no such action: `{value}`")),
    }
}

/// `ACTION`, then conditions: `host NAME`, `from client`, `tcp PORT`, `protocol WORD`, `alpn NAME`.
fn rule(value: &str) -> Result<(RuleSpec, bool), String> {
    let mut words = Words::of(value);
    let mut rule = RuleSpec::new(action(words.word("an action")?)?);
    let mut of_client = false;
    while let Some(condition) = words.peek() {
        words.skip();
        let of = words.word("what it is about")?;
        match (condition, of) {
            ("host", name) => rule.host = Some(Arc::new(NameSet::parse([name]).map_err(|e| e.to_string())?)),
            ("from", "client") => of_client = true,
            ("tcp", port) => {
                let port = port.parse().map_err(|_| format!("`{port}` is no port"))?;
                rule.tcp.push(port..=port);
            }
            ("protocol", protocol) => rule.protocol = Some(word(protocol)?),
            ("alpn", name) => rule.alpn.push(name.into()),
            _ => return Err(format!("no such condition: `{condition} {of}`")),
        }
    }
    Ok((rule, of_client))
}
