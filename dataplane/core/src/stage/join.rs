//! Two legs become one connection: the server has answered, the client's held bytes go, and from then on packets cross as
//! the leg's translation has them.

use crate::drop::DropReason;
use crate::fib::NextHop;
use crate::flow::key::Tuple;
use crate::flow::legs::Leg;
use crate::flow::record::{Flow, Side, Stage};
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::Nanos;
use crate::parse::Meta;
use crate::pipeline::{Output, Pipeline};
use crate::policy::ProxyVersion;
use crate::proxy::{MAX_PROXY_HEADER, ProxyHeader};
use crate::tcp::flags::TcpFlags;
use crate::tcp::options::{self, SynOptions, Timestamps};
use crate::tcp::translate::{TimestampMode, Translation};
use crate::wire::build::{Segment, SegmentOptions};

use super::timers;

/// How often a PROXY header is sent again before the connection is given up with [`timers::HEADER`].
const HEADERS: u8 = 10;

impl<F: Frame> Pipeline<F> {
    /// The server answered with the SYN-ACK `meta`: the legs are joined.
    pub(crate) fn join(&mut self, slot: u32, meta: &Meta, granted: &SynOptions, out: &mut Output<F>) {
        self.note_echo(slot);
        let Some(flow) = self.flows.get(slot) else { return };
        let clock = self.cookies.clock(&flow.tuple(), self.now);
        let Some(leg) = self.legs.get_mut(flow.leg) else { return };
        leg.up = Some(translation(flow, leg, meta, granted, clock, self.now));
        leg.since = self.now;
        let (id, header) = (flow.leg, leg.header);
        let Some(flow) = self.flows.get_mut(slot) else { return };
        flow.tries = 0;
        flow.answered = true;
        // The client's view of the server goes on where it stood.
        flow.server.ack = flow.isn.add(1);
        // The window of a SYN-ACK is never scaled (RFC 7323 section 2.2), and begins at the header.
        let room = u32::from(meta.window).saturating_sub(u32::from(header));
        // What has been promised already may be on its way.
        flow.server.edge = flow.server.edge.max(flow.server.ack.add(room));
        flow.count(Side::Server, 1, 0);
        let held = flow.hold != Flow::NO_HOLD && self.holds.holds_any(flow.hold);
        self.flows.set_stage(slot, Stage::Splice);
        if header > 0 {
            self.send_header(slot, id, out);
        } else if !held {
            self.finish_handshake(slot, id, out);
        }
        self.release(slot, out);
        if header > 0 {
            self.flows.arm(slot, self.now.saturating_add(timers::RETRANSMIT));
        }
    }

