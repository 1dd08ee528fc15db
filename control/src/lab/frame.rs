//! A captured frame read as TCP over IPv4 or IPv6, for assertions.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Ipv4Slice, NetSlice, SlicedPacket, TcpSlice, TransportSlice};

use super::CapturedFrame;

/// Whether the checksums of a frame are what RFC 9293 and RFC 791 ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// All right.
    Right,
    /// The TCP checksum is left to an offload, so the frame cannot tell.
    Partial,
    /// The TCP checksum or IPv4's header checksum is wrong.
    Wrong,
}

/// A TCP segment as it was on a device.
#[derive(Clone, Debug)]
pub struct TcpFrame {
    /// The device sent it, else it received it.
    pub outgoing: bool,
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// TTL, or hop limit.
    pub ttl: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number, meaningful with `ack`.
    pub acknowledgment: u32,
    /// The window field, not scaled.
    pub window: u16,
    /// SYN is set.
    pub syn: bool,
    /// ACK is set.
    pub ack: bool,
    /// FIN is set.
    pub fin: bool,
    /// RST is set.
    pub rst: bool,
    /// What the segment carries.
    pub payload: Vec<u8>,
    /// Whether the receiver would take it.
    pub checksums: Checksums,
}

impl CapturedFrame {
    /// Reads the frame as TCP; `None` when it is something else, a fragment, or cut off.
    pub fn tcp(&self) -> Option<TcpFrame> {
        let packet = SlicedPacket::from_ethernet(&self.bytes).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
        let (source, destination, ttl, expected, header_right) = read_net(packet.net.as_ref()?, tcp)?;
        let checksums = match (self.checksum_partial, header_right && expected == tcp.checksum()) {
            (_, true) => Checksums::Right,
            (true, false) if header_right => Checksums::Partial,
            _ => Checksums::Wrong,
        };
        Some(TcpFrame {
            outgoing: self.outgoing,
            source: SocketAddr::new(source, tcp.source_port()),
            destination: SocketAddr::new(destination, tcp.destination_port()),
            ttl,
            sequence: tcp.sequence_number(),
            acknowledgment: tcp.acknowledgment_number(),
            window: tcp.window_size(),
            syn: tcp.syn(),
            ack: tcp.ack(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            payload: tcp.payload().to_vec(),
            checksums,
        })
    }
}

/// Addresses, TTL, the TCP checksum as it should be, and whether the IP header's own is right.
fn read_net(net: &NetSlice<'_>, tcp: &TcpSlice<'_>) -> Option<(IpAddr, IpAddr, u8, u16, bool)> {
    match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let sum = tcp.calc_checksum_ipv4(header.source(), header.destination()).ok()?;
            let addresses = (header.source_addr().into(), header.destination_addr().into());
            Some((addresses.0, addresses.1, header.ttl(), sum, header_checksum_is_right(ip)))
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let sum = tcp.calc_checksum_ipv6(header.source(), header.destination()).ok()?;
            let addresses = (header.source_addr().into(), header.destination_addr().into());
            Some((addresses.0, addresses.1, header.hop_limit(), sum, true))
        }
        NetSlice::Arp(_) => None,
    }
}

fn header_checksum_is_right(ip: &Ipv4Slice<'_>) -> bool {
    ip.header().header_checksum() == ip.header().to_header().calc_header_checksum()
}
