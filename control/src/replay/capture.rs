//! Captures, pcap and pcapng, as a sequence of Ethernet frames.
//!
//! Called by `weir replay` and by the tests that read the corpus. The formats are `pcap-parser`'s; here are the times
//! (pcapng counts them in units of each interface), the link types, and errors that say where a file ends being one.
//! Captures of IP packets without Ethernet (link types NULL, LOOP, RAW, LINUX_SLL, LINUX_SLL2, IPV4, IPV6) get a
//! header with zero addresses; any other link type is an error that names it.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use pcap_parser::data::{PacketData, get_packetdata};
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError};
use weir_core::ids::Nanos;

/// The reader's buffer at first, and the most it may grow to for one packet.
const BUFFER: usize = 1 << 17;
const MAX_BUFFER: usize = 1 << 26;
const ETHERNET_ADDRESSES: usize = 12;

/// One captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Since 1970-01-01 00:00 UTC.
    pub at: Nanos,
    /// From the Ethernet header on, as far as they were captured.
    pub bytes: Vec<u8>,
    /// Octets of the frame that the capture's snapshot length cut off.
    pub missing: u32,
}

/// Why a capture cannot be read, or not further.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct CaptureError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("cannot be opened: {0}")]
    Open(std::io::Error),
    #[error("neither a pcap nor a pcapng capture; compressed captures must be unpacked first")]
    NotACapture,
    #[error("ends within packet {0}: the capture was cut short; the packets before it were read")]
    CutShort(u64),
    #[error("cannot be read past packet {0}: the file's structure is broken there")]
    Broken(u64),
    #[error("packet {packet} was captured on {linktype}, which weir cannot replay: it reads Ethernet and IP")]
    Linktype { packet: u64, linktype: LinktypeName },
    #[error("packet {0} belongs to an interface that the capture does not describe")]
    Interface(u64),
}

/// A link type by its name, and by its number in the registry of tcpdump.org.
#[derive(Debug)]
struct LinktypeName(Linktype);

impl fmt::Display for LinktypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0.0 {
            10 => "FDDI",
            105 => "IEEE 802.11 wireless LAN",
            127 => "IEEE 802.11 wireless LAN with radiotap",
            220 | 189 => "USB",
            239 => "NFLOG",
            252 => "Wireshark's upper PDU",
            _ => "an unknown link",
        };
        write!(f, "{name} (link type {})", self.0.0)
    }
}

/// What is known of an interface of the capture.
#[derive(Clone, Copy, Debug)]
struct Interface {
    linktype: Linktype,
    /// Units per second of its times.
    resolution: u128,
    /// Seconds to add.
    offset: i64,
}

/// A capture being read. An iterator: it ends after the last frame, or after the first error.
pub struct Capture {
    path: PathBuf,
    reader: Box<dyn PcapReaderIterator + Send>,
    /// Size of the reader's buffer.
    buffer: usize,
    interfaces: Vec<Interface>,
    /// Packets read.
    packets: u64,
    /// Time of the last packet, for those that have none of their own.
    at: Nanos,
    ended: bool,
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture")
            .field("path", &self.path)
            .field("packets", &self.packets)
            .finish_non_exhaustive()
    }
}

impl Capture {
    /// Opens a file; its first octets tell whether it is pcap or pcapng.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let file = File::open(path)
            .map_err(|error| CaptureError { path: path.to_owned(), problem: Problem::Open(error) })?;
        Self::new(path, file)
    }

    /// Reads a capture from anywhere; `path` is what errors call it.
    pub fn new(path: &Path, from: impl Read + Send + 'static) -> Result<Self, CaptureError> {
        let reader = pcap_parser::create_reader(BUFFER, from)
            .map_err(|_| CaptureError { path: path.to_owned(), problem: Problem::NotACapture })?;
        Ok(Self {
            path: path.to_owned(),
            reader,
            buffer: BUFFER,
            interfaces: Vec::new(),
            packets: 0,
            at: Nanos(0),
            ended: false,
        })
    }

    /// Reads blocks up to the next packet.
    fn frame(&mut self) -> Result<Option<Frame>, Problem> {
        loop {
            let step = match self.reader.next() {
                Ok((len, block)) => {
                    Step::Block(len, take(block, &mut self.interfaces, self.packets + 1, &mut self.at))
                }
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::UnexpectedEof) => return Err(Problem::CutShort(self.packets + 1)),
                Err(PcapError::Incomplete(_)) => Step::Refill,
                Err(PcapError::BufferTooSmall) => Step::Grow,
                Err(_) => return Err(Problem::Broken(self.packets)),
            };
            match step {
                Step::Block(len, frame) => {
                    self.reader.consume(len);
                    if let Some(frame) = frame? {
                        self.packets += 1;
                        return Ok(Some(frame));
                    }
                    continue;
                }
                Step::Grow if self.buffer >= MAX_BUFFER => return Err(Problem::Broken(self.packets)),
                Step::Grow => {
                    self.buffer *= 2;
                    self.reader.grow(self.buffer);
                }
                Step::Refill => {}
            }
            self.reader.refill().map_err(|_| Problem::Broken(self.packets))?;
        }
    }
}

