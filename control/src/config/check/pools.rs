//! Whether pools can carry what rules send to them.

use std::collections::HashMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use weir_core::policy::{Action, InterceptSpec, PoolSpec, RuleSpec, Source};

use crate::config::model::Config;
use crate::config::read::InterceptSpans;
use crate::config::section::Reader;
use crate::config::source::Span;

/// A client is given a server of its own family: a pool must have one for each family that its rules take.
pub fn families(reader: &mut Reader<'_>, config: &Config, spans: &[InterceptSpans]) {
    for (intercept, spans) in config.intercepts.iter().zip(spans) {
        for (rule, span) in intercept.rules.iter().zip(&spans.rules) {
            let Action::Send(pool) = rule.action else { continue };
            let Some(pool) = config.pools.get(usize::from(pool.0)) else { continue };
            for family in [Family::V4, Family::V6] {
                if family.is_taken(intercept, rule) && !family.is_served(&pool.spec) {
                    reader.error(span, family.sentence(&pool.spec));
                }
            }
        }
    }
}

/// Source ports toward a server are counted once, whichever pool it is in.
pub fn ports(reader: &mut Reader<'_>, config: &Config, spans: &[Span]) {
    let mut first: HashMap<SocketAddr, &PoolSpec> = HashMap::new();
    for (pool, span) in config.pools.iter().zip(spans) {
        let pool = &pool.spec;
        for server in pool.servers.iter().filter(|_| pool.source == Source::Gateway) {
            let other = first.entry(server.addr).or_insert(pool);
            if other.ports != pool.ports {
                let message = format!(
                    "pool `{}` has server {} from ports {} to {}, and pool `{}` from {} to {}: write the same \
                     `ports` in both",
                    pool.name,
                    server.addr,
                    pool.ports.start(),
                    pool.ports.end(),
                    other.name,
                    other.ports.start(),
                    other.ports.end()
                );
                reader.error(span, message);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn is(self, v4: bool) -> bool {
        matches!(self, Self::V4) == v4
    }

    fn is_served(self, pool: &PoolSpec) -> bool {
        pool.servers.iter().any(|server| self.is(server.addr.is_ipv4()))
    }

    /// Whether connections of the family can meet the rule.
    fn is_taken(self, intercept: &InterceptSpec, rule: &RuleSpec) -> bool {
        let any = |prefixes: &[IpNet]| prefixes.iter().any(|prefix| self.is(prefix.addr().is_ipv4()));
        let v4 = matches!(self, Self::V4);
        any(&intercept.to) && rule.takes_to(v4) && rule.takes_from(v4)
    }

    fn sentence(self, pool: &PoolSpec) -> String {
        let (name, other, all) = match self {
            Self::V4 => ("IPv4", "IPv6", "::/0"),
            Self::V6 => ("IPv6", "IPv4", "0.0.0.0/0"),
        };
        format!(
            "the rule takes connections to {name} destinations, and pool `{}` has no {name} server: add one, or let the \
             rule take {other} only (`to = [\"{all}\"]`)",
            pool.name
        )
    }
}
