//! The handshake passes, the client's first bytes are held, there is no verdict yet.

use crate::drop::DropReason;
use crate::flow::record::{Flow, Side};
use crate::frame::Frame;
use crate::hold::{Packet, Refused};
use crate::inspect::Outcome;
use crate::pipeline::{Output, Pipeline};
use crate::tcp::seq::Seq;
use crate::tcp::track::{self, Rst};
use crate::wire::edit;

use super::timers;

impl<F: Frame> Pipeline<F> {
    pub(crate) fn held_client(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let meta = packet.meta;
        if meta.flags.rst() {
            return self.held_client_rst(slot, packet, out);
        }
        if !meta.flags.ack() || meta.flags.syn() {
            return self.discard(packet.frame, DropReason::UnexpectedSyn, out);
        }
        if meta.payload_len() == 0 && !meta.flags.fin() {
            track::note(flow, Side::Client, &meta);
            return self.forward(packet, out);
        }
        let nxt = flow.client.nxt;
        if meta.seq_end().since(nxt) <= 0 {
            return self.held_keepalive(slot, packet, out);
        }
        if meta.payload_len() == 0 && flow.hold == Flow::NO_HOLD && meta.seq == nxt {
            // A FIN and nothing before it: no byte of the client will ever come.
            let passes = self.decide(slot, None, out);
            return self.pass_or_discard(slot, Side::Client, passes, packet, out);
        }
        self.hold_segment(slot, packet, out);
    }

    /// A keep-alive probe before the first byte (RFC 9293 section 3.8.4): its octet of garbage does not pass.
    fn held_keepalive(&mut self, slot: u32, mut packet: Packet<F>, out: &mut Output<F>) {
        if packet.meta.flags.fin() {
            return self.discard(packet.frame, DropReason::OutOfWindow, out);
        }
        packet.meta = edit::cut_payload(&mut packet.frame, &packet.meta);
        if let Some(flow) = self.flows.get_mut(slot) {
            track::note(flow, Side::Client, &packet.meta);
        }
        self.forward(packet, out);
    }

    fn held_client_rst(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let meta = packet.meta;
        let verdict = track::judge_rst(flow, Side::Client, &meta);
        // The client counts the bytes that are held; the server has not seen them. Within them the RST is made exact.
        let end = flow.client.nxt.add(self.holds.contiguous(flow.hold));
        let within = !meta.seq.before(flow.client.nxt) && !meta.seq.after(end.add(1));
        match verdict {
            Rst::Ends => {
                self.close(slot, timers::CLOSED);
                self.drop_hold(slot, out);
                self.forward(packet, out);
            }
            _ if within => {
                self.reset_server(slot, out);
                self.close(slot, timers::CLOSED);
                self.drop_hold(slot, out);
                out.free.push(packet.frame);
            }
            Rst::Challenged => self.forward(packet, out),
            Rst::OutOfWindow => self.discard(packet.frame, DropReason::RstOutOfWindow, out),
        }
    }

    /// Keeps a segment, and asks for the verdict when the reading has grown.
    fn hold_segment(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        // Invariant 3: what is inspected is what was sent.
        if packet.meta.segment_sum(packet.frame.data()) != 0xffff {
            return self.discard(packet.frame, DropReason::BadChecksum, out);
        }
        let Some(hold) = self.hold_of(slot) else {
            return self.discard(packet.frame, DropReason::HoldFull, out);
        };
        let (fin, end) = (packet.meta.flags.fin(), packet.meta.seq_end());
        let (meta, before) = (packet.meta, self.holds.contiguous(hold));
        let first = !self.holds.holds_any(hold);
        let payload = meta.payload as usize..meta.end as usize;
        if let Err((refused, packet)) = self.holds.push(hold, packet, payload, self.now) {
            return match refused {
                Refused::OutOfWindow => self.discard(packet.frame, DropReason::OutOfWindow, out),
                Refused::Full => self.discard(packet.frame, DropReason::HoldFull, out),
                Refused::Changed => self.end_changed(slot, packet, out),
            };
        }
        self.note_held(slot, &meta, first);
        let contiguous = self.holds.contiguous(hold);
        let start = self.holds.get(hold).map_or(Seq(0), |h| h.start);
        if contiguous > before
            && let Outcome::Done(found) = self.holds.inspect(hold)
        {
            self.decide(slot, Some(&found), out);
            return;
        }
        let finished = fin && end == start.add(contiguous + 1);
        let budget = self.holds.get(hold).map_or(0, |h| h.budget);
        if finished || contiguous >= budget {
            self.decide(slot, None, out);
        }
    }

