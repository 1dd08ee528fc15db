//! VLANs through a worker, frame by frame: what comes in with tags, and what leaves with which.

mod worker;

use weir_core::drop::DropReason;
use weir_core::fib::Fib;
use weir_core::ids::{Nanos, PortId};
use weir_core::policy::VlanChoice;
use weir_core::vlan::{DOT1AD, DOT1Q};
use weir_tests::bench::{CLIENT_MAC, LAN, SERVER_MAC, Setup, WAN};
use weir_tests::packet::{ACK, BOTH, Family, RST, SYN, Seen, Seg};

use worker::{Bed, LINKS, NOW, TRUNK_LINK, link_mac, tagged};

/// Tags as they stand in a frame: protocol, and priority with number.
type Tags = &'static [(u16, u16)];

/// A way of the client, or of the server: the link, and its tags.
type Way = (PortId, Tags);

const UNTAGGED: Tags = &[];
const TEN: Tags = &[(DOT1Q, 10)];
const TWENTY: Tags = &[(DOT1Q, 20)];
const DOUBLE: Tags = &[(DOT1AD, 100), (DOT1Q, 10)];

fn ways() -> Vec<(Way, Way)> {
    let client = [(LAN, UNTAGGED), (LINKS[0], TEN), (LINKS[2], DOUBLE)];
    let server = [(WAN, UNTAGGED), (LINKS[1], TWENTY), (TRUNK_LINK, TWENTY), (LINKS[2], DOUBLE)];
    let pairs = client.into_iter().flat_map(|client| server.map(|server| (client, server)));
    pairs.filter(|((client, _), (server, _))| client != server).collect()
}

#[test]
fn connection_between_any_two_links_leaves_with_the_tags_of_each_way() {
    for family in BOTH {
        for ((from, client), (to, server)) in ways() {
            let at = format!("{family:?} {client:?} {server:?}");
            let mut bed = Bed::new(family, from, to, VlanChoice::ALL);
            let syn = bed.sends(from, client, &bed.syn());
            assert_eq!(syn, [(to, tagged(&seen_as(&bed.syn(), to), server))], "{at}");
            let answer = bed.sends(to, server, &bed.syn_ack());
            assert_eq!(answer, [(from, tagged(&seen_as(&bed.syn_ack(), from), client))], "{at}");
            let ack = bed.sends(from, client, &bed.ack());
            assert_eq!(ack, [(to, tagged(&seen_as(&bed.ack(), to), server))], "{at}");
            let request = bed.ack().payload(weir_tests::hello::http_request("fine.example"));
            assert_eq!(
                bed.sends(from, client, &request),
                [(to, tagged(&seen_as(&request, to), server))],
                "{at}"
            );
            assert_eq!(bed.dropped(), [], "{at}");
            assert!(bed.owns_all_frames(), "{at}");
        }
    }
}

/// The segment as it leaves by a link: one hop further, between the link and who is there.
fn seen_as(segment: &Seg, by: PortId) -> Vec<u8> {
    let mut frame = Seg { ttl: segment.ttl - 1, ..segment.clone() }.frame();
    frame[..6].copy_from_slice(if segment.dst.1 == 40_000 { &CLIENT_MAC } else { &SERVER_MAC });
    frame[6..12].copy_from_slice(&link_mac(by));
    frame
}

#[test]
fn priority_goes_with_the_packet_and_not_with_what_weir_says_itself() {
    for family in BOTH {
        let mut bed = Bed::new(family, LINKS[0], LINKS[1], VlanChoice::ALL);
        let left = bed.sends(LINKS[0], &[(DOT1Q, 0xb00a)], &bed.syn());
        assert_eq!(left[0].1[12..16], [0x81, 0, 0xb0, 20]);
        // Both ends are told that it is refused: by frames that came with another priority, and lie free since.
        bed.sends(LINKS[1], &[(DOT1Q, 0x6014)], &bed.syn_ack());
        bed.sends(LINKS[0], &[(DOT1Q, 0xb00a)], &bed.ack());
        let request = bed.ack().payload(weir_tests::hello::http_request("denied.example"));
        let resets = bed.sends(LINKS[0], &[(DOT1Q, 0xb00a)], &request);
        assert_eq!(resets.len(), 2, "{resets:02x?}");
        for (link, frame) in resets {
            let id = if link == LINKS[0] { 10 } else { 20 };
            assert_eq!(frame[12..16], [0x81, 0, 0, id], "no priority");
            assert_ne!(Seen::read(&untagged(&frame)).flags & RST, 0);
        }
    }
}

fn untagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &frame[16..]].concat()
}

#[test]
fn connection_of_a_vlan_that_no_intercept_names_is_the_kernels() {
    for family in BOTH {
        let ten = VlanChoice { ids: vec![10..=10], ..VlanChoice::NONE };
        for (from, tags, is_taken) in
            [(LINKS[0], TEN, true), (LAN, UNTAGGED, false), (LINKS[2], DOUBLE, false)]
        {
            let mut bed = Bed::new(family, from, WAN, ten.clone());
            let left = bed.sends(from, tags, &bed.syn());
            assert_eq!(left.len(), usize::from(is_taken), "{tags:?}");
            assert_eq!(bed.punted(), u64::from(!is_taken), "{tags:?}");
        }
    }
}

