//! `handshake = "answer"`: weir answers the client's SYN in the server's place, and holds the client's first bytes until
//! there is a verdict. Nothing of them is acknowledged: they stay the client's to send again.
//!
//! The initial sequence number is always a SYN cookie (RFC 4987 section 3.6), so that under pressure, or when configured
//! so, no state is kept before the client's ACK.

use crate::drop::DropReason;
use crate::flow::key::FlowKey;
use crate::flow::record::{Flow, Offer, Side, Stage};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::{InterceptId, Nanos};
use crate::parse::Meta;
use crate::pipeline::{KernelOp, Output, Pipeline};
use crate::policy::{Full, Handshake, SynCookies};
use crate::tcp::cookie::Carried;
use crate::tcp::flags::TcpFlags;
use crate::tcp::options::{self, SynOptions, Timestamps};
use crate::tcp::seq::Seq;
use crate::tcp::track::{self, Rst};
use crate::wire::IPV6_LEN;
use crate::wire::addr::{Addr, Endpoint};
use crate::wire::build::{self, Segment, SegmentOptions};

use super::{held, timers};

/// The window scale that is promised where the server's is not known: what Linux grants with its default buffers.
const SHIFT: u8 = 7;
/// Octets of headers without options: IP and TCP.
const HEADERS_V4: u16 = 40;
const HEADERS_V6: u16 = IPV6_LEN as u16 + 20;
/// MSS to take for a client that names none (RFC 9293 section 3.7.1).
const DEFAULT_MSS_V4: u16 = 536;
const DEFAULT_MSS_V6: u16 = 1220;
/// The least that is offered: room for a hello.
const SMALLEST_WINDOW: u16 = 2048;
/// How long after the last cookie one may come back.
pub(crate) const COOKIE_LIFE: Nanos = Nanos::from_secs(128);
/// Octets behind what was acknowledged that are still near: the largest window without a scale.
const NEAR: u32 = 1 << 16;
/// SYN-ACKs that are sent before a client is given up (Linux: tcp_synack_retries 5).
pub(crate) const SYN_ACKS: u8 = 6;

impl<F: Frame> Pipeline<F> {
    /// Answers a SYN. The caller has made sure that there is room for the connection.
    pub(crate) fn answer_syn(
        &mut self,
        id: InterceptId,
        cookies: SynCookies,
        offered: &SynOptions,
        packet: Packet<F>,
        out: &mut Output<F>,
    ) {
        let pressed = self.flows.half_open() >= self.half_open_limit();
        match cookies {
            SynCookies::Always => self.answer_stateless(id, offered, packet, out),
            SynCookies::Auto if pressed => self.answer_stateless(id, offered, packet, out),
            SynCookies::Off if pressed => {
                let full = self.policy.get(id).map_or(Full::Drop, |i| i.full);
                self.no_room(id, full, DropReason::HalfOpenFull, packet, out);
            }
            SynCookies::Auto | SynCookies::Off => self.answer_stateful(id, offered, packet, out),
        }
    }

    /// Half-open connections that this worker may have.
    pub(crate) fn half_open_limit(&self) -> usize {
        (self.policy.limits.half_open as usize).div_ceil(self.workers.max(1))
    }

    /// What is promised to a client: what it offered, as far as the server is not known to refuse it.
    fn promise(&self, packet: &Packet<F>, offered: &SynOptions, shift: u8) -> SegmentOptions {
        let destination = packet.meta.tuple.dst;
        let known = self.grants.get(&destination, self.now);
        let val = self.cookies.clock(&packet.meta.tuple, self.now);
        SegmentOptions {
            mss: Some(self.promised_mss(&destination)),
            window_scale: offered.window_scale.and_then(|_| match known {
                Some(known) => known.window_scale.map(|_| shift),
                None => Some(shift),
            }),
            sack: offered.sack && known.is_none_or(|k| k.sack),
            timestamps: offered
                .timestamps
                .filter(|_| known.is_none_or(|k| k.timestamps))
                .map(|client| Timestamps { val, ecr: client.val }),
        }
    }

    /// The MSS that a client is told: what fits the way to the destination, and what that takes.
    fn promised_mss(&self, to: &Endpoint) -> u16 {
        let own = self.own_mss(&to.addr);
        self.grants.get(to, self.now).and_then(|known| known.mss).map_or(own, |mss| own.min(mss))
    }

