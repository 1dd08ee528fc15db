//! What a passing segment says about its connection: sequence numbers, windows, FINs, RSTs.
//!
//! A middlebox sees what both ends send and not what they receive, so it judges as RFC 5961 lets it: an RST must be in
//! the receiver's window to pass, and only one that is exactly next is believed to have ended the connection.
//!
//! What one end says alone moves nothing beyond what the other has allowed or sent, or a forger could move the place where
//! his RST is exact. Packets that pass by some other way, while no worker breathes, do move it: then both ends say the same.
//!
//! Of a connection that comes back from the express lane nothing is known but that ([`lose`]): each direction is known again when one
//! end has acknowledged what the other sent meanwhile. An RST before that passes, and nobody can say what came of it.

use super::options;
use super::seq::Seq;
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
    /// The connection has come back from the express lane, and it is not known where it stands.
    Unsure,
}

/// How far an acknowledgment may lie behind what it makes known again: the largest window (RFC 7323 section 2.3).
const LARGEST_WINDOW: i32 = 1 << 30;

/// The connection goes on elsewhere: what is known of its numbers holds no more.
pub fn lose(flow: &mut Flow) {
    for end in [&mut flow.client, &mut flow.server] {
        (end.lost, end.claim, end.claims_fin) = (true, None, false);
    }
}

/// A segment of a lost connection that nobody gets any more says where both ends stand: `seq` is what the receiver waits for.
pub fn settle(flow: &mut Flow, side: Side, seq: Seq, ack: Seq) {
    let (from, to) = flow.ends(side);
    (from.nxt, from.ack, to.nxt, to.ack) = (seq, ack, ack, seq);
    (from.lost, to.lost) = (false, false);
}

/// Notes a segment of an answered connection that is passed on.
pub fn note(flow: &mut Flow, side: Side, meta: &Meta) {
    let (from, to) = flow.ends(side);
    from.packets += 1;
    from.bytes += u64::from(meta.payload_len());
    // A window probe goes one octet beyond (RFC 9293 section 3.8.6.1).
    let allowed = to.edge.max(to.ack).add(1);
    if from.lost {
        claim(from, meta);
        return note_ack(flow, side, meta);
    }
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
    let found = to.lost && find_again(to, meta.ack);
    if to.lost {
        return;
    }
    if meta.ack.after(to.nxt) {
        match to.claim.take_if(|claim| !meta.ack.after(*claim)) {
            Some(claim) => to.nxt = claim,
            None => return,
        }
    }
    let edge = options::right_edge(meta.ack, meta.window, if scaled { from.shift } else { 0 });
    if found || !meta.ack.before(from.ack) {
        from.ack = meta.ack;
        from.edge = if found { edge } else { from.edge.max(edge) };
        if to.fin && !meta.ack.before(to.nxt) {
            to.fin_acked = true;
        }
    }
}

/// A segment of an end that is lost: it stands where the furthest of them ends.
fn claim(end: &mut End, meta: &Meta) {
    let at = meta.seq_end();
    let before = end.claim.filter(|claim| !at.after(*claim));
    if before.is_none_or(|claim| claim == at) {
        end.claims_fin = meta.flags.fin() || before.is_some() && end.claims_fin;
        end.claim = Some(at);
    }
}

/// What `end` sent is acknowledged up to `ack`: whether that makes known where it stands.
fn find_again(end: &mut End, ack: Seq) -> bool {
    let Some(claim) = end.claim.filter(|claim| (0..=LARGEST_WINDOW).contains(&claim.since(ack))) else {
        return false;
    };
    (end.nxt, end.lost, end.claim) = (claim, false, None);
    end.fin |= std::mem::take(&mut end.claims_fin);
    true
}

/// Judges an RST that `side` sent.
pub fn judge_rst(flow: &mut Flow, side: Side, meta: &Meta) -> Rst {
    if flow.is_lost() {
        return Rst::Unsure;
    }
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