    /// What a held segment says about the other direction is noted at once; its own bytes only when they pass.
    fn note_held(&mut self, slot: u32, meta: &crate::parse::Meta, first: bool) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let mut bare = *meta;
        bare.end = bare.payload;
        bare.flags.0 &= !crate::tcp::flags::TcpFlags::FIN;
        let nxt = flow.client.nxt;
        let packets = flow.client.packets;
        track::note(flow, Side::Client, &bare);
        flow.client.nxt = nxt;
        flow.client.packets = packets;
        if first {
            let wait = self.policy.get(flow.intercept).map_or(timers::HANDSHAKE, |i| i.hold_time);
            self.flows.arm(slot, self.now.saturating_add(wait));
        }
    }

    /// The connection's hold, opened if it has none.
    fn hold_of(&mut self, slot: u32) -> Option<u32> {
        let flow = self.flows.get_mut(slot)?;
        if flow.hold == Flow::NO_HOLD {
            let budget = self.policy.get(flow.intercept).map_or(0, |i| i.hold_bytes);
            flow.hold = self.holds.open(flow.client.nxt, budget)?;
        }
        Some(flow.hold)
    }

    pub(crate) fn held_server(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let meta = packet.meta;
        if meta.flags.rst() {
            return self.server_rst(slot, packet, out);
        }
        if meta.flags.syn() {
            return self.syn_ack_again(slot, packet, out);
        }
        if meta.payload_len() > 0 && flow.hold == Flow::NO_HOLD {
            return self.server_first(slot, packet, out);
        }
        track::note(flow, Side::Server, &meta);
        self.forward(packet, out);
    }

    /// Bytes from the server before any from the client: the verdict is that for unidentified connections.
    pub(crate) fn server_first(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let passes = self.decide(slot, None, out);
        self.pass_or_discard(slot, Side::Server, passes, packet, out);
    }

    fn pass_or_discard(
        &mut self,
        slot: u32,
        side: Side,
        passes: bool,
        packet: Packet<F>,
        out: &mut Output<F>,
    ) {
        if passes {
            self.splice(slot, side, packet, out);
        } else {
            self.discard(packet.frame, DropReason::VerdictReset, out);
        }
    }

    /// An RST of the server while the connection is held.
    fn server_rst(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        match track::judge_rst(flow, Side::Server, &packet.meta) {
            Rst::Ends => {
                self.close(slot, timers::CLOSED);
                self.drop_hold(slot, out);
                self.forward(packet, out);
            }
            Rst::Challenged => self.forward(packet, out),
            Rst::OutOfWindow => self.discard(packet.frame, DropReason::RstOutOfWindow, out),
        }
    }

    /// A SYN-ACK after the handshake: sent again because the client's ACK was lost, or the answer to a new SYN.
    pub(crate) fn syn_ack_again(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return self.unknown(packet, out) };
        if packet.meta.ack == flow.isn.add(1) && packet.meta.payload_len() == 0 {
            return self.forward(packet, out);
        }
        let Some(isn) = flow.reopen.filter(|isn| isn.add(1) == packet.meta.ack) else {
            return self.discard(packet.frame, DropReason::UnexpectedSyn, out);
        };
        // The server did not know the old connection: this is a new one, and it is inspected anew.
        let (tuple, intercept) = (flow.tuple(), flow.intercept);
        self.forget(slot, out);
        let mut flow = Flow::new(&tuple, intercept, self.policy.epoch, self.now);
        flow.isn = isn;
        flow.client.nxt = isn.add(1);
        match self.flows.insert(flow) {
            Some(slot) => {
                self.totals.opened += 1;
                self.answered(slot, packet, out);
            }
            None => self.discard(packet.frame, DropReason::TableFull, out),
        }
    }

    /// Gives the connection's hold back, with its frames.
    pub(crate) fn drop_hold(&mut self, slot: u32, out: &mut Output<F>) {
        if let Some(flow) = self.flows.get_mut(slot)
            && flow.hold != Flow::NO_HOLD
        {
            self.holds.close(flow.hold, &mut out.free);
            flow.hold = Flow::NO_HOLD;
        }
    }

    /// A retransmission with other bytes: the connection is ended (invariant 3).
    pub(crate) fn end_changed(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        self.discard(packet.frame, DropReason::ChangedBytes, out);
        self.refuse(slot, crate::policy::Action::Reset, out);
    }
}
