//! Tagged frames, one row per packet: which are of the box, and which the kernel's.

use super::packets::{FAMILIES, Flags, tagged_with};
use super::*;
use crate::steering::look::{Maps, Packet};

const DOT1Q: u16 = 0x8100;
const DOT1AD: u16 = 0x88a8;

/// A name, the tags as they stand in the frame, and what becomes of it.
type Row = (&'static str, &'static [(u16, u16)], (u32, Outcome));

/// VLANs of the LAN: 10, 20, and 10 in the provider's 100.
const PLACES: [(u32, VlanTag, Option<VlanTag>); 4] = [
    (32, (DOT1Q, 10), None),
    (33, (DOT1Q, 20), None),
    (34, (DOT1AD, 100), Some((DOT1Q, 10))),
    (35, (DOT1AD, 100), None),
];

fn places(mac: [u8; 6]) -> Vec<VlanPlace> {
    let device = ethtool::index_of(LAN).unwrap();
    let place = |(link, outer, inner)| VlanPlace { link, device, outer, inner, ifindex: 1000 + link, mac };
    PLACES.map(place).to_vec()
}

/// As the bench's, for clients of VLAN 10, alone and in 100.
fn of_vlans() -> InterceptTable {
    InterceptTable { from: vec![(32, 1 << WEB), (34, 1 << WEB)], ..table() }
}

/// The frame with these tags, the outermost first.
fn with(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    tags.iter().rev().fold(frame.to_vec(), |frame, (protocol, tci)| tagged_with(&frame, *protocol, *tci))
}

#[test]
fn tagged_frames_of_an_intercept_go_to_the_worker_and_those_of_other_vlans_pass() {
    with_bench(|bench| {
        bench.steering.set_intercepts(&of_vlans()).unwrap();
        bench.steering.set_vlans(&places([2; 6])).unwrap();
        let rows: &[Row] = &[
            ("untagged", &[], (PASS, Outcome::NoIntercept)),
            ("a priority", &[(DOT1Q, 0xe000)], (PASS, Outcome::NoIntercept)),
            ("of the intercept", &[(DOT1Q, 10)], (REDIRECT, Outcome::Redirect)),
            ("of it, with a priority", &[(DOT1Q, 0xf00a)], (REDIRECT, Outcome::Redirect)),
            ("of a VLAN without an intercept", &[(DOT1Q, 20)], (PASS, Outcome::NoIntercept)),
            ("of a VLAN without a sub-interface", &[(DOT1Q, 30)], (PASS, Outcome::Vlan)),
            ("10 of the provider's", &[(DOT1AD, 10)], (PASS, Outcome::Vlan)),
            ("QinQ", &[(DOT1AD, 0x3064), (DOT1Q, 0xe00a)], (REDIRECT, Outcome::Redirect)),
            ("QinQ without a sub-interface", &[(DOT1AD, 100), (DOT1Q, 20)], (PASS, Outcome::Vlan)),
            ("QinQ of two of the customer's", &[(DOT1Q, 100), (DOT1Q, 10)], (PASS, Outcome::Vlan)),
            ("the provider's alone", &[(DOT1AD, 100)], (PASS, Outcome::NoIntercept)),
            ("a priority before the VLAN", &[(DOT1Q, 0), (DOT1Q, 10)], (DROP, Outcome::NestedTagDrop)),
            ("a priority behind the VLAN", &[(DOT1Q, 10), (DOT1Q, 0)], (DROP, Outcome::NestedTagDrop)),
            (
                "a priority behind both",
                &[(DOT1AD, 100), (DOT1Q, 10), (DOT1Q, 0)],
                (DROP, Outcome::NestedTagDrop),
            ),
            ("three", &[(DOT1AD, 100), (DOT1Q, 10), (DOT1Q, 5)], (PASS, Outcome::Vlan)),
        ];
        for family in FAMILIES {
            let syn = family.out(family.server, 80, Flags::Syn);
            for (name, tags, expected) in rows {
                bench.check(name, LAN, &with(&syn, tags), *expected);
                let elsewhere =
                    if tags.first().is_some_and(|tag| tag.1 & 0xfff != 0) { Outcome::Vlan } else { continue };
                bench.check("by another port", WAN, &with(&syn, &tags[..1]), (PASS, elsewhere));
            }
            // What comes back is of the intercept wherever it comes in.
            let answer = family.back(family.server, 80, Flags::SynAck);
            bench.check("an answer", LAN, &with(&answer, &[(DOT1Q, 20)]), (REDIRECT, Outcome::Redirect));
        }
    });
}

