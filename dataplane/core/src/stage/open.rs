//! Packets of unknown connections, and SYNs.

use std::net::IpAddr;

use crate::drop::{DropReason, PuntReason};
use crate::flow::record::{Flow, Offer, Side, Stage, Verdict};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::InterceptId;
use crate::parse::Meta;
use crate::pipeline::{KernelOp, Output, Pipeline, PuntTo};
use crate::policy::{Action, Cause, Full, Handshake};
use crate::tcp::flags::TcpFlags;
use crate::tcp::options::{MAX_SHIFT, SynOptions, right_edge};
use crate::tcp::track;
use crate::wire::build::{Segment, SegmentOptions};
use crate::wire::edit;

use super::answer::client_mss;
use super::timers;

/// `Rest::shift` of a SYN without the window scale option.
pub(crate) const NO_SHIFT: u8 = u8::MAX;

impl<F: Frame> Pipeline<F> {
    /// A packet of a connection that is not in the table.
    pub(crate) fn unknown(&mut self, packet: Packet<F>, out: &mut Output<F>) {
        let (src, dst) = (packet.meta.tuple.src, packet.meta.tuple.dst);
        if let Some(id) = self.policy.intercept(packet.port, dst.addr.ip(), dst.port) {
            return if packet.meta.flags.opens() {
                self.open(id, packet, out)
            } else {
                self.midstream(id, packet, out)
            };
        }
        // Connections that the relay makes to a pool have no record here: when the kernel map has lost one, too, what comes
        // of it is for the kernel, which has its socket.
        let may_be_relays = self.policy.has_server(&src);
        match self.intercept_behind(dst.addr.ip(), src.addr.ip(), src.port) {
            Some(id) if !packet.meta.flags.opens() && !may_be_relays => self.midstream(id, packet, out),
            _ => self.punt(packet, PuntReason::NotIntercepted, out),
        }
    }

    /// Whether a packet belongs to an intercept in either direction.
    pub(crate) fn of_intercept(&self, packet: &Packet<F>) -> bool {
        let (src, dst) = (packet.meta.tuple.src, packet.meta.tuple.dst);
        self.policy.intercept(packet.port, dst.addr.ip(), dst.port).is_some()
            || self.intercept_behind(dst.addr.ip(), src.addr.ip(), src.port).is_some()
            || self.policy.has_server(&src)
    }

    /// The intercept of a packet from a server: the client must be behind one of its ports.
    fn intercept_behind(&self, client: IpAddr, server: IpAddr, port: u16) -> Option<InterceptId> {
        let mut ports = self.fib.ports(client).iter();
        ports.find_map(|side| self.policy.intercept_of_server(side, server, port))
    }

    /// A SYN of an intercept.
    fn open(&mut self, id: InterceptId, packet: Packet<F>, out: &mut Output<F>) {
        let (client, server) = (packet.meta.tuple.src, packet.meta.tuple.dst);
        let Some(intercept) = self.policy.get(id) else {
            return self.punt(packet, PuntReason::NotIntercepted, out);
        };
        if let Some(leg) = self.elsewhere.as_ref().and_then(|elsewhere| elsewhere.leg(&packet.meta.tuple)) {
            return self.challenge_elsewhere(leg, packet, out);
        }
        let (full, handshake, cookies) = (intercept.full, intercept.handshake, intercept.syn_cookies);
        let sends = intercept.sends();
        let relay = intercept.relay_at_syn(client.addr.ip(), server.addr.ip(), server.port);
        if relay.is_some() || intercept.handshake == Handshake::Relay {
            let cause = relay.map_or(Cause::Otherwise, Cause::Rule);
            return self.give_to_relay(id, Some(cause), PuntReason::RelayRule, packet, out);
        }
        let options = SynOptions::read(packet.meta.options_of(packet.frame.data()));
        // A signed handshake is the ends' own (RFC 2385, RFC 5925).
        let answers = handshake == Handshake::Answer && !self.is_replay && !options.md5 && !options.ao;
        // Who is answered may be sent to a server that there is a way to.
        let may_be_sent = answers && sends;
        if !may_be_sent && !self.ways.has_way(&self.fib, &server.addr) {
            return self.give_to_relay(id, None, PuntReason::NoPort, packet, out);
        }
        if !self.make_room(out) {
            return self.no_room(id, full, DropReason::TableFull, packet, out);
        }
        if answers {
            return self.answer_syn(id, cookies, &options, packet, out);
        }
        if self.flows.half_open() >= self.half_open_limit() {
            return self.no_room(id, full, DropReason::HalfOpenFull, packet, out);
        }
        let packet = match clean_syn(packet, options) {
            Ok(packet) => packet,
            Err((reason, frame)) => return self.discard(frame, reason, out),
        };
        // Last, since what is counted is given back only with the connection.
        let packet = match self.admit(packet) {
            Ok(packet) => packet,
            Err(packet) => return self.over_source(packet, out),
        };
        let mut flow = Flow::new(&packet.meta.tuple, packet.port, id, self.policy.epoch, self.now);
        flow.isn = packet.meta.seq;
        flow.counted = self.policy.limits.source.any();
        flow.offer = offer(&options, &packet.meta);
        flow.signed = options.md5 || options.ao;
        track::start(&mut flow, Side::Client, &packet.meta, options.window_scale.unwrap_or(NO_SHIFT));
        flow.count(Side::Client, 1, 0);
        if let Some(slot) = self.flows.insert(flow) {
            self.totals.opened += 1;
            self.flows.arm(slot, self.now.saturating_add(timers::HANDSHAKE));
            // The tuple may have been on the kernel road before, by way of the relay: its entry must not outlive that.
            let remove = KernelOp::Remove(flow.key);
            if out.kernel.last() != Some(&remove) {
                out.kernel.push(remove);
            }
            self.forward(packet, out);
        } else {
            self.discard(packet.frame, DropReason::TableFull, out);
        }
    }

