//! The handshake passes, the client's first bytes are held, there is no verdict yet.

use crate::drop::DropReason;
use crate::flow::record::{Flow, Side, Stage};
use crate::frame::Frame;
use crate::hold::{Packet, Refused};
use crate::inspect::Outcome;
use crate::pipeline::{Output, Pipeline};
use crate::policy::{Action, HeldFull};
use crate::tcp::track::{self, Rst};
use crate::verify::HostCheck;
use crate::wire::edit;

use super::timers;

impl<F: Frame> Pipeline<F> {
    pub(crate) fn held_client(&mut self, slot: u32, mut packet: Packet<F>, out: &mut Output<F>) {
        calm(&mut packet);
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let meta = packet.meta;
        if meta.flags.rst() {
            return self.held_client_rst(slot, packet, out);
        }
        if !meta.flags.ack() || meta.flags.syn() {
            return self.discard(packet.frame, DropReason::UnexpectedSyn, out);
        }
        let nxt = flow.client.nxt;
        let old = meta.payload_len() > 0 && meta.seq_end().since(nxt) <= 0;
        if !meta.flags.fin() && (meta.payload_len() == 0 || old) {
            // An ACK; or a keep-alive probe before the first byte (RFC 9293 section 3.8.4), whose octet of garbage does
            // not pass. Wherever it stands, the reading begins at the octet behind the SYN.
            flow.count(Side::Client, 1, 0);
            track::note_ack(flow, Side::Client, &meta);
            return self.forward_bare(packet, out);
        }
        if meta.seq_end().since(nxt) <= 0 {
            return self.discard(packet.frame, DropReason::OutOfWindow, out);
        }
        if meta.payload_len() == 0 && flow.hold == Flow::NO_HOLD && meta.seq == nxt {
            // A FIN and nothing before it: no byte of the client will ever come.
            let passes = self.decide(slot, None, out);
            return self.pass_or_discard(slot, Side::Client, passes, packet, out);
        }
        self.hold_segment(slot, packet, out);
    }

    /// An RST of the client. The one that the server gets is made here: exact, since the client counts bytes that are
    /// held; without payload; and with a TTL that reaches the server, or the client could have us forget a connection
    /// that the server still has.
    fn held_client_rst(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        let meta = packet.meta;
        let verdict = track::judge_rst(flow, Side::Client, &meta);
        let follows = self.follows_held(slot, meta.seq);
        match verdict {
            Rst::OutOfWindow if !follows => self.discard(packet.frame, DropReason::RstOutOfWindow, out),
            Rst::Challenged if !follows => self.forward_bare(packet, out),
            _ => {
                self.discard(packet.frame, DropReason::Ended, out);
                self.drop_hold(slot, DropReason::Ended, out);
                self.reset_server(slot, out);
                self.close(slot, timers::CLOSED, out);
            }
        }
    }

    /// Keeps a segment, and asks for the verdict when the reading has grown.
    pub(crate) fn hold_segment(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        // Invariant 3: what is inspected is what was sent.
        if packet.meta.segment_sum(packet.frame.data()) != 0xffff {
            return self.discard(packet.frame, DropReason::BadChecksum, out);
        }
        let Some(hold) = self.hold_of(slot) else {
            return self.no_hold(slot, packet, out);
        };
        // The verdict is taken, or waits for nothing that the client could say.
        let waits = self
            .flows
            .get(slot)
            .is_some_and(|flow| flow.stage == Stage::Dialing || flow.check == HostCheck::Waiting);
        let (meta, before) = (packet.meta, self.holds.contiguous(hold));
        let first = !self.holds.holds_any(hold);
        let payload = meta.payload as usize..meta.end as usize;
        if let Err((refused, packet)) = self.holds.push(hold, packet, payload) {
            if first {
                self.drop_hold(slot, DropReason::Ended, out);
            }
            return match refused {
                Refused::OutOfWindow => self.discard(packet.frame, DropReason::OutOfWindow, out),
                Refused::Full => self.discard(packet.frame, DropReason::HoldFull, out),
                Refused::Duplicate => self.discard(packet.frame, DropReason::HoldDuplicate, out),
                Refused::Changed => self.end_changed(slot, packet, out),
            };
        }
        self.note_held(slot, &meta, first);
        if waits {
            return;
        }
        if self.holds.contiguous(hold) > before
            && let Outcome::Done(found) = self.holds.inspect(hold)
        {
            self.decide(slot, Some(&found), out);
        } else if self.holds.is_complete(hold) {
            self.decide(slot, None, out);
        }
    }

    /// All that may be held is held already.
    pub(crate) fn no_hold(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        self.discard(packet.frame, DropReason::HoldFull, out);
        let dialing = self.flows.get(slot).is_some_and(|flow| flow.stage == Stage::Dialing);
        let action = match self.policy.limits.held_full {
            // The client sends it again, when there may be room.
            _ if dialing => return,
            HeldFull::Wait => return,
            HeldFull::Reset => Action::Reset,
            HeldFull::Drop => Action::Drop,
        };
        self.totals.limited += 1;
        self.refuse(slot, action, DropReason::HoldFull, out);
    }