    /// The largest segment that fits the way to the destination.
    pub(crate) fn own_mss(&self, to: &Addr) -> u16 {
        let headers = if to.is_v4() { HEADERS_V4 } else { HEADERS_V6 };
        let mtu = self.fib.mtu(to.ip()).unwrap_or(1500);
        mtu.saturating_sub(headers).max(DEFAULT_MSS_V4)
    }

    fn answer_stateless(
        &mut self,
        id: InterceptId,
        offered: &SynOptions,
        mut packet: Packet<F>,
        out: &mut Output<F>,
    ) {
        let window = self.own_window(id, &packet.meta.tuple.dst);
        let promised = self.promise(&packet, offered, SHIFT);
        let meta = packet.meta;
        let carried = Carried {
            mss: client_mss(offered, meta.v6),
            window_scale: promised.window_scale.and(offered.window_scale),
            sack: promised.sack,
        };
        let isn = self.cookies.make(&meta.tuple, meta.seq, &carried, self.now);
        self.cookies_until = self.now.saturating_add(COOKIE_LIFE);
        self.shown.add(self.hasher.hash(&FlowKey::of(&meta.tuple)), self.now);
        self.totals.cookies_sent += 1;
        match build::syn_ack(&mut packet.frame, &meta, isn, window, &promised) {
            Some(meta) => self.forward(Packet { meta, ..packet }, out),
            None => self.discard(packet.frame, DropReason::NoFrame, out),
        }
    }

    /// The window that weir offers before a server does: what it can hold, and not more than the server is known to take at
    /// first, since a window should not shrink (RFC 9293 section 3.8.6).
    fn own_window(&self, id: InterceptId, to: &Endpoint) -> u16 {
        let bytes = self.policy.get(id).map_or(0, |i| i.hold_bytes).min(self.holds.room() as u32);
        let bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
        let server = self.grants.get(to, self.now).map_or(u16::MAX, |known| known.window);
        bytes.min(server.max(SMALLEST_WINDOW))
    }

    fn answer_stateful(
        &mut self,
        id: InterceptId,
        offered: &SynOptions,
        packet: Packet<F>,
        out: &mut Output<F>,
    ) {
        let mut packet = match self.admit(packet) {
            Ok(packet) => packet,
            Err(packet) => return self.over_source(packet, out),
        };
        let known = self.grants.get(&packet.meta.tuple.dst, self.now);
        let shift = known.and_then(|k| k.window_scale).unwrap_or(SHIFT);
        let promised = self.promise(&packet, offered, shift);
        let meta = packet.meta;
        let carried = Carried {
            mss: client_mss(offered, meta.v6),
            window_scale: promised.window_scale.and(offered.window_scale),
            sack: promised.sack,
        };
        let isn = self.cookies.make(&meta.tuple, meta.seq, &carried, self.now);
        let mut flow = self.new_answered(id, &packet, Stage::SynRcvd);
        flow.isn = meta.seq;
        flow.offer = Offer {
            mss: carried.mss,
            sack: promised.sack,
            timestamps: promised.timestamps.is_some(),
            window_scale: promised.window_scale.is_some(),
            ecn: false,
            tsval: offered.timestamps.map_or(0, |t| t.val),
            shown: promised.timestamps.map_or(0, |t| t.val),
        };
        let client_shift = carried.window_scale.unwrap_or(0);
        track::start(&mut flow, Side::Client, &meta, client_shift);
        // What a SYN carries is not taken: the client sends it again.
        flow.client.nxt = meta.seq.add(1);
        flow.server_rest.shift = promised.window_scale.unwrap_or(0);
        start_own_end(&mut flow, isn, self.own_window(id, &meta.tuple.dst));
        flow.count(Side::Client, 1, 0);
        flow.counted = self.policy.limits.source.any();
        let Some(slot) = self.flows.insert(flow) else {
            return self.discard(packet.frame, DropReason::TableFull, out);
        };
        self.totals.opened += 1;
        self.flows.arm(slot, self.now.saturating_add(timers::RETRANSMIT));
        // As for any connection: an entry of the tuple's life before must not send its packets past weir.
        out.kernel.push(KernelOp::Remove(flow.key));
        match build::syn_ack(&mut packet.frame, &meta, isn, self.own_window(id, &meta.tuple.dst), &promised) {
            Some(meta) => self.forward(Packet { meta, ..packet }, out),
            None => self.discard(packet.frame, DropReason::NoFrame, out),
        }
    }

