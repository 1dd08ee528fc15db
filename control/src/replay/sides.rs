//! Which port a captured packet would have come in by, and the pipelines behind.

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use weir_core::drop::Counters;
use weir_core::fib::{Fib, Link, Route, VlanLink, Vlans};
use weir_core::flow::key::Tuple;
use weir_core::flow::table::Capacity;
use weir_core::frame::HeapFrame;
use weir_core::hold::Packet;
use weir_core::ids::{MAX_PORTS, Nanos, PortId, PortSet};
use weir_core::inspect::Found;
use weir_core::parse::{FragmentMeta, Meta};
use weir_core::pipeline::{Config, Output, Pipeline};
use weir_core::policy::Policy;
use weir_core::view::FlowView;
use weir_core::vlan::Vlan;
use weir_core::wire::addr::Endpoint;

use super::mend::{MAX_FRAME, Tags};

/// Octets that an answer of the pipeline's needs.
const ANSWER: usize = 256;
/// Of every port and VLAN.
const LINK: Link = Link { mac: [2, 0, 0, 0, 0, 1], mtu: u16::MAX, up: true, v4: None, v6: None };
/// Connections of a capture that are open at once.
const FLOWS: usize = 65_536;
/// Of them, those that wait for a verdict.
const HOLDS: usize = 1024;

/// The pipeline of all clients behind one port. Its routes lead back to that port, whatever the destination: where packets
/// go does not matter in a replay, on which side their client is does.
struct Side {
    pipeline: Pipeline<HeapFrame>,
    lan: PortId,
    wan: PortId,
    tuples: HashSet<Tuple>,
}

/// The pipelines of a capture.
pub struct Sides {
    policy: Arc<Policy>,
    sides: Vec<Side>,
    /// VLANs of the ports; none where no intercept asks for them.
    vlans: Vlans,
    asks_for_vlans: bool,
    out: Output<HeapFrame>,
    /// The capture's time, which does not run backwards.
    now: Nanos,
    /// Of frames that were no packets.
    pub refused: Counters,
}

impl Sides {
    /// One pipeline for each port that an intercept has clients behind. They start at `now`, with the first packet. Each of those
    /// ports has each of `seen` as a VLAN, as far as there are numbers for them, if any intercept asks for `vlan`: else tags are
    /// what the place of the capture had on its frames.
    pub fn new(policy: &Policy, seen: &[Vlan], now: Nanos) -> Self {
        let asks_for_vlans = policy.intercepts().iter().any(|i| i.vlan.takes_tagged() || !i.vlan.untagged);
        let is_used = |port: &PortId| policy.intercepts().iter().any(|i| i.from.contains(*port));
        let ports: Vec<PortId> = (0..MAX_PORTS as u8).map(PortId).filter(is_used).collect();
        let seen = if asks_for_vlans { seen } else { &[] };
        let places = seen.iter().flat_map(|vlan| ports.iter().map(|port| (*port, *vlan)));
        let mut vlans = Vlans::default();
        for (number, (port, vlan)) in Vlans::NUMBERS.zip(places) {
            vlans.insert(PortId(number as u8), VlanLink { port, vlan, link: LINK });
        }
        let policy = Arc::new(policy.with_vlans(&vlans));
        let sides = ports.into_iter().map(|lan| Side::new(&policy, lan, &vlans, now)).collect();
        Self {
            policy,
            sides,
            vlans,
            asks_for_vlans,
            out: Output::default(),
            now,
            refused: Counters::default(),
        }
    }

    /// By what a packet with these tags comes in on the side of `lan`; none where the box has no such VLAN.
    fn ingress(&self, lan: PortId, tags: Tags) -> Option<PortId> {
        match tags {
            Tags::Of(vlan) if self.asks_for_vlans => self.vlans.find(lan, &vlan),
            Tags::Nobodys if self.asks_for_vlans => None,
            _ => Some(lan),
        }
    }

    /// Takes a segment through its pipeline. False: no intercept has it.
    pub fn tcp(&mut self, now: Nanos, bytes: &[u8], meta: &Meta, tags: Tags) -> bool {
        self.now = self.now.max(now);
        let Some((at, from_client)) = self.side_of(meta, tags) else { return false };
        self.supply(ANSWER);
        let ingress = self.sides.get(at).and_then(|side| self.ingress(side.lan, tags));
        let Some(side) = self.sides.get_mut(at) else { return false };
        let frame = HeapFrame::from_packet(bytes, MAX_FRAME);
        let port = if from_client { ingress.unwrap_or(side.lan) } else { side.wan };
        side.pipeline.poll_timers(self.now, &mut self.out);
        side.pipeline.last_found = None;
        side.pipeline.handle(self.now, Packet { frame, port, meta: *meta }, &mut self.out);
        if !side.tuples.contains(&meta.tuple.reversed()) {
            side.tuples.insert(meta.tuple);
        }
        self.settle();
        true
    }

