//! ICMP errors of a script: about a segment that was sent on a wire's leg (RFC 792, RFC 4443).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{ACK, Seg, ethernet};

use super::legs::End;
use super::number::Number;
use super::syntax::Words;

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Unreachable,
    TooBig(u32),
    Exceeded,
}

/// An error as a line has it.
#[derive(Clone, Debug)]
pub(super) struct Icmp {
    pub(super) kind: Kind,
    /// Of the segment that is quoted.
    pub(super) seq: Number,
    /// Only eight octets of TCP are quoted.
    pub(super) short: bool,
    pub(super) by_lan: bool,
    pub(super) damaged: bool,
}

/// Reads what stands behind `icmp`.
pub(super) fn read(words: &mut Words<'_>) -> Result<Icmp, String> {
    let kind = match words.word("what the error says")? {
        "unreachable" => Kind::Unreachable,
        "toobig" => Kind::TooBig(words.number("the MTU")?),
        "exceeded" => Kind::Exceeded,
        other => return Err(format!("no such error: `{other}`")),
    };
    let mut icmp = Icmp { kind, seq: Number::Any, short: false, by_lan: false, damaged: false };
    while let Some(word) = words.peek() {
        words.skip();
        match word {
            "seq" => icmp.seq = Number::read(words.word("a number behind `seq`")?)?,
            "short" => icmp.short = true,
            "damaged" => icmp.damaged = true,
            "by" if words.take("lan") => icmp.by_lan = true,
            _ => return Err(format!("`{word}` is nothing that an error has")),
        }
    }
    Ok(icmp)
}

impl Icmp {
    /// The frame of an error about a segment from `src` to `dst`, sent by a router on the way.
    pub(super) fn frame(&self, src: End, dst: End, seq: u32, on_lan: bool) -> Vec<u8> {
        let quoted = Seg::new(src, dst, ACK, seq, 1).payload([0; 40]).frame()[14..].to_vec();
        let head = if src.0.is_ipv6() { 40 } else { 20 };
        let quoted = if self.short { quoted[..head + 8].to_vec() } else { quoted };
        let (kind, code, mtu) = match (self.kind, src.0.is_ipv6()) {
            (Kind::Unreachable, false) => (3, 1, 0),
            (Kind::Unreachable, true) => (1, 3, 0),
            (Kind::TooBig(mtu), false) => (3, 4, mtu),
            (Kind::TooBig(mtu), true) => (2, 0, mtu),
            (Kind::Exceeded, false) => (11, 0, 0),
            (Kind::Exceeded, true) => (3, 0, 0),
        };
        let mut message = vec![kind, code, 0, 0];
        message.extend(mtu.to_be_bytes());
        message.extend(quoted);
        let router: IpAddr = match (src.0.is_ipv6(), on_lan) {
            (false, true) => Ipv4Addr::new(10, 1, 0, 77).into(),
            (false, false) => Ipv4Addr::new(192, 0, 2, 77).into(),
            (true, true) => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 77).into(),
            (true, false) => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 77).into(),
        };
        let sum = !sum(&router, &src.0, &message).wrapping_add(u16::from(self.damaged));
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        ethernet(src.0.is_ipv6(), &ip(&router, &src.0, &message))
    }
}

fn ip(from: &IpAddr, to: &IpAddr, message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend([0x45, 0]);
            out.extend((20 + message.len() as u16).to_be_bytes());
            out.extend([0, 1, 0, 0, 64, 1, 0, 0]);
            out.extend(from.octets());
            out.extend(to.octets());
            let sum = !fold(words(&out));
            out[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            out.extend([0x60, 0, 0, 0]);
            out.extend((message.len() as u16).to_be_bytes());
            out.extend([58, 64]);
            out.extend(from.octets());
            out.extend(to.octets());
        }
        _ => panic!("one family"),
    }
    out.extend(message);
    out
}

fn words(octets: &[u8]) -> u32 {
    octets.chunks(2).map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The one's complement sum of a message, with ICMPv6's pseudo header.
fn sum(from: &IpAddr, to: &IpAddr, message: &[u8]) -> u16 {
    let pseudo = match (from, to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            words(&from.octets()) + words(&to.octets()) + message.len() as u32 + 58
        }
        _ => 0,
    };
    fold(pseudo + words(message))
}

/// An error as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenIcmp {
    /// Who is told.
    pub(super) to: IpAddr,
    pub(super) kind: Kind,
    /// The quoted segment.
    pub(super) src: End,
    pub(super) dst: End,
    pub(super) seq: u32,
    /// Checksums are right, and the one who is told is who sent the segment.
    pub(super) sound: bool,
}

impl SeenIcmp {
    /// `None`: the frame holds no ICMP error.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let (v6, packet) = (frame[12..14] == [0x86, 0xdd], &frame[14..]);
        let head = if v6 { 40 } else { 20 };
        if packet[if v6 { 6 } else { 9 }] != if v6 { 58 } else { 1 } {
            return None;
        }
        let ((from, to), message) = (addresses(packet, v6), &packet[head..]);
        let word = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().expect("four"));
        let kind = match (v6, message[0], message[1]) {
            (false, 3, 4) | (true, 2, _) => Kind::TooBig(word(4)),
            (false, 3, _) | (true, 1, _) => Kind::Unreachable,
            _ => Kind::Exceeded,
        };
        let quoted = &message[8..];
        let (src, dst) = addresses(quoted, v6);
        let port = |at: usize| u16::from_be_bytes([quoted[at], quoted[at + 1]]);
        let heads = v6 || (fold(words(&packet[..20])) == 0xffff && fold(words(&quoted[..20])) == 0xffff);
        Some(Self {
            to,
            kind,
            src: (src, port(head)),
            dst: (dst, port(head + 2)),
            seq: word(8 + head + 4),
            sound: heads && to == src && sum(&from, &to, message) == 0xffff,
        })
    }
}

fn addresses(packet: &[u8], v6: bool) -> (IpAddr, IpAddr) {
    if v6 {
        let at = |n: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[n..n + 16]).expect("sixteen"));
        (at(8), at(24))
    } else {
        let at = |n: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[n..n + 4]).expect("four"));
        (at(12), at(16))
    }
}