    /// No room for another connection, or for another half-open one.
    pub(crate) fn no_room(
        &mut self,
        id: InterceptId,
        full: Full,
        reason: DropReason,
        packet: Packet<F>,
        out: &mut Output<F>,
    ) {
        self.totals.limited += u64::from(reason == DropReason::HalfOpenFull);
        match full {
            Full::Kernel => self.give_to_relay(id, None, PuntReason::TableFull, packet, out),
            Full::Drop => self.discard(packet.frame, reason, out),
        }
    }

    /// Counts a new connection with its source's; gives the packet back when there are too many.
    pub(crate) fn admit(&mut self, packet: Packet<F>) -> Result<Packet<F>, Packet<F>> {
        let limits = self.policy.limits.source;
        if !limits.any() {
            return Ok(packet);
        }
        match self.sources.admit(self.now, &packet.meta.tuple.src.addr, &limits) {
            Ok(()) => Ok(packet),
            Err(_) => Err(packet),
        }
    }

    /// A connection beyond what its source may have.
    pub(crate) fn over_source(&mut self, packet: Packet<F>, out: &mut Output<F>) {
        self.totals.limited += 1;
        let meta = packet.meta;
        self.discard(packet.frame, DropReason::SourceLimit, out);
        if self.policy.limits.source_over == Action::Reset {
            self.answer_rst(&meta, out);
        }
    }

    /// Gives a connection to the relay: it is remembered and entered in the kernel map first, then its SYN goes.
    fn give_to_relay(
        &mut self,
        id: InterceptId,
        cause: Option<Cause>,
        reason: PuntReason,
        packet: Packet<F>,
        out: &mut Output<F>,
    ) {
        let mut flow = self.kernel_flow(id, reason, &packet);
        flow.verdict = cause.map(|cause| Verdict { action: Action::Relay, cause });
        match self.enter_kernel_road(flow, out) {
            Some(_) => {
                self.totals.relayed += 1;
                self.punt_to(PuntTo::Relay, packet, reason, out);
            }
            None => self.discard(packet.frame, DropReason::TableFull, out),
        }
    }

    /// A SYN of a connection that is in the table.
    pub(crate) fn syn_again(&mut self, slot: u32, side: Side, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        if side == Side::Server {
            return self.discard(packet.frame, DropReason::UnexpectedSyn, out);
        }
        let same = flow.isn == packet.meta.seq;
        let reason = flow.punted.unwrap_or(PuntReason::KernelFlow);
        match flow.stage {
            // The server has not answered: the client starts over, or sends it again.
            Stage::SynSent if !same => self.start_over(slot, packet, out),
            Stage::SynSent => self.forward_syn(packet, out),
            // The SYN-ACK was lost, and a server with SYN cookies sends it only when asked.
            Stage::Held if same => self.forward_syn(packet, out),
            Stage::SynRcvd if same => {
                self.discard(packet.frame, DropReason::ToWeir, out);
                self.answer_again(slot, out);
            }
            Stage::SynRcvd => self.start_over(slot, packet, out),
            Stage::Answered | Stage::Dialing => {
                self.discard(packet.frame, DropReason::UnexpectedSyn, out);
                self.acknowledge(slot, out);
            }
            Stage::Held | Stage::Splice => self.challenge(slot, packet, out),
            Stage::Elsewhere => self.discard(packet.frame, DropReason::LegInUse, out),
            Stage::Refused if same => self.refused(slot, side, packet, out),
            Stage::Kernel if same && reason != PuntReason::Midstream => {
                self.reenter_kernel_road(slot, false, out);
                self.punt_to(PuntTo::Relay, packet, reason, out);
            }
            Stage::Refused | Stage::Kernel | Stage::Closed => self.start_over(slot, packet, out),
        }
    }