    /// The last TSval that the client echoed before the legs are joined.
    pub(crate) fn note_echo(&mut self, slot: u32) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        if flow.offer.timestamps
            && let Some(echo) = self.holds.last_echo(flow.hold)
            && (echo.wrapping_sub(flow.offer.shown) as i32) > 0
        {
            flow.offer.shown = echo;
        }
    }

    /// The ACK of the server's SYN-ACK, where nothing else brings it.
    fn finish_handshake(&mut self, slot: u32, id: u32, out: &mut Output<F>) {
        if let Some(segment) = self.own_segment(slot, id, TcpFlags::ACK) {
            self.send_built(&segment, out);
        }
    }

    /// A segment of weir's own to the server, at the beginning of the leg's stream.
    fn own_segment(&self, slot: u32, id: u32, flags: u8) -> Option<Segment> {
        let flow = self.flows.get(slot)?;
        let leg = self.legs.get(id)?;
        let up = leg.up?;
        let window = u32::try_from(flow.client.edge.since(flow.client.ack)).unwrap_or(0);
        let shift = if up.shift_to_server > 0 { 0 } else { flow.client_rest.shift.min(14) };
        let timestamps = match up.timestamps {
            TimestampMode::Both { first, .. } => Some(Timestamps { val: flow.offer.tsval, ecr: first }),
            _ => None,
        };
        Some(Segment {
            tuple: leg.tuple,
            flags: TcpFlags(flags),
            seq: leg.isn.add(1),
            ack: up.base,
            window: u16::try_from(window >> shift).unwrap_or(u16::MAX),
            options: SegmentOptions { timestamps, ..SegmentOptions::default() },
        })
    }

    /// The PROXY header, for the first time or again: the one thing that weir owns.
    fn send_header(&mut self, slot: u32, id: u32, out: &mut Output<F>) {
        let Some(segment) = self.own_segment(slot, id, TcpFlags::ACK | TcpFlags::PSH) else { return };
        let mut header = [0; MAX_PROXY_HEADER];
        let version = self.legs.get(id).and_then(|leg| leg.proxy);
        let len = version.and_then(|version| self.write_header(slot, version, &mut header)).unwrap_or(0);
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.tries = flow.tries.saturating_add(1);
        }
        self.send_segment(&segment, header.get(..len).unwrap_or_default(), out);
    }

    /// Octets of a PROXY header for this connection. `None`: it cannot be written.
    pub(crate) fn header_len(&self, slot: u32, version: ProxyVersion) -> Option<u16> {
        u16::try_from(self.write_header(slot, version, &mut [0; MAX_PROXY_HEADER])?).ok()
    }

    /// The same each time, as long as the connection's hold is there: it holds what the client offered.
    fn write_header(&self, slot: u32, version: ProxyVersion, into: &mut [u8]) -> Option<usize> {
        let flow = self.flows.get(slot)?;
        let tuple = flow.tuple();
        // What came after a verdict on less is not counted: the header must not change.
        let found = flow.protocol.and_then(|_| self.holds.found(flow.hold));
        let header = ProxyHeader {
            version,
            client: tuple.src,
            destination: tuple.dst,
            host: self.names.get(flow.name),
            alpn: found.as_ref().and_then(|f| f.alpn.names().next()),
        };
        header.write(into)
    }

    /// Whether the server has not acknowledged its PROXY header.
    pub(crate) fn lacks_header(&self, slot: u32) -> bool {
        let leg = self.flows.get(slot).and_then(|flow| self.legs.get(flow.leg));
        leg.is_some_and(|leg| !leg.header_acked)
    }

    /// The header's time to be acknowledged is over. Returns whether there is one under way.
    pub(crate) fn header_timer(&mut self, slot: u32, out: &mut Output<F>) -> bool {
        let Some(flow) = self.flows.get(slot) else { return false };
        let (id, tries) = (flow.leg, flow.tries);
        let Some(leg) = self.legs.get(id) else { return false };
        let over = leg.since.saturating_add(timers::HEADER) <= self.now || tries >= HEADERS;
        if leg.header_acked || over {
            return false;
        }
        self.send_header(slot, id, out);
        let wait = Nanos(timers::RETRANSMIT.0 << tries.min(5));
        self.flows.arm(slot, self.now.saturating_add(wait));
        true
    }

    /// A packet of the server as the client is to see it. `None`: it says nothing to the client, and is gone.
    pub(crate) fn come_in(
        &mut self,
        slot: u32,
        mut packet: Packet<F>,
        out: &mut Output<F>,
    ) -> Option<Packet<F>> {
        let Some(flow) = self.flows.get(slot) else { return Some(packet) };
        let id = flow.leg;
        let Some(leg) = self.legs.get_mut(id) else { return Some(packet) };
        let meta = packet.meta;
        let Some(up) = leg.up.as_mut() else {
            // The server answers a SYN whose connection has ended since.
            self.discard(packet.frame, DropReason::OldLeg, out);
            self.answer_rst(&meta, out);
            return None;
        };
        if meta.flags.syn() {
            // Our ACK was lost.
            let again = meta.flags.ack() && meta.ack == leg.isn.add(1) && meta.seq.add(1) == up.base;
            let header = !leg.header_acked;
            self.discard(packet.frame, DropReason::ToWeir, out);
            match (again, header) {
                (true, true) => self.send_header(slot, id, out),
                (true, false) => self.finish_handshake(slot, id, out),
                _ => {}
            }
            return None;
        }
        let (grows, client) = (up.growth(&meta), up.client.reversed());
        let grows = if grows > 0 { self.growth_on_its_way(id, &client, &meta) } else { 0 };
        packet = self.leaves(packet, &client, grows, out)?;
        let leg = self.legs.get_mut(id)?;
        let up = leg.up.as_mut()?;
        let acks_header = meta.flags.ack() && !meta.ack.before(up.start);
        match up.to_client(&mut packet.frame, &meta, self.now) {
            Ok(meta) => packet.meta = meta,
            Err(reason) => {
                self.discard(packet.frame, reason, out);
                return None;
            }
        }
        if acks_header && !leg.header_acked {
            leg.header_acked = true;
            self.header_is_acked(slot);
        }
        Some(packet)
    }

    /// By how much a segment of the server's may grow, on the way that the client has now.
    fn growth_on_its_way(&mut self, leg: u32, client: &Tuple, meta: &Meta) -> u16 {
        let way = self.next_hop(client);
        let Some(up) = self.legs.get_mut(leg).and_then(|leg| leg.up.as_mut()) else { return 0 };
        if let NextHop::Forward { mtu, .. } = way {
            up.note_way_to_client(u32::from(mtu));
        }
        up.growth(meta)
    }

    /// The server has the PROXY header: the timer is that of a connection again.
    fn header_is_acked(&mut self, slot: u32) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        flow.tries = 0;
        if flow.stage == Stage::Splice {
            if flow.hold == Flow::NO_HOLD {
                return self.rest(slot);
            }
            self.flows.arm(slot, self.now.saturating_add(timers::UNACKED_CROWDED));
        }
    }

    /// Notes what a packet of the server says while the handshake passes, so that another server can go on from there.
    pub(crate) fn note_clock(flow: &mut Flow, packet: &Packet<F>) {
        if flow.offer.timestamps
            && let Some(ts) = options::timestamps(packet.meta.options_of(packet.frame.data()))
            && (ts.val.wrapping_sub(flow.offer.shown) as i32) > 0
        {
            flow.offer.shown = ts.val;
        }
    }
}

