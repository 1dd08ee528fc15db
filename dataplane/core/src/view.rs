//! Connections as `weir flows` shows them.

use std::net::{IpAddr, SocketAddr};

use crate::express::{Names, Passed, Place, Stay};
use crate::fib::Ways;
use crate::flow::key::{FlowKey, Tuple};
use crate::flow::record::{Flow, Origin, Side, Stage};
use crate::frame::Frame;
use crate::ids::Nanos;
use crate::pipeline::Pipeline;
use crate::policy::Cause;
use crate::reevaluate::{Evidence, Standing};
use crate::verify::{HostCheck, Verified};

/// One connection. Times in nanoseconds, volumes in packets and octets of payload.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FlowView {
    pub client: SocketAddr,
    /// What the client asked for.
    pub destination: SocketAddr,
    /// The number of the port that it comes in by, or on the relay of the one that leads back to the client.
    pub port: Option<u8>,
    /// The VLAN of that port: `10`, or `100.10`; none where there is no tag.
    pub vlan: Option<String>,
    /// Where it goes: the same, unless a pool took it.
    pub server: SocketAddr,
    /// How it goes there, where its route has several ways and a worker carries it.
    pub way: Option<WayView>,
    pub host: Option<String>,
    /// ALPN names that the client offered.
    pub alpn: Vec<String>,
    /// It offered Encrypted ClientHello: `host` may be an outer name.
    pub ech: bool,
    /// Its SYN is signed (TCP-MD5, TCP-AO).
    pub signed: bool,
    /// What is known of its first bytes.
    pub evidence: Evidence,
    pub standing: Standing,
    pub protocol: Option<&'static str>,
    /// What `verify_host` found: `matches`, `differs`, `unknown`; `waiting` for the resolver; none where nobody looks.
    pub host_check: Option<&'static str>,
    /// The same, as far as it is known without asking, for whoever judges the connection by other rules.
    pub host_known: Option<Verified>,
    /// Whether its server asked for a second hello: `asked`; `same`, `changed`, by what that asks for; none where it did not.
    pub hello_retry: Option<&'static str>,
    pub verdict: Option<&'static str>,
    /// The configuration that it was opened or decided in.
    pub epoch: u32,
    /// `file:line` of the rule that decided, as that configuration has it.
    pub rule: Option<String>,
    pub road: &'static str,
    /// Who carries its packets: `worker`, or `express`, the XDP program.
    pub lane: Option<&'static str>,
    /// Why it is not the XDP program; none where it is, where the lane is off, and on other roads.
    pub lane_reason: Option<&'static str>,
    /// The XDP program has it, to carry it now or when there is no worker.
    #[serde(skip)]
    pub is_in_lane: bool,
    pub stage: &'static str,
    pub reason: String,
    /// A process before this one decided it; it has lived through its end in the express lane.
    pub adopted: bool,
    /// None where packets are not counted: on the relay, whose connections the kernel's TCP carries.
    pub packets_to_server: Option<u64>,
    pub packets_to_client: Option<u64>,
    pub bytes_to_server: u64,
    pub bytes_to_client: u64,
    pub age_ns: u64,
    pub idle_ns: u64,
}

/// One of several ways.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct WayView {
    /// The number of the port.
    pub port: u8,
    /// None: the server is on the port's own link.
    pub router: Option<IpAddr>,
}

impl<F: Frame> Pipeline<F> {
    /// Up to `max` connections from slot `cursor` on, and where to go on (`None`: that was all).
    pub fn views(&self, now: Nanos, cursor: u32, max: usize) -> (Vec<FlowView>, Option<u32>) {
        self.views_with(now, cursor, max, |_| None)
    }

    /// As [`Pipeline::views`]; `passed` says what the program has carried of a connection that it carries.
    pub fn views_with(
        &self,
        now: Nanos,
        cursor: u32,
        max: usize,
        mut passed: impl FnMut(&Names) -> Option<Passed>,
    ) -> (Vec<FlowView>, Option<u32>) {
        let mut views = Vec::new();
        let mut last = cursor;
        for (slot, flow) in self.flows.iter_from(cursor) {
            if views.len() == max {
                return (views, Some(last + 1));
            }
            last = slot;
            if flow.stage == Stage::Elsewhere {
                continue;
            }
            let mut flow = *flow;
            if flow.place.is_in_map()
                && let Some(passed) = passed(&self.names_of(&flow))
            {
                flow.add_passed(&passed);
            }
            views.push(self.view(&flow, now));
        }
        (views, None)
    }

