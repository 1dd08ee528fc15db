//! A spliced connection's packets, rewritten between its two legs: the client's, which weir answered or another server did,
//! and the server's, which was opened later with the client's sequence numbers.
//!
//! Client->server sequence numbers are the same in both spaces; server->client ones differ by `delta`. Beside them the
//! addresses, acknowledgments, SACK blocks (RFC 2018, RFC 2883), timestamps and window scale (RFC 7323) are brought from
//! what one leg negotiated to what the other did. Every checksum is mended (RFC 1624), never computed anew: a segment that
//! was damaged on its way stays damaged. SYN, RST, keepalives and window probes are segments like others; only the window
//! of a SYN is not scaled (RFC 7323 section 2.2).
//!
//! Departures from RFC 7323: in [`TimestampMode::ClientOnly`] TSecr is the newest TSval of the client, not that of the
//! segment that is acknowledged; the client's round-trip times come out short rather than long. And where the way to the client is
//! so narrow that a server of IPv6 cannot be told to leave room for the option, full segments go without it: most receivers take them,
//! though section 3.2 would have them dropped, and larger ones would not arrive at all.

pub(crate) mod icmp;
mod options;
#[cfg(test)]
pub(crate) mod tests;

use crate::drop::DropReason;
use crate::flow::key::Tuple;
use crate::frame::Frame;
use crate::ids::Nanos;
use crate::parse::Meta;
use crate::tcp::flags::TcpFlags;
use crate::tcp::options::TIMESTAMPS_LEN;
use crate::tcp::seq::Seq;
use crate::wire::checksum::Change;
use crate::wire::patch::{self, Which};
use crate::wire::{ETH_LEN, IPV6_MIN_MTU, edit, extension, get_u16, put};

/// ECE and CWR (RFC 3168 section 6.1).
const ECN_FLAGS: u8 = 0xc0;

/// How far before the start of a stream a SACK block is taken to lie before it, in octets; beyond, it is 2^32 further on.
pub const BEHIND: i32 = 1 << 16;

/// What was agreed about timestamps (RFC 7323 section 3.2) on the two legs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampMode {
    /// On neither leg.
    None,
    /// On both.
    Both {
        /// The server's TSval as the client sees it is the server's plus this.
        offset: u32,
        /// The server's TSval in its SYN-ACK. Until the server has acknowledged payload, no TSecr from before it reaches the
        /// server: the kernel's `tcp_check_req` takes only those between the SYN-ACK's first and last TSval.
        first: u32,
    },
    /// Promised to the client, not granted by the server: the option is put into what goes to the client, and overwritten
    /// with NOPs in what goes to the server.
    ClientOnly {
        /// TSval to the client is this plus the clock in milliseconds.
        base: u32,
        /// The newest TSval of the client: TSecr to it. Starts with the SYN's.
        echo: u32,
        /// The way to the client takes packets of [`IPV6_MIN_MTU`], and not with the option as well.
        narrow: bool,
    },
}

/// What an inserted timestamps option takes, with two NOPs before it, in octets.
pub(crate) const INSERTED: u16 = 2 + TIMESTAMPS_LEN as u16;

/// How the packets of one connection are rewritten. "Client-space" and "server-space" are the sequence numbers of the
/// server->client stream as the client and as the server count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The client's leg, as the client sends: client to destination.
    pub client: Tuple,
    /// The server's leg, as the server receives: source to server. Of the same family; may equal `client`.
    pub server: Tuple,
    /// Client-space is server-space plus this.
    pub delta: u32,
    /// The first octet of the client's stream (its ISN + 1), in both spaces.
    pub start: Seq,
    /// Octets of weir's own (a PROXY header) that stand before `start` on the server's leg. The client does not know them:
    /// an acknowledgment of them, and SACK blocks below `start`, do not reach it.
    pub prefix: u32,
    /// The first octet of the server's stream (its ISN + 1), in server-space. SACK blocks of the client below it do not
    /// reach the server.
    pub base: Seq,
    pub timestamps: TimestampMode,
    /// Whether the server's leg takes SACK; if not, the client's blocks become NOPs.
    pub sack: bool,
    /// The scale of the server's windows: octets are the field shifted left by it.
    pub server_scale: u8,
    /// Window fields to the client: shifted left by this (saturating), or right when negative.
    pub shift_to_client: i8,
    /// The same for those to the server.
    pub shift_to_server: i8,
    /// Whether ECN was agreed end to end; if not, the server sees nothing of it from the client (RFC 3168).
    pub ecn: bool,
    /// The server has acknowledged payload of the client. Starts false; kept here.
    pub acked: bool,
}

