//! A plain reassembly of TCP, to show the inspector the first bytes of each connection of a capture without the
//! pipeline: no checksums, no windows, first bytes win.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use weir_control::replay::capture::Frame;
use weir_core::inspect::{Inspector, Outcome};
use weir_core::policy::Protocol;

use super::{Ends, Reading, Readings};

/// The hold of the example configuration.
const HOLD: usize = 16 * 1024;

/// What became of a connection's first bytes.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// The sequence number of the first octet.
    start: u32,
    /// Octets from `start` on, without gaps.
    bytes: Vec<u8>,
    /// Segments beyond a gap, by their distance from `start`.
    early: BTreeMap<u32, Vec<u8>>,
    inspector: Inspector,
    /// Said once.
    pub reading: Option<Reading>,
    /// Octets that came from the server before any from the client.
    pub server_first: bool,
}

/// The connections of a capture that begin with a SYN in it.
#[derive(Debug, Default)]
pub struct Streams {
    pub by_ends: BTreeMap<Ends, Stream>,
    /// Connections whose SYN was not captured, with the octets their client sent.
    pub midstream: BTreeMap<Ends, usize>,
}

impl Streams {
    pub fn read(frames: impl Iterator<Item = Frame>) -> Self {
        let mut streams = Self::default();
        frames.for_each(|frame| streams.take(&frame));
        streams
    }

    /// What was identified. A server that speaks first leaves its connection unidentified, as the pipeline does.
    pub fn readings(&self) -> Readings {
        self.by_ends
            .iter()
            .map(|(ends, stream)| (*ends, stream.reading.clone().unwrap_or_default()))
            .collect()
    }

    fn take(&mut self, frame: &Frame) {
        let Ok(packet) = LaxSlicedPacket::from_ethernet(&frame.bytes) else { return };
        let (from, to): (IpAddr, IpAddr) = match &packet.net {
            Some(LaxNetSlice::Ipv4(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            _ => return,
        };
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return };
        let from = SocketAddr::new(from, tcp.source_port());
        let to = SocketAddr::new(to, tcp.destination_port());
        let ends = Ends { client: from, server: to };
        if tcp.syn() {
            if !tcp.ack() {
                let start = tcp.sequence_number().wrapping_add(1);
                let known = self.by_ends.get(&ends);
                if known.is_none_or(|stream| stream.start != start && stream.reading.is_none()) {
                    self.by_ends.insert(ends, Stream { start, ..Stream::default() });
                }
                // TCP Fast Open (RFC 7413).
                if let Some(stream) = self.by_ends.get_mut(&ends) {
                    stream.take(start, tcp.payload());
                }
            }
        } else if let Some(stream) = self.by_ends.get_mut(&ends) {
            stream.take(tcp.sequence_number(), tcp.payload());
        } else if let Some(stream) = self.by_ends.get_mut(&Ends { client: to, server: from }) {
            stream.take_from_server(tcp.payload());
        } else if !tcp.payload().is_empty() {
            *self.midstream.entry(ends).or_default() += tcp.payload().len();
        }
    }
}

impl Stream {
    /// The first octets of the client, as far as they came without gaps, at most as many as are held.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn take(&mut self, seq: u32, payload: &[u8]) {
        if payload.is_empty() || self.reading.is_some() {
            return;
        }
        let distance = seq.wrapping_sub(self.start);
        if distance < HOLD as u32 {
            self.early.entry(distance).or_insert_with(|| payload.to_vec());
        } else if distance > u32::MAX / 2 {
            let old = distance.wrapping_neg() as usize;
            if let Some(new) = payload.get(old..) {
                self.early.entry(0).or_insert_with(|| new.to_vec());
            }
        }
        while let Some((distance, segment)) = self.early.pop_first() {
            let have = self.bytes.len();
            if distance as usize > have {
                self.early.insert(distance, segment);
                break;
            }
            self.bytes.extend(segment.get(have - distance as usize..).unwrap_or_default());
        }
        self.bytes.truncate(HOLD);
        if let Outcome::Done(found) = self.inspector.inspect(&self.bytes, HOLD) {
            let protocol = match found.protocol {
                Protocol::Tls => "tls",
                Protocol::Http => "http",
                Protocol::Other => "other",
            };
            let names: Vec<_> = found.alpn.names().map(String::from_utf8_lossy).collect();
            self.reading = Some(Reading {
                protocol: protocol.to_owned(),
                host: found.host.map(|name| name.as_str().to_owned()).unwrap_or_default(),
                alpn: names.join(","),
            });
        }
    }

    fn take_from_server(&mut self, payload: &[u8]) {
        if !payload.is_empty() && self.bytes.is_empty() && self.early.is_empty() && self.reading.is_none() {
            self.server_first = true;
            self.reading = Some(Reading::default());
        }
    }
}
