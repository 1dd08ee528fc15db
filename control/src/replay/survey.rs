//! What a whole capture says of itself, found before it is replayed: whose checksums can be believed, and which
//! handshakes are in it.

use std::collections::HashMap;
use std::path::Path;

use weir_core::fib::Vlans;
use weir_core::flow::key::Tuple;
use weir_core::parse::{self, Meta, Parsed};
use weir_core::tcp::flags::TcpFlags;
use weir_core::tcp::seq::Seq;
use weir_core::vlan::Vlan;
use weir_core::wire::addr::Addr;
use weir_core::wire::build::{Segment, SegmentOptions};

use super::capture::{Capture, CaptureError, Frame};
use super::mend::{self, Tags};

/// The window of a SYN-ACK that was not captured. Without a scale, it is what it says.
const WINDOW: u16 = u16::MAX;

/// What a checksum is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    Ip,
    Tcp,
}

/// A sender's checksums.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    right: u64,
    wrong: u64,
}

/// The packets of a handshake, by their number in the capture; the first of each.
#[derive(Clone, Copy, Debug, Default)]
struct Handshake {
    syn: Option<u64>,
    answer: Option<u64>,
}

/// A client's endpoint, the server's, and the acknowledgment number that answers the client's SYN.
type HandshakeKey = (Tuple, Seq);

/// The first look at a capture.
#[derive(Debug, Default)]
pub struct Survey {
    sums: HashMap<(Layer, Addr), Sums>,
    handshakes: HashMap<HandshakeKey, Handshake>,
    /// VLANs whose tags frames have, in the order of the capture; as many as a box can have.
    pub vlans: Vec<Vlan>,
}

impl Survey {
    /// Reads a capture up to its end, or to where it breaks off.
    ///
    /// # Errors
    /// The file cannot be opened, or is no capture.
    pub fn of(path: &Path) -> Result<Self, CaptureError> {
        let mut survey = Self::default();
        for (packet, frame) in (1..).zip(Capture::open(path)?.map_while(Result::ok)) {
            survey.note(packet, frame);
        }
        Ok(survey)
    }

    fn note(&mut self, packet: u64, mut frame: Frame) {
        if let Tags::Of(vlan) = mend::untag(&mut frame.bytes)
            && self.vlans.len() < Vlans::NUMBERS.len()
            && !self.vlans.contains(&vlan)
        {
            self.vlans.push(vlan);
        }
        let says_its_sums = !mend::fit_length(&mut frame) && frame.missing == 0;
        if let Some(ip) = mend::ip_checksum(&frame.bytes) {
            if says_its_sums && !ip.is_absent {
                self.note_sum(Layer::Ip, ip.sender, ip.is_right);
            }
            mend::write_ip_checksum(&mut frame.bytes);
        }
        if let Ok(Parsed::Tcp(meta)) = parse::parse(&frame.bytes) {
            if says_its_sums {
                self.note_sum(Layer::Tcp, meta.tuple.src.addr, meta.segment_sum(&frame.bytes) == 0xffff);
            }
            self.note_segment(packet, &meta);
        }
    }

    fn note_sum(&mut self, layer: Layer, sender: Addr, is_right: bool) {
        let sums = self.sums.entry((layer, sender)).or_default();
        *(if is_right { &mut sums.right } else { &mut sums.wrong }) += 1;
    }

    /// Notes a segment that may belong to a handshake.
    fn note_segment(&mut self, packet: u64, meta: &Meta) {
        if let Some(key) = answered_by(meta) {
            self.handshakes.entry(key).or_default().answer.get_or_insert(packet);
        } else if meta.flags.opens() {
            self.handshakes.entry(opened_by(meta)).or_default().syn.get_or_insert(packet);
        }
    }

    /// Whether a wrong checksum of this sender was wrong on the wire. Of a sender whose checksums are mostly wrong they
    /// are what its NIC had yet to fill in, or what somebody left who gave the capture other addresses.
    pub fn is_believed(&self, layer: Layer, sender: Addr) -> bool {
        self.sums.get(&(layer, sender)).is_some_and(|sums| sums.right > sums.wrong)
    }

    /// Whether a packet is a SYN-ACK that stands before its SYN in the capture, as it can in one that was taken from
    /// several queues. No server answers what it has not got.
    pub fn is_early(&self, packet: u64, meta: &Meta) -> bool {
        let handshake = answered_by(meta).and_then(|key| self.handshakes.get(&key));
        handshake.and_then(|h| h.syn).is_some_and(|syn| syn > packet)
    }
}

/// Handshakes while the capture is replayed.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// SYNs whose SYN-ACK is not in the capture: what acknowledges them.
    unanswered: HashMap<Tuple, Seq>,
    /// SYN-ACKs that wait for their SYN.
    early: HashMap<HandshakeKey, Vec<u8>>,
}

impl Handshakes {
    /// Keeps a SYN-ACK until its SYN comes.
    pub fn put_aside(&mut self, meta: &Meta, frame: &[u8]) {
        if let Some(key) = answered_by(meta) {
            self.early.entry(key).or_insert_with(|| frame.to_vec());
        }
    }

    /// The SYN-ACK that was put aside for this SYN.
    pub fn take_answer(&mut self, meta: &Meta) -> Option<Vec<u8>> {
        meta.flags.opens().then(|| self.early.remove(&opened_by(meta))).flatten()
    }

    /// The SYN-ACK that must have come before this packet, when the capture has none: its client's first segment
    /// acknowledges it (RFC 9293 section 3.5). So a capture of one direction can be replayed.
    pub fn missing_answer(&mut self, survey: &Survey, meta: &Meta) -> Option<Segment> {
        if meta.flags.opens() {
            let key = opened_by(meta);
            if survey.handshakes.get(&key).is_none_or(|h| h.answer.is_none()) {
                self.unanswered.insert(meta.tuple, key.1);
            }
            return None;
        }
        let next = *self.unanswered.get(&meta.tuple)?;
        if !meta.flags.ack() || meta.flags.syn() || meta.flags.rst() || meta.seq != next {
            return None;
        }
        self.unanswered.remove(&meta.tuple);
        Some(Segment {
            tuple: meta.tuple.reversed(),
            flags: TcpFlags(TcpFlags::SYN | TcpFlags::ACK),
            seq: Seq(meta.ack.0.wrapping_sub(1)),
            ack: next,
            window: WINDOW,
            options: SegmentOptions::default(),
        })
    }
}

/// The handshake that a SYN opens. Data in the SYN is not counted: the pipeline takes it out.
const fn opened_by(meta: &Meta) -> HandshakeKey {
    (meta.tuple, meta.seq.add(1))
}

/// The handshake that a SYN-ACK answers; `None` for anything else.
const fn answered_by(meta: &Meta) -> Option<HandshakeKey> {
    if meta.flags.syn() && meta.flags.ack() && !meta.flags.rst() {
        Some((meta.tuple.reversed(), meta.ack))
    } else {
        None
    }
}
