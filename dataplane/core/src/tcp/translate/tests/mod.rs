//! Packets are built and summed here the slow way, so that the edits are not their own witness.

mod fuzz;
mod icmp;
mod options;
mod segments;

use super::*;
use crate::frame::HeapFrame;
use crate::parse::{Parsed, parse};
use crate::wire::addr::{Addr, Endpoint};
use crate::wire::put;
use std::net::SocketAddr;

/// Random numbers that a seed repeats (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    pub fn below(&mut self, n: usize) -> usize {
        self.draw() as usize % n
    }
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.draw() as u8).collect()
    }
}

pub fn tuple(src: &str, dst: &str) -> Tuple {
    let end = |s: &str| Endpoint::from(s.parse::<SocketAddr>().unwrap());
    Tuple { src: end(src), dst: end(dst) }
}

/// Both legs of a connection whose addresses and ports all differ.
pub fn legs(v6: bool) -> (Tuple, Tuple) {
    if v6 {
        (tuple("[2001:db8::c]:40001", "[2001:db8:1::d]:443"), tuple("[fd00::f:1]:1025", "[fd00:7::9]:8443"))
    } else {
        (tuple("10.1.2.3:40001", "192.0.2.1:443"), tuple("172.16.0.9:1025", "172.16.255.1:8443"))
    }
}

/// A translation that changes all that can be, with timestamps on both legs.
pub fn translation(v6: bool) -> Translation {
    let (client, server) = legs(v6);
    Translation {
        client,
        server,
        delta: 0x8765_4321,
        start: Seq(1_000),
        prefix: 0,
        base: Seq(5_000),
        timestamps: TimestampMode::Both { offset: 70_000, first: 900 },
        sack: true,
        server_scale: 7,
        shift_to_client: -2,
        shift_to_server: 3,
        ecn: true,
        acked: false,
    }
}

/// A translation that changes nothing.
pub fn identity(v6: bool) -> Translation {
    let (client, _) = legs(v6);
    Translation {
        server: client,
        delta: 0,
        timestamps: TimestampMode::Both { offset: 0, first: 0 },
        shift_to_client: 0,
        shift_to_server: 0,
        acked: true,
        ..translation(v6)
    }
}

/// A segment as a test wants it.
#[derive(Clone, Debug)]
pub struct Packet {
    pub tuple: Tuple,
    /// IPv4 options, or the extension header that stands before TCP and its number.
    pub between: Vec<u8>,
    pub extension: u8,
    pub class: u8,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    /// Octets behind the IP packet.
    pub padding: usize,
    /// Added to the right checksum.
    pub damage: u16,
}

impl Packet {
    pub fn new(tuple: Tuple) -> Self {
        Self {
            tuple,
            between: Vec::new(),
            extension: 0,
            class: 0,
            seq: 7_000,
            ack: 9_000,
            flags: 0x10,
            window: 500,
            urgent: 0,
            options: Vec::new(),
            payload: b"payload".to_vec(),
            padding: 0,
            damage: 0,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let (src, dst) = (self.tuple.src, self.tuple.dst);
        let v6 = !src.addr.is_v4();
        let mut tcp = vec![0; 20];
        put(&mut tcp, 0, &src.port.to_be_bytes());
        put(&mut tcp, 2, &dst.port.to_be_bytes());
        put(&mut tcp, 4, &self.seq.to_be_bytes());
        put(&mut tcp, 8, &self.ack.to_be_bytes());
        put(&mut tcp, 12, &[(5 + self.options.len() as u8 / 4) << 4, self.flags]);
        put(&mut tcp, 14, &self.window.to_be_bytes());
        put(&mut tcp, 18, &self.urgent.to_be_bytes());
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let sum = slow_checksum(&[&pseudo(6, &src.addr, &dst.addr, tcp.len()), &tcp]);
        put(&mut tcp, 16, &sum.wrapping_add(self.damage).to_be_bytes());
        let body = [&self.between[..], &tcp].concat();
        let first = if self.between.is_empty() || !v6 { 6 } else { self.extension };
        let ip = ip_header(
            &src.addr,
            &dst.addr,
            first,
            self.class,
            &body,
            if v6 { 0 } else { self.between.len() },
        );
        ethernet(v6, &[&ip[..], &body, &vec![0xee; self.padding]].concat())
    }

    pub fn frame(&self) -> HeapFrame {
        HeapFrame::from_packet(&self.bytes(), 2048)
    }
}

/// An IP header over `body`, whose first `options` octets are IPv4 options.
pub fn ip_header(src: &Addr, dst: &Addr, protocol: u8, class: u8, body: &[u8], options: usize) -> Vec<u8> {
    if !src.is_v4() {
        let len = (body.len() as u16).to_be_bytes();
        let fixed = [0x60 | class >> 4, class << 4, 0x12, 0x34, len[0], len[1], protocol, 64];
        return [&fixed[..], &src.0, &dst.0].concat();
    }
    let len = (body.len() as u16 + 20).to_be_bytes();
    let first = 0x45 + options as u8 / 4;
    let mut ip = vec![first, class, len[0], len[1], 0xab, 0xcd, 0x40, 0, 64, protocol, 0, 0];
    ip.extend(&src.0[12..]);
    ip.extend(&dst.0[12..]);
    let sum = slow_checksum(&[&ip, &body[..options]]);
    put(&mut ip, 10, &sum.to_be_bytes());
    ip
}

/// An ICMP error of `(type, code, rest of header)` about `quoted`, of whose segment `len` octets are quoted. From `sender`, or
/// from the far end itself.
pub fn error(
    sender: Option<Addr>,
    quoted: &Packet,
    (kind, code, rest): (u8, u8, u32),
    len: usize,
) -> Vec<u8> {
    let (src, dst) = (sender.unwrap_or(quoted.tuple.dst.addr), quoted.tuple.src.addr);
    let v6 = !dst.is_v4();
    let packet = quoted.bytes();
    let ip = &packet[ETH_LEN..packet.len() - quoted.padding];
    let headers = quoted.between.len() + if v6 { 40 } else { 20 };
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest.to_be_bytes());
    message.extend(&ip[..ip.len().min(headers + len)]);
    let pseudo = if v6 { pseudo(58, &src, &dst, message.len()) } else { Vec::new() };
    let sum = slow_checksum(&[&pseudo, &message]);
    put(&mut message, 2, &sum.to_be_bytes());
    let header = ip_header(&src, &dst, if v6 { 58 } else { 1 }, 0, &message, 0);
    ethernet(v6, &[header, message].concat())
}

