//! `weir replay`: captures through the pipeline (DESIGN section 10).
//!
//! The pipeline is the workers' own, on frames of memory. A capture is what somebody saw on one link; [`sides`] puts each
//! packet on the port it would have come in by, [`mend`] makes it what it was on the wire, and [`survey`] knows what only the
//! whole capture tells.

pub mod capture;
mod mend;
mod sides;
mod survey;
mod table;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;
use weir_core::drop::Counters;
use weir_core::flow::key::Tuple;
use weir_core::frame::{Frame as _, HeapFrame};
use weir_core::ids::Nanos;
use weir_core::parse::{self, Meta, Parsed};
use weir_core::policy::Policy;
use weir_core::view::FlowView;
use weir_core::wire::build::{self, Segment};

use capture::{Capture, CaptureError};
use mend::Tags;
use sides::Sides;
use survey::{Handshakes, Layer, Survey};

pub use table::table;

/// One connection of a capture.
#[derive(Clone, Debug, Serialize)]
pub struct Replayed {
    #[serde(flatten)]
    pub flow: FlowView,
    /// The ALPN protocol names that the client offered.
    pub alpn: Vec<String>,
    /// When its first packet came, in the capture's time.
    pub started: Nanos,
}

/// What came of a capture.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Replay {
    pub flows: Vec<Replayed>,
    pub packets: u64,
    /// Packets that no intercept has: the kernel's.
    pub passed: u64,
    /// Packets whose checksum was put right: a capture at the sender shows them as they were before the NIC.
    pub checksums_mended: u64,
    /// Packets that came with VLAN tags, which a VLAN's device takes off.
    pub untagged: u64,
    /// SYN-ACKs that the capture has not got, or has before their SYN: the client's next packet says that they came.
    pub answers_inferred: u64,
    /// Packets that the capture's snapshot length cut short.
    pub cut: u64,
    /// Drops by reason, those that happened.
    pub drops: Vec<(&'static str, u64)>,
    /// Why the capture could not be read to its end.
    pub error: Option<String>,
}

/// Runs a capture through the pipeline. Reads it twice.
///
/// # Errors
/// The file cannot be opened, or is no capture. One that breaks off later gives what was read, and says so.
pub fn replay(policy: &Policy, path: &Path) -> Result<Replay, CaptureError> {
    let mut survey = Some(Survey::of(path)?);
    let mut replayer: Option<Replayer> = None;
    let mut error = None;
    for frame in Capture::open(path)? {
        match frame {
            Ok(frame) => {
                let start = || Replayer::new(policy, survey.take().unwrap_or_default(), frame.at);
                replayer.get_or_insert_with(start).take(frame);
            }
            Err(end) => error = Some(end.to_string()),
        }
    }
    let replay = replayer.map(Replayer::finish).unwrap_or_default();
    Ok(Replay { error, ..replay })
}

struct Replayer {
    survey: Survey,
    handshakes: Handshakes,
    sides: Sides,
    replay: Replay,
    /// Connections by client, destination and start: where they stand in the list.
    known: HashMap<(SocketAddr, SocketAddr, Nanos), usize>,
}

impl Replayer {
    fn new(policy: &Policy, survey: Survey, now: Nanos) -> Self {
        Self {
            sides: Sides::new(policy, &survey.vlans, now),
            survey,
            handshakes: Handshakes::default(),
            replay: Replay::default(),
            known: HashMap::new(),
        }
    }

    fn take(&mut self, mut frame: capture::Frame) {
        self.replay.packets += 1;
        let tags = mend::untag(&mut frame.bytes);
        self.replay.untagged += u64::from(tags != Tags::None);
        let refitted = mend::fit_length(&mut frame);
        self.replay.cut += u64::from(frame.missing > 0);
        let (now, mut bytes) = (frame.at, frame.bytes);
        let mut mended = false;
        if let Some(ip) = mend::ip_checksum(&bytes) {
            mended = !ip.is_right && (ip.is_absent || !self.survey.is_believed(Layer::Ip, ip.sender));
            if mended {
                mend::write_ip_checksum(&mut bytes);
            }
        }
        match parse::parse(&bytes) {
            Ok(Parsed::Tcp(meta)) => self.segment(now, &mut bytes, &meta, tags, (refitted, mended)),
            Ok(Parsed::Fragment(meta)) => {
                for mut whole in self.sides.fragment(now, &bytes, meta) {
                    self.segment(now, whole.frame.data_mut(), &whole.meta, tags, (refitted, mended));
                }
            }
            Ok(Parsed::NotTcp | Parsed::Icmp(_)) => self.replay.passed += 1,
            Err(reason) => self.sides.refused.drop(reason),
        }
    }

    /// Takes a segment; `refitted` tells that its length was changed, and `mended` that its IP header was.
    fn segment(
        &mut self,
        now: Nanos,
        bytes: &mut [u8],
        meta: &Meta,
        tags: Tags,
        (refitted, mended): (bool, bool),
    ) {
        let is_believed = !refitted && self.survey.is_believed(Layer::Tcp, meta.tuple.src.addr);
        let mended = mend::tcp_checksum(bytes, meta, is_believed) || mended;
        if self.survey.is_early(self.replay.packets, meta) {
            return self.handshakes.put_aside(meta, bytes);
        }
        if let Some(answer) = self.handshakes.missing_answer(&self.survey, meta) {
            self.answer(now, &answer);
        }
        if self.sides.tcp(now, bytes, meta, tags) {
            self.replay.checksums_mended += u64::from(mended);
        } else {
            self.replay.passed += 1;
        }
        self.note(&meta.tuple);
        if let Some(early) = self.handshakes.take_answer(meta)
            && let Ok(Parsed::Tcp(meta)) = parse::parse(&early)
        {
            self.replay.answers_inferred += u64::from(self.sides.tcp(now, &early, &meta, tags));
            self.note(&meta.tuple);
        }
    }

    /// Plays a SYN-ACK that is not in the capture.
    fn answer(&mut self, now: Nanos, answer: &Segment) {
        let mut frame = HeapFrame::new(mend::MAX_FRAME);
        if let Some(meta) = build::segment(&mut frame, answer, &[]) {
            self.replay.answers_inferred += u64::from(self.sides.tcp(now, frame.data(), &meta, Tags::None));
        }
    }

    /// Writes down how the packet's connection stands now.
    fn note(&mut self, tuple: &Tuple) {
        let Some((flow, started, found)) = self.sides.view(tuple) else { return };
        let key = (flow.client, flow.destination, started);
        let at = *self.known.entry(key).or_insert(self.replay.flows.len());
        let alpn =
            found.map(|found| found.alpn.names().map(|n| String::from_utf8_lossy(n).into_owned()).collect());
        match self.replay.flows.get_mut(at) {
            Some(known) => {
                known.flow = flow;
                if let Some(alpn) = alpn {
                    known.alpn = alpn;
                }
            }
            None => self.replay.flows.push(Replayed { flow, alpn: alpn.unwrap_or_default(), started }),
        }
    }

    /// What is still waiting for its verdict gets it: the hold's time ends.
    fn finish(mut self) -> Replay {
        for tuple in self.sides.end() {
            self.note(&tuple);
        }
        let Counters { dropped, .. } = self.sides.counters();
        let reasons = weir_core::drop::DropReason::ALL.iter().zip(dropped);
        self.replay.drops = reasons.filter(|(_, n)| *n > 0).map(|(r, n)| (r.name(), n)).collect();
        self.replay
    }
}
