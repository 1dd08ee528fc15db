//! What `weir flows` shows of a connection on the relay.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use weir_core::fib::Fib;
use weir_core::ids::{MAX_PORTS, Nanos};
use weir_core::policy::Cause;
use weir_core::reevaluate::{Evidence, Standing};
use weir_core::relay::Judge;
use weir_core::verify::{Answers, HostCheck, Verified};

use super::conn::Connection;

/// One connection on the relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RelayFlow {
    pub client: SocketAddr,
    /// Where the client wanted to go.
    pub destination: SocketAddr,
    /// Where the connection goes: there, unless a pool took it.
    pub server: SocketAddr,
    /// Where the server sees the connection come from: the client, unless its port was taken or the pool says otherwise.
    pub source: SocketAddr,
    pub intercept: Option<String>,
    /// The port that leads back to the client, where it is known.
    pub port: Option<u8>,
    /// The VLAN of that port: `10`, or `100.10`; none where the way back has no tag.
    pub vlan: Option<String>,
    /// The name the client asked for.
    pub host: Option<String>,
    /// `tls`, `http` or `other`, once recognised.
    pub protocol: Option<&'static str>,
    /// ALPN names that the client offered.
    pub alpn: Vec<String>,
    /// It offered Encrypted ClientHello: `host` may be an outer name.
    pub ech: bool,
    /// What is known of its first bytes.
    pub evidence: Evidence,
    pub standing: Standing,
    /// The configuration that decides, or has decided.
    pub epoch: u32,
    /// What `verify_host` found: `matches`, `differs`, `unknown`; `waiting` for the resolver; none where nobody looks.
    pub host_check: Option<&'static str>,
    /// The same, as far as it is known without asking.
    pub host_known: Option<Verified>,
    /// Whether the server asked for a second hello, and what that says: `asked`, `same`, `changed`.
    pub hello_retry: Option<&'static str>,
    /// `allow`, `relay`, `send`, `reset`, `drop`; none while the verdict is sought.
    pub verdict: Option<&'static str>,
    /// Where the rule that decided stands: `file:line`.
    pub rule: Option<String>,
    /// `rule`, `otherwise`, `unidentified` or why nothing could be read; `host-mismatch`, `host-unknown`; `no-intercept`;
    /// `held`, `host-waiting`.
    pub reason: &'static str,
    /// `held`, `connecting`, `open`, or how it ended while it is being closed.
    pub state: &'static str,
    /// Octets given to the server, and to the client.
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Octets received and not yet given on.
    pub buffered: u32,
    pub age: Duration,
    /// Since a byte last moved.
    pub idle: Duration,
}

impl RelayFlow {
    pub(super) fn of(conn: &Connection, fib: &Fib, answers: &Answers, now: Nanos) -> Self {
        let Connection { machine, judge, .. } = conn;
        let judgement = judge.judgement();
        let waits = judge.check() == HostCheck::Waiting;
        let (bytes_up, bytes_down) = machine.traffic();
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let since = |then: Nanos| Duration::from_nanos(now.saturating_sub(then).0);
        Self {
            client: conn.client(),
            destination: conn.destination(),
            server: conn.ends().server,
            source: conn.ends().source,
            intercept: judge.intercept().map(|intercept| intercept.name.clone()),
            // A VLAN that has gone since has no port.
            port: judge.port().map(|link| fib.carrier(link).0).filter(|port| usize::from(*port) < MAX_PORTS),
            vlan: judge.port().and_then(|link| fib.vlans.get(link)).map(|of| of.vlan.to_string()),
            alpn: judgement.map(|j| j.alpn().names().map(text).collect()).unwrap_or_default(),
            ech: judgement.is_some_and(|j| j.ech),
            evidence: judge.evidence(),
            standing: conn.standing(),
            epoch: judge.epoch(),
            host: judgement.and_then(|j| j.host.as_deref()).map(str::to_owned),
            protocol: judgement.and_then(|j| j.protocol).map(protocol_name),
            host_check: judge.check().name(),
            host_known: judge.known(answers, now),
            hello_retry: judge.hello_retry().name(),
            verdict: judgement.filter(|_| !waits).map(|j| j.decision.action.name()),
            rule: judge.origin().filter(|_| !waits).map(str::to_owned),
            reason: reason(judge),
            state: match (machine.ending(), machine.is_held(), machine.is_connected()) {
                (Some(ending), _, _) => ending.name(),
                (None, true, _) => "held",
                (None, false, false) => "connecting",
                (None, false, true) => "open",
            },
            bytes_up,
            bytes_down,
            buffered: machine.buffered(),
            age: since(machine.opened()),
            idle: since(machine.active()),
        }
    }
}

fn protocol_name(protocol: weir_core::policy::Protocol) -> &'static str {
    use weir_core::policy::Protocol::{Http, Other, Tls};
    match protocol {
        Tls => "tls",
        Http => "http",
        Other => "other",
    }
}

fn reason(judge: &Judge) -> &'static str {
    let Some(judgement) = judge.judgement() else {
        return if judge.intercept().is_some() { "held" } else { "no-intercept" };
    };
    if judge.check() == HostCheck::Waiting {
        return "host-waiting";
    }
    match (judgement.decision.cause, judgement.unread) {
        (Cause::HostMismatch, _) => "host-mismatch",
        (Cause::HostUnknown, _) => "host-unknown",
        (Cause::HelloRetry, _) => "hello-retry",
        (Cause::Rule(_), _) => "rule",
        (_, Some(unread)) => unread.name(),
        (Cause::Otherwise, None) => "otherwise",
        (Cause::Unidentified, None) => "unidentified",
    }
}