impl Translation {
    /// Rewrites a segment of the client for the server. Both directions take the same arguments; this one needs no clock.
    pub fn to_server<F: Frame>(
        &mut self,
        frame: &mut F,
        meta: &Meta,
        _now: Nanos,
    ) -> Result<Meta, DropReason> {
        let l4 = usize::from(meta.l4);
        let bytes = frame.data_mut();
        let mut out = *meta;
        let mut change = readdress(bytes, &mut out, &self.server)?;
        if meta.flags.ack() {
            out.ack = Seq(meta.ack.0.wrapping_sub(self.delta));
            change += patch::set_u32(bytes, l4 + 8, out.ack.0);
        }
        if !meta.flags.syn() {
            out.window = shift(meta.window, self.shift_to_server);
            change += patch::set_u16(bytes, l4 + 14, out.window);
        }
        if !self.ecn {
            change += clear_ecn(bytes, &mut out);
        }
        change += self.options_to_server(bytes, meta);
        patch::mend(bytes, l4 + 16, change);
        Ok(out)
    }

    /// Rewrites a segment of the server for the client. `now`: the clock that timestamps of weir's own follow.
    /// After an error the frame may be rewritten in part: it is to be dropped.
    pub fn to_client<F: Frame>(
        &mut self,
        frame: &mut F,
        meta: &Meta,
        now: Nanos,
    ) -> Result<Meta, DropReason> {
        let mut out = *meta;
        let mut change = readdress(frame.data_mut(), &mut out, &self.client.reversed())?;
        // The prefix can be acknowledged only before payload is; later the same numbers are 2^32 further on.
        let header_only = if meta.flags.ack() && !self.acked { self.before_start(meta.ack) } else { 0 };
        self.acked |= meta.flags.ack() && meta.ack.after(self.start);
        change += self.options_to_client(frame, &mut out, now)?;

        let (bytes, l4) = (frame.data_mut(), usize::from(meta.l4));
        out.seq = meta.seq.add(self.delta);
        change += patch::set_u32(bytes, l4 + 4, out.seq.0);
        let scale = if meta.flags.syn() { 0 } else { self.server_scale.min(14) };
        if header_only > 0 {
            // The right edge of the window stays where it is.
            out.ack = self.start;
            let taken = header_only.div_ceil(1 << scale).min(u32::from(u16::MAX));
            out.window = meta.window.saturating_sub(taken as u16);
            change += patch::set_u32(bytes, l4 + 8, out.ack.0);
        }
        if !meta.flags.syn() {
            out.window = shift(out.window, self.shift_to_client);
        }
        change += patch::set_u16(bytes, l4 + 14, out.window);
        patch::mend(bytes, l4 + 16, change);
        Ok(out)
    }

    /// Notes how large packets may be on their way to the client.
    pub fn note_way_to_client(&mut self, mtu: u32) {
        let is_v6 = !self.client.src.addr.is_v4();
        if let TimestampMode::ClientOnly { narrow, .. } = &mut self.timestamps {
            *narrow |= is_v6 && mtu < u32::from(IPV6_MIN_MTU + INSERTED);
        }
    }

    /// By how many octets a segment of the server's grows at the most on its way to the client.
    pub fn growth(&self, meta: &Meta) -> u16 {
        let full = IPV6_MIN_MTU - INSERTED + 1..=IPV6_MIN_MTU;
        match self.timestamps {
            TimestampMode::ClientOnly { narrow: true, .. } if full.contains(&meta.ip_len()) => 0,
            TimestampMode::ClientOnly { .. } => INSERTED,
            _ => 0,
        }
    }

    /// How many octets of the prefix lie between `ack` and the client's stream; 0 when `ack` is not in the prefix.
    const fn before_start(&self, ack: Seq) -> u32 {
        let missing = self.start.0.wrapping_sub(ack.0);
        if missing <= self.prefix { missing } else { 0 }
    }
}