/// What to do after looking for a block in the buffer.
enum Step {
    /// It has this length, and says this.
    Block(usize, Result<Option<Frame>, Problem>),
    Refill,
    Grow,
}

impl Iterator for Capture {
    type Item = Result<Frame, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let frame = self.frame().map_err(|problem| CaptureError { path: self.path.clone(), problem });
        self.ended = !matches!(frame, Ok(Some(_)));
        frame.transpose()
    }
}

/// Takes what a block says: a packet, or something about interfaces.
fn take(
    block: PcapBlockOwned<'_>,
    interfaces: &mut Vec<Interface>,
    packet: u64,
    last: &mut Nanos,
) -> Result<Option<Frame>, Problem> {
    let (interface, data, wire_len) = match &block {
        PcapBlockOwned::LegacyHeader(header) => {
            let resolution = if header.is_nanosecond_precision() { 1_000_000_000 } else { 1_000_000 };
            interfaces.push(Interface { linktype: header.network, resolution, offset: 0 });
            return Ok(None);
        }
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            interfaces.clear();
            return Ok(None);
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
            interfaces.push(Interface {
                linktype: interface.linktype,
                resolution: resolution(interface.if_tsresol),
                offset: interface.if_tsoffset,
            });
            return Ok(None);
        }
        PcapBlockOwned::Legacy(block) => {
            let interface = interfaces.first().ok_or(Problem::Interface(packet))?;
            let units = u128::from(block.ts_sec) * interface.resolution + u128::from(block.ts_usec);
            *last = interface.time(units);
            (interface, block.data, block.origlen)
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(block)) => {
            let interface = interfaces.get(block.if_id as usize).ok_or(Problem::Interface(packet))?;
            *last = interface.time(u128::from(block.ts_high) << 32 | u128::from(block.ts_low));
            (interface, block.packet_data(), block.origlen)
        }
        PcapBlockOwned::NG(Block::SimplePacket(block)) => {
            let interface = interfaces.first().ok_or(Problem::Interface(packet))?;
            (interface, block.packet_data(), block.origlen)
        }
        PcapBlockOwned::NG(_) => return Ok(None),
    };
    let captured = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let unsupported = Problem::Linktype { packet, linktype: LinktypeName(interface.linktype) };
    let bytes = ethernet(data, interface.linktype).ok_or(unsupported)?;
    Ok(Some(Frame { at: *last, bytes, missing: wire_len.saturating_sub(captured) }))
}

impl Interface {
    /// A time in the interface's units.
    fn time(&self, units: u128) -> Nanos {
        let nanos = units.saturating_mul(1_000_000_000) / self.resolution;
        let offset = u128::from(self.offset.unsigned_abs()) * 1_000_000_000;
        let nanos = if self.offset < 0 { nanos.saturating_sub(offset) } else { nanos.saturating_add(offset) };
        Nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Units per second, from pcapng's if_tsresol: a power of ten, or of two when the high bit is set.
fn resolution(tsresol: u8) -> u128 {
    let (base, exponent) = if tsresol & 0x80 == 0 { (10u128, tsresol) } else { (2, tsresol & 0x7f) };
    base.checked_pow(u32::from(exponent)).unwrap_or(u128::MAX)
}

/// The packet as an Ethernet frame; `None` for link types that carry anything else.
fn ethernet(data: &[u8], linktype: Linktype) -> Option<Vec<u8>> {
    // LOOP is NULL in network byte order; its header is read for what the packet behind it says of itself.
    let (linktype, data) = match linktype {
        Linktype::LOOP | Linktype::NULL => (Linktype::RAW, data.get(4..).unwrap_or_default()),
        linktype => (linktype, data),
    };
    if data.is_empty() {
        return Some(Vec::new());
    }
    match get_packetdata(data, linktype, data.len()) {
        // Cut off within the link's header.
        None => Some(Vec::new()),
        Some(PacketData::L2(frame)) => Some(frame.to_vec()),
        Some(PacketData::L3(ethertype, packet)) => {
            let mut frame = vec![0; ETHERNET_ADDRESSES];
            frame.extend(ethertype.to_be_bytes());
            frame.extend(packet);
            Some(frame)
        }
        Some(PacketData::L4(..) | PacketData::Unsupported(_)) => None,
    }
}

#[cfg(test)]
mod tests;
