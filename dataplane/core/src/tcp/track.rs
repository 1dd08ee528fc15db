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

use std::hint::select_unpredictable;

use super::options;
use super::seq::Seq;
use crate::flow::record::{Claim, End, Flow, Side};
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
///
/// Ends that are only claimed stay so: nobody says them again.
pub fn lose(flow: &mut Flow) {
    (flow.client_rest.lost, flow.server_rest.lost) = (true, true);
    flow.claims.keep_fins();
}

/// A segment of a lost connection that nobody gets any more says where both ends stand: `seq` is what the receiver waits for.
pub fn settle(flow: &mut Flow, side: Side, seq: Seq, ack: Seq) {
    let (from, to) = flow.ends(side);
    (from.nxt, from.ack, to.nxt, to.ack) = (seq, ack, ack, seq);
    (flow.client_rest.lost, flow.server_rest.lost) = (false, false);
}

/// Notes a segment of an answered connection that is passed on.
#[inline]
pub fn note(flow: &mut Flow, side: Side, meta: &Meta) {
    flow.count(side, 1, u64::from(meta.payload_len()));
    let (rest, _) = flow.rests(side);
    if rest.lost {
        claim(flow, side, meta);
        return note_ack(flow, side, meta);
    }
    let is_open = !rest.fin;
    let (from, to) = flow.ends(side);
    // A window probe goes one octet beyond (RFC 9293 section 3.8.6.1).
    let allowed = to.edge.max(to.ack).add(1);
    if meta.seq_end().after(allowed) && meta.seq_end().after(from.nxt) {
        flow.claims.set(side, Claim { at: meta.seq_end(), fin: meta.flags.fin() });
        return note_ack(flow, side, meta);
    }
    // Only the first FIN's place counts; beyond it nothing can follow.
    if is_open {
        let ends = meta.flags.fin() && !meta.seq_end().before(from.nxt);
        from.nxt = from.nxt.max(meta.seq_end());
        flow.rests(side).0.fin = ends;
    }
    note_ack(flow, side, meta);
}

/// Both ends are known, and none has finished; neither has acknowledged more than it lets the other send.
pub fn is_steady(flow: &Flow) -> bool {
    let (client, server) = (&flow.client_rest, &flow.server_rest);
    let is_whole = |end: &End| !end.edge.before(end.ack);
    !(client.lost || client.fin || server.lost || server.fin)
        && is_whole(&flow.client)
        && is_whole(&flow.server)
}

