//! What the parser reads is what etherparse reads, and what it refuses etherparse refuses, or the rules of this module do.

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, PacketBuilder, TcpHeaderSlice};

use super::*;

/// A frame of a segment with options on every layer that has them.
fn frame(v6: bool, ip_options: bool, tcp_options: bool) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = if v6 {
        let host = |n| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n];
        ethernet.ipv6(host(1), host(2), 64)
    } else {
        ethernet.ipv4([10, 0, 0, 1], [192, 0, 2, 1], 64)
    };
    let tcp = ip.tcp(40_000, 443, 0x1234_5678, 65_000).ack(0x8765_4321).psh();
    let options: &[u8] = if tcp_options { &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { &[] };
    let mut bytes = Vec::new();
    tcp.options_raw(options).unwrap().write(&mut bytes, b"six oc").unwrap();
    if ip_options && !v6 {
        // Router alert (RFC 2113).
        bytes.splice(34..34, [148, 4, 0, 0]);
        bytes[14] = 0x46;
        set_ip_sum(&mut bytes, true);
    }
    bytes.extend([0; 4]);
    bytes
}

/// Makes the lengths right for all that there is, and the checksum.
fn set_ip_sum(bytes: &mut [u8], set_len: bool) {
    let header = usize::from(bytes[14] & 15) * 4;
    if set_len {
        let total = (bytes.len() - ETH_LEN) as u16;
        bytes[16..18].copy_from_slice(&total.to_be_bytes());
    }
    bytes[24..26].copy_from_slice(&[0, 0]);
    if let Some(whole) = bytes.get(ETH_LEN..ETH_LEN + header) {
        let sum = !checksum::fold(checksum::sum(whole, 0));
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

/// A whole segment by etherparse's slices. `None`: something else, or nothing.
fn expected(frame: &[u8]) -> Option<Meta> {
    let packet = frame.get(ETH_LEN..)?;
    let (src, dst, ttl, l4, end, v6) = match u16_at(frame, 12) {
        ETHERTYPE_IPV4 => {
            let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
            let is_piece = ip.more_fragments() || ip.fragments_offset().value() != 0;
            let is_right = checksum::fold(checksum::sum(ip.slice(), 0)) == 0xffff;
            if ip.protocol().0 != IPPROTO_TCP || is_piece || !is_right {
                return None;
            }
            let (l4, end) = (ETH_LEN + ip.slice().len(), ETH_LEN + usize::from(ip.total_len()));
            (Addr::v4(ip.source()), Addr::v4(ip.destination()), ip.ttl(), l4, end, false)
        }
        ETHERTYPE_IPV6 => {
            let ip = Ipv6HeaderSlice::from_slice(packet).ok()?;
            if ip.next_header().0 != IPPROTO_TCP
                || Addr(ip.source()).is_v4()
                || Addr(ip.destination()).is_v4()
            {
                return None;
            }
            let l4 = ETH_LEN + IPV6_LEN;
            let end = l4 + usize::from(ip.payload_length());
            (Addr(ip.source()), Addr(ip.destination()), ip.hop_limit(), l4, end, true)
        }
        _ => return None,
    };
    if src.is_martian() || dst.is_martian() || l4 > end {
        return None;
    }
    let segment = frame.get(l4..end)?;
    let tcp = TcpHeaderSlice::from_slice(segment).ok()?;
    let flags = TcpFlags(segment[13]);
    flags.possible().then(|| Meta {
        tuple: Tuple {
            src: Endpoint { addr: src, port: tcp.source_port() },
            dst: Endpoint { addr: dst, port: tcp.destination_port() },
        },
        v6,
        l4: l4 as u16,
        payload: (l4 + tcp.slice().len()) as u16,
        end: end as u16,
        ttl,
        flags,
        seq: Seq(tcp.sequence_number()),
        ack: Seq(tcp.acknowledgment_number()),
        window: tcp.window_size(),
        reassembled: false,
    })
}

fn agrees(bytes: &[u8], what: &str) -> bool {
    let found = match parse(bytes) {
        Ok(Parsed::Tcp(meta)) => Some(meta),
        _ => None,
    };
    assert_eq!(found, expected(bytes), "{what}: {bytes:02x?}");
    // A martian is the one thing that it does not look for.
    let mut meta = Meta::NONE;
    let plain = plain_into(bytes, &mut meta).then_some(meta).filter(|meta| !meta.is_martian());
    assert!(plain.is_none() || plain == found, "{what}: {bytes:02x?}");
    let is_common = |meta: &Meta| {
        let is_bare = usize::from(meta.l4) == ETH_LEN + if meta.v6 { IPV6_LEN } else { IPV4_LEN };
        is_bare
            && meta.flags.is_plain()
            && (!meta.v6 || [meta.tuple.src, meta.tuple.dst].iter().all(|end| end.addr.is_unicast_v6()))
    };
    assert_eq!(plain.is_some(), found.as_ref().is_some_and(is_common), "{what}: {bytes:02x?}");
    found.is_some()
}

#[test]
fn segments_are_read_as_etherparse_reads_them_with_each_octet_changed_and_each_length() {
    let mut segments = 0;
    for (v6, ip_options, tcp_options) in [
        (false, false, false),
        (false, false, true),
        (false, true, true),
        (true, false, false),
        (true, false, true),
    ] {
        let whole = frame(v6, ip_options, tcp_options);
        assert!(agrees(&whole, "whole"));
        for len in 0..whole.len() {
            agrees(&whole[..len], "cut");
        }
        let headers = whole.len() - 10;
        for at in 12..headers {
            for value in 0..=255 {
                let mut changed = whole.clone();
                changed[at] = value;
                segments += u32::from(agrees(&changed, "changed"));
                if !v6 && changed.len() > 34 {
                    set_ip_sum(&mut changed, false);
                    segments += u32::from(agrees(&changed, "changed, with a right checksum"));
                }
            }
        }
    }
    assert!(segments > 10_000, "{segments} of them were segments");
}
