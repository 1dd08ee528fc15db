//! Opening the server leg, once a verdict says where a connection goes: with the client's own initial sequence number, so
//! that what the client sends needs no other numbers; and what happens when the server does not take it.

use crate::drop::DropReason;
use crate::flow::key::{FlowKey, Tuple, owner};
use crate::flow::legs::Leg;
use crate::flow::record::{Failure, Flow, Side, Stage};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::{PoolId, ServerId};
use crate::parse::Meta;
use crate::pipeline::{LegOp, Output, Pipeline, ServerFailed};
use crate::policy::{Action, Source};
use crate::tcp::flags::TcpFlags;
use crate::tcp::options::{SynOptions, Timestamps};
use crate::tcp::translate::INSERTED;
use crate::wire::addr::Endpoint;
use crate::wire::build::{Segment, SegmentOptions};

use super::timers;

/// SYNs that a server gets: at once, after 1 s, and after 3 s; after 7 s it is given up for another one.
const SYNS: u8 = 3;
/// The same of one behind which there is no other: one more, and 15 s, as long as the relay waits.
const LAST_SYNS: u8 = 4;

impl<F: Frame> Pipeline<F> {
    /// Opens the leg that the verdict asks for: to a server of `pool`, or to where the client wanted to go.
    pub(crate) fn dial(&mut self, slot: u32, pool: Option<PoolId>, out: &mut Output<F>) {
        if self.flows.get(slot).is_some_and(|flow| flow.stage == Stage::Held) {
            // The server that the handshake was with hears no more of it.
            self.reset_server(slot, out);
            self.note_echo(slot);
        }
        if pool.is_some() {
            self.totals.sent += 1;
        }
        if self.flows.get(slot).is_some_and(|flow| flow.server_rest.fin) {
            // The client has had the end of the server's stream: nothing can follow.
            return self.give_up(slot, Failure::Unavailable, out);
        }
        match self.make_leg(slot, pool, None) {
            Some(leg) => self.call(slot, leg, out),
            None => self.give_up(slot, Failure::Unavailable, out),
        }
    }

    /// Calls the leg's server.
    fn call(&mut self, slot: u32, leg: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        (flow.leg, flow.tries) = (leg, 0);
        self.flows.set_stage(slot, Stage::Dialing);
        self.send_syn(slot, out);
    }

    /// A leg to a server that has a way and whose addresses are free; not to `not`.
    fn make_leg(&mut self, slot: u32, pool: Option<PoolId>, not: Option<ServerId>) -> Option<u32> {
        let flow = *self.flows.get(slot)?;
        let client = flow.tuple();
        let Some(pool_id) = pool else {
            self.ways.has_way(&self.fib, &client.dst.addr).then_some(())?;
            return self.insert_leg(slot, &flow, client, None, None, false);
        };
        let policy = std::sync::Arc::clone(&self.policy);
        let pool = policy.pool(pool_id)?;
        let server_id = pool.pick(&client, not)?;
        let server = Endpoint::from(pool.server(server_id)?.addr);
        self.ways.has_way(&self.fib, &server.addr).then_some(())?;
        let target = Some((pool_id, server_id));
        if pool.source == Source::Client {
            let tuple = Tuple { src: client.src, dst: server };
            return self.insert_leg(slot, &flow, tuple, target, not, false);
        }
        // Of several ways, that of the flow: its SYN takes the same.
        let addr = self.fib.source(server.addr.ip(), &flow.key, flow.to_server)?.into();
        let hash = self.hasher.hash(&flow.key);
        let (hasher, workers, worker) = (&self.hasher, self.workers, self.worker);
        // Only ports whose packets come to this worker.
        let fits = |port: u16| {
            let key = FlowKey::of(&Tuple { src: Endpoint { addr, port }, dst: server });
            owner(hasher.hash(&key), workers) == worker
        };
        let port = self.ports.take(&server, &addr, hash, fits)?;
        let tuple = Tuple { src: Endpoint { addr, port }, dst: server };
        let made = self.insert_leg(slot, &flow, tuple, target, not, true);
        if made.is_none() {
            self.ports.give(&server, port);
        }
        made
    }

    fn insert_leg(
        &mut self,
        slot: u32,
        flow: &Flow,
        tuple: Tuple,
        target: Option<(PoolId, ServerId)>,
        not: Option<ServerId>,
        owns_port: bool,
    ) -> Option<u32> {
        let key = FlowKey::of(&tuple);
        let is_apart = key != flow.key;
        if is_apart && (self.flows.find(&key).is_some() || self.legs.find(&key).is_some()) {
            return None;
        }
        let at = owner(self.hasher.hash(&key), self.workers);
        let proxy = target.and_then(|(pool, _)| self.policy.pool(pool)?.proxy);
        let header = match proxy {
            Some(version) => self.header_len(slot, version)?,
            None => 0,
        };
        self.legs.insert(Leg {
            flow: slot,
            tuple,
            is_apart,
            target,
            is_retry: not.is_some(),
            owns_port,
            receiver: (is_apart && at != self.worker).then_some(at),
            isn: flow.isn.add(u32::from(header).wrapping_neg()),
            proxy,
            header,
            mss: self.mss_for(flow, &tuple.dst),
            up: None,
            header_acked: header == 0,
            since: self.now,
        })
    }