pub fn ethernet(v6: bool, ip: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if v6 { [0x86, 0xdd] } else { [8, 0] };
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &kind, ip].concat()
}

pub fn pseudo(protocol: u8, src: &Addr, dst: &Addr, len: usize) -> Vec<u8> {
    let from = if src.is_v4() { 12 } else { 0 };
    let tail = [0, 0, 0, protocol];
    [&src.0[from..], &dst.0[from..], &(len as u32).to_be_bytes(), &tail].concat()
}

/// RFC 1071 word by word, over parts of even length but the last.
pub fn slow_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in parts.concat().chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub fn meta_of(frame: &HeapFrame) -> Meta {
    match parse(frame.data()) {
        Ok(Parsed::Tcp(meta)) => meta,
        other => panic!("{other:?}"),
    }
}

/// What the checksum field should be, and what it is.
pub fn checksums(frame: &HeapFrame, meta: &Meta) -> (u16, u16) {
    let mut segment = frame.data()[usize::from(meta.l4)..usize::from(meta.end)].to_vec();
    let field = get_u16(&segment, 16).unwrap();
    put(&mut segment, 16, &[0, 0]);
    let tuple = meta.tuple;
    (slow_checksum(&[&pseudo(6, &tuple.src.addr, &tuple.dst.addr, segment.len()), &segment]), field)
}

/// Translates to the server, and checks that what comes out is what is said and has a right checksum.
pub fn to_server(how: &mut Translation, packet: &Packet) -> (HeapFrame, Meta) {
    let mut frame = packet.frame();
    let meta = meta_of(&frame);
    let out = how.to_server(&mut frame, &meta, Nanos(0)).unwrap();
    check(&frame, &out, packet);
    (frame, out)
}

/// The same to the client.
pub fn to_client(how: &mut Translation, packet: &Packet, now: Nanos) -> (HeapFrame, Meta) {
    let mut frame = packet.frame();
    let meta = meta_of(&frame);
    let out = how.to_client(&mut frame, &meta, now).unwrap();
    check(&frame, &out, packet);
    (frame, out)
}

pub fn check(frame: &HeapFrame, out: &Meta, packet: &Packet) {
    assert_eq!(meta_of(frame), *out, "{packet:?}");
    assert_eq!(out.payload_of(frame.data()), packet.payload, "{packet:?}");
    let (right, field) = checksums(frame, out);
    // Right stays right; a damage stays, in one's complement.
    let damage = (u32::from(field) + 0xffff - u32::from(right)) % 0xffff;
    let before = Packet { damage: 0, ..packet.clone() }.frame();
    let before = checksums(&before, &meta_of(&before)).1;
    let given = (u32::from(before.wrapping_add(packet.damage)) + 0xffff - u32::from(before)) % 0xffff;
    assert_eq!(damage, given, "{packet:?}");
    if packet.damage == 0 {
        assert_eq!(field, right, "{packet:?}");
    }
}
