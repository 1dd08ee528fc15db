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
use crate::flow::record::{Claim, Claims, End, Flow, Side};
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
    (flow.client.lost, flow.server.lost) = (true, true);
    flow.claims = Claims::NONE;
}

/// A segment of a lost connection that nobody gets any more says where both ends stand: `seq` is what the receiver waits for.
pub fn settle(flow: &mut Flow, side: Side, seq: Seq, ack: Seq) {
    let (from, to) = flow.ends(side);
    (from.nxt, from.ack, to.nxt, to.ack) = (seq, ack, ack, seq);
    (from.lost, to.lost) = (false, false);
}

/// Notes a segment of an answered connection that is passed on.
#[inline]
pub fn note(flow: &mut Flow, side: Side, meta: &Meta) {
    let (from, to) = flow.ends(side);
    from.packets += 1;
    from.bytes += u64::from(meta.payload_len());
    // A window probe goes one octet beyond (RFC 9293 section 3.8.6.1).
    let allowed = to.edge.max(to.ack).add(1);
    if from.lost {
        claim(flow, side, meta);
        return note_ack(flow, side, meta);
    }
    if meta.seq_end().after(allowed) && meta.seq_end().after(from.nxt) {
        flow.claims.set(side, Claim { at: meta.seq_end(), fin: meta.flags.fin() });
        return note_ack(flow, side, meta);
    }
    // Only the first FIN's place counts; beyond it nothing can follow.
    if !from.fin {
        from.fin = meta.flags.fin() && !meta.seq_end().before(from.nxt);
        from.nxt = from.nxt.max(meta.seq_end());
    }
    note_ack(flow, side, meta);
}

/// Both ends are known, and none has finished.
pub const fn is_steady(flow: &Flow) -> bool {
    let (client, server) = (&flow.client, &flow.server);
    !(client.lost || client.fin || server.lost || server.fin)
}

/// As [`note`], for a plain segment of a steady connection that stays within what was allowed and sent. `false`: it does not, and
/// nothing was noted.
#[inline(always)]
pub fn note_plain(flow: &mut Flow, side: Side, meta: &Meta) -> bool {
    let (from, to) = flow.ends(side);
    let end = meta.seq.add(meta.payload_len());
    let allowed = to.edge.max(to.ack).add(1);
    if end.after(allowed) && end.after(from.nxt) || meta.ack.after(to.nxt) {
        return false;
    }
    from.packets += 1;
    from.bytes += u64::from(meta.payload_len());
    from.nxt = from.nxt.max(end);
    if !meta.ack.before(from.ack) {
        from.ack = meta.ack;
        from.edge = from.edge.max(options::right_edge(meta.ack, meta.window, from.shift));
    }
    true
}

/// Notes only what a segment says about the other direction: its acknowledgment and its window.
#[inline]
pub fn note_ack(flow: &mut Flow, side: Side, meta: &Meta) {
    let scaled = !meta.flags.syn();
    if !meta.flags.ack() {
        return;
    }
    let (_, to) = flow.ends(side);
    let (lost, nxt) = (to.lost, to.nxt);
    let found = lost && find_again(flow, side.opposite(), meta.ack);
    if lost && !found {
        return;
    }
    if !found && meta.ack.after(nxt) {
        let peer = side.opposite();
        let Some(claim) = flow.claims.get(peer).filter(|claim| !meta.ack.after(claim.at)) else { return };
        flow.claims.clear(peer);
        let (_, to) = flow.ends(side);
        to.nxt = claim.at;
        to.fin |= claim.fin;
    }
    let (from, to) = flow.ends(side);
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
#[cold]
fn claim(flow: &mut Flow, side: Side, meta: &Meta) {
    let at = meta.seq_end();
    let before = flow.claims.get(side).filter(|claim| !at.after(claim.at));
    if before.is_none_or(|claim| claim.at == at) {
        let fin = meta.flags.fin() || before.is_some_and(|claim| claim.fin);
        flow.claims.set(side, Claim { at, fin });
    }
}

/// What `side` sent is acknowledged up to `ack`: whether that makes known where it stands.
#[cold]
fn find_again(flow: &mut Flow, side: Side, ack: Seq) -> bool {
    let is_near = |claim: &Claim| (0..=LARGEST_WINDOW).contains(&claim.at.since(ack));
    let Some(claim) = flow.claims.get(side).filter(is_near) else { return false };
    flow.claims.clear(side);
    let (end, _) = flow.ends(side);
    (end.nxt, end.lost) = (claim.at, false);
    end.fin |= claim.fin;
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
