//! Segments that weir makes itself.

use super::{
    ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_TCP, IPV4_LEN, IPV6_LEN, TCP_LEN, checksum, put,
};
use crate::flow::key::Tuple;
use crate::frame::Frame;
use crate::parse::Meta;
use crate::tcp::flags::TcpFlags;
use crate::tcp::options::{self, Timestamps};
use crate::tcp::seq::Seq;
use crate::wire::edit;

/// TTL and hop limit of what weir sends (RFC 1700; the kernel's default).
const TTL: u8 = 64;

/// Octets of the TCP options, by what they need (RFC 9293 section 3.2, RFC 7323 sections 2.2 and 3.2, RFC 2018 section 2).
const MSS_LEN: usize = 4;
const TIMESTAMPS_LEN: usize = 12;
const SACK_LEN: usize = 4;
const WINDOW_SCALE_LEN: usize = 4;

/// What a built segment says.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub tuple: Tuple,
    pub flags: TcpFlags,
    pub seq: Seq,
    pub ack: Seq,
    pub window: u16,
    pub options: SegmentOptions,
}

/// The options of a built segment. Without SYN only the timestamps are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentOptions {
    pub mss: Option<u16>,
    /// Shift count, at most 14.
    pub window_scale: Option<u8>,
    /// SACK permitted.
    pub sack: bool,
    pub timestamps: Option<Timestamps>,
}

impl SegmentOptions {
    /// The ones that a segment with these flags may carry.
    fn allowed(&self, flags: TcpFlags) -> Self {
        if flags.syn() { *self } else { Self { timestamps: self.timestamps, ..Self::default() } }
    }

    /// Octets they take, a multiple of four.
    fn len(&self) -> usize {
        // The SACK option stands where the timestamps would be padded.
        let sack = if self.sack && self.timestamps.is_none() { SACK_LEN } else { 0 };
        self.mss.map_or(0, |_| MSS_LEN)
            + self.timestamps.map_or(0, |_| TIMESTAMPS_LEN)
            + sack
            + self.window_scale.map_or(0, |_| WINDOW_SCALE_LEN)
    }

    /// Writes them from `at`, in the order and with the padding of Linux (`tcp_options_write`, net/ipv4/tcp_output.c), so
    /// that a segment of weir's looks like any other.
    fn write(&self, bytes: &mut [u8], mut at: usize) {
        if let Some(mss) = self.mss {
            put(bytes, at, &[options::MSS, 4]);
            put(bytes, at + 2, &mss.to_be_bytes());
            at += MSS_LEN;
        }
        let sack = if self.sack { [options::SACK_PERMITTED, 2] } else { [options::NOP; 2] };
        if let Some(Timestamps { val, ecr }) = self.timestamps {
            put(bytes, at, &sack);
            put(bytes, at + 2, &[options::TIMESTAMPS, 10]);
            put(bytes, at + 4, &val.to_be_bytes());
            put(bytes, at + 8, &ecr.to_be_bytes());
            at += TIMESTAMPS_LEN;
        } else if self.sack {
            put(bytes, at, &[options::NOP; 2]);
            put(bytes, at + 2, &sack);
            at += SACK_LEN;
        }
        if let Some(shift) = self.window_scale {
            put(bytes, at, &[options::NOP, options::WINDOW_SCALE, 3, shift.min(14)]);
        }
    }
}

/// Writes a segment into `frame`, Ethernet addresses left zero. `None` when it does not fit.
pub fn segment<F: Frame>(frame: &mut F, segment: &Segment, payload: &[u8]) -> Option<Meta> {
    let v6 = !segment.tuple.src.addr.is_v4();
    let options = segment.options.allowed(segment.flags);
    let l4 = ETH_LEN + if v6 { IPV6_LEN } else { IPV4_LEN };
    let data = l4 + TCP_LEN + options.len();
    let end = data + payload.len();
    if frame.capacity() < end {
        return None;
    }
    let meta = Meta {
        tuple: segment.tuple,
        v6,
        l4: u16::try_from(l4).ok()?,
        payload: u16::try_from(data).ok()?,
        end: u16::try_from(end).ok()?,
        ttl: TTL,
        flags: segment.flags,
        seq: segment.seq,
        ack: segment.ack,
        window: segment.window,
        reassembled: false,
    };
    frame.set_len(end);
    frame.begin();
    let bytes = frame.data_mut();
    bytes.get_mut(..data)?.fill(0);
    ip_header(bytes, &meta)?;
    put(bytes, l4, &segment.tuple.src.port.to_be_bytes());
    put(bytes, l4 + 2, &segment.tuple.dst.port.to_be_bytes());
    put(bytes, l4 + 4, &segment.seq.0.to_be_bytes());
    put(bytes, l4 + 8, &segment.ack.0.to_be_bytes());
    let words = u8::try_from((data - l4) / 4).ok()?;
    put(bytes, l4 + 12, &[words << 4, segment.flags.0]);
    put(bytes, l4 + 14, &segment.window.to_be_bytes());
    options.write(bytes, l4 + TCP_LEN);
    put(bytes, data, payload);
    edit::write_checksum(bytes, &meta);
    Some(meta)
}

/// Turns the frame of a SYN into the SYN-ACK that answers it: plain headers, whatever IP options, extension headers, TCP options
/// and payload the SYN had; nothing of its payload is acknowledged. It goes back to the Ethernet address it came from.
/// `None` when it does not fit.
pub fn syn_ack<F: Frame>(
    frame: &mut F,
    syn: &Meta,
    seq: Seq,
    window: u16,
    options: &SegmentOptions,
) -> Option<Meta> {
    let macs = *frame.data().first_chunk::<12>()?;
    let (to, from) = macs.split_at(6);
    let answer = Segment {
        tuple: syn.tuple.reversed(),
        flags: TcpFlags(TcpFlags::SYN | TcpFlags::ACK),
        seq,
        ack: syn.seq.add(1),
        window,
        options: *options,
    };
    let meta = segment(frame, &answer, &[])?;
    let bytes = frame.data_mut();
    put(bytes, 0, from);
    put(bytes, 6, to);
    Some(meta)
}

/// Writes EtherType and IP header into zeroed octets.
fn ip_header(bytes: &mut [u8], meta: &Meta) -> Option<()> {
    let (src, dst) = (&meta.tuple.src.addr, &meta.tuple.dst.addr);
    if meta.v6 {
        put(bytes, 12, &ETHERTYPE_IPV6.to_be_bytes());
        put(bytes, ETH_LEN, &[0x60]);
        put(bytes, ETH_LEN + 4, &(meta.end - meta.l4).to_be_bytes());
        put(bytes, ETH_LEN + 6, &[IPPROTO_TCP, TTL]);
        put(bytes, ETH_LEN + 8, &src.0);
        put(bytes, ETH_LEN + 24, &dst.0);
        return Some(());
    }
    put(bytes, 12, &ETHERTYPE_IPV4.to_be_bytes());
    put(bytes, ETH_LEN, &[0x45]);
    put(bytes, ETH_LEN + 2, &meta.ip_len().to_be_bytes());
    // Don't Fragment; an atomic datagram's identification may be anything (RFC 6864 section 4.1).
    put(bytes, ETH_LEN + 6, &[0x40, 0, TTL, IPPROTO_TCP]);
    put(bytes, ETH_LEN + 12, src.0.get(12..)?);
    put(bytes, ETH_LEN + 16, dst.0.get(12..)?);
    let sum = !checksum::fold(checksum::sum(bytes.get(ETH_LEN..ETH_LEN + IPV4_LEN)?, 0));
    put(bytes, ETH_LEN + 10, &sum.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests;
