//! Segments come in: those that simply pass are taken off in runs ([`super::straight`]), each other one is looked at by itself.

use crate::batch::{Batch, Seen};
use crate::drop::DropReason;
use crate::flow::key::FlowKey;
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::Nanos;
use crate::pipeline::{Output, Pipeline};
use crate::wire::edit;

use super::straight::hand_on;

impl<F: Frame> Pipeline<F> {
    /// Takes one TCP segment whose connection this worker owns.
    pub fn handle(&mut self, now: Nanos, packet: Packet<F>, out: &mut Output<F>) {
        let hash = self.hasher.hash_of(&packet.meta.tuple);
        let Packet { frame, port, meta } = packet;
        let likely = self.flows.expect(hash, meta.v6 | !self.legs.is_empty());
        self.now = now;
        let mut seen = Seen { likely, ..Seen::new(port, meta, hash) };
        let mut frame = frame;
        if self.has_partial {
            self.fill_partial_checksum(&mut frame, &mut seen);
        }
        if self.run(std::slice::from_mut(&mut seen)) == 0 {
            return self.otherwise(frame, &seen, out);
        }
        hand_on(&mut frame, &seen.meta, &seen.hop);
        out.tx.push((seen.hop.port, frame));
        self.may_enter(likely, out);
    }

    /// Takes segments whose connections this worker owns, in this order.
    ///
    /// A connection among a million is in no cache, and a processor waits for memory as long as it takes for a whole packet. So the
    /// index is asked for all of them first, and their connections are fetched: what does not depend on each other is waited for
    /// together.
    pub fn handle_batch(&mut self, now: Nanos, batch: &mut Batch<F>, out: &mut Output<F>) {
        self.now = now;
        let Some(mut seen) = batch.seen.get_mut(..batch.frames.len()) else { return };
        // A connection of two legs takes more than its first cache line.
        let has_legs = !self.legs.is_empty();
        for seen in &mut *seen {
            seen.likely = self.flows.expect(seen.hash, seen.meta.v6 | has_legs);
        }
        if self.has_partial {
            for (frame, seen) in batch.frames.iter_mut().zip(&mut *seen) {
                self.fill_partial_checksum(frame, seen);
            }
        }
        let leave = |(mut frame, seen): (F, &Seen)| {
            hand_on(&mut frame, &seen.meta, &seen.hop);
            (seen.hop.port, frame)
        };
        let mut frames = batch.frames.drain(..);
        loop {
            let run = self.run(seen);
            if run == frames.len() && !self.has_lanes {
                // All that there are, mostly.
                out.tx.extend(frames.zip(&*seen).map(leave));
                return;
            }
            let Some((run, after)) = seen.split_at_mut_checked(run) else { break };
            out.tx.extend(frames.by_ref().take(run.len()).zip(&*run).map(leave));
            if let Some(last) = run.last() {
                self.may_enter(last.likely, out);
            }
            let (Some((other, rest)), Some(frame)) = (after.split_first_mut(), frames.next()) else { break };
            self.otherwise(frame, other, out);
            seen = rest;
        }
    }

    /// How many segments, from the first on, simply pass; where they leave is noted with them. It ends behind one after which its
    /// connection may enter the express lane.
    #[inline]
    fn run(&mut self, batch: &mut [Seen]) -> usize {
        if self.now < self.cookies_until {
            return 0;
        }
        for (at, seen) in batch.iter_mut().enumerate() {
            if self.straight(seen).is_none() {
                return at;
            }
            if self.has_lanes && self.is_due(seen.likely) {
                return at + 1;
            }
        }
        batch.len()
    }

    #[inline(never)]
    fn fill_partial_checksum(&mut self, frame: &mut F, seen: &mut Seen) {
        seen.unsummed =
            self.partial.contains(seen.port) && edit::fill_partial_checksum(frame.data_mut(), &seen.meta);
        if seen.unsummed {
            self.flows.note_unsummed(seen.likely, &seen.meta.tuple);
        }
    }

    /// A segment that needs a thought, or whose connection is not where it was looked for.
    #[inline(never)]
    fn otherwise(&mut self, frame: F, seen: &Seen, out: &mut Output<F>) {
        let (mut packet, unsummed) = (seen.packet(frame), seen.unsummed);
        if packet.meta.is_martian() {
            return self.discard(packet.frame, DropReason::Martian, out);
        }
        if !packet.meta.flags.is_plain() && !self.is_whole(&packet) {
            return self.discard(packet.frame, DropReason::BadChecksum, out);
        }
        let found = self.flows.locate(seen.likely, seen.hash, &packet.meta.tuple);
        let Some((slot, side)) = found else { return self.apart(packet, unsummed, out) };
        self.note_unsummed(slot, unsummed);
        if let Some(port) = self.straight_at(slot, side, &mut packet, out) {
            out.tx.push((port, packet.frame));
            return self.may_enter(slot, out);
        }
        if let Some(packet) = self.straight_across(slot, side, packet, out) {
            self.known(slot, packet, out);
        }
    }

    /// What opens or ends a connection here must not be what a bit on the wire has made of something else. Captures have SYNs
    /// whose checksums a NIC was to fill in.
    fn is_whole(&self, packet: &Packet<F>) -> bool {
        packet.meta.flags.syn() && self.is_replay || packet.meta.segment_sum(packet.frame.data()) == 0xffff
    }

    /// A segment that no connection has by its client's addresses.
    pub(crate) fn apart(&mut self, packet: Packet<F>, unsummed: bool, out: &mut Output<F>) {
        let Some(leg) = self.legs.find(&FlowKey::of(&packet.meta.tuple)) else {
            return self.unknown(packet, out);
        };
        if let Some(slot) = self.legs.get(leg).map(|leg| leg.flow) {
            self.note_unsummed(slot, unsummed);
        }
        self.on_leg(leg, packet, out);
    }
}
