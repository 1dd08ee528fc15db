//! Packets, built and read with etherparse, so that weir's own parser is not its own witness.

use std::net::IpAddr;

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, TcpHeaderSlice};

/// The family of a test's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Both families: every test runs on each.
pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const URG: u8 = 32;
pub const ECE: u8 = 64;
pub const CWR: u8 = 128;

/// One segment as a test wants it.
#[derive(Clone, Debug)]
pub struct Seg {
    pub src: (IpAddr, u16),
    pub dst: (IpAddr, u16),
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// TCP options, a multiple of four octets.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    pub ttl: u8,
    pub id: u16,
    /// IPv4 options, a multiple of four octets.
    pub ip_options: Vec<u8>,
    /// IPv6 extension headers: number and whole octets of each.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Added to the right checksum.
    pub damage: u16,
}

impl Seg {
    pub fn new(src: (IpAddr, u16), dst: (IpAddr, u16), flags: u8, seq: u32, ack: u32) -> Self {
        Self {
            src,
            dst,
            seq,
            ack,
            flags,
            window: 60_000,
            urgent: 0,
            options: Vec::new(),
            payload: Vec::new(),
            ttl: 64,
            id: 1,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            damage: 0,
        }
    }
    pub fn payload(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.payload = bytes.as_ref().to_vec();
        self
    }
    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }
    pub fn damaged(mut self) -> Self {
        self.damage = 0x1111;
        self
    }
    pub fn urgent(mut self, pointer: u16) -> Self {
        self.flags |= URG;
        self.urgent = pointer;
        self
    }

    /// The TCP header and payload, checksum right (plus `damage`).
    pub fn tcp(&self) -> Vec<u8> {
        let mut tcp = TcpHeader::new(self.src.1, self.dst.1, self.seq, self.window);
        tcp.acknowledgment_number = self.ack;
        let bit = |b: u8| self.flags & b != 0;
        (tcp.fin, tcp.syn, tcp.rst) = (bit(FIN), bit(SYN), bit(RST));
        (tcp.psh, tcp.ack, tcp.urg) = (bit(PSH), bit(ACK), bit(URG));
        (tcp.ece, tcp.cwr) = (bit(ECE), bit(CWR));
        tcp.urgent_pointer = self.urgent;
        tcp.set_options_raw(&self.options).expect("options fit");
        tcp.checksum = match (self.src.0, self.dst.0) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                tcp.calc_checksum_ipv4_raw(s.octets(), d.octets(), &self.payload).expect("fits")
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                tcp.calc_checksum_ipv6_raw(s.octets(), d.octets(), &self.payload).expect("fits")
            }
            _ => panic!("one family"),
        }
        .wrapping_add(self.damage);
        let mut out = tcp.to_bytes().to_vec();
        out.extend(&self.payload);
        out
    }

    /// The whole frame.
    pub fn frame(&self) -> Vec<u8> {
        ethernet(self.src.0.is_ipv6(), &self.ip(&self.tcp(), &self.extensions, 6))
    }

    /// The IP packet around `data`, whose protocol is `last`.
    fn ip(&self, data: &[u8], extensions: &[(u8, Vec<u8>)], last: u8) -> Vec<u8> {
        match (self.src.0, self.dst.0) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                let mut ip =
                    Ipv4Header::new(0, self.ttl, IpNumber(last), s.octets(), d.octets()).expect("fits");
                ip.identification = self.id;
                ip.dont_fragment = false;
                ip.options = self.ip_options.as_slice().try_into().expect("options fit");
                ip.set_payload_len(data.len()).expect("fits");
                finish_v4(ip, data)
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                let mut inner = Vec::new();
                for (at, (_, header)) in extensions.iter().enumerate() {
                    let mut header = header.clone();
                    header[0] = extensions.get(at + 1).map_or(last, |next| next.0);
                    inner.extend(header);
                }
                inner.extend(data);
                let ip = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: inner.len() as u16,
                    next_header: IpNumber(extensions.first().map_or(last, |e| e.0)),
                    hop_limit: self.ttl,
                    source: s.octets(),
                    destination: d.octets(),
                };
                let mut out = ip.to_bytes().to_vec();
                out.extend(inner);
                out
            }
            _ => panic!("one family"),
        }
    }

    /// The segment in fragments of its TCP octets `[start, end)`.
    pub fn fragments(&self, cuts: &[(usize, usize)]) -> Vec<Vec<u8>> {
        fragments_of(self, &self.tcp(), 6, cuts)
    }
}

