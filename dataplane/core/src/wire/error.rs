//! ICMP errors that weir sends itself: about segments of a spliced connection, whose sender would not know them again if the
//! kernel quoted them as they leave (RFC 792, RFC 1191, RFC 4443).

use super::icmp::{IPPROTO_ICMP, IPPROTO_ICMPV6};
use super::{
    ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LEN, IPV6_LEN, IPV6_MIN_MTU, checksum, get_u16, put,
};
use crate::flow::key::Tuple;
use crate::frame::Frame;
use crate::parse::Meta;
use crate::tcp::flags::TcpFlags;
use crate::tcp::seq::Seq;
use crate::wire::addr::{Addr, Endpoint};

const TTL: u8 = 64;
const ICMP_LEN: usize = 8;
/// The largest error: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c).
const MAX_V4: usize = 576;
const MAX_V6: usize = IPV6_MIN_MTU as usize;

/// What is wrong with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It does not fit the way out, which takes packets of this many octets.
    TooBig { mtu: u16 },
    /// Its TTL or hop limit has run out.
    TimeExceeded,
}

impl Error {
    const fn type_and_code(self, v6: bool) -> [u8; 2] {
        match (self, v6) {
            (Self::TooBig { .. }, false) => [3, 4],
            (Self::TooBig { .. }, true) => [2, 0],
            (Self::TimeExceeded, false) => [11, 0],
            (Self::TimeExceeded, true) => [3, 0],
        }
    }
}

/// Whether an IPv4 packet may be fragmented on its way: then it is not too big for anything.
pub fn may_fragment(frame: &[u8], meta: &Meta) -> bool {
    const DONT_FRAGMENT: u16 = 0x4000;
    !meta.v6 && get_u16(frame, ETH_LEN + 6).is_some_and(|word| word & DONT_FRAGMENT == 0)
}

/// Builds the error about the segment `about`, which stays as it is, in `frame`; it comes from `from`, the gateway. What is
/// returned is enough to forward it. `None`: it does not fit.
pub fn build<F: Frame>(frame: &mut F, about: (&[u8], &Meta), from: &Addr, error: Error) -> Option<Meta> {
    let (bytes, meta) = about;
    let quoted = bytes.get(ETH_LEN..meta.end as usize)?;
    let (ip, most) = if meta.v6 { (IPV6_LEN, MAX_V6) } else { (IPV4_LEN, MAX_V4) };
    let quoted = quoted.get(..quoted.len().min(most - ip - ICMP_LEN))?;
    let l4 = ETH_LEN + ip;
    let end = l4 + ICMP_LEN + quoted.len();
    if frame.capacity() < end {
        return None;
    }
    frame.set_len(end);
    frame.begin();
    let out = frame.data_mut();
    out.get_mut(..l4 + ICMP_LEN)?.fill(0);
    let to = meta.tuple.src.addr;
    let length = u16::try_from(end - ETH_LEN).ok()?;
    if meta.v6 {
        put(out, 12, &ETHERTYPE_IPV6.to_be_bytes());
        put(out, ETH_LEN, &[0x60]);
        put(out, ETH_LEN + 4, &(length - IPV6_LEN as u16).to_be_bytes());
        put(out, ETH_LEN + 6, &[IPPROTO_ICMPV6, TTL]);
        put(out, ETH_LEN + 8, &from.0);
        put(out, ETH_LEN + 24, &to.0);
    } else {
        put(out, 12, &ETHERTYPE_IPV4.to_be_bytes());
        // Internetwork control (RFC 1812 section 4.3.2.5).
        put(out, ETH_LEN, &[0x45, 0xc0]);
        put(out, ETH_LEN + 2, &length.to_be_bytes());
        put(out, ETH_LEN + 8, &[TTL, IPPROTO_ICMP]);
        put(out, ETH_LEN + 12, from.0.get(12..)?);
        put(out, ETH_LEN + 16, to.0.get(12..)?);
        let sum = !checksum::fold(checksum::sum(out.get(ETH_LEN..l4)?, 0));
        put(out, ETH_LEN + 10, &sum.to_be_bytes());
    }
    put(out, l4, &error.type_and_code(meta.v6));
    if let Error::TooBig { mtu } = error {
        put(out, l4 + 6, &mtu.to_be_bytes());
    }
    put(out, l4 + ICMP_LEN, quoted);
    let pseudo = if meta.v6 { checksum::pseudo_of(IPPROTO_ICMPV6, from, &to, end - l4) } else { 0 };
    let sum = !checksum::fold(checksum::sum(out.get(l4..end)?, pseudo));
    put(out, l4 + 2, &sum.to_be_bytes());
    Some(Meta {
        tuple: Tuple { src: Endpoint { addr: *from, port: 0 }, dst: Endpoint { addr: to, port: 0 } },
        v6: meta.v6,
        l4: u16::try_from(l4).ok()?,
        payload: u16::try_from(end).ok()?,
        end: u16::try_from(end).ok()?,
        ttl: TTL,
        flags: TcpFlags(0),
        seq: Seq(0),
        ack: Seq(0),
        window: 0,
        reassembled: false,
    })
}