#[test]
fn frames_of_no_link_and_with_too_many_tags_are_dropped_for_a_reason() {
    for family in BOTH {
        let mut bed = Bed::new(family, LINKS[0], WAN, VlanChoice::ALL);
        for (tags, reason) in [
            ([(DOT1Q, 30)].as_slice(), DropReason::VlanLost),
            (&[(DOT1AD, 10)], DropReason::VlanLost),
            (&[(DOT1Q, 10), (DOT1Q, 0)], DropReason::NestedTag),
            (&[(DOT1AD, 100), (DOT1Q, 10), (DOT1Q, 5)], DropReason::NestedTag),
        ] {
            assert_eq!(bed.sends(LAN, tags, &bed.syn()), [], "{tags:?}");
            assert_eq!(bed.dropped(), [(reason, 1)], "{tags:?}");
        }
        assert!(bed.owns_all_frames());
    }
}

#[test]
fn vlan_that_goes_loses_what_would_leave_by_it_and_comes_back_with_its_connections() {
    for family in BOTH {
        let mut bed = Bed::new(family, LINKS[0], LINKS[1], VlanChoice::ALL);
        bed.sends(LINKS[0], TEN, &bed.syn());
        let whole = bed.fib.clone();
        bed.publish(Fib { vlans: Default::default(), ..whole.clone() });
        assert_eq!(bed.sends(LINKS[1], TWENTY, &bed.syn_ack()), []);
        assert_eq!(bed.dropped(), [(DropReason::VlanLost, 1)]);
        bed.publish(whole);
        let answer = bed.sends(LINKS[1], TWENTY, &bed.syn_ack());
        assert_eq!(answer, [(LINKS[0], tagged(&seen_as(&bed.syn_ack(), LINKS[0]), TEN))]);
    }
}

#[test]
fn weir_answers_a_tagged_syn_by_the_vlan_that_it_came_by() {
    for family in BOTH {
        let mut bed = Bed::with(family, LINKS[2], WAN, VlanChoice::ALL, Setup::answer());
        let left = bed.sends(LINKS[2], &[(DOT1AD, 0x6064), (DOT1Q, 0xa00a)], &bed.syn());
        let [(link, frame)] = &left[..] else { panic!("one answer: {left:?}") };
        assert_eq!((*link, &frame[12..20]), (LINKS[2], [0x88, 0xa8, 0, 100, 0x81, 0, 0, 10].as_slice()));
        let seen = Seen::read(&[&frame[..12], &frame[20..]].concat());
        assert_eq!((seen.flags, seen.sound), (SYN | ACK, true));
    }
}

#[test]
fn packet_of_the_full_mtu_gets_two_tags() {
    let (from, to) = (LAN, LINKS[2]);
    for (family, heads) in [(Family::V4, 40), (Family::V6, 60)] {
        let mut bed = Bed::new(family, from, to, VlanChoice::ALL);
        let most = weir_dataplane::gateway::largest_packet(weir_dataplane::gateway::FRAME_SIZES[1], 1);
        let mut fib = bed.fib.clone();
        fib.links[0].as_mut().unwrap().mtu = most as u16;
        let mut link = *fib.vlans.get(to).unwrap();
        link.link.mtu = most as u16;
        fib.vlans.insert(to, link);
        bed.publish(fib);
        bed.sends(from, UNTAGGED, &bed.syn());
        bed.sends(to, DOUBLE, &bed.syn_ack());
        let request = bed.ack().payload(weir_tests::hello::http_request("fine.example"));
        bed.sends(from, UNTAGGED, &request);
        let mut more = bed.ack().payload(vec![b'x'; most - heads]);
        more.seq += request.payload.len() as u32;
        let left = bed.sends(from, UNTAGGED, &more);
        assert_eq!(left.iter().map(|(_, frame)| frame.len()).collect::<Vec<_>>(), [most + 14 + 8]);
        assert_eq!(bed.dropped(), []);
    }
}

#[test]
fn what_waited_for_a_worker_that_hung_for_seconds_is_dropped_and_what_comes_then_is_not() {
    for family in BOTH {
        let mut bed = Bed::new(family, LAN, WAN, VlanChoice::ALL);
        let syn = bed.syn();
        let at = |millis| NOW.saturating_add(Nanos::from_millis(millis));
        assert_eq!(bed.sends_at(at(1500), LAN, &[], &syn).len(), 1, "it may have waited for a CPU");
        assert!(bed.sends_at(at(4000), LAN, &[], &syn).is_empty());
        assert_eq!(bed.dropped(), [(DropReason::Late, 1)]);
        assert_eq!(bed.sends_at(at(4000), LAN, &[], &syn).len(), 1, "sent again");
    }
}
