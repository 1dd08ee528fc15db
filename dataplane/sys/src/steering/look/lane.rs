//! What the express lane has of a packet's flow: read, judged in the order of `cross` in dataplane/bpf/express.h, and put into the
//! maps of a copy.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::super::express::layout::{Entry, Head, HopValue, Key, LinkValue, TRANSLATED, VOID};
use super::super::express::{SEEN_SHIFT, Seen};
use super::super::former::has_ended;
use super::super::map::{Headed, Map};
use super::super::{Outcome, SteeringError, set};
use super::{Look, Packet, get};

/// The entry of a packet's direction. All but SYN, FIN, RST, URG and what cannot be rewritten goes as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InLane {
    /// Source and destination of the packets as they go out.
    pub goes: (SocketAddr, SocketAddr),
    /// The kernel could not go on with the flow.
    pub is_translated: bool,
    /// The worker carries it, as long as there is one.
    pub stands_by: bool,
    /// No worker knows it.
    #[serde(default)]
    pub is_stray: bool,
    /// The worker has it until it has been seen with nothing in hand.
    #[serde(default)]
    pub changes: bool,
    /// The packet comes in by the device that the entry names.
    pub by_its_device: bool,
    /// The index of the device that it leaves by, and the next station's Ethernet address; none: not known now.
    pub hop: Option<(u32, [u8; 6])>,
    /// Both ends are known to have ended it, or one has reset it.
    pub is_over: bool,
    /// Packets of this direction, and when the last passed: ns of CLOCK_MONOTONIC.
    pub packets: u64,
    pub last_seen: u64,
    /// As found, for a copy.
    #[serde(skip)]
    found: Option<Found>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    entry: Entry,
    back: Option<Entry>,
    hop: HopValue,
    link: LinkValue,
}

/// The same in the lane of a weir of another layout, as far as that is known of every layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFormer {
    pub goes: (SocketAddr, SocketAddr),
    pub is_translated: bool,
    pub is_over: bool,
    /// ns of CLOCK_MONOTONIC.
    pub last_seen: u64,
}

/// The entry of a packet in the first of these lanes that has one.
pub(super) fn look_before(
    lanes: &[Headed<Key, Head>],
    packet: &Packet,
) -> Result<Option<InFormer>, SteeringError> {
    let read = |lane: &Headed<Key, Head>, key: &Key| {
        lane.get(key).map_err(SteeringError::of_map("express_flows", "reading"))
    };
    for lane in lanes {
        let Some(head) = read(lane, &Key::new(packet.from, packet.to))? else { continue };
        if head.flags & VOID != 0 {
            continue;
        }
        let back = read(lane, &head.back())?;
        let is_over = has_ended(&head, back.as_ref());
        return Ok(Some(InFormer {
            goes: head.endpoints(),
            is_translated: head.flags & TRANSLATED != 0,
            is_over,
            last_seen: u64::from(head.last_seen) << SEEN_SHIFT,
        }));
    }
    Ok(None)
}

/// The lane's maps.
#[derive(Clone, Debug)]
pub(super) struct LaneMaps {
    pub flows: Map<Key, Entry>,
    pub hops: Map<u32, HopValue>,
    pub links: Map<u32, LinkValue>,
    pub ports: Map<u32, [u32; 2]>,
}

impl LaneMaps {
    /// The entry of a packet; none where the program would take it for one of no lane.
    pub fn look(&self, packet: &Packet) -> Result<Option<InLane>, SteeringError> {
        let entry = |from, to| get(&self.flows, "express_flows", &Key::new(from, to));
        let Some(found) = entry(packet.from, packet.to)?.filter(|entry| entry.head.flags & VOID == 0) else {
            return Ok(None);
        };
        let goes = found.head.endpoints();
        let back = entry(goes.1, goes.0)?;
        let hop = get(&self.hops, "express_hops", &u32::from(found.head.hop))?.unwrap_or_default();
        let out = get(&self.ports, "express_ports", &u32::from(hop.link))?.map(|[ifindex, _]| ifindex);
        let link = get(&self.links, "express_links", &u32::from(found.link()))?.unwrap_or_default();
        let seen = Seen::from(&found);
        let is_over = back.as_ref().map(Seen::from).is_none_or(|back| {
            let has_fins = back.fin && seen.fin;
            back.rst || seen.rst || has_fins
        });
        Ok(Some(InLane {
            goes,
            is_translated: found.head.flags & TRANSLATED != 0,
            stands_by: found.stands_by(),
            is_stray: found.is_stray(),
            changes: found.changes(),
            by_its_device: link.ifindex == packet.ifindex,
            hop: out.filter(|_| hop.up != 0).map(|ifindex| (ifindex, hop.dst_mac)),
            is_over,
            packets: seen.packets,
            last_seen: seen.last_seen,
            found: Some(Found { entry: found, back, hop, link }),
        }))
    }

    /// Puts what was found into the maps of a copy.
    pub fn fill(&self, lane: &InLane, packet: &Packet) -> Result<(), SteeringError> {
        let Some(Found { entry, back, hop, link }) = lane.found else { return Ok(()) };
        set(&self.flows, "express_flows", &Key::new(packet.from, packet.to), &entry)?;
        if let Some(back) = back {
            set(&self.flows, "express_flows", &Key::new(lane.goes.1, lane.goes.0), &back)?;
        }
        set(&self.hops, "express_hops", &u32::from(entry.head.hop), &hop)?;
        set(&self.links, "express_links", &u32::from(entry.link()), &link)?;
        match lane.hop {
            Some((ifindex, _)) => set(&self.ports, "express_ports", &u32::from(hop.link), &[ifindex, 0]),
            None => Ok(()),
        }
    }
}

impl Look {
    /// What the lane of another layout makes of the packet, as after a crash: its weir gives no sign of life any more.
    pub(super) fn crossed_before(&self, opens: bool) -> Option<Outcome> {
        let former = self.former.filter(|_| self.has_lane)?;
        if !opens {
            return Some(Outcome::Express);
        }
        (former.is_translated && !former.is_over).then_some(Outcome::ExpressDrop)
    }

    /// What the lane makes of the packet; none: steering goes on.
    pub(super) fn crossed(&self, opens: bool) -> Option<Outcome> {
        let lane = self.lane.filter(|_| self.has_lane)?;
        let alive = self.is_alive();
        let or_drop = |outcome| match (lane.is_stray, self.port.is_some() && alive) {
            (true, _) if lane.is_translated || self.closed => Some(Outcome::ExpressDrop),
            (true, _) => Some(Outcome::KernelFlow),
            (false, true) => Some(outcome),
            (false, false) => lane.is_translated.then_some(Outcome::ExpressDrop),
        };
        if !lane.by_its_device {
            return or_drop(Outcome::ExpressIngress);
        }
        if (lane.stands_by || lane.changes) && !opens && alive && self.port.is_some() {
            return Some(if lane.stands_by { Outcome::Redirect } else { Outcome::ExpressChanging });
        }
        if opens {
            // Without a worker it would end in a flow that it does not belong to.
            let meets = (lane.is_stray || !alive && lane.is_translated) && !lane.is_over;
            return meets.then_some(Outcome::ExpressDrop);
        }
        if lane.hop.is_some() { Some(Outcome::Express) } else { or_drop(Outcome::ExpressHop) }
    }
}
