//! The last steps before a frame leaves: its way out, TTL, Ethernet addresses.

use crate::drop::{DropReason, PuntReason};
use crate::fib::{Fib, NextHop};
use crate::flow::key::FlowHasher;
use crate::frame::Frame;
use crate::hold::Packet;
use crate::pipeline::{Output, Pipeline};
use crate::wire::addr::Addr;
use crate::wire::edit;

/// Answers of the routing picture, by destination; thrown away when the picture changes.
#[derive(Debug)]
pub struct HopCache {
    hasher: FlowHasher,
    slots: Vec<Option<(Addr, NextHop)>>,
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
    pub fn next_hop(&mut self, fib: &Fib, dst: &Addr) -> NextHop {
        let at = self.hasher.hash_any(dst) as usize & (SLOTS - 1);
        let Some(slot) = self.slots.get_mut(at) else { return fib.next_hop(dst.ip()) };
        match slot {
            Some((addr, hop)) if addr == dst => *hop,
            _ => {
                let hop = fib.next_hop(dst.ip());
                *slot = Some((*dst, hop));
                hop
            }
        }
    }
}

impl<F: Frame> Pipeline<F> {
    /// Sends a packet on towards its destination; what the way out does not allow goes to the kernel, which answers.
    pub(crate) fn forward(&mut self, mut packet: Packet<F>, out: &mut Output<F>) {
        let hop = self.hops.next_hop(&self.fib, &packet.meta.tuple.dst.addr);
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
                edit::set_macs(bytes, &dst_mac, &src_mac);
                out.tx.push((port, packet.frame));
            }
            NextHop::Unresolved(_) => self.punt(packet, PuntReason::NoNeighbour, out),
            NextHop::Kernel => self.punt(packet, PuntReason::NoRoute, out),
        }
    }
}