/// Fragments `[start, end)` of `data`, the protocol `protocol`, with the addresses of `around`.
pub fn fragments_of(around: &Seg, data: &[u8], protocol: u8, cuts: &[(usize, usize)]) -> Vec<Vec<u8>> {
    let one = |&(start, end): &(usize, usize)| {
        let end = end.min(data.len());
        fragment(around, start, &data[start.min(end)..end], protocol, end < data.len())
    };
    cuts.iter().map(one).collect()
}

/// One fragment with `bytes` at `offset`.
pub fn fragment(around: &Seg, offset: usize, bytes: &[u8], protocol: u8, more: bool) -> Vec<u8> {
    if around.src.0.is_ipv6() {
        let mut header = vec![0; 8];
        header[2..4].copy_from_slice(&((offset as u16) | u16::from(more)).to_be_bytes());
        header[4..8].copy_from_slice(&u32::from(around.id).to_be_bytes());
        let mut extensions = around.extensions.clone();
        extensions.push((44, header));
        return ethernet(true, &around.ip(bytes, &extensions, protocol));
    }
    let (IpAddr::V4(s), IpAddr::V4(d)) = (around.src.0, around.dst.0) else { panic!("one family") };
    let mut ip = Ipv4Header::new(0, around.ttl, IpNumber(protocol), s.octets(), d.octets()).expect("fits");
    ip.identification = around.id;
    ip.dont_fragment = false;
    ip.more_fragments = more;
    ip.fragment_offset = ((offset / 8) as u16).try_into().expect("fits");
    ip.set_payload_len(bytes.len()).expect("fits");
    ethernet(false, &finish_v4(ip, bytes))
}

fn finish_v4(mut ip: Ipv4Header, data: &[u8]) -> Vec<u8> {
    ip.header_checksum = ip.calc_header_checksum();
    let mut out = ip.to_bytes().to_vec();
    out.extend(data);
    out
}

/// The frame around an IP packet.
pub fn ethernet(v6: bool, ip: &[u8]) -> Vec<u8> {
    let mut out = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8];
    out.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
    out.extend(ip);
    out
}

/// A segment as it was seen on a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub macs: ([u8; 6], [u8; 6]),
    pub src: (IpAddr, u16),
    pub dst: (IpAddr, u16),
    pub ttl: u8,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    /// The window field, not scaled.
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    /// IP header checksum and TCP checksum are right.
    pub sound: bool,
}

impl Seen {
    /// Reads a frame that holds a whole TCP segment.
    pub fn read(frame: &[u8]) -> Self {
        let (macs, ip) = (frame.split_at(12).0, &frame[14..]);
        let macs = (macs[..6].try_into().expect("six"), macs[6..].try_into().expect("six"));
        let (src, dst, ttl, ip_sound, tcp) = if frame[12..14] == [8, 0] {
            let (head, _) = Ipv4Header::from_slice(ip).expect("an IPv4 header");
            assert_eq!(usize::from(head.total_len), ip.len(), "no padding behind the packet");
            let sound = head.calc_header_checksum() == head.header_checksum;
            (
                IpAddr::from(head.source),
                IpAddr::from(head.destination),
                head.time_to_live,
                sound,
                &ip[head.header_len()..],
            )
        } else {
            let (head, rest) = Ipv6Header::from_slice(ip).expect("an IPv6 header");
            assert_eq!(usize::from(head.payload_length), rest.len(), "no padding behind the packet");
            let mut at = 0;
            let mut next = head.next_header.0;
            while next != 6 {
                let len = if next == 44 { 8 } else { (usize::from(rest[at + 1]) + 1) * 8 };
                next = rest[at];
                at += len;
            }
            (IpAddr::from(head.source), IpAddr::from(head.destination), head.hop_limit, true, &rest[at..])
        };
        let head = TcpHeaderSlice::from_slice(tcp).expect("a TCP header");
        let payload = tcp[head.slice().len()..].to_vec();
        let sum = match (src, dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => head.calc_checksum_ipv4_raw(s.octets(), d.octets(), &payload),
            (IpAddr::V6(s), IpAddr::V6(d)) => head.calc_checksum_ipv6_raw(s.octets(), d.octets(), &payload),
            _ => unreachable!("one family"),
        };
        Self {
            macs,
            src: (src, head.source_port()),
            dst: (dst, head.destination_port()),
            ttl,
            seq: head.sequence_number(),
            ack: head.acknowledgment_number(),
            flags: tcp[13],
            window: head.window_size(),
            urgent: head.urgent_pointer(),
            options: head.options().to_vec(),
            payload,
            sound: ip_sound && sum.is_ok_and(|sum| sum == head.checksum()),
        }
    }
}