/// A window field at another scale, rounded down and saturating: never more than was offered.
const fn shift(window: u16, by: i8) -> u16 {
    let places = by.unsigned_abs() as u32;
    if by < 0 {
        return if places < 16 { window >> places } else { 0 };
    }
    let places = if places < 16 { places } else { 16 };
    let wide = (window as u32) << places;
    if wide > u16::MAX as u32 { u16::MAX } else { wide as u16 }
}

/// Gives a segment the addresses and ports of `to`. Returns what that does to TCP's checksum; IPv4's is mended.
fn readdress(bytes: &mut [u8], meta: &mut Meta, to: &Tuple) -> Result<Change, DropReason> {
    let (l4, from) = (usize::from(meta.l4), meta.tuple);
    if bytes.len() < usize::from(meta.end) {
        return Err(DropReason::Truncated);
    }
    if from == *to {
        return Ok(Change::NONE);
    }
    meta.tuple = *to;
    let mut addresses = Change::NONE;
    if (from.src.addr, from.dst.addr) != (to.src.addr, to.dst.addr) {
        let is_other_family = to.src.addr.is_v4() == meta.v6 || to.dst.addr.is_v4() == meta.v6;
        if is_other_family || extension::fixes_addresses(bytes, meta.v6, l4) {
            return Err(DropReason::Untranslatable);
        }
        (addresses, _) = set_addresses(bytes, ETH_LEN, to);
    }
    let ports = patch::set_u16(bytes, l4, to.src.port) + patch::set_u16(bytes, l4 + 2, to.dst.port);
    Ok(addresses + ports)
}

/// Writes both addresses of the IP header at `ip`, and mends its checksum if it has one. Returns the change of the addresses,
/// which a pseudo header counts, and that of the IP checksum, which only an ICMP error around it does.
fn set_addresses(bytes: &mut [u8], ip: usize, to: &Tuple) -> (Change, Change) {
    let change = patch::set_addr(bytes, ip, Which::Source, &to.src.addr)
        + patch::set_addr(bytes, ip, Which::Destination, &to.dst.addr);
    let mended = if to.src.addr.is_v4() { patch::mend(bytes, ip + 10, change) } else { Change::NONE };
    (change, mended)
}

/// Clears ECE and CWR, and the two bits of the IP header. Returns what that does to TCP's checksum.
fn clear_ecn(bytes: &mut [u8], meta: &mut Meta) -> Change {
    let Some(class) = get_u16(bytes, ETH_LEN) else { return Change::NONE };
    if meta.v6 {
        put(bytes, ETH_LEN, &(class & !0x0030).to_be_bytes());
    } else {
        let change = patch::set_u16(bytes, ETH_LEN, class & !0x0003);
        patch::mend(bytes, ETH_LEN + 10, change);
    }
    meta.flags = TcpFlags(meta.flags.0 & !ECN_FLAGS);
    let at = usize::from(meta.l4) + 12;
    let Some(word) = get_u16(bytes, at) else { return Change::NONE };
    patch::set_u16(bytes, at, word & !u16::from(ECN_FLAGS))
}

/// Makes room for `grow` more octets of options (a multiple of 4): the payload is moved, data offset and IP length say so.
/// Returns what that does to TCP's checksum.
fn widen<F: Frame>(frame: &mut F, meta: &mut Meta, grow: u16) -> Result<Change, DropReason> {
    let (payload, end) = (usize::from(meta.payload), usize::from(meta.end));
    let longer = meta.end.checked_add(grow).ok_or(DropReason::Untranslatable)?;
    if usize::from(longer) > frame.capacity() {
        return Err(DropReason::Untranslatable);
    }
    frame.set_len(usize::from(longer));
    let bytes = frame.data_mut();
    bytes.copy_within(payload..end, payload + usize::from(grow));
    let segment = (meta.end - meta.l4, longer - meta.l4);
    meta.payload += grow;
    meta.end = longer;
    edit::set_ip_len(bytes, meta);
    let at = usize::from(meta.l4) + 12;
    let word = get_u16(bytes, at).ok_or(DropReason::Truncated)?;
    // Data offset counts words of 4 octets, in the upper 4 bits.
    let offset = patch::set_u16(bytes, at, word.wrapping_add((grow / 4) << 12));
    Ok(offset + Change::of_u16(segment.0, segment.1))
}
