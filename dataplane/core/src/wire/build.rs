//! Segments that weir makes itself.

use super::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_TCP, IPV6_LEN, checksum, put};
use crate::flow::key::Tuple;
use crate::frame::Frame;
use crate::parse::Meta;
use crate::tcp::flags::TcpFlags;
use crate::tcp::seq::Seq;
use crate::wire::edit;

/// TTL and hop limit of what weir sends (RFC 1700; the kernel's default).
const TTL: u8 = 64;

/// What a built segment says.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub tuple: Tuple,
    pub flags: TcpFlags,
    pub seq: Seq,
    pub ack: Seq,
    pub window: u16,
}

/// Writes a segment without options and payload into `frame`, Ethernet addresses left zero. `None` when it does not fit.
pub fn segment<F: Frame>(frame: &mut F, segment: &Segment) -> Option<Meta> {
    let v6 = !segment.tuple.src.addr.is_v4();
    let l4 = ETH_LEN + if v6 { IPV6_LEN } else { 20 };
    let end = l4 + 20;
    if frame.capacity() < end {
        return None;
    }
    frame.set_len(end);
    let bytes = frame.data_mut();
    bytes.fill(0);
    let (src, dst) = (segment.tuple.src, segment.tuple.dst);
    if v6 {
        put(bytes, 12, &ETHERTYPE_IPV6.to_be_bytes());
        put(bytes, ETH_LEN, &[0x60, 0, 0, 0, 0, 20, IPPROTO_TCP, TTL]);
        put(bytes, ETH_LEN + 8, &src.addr.0);
        put(bytes, ETH_LEN + 24, &dst.addr.0);
    } else {
        put(bytes, 12, &ETHERTYPE_IPV4.to_be_bytes());
        put(bytes, ETH_LEN, &[0x45, 0, 0, 40, 0, 0, 0x40, 0, TTL, IPPROTO_TCP]);
        put(bytes, ETH_LEN + 12, src.addr.0.get(12..)?);
        put(bytes, ETH_LEN + 16, dst.addr.0.get(12..)?);
        let sum = !checksum::fold(checksum::sum(bytes.get(ETH_LEN..l4)?, 0));
        put(bytes, ETH_LEN + 10, &sum.to_be_bytes());
    }
    put(bytes, l4, &src.port.to_be_bytes());
    put(bytes, l4 + 2, &dst.port.to_be_bytes());
    put(bytes, l4 + 4, &segment.seq.0.to_be_bytes());
    put(bytes, l4 + 8, &segment.ack.0.to_be_bytes());
    put(bytes, l4 + 12, &[0x50, segment.flags.0]);
    put(bytes, l4 + 14, &segment.window.to_be_bytes());
    let meta = Meta {
        tuple: segment.tuple,
        v6,
        l4: l4 as u16,
        payload: end as u16,
        end: end as u16,
        ttl: TTL,
        flags: segment.flags,
        seq: segment.seq,
        ack: segment.ack,
        window: segment.window,
        reassembled: false,
    };
    edit::write_checksum(bytes, &meta);
    Some(meta)
}