    fn new_answered(&self, id: InterceptId, packet: &Packet<F>, stage: Stage) -> Flow {
        let mut flow = Flow::new(&packet.meta.tuple, packet.port, id, self.policy.epoch, self.now);
        flow.stage = stage;
        flow.by_weir = true;
        flow.answered = true;
        flow
    }

    /// Sends the SYN-ACK again.
    pub(crate) fn answer_again(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        let tuple = flow.tuple();
        let val = self.cookies.clock(&tuple, self.now);
        let offer = flow.offer;
        let segment = Segment {
            tuple: tuple.reversed(),
            flags: TcpFlags(TcpFlags::SYN | TcpFlags::ACK),
            seq: flow.server.nxt.add(u32::MAX),
            ack: flow.isn.add(1),
            window: self.own_window(flow.intercept, &tuple.dst),
            options: SegmentOptions {
                mss: Some(self.promised_mss(&tuple.dst)),
                window_scale: offer.window_scale.then_some(flow.server_rest.shift),
                sack: offer.sack,
                timestamps: offer.timestamps.then_some(Timestamps { val, ecr: offer.tsval }),
            },
        };
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.offer.shown = val;
        }
        self.send_built(&segment, out);
    }

    /// The client's answer to our SYN-ACK.
    pub(crate) fn syn_rcvd_client(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let meta = packet.meta;
        if meta.flags.rst() {
            let ends = meta.seq == flow.client.nxt;
            let reason = if ends { DropReason::Ended } else { DropReason::RstOutOfWindow };
            self.discard(packet.frame, reason, out);
            if ends {
                self.forget(slot, out);
            }
            return;
        }
        if !meta.flags.ack() || meta.flags.syn() {
            return self.discard(packet.frame, DropReason::UnexpectedSyn, out);
        }
        if meta.ack != flow.server.nxt {
            // Another SYN with the client's addresses may have come before its ACK (RFC 5961 section 4): the ACK has the
            // cookie of its own.
            let cookie = self.cookie_of(&meta);
            let id = self.flows.get(slot).and_then(|flow| self.intercept_of(flow)).map(|(id, _)| id);
            if let (Some(carried), Some(id)) = (cookie, id) {
                self.forget(slot, out);
                return self.accept(id, &carried, packet, out);
            }
            // RFC 9293 section 3.10.7.4, SYN-RECEIVED: not acceptable.
            self.discard(packet.frame, DropReason::BeforeHandshake, out);
            return self.answer_rst(&meta, out);
        }
        self.flows.set_stage(slot, Stage::Answered);
        self.client_is_there(slot);
        self.early_client(slot, packet, out);
    }

    /// The handshake with the client is complete: it has the time of a hold to say something.
    fn client_is_there(&mut self, slot: u32) {
        let Some(flow) = self.flows.get(slot) else { return };
        let wait = self.intercept_of(flow).map_or(timers::HANDSHAKE, |(_, i)| i.hold_time);
        self.flows.arm(slot, self.now.saturating_add(wait));
    }

    /// An ACK of a connection that nobody knows, of an intercept that answers: it may bring a cookie back. Gives the packet
    /// back when it does not.
    pub(crate) fn redeem(
        &mut self,
        id: InterceptId,
        packet: Packet<F>,
        out: &mut Output<F>,
    ) -> Option<Packet<F>> {
        let meta = packet.meta;
        let dst = meta.tuple.dst;
        let from_client = self.policy.intercept(packet.port, dst.addr.ip(), dst.port) == Some(id);
        if !may_bring_cookie(meta.flags) || !from_client || self.now >= self.cookies_until {
            return Some(packet);
        }
        if meta.segment_sum(packet.frame.data()) != 0xffff {
            self.discard(packet.frame, DropReason::BadChecksum, out);
            return None;
        }
        let Some(carried) = self.cookie_of(&meta) else {
            self.totals.cookies_failed += 1;
            return Some(packet);
        };
        self.accept(id, &carried, packet, out);
        None
    }

    /// An ACK of the client that fits nothing of its connection may be the first of its next one with this tuple, whose SYN the
    /// steering program has answered: then that before is over, as it is with a SYN that the client acknowledges. Gives the
    /// packet back when it brings no cookie.
    pub(crate) fn redeem_over(
        &mut self,
        slot: u32,
        packet: Packet<F>,
        out: &mut Output<F>,
    ) -> Option<Packet<F>> {
        let meta = packet.meta;
        let Some(flow) = self.flows.get(slot) else { return Some(packet) };
        let has_server = matches!(flow.stage, Stage::Held | Stage::Dialing | Stage::Splice);
        let elsewhere = matches!(flow.stage, Stage::SynRcvd | Stage::Kernel | Stage::Elsewhere);
        if elsewhere || !may_bring_cookie(meta.flags) || fits(flow, &meta) {
            return Some(packet);
        }
        let dst = meta.tuple.dst;
        let id = self.policy.intercept(packet.port, dst.addr.ip(), dst.port);
        let id = id.filter(|id| self.policy.get(*id).is_some_and(|i| i.handshake == Handshake::Answer));
        if meta.segment_sum(packet.frame.data()) != 0xffff {
            return Some(packet);
        }
        let (Some(id), Some(carried)) = (id, self.cookie_of(&meta)) else { return Some(packet) };
        if has_server {
            self.reset_server(slot, out);
        }
        self.forget(slot, out);
        self.accept(id, &carried, packet, out);
        None
    }

    /// What the cookie carries that an ACK acknowledges, if it is one of ours.
    fn cookie_of(&self, meta: &Meta) -> Option<Carried> {
        let (isn, cookie) = (meta.seq.add(u32::MAX), meta.ack.add(u32::MAX));
        self.cookies.check(&meta.tuple, isn, cookie, self.now)
    }

    /// A connection of the ACK that brought a cookie back.
    fn accept(&mut self, id: InterceptId, carried: &Carried, packet: Packet<F>, out: &mut Output<F>) {
        let meta = packet.meta;
        let (isn, cookie) = (meta.seq.add(u32::MAX), meta.ack.add(u32::MAX));
        let packet = match self.admit(packet) {
            Ok(packet) => packet,
            Err(packet) => return self.over_source(packet, out),
        };
        let timestamps = options::timestamps(meta.options_of(packet.frame.data()));
        let mut flow = self.new_answered(id, &packet, Stage::Answered);
        flow.counted = self.policy.limits.source.any();
        flow.isn = isn;
        flow.offer = Offer {
            mss: carried.mss,
            sack: carried.sack,
            timestamps: timestamps.is_some(),
            window_scale: carried.window_scale.is_some(),
            ecn: false,
            tsval: timestamps.map_or(0, |t| t.val),
            shown: timestamps.map_or(0, |t| t.ecr),
        };
        flow.client.nxt = meta.seq;
        flow.client_rest.shift = carried.window_scale.unwrap_or(0);
        flow.server_rest.shift = if carried.window_scale.is_some() { SHIFT } else { 0 };
        start_own_end(&mut flow, cookie, self.own_window(id, &meta.tuple.dst));
        flow.client.edge = options::right_edge(meta.ack, meta.window, flow.client_rest.shift);
        self.make_room(out);
        let Some(slot) = self.flows.insert(flow) else {
            if flow.counted {
                self.sources.leave(&meta.tuple.src.addr);
            }
            return self.discard(packet.frame, DropReason::TableFull, out);
        };
        self.totals.opened += 1;
        self.totals.cookies_accepted += 1;
        self.client_is_there(slot);
        self.early_client(slot, packet, out);
    }

    /// The client's side while weir alone has a handshake with it, or is opening the server leg.
    pub(crate) fn early_client(&mut self, slot: u32, mut packet: Packet<F>, out: &mut Output<F>) {
        held::calm(&mut packet);
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let meta = packet.meta;
        if meta.flags.rst() {
            return self.early_rst(slot, packet, out);
        }
        if !meta.flags.ack() || meta.flags.syn() {
            return self.discard(packet.frame, DropReason::UnexpectedSyn, out);
        }
        let nxt = flow.client.nxt;
        let empty = meta.payload_len() == 0 && !meta.flags.fin();
        // Of our sequence numbers only the SYN has been sent, unless there was a server before (RFC 5961 section 5).
        let behind = flow.by_weir && meta.ack.before(flow.server.nxt);
        let ahead = behind || meta.ack.after(flow.server.nxt);
        let old = meta.seq.before(nxt) && !meta.seq_end().after(nxt);
        if ahead || old {
            // What nobody sent is acknowledged, or what nobody can have acknowledged last; or this has been seen: a keep-alive probe is such a segment (RFC 9293
            // sections 3.8.4 and 3.10.7.4). It is told where things stand.
            self.discard(packet.frame, DropReason::ToWeir, out);
            return self.acknowledge(slot, out);
        }
        if empty {
            flow.count(Side::Client, 1, 0);
            track::note_ack(flow, Side::Client, &meta);
            return self.discard(packet.frame, DropReason::ToWeir, out);
        }
        self.hold_segment(slot, packet, out);
    }

    /// An RST of the client before its bytes have gone anywhere.
    fn early_rst(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let meta = packet.meta;
        let judged = track::judge_rst(flow, Side::Client, &meta);
        let follows = self.follows_held(slot, meta.seq);
        match judged {
            Rst::OutOfWindow if !follows => self.discard(packet.frame, DropReason::RstOutOfWindow, out),
            Rst::Challenged if !follows => {
                self.discard(packet.frame, DropReason::ToWeir, out);
                self.acknowledge(slot, out);
            }
            _ => {
                self.discard(packet.frame, DropReason::Ended, out);
                self.drop_hold(slot, DropReason::Ended, out);
                self.reset_server(slot, out);
                self.close(slot, timers::CLOSED, out);
            }
        }
    }

    /// Whether a sequence number is the one behind what is held: the client counts held bytes, and its FIN.
    pub(crate) fn follows_held(&self, slot: u32, seq: Seq) -> bool {
        self.flows.get(slot).is_some_and(|flow| {
            let end = flow.client.nxt.add(self.holds.contiguous(flow.hold));
            seq == end || seq == end.add(1) && self.holds.is_complete(flow.hold)
        })
    }

    /// Tells the client where its connection stands, in the server's name.
    pub(crate) fn acknowledge(&mut self, slot: u32, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        let (server, tuple, offer) = (flow.server, flow.tuple(), flow.offer);
        let window =
            u32::try_from(server.edge.since(server.ack)).unwrap_or(0) >> flow.server_rest.shift.min(14);
        let val = if flow.by_weir { self.cookies.clock(&tuple, self.now) } else { offer.shown };
        let segment = Segment {
            tuple: tuple.reversed(),
            flags: TcpFlags(TcpFlags::ACK),
            seq: server.nxt,
            ack: server.ack,
            window: window.min(u32::from(u16::MAX)) as u16,
            options: SegmentOptions {
                timestamps: offer.timestamps.then_some(Timestamps { val, ecr: offer.tsval }),
                ..SegmentOptions::default()
            },
        };
        self.send_built(&segment, out);
    }
}