    /// Answers a SYN of an established connection as RFC 5961 section 4 tells the server to, with an ACK of where the
    /// server stands. The SYN itself never passes: should the server have forgotten the connection, a new one would open
    /// behind the old verdict. A client that has forgotten it answers with an RST, and its next SYN starts over.
    fn challenge(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let seq = packet.meta.seq;
        self.discard(packet.frame, DropReason::UnexpectedSyn, out);
        let Some(flow) = self.flows.get(slot) else { return };
        if flow.is_lost() {
            // The server says itself where it stands; and one that has forgotten the connection says that.
            return self.ask_whether_it_lives(slot, Side::Client, seq, out);
        }
        let (server, edge) = (&flow.server, flow.server.edge);
        let window = u32::try_from(edge.since(server.ack)).unwrap_or(0) >> flow.server_rest.shift.min(14);
        let segment = Segment {
            tuple: flow.tuple().reversed(),
            flags: TcpFlags(TcpFlags::ACK),
            seq: server.nxt,
            ack: server.ack,
            window: window.min(u32::from(u16::MAX)) as u16,
            options: SegmentOptions::default(),
        };
        self.send_built(&segment, out);
    }

    fn start_over(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        self.forget(slot, out);
        self.unknown(packet, out);
    }

    /// Sends a SYN or SYN-ACK on that has been seen before.
    pub(crate) fn forward_syn(&mut self, packet: Packet<F>, out: &mut Output<F>) {
        let options = SynOptions::read(packet.meta.options_of(packet.frame.data()));
        match clean_syn(packet, options) {
            Ok(packet) => self.forward(packet, out),
            Err((reason, frame)) => self.discard(frame, reason, out),
        }
    }

    /// The client's side while its SYN is not answered: only an RST passes, and nothing that it carries. What looks like
    /// the rest of a handshake makes us ask the server.
    pub(crate) fn syn_sent_client(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return self.unknown(packet, out) };
        let meta = packet.meta;
        let ends = meta.seq == flow.client.nxt;
        // The answer to the challenge ACK of an older connection, of which the server is freed by it.
        let answers = flow.packets(Side::Server) > 0 && meta.seq == flow.server.ack;
        if !meta.flags.rst() || !(ends || answers) {
            self.discard(packet.frame, DropReason::BeforeHandshake, out);
            if meta.flags.ack() && !meta.flags.syn() && !meta.flags.rst() {
                self.ask_server(slot, &meta, out);
            }
            return;
        }
        if ends {
            self.close(slot, timers::CLOSED, out);
        }
        self.forward_bare(packet, out);
    }

    /// The client acknowledges an answer that has not come this way: steering let it pass while no worker breathed, or
    /// there was none. The client may be lying, so the server is asked where it stands, by a keep-alive probe (RFC 9293
    /// section 3.8.4): its ACK is the answer that `syn_sent_server` takes, and the client sends its bytes again.
    fn ask_server(&mut self, slot: u32, meta: &Meta, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return };
        let segment = Segment {
            tuple: flow.tuple(),
            flags: TcpFlags(TcpFlags::ACK),
            seq: flow.isn,
            ack: meta.ack,
            window: meta.window,
            options: SegmentOptions::default(),
        };
        self.send_built(&segment, out);
    }

    /// Sends a segment of the client on without its payload, before the verdict.
    pub(crate) fn forward_bare(&mut self, mut packet: Packet<F>, out: &mut Output<F>) {
        if packet.meta.payload_len() > 0 {
            // A wrong checksum must not become a right one.
            if packet.meta.segment_sum(packet.frame.data()) != 0xffff {
                return self.discard(packet.frame, DropReason::BadChecksum, out);
            }
            packet.meta = edit::cut_payload(&mut packet.frame, &packet.meta);
        }
        self.forward(packet, out);
    }

    /// The server's answer to the SYN.
    pub(crate) fn syn_sent_server(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let (meta, expected) = (packet.meta, flow.client.nxt);
        if meta.flags.rst() {
            if !meta.flags.ack() || meta.ack != expected {
                return self.discard(packet.frame, DropReason::RstOutOfWindow, out);
            }
            self.close(slot, timers::CLOSED, out);
            return self.forward(packet, out);
        }
        if !meta.flags.syn() {
            // A challenge ACK of an older connection (RFC 5961 section 4): the client answers it with an RST.
            if meta.payload_len() > 0 {
                return self.discard(packet.frame, DropReason::BeforeHandshake, out);
            }
            if meta.flags.ack() && meta.ack == expected {
                return self.answered_before(slot, packet, out);
            }
            flow.server.ack = meta.ack;
            flow.count(Side::Server, 1, 0);
            return self.forward(packet, out);
        }
        if meta.ack != expected {
            return self.discard(packet.frame, DropReason::UnexpectedSyn, out);
        }
        self.answered(slot, packet, out);
    }

    /// The SYN-ACK: from here on the client's bytes are held.
    pub(crate) fn answered(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let options = SynOptions::read(packet.meta.options_of(packet.frame.data()));
        let packet = match clean_syn(packet, options) {
            Ok(packet) => packet,
            Err((reason, frame)) => return self.discard(frame, reason, out),
        };
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let server_shift = options.window_scale.filter(|_| flow.client_rest.shift != NO_SHIFT);
        agree(&mut flow.offer, &options, &packet.meta);
        let client_window = flow.client.edge.since(flow.client.ack) as u32;
        track::start(flow, Side::Server, &packet.meta, server_shift.unwrap_or(0));
        flow.count(Side::Server, 1, 0);
        // Window scaling holds when both announced it (RFC 7323 section 2.2).
        if server_shift.is_none() {
            flow.client_rest.shift = 0;
        }
        // The client's ACK is on its way; until then its window is that of its SYN.
        flow.client.ack = packet.meta.seq.add(1);
        flow.client.edge = flow.client.ack.add(client_window.min(u32::from(u16::MAX)));
        self.hold_from_here(slot, packet, out);
    }

    /// The server has our client's SYN, and its answer passed by. It is not known whether it scales its window: then the
    /// larger edge is the safe one, since all it does is to let an RST pass for the ends to judge.
    fn answered_before(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let client_window = flow.client.edge.since(flow.client.ack) as u32;
        let shift = if flow.client_rest.shift == NO_SHIFT { 0 } else { MAX_SHIFT };
        track::start(flow, Side::Server, &packet.meta, shift);
        flow.server.edge = right_edge(packet.meta.ack, packet.meta.window, shift);
        flow.count(Side::Server, 1, 0);
        if flow.client_rest.shift == NO_SHIFT {
            flow.client_rest.shift = 0;
        }
        flow.client.ack = packet.meta.seq;
        flow.client.edge = flow.client.ack.add(client_window.min(u32::from(u16::MAX)));
        self.hold_from_here(slot, packet, out);
    }

    fn hold_from_here(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        flow.answered = true;
        self.flows.set_stage(slot, Stage::Held);
        self.flows.arm(slot, self.now.saturating_add(timers::IDLE));
        self.forward(packet, out);
    }
}