    /// Sends the server leg's SYN, for the first time or again. A worker that is to receive the leg's packets sends it, so
    /// that no answer comes before it knows of the leg.
    pub(crate) fn send_syn(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let Some(leg) = self.legs.get(flow.leg) else { return };
        let wait = timers::RETRANSMIT.0 << flow.tries.min(6);
        flow.tries = flow.tries.saturating_add(1);
        let offer = flow.offer;
        let ecn = if offer.ecn { TcpFlags::ECE | TcpFlags::CWR } else { 0 };
        let window = u32::try_from(flow.client.edge.since(flow.client.ack)).unwrap_or(0);
        let segment = Segment {
            tuple: leg.tuple,
            flags: TcpFlags(TcpFlags::SYN | ecn),
            seq: leg.isn,
            ack: crate::tcp::seq::Seq(0),
            window: u16::try_from(window).unwrap_or(u16::MAX),
            options: SegmentOptions {
                mss: Some(leg.mss),
                window_scale: offer.window_scale.then_some(flow.client_rest.shift),
                sack: offer.sack,
                timestamps: offer.timestamps.then_some(Timestamps { val: offer.tsval, ecr: 0 }),
            },
        };
        let (receiver, leg) = (leg.receiver, leg.tuple);
        self.flows.arm(slot, self.now.saturating_add(crate::ids::Nanos(wait)));
        let before = out.tx.len();
        self.send_built(&segment, out);
        if let Some(worker) = receiver {
            let frame = if out.tx.len() > before { out.tx.pop() } else { None };
            out.legs.push(LegOp::Claim { worker, leg, frame });
        }
    }

    /// Whether the server is to get one more SYN when it does not answer.
    fn may_ask_again(&self, slot: u32) -> bool {
        let Some(flow) = self.flows.get(slot) else { return false };
        let target = self.legs.get(flow.leg).filter(|leg| !leg.is_retry).and_then(|leg| leg.target);
        let another =
            target.and_then(|(pool, server)| self.policy.pool(pool)?.pick(&flow.tuple(), Some(server)));
        flow.tries < if another.is_some() { SYNS } else { LAST_SYNS }
    }

    /// The SYN's time is over.
    pub(crate) fn syn_timer(&mut self, slot: u32, out: &mut Output<F>) {
        if self.may_ask_again(slot) {
            return self.send_syn(slot, out);
        }
        self.reset_server(slot, out);
        self.fail(slot, Failure::TimedOut, out);
    }

    /// The server leg did not come about: another server of the pool is tried once, then the client hears of it.
    pub(crate) fn fail(&mut self, slot: u32, failure: Failure, out: &mut Output<F>) {
        let leg = self.drop_leg(slot, out);
        if let Some(leg) = leg
            && let Some((pool, server)) = self.target_now(slot, &leg)
        {
            if let Some(server) = server {
                out.failed.push(ServerFailed { pool, server, numbered: self.policy.numbered(), failure });
            }
            if !leg.is_retry
                && let Some(other) = self.make_leg(slot, Some(pool), server)
            {
                self.totals.retried += 1;
                return self.call(slot, other, out);
            }
        }
        self.give_up(slot, failure, out);
    }

    /// The pool and the server that a leg goes to, as they are numbered now: in another configuration than the one that it was
    /// made in the numbers may mean others, and the server may be gone.
    fn target_now(&self, slot: u32, leg: &Leg) -> Option<(PoolId, Option<ServerId>)> {
        let (pool, server) = leg.target?;
        let epoch = self.flows.get(slot)?.epoch;
        if self.policy.numbers_since(epoch) {
            return Some((pool, Some(server)));
        }
        let pool = self.policy.pool_since(epoch, pool)?;
        let servers = (0..).map(ServerId).zip(&self.policy.pool(pool)?.servers);
        let mut same = servers.filter(|(_, server)| server.endpoint() == leg.tuple.dst);
        Some((pool, same.next().map(|(id, _)| id)))
    }