    /// The connection that a packet belongs to, and when it was first seen.
    pub fn view_of(&self, tuple: &Tuple, now: Nanos) -> Option<(FlowView, Nanos)> {
        let flow = self.flows.get(self.flows.find(&FlowKey::of(tuple))?)?;
        Some((self.view(flow, now), flow.created))
    }

    fn view(&self, flow: &Flow, now: Nanos) -> FlowView {
        let tuple = flow.tuple();
        let rule = flow.rule().and_then(|rule| self.policy.origin(flow.epoch, flow.intercept, rule));
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let kernel = flow.stage == Stage::Kernel;
        let relayed = flow.verdict.is_some_and(|v| v.action == crate::policy::Action::Relay);
        FlowView {
            client: tuple.src.socket_addr(),
            destination: tuple.dst.socket_addr(),
            port: Some(self.fib.carrier(flow.port).0),
            vlan: self.fib.vlans.get(flow.port).map(|of| of.vlan.to_string()),
            server: self.server_of(flow).socket_addr(),
            way: self.way_of(flow).filter(|_| !kernel),
            host: self.names.get(flow.name).map(str::to_owned),
            alpn: self.alpn_of(flow).names().map(text).collect(),
            ech: flow.ech,
            signed: flow.signed,
            evidence: flow.evidence(),
            standing: flow.standing(),
            protocol: flow.protocol.map(crate::policy::Protocol::name),
            host_check: flow.check.name(),
            host_known: self.known_of(flow),
            hello_retry: flow.second.retry.name(),
            verdict: flow.verdict.map(|v| v.action.name()),
            epoch: flow.epoch,
            rule: rule.map(str::to_owned),
            road: match (kernel, relayed) {
                (true, true) => "relay",
                (true, false) => "kernel",
                _ => "fast",
            },
            lane: (!kernel).then_some(if flow.place == Place::Express { "express" } else { "worker" }),
            lane_reason: self.stays(flow).map(Stay::name),
            is_in_lane: flow.place.is_in_map(),
            stage: stage_name(flow.stage),
            reason: reason(flow),
            adopted: flow.origin != Origin::Here,
            packets_to_server: Some(flow.packets(Side::Client)),
            packets_to_client: Some(flow.packets(Side::Server)),
            bytes_to_server: flow.bytes(Side::Client),
            bytes_to_client: flow.bytes(Side::Server),
            age_ns: now.saturating_sub(flow.created).0,
            idle_ns: now.saturating_sub(flow.seen).0,
        }
    }

    fn way_of(&self, flow: &Flow) -> Option<WayView> {
        let server = self.server_of(flow).addr.ip();
        let Ways::Several(group) = self.fib.ways(server) else { return None };
        let (member, _) = self.fib.pick(group, server, &flow.key, flow.to_server);
        member.map(|member| WayView { port: member.port.0, router: member.router })
    }
}

const fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::SynSent => "syn-sent",
        Stage::SynRcvd => "syn-rcvd",
        Stage::Held => "held",
        Stage::Answered => "answered",
        Stage::Dialing => "dialing",
        Stage::Elsewhere => "elsewhere",
        Stage::Splice => "splice",
        Stage::Refused => "refused",
        Stage::Kernel => "kernel",
        Stage::Closed => "closed",
    }
}

fn reason(flow: &Flow) -> String {
    let cause = flow.verdict.map(|v| v.cause);
    if flow.bypassed {
        return "bypassed".to_owned();
    }
    if flow.origin == Origin::Unknown {
        return "adopted".to_owned();
    }
    if let Some(failure) = flow.failure {
        return failure.name().to_owned();
    }
    match (flow.punted, cause) {
        (Some(punted), _) => punted.name().to_owned(),
        (None, Some(Cause::Rule(_))) => "rule".to_owned(),
        (None, Some(Cause::Otherwise)) => "otherwise".to_owned(),
        (None, Some(Cause::Unidentified)) => "unidentified".to_owned(),
        (None, Some(Cause::HostMismatch)) => "host-mismatch".to_owned(),
        (None, Some(Cause::HostUnknown)) => "host-unknown".to_owned(),
        (None, Some(Cause::HelloRetry)) => "hello-retry".to_owned(),
        (None, None) if flow.check == HostCheck::Waiting => "host-waiting".to_owned(),
        (None, None) => "no verdict yet".to_owned(),
    }
}