/// Whether a segment can be the third of a handshake.
fn may_bring_cookie(flags: TcpFlags) -> bool {
    flags.ack() && !flags.syn() && !flags.rst()
}

/// Whether a segment of the client can be of this connection: near what the two have acknowledged, sent, or may send.
fn fits(flow: &Flow, meta: &Meta) -> bool {
    let before = |seq: Seq| seq.add(NEAR.wrapping_neg());
    let acknowledges = !meta.ack.after(flow.server.nxt) && !meta.ack.before(before(flow.client.ack));
    let end = if flow.server.edge.after(flow.client.nxt) { flow.server.edge } else { flow.client.nxt };
    acknowledges && !meta.seq.before(before(flow.server.ack)) && !meta.seq.after(end)
}

/// The server's side of a connection whose SYN weir answers with `isn`.
fn start_own_end(flow: &mut Flow, isn: Seq, window: u16) {
    flow.server.nxt = isn.add(1);
    flow.server.ack = flow.isn.add(1);
    flow.server.edge = flow.server.ack.add(u32::from(window));
    // Until the client's ACK its window is that of its SYN.
    let offered = flow.client.edge.since(flow.client.ack) as u32;
    flow.client.ack = isn.add(1);
    flow.client.edge = flow.client.ack.add(offered.min(u32::from(u16::MAX)));
}

/// The client's MSS, as it says or as it is to be taken.
pub(crate) fn client_mss(offered: &SynOptions, v6: bool) -> u16 {
    offered.mss.unwrap_or(if v6 { DEFAULT_MSS_V6 } else { DEFAULT_MSS_V4 })
}
