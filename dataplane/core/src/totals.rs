//! What a worker counts of connections.

/// What became of connections, counted once each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub opened: u64,
    pub allowed: u64,
    pub reset: u64,
    pub dropped: u64,
    pub unidentified: u64,
    pub relayed: u64,
    pub midstream: u64,
    pub expired: u64,
    /// Bytes of the client reached the server past weir, before the verdict.
    pub bypassed: u64,
    /// Given to a pool.
    pub sent: u64,
    /// Of these, those for which a second server was tried.
    pub retried: u64,
    /// Without a server in the end.
    pub failed: u64,
    /// SYNs that were answered with a cookie and no state; cookies that came back, and ACKs that brought none.
    pub cookies_sent: u64,
    pub cookies_accepted: u64,
    pub cookies_failed: u64,
    /// Refused since a source had too many, or too many were half-open.
    pub limited: u64,
    /// Ended since another configuration refuses them.
    pub reevaluated: u64,
    /// Names that a resolver was asked about, and of these, those that nobody had room for (who carries out `questions`
    /// counts them).
    pub host_asked: u64,
    pub host_unasked: u64,
    /// Whose destination was none of their name's addresses; whose name's addresses were not known.
    pub host_mismatch: u64,
    pub host_unknown: u64,
    /// Given to the express lane; and those that it had no room for.
    pub express_entered: u64,
    pub express_full: u64,
    /// Servers that asked for a second hello; of these connections those whose second hello asks for something else, and
    /// those that were ended for it.
    pub hello_retry: u64,
    pub hello_changed: u64,
    pub hello_refused: u64,
    /// Over, and forgotten early, since a new one wanted the place.
    pub recycled: u64,
}