/// What a client offers in its SYN.
fn offer(options: &SynOptions, meta: &Meta) -> Offer {
    Offer {
        mss: client_mss(options, meta.v6),
        sack: options.sack,
        timestamps: options.timestamps.is_some(),
        window_scale: options.window_scale.is_some(),
        ecn: meta.flags.0 & (TcpFlags::ECE | TcpFlags::CWR) == TcpFlags::ECE | TcpFlags::CWR,
        tsval: options.timestamps.map_or(0, |t| t.val),
        shown: 0,
    }
}

/// Cuts an offer down to what the SYN-ACK takes of it.
fn agree(offer: &mut Offer, granted: &SynOptions, meta: &Meta) {
    offer.sack &= granted.sack;
    offer.timestamps &= granted.timestamps.is_some();
    offer.window_scale &= granted.window_scale.is_some();
    offer.ecn &= meta.flags.0 & (TcpFlags::ECE | TcpFlags::CWR) == TcpFlags::ECE;
    offer.shown = granted.timestamps.map_or(0, |t| t.val);
}

/// Takes out of a SYN or SYN-ACK what would let data pass beside the inspection; the server sends its payload again.
/// A signed one cannot be changed.
pub(crate) fn clean_syn<F: Frame>(
    mut packet: Packet<F>,
    options: SynOptions,
) -> Result<Packet<F>, (DropReason, F)> {
    let payload = packet.meta.payload_len() > 0;
    if !options.strip && !payload {
        return Ok(packet);
    }
    // TCP-MD5 signs the payload and not the options (RFC 2385 section 2.0); TCP-AO signs both (RFC 5925 section 5.1).
    if options.ao || (options.md5 && payload) {
        return Err((DropReason::AuthenticatedSyn, packet.frame));
    }
    if packet.meta.segment_sum(packet.frame.data()) != 0xffff {
        return Err((DropReason::BadChecksum, packet.frame));
    }
    packet.meta = edit::sanitize_syn(&mut packet.frame, &packet.meta);
    Ok(packet)
}