    /// Takes a fragment; whole datagrams come back, to be taken as segments.
    pub fn fragment(&mut self, now: Nanos, bytes: &[u8], meta: FragmentMeta) -> Vec<Packet<HeapFrame>> {
        self.now = self.now.max(now);
        self.supply(MAX_FRAME);
        if let Some(side) = self.sides.first_mut() {
            let frame = HeapFrame::from_packet(bytes, MAX_FRAME);
            side.pipeline.handle_fragment(self.now, frame, side.lan, meta, &mut self.out);
        }
        let whole = std::mem::take(&mut self.out.again);
        self.settle();
        whole
    }

    /// How the connection of a packet stands; when it began; and what a verdict on it has just found.
    pub fn view(&self, tuple: &Tuple) -> Option<(FlowView, Nanos, Option<Found>)> {
        self.sides.iter().find_map(|side| {
            let (view, started) = side.pipeline.view_of(tuple, self.now)?;
            Some((view, started, side.pipeline.last_found))
        })
    }

    /// Lets the time of every hold run out. Returns all connections.
    pub fn end(&mut self) -> Vec<Tuple> {
        let wait = self.policy.intercepts().iter().map(|i| i.hold_time).max().unwrap_or_default();
        self.now = self.now.saturating_add(wait).saturating_add(Nanos::from_secs(1));
        self.supply(ANSWER);
        for side in &mut self.sides {
            side.pipeline.last_found = None;
            // A poll serves a bounded number of timers.
            for _ in 0..FLOWS / 64 {
                side.pipeline.poll_timers(self.now, &mut self.out);
            }
        }
        self.settle();
        self.sides.iter_mut().flat_map(|side| side.tuples.drain()).collect()
    }

    /// The counters of all pipelines.
    pub fn counters(&self) -> Counters {
        let mut sum = self.refused.clone();
        for side in &self.sides {
            let counters = &side.pipeline.counters;
            sum.dropped.iter_mut().zip(counters.dropped).for_each(|(sum, n)| *sum += n);
            sum.punted.iter_mut().zip(counters.punted).for_each(|(sum, n)| *sum += n);
        }
        sum
    }

    /// Whose packet it is, and whether its client sent it: of a connection that is known, or of one whose first packet
    /// names an intercept. The sender of a SYN is the client; without one, whoever sends to an intercept's port.
    fn side_of(&self, meta: &Meta, tags: Tags) -> Option<(usize, bool)> {
        let (src, dst) = (meta.tuple.src, meta.tuple.dst);
        if !meta.flags.opens() {
            for (at, side) in self.sides.iter().enumerate() {
                if let Some((flow, _)) = side.pipeline.view_of(&meta.tuple, self.now) {
                    return Some((at, flow.client == src.socket_addr()));
                }
            }
        }
        let takes =
            |port, server: Endpoint| self.policy.intercept(port, server.addr.ip(), server.port).is_some();
        let before = |server: Endpoint| {
            let is_before = |s: &Side| self.ingress(s.lan, tags).is_some_and(|port| takes(port, server));
            self.sides.iter().position(is_before)
        };
        // What comes back is of an intercept by whatever it comes.
        let behind = |server: Endpoint| {
            let of = |s: &Side| {
                self.vlans.iter().filter(|(_, of)| of.port == s.lan).any(|(n, _)| takes(n, server))
            };
            self.sides.iter().position(|s| takes(s.lan, server) || of(s))
        };
        let answers = meta.flags.syn() && meta.flags.ack();
        match (before(dst), behind(src)) {
            (Some(at), _) if meta.flags.opens() => Some((at, true)),
            _ if meta.flags.opens() => None,
            (_, Some(at)) if answers => Some((at, false)),
            (Some(at), _) => Some((at, true)),
            (None, Some(at)) => Some((at, false)),
            (None, None) => None,
        }
    }

    /// Frames for answers, and for a datagram put together.
    fn supply(&mut self, capacity: usize) {
        while self.out.free.len() < 4 {
            self.out.free.push(HeapFrame::new(capacity));
        }
    }

    /// What the pipeline wants sent goes nowhere: it is a replay.
    fn settle(&mut self) {
        self.out = Output::default();
    }
}

impl Side {
    fn new(policy: &Arc<Policy>, lan: PortId, vlans: &Vlans, now: Nanos) -> Self {
        let hold_bytes = policy.intercepts().iter().map(|i| i.hold_bytes).max().unwrap_or(0) as usize;
        let config = Config {
            flows: Capacity { fast: FLOWS, kernel: FLOWS },
            holds: HOLDS,
            hold_bytes,
            hold_frames: HOLDS * 16,
            names: FLOWS / 16,
            fragments: 64,
            partial_checksums: PortSet::default(),
            worker: 0,
            workers: 1,
            seed: 0,
            secret: [7; 32],
            is_replay: true,
        };
        let mut fib = Fib { vlans: vlans.clone(), ..Fib::default() };
        fib.v4.insert(Ipv4Net::default(), Route::OnLink(lan));
        fib.v6.insert(Ipv6Net::default(), Route::OnLink(lan));
        if let Some(place) = fib.links.get_mut(lan.0 as usize) {
            *place = Some(LINK);
        }
        let pipeline = Pipeline::new(&config, policy.clone(), Arc::new(fib), now);
        Self { pipeline, lan, wan: PortId(u8::MAX), tuples: HashSet::new() }
    }
}
