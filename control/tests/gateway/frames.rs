//! What is on the wire on both links: packets of a flow on the fast road cross unchanged but for MACs, TTL and what
//! depends on them; a refused flow's payload does not cross, and its resets fit the sequence numbers of both ends.

use std::io::ErrorKind;
use std::net::SocketAddr;

use weir_control::demo::stage::Family;
use weir_control::lab::{CapturedFrame, Checksums, TcpFrame};

use crate::config::{ALLOWED, DENIED, Settings};
use crate::weir::until;
use crate::world::{HTTP, HTTPS, Seen, World, fetch, fetch_intact, play};

/// The lab's link-layer addresses, from the client to the server.
const CLIENT0: [u8; 6] = [0x02, 0x77, 0, 0, 0, 1];
const LAN0: [u8; 6] = [0x02, 0x77, 0, 0, 0, 2];
const WAN0: [u8; 6] = [0x02, 0x77, 0, 0, 0, 3];
const SERVER0: [u8; 6] = [0x02, 0x77, 0, 0, 0, 4];
/// MTU and Ethernet header.
const LARGEST: usize = 1500 + 14;

#[test]
fn allowed_flow_crosses_with_nothing_changed_but_macs_and_ttl() {
    for bytes in [100, 1 << 20] {
        play(&Settings::default(), |world| {
            for family in Family::BOTH {
                let watch = world.watch();
                let mut stream = world.connect(family, HTTP);
                let client = stream.local_addr().unwrap();
                fetch_intact(&mut stream, bytes);
                drop(stream);
                let flow = world.weir.flow(client);
                assert_eq!((&flow["road"], &flow["verdict"]), (&"fast".into(), &"allow".into()), "{flow}");
                let (near, far) = watch.stop(client);
                let server = family.origin(HTTP);
                for (seen, here, there) in [(&near, CLIENT0, LAN0), (&far, SERVER0, WAN0)] {
                    seen.raw.iter().for_each(|frame| assert_link(frame, here, there));
                    seen.tcp.iter().for_each(|frame| assert_addresses(frame, client, server));
                }
                assert_crossed(&near, &far, client, 3);
                assert_crossed(&far, &near, server, 3);
                let payload: usize =
                    near.tcp.iter().filter(|f| f.source == server).map(|f| f.payload.len()).sum();
                assert!(payload as u64 >= bytes, "{family:?}: {payload} bytes came");
            }
        });
    }
}

#[test]
fn hello_of_two_segments_crosses_as_it_was_sent() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            let watch = world.watch();
            let stream = world.connect(family, HTTPS);
            let client = stream.local_addr().unwrap();
            let tls = world.stage.start_tls(ALLOWED, stream).unwrap();
            let hello = tls.hello_bytes() as u64;
            until("the origin has the ClientHello", || world.received_from(client) >= hello);
            let (near, far) = watch.stop(client);
            assert_crossed(&near, &far, client, 3);
            let largest = far.tcp.iter().map(|frame| frame.payload.len() as u64).max();
            assert!(largest.is_some_and(|largest| largest < hello), "{family:?}: one segment shows nothing");
        }
    });
}

#[test]
fn refused_flow_gets_exact_resets_and_no_payload_crosses() {
    play(&Settings::default(), |world| {
        for family in Family::BOTH {
            for tls in [false, true] {
                refuse(world, family, tls);
            }
        }
    });
}

fn refuse(world: &World<'_>, family: Family, tls: bool) {
    let watch = world.watch();
    let mut stream = world.connect(family, if tls { HTTPS } else { HTTP });
    let client = stream.local_addr().unwrap();
    let error = if tls {
        let mut tls = world.stage.start_tls(DENIED, stream).unwrap();
        std::io::Read::read(&mut tls, &mut [0; 100]).unwrap_err()
    } else {
        fetch(&mut stream, DENIED, 100).unwrap_err()
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{family:?}");
    let flow = world.weir.flow(client);
    assert_eq!(flow["verdict"], "reset", "{flow}");
    assert_eq!(flow["host"], DENIED, "{flow}");
    assert!(flow["rule"].as_str().is_some_and(|rule| rule.starts_with("/run/weir/test.toml:")), "{flow}");
    let (near, far) = watch.stop(client);
    let leaked: usize = far.tcp.iter().map(|frame| frame.payload.len()).sum();
    assert_eq!((leaked, world.received_from(client)), (0, 0), "{family:?}: payload crossed");
    let syn = near.tcp.iter().find(|frame| frame.syn && !frame.ack).expect("a SYN");
    let syn_ack = near.tcp.iter().find(|frame| frame.syn && frame.ack).expect("a SYN-ACK");
    let first = |seen: &Seen| seen.tcp.iter().find(|frame| frame.rst && !frame.outgoing).cloned();
    let (to_client, to_server) = (first(&near).expect("a RST"), first(&far).expect("a RST"));
    assert_eq!(to_client.sequence, syn_ack.sequence.wrapping_add(1), "{to_client:?}");
    assert_eq!(to_server.sequence, syn.sequence.wrapping_add(1), "{to_server:?}");
    assert_addresses(&to_client, client, syn.destination);
    assert_addresses(&to_server, client, syn.destination);
    assert_eq!((to_client.checksums, to_server.checksums), (Checksums::Right, Checksums::Right));
    if to_client.ack {
        let sent = near.tcp.iter().filter(|frame| frame.source == client);
        let ends = sent.map(|frame| frame.sequence.wrapping_add(frame.payload.len() as u32));
        let acknowledged = to_client.acknowledgment.wrapping_sub(syn.sequence);
        assert!(ends.map(|end| end.wrapping_sub(syn.sequence)).any(|end| end >= acknowledged));
    }
}

/// Every frame of `source` that was received at the end `to` is one that the end `from` sent, with only its TTL one
/// lower; at least `least` of them crossed.
#[track_caller]
fn assert_crossed(from: &Seen, to: &Seen, source: SocketAddr, least: usize) {
    let sent: Vec<&TcpFrame> = from.tcp.iter().filter(|f| f.source == source && f.outgoing).collect();
    let received: Vec<&TcpFrame> = to.tcp.iter().filter(|f| f.source == source).collect();
    assert!(received.len() >= least, "{} frames of {source} crossed", received.len());
    for frame in received {
        assert!(!frame.outgoing);
        assert_eq!(frame.checksums, Checksums::Right, "{frame:?}");
        let same = |sent: &&&TcpFrame| {
            let header = |f: &TcpFrame| (f.sequence, f.acknowledgment, f.window, f.syn, f.ack, f.fin, f.rst);
            header(sent) == header(frame) && sent.payload == frame.payload
        };
        let original = sent.iter().find(same).unwrap_or_else(|| panic!("nobody sent {frame:?}"));
        assert_eq!(frame.ttl + 1, original.ttl, "{frame:?}");
    }
}

#[track_caller]
fn assert_link(frame: &CapturedFrame, here: [u8; 6], there: [u8; 6]) {
    let (to, from) = if frame.outgoing { (there, here) } else { (here, there) };
    assert_eq!((&frame.bytes[..6], &frame.bytes[6..12]), (&to[..], &from[..]), "MACs, {frame:?}");
    assert!(frame.bytes.len() <= LARGEST, "{} bytes", frame.bytes.len());
    assert!(frame.outgoing || !frame.checksum_partial, "a partial checksum crossed: {frame:?}");
}

#[track_caller]
fn assert_addresses(frame: &TcpFrame, client: SocketAddr, server: SocketAddr) {
    let ends = (frame.source, frame.destination);
    assert!(ends == (client, server) || ends == (server, client), "{ends:?}");
}
