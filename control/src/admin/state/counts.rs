//! Counters as rows: a name, how many, what that means.

use weir_dataplane::stats::Gauges;

use super::Count;

pub(super) fn counts<R: Copy>(
    all: &[R],
    values: &[u64],
    name: fn(R) -> &'static str,
    sentence: fn(R) -> &'static str,
) -> Vec<Count> {
    all.iter()
        .zip(values)
        .map(|(reason, count)| Count { name: name(*reason), count: *count, meaning: sentence(*reason) })
        .collect()
}

pub(super) fn totals(t: &weir_core::pipeline::Totals, gauges: &Gauges) -> Vec<Count> {
    [
        ("opened", t.opened, "Connections whose SYN was taken by an intercept."),
        ("allowed", t.allowed, "Connections allowed by a verdict."),
        ("reset", t.reset, "Connections refused with a reset."),
        ("dropped", t.dropped, "Connections dropped without an answer."),
        ("unidentified", t.unidentified, "Connections whose first bytes could not be identified."),
        ("relayed", t.relayed, "Connections given to the relay."),
        ("midstream", t.midstream, "Connections from before the start, given to the kernel."),
        ("expired", t.expired, "Connections forgotten because nothing came for too long."),
        (
            "bypassed",
            t.bypassed,
            "Connections whose first bytes passed while no worker breathed (fail = \"open\").",
        ),
        ("sent", t.sent, "Connections given to a pool."),
        ("retried", t.retried, "Connections for which a second server of their pool was tried."),
        ("failed", t.failed, "Connections reset since no server took them."),
        ("cookies-sent", t.cookies_sent, "SYNs answered with a cookie and without state."),
        ("cookies-accepted", t.cookies_accepted, "Connections made from a cookie that came back."),
        ("cookies-failed", t.cookies_failed, "ACKs of unknown connections that brought no cookie of ours."),
        ("limited", t.limited, "Connections refused because a bound of `[limits]` was reached."),
        ("reevaluated", t.reevaluated, "Connections that a reload judged again and ended."),
        (
            "host-asked",
            t.host_asked,
            "Connections whose name was looked up, to be compared with where they go (verify_host).",
        ),
        (
            "host-unasked",
            t.host_unasked,
            "Of these, connections whose name could not be looked up: too many were waiting.",
        ),
        (
            "host-mismatch",
            t.host_mismatch,
            "Connections to an address that is not one of their name's (verify_host).",
        ),
        ("host-unknown", t.host_unknown, "Connections whose name's addresses are not known (verify_host)."),
        ("express-entered", t.express_entered, "Connections given to the express lane."),
        (
            "express-full",
            t.express_full,
            "Connections that the express lane had no room for: their worker carries them.",
        ),
        (
            "recycled",
            t.recycled,
            "Connections that were over and forgotten early, since a new one wanted the place.",
        ),
    ]
    .into_iter()
    .chain(second_hellos(t))
    .chain(crossings(gauges))
    .map(|(name, count, meaning)| Count { name, count, meaning })
    .collect()
}

fn second_hellos(t: &weir_core::pipeline::Totals) -> [(&'static str, u64, &'static str); 3] {
    [
        (
            "hello-retry",
            t.hello_retry,
            "Connections whose server asked the client to say its hello again (HelloRetryRequest).",
        ),
        (
            "hello-changed",
            t.hello_changed,
            "Of these, connections whose second hello asks for something else.",
        ),
        (
            "hello-refused",
            t.hello_refused,
            "Connections ended since the rules judge the second hello otherwise, or no server had asked for one.",
        ),
    ]
}

/// Frames that went from one worker or port to another.
const fn crossings(gauges: &Gauges) -> [(&'static str, u64, &'static str); 3] {
    [
        ("handed-over", gauges.handed_over, "Frames that crossed from one worker to another."),
        ("crossed", gauges.crossed, "Frames that went from port to port by descriptor: weir copied none."),
        ("crossed-zero-copy", gauges.crossed_zero_copy, "Of these, those that nobody copied."),
    ]
}
