//! ICMP errors about connections that weir joins of two: what they quote is put into the words of the end they are for
//! (RFC 5508 section 4 for address translators; RFC 5927 section 4.1 for whom to believe).

use crate::drop::{DropReason, PuntReason};
use crate::fib::{NextHop, Way};
use crate::flow::key::{FlowKey, Tuple};
use crate::flow::record::{Flow, Side, Stage};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::{Nanos, PortId};
use crate::parse::Meta;
use crate::pipeline::{Output, Pipeline, PuntTo, Punted};
use crate::tcp::flags::TcpFlags;
use crate::tcp::seq::Seq;
use crate::tcp::translate::icmp::less_growth;
use crate::wire::addr::Endpoint;
use crate::wire::error::{self, Error};
use crate::wire::icmp::IcmpMeta;

/// ICMP errors that a worker sends in a second, at most.
const ERRORS_PER_SECOND: u32 = 1000;

impl<F: Frame> Pipeline<F> {
    /// Takes an ICMP error that quotes a TCP segment. What is not about a joined connection goes to the kernel as it came.
    pub fn handle_icmp(&mut self, now: Nanos, frame: F, port: PortId, meta: IcmpMeta, out: &mut Output<F>) {
        self.now = now;
        let key = FlowKey::of(&meta.quoted);
        let by_leg = self.legs.find(&key).and_then(|id| self.legs.get(id)).map(|leg| leg.flow);
        let Some(slot) = by_leg.or_else(|| self.flows.find(&key)) else {
            return self.pass_error(frame, out);
        };
        let Some(flow) = self.flows.get(slot) else { return self.pass_error(frame, out) };
        if flow.stage == Stage::Elsewhere {
            let worker = flow.leg as usize;
            return out.hand_icmp.push((worker, frame, port, meta));
        }
        let Some(leg) = self.legs.get(flow.leg) else {
            // What weir answered itself is nobody else's to hear of.
            return if flow.by_weir {
                self.discard(frame, DropReason::OldLeg, out);
            } else {
                self.pass_error(frame, out);
            };
        };
        // An error about what weir opened or changed is weir's to check; the kernel checks its own.
        if meta.sum(frame.data()) != 0xffff {
            return self.discard(frame, DropReason::BadChecksum, out);
        }
        let to_server = meta.quoted == leg.tuple;
        let to_client = meta.quoted == flow.tuple().reversed();
        let apart = leg.is_apart;
        match (flow.stage, to_server, to_client) {
            (Stage::Dialing, true, _) => self.error_of_syn(slot, frame, port, &meta, out),
            (Stage::Splice | Stage::Closed, true, _) => {
                self.translate_error(slot, Side::Server, frame, &meta, out);
            }
            (Stage::Splice | Stage::Closed, _, true) => {
                self.translate_error(slot, Side::Client, frame, &meta, out);
            }
            // About the server that the connection was taken from, or before there was one.
            _ if apart || flow.by_weir => self.discard(frame, DropReason::OldLeg, out),
            _ => self.pass_error(frame, out),
        }
    }

    fn pass_error(&mut self, frame: F, out: &mut Output<F>) {
        let reason = PuntReason::NotIntercepted;
        self.counters.punt(reason);
        out.punt.push(Punted { to: PuntTo::Forward, reason, frame });
    }

    /// Whether a segment of a spliced connection can leave with the addresses `to`. If not, its sender is told here, in the words that it
    /// knows: what the kernel would quote is rewritten already.
    pub(crate) fn leaves(
        &mut self,
        packet: Packet<F>,
        to: &Tuple,
        grows: u16,
        out: &mut Output<F>,
    ) -> Option<Packet<F>> {
        let NextHop::Forward { mtu, .. } = self.next_hop(to) else { return Some(packet) };
        let meta = packet.meta;
        let fits = meta.ip_len() <= mtu.saturating_sub(grows) || meta.reassembled;
        let (error, reason) = if meta.ttl <= 1 {
            (Error::TimeExceeded, DropReason::TtlExpired)
        } else if !fits && !error::may_fragment(packet.frame.data(), &meta) {
            let told = less_growth(u32::from(mtu), grows, meta.v6);
            (Error::TooBig { mtu: u16::try_from(told).unwrap_or(mtu) }, DropReason::TooBig)
        } else {
            return Some(packet);
        };
        self.tell_sender(&packet, error, out);
        self.discard(packet.frame, reason, out);
        None
    }

