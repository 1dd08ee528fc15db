//! ICMP errors about a spliced connection: who is told, and the segment that is quoted, as its sender knows it.

use super::{INSERTED, TimestampMode, Translation, set_addresses};
use crate::drop::DropReason;
use crate::flow::key::Tuple;
use crate::frame::Frame;
use crate::tcp::flags::TcpFlags;
use crate::tcp::seq::Seq;
use crate::wire::checksum::Change;
use crate::wire::icmp::{IcmpKind, IcmpMeta};
use crate::wire::patch::{self, Which};
use crate::wire::{ETH_LEN, IPV6_MIN_MTU, extension, get_u16, get_u32};

/// How a quoted segment is rewritten.
struct Quote {
    from: Tuple,
    to: Tuple,
    /// Added to the sequence number and to the acknowledgment.
    seq: u32,
    ack: u32,
}

impl Translation {
    /// Rewrites an error about a segment that went to the server, for the client.
    pub fn icmp_to_client<F: Frame>(&self, frame: &mut F, meta: &IcmpMeta) -> Result<IcmpMeta, DropReason> {
        let quote = Quote { from: self.server, to: self.client, seq: 0, ack: self.delta };
        rewrite(frame.data_mut(), meta, &quote)
    }

    /// Rewrites an error about a segment that went to the client, for the server.
    pub fn icmp_to_server<F: Frame>(
        &mut self,
        frame: &mut F,
        meta: &IcmpMeta,
    ) -> Result<IcmpMeta, DropReason> {
        let (from, to) = (self.client.reversed(), self.server.reversed());
        let quote = Quote { from, to, seq: self.delta.wrapping_neg(), ack: 0 };
        let bytes = frame.data_mut();
        let mut out = rewrite(bytes, meta, &quote)?;
        if let (TimestampMode::ClientOnly { .. }, IcmpKind::TooBig { mtu }) = (self.timestamps, meta.kind) {
            self.note_way_to_client(mtu);
            // What the server sends grows on its way to the client.
            let mtu = less_growth(mtu, INSERTED, meta.v6);
            let l4 = usize::from(meta.l4);
            let change = if meta.v6 {
                patch::set_u32(bytes, l4 + 4, mtu)
            } else {
                patch::set_u16(bytes, l4 + 6, mtu as u16)
            };
            patch::mend(bytes, l4 + 2, change);
            out.kind = IcmpKind::TooBig { mtu };
        }
        Ok(out)
    }
}

/// The MTU that a sender is told whose packets grow by so much on their way. One of IPv6 would not believe that it is smaller than
/// the least that there is.
pub(crate) fn less_growth(mtu: u32, growth: u16, v6: bool) -> u32 {
    let least = if v6 { mtu.min(u32::from(IPV6_MIN_MTU)) } else { 0 };
    mtu.saturating_sub(u32::from(growth)).max(least)
}

fn rewrite(bytes: &mut [u8], meta: &IcmpMeta, quote: &Quote) -> Result<IcmpMeta, DropReason> {
    if bytes.len() < usize::from(meta.end) {
        return Err(DropReason::Truncated);
    }
    let (from, to) = (quote.from, quote.to);
    let is_other_family = to.src.addr.is_v4() == meta.v6 || to.dst.addr.is_v4() == meta.v6;
    if meta.quoted != from || meta.dst != from.src.addr || is_other_family {
        return Err(DropReason::Untranslatable);
    }
    let mut out = *meta;
    out.quoted = to;
    out.seq = meta.seq.add(quote.seq);
    out.dst = to.src.addr;
    // The far end itself may have sent the error: it is the other leg's far end then. A router stays who it is.
    if meta.src == from.dst.addr {
        out.src = to.dst.addr;
    }
    let mut message = Change::NONE;
    if (out.src, out.dst) != (meta.src, meta.dst) {
        if extension::fixes_addresses(bytes, meta.v6, usize::from(meta.l4)) {
            return Err(DropReason::Untranslatable);
        }
        let change = patch::set_addr(bytes, ETH_LEN, Which::Source, &out.src)
            + patch::set_addr(bytes, ETH_LEN, Which::Destination, &out.dst);
        if meta.v6 {
            message += change;
        } else {
            patch::mend(bytes, ETH_LEN + 10, change);
        }
    }
    message += rewrite_quoted(bytes, meta, quote);
    patch::mend(bytes, usize::from(meta.l4) + 2, message);
    Ok(out)
}

/// Rewrites as much of the quoted headers as is there. Returns what that does to the ICMP checksum.
fn rewrite_quoted(bytes: &mut [u8], meta: &IcmpMeta, quote: &Quote) -> Change {
    let (ip, l4, there) = (usize::from(meta.quote), usize::from(meta.quoted_l4), meta.quoted_len());
    let (addresses, ip_checksum) = set_addresses(bytes, ip, &quote.to);
    let mut segment = addresses;
    segment += patch::set_u16(bytes, l4, quote.to.src.port);
    segment += patch::set_u16(bytes, l4 + 2, quote.to.dst.port);
    segment += patch::set_u32(bytes, l4 + 4, meta.seq.add(quote.seq).0);
    // An acknowledgment whose flag was cut off is one: every segment but the first SYN has it.
    let has_ack = there >= 12
        && (there < 14 || get_u16(bytes, l4 + 12).is_some_and(|word| word & u16::from(TcpFlags::ACK) != 0));
    if let Some(ack) = get_u32(bytes, l4 + 8).filter(|_| has_ack) {
        segment += patch::set_u32(bytes, l4 + 8, Seq(ack).add(quote.ack).0);
    }
    let tcp_checksum = if there >= 18 { patch::mend(bytes, l4 + 16, segment) } else { Change::NONE };
    segment + ip_checksum + tcp_checksum
}