#[test]
fn tagged_packet_that_is_asked_about_becomes_what_was_said() {
    with_bench(|bench| {
        bench.steering.set_intercepts(&of_vlans()).unwrap();
        bench.steering.set_vlans(&places([2; 6])).unwrap();
        let rows: &[(&str, &[(u16, u16)])] = &[
            (LAN, &[(DOT1Q, 10)]),
            (WAN, &[(DOT1Q, 10)]),
            (LAN, &[(DOT1Q, 20)]),
            (LAN, &[(DOT1Q, 30)]),
            (LAN, &[(DOT1AD, 100), (DOT1Q, 10)]),
            (LAN, &[(DOT1AD, 100), (DOT1Q, 20)]),
            (LAN, &[(DOT1AD, 100)]),
        ];
        for family in FAMILIES {
            let (from, to) = (family.at(family.client, 40_000), family.at(family.server, 80));
            for (device, tags) in rows {
                let ifindex = ethtool::index_of(device).unwrap();
                let what = Packet { from, to, ifindex, tags: Some((tags[0], tags.get(1).copied())) };
                let look = bench.steering.maps().unwrap().look(&what).unwrap();
                let frames =
                    [Flags::Syn, Flags::Data].map(|flags| with(&super::packets::tcp(from, to, flags), tags));
                let copy = Maps::ask_program(&look, &what, [&frames[0], &frames[1]]).unwrap();
                let becomes = frames.map(|frame| bench.count_one(device, &frame));
                let place = format!("{tags:?} by {device}: {look:?}");
                assert_eq!([true, false].map(|opens| look.outcome(opens)), becomes, "{place}");
                assert_eq!(copy, becomes, "the copy, {place}");
            }
        }
    });
}

#[test]
fn tagged_frames_for_another_station_pass_and_those_of_a_vlan_that_is_gone_too() {
    with_bench(|bench| {
        bench.steering.set_intercepts(&of_vlans()).unwrap();
        for family in FAMILIES {
            let syn = with(&family.out(family.server, 80, Flags::Syn), &[(DOT1Q, 10)]);
            bench.steering.set_vlans(&places([6; 6])).unwrap();
            bench.check("for another", LAN, &syn, (PASS, Outcome::OtherHost));
            bench.steering.set_vlans(&places([2; 6])).unwrap();
            bench.check("for the sub-interface", LAN, &syn, (REDIRECT, Outcome::Redirect));
            bench.steering.set_vlans(&places([2; 6])[1..]).unwrap();
            bench.check("its sub-interface is gone", LAN, &syn, (PASS, Outcome::Vlan));
            bench.steering.set_vlans(&[]).unwrap();
            let odd = with(&family.out(family.server, 80, Flags::Syn), &[(DOT1Q, 0), (DOT1Q, 10)]);
            bench.check("nobody's", LAN, &odd, (PASS, Outcome::Vlan));
        }
    });
}

#[test]
fn tagged_frames_to_the_box_pass() {
    with_bench(|bench| {
        bench.steering.set_intercepts(&of_vlans()).unwrap();
        bench.steering.set_vlans(&places([2; 6])).unwrap();
        for family in FAMILIES {
            let own = if family.is_v6() { "2001:db8::1" } else { "192.0.2.1" };
            let syn = family.out(own, 80, Flags::Syn);
            bench.check("own", LAN, &with(&syn, &[(DOT1Q, 10)]), (PASS, Outcome::OwnAddress));
        }
    });
}

#[test]
fn number_of_a_port_is_none_of_a_vlan() {
    with_bench(|bench| {
        let mut wrong = places([2; 6]);
        wrong[0].link = 31;
        assert!(matches!(bench.steering.set_vlans(&wrong), Err(SteeringError::PortNumber { port: 31, .. })));
    });
}