    fn tell_sender(&mut self, packet: &Packet<F>, error: Error, out: &mut Output<F>) {
        // As the kernel's icmp_msgs_per_sec.
        if self.now.saturating_sub(self.errors_since).0 >= Nanos::from_secs(1).0 {
            (self.errors_since, self.errors) = (self.now, 0);
        }
        let tuple = packet.meta.tuple;
        let from = self.fib.source(tuple.src.addr.ip(), &FlowKey::of(&tuple), Way::NONE);
        let Some(from) = from else { return };
        if self.errors >= ERRORS_PER_SECOND {
            return;
        }
        let Some(mut frame) = out.free.pop() else { return self.counters.drop(DropReason::NoFrame) };
        self.errors += 1;
        match error::build(&mut frame, (packet.frame.data(), &packet.meta), &from.into(), error) {
            Some(meta) => self.forward(Packet { frame, port: PortId(u8::MAX), meta }, out),
            None => out.free.push(frame),
        }
    }

    /// An error about the SYN of a server leg.
    fn error_of_syn(&mut self, slot: u32, frame: F, port: PortId, meta: &IcmpMeta, out: &mut Output<F>) {
        // The client knows the number too, and must not be able to have a server taken for dead.
        if !self.is_behind(slot, port, &meta.quoted.dst.addr) {
            return self.discard(frame, DropReason::WrongPort, out);
        }
        let leg = self.flows.get(slot).and_then(|flow| self.legs.get(flow.leg));
        let ours = leg.is_some_and(|leg| leg.isn == meta.seq);
        self.discard(frame, if ours { DropReason::ToWeir } else { DropReason::IcmpOutOfWindow }, out);
        if ours && meta.is_hard() {
            self.dialing_icmp(slot, out);
        }
    }

    /// An error that comes from the side `from`, about what the other end sent.
    fn translate_error(&mut self, slot: u32, from: Side, mut frame: F, meta: &IcmpMeta, out: &mut Output<F>) {
        let Some(flow) = self.flows.get(slot) else { return self.discard(frame, DropReason::OldLeg, out) };
        let Some(up) = self.legs.get_mut(flow.leg).and_then(|leg| leg.up.as_mut()) else {
            return self.discard(frame, DropReason::OldLeg, out);
        };
        if !in_flight(flow, from, meta) {
            return self.discard(frame, DropReason::IcmpOutOfWindow, out);
        }
        let done = match from {
            Side::Server => up.icmp_to_client(&mut frame, meta),
            Side::Client => up.icmp_to_server(&mut frame, meta),
        };
        match done {
            Ok(meta) => self.forward(Packet { frame, port: PortId(u8::MAX), meta: as_segment(&meta) }, out),
            Err(reason) => self.discard(frame, reason, out),
        }
    }
}

/// Whether the quoted segment can be one that is under way: between what is acknowledged and what was sent.
fn in_flight(flow: &Flow, from: Side, meta: &IcmpMeta) -> bool {
    // What the express lane carries, or has carried, only the ends can tell.
    if flow.is_lost() {
        return true;
    }
    // Errors from the server's side are about what the client sent, and both are in the client's numbers.
    let (una, nxt) = match from {
        Side::Server => (flow.server.ack, flow.client.nxt),
        Side::Client => (flow.client.ack, flow.server.nxt),
    };
    !meta.seq.before(una) && !meta.seq.after(nxt)
}

/// An error in the terms that forwarding needs: where it goes, its TTL, where it ends.
const fn as_segment(meta: &IcmpMeta) -> Meta {
    Meta {
        tuple: Tuple { src: Endpoint { addr: meta.src, port: 0 }, dst: Endpoint { addr: meta.dst, port: 0 } },
        v6: meta.v6,
        l4: meta.l4,
        payload: meta.end,
        end: meta.end,
        ttl: meta.ttl,
        flags: TcpFlags(0),
        seq: meta.seq,
        ack: Seq(0),
        window: 0,
        reassembled: false,
    }
}
