//! What a passing segment says about its connection: sequence numbers, windows, FINs, RSTs.
//!
//! A middlebox sees what both ends send and not what they receive, so it judges as RFC 5961 lets it: an RST must be in
//! the receiver's window to pass, and only one that is exactly next is believed to have ended the connection.
//!
//! What one end says alone moves nothing beyond what the other has allowed or sent, or a forger could move the place where
//! his RST is exact. Packets that pass by some other way, while no worker breathes, do move it: then both ends say the same.

use super::options;
use crate::flow::record::{End, Flow, Side};
use crate::parse::Meta;

/// What an RST does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rst {
    /// Exactly the next sequence number: the receiver takes it, the connection is over.
    Ends,
    /// In the window: the receiver answers with a challenge ACK (RFC 5961 section 3.2).
    Challenged,
    /// Not in the window: nobody would believe it.
    OutOfWindow,
}

/// Notes a segment of an answered connection that is passed on.
pub fn note(flow: &mut Flow, side: Side, meta: &Meta) {
    let (from, to) = flow.ends(side);
    from.packets += 1;
    from.bytes += u64::from(meta.payload_len());
    // A window probe goes one octet beyond (RFC 9293 section 3.8.6.1).
    let allowed = to.edge.max(to.ack).add(1);
    if meta.seq_end().after(allowed) && meta.seq_end().after(from.nxt) {
        from.claim = Some(meta.seq_end());
        return note_ack(flow, side, meta);
    }
    // Only the first FIN's place counts; beyond it nothing can follow.
    if !from.fin {
        from.fin = meta.flags.fin() && !meta.seq_end().before(from.nxt);
        from.nxt = from.nxt.max(meta.seq_end());
    }
    note_ack(flow, side, meta);
}

/// Notes only what a segment says about the other direction: its acknowledgment and its window.
pub fn note_ack(flow: &mut Flow, side: Side, meta: &Meta) {
    let scaled = !meta.flags.syn();
    let (from, to) = flow.ends(side);
    if !meta.flags.ack() {
        return;
    }
    if meta.ack.after(to.nxt) {
        match to.claim.take_if(|claim| !meta.ack.after(*claim)) {
            Some(claim) => to.nxt = claim,
            None => return,
        }
    }
    if !meta.ack.before(from.ack) {
        from.ack = meta.ack;
        let edge = options::right_edge(meta.ack, meta.window, if scaled { from.shift } else { 0 });
        from.edge = from.edge.max(edge);
        if to.fin && !meta.ack.before(to.nxt) {
            to.fin_acked = true;
        }
    }
}

/// Judges an RST that `side` sent.
pub fn judge_rst(flow: &mut Flow, side: Side, meta: &Meta) -> Rst {
    let (from, to) = flow.ends(side);
    // RCV.NXT of the receiver is its last ACK, or what was passed on and is on its way to it.
    if meta.seq == to.ack || meta.seq == from.nxt {
        return Rst::Ends;
    }
    // A zero window still takes the sequence number that is next.
    let edge = to.edge.max(to.ack.add(1));
    if !meta.seq.before(to.ack) && meta.seq.before(edge) { Rst::Challenged } else { Rst::OutOfWindow }
}

/// Both directions are finished and acknowledged.
pub const fn is_over(flow: &Flow) -> bool {
    flow.client.fin_acked && flow.server.fin_acked
}

/// Starts an end's numbers at its SYN or SYN-ACK.
pub fn start(end: &mut End, meta: &Meta, shift: u8) {
    end.nxt = meta.seq_end();
    end.ack = meta.ack;
    end.edge = options::right_edge(meta.ack, meta.window, 0);
    end.shift = shift;
}
