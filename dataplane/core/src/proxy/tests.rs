use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};

use super::*;

fn end(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().unwrap().into()
}

/// Both families, and each beside the other.
const PAIRS: [(&str, &str); 5] = [
    ("10.1.0.2:40000", "192.0.2.10:443"),
    ("255.255.255.255:65535", "255.255.255.255:65535"),
    ("[2001:db8::2]:40000", "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:1"),
    ("10.1.0.2:40000", "[2001:db8::10]:443"),
    ("[2001:db8::2]:40000", "192.0.2.10:443"),
];

fn header(version: ProxyVersion, pair: (&str, &str)) -> ProxyHeader<'static> {
    ProxyHeader { version, client: end(pair.0), destination: end(pair.1), host: None, alpn: None }
}

fn written(header: &ProxyHeader<'_>) -> Vec<u8> {
    let mut bytes = [0xaa; MAX_PROXY_HEADER];
    let len = header.write(&mut bytes).unwrap();
    assert!(bytes[len..].iter().all(|octet| *octet == 0xaa), "nothing is written behind the header");
    bytes[..len].to_vec()
}

/// The address as the header has it: an IPv4 one beside an IPv6 one in mapped form.
fn ip(pair: (&str, &str), one: &str) -> IpAddr {
    let [ip, other] = [one, if one == pair.0 { pair.1 } else { pair.0 }].map(|end_| end(end_).addr.ip());
    match (ip, other) {
        (IpAddr::V4(ip), IpAddr::V6(_)) => ip.to_ipv6_mapped().into(),
        _ => ip,
    }
}

#[test]
fn version_1_is_read_by_another_parser() {
    for pair in PAIRS {
        let bytes = written(&header(ProxyVersion::V1, pair));
        assert!(bytes.len() <= 107, "section 2.1: {}", bytes.len());
        let read = v1::Header::try_from(bytes.as_slice()).unwrap();
        let (source, destination, ports) = match read.addresses {
            v1::Addresses::Tcp4(a) => {
                (a.source_address.into(), a.destination_address.into(), [a.source_port, a.destination_port])
            }
            v1::Addresses::Tcp6(a) => (
                IpAddr::from(a.source_address),
                IpAddr::from(a.destination_address),
                [a.source_port, a.destination_port],
            ),
            v1::Addresses::Unknown => panic!("unknown: {pair:?}"),
        };
        assert_eq!((source, destination), (ip(pair, pair.0), ip(pair, pair.1)));
        assert_eq!(ports, [end(pair.0).port, end(pair.1).port]);
    }
    let plain = written(&header(ProxyVersion::V1, PAIRS[0]));
    assert_eq!(plain, b"PROXY TCP4 10.1.0.2 192.0.2.10 40000 443\r\n");
}

#[test]
fn version_2_is_read_by_another_parser() {
    let long = "a".repeat(255);
    for pair in PAIRS {
        for host in [None, Some("intranet.example"), Some(long.as_str())] {
            for alpn in [None, Some(b"h2".as_slice()), Some(&[0x0a; 255])] {
                let sent = ProxyHeader { host, alpn, ..header(ProxyVersion::V2, pair) };
                check_v2(&written(&sent), pair, host, alpn);
            }
        }
    }
}

fn check_v2(bytes: &[u8], pair: (&str, &str), host: Option<&str>, alpn: Option<&[u8]>) {
    let read = v2::Header::try_from(bytes).unwrap();
    assert_eq!(
        (read.version, read.command, read.protocol),
        (v2::Version::Two, v2::Command::Proxy, v2::Protocol::Stream)
    );
    assert_eq!(read.len(), bytes.len());
    let (source, destination, ports) = match read.addresses {
        v2::Addresses::IPv4(a) => {
            (a.source_address.into(), a.destination_address.into(), [a.source_port, a.destination_port])
        }
        v2::Addresses::IPv6(a) => (
            IpAddr::from(a.source_address),
            IpAddr::from(a.destination_address),
            [a.source_port, a.destination_port],
        ),
        other => panic!("{other:?}: {pair:?}"),
    };
    assert_eq!((source, destination), (ip(pair, pair.0), ip(pair, pair.1)));
    assert_eq!(ports, [end(pair.0).port, end(pair.1).port]);
    let tlvs: Vec<(u8, Vec<u8>)> =
        read.tlvs().map(Result::unwrap).map(|tlv| (tlv.kind, tlv.value.to_vec())).collect();
    let alpn = alpn.map(|alpn| (u8::from(v2::Type::ALPN), alpn.to_vec()));
    let host = host.map(|host| (u8::from(v2::Type::Authority), host.as_bytes().to_vec()));
    assert_eq!(tlvs, alpn.into_iter().chain(host).collect::<Vec<_>>());
}

#[test]
fn longest_header_fits_its_bound_exactly() {
    let host = "a".repeat(255);
    let sent = ProxyHeader { host: Some(&host), alpn: Some(&[1; 255]), ..header(ProxyVersion::V2, PAIRS[2]) };
    assert_eq!(written(&sent).len(), MAX_PROXY_HEADER);
}

#[test]
fn room_too_small_leaves_names_out_and_then_everything() {
    let sent =
        ProxyHeader { host: Some("a.example"), alpn: Some(b"h2"), ..header(ProxyVersion::V2, PAIRS[0]) };
    let all = 16 + 12 + (3 + 2) + (3 + 9);
    for (room, len) in [
        (all, Some(all)),
        (all - 1, Some(16 + 12 + 3 + 2)),
        (16 + 12 + 4, Some(16 + 12)),
        (16 + 12, Some(16 + 12)),
        (16 + 12 - 1, None),
        (0, None),
    ] {
        let mut bytes = vec![0; room];
        assert_eq!(sent.write(&mut bytes), len, "room {room}");
        if let Some(len) = len {
            assert_eq!(v2::Header::try_from(&bytes[..len]).unwrap().len(), len);
        }
    }
    let v1 = header(ProxyVersion::V1, PAIRS[0]);
    let len = written(&v1).len();
    assert_eq!(v1.write(&mut vec![0; len]), Some(len));
    assert_eq!(v1.write(&mut vec![0; len - 1]), None);
}

#[test]
fn names_without_octets_or_with_too_many_are_left_out() {
    let long = "a".repeat(256);
    for (host, alpn) in [("", [].as_slice()), (long.as_str(), &[7; 256])] {
        let sent = ProxyHeader { host: Some(host), alpn: Some(alpn), ..header(ProxyVersion::V2, PAIRS[2]) };
        assert_eq!(written(&sent).len(), 16 + 36);
    }
}
