//! What a rule says of the name that a client asks for.

use std::net::IpAddr;
use std::sync::Arc;

use super::NameSet;

/// One of these must hold.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// Names written in the rule, and lists, which rules share.
    pub sets: Vec<Arc<NameSet>>,
    /// The client asks for no name: TLS without server_name, HTTP without Host.
    pub none: bool,
    /// The name is an address literal (RFC 6066 forbids that in TLS, and clients send it).
    pub address: bool,
}

impl Hosts {
    /// Whether the rule says nothing of names.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty() && !self.none && !self.address
    }

    /// `host` of a connection whose protocol was recognised.
    pub fn matches(&self, host: Option<&str>) -> bool {
        match host {
            None => self.none,
            Some(host) => {
                self.sets.iter().any(|set| set.contains(host))
                    || (self.address && host.parse::<IpAddr>().is_ok())
            }
        }
    }

    /// Whether every name of `other` is one of these. True only where that is certain: sets are compared one by one.
    pub fn covers(&self, other: &Self) -> bool {
        let any = self.sets.iter().any(|set| set.is_any());
        let covers = |theirs: &Arc<NameSet>| {
            self.sets.iter().any(|mine| Arc::ptr_eq(mine, theirs) || mine.covers(theirs))
        };
        (self.none || !other.none)
            && (self.address || any || !other.address)
            && (any || other.sets.iter().all(covers))
    }
}