/// How packets cross between the client's leg and the one to the server that sent the SYN-ACK `meta`.
fn translation(
    flow: &Flow,
    leg: &Leg,
    meta: &Meta,
    granted: &SynOptions,
    clock: u32,
    now: Nanos,
) -> Translation {
    let (offer, base) = (flow.offer, meta.seq.add(1));
    let promised = i8::try_from(flow.server_rest.shift.min(14)).unwrap_or(0);
    let (to_client, to_server) = match (offer.window_scale, granted.window_scale) {
        (true, Some(shift)) => (i8::try_from(shift.min(14)).unwrap_or(0) - promised, 0),
        // The server reads the client's windows as they stand, and means its own so (RFC 7323 section 2.2).
        (true, None) => (-promised, i8::try_from(flow.client_rest.shift.min(14)).unwrap_or(0)),
        (false, _) => (0, 0),
    };
    // The clock that the client has been shown goes on: weir's own, or that of the server it was taken from.
    let shown = if flow.by_weir { clock } else { offer.shown };
    let timestamps = match (offer.timestamps, granted.timestamps) {
        (true, Some(ts)) => TimestampMode::Both { offset: shown.wrapping_sub(ts.val), first: ts.val },
        (true, None) => {
            let clock = (now.0 / 1_000_000) as u32;
            TimestampMode::ClientOnly { base: shown.wrapping_sub(clock), echo: offer.tsval, narrow: false }
        }
        (false, _) => TimestampMode::None,
    };
    Translation {
        client: flow.tuple(),
        server: leg.tuple,
        delta: flow.server.nxt.0.wrapping_sub(base.0),
        start: flow.isn.add(1),
        prefix: u32::from(leg.header),
        base,
        timestamps,
        sack: offer.sack && granted.sack,
        server_scale: if offer.window_scale { granted.window_scale.unwrap_or(0).min(14) } else { 0 },
        shift_to_client: to_client,
        shift_to_server: to_server,
        ecn: offer.ecn && meta.flags.0 & (TcpFlags::ECE | TcpFlags::CWR) == TcpFlags::ECE,
        acked: false,
    }
}
