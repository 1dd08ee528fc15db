//! Connections both ends of which are made up, frame by frame: no socket, and as many as one likes. Numbered; IPv4 and IPv6 in turn.
//!
//! Addresses are those that are set aside for benchmarks: 198.18.0.0/15 (RFC 2544), 2001:2::/48 (RFC 5180).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use weir_core::flow::key::Tuple;
use weir_core::frame::{Frame as _, HeapFrame};
use weir_core::parse::{Meta, Parsed, parse};
use weir_core::tcp::flags::TcpFlags;
use weir_core::tcp::seq::Seq;
use weir_core::wire::build::{self, Segment, SegmentOptions};
use weir_core::wire::edit;

use crate::contender::HTTP;
use crate::ends::KEEP;

/// Connections of one client address.
const OF_A_CLIENT: u32 = 50_000;
const FIRST_PORT: u16 = 1024;
/// Initial sequence numbers.
pub const CLIENT_ISN: Seq = Seq(1000);
const SERVER_ISN: Seq = Seq(5000);
/// What a client says next after its request.
pub const AFTER_REQUEST: Seq = CLIENT_ISN.add(1 + KEEP.len() as u32);
/// Octets of the longest frame.
const LONGEST: usize = 256;

/// A side of the made up world: its own link-layer address, and that of the gateway.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub own: [u8; 6],
    pub gateway: [u8; 6],
}

/// The client's and the server's address and port of connection `n`.
pub fn tuple(n: u32) -> Tuple {
    let (at, v6) = (n / 2, n % 2 == 1);
    let (host, port) = ((at / OF_A_CLIENT) as u8, FIRST_PORT + (at % OF_A_CLIENT) as u16);
    let (client, server): (IpAddr, IpAddr) = if v6 {
        let address = |net, host| Ipv6Addr::new(0x2001, 2, 0, net, 0, 0, 0, host);
        (address(0, u16::from(host) + 2).into(), address(1, 1).into())
    } else {
        (Ipv4Addr::new(198, 18, host, 2).into(), Ipv4Addr::new(198, 19, 0, 1).into())
    };
    Tuple { src: SocketAddr::new(client, port).into(), dst: SocketAddr::new(server, HTTP).into() }
}

/// The number of the connection that this is the client's end of.
fn number(client: SocketAddr) -> Option<u32> {
    let (host, v6) = match client.ip() {
        IpAddr::V4(address) if address.octets()[..2] == [198, 18] => (u32::from(address.octets()[2]), 0),
        IpAddr::V6(address) if address.segments()[..4] == [0x2001, 2, 0, 0] => {
            (u32::from(address.segments()[7]).checked_sub(2)?, 1)
        }
        _ => return None,
    };
    Some((host * OF_A_CLIENT + u32::from(client.port().checked_sub(FIRST_PORT)?)) * 2 + v6)
}

/// What a client says first.
pub fn syn(n: u32, link: Link) -> Option<Vec<u8>> {
    let options =
        SegmentOptions { mss: Some(1440), window_scale: Some(7), sack: true, ..SegmentOptions::default() };
    let segment = Segment {
        tuple: tuple(n),
        flags: TcpFlags(TcpFlags::SYN),
        seq: CLIENT_ISN,
        ack: Seq(0),
        window: 64_240,
        options,
    };
    frame(&segment, &[], link)
}

/// What a client makes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A connection is open: its request is to be sent, and `ack` is what the client acknowledges from now on.
    Open { n: u32, ack: u32, request: Vec<u8> },
    /// The request of connection `n` has been acknowledged.
    Done(u32),
}

/// Reads a frame as the client's side does. `None`: it is none of its business.
pub fn hear(bytes: &[u8], link: Link) -> Option<Heard> {
    let Ok(Parsed::Tcp(meta)) = parse(bytes) else { return None };
    let n = number(meta.tuple.dst.socket_addr())?;
    if meta.flags.syn() {
        let request = Segment {
            tuple: meta.tuple.reversed(),
            flags: TcpFlags(TcpFlags::ACK | TcpFlags::PSH),
            seq: meta.ack,
            ack: meta.seq_end(),
            window: 500,
            options: SegmentOptions::default(),
        };
        return Some(Heard::Open { n, ack: request.ack.0, request: frame(&request, KEEP, link)? });
    }
    (meta.ack == AFTER_REQUEST).then_some(Heard::Done(n))
}

/// What a server answers to a frame: it takes connections, and acknowledges what is said on them.
pub fn answer(bytes: &[u8], link: Link) -> Option<Vec<u8>> {
    let Ok(Parsed::Tcp(meta)) = parse(bytes) else { return None };
    number(meta.tuple.src.socket_addr())?;
    let options =
        SegmentOptions { mss: Some(1440), window_scale: Some(7), sack: true, ..SegmentOptions::default() };
    let (flags, seq) = match meta {
        Meta { flags, .. } if flags.syn() => (TcpFlags::SYN | TcpFlags::ACK, SERVER_ISN),
        _ if meta.payload_len() > 0 => (TcpFlags::ACK, meta.ack),
        _ => return None,
    };
    let (tuple, flags, ack) = (meta.tuple.reversed(), TcpFlags(flags), meta.seq_end());
    frame(&Segment { tuple, flags, seq, ack, window: 64_240, options }, &[], link)
}

fn frame(segment: &Segment, payload: &[u8], link: Link) -> Option<Vec<u8>> {
    let mut frame = HeapFrame::new(LONGEST);
    build::segment(&mut frame, segment, payload)?;
    edit::set_macs(frame.data_mut(), &[link.gateway, link.own]);
    Some(frame.data().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { own: [2; 6], gateway: [4; 6] };

    #[test]
    fn connection_opened_and_asked_is_done_for_every_number() {
        for n in [0, 1, 2, 99_999, 100_000, 100_001, 199_999] {
            let syn = syn(n, LINK).unwrap();
            let syn_ack = answer(&syn, LINK).unwrap();
            let Some(Heard::Open { n: opened, request, .. }) = hear(&syn_ack, LINK) else { panic!("{n}") };
            let ack = answer(&request, LINK).unwrap();
            assert_eq!((opened, hear(&ack, LINK)), (n, Some(Heard::Done(n))));
            assert_eq!(answer(&ack, LINK), None, "an acknowledgment is not answered");
        }
    }
}
