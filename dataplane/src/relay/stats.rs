//! What the relay counted. One set for all its workers; each adds with relaxed ordering, since no other
//! memory depends on a count.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use weir_core::relay::{Ending, Failure};

/// A thing the relay counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    Accepted,
    Closed,
    Finished,
    Denied,
    Dropped,
    ConnectFailed,
    ClientFailed,
    ServerFailed,
    Idle,
    Stopped,
    PortChanged,
    Sent,
    Retried,
    RefusedFull,
    RefusedSource,
    RefusedOwn,
    AcceptGone,
    AcceptBackoff,
    WatchBackoff,
    Lost,
    HoldFull,
    HostAsked,
    HostUnasked,
    HostMismatch,
    HostUnknown,
    HelloRetry,
    HelloChanged,
    HelloRefused,
    BytesUp,
    BytesDown,
}

impl Counter {
    /// In the order of their declaration.
    pub const ALL: [Self; 30] = [
        Self::Accepted,
        Self::Closed,
        Self::Finished,
        Self::Denied,
        Self::Dropped,
        Self::ConnectFailed,
        Self::ClientFailed,
        Self::ServerFailed,
        Self::Idle,
        Self::Stopped,
        Self::PortChanged,
        Self::Sent,
        Self::Retried,
        Self::RefusedFull,
        Self::RefusedSource,
        Self::RefusedOwn,
        Self::AcceptGone,
        Self::AcceptBackoff,
        Self::WatchBackoff,
        Self::Lost,
        Self::HoldFull,
        Self::HostAsked,
        Self::HostUnasked,
        Self::HostMismatch,
        Self::HostUnknown,
        Self::HelloRetry,
        Self::HelloChanged,
        Self::HelloRefused,
        Self::BytesUp,
        Self::BytesDown,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Closed => "closed",
            Self::Finished => "finished",
            Self::Denied => "denied",
            Self::Dropped => "dropped",
            Self::ConnectFailed => "connect-failed",
            Self::ClientFailed => "client-failed",
            Self::ServerFailed => "server-failed",
            Self::Idle => "idle",
            Self::Stopped => "stopped",
            Self::PortChanged => "port-changed",
            Self::Sent => "sent",
            Self::Retried => "retried",
            Self::RefusedFull => "refused-full",
            Self::RefusedSource => "refused-source",
            Self::RefusedOwn => "refused-own",
            Self::AcceptGone => "accept-gone",
            Self::AcceptBackoff => "accept-backoff",
            Self::WatchBackoff => "watch-backoff",
            Self::Lost => "lost",
            Self::HoldFull => "hold-full",
            Self::HostAsked => "host-asked",
            Self::HostUnasked => "host-unasked",
            Self::HostMismatch => "host-mismatch",
            Self::HostUnknown => "host-unknown",
            Self::HelloRetry => "hello-retry",
            Self::HelloChanged => "hello-changed",
            Self::HelloRefused => "hello-refused",
            Self::BytesUp => "bytes-up",
            Self::BytesDown => "bytes-down",
        }
    }

    /// What it means, for the operator.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Accepted => "connections taken over from clients",
            Self::Closed => "connections over, for whatever cause",
            Self::Finished => "connections that both ends closed in order",
            Self::Denied => "connections reset by a rule",
            Self::Dropped => "connections dropped by a rule",
            Self::ConnectFailed => "servers that refused, were unreachable or did not answer in time",
            Self::ClientFailed => "connections that the client reset or lost",
            Self::ServerFailed => "connections that the server reset or lost",
            Self::Idle => "connections ended because no byte moved for too long",
            Self::Stopped => "connections reset because the relay was stopped",
            Self::PortChanged => {
                "servers connected from another port than the client's, which was still taken"
            }
            Self::Sent => "connections given to a server of a pool",
            Self::Retried => {
                "of these, connections given to another server, since the first did not take them"
            }
            Self::RefusedFull => "connections reset because the relay had as many as it may",
            Self::RefusedSource => {
                "connections reset because their source had as many, or as many new ones, as it may"
            }
            Self::RefusedOwn => "connections made to the relay's own listener, reset",
            Self::AcceptGone => "connections that were reset before the relay could look at them",
            Self::AcceptBackoff => "pauses in accepting for want of file descriptors or memory",
            Self::WatchBackoff => "sockets that were not watched for a moment for want of memory",
            Self::HoldFull => "receives before a verdict that found no room (`held` in [limits])",
            Self::Lost => {
                "times that the kernel lost what it had to tell for want of memory, and all was asked anew"
            }
            Self::HostAsked => {
                "connections whose name was looked up, to be compared with where they go (verify_host)"
            }
            Self::HostUnasked => {
                "of these, connections whose name could not be looked up: too many were waiting"
            }
            Self::HostMismatch => "connections to an address that is not one of their name's (verify_host)",
            Self::HostUnknown => "connections whose name's addresses are not known (verify_host)",
            Self::HelloRetry => {
                "connections whose server asked the client to say its hello again (HelloRetryRequest)"
            }
            Self::HelloChanged => "of these, connections whose second hello asks for something else",
            Self::HelloRefused => "of these, connections that the rules ended for it",
            Self::BytesUp => "octets given to servers",
            Self::BytesDown => "octets given to clients",
        }
    }

    pub(super) const fn of(ending: Ending) -> Self {
        match ending {
            Ending::Finished => Self::Finished,
            Ending::Denied => Self::Denied,
            Ending::Dropped => Self::Dropped,
            Ending::ConnectFailed(_) => Self::ConnectFailed,
            Ending::Failed(weir_core::relay::Side::Client, _) => Self::ClientFailed,
            Ending::Failed(weir_core::relay::Side::Server, _) => Self::ServerFailed,
            Ending::Idle => Self::Idle,
            Ending::Stopped => Self::Stopped,
        }
    }
}

