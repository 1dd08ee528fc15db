//! `weir replay`: captures through the pipeline (DESIGN section 10).
//!
//! The pipeline is the workers' own, on frames of memory. A capture is what somebody saw on one link; [`sides`] puts each
//! packet on the port it would have come in by.

pub mod capture;
mod sides;
mod table;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use weir_core::drop::Counters;
use weir_core::flow::key::Tuple;
use weir_core::frame::Frame as _;
use weir_core::ids::Nanos;
use weir_core::parse::{self, Parsed};
use weir_core::policy::Policy;
use weir_core::view::FlowView;

use capture::{Capture, CaptureError};
use sides::Sides;

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
    /// Packets whose TCP checksum was put right: a capture at the sender shows them as they were before the NIC.
    pub checksums_mended: u64,
    /// Packets that the capture's snapshot length cut short.
    pub cut: u64,
    /// Drops by reason, those that happened.
    pub drops: Vec<(&'static str, u64)>,
    /// Why the capture could not be read to its end.
    pub error: Option<String>,
}

/// Runs a capture through the pipeline.
///
/// # Errors
/// The file cannot be opened, or is no capture. One that breaks off later gives what was read, and says so.
pub fn replay(policy: &Arc<Policy>, path: &Path) -> Result<Replay, CaptureError> {
    let mut replayer: Option<Replayer> = None;
    let mut error = None;
    for frame in Capture::open(path)? {
        match frame {
            Ok(frame) => {
                replayer.get_or_insert_with(|| Replayer::new(policy.clone(), frame.at)).take(frame);
            }
            Err(end) => error = Some(end.to_string()),
        }
    }
    let replay = replayer.map(Replayer::finish).unwrap_or_default();
    Ok(Replay { error, ..replay })
}

struct Replayer {
    sides: Sides,
    replay: Replay,
    /// Connections by client, destination and start: where they stand in the list.
    known: HashMap<(SocketAddr, SocketAddr, Nanos), usize>,
}

impl Replayer {
    fn new(policy: Arc<Policy>, now: Nanos) -> Self {
        Self { sides: Sides::new(policy, now), replay: Replay::default(), known: HashMap::new() }
    }

    fn take(&mut self, frame: capture::Frame) {
        self.replay.packets += 1;
        self.replay.cut += u64::from(frame.missing > 0);
        let now = frame.at;
        match parse::parse(&frame.bytes) {
            Ok(Parsed::Tcp(meta)) => {
                let mended = self.sides.tcp(now, &frame.bytes, &meta);
                self.count(mended);
                self.note(&meta.tuple);
            }
            Ok(Parsed::Fragment(meta)) => {
                for whole in self.sides.fragment(now, &frame.bytes, meta) {
                    let mended = self.sides.tcp(now, whole.frame.data(), &whole.meta);
                    self.count(mended);
                    self.note(&whole.meta.tuple);
                }
            }
            Ok(Parsed::NotTcp) => self.replay.passed += 1,
            Err(reason) => self.sides.refused.drop(reason),
        }
    }

    fn count(&mut self, done: sides::Done) {
        match done {
            sides::Done::Passed => self.replay.passed += 1,
            sides::Done::Mended => self.replay.checksums_mended += 1,
            sides::Done::Taken => {}
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