    /// There is no server for the connection: the client hears of it.
    fn give_up(&mut self, slot: u32, failure: Failure, out: &mut Output<F>) {
        self.totals.failed += 1;
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.failure = Some(failure);
        }
        self.refuse(slot, Action::Reset, DropReason::NoServer, out);
    }

    /// Forgets the connection's server leg.
    pub(crate) fn drop_leg(&mut self, slot: u32, out: &mut Output<F>) -> Option<Leg> {
        let flow = self.flows.get_mut(slot)?;
        if flow.stage == Stage::Elsewhere || flow.leg == Flow::NO_LEG {
            return None;
        }
        let id = std::mem::replace(&mut flow.leg, Flow::NO_LEG);
        let leg = self.legs.remove(id)?;
        if leg.owns_port {
            self.ports.give(&leg.tuple.dst, leg.tuple.src.port);
        }
        if let Some(worker) = leg.receiver {
            out.legs.push(LegOp::Release { worker, key: leg.key() });
        }
        Some(leg)
    }

    /// A packet of the server while its leg is being opened.
    pub(crate) fn dialing_server(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return self.unknown(packet, out) };
        let Some(leg) = self.legs.get(flow.leg).copied() else {
            return self.discard(packet.frame, DropReason::OldLeg, out);
        };
        let meta = packet.meta;
        let answers = meta.flags.ack() && meta.ack == leg.isn.add(1);
        if meta.flags.rst() {
            let reason = if answers { DropReason::Ended } else { DropReason::RstOutOfWindow };
            self.discard(packet.frame, reason, out);
            if answers {
                self.fail(slot, Failure::Refused, out);
            }
            return;
        }
        if packet.meta.segment_sum(packet.frame.data()) != 0xffff {
            return self.discard(packet.frame, DropReason::BadChecksum, out);
        }
        if meta.flags.syn() && answers {
            let granted = SynOptions::read(meta.options_of(packet.frame.data()));
            self.discard(packet.frame, DropReason::ToWeir, out);
            return self.server_answered(slot, &meta, &granted, out);
        }
        // The answer to an older connection with these addresses (RFC 9293 section 3.5.2, RFC 5961 section 4): the server is
        // freed of it, and asked again.
        self.discard(packet.frame, DropReason::ToWeir, out);
        // So is one of this very connection: the one that it was taken from, when the RST to it was lost.
        if meta.flags.ack() {
            self.answer_rst(&meta, out);
            if self.may_ask_again(slot) {
                self.send_syn(slot, out);
            }
        }
    }

    /// The server's SYN-ACK.
    fn server_answered(&mut self, slot: u32, meta: &Meta, granted: &SynOptions, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        let Some(leg) = self.legs.get(flow.leg) else { return };
        let offered = SynOptions {
            window_scale: flow.offer.window_scale.then_some(flow.client_rest.shift),
            sack: flow.offer.sack,
            timestamps: flow.offer.timestamps.then(Timestamps::default),
            ..SynOptions::default()
        };
        let (destination, server) = (flow.tuple().dst, leg.tuple.dst);
        self.grants.learn(destination, (granted, meta.window), &offered, self.now);
        if server != destination {
            self.grants.learn(server, (granted, meta.window), &offered, self.now);
        }
        self.join(slot, meta, granted, out);
    }

    /// The MSS that a server is told: the client's, as far as it fits the way to the client. A server that is not known to do
    /// timestamps leaves room for those that the client was promised, and that its segments get on their way.
    fn mss_for(&self, flow: &Flow, server: &Endpoint) -> u16 {
        let mss = flow.offer.mss.min(self.own_mss(&flow.tuple().src.addr));
        let does = self.grants.get(server, self.now).is_some_and(|grant| grant.timestamps);
        if flow.offer.timestamps && !does { mss.saturating_sub(INSERTED) } else { mss }
    }

    /// An ICMP error about our SYN.
    pub(crate) fn dialing_icmp(&mut self, slot: u32, out: &mut Output<F>) {
        self.fail(slot, Failure::Refused, out);
    }

    /// Sends a packet on to the other end; to a server leg as that leg has it.
    pub(crate) fn send_on(&mut self, slot: u32, side: Side, mut packet: Packet<F>, out: &mut Output<F>) {
        if side == Side::Client
            && let Some(flow) = self.flows.get(slot)
            && flow.leg != Flow::NO_LEG
        {
            let (id, server) = (flow.leg, self.legs.get(flow.leg).map(|leg| leg.tuple));
            let Some(server) = server else {
                return self.discard(packet.frame, DropReason::OldLeg, out);
            };
            packet = match self.leaves(packet, &server, 0, out) {
                Some(packet) => packet,
                None => return,
            };
            let up = self.legs.get_mut(id).and_then(|leg| leg.up.as_mut());
            let Some(translation) = up else {
                return self.discard(packet.frame, DropReason::OldLeg, out);
            };
            match translation.to_server(&mut packet.frame, &packet.meta, self.now) {
                Ok(meta) => packet.meta = meta,
                Err(reason) => return self.discard(packet.frame, reason, out),
            }
        }
        self.forward(packet, out);
    }
}
