//! Which port a captured packet would have come in by, and the pipelines behind.

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use weir_core::drop::Counters;
use weir_core::fib::{Fib, Link, Route};
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
use weir_core::wire::addr::Endpoint;

use super::mend::MAX_FRAME;

/// Octets that an answer of the pipeline's needs.
const ANSWER: usize = 256;
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
    out: Output<HeapFrame>,
    /// The capture's time, which does not run backwards.
    now: Nanos,
    /// Of frames that were no packets.
    pub refused: Counters,
}

impl Sides {
    /// One pipeline for each port that an intercept has clients behind. They start at `now`, with the first packet.
    pub fn new(policy: Arc<Policy>, now: Nanos) -> Self {
        let is_used = |port: &PortId| policy.intercepts().iter().any(|i| i.from.contains(*port));
        let ports: Vec<PortId> = (0..MAX_PORTS as u8).map(PortId).filter(is_used).collect();
        let sides = ports.into_iter().map(|lan| Side::new(&policy, lan, now)).collect();
        Self { policy, sides, out: Output::default(), now, refused: Counters::default() }
    }

    /// Takes a segment through its pipeline. False: no intercept has it.
    pub fn tcp(&mut self, now: Nanos, bytes: &[u8], meta: &Meta) -> bool {
        self.now = self.now.max(now);
        let Some((at, from_client)) = self.side_of(meta) else { return false };
        self.supply(ANSWER);
        let Some(side) = self.sides.get_mut(at) else { return false };
        let frame = HeapFrame::from_packet(bytes, MAX_FRAME);
        let port = if from_client { side.lan } else { side.wan };
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
    fn side_of(&self, meta: &Meta) -> Option<(usize, bool)> {
        let (src, dst) = (meta.tuple.src, meta.tuple.dst);
        if !meta.flags.opens() {
            for (at, side) in self.sides.iter().enumerate() {
                if let Some((flow, _)) = side.pipeline.view_of(&meta.tuple, self.now) {
                    return Some((at, flow.client == src.socket_addr()));
                }
            }
        }
        let behind = |server: Endpoint| {
            let takes = |s: &Side| self.policy.intercept(s.lan, server.addr.ip(), server.port).is_some();
            self.sides.iter().position(takes)
        };
        let answers = meta.flags.syn() && meta.flags.ack();
        match (behind(dst), behind(src)) {
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
    fn new(policy: &Arc<Policy>, lan: PortId, now: Nanos) -> Self {
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
        let mut fib = Fib::default();
        fib.v4.insert(Ipv4Net::default(), Route::OnLink(lan));
        fib.v6.insert(Ipv6Net::default(), Route::OnLink(lan));
        if let Some(place) = fib.links.get_mut(lan.0 as usize) {
            *place = Some(Link { mac: [2, 0, 0, 0, 0, 1], mtu: u16::MAX, up: true, v4: None, v6: None });
        }
        let pipeline = Pipeline::new(&config, policy.clone(), Arc::new(fib), now);
        Self { pipeline, lan, wan: PortId(u8::MAX), tuples: HashSet::new() }
    }
}