    /// What a held segment says about the other direction is noted at once; its own bytes only when they pass.
    fn note_held(&mut self, slot: u32, meta: &crate::parse::Meta, first: bool) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        track::note_ack(flow, Side::Client, meta);
        if flow.stage == Stage::Dialing {
            return;
        }
        if first && let Some(flow) = self.flows.get(slot) {
            let wait = self.intercept_of(flow).map_or(timers::HANDSHAKE, |(_, i)| i.hold_time);
            self.flows.arm(slot, self.now.saturating_add(wait));
        }
    }

    /// The connection's hold, opened if it has none.
    fn hold_of(&mut self, slot: u32) -> Option<u32> {
        let flow = self.flows.get(slot)?;
        if flow.hold != Flow::NO_HOLD {
            return Some(flow.hold);
        }
        let budget = self.intercept_of(flow).map_or(0, |(_, i)| i.hold_bytes);
        let flow = self.flows.get_mut(slot)?;
        flow.hold = self.holds.open(flow.client.nxt, budget)?;
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
        // The server has bytes of the client that never came this way: steering let them pass while no worker breathed.
        let ahead = !self.is_replay && meta.flags.ack() && meta.ack.after(flow.client.nxt);
        if ahead && meta.segment_sum(packet.frame.data()) == 0xffff {
            return self.bypassed(slot, packet, out);
        }
        // Not the octet of a keep-alive probe, nor one that the client's window does not take.
        if meta.payload_len() > 0 && flow.hold == Flow::NO_HOLD && meta.seq_end().after(flow.server.nxt) {
            if meta.seq_end().after(flow.client.edge) {
                return self.discard(packet.frame, DropReason::OutOfWindow, out);
            }
            return self.server_first(slot, packet, out);
        }
        track::note(flow, Side::Server, &meta);
        Self::note_clock(flow, &packet);
        self.forward(packet, out);
    }

    /// What was asked for is not known and will not be: the verdict is that for unidentified connections, and it is told.
    fn bypassed(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.bypassed = true;
            self.totals.bypassed += 1;
        }
        self.server_first(slot, packet, out);
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
        let dialing = self.flows.get(slot).is_some_and(|flow| flow.stage == Stage::Dialing);
        if passes && dialing {
            match side {
                Side::Client => self.early_client(slot, packet, out),
                // Of the server that the connection was taken from.
                Side::Server => self.discard(packet.frame, DropReason::OldLeg, out),
            }
        } else if passes {
            self.splice(slot, side, packet, out);
        } else {
            let verdict = self.flows.get(slot).and_then(|f| f.verdict);
            self.discard(packet.frame, refusal(verdict.map_or(Action::Reset, |v| v.action)), out);
        }
    }

    /// An RST of the server while the connection is held.
    fn server_rst(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get_mut(slot) else { return self.unknown(packet, out) };
        match track::judge_rst(flow, Side::Server, &packet.meta) {
            Rst::Ends => {
                self.drop_hold(slot, DropReason::Ended, out);
                self.close(slot, timers::CLOSED, out);
                self.forward(packet, out);
            }
            Rst::Challenged => self.forward(packet, out),
            Rst::OutOfWindow | Rst::Unsure => {
                self.discard(packet.frame, DropReason::RstOutOfWindow, out);
            }
        }
    }

    /// A SYN-ACK while the client has sent nothing: the first was lost. It counts anew, since a server with SYN cookies
    /// may have chosen another number. Later it is only a copy.
    fn syn_ack_again(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return self.unknown(packet, out) };
        if packet.meta.ack != flow.isn.add(1) {
            return self.discard(packet.frame, DropReason::UnexpectedSyn, out);
        }
        if flow.hold == Flow::NO_HOLD {
            return self.answered(slot, packet, out);
        }
        self.forward_syn(packet, out);
    }

    /// Gives the connection's hold back, with its frames, which are counted as dropped for `reason`.
    pub(crate) fn drop_hold(&mut self, slot: u32, reason: DropReason, out: &mut Output<F>) {
        if let Some(flow) = self.flows.get_mut(slot)
            && flow.hold != Flow::NO_HOLD
        {
            for _ in 0..self.holds.close(flow.hold, &mut out.free) {
                self.counters.drop(reason);
            }
            flow.hold = Flow::NO_HOLD;
        }
    }

    /// A retransmission with other bytes: the connection is ended (invariant 3).
    pub(crate) fn end_changed(&mut self, slot: u32, packet: Packet<F>, out: &mut Output<F>) {
        self.discard(packet.frame, DropReason::ChangedBytes, out);
        self.refuse(slot, Action::Reset, DropReason::ChangedBytes, out);
    }
}

/// Clears the urgent pointer: the server's socket would take urgent octets out of the stream (RFC 9293 section 3.8.5), and
/// read something else than was inspected.
pub(crate) fn calm<F: Frame>(packet: &mut Packet<F>) {
    if packet.meta.flags.urg() {
        packet.meta = edit::clear_urgent(packet.frame.data_mut(), &packet.meta);
    }
}

/// Why the packets of a connection that is refused by `action` are dropped.
pub(crate) const fn refusal(action: Action) -> DropReason {
    match action {
        Action::Drop => DropReason::VerdictDrop,
        _ => DropReason::VerdictReset,
    }
}
