//! The last steps before a frame leaves: its way out, TTL, Ethernet addresses.

use crate::drop::{DropReason, PuntReason};
use crate::fib::{Fib, NextHop, Ways};
use crate::flow::key::{FlowHasher, FlowKey, Tuple};
use crate::flow::record::Side;
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::PortId;
use crate::pipeline::{Output, Pipeline};
use crate::wire::addr::Addr;
use crate::wire::edit;

/// Answers of the routing picture, by destination; thrown away when the picture changes.
#[derive(Debug)]
pub struct HopCache {
    hasher: FlowHasher,
    slots: Vec<Option<(Addr, Ways)>>,
}

/// Slots of the cache; a power of two.
const SLOTS: usize = 4096;

impl HopCache {
    pub fn new(hasher: FlowHasher) -> Self {
        Self { hasher, slots: vec![None; SLOTS] }
    }

    pub fn clear(&mut self) {
        self.slots.fill(None);
    }

    #[inline]
    pub fn ways(&mut self, fib: &Fib, dst: &Addr) -> Ways {
        let at = self.hasher.hash_any(dst) as usize & (SLOTS - 1);
        let Some(slot) = self.slots.get_mut(at) else { return fib.ways(dst.ip()) };
        match slot {
            Some((addr, ways)) if addr == dst => *ways,
            _ => {
                let ways = fib.ways(dst.ip());
                *slot = Some((*dst, ways));
                ways
            }
        }
    }

    /// Whether the way to `dst` leaves by a port of ours.
    pub fn has_way(&mut self, fib: &Fib, dst: &Addr) -> bool {
        self.ways(fib, dst) != Ways::One(NextHop::Kernel)
    }

    /// Whether a way to `dst` leaves by `port`.
    pub fn leads_by(&mut self, fib: &Fib, dst: &Addr, port: PortId) -> bool {
        match self.ways(fib, dst) {
            Ways::One(hop) => hop.port() == Some(port),
            Ways::Several(group) => fib.group(group).is_some_and(|group| group.ports().contains(port)),
        }
    }
}

impl<F: Frame> Pipeline<F> {
    /// Where a packet with these addresses goes. Of several ways a connection takes the same for all its packets of one
    /// direction, as long as that lives; a server leg's is its own connection's.
    pub(crate) fn next_hop(&mut self, tuple: &Tuple) -> NextHop {
        match self.ways.ways(&self.fib, &tuple.dst.addr) {
            Ways::One(hop) => hop,
            Ways::Several(group) => self.member(group, tuple),
        }
    }

    fn member(&mut self, group: u32, tuple: &Tuple) -> NextHop {
        let (key, dst) = (FlowKey::of(tuple), tuple.dst.addr.ip());
        let leg = self.legs.find(&key).and_then(|id| self.legs.get(id)).map(|leg| leg.flow);
        let slot = leg.or_else(|| self.flows.find(&key));
        let Some(flow) = slot.and_then(|slot| self.flows.get_mut(slot)) else {
            return self.fib.next_hop(dst, &key);
        };
        let is_apart = self.legs.get(flow.leg).is_some_and(|leg| leg.is_apart);
        let way = match (leg, flow.side(tuple)) {
            (None, Side::Server) => &mut flow.to_client,
            // The server that a connection was taken from is none of its two ends any more.
            (None, Side::Client) if is_apart => return self.fib.next_hop(dst, &flow.key),
            _ => &mut flow.to_server,
        };
        let (hop, taken) = self.fib.member(group, dst, &flow.key, *way);
        *way = taken;
        hop
    }

    /// Sends a packet on towards its destination; what the way out does not allow goes to the kernel, which answers.
    pub(crate) fn forward(&mut self, mut packet: Packet<F>, out: &mut Output<F>) {
        let hop = self.next_hop(&packet.meta.tuple);
        match hop {
            NextHop::Forward { port, src_mac, dst_mac, mtu } => {
                if packet.meta.ttl <= 1 {
                    return self.punt(packet, PuntReason::TtlExpired, out);
                }
                if packet.meta.ip_len() > mtu {
                    return if packet.meta.reassembled {
                        self.discard(packet.frame, DropReason::FragmentTooBig, out);
                    } else {
                        self.punt(packet, PuntReason::MtuExceeded, out);
                    };
                }
                packet.frame.set_len(packet.meta.end as usize);
                let bytes = packet.frame.data_mut();
                edit::decrement_ttl(bytes, packet.meta.v6);
                edit::set_macs(bytes, &[dst_mac, src_mac]);
                out.tx.push((port, packet.frame));
            }
            NextHop::Unresolved(_) => self.punt(packet, PuntReason::NoNeighbour, out),
            NextHop::Kernel => self.punt(packet, PuntReason::NoRoute, out),
        }
    }
}