/// As [`note`], for a plain segment of a steady connection that stays within what was allowed and sent; the sender's window shift is
/// `shift`, at most 14. `false`: it does not, or a count is full, and nothing was noted.
#[inline(always)]
pub fn note_plain(flow: &mut Flow, side: Side, meta: &Meta, shift: u32) -> bool {
    // Chosen without a branch: half of the packets would be guessed wrong.
    let from_client = side == Side::Client;
    let to = select_unpredictable(from_client, &flow.server, &flow.client);
    // No further than the edge, since that is never before the acknowledgment.
    let (allowed, sent) = (to.edge.add(1), to.nxt);
    let from = select_unpredictable(from_client, &mut flow.client, &mut flow.server);
    let end = meta.seq.add(meta.payload_len());
    if end.after(allowed) && end.after(from.nxt) || meta.ack.after(sent) {
        return false;
    }
    let counts = (from.packets.checked_add(1), from.bytes.checked_add(meta.payload_len()));
    let (Some(packets), Some(bytes)) = counts else { return false };
    (from.packets, from.bytes) = (packets, bytes);
    from.nxt = from.nxt.max(end);
    if !meta.ack.before(from.ack) {
        from.ack = meta.ack;
        from.edge = from.edge.max(meta.ack.add(u32::from(meta.window).wrapping_shl(shift)));
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
    let (lost, nxt) = (flow.rests(side).1.lost, flow.ends(side).1.nxt);
    let found = lost && find_again(flow, side.opposite(), meta.ack);
    if lost && !found {
        return;
    }
    if !found && meta.ack.after(nxt) {
        let peer = side.opposite();
        let Some(claim) = flow.claims.get(peer).filter(|claim| !meta.ack.after(claim.at)) else { return };
        flow.claims.clear(peer);
        flow.ends(side).1.nxt = claim.at;
        flow.rests(side).1.fin |= claim.fin;
    }
    let shift = if scaled { flow.rests(side).0.shift } else { 0 };
    let (from, to) = flow.ends(side);
    let edge = options::right_edge(meta.ack, meta.window, shift);
    if found || !meta.ack.before(from.ack) {
        from.ack = meta.ack;
        from.edge = if found { edge } else { from.edge.max(edge) };
        let is_all = !meta.ack.before(to.nxt);
        let (_, to) = flow.rests(side);
        to.fin_acked |= to.fin && is_all;
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
    // An end only where it is acknowledged: a forger's lies anywhere.
    let is_near = |claim: &Claim| {
        let ahead = claim.at.since(ack);
        if claim.fin { ahead == 0 } else { (0..=LARGEST_WINDOW).contains(&ahead) }
    };
    let Some(claim) = flow.claims.get(side).filter(is_near) else { return false };
    flow.claims.clear(side);
    flow.ends(side).0.nxt = claim.at;
    let (end, _) = flow.rests(side);
    end.lost = false;
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
    flow.client_rest.fin_acked && flow.server_rest.fin_acked
}

/// Starts an end's numbers at its SYN or SYN-ACK.
pub fn start(flow: &mut Flow, side: Side, meta: &Meta, shift: u8) {
    flow.rests(side).0.shift = shift;
    let (end, _) = flow.ends(side);
    end.nxt = meta.seq_end();
    end.ack = meta.ack;
    end.edge = options::right_edge(meta.ack, meta.window, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::key::Tuple;
    use crate::ids::{InterceptId, Nanos, PortId};
    use crate::tcp::flags::TcpFlags;

    /// 100 octets of payload.
    fn segment(seq: u32) -> Meta {
        Meta {
            payload: 54,
            end: 154,
            flags: TcpFlags(TcpFlags::ACK),
            seq: Seq(seq),
            window: 1000,
            ..Meta::NONE
        }
    }

    #[test]
    fn counts_beyond_32_bits_go_on() {
        let tuple = Tuple { src: Meta::NONE.tuple.src, dst: Meta::NONE.tuple.dst };
        for side in [Side::Client, Side::Server] {
            let mut flow = Flow::new(&tuple, PortId(0), InterceptId(0), 1, Nanos(0));
            (flow.client.edge, flow.server.edge) = (Seq(10_000), Seq(10_000));
            let near = u64::from(u32::MAX);
            flow.count(side, near - 1, near - 250);
            assert!(note_plain(&mut flow, side, &segment(0), 0));
            assert_eq!((flow.packets(side), flow.bytes(side)), (near, near - 150));
            assert!(!note_plain(&mut flow, side, &segment(100), 0), "no room in the lower part");
            assert_eq!((flow.packets(side), flow.bytes(side)), (near, near - 150), "and nothing was noted");
            note(&mut flow, side, &segment(100));
            note(&mut flow, side, &segment(200));
            assert_eq!((flow.packets(side), flow.bytes(side)), (near + 2, near + 50));
            assert!(note_plain(&mut flow, side, &segment(300), 0));
            assert_eq!((flow.packets(side), flow.bytes(side)), (near + 3, near + 150));
            assert_eq!((flow.packets(side.opposite()), flow.bytes(side.opposite())), (0, 0));
        }
    }

    /// What one end may send is told from the edge alone where connections are steady.
    #[test]
    fn end_that_acknowledged_beyond_its_edge_is_not_steady() {
        let tuple = Tuple { src: Meta::NONE.tuple.src, dst: Meta::NONE.tuple.dst };
        let mut flow = Flow::new(&tuple, PortId(0), InterceptId(0), 1, Nanos(0));
        assert!(is_steady(&flow));
        settle(&mut flow, Side::Client, Seq(100), Seq(200));
        assert!(!is_steady(&flow));
        note(&mut flow, Side::Client, &Meta { ack: Seq(200), ..segment(100) });
        note(&mut flow, Side::Server, &Meta { ack: Seq(100), seq: Seq(200), ..segment(0) });
        assert!(is_steady(&flow));
    }
}