/// Shared by the workers.
#[derive(Debug, Default)]
pub(super) struct Stats {
    counts: [AtomicU64; Counter::ALL.len()],
    failures: [AtomicU64; Failure::ALL.len()],
}

impl Stats {
    pub fn add(&self, counter: Counter, n: u64) {
        if n > 0 {
            self.counts[counter as usize].fetch_add(n, Relaxed);
        }
    }

    pub fn ended(&self, ending: Ending) {
        self.add(Counter::of(ending), 1);
        if let Ending::ConnectFailed(failure) | Ending::Failed(_, failure) = ending {
            self.failures[failure as usize].fetch_add(1, Relaxed);
        }
    }

    pub fn read(&self) -> Counters {
        Counters {
            counts: std::array::from_fn(|i| self.counts[i].load(Relaxed)),
            failures: std::array::from_fn(|i| self.failures[i].load(Relaxed)),
        }
    }
}

/// The counts of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    counts: [u64; Counter::ALL.len()],
    failures: [u64; Failure::ALL.len()],
}

impl Counters {
    pub fn get(&self, counter: Counter) -> u64 {
        self.counts[counter as usize]
    }

    /// Connections ended by a failure of this kind, of either leg.
    pub fn failures(&self, failure: Failure) -> u64 {
        self.failures[failure as usize]
    }

    /// Connections that exist now.
    pub fn active(&self) -> u64 {
        // Two loads, not one: a connection may have closed in between.
        self.get(Counter::Accepted).saturating_sub(self.get(Counter::Closed))
    }

    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.into_iter().map(|counter| (counter, self.get(counter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stand_where_all_says() {
        for (i, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, i, "{}", counter.name());
        }
        for (i, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, i, "{}", failure.name());
        }
    }

    #[test]
    fn failed_leg_counts_its_side_and_its_kind() {
        let stats = Stats::default();
        stats.ended(Ending::Failed(weir_core::relay::Side::Server, Failure::Reset));
        stats.ended(Ending::ConnectFailed(Failure::Refused));
        let counters = stats.read();
        assert_eq!((counters.get(Counter::ServerFailed), counters.failures(Failure::Reset)), (1, 1));
        assert_eq!((counters.get(Counter::ConnectFailed), counters.failures(Failure::Refused)), (1, 1));
    }
}
