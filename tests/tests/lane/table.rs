//! What takes the lane and what does not, one row per packet.

use std::time::{Duration, Instant};

use weir_core::wire::{checksum, get_u16, put};
use weir_tests::packet::{BOTH, FIN, RST, SYN};
use weir_tests::random::{Random, bytes};

use super::*;

const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 1, 1, 0, 0, 1, 2];

/// A segment that takes the lane, and what becomes of it when it is changed so.
pub type Row = (&'static str, Outcome, Vec<u8>);

pub fn rows(how: &Translation, way: Way) -> Vec<Row> {
    let seg = || segment(how, way);
    let v6 = seg().src.0.is_ipv6();
    let damaged = |at: usize| {
        let mut frame = seg().frame();
        frame[at] ^= 1;
        frame
    };
    let long = [seg().payload([7; 30]).frame(), vec![0; 4]].concat();
    let mut rows = vec![
        ("plain", Outcome::Express, seg().frame()),
        ("no payload", Outcome::Express, seg().payload(b"").frame()),
        ("padded", Outcome::Express, [seg().payload(b"").frame(), vec![0; 6 - 6 * usize::from(v6)]].concat()),
        ("timestamps", Outcome::Express, seg().options(&TIMESTAMPS).frame()),
        ("wrong checksum, which stays wrong", Outcome::Express, seg().damaged().frame()),
        ("FIN", Outcome::ExpressFlags, seg().flags(FIN | ACK).frame()),
        ("RST", Outcome::ExpressFlags, seg().flags(RST).frame()),
        ("URG", Outcome::ExpressFlags, seg().urgent(1).frame()),
        ("no flags", Outcome::ExpressFlags, seg().flags(0).frame()),
        ("SYN", Outcome::NoIntercept, seg().flags(SYN).frame()),
        ("too many options", Outcome::ExpressOptions, seg().options(&[1; 24]).frame()),
        (
            "timestamps twice",
            Outcome::ExpressOptions,
            seg().options(&[TIMESTAMPS, TIMESTAMPS].concat()).frame(),
        ),
        ("octets behind the packet", Outcome::ExpressHeader, long),
        ("cut short", Outcome::ExpressHeader, seg().frame()[..seg().frame().len() - 1].to_vec()),
        ("TTL 2", Outcome::Express, seg().ttl(2).frame()),
        ("TTL 1", Outcome::ExpressTtl, seg().ttl(1).frame()),
        ("TTL 0", Outcome::ExpressTtl, seg().ttl(0).frame()),
        (
            "as large as the way out",
            Outcome::Express,
            seg().payload(&[7; 1440][20 * usize::from(v6)..]).frame(),
        ),
        ("larger", Outcome::ExpressMtu, seg().payload(&[7; 1461][20 * usize::from(v6)..]).frame()),
        ("for another station", Outcome::NoIntercept, damaged(5)),
        ("of another flow", Outcome::NoIntercept, damaged(if v6 { 55 } else { 35 })),
        ("data offset too small", Outcome::ExpressHeader, {
            let mut frame = seg().frame();
            frame[if v6 { 66 } else { 46 }] = 0x40;
            frame
        }),
    ];
    if !v6 {
        rows.push(("damaged header", Outcome::ExpressHeader, damaged(18)));
        let mut seg = seg();
        seg.ip_options = vec![1, 1, 1, 0];
        rows.push(("IP options", Outcome::NoIntercept, seg.frame()));
    }
    rows
}

pub fn check(lane: &mut Lane, how: &Translation, way: Way, (name, outcome, frame): &Row) {
    let (trial, counted) = lane.counted(way, frame);
    let what = format!("{name}, {way:?}: {how:?}");
    assert_eq!(counted, *outcome, "{what}");
    if matches!(outcome, Outcome::Express | Outcome::ExpressAlone) {
        let mut sent = by_worker(how, way, frame);
        sent.extend(&frame[sent.len()..]);
        assert_eq!((trial.action, trial.frame), (REDIRECT, sent), "{what}");
        return;
    }
    let action = match outcome {
        Outcome::ExpressDrop => DROP,
        outcome if outcome.is_redirect() => REDIRECT,
        _ => PASS,
    };
    assert_eq!((trial.action, &trial.frame), (action, frame), "{what}");
}

/// Ends the sockets, until the program finds none for a frame that goes to the server: a process that another test is about to start
/// may have them for a moment more.
fn lose_sockets(lane: &mut Lane, frame: &[u8]) {
    lane._sockets.clear();
    let until = Instant::now() + Duration::from_secs(10);
    while lane.counted(Way::ToServer, frame).1.is_redirect() {
        assert!(Instant::now() < until, "the sockets are still there");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn plain_segments_take_the_lane_and_all_others_go_to_their_worker() {
    with_lane(|lane| {
        for how in BOTH.into_iter().flat_map(|family| [plain(family), spliced(family)]) {
            let flow = lane.put(&how);
            let is_spliced = how.client != how.server;
            for way in WAYS {
                for mut row in rows(&how, way) {
                    if row.1 == Outcome::ExpressOptions && !is_spliced {
                        row.1 = Outcome::Express;
                    }
                    check(lane, &how, way, &row);
                }
            }
            let [up, down] = lane.express.take(flow.client, flow.server).unwrap().map(Option::unwrap);
            assert!(up.packets >= 7 && up.packets == down.packets && up.bytes == down.bytes, "{up:?}");
            assert!(!up.fin && !up.rst, "judged by the worker");
            let gone = ("taken out", Outcome::NoIntercept, segment(&how, Way::ToServer).frame());
            check(lane, &how, Way::ToServer, &gone);
        }
    });
}

#[test]
fn hops_and_devices_that_are_not_there_leave_packets_to_the_worker() {
    with_lane(|lane| {
        for family in BOTH {
            let how = spliced(family);
            lane.put(&how);
            let frame = segment(&how, Way::ToServer).frame();
            let is = |lane: &mut Lane, way, outcome| {
                assert_eq!(lane.counted(way, &frame).1, outcome, "{family:?}");
            };
            is(lane, Way::ToClient, Outcome::ExpressIngress);
            let up = lane.express.hop(0).unwrap();
            lane.express.set_hop(0, &ExpressHop { is_up: false, ..up }).unwrap();
            is(lane, Way::ToServer, Outcome::ExpressHop);
            lane.express.set_hop(0, &up).unwrap();
            is(lane, Way::ToServer, Outcome::Express);
            lane.express.unset_link(1).unwrap();
            is(lane, Way::ToServer, Outcome::ExpressHop);
            assert_eq!(lane.express.set_link(lane.devices[1], MAC, false).unwrap(), 1);
            lane.express.unset_link(0).unwrap();
            is(lane, Way::ToServer, Outcome::ExpressIngress);
            assert_eq!(lane.express.set_link(lane.devices[0], MAC, false).unwrap(), 0);
            is(lane, Way::ToServer, Outcome::Express);
            lane.express.enable(false).unwrap();
            is(lane, Way::ToServer, Outcome::NoIntercept);
            lane.express.enable(true).unwrap();
            lane.steering.disable().unwrap();
            is(lane, Way::ToServer, Outcome::Disabled);
            lane.steering.set_limits(SECOND, false).unwrap();
            lane.express.enable(true).unwrap();
        }
    });
}

#[test]
fn flows_of_the_lane_end_without_a_worker_and_it_is_noted() {
    for closed in [false, true] {
        with_lane(|lane| {
            lane.steering.set_limits(SECOND, closed).unwrap();
            for how in BOTH.into_iter().flat_map(|family| [plain(family), spliced(family)]) {
                lane.set_alive(false);
                let flow = lane.put(&how);
                let lost = if how.client == how.server { Outcome::StalePass } else { Outcome::ExpressDrop };
                let seen = |lane: &Lane| {
                    let seen = lane.express.seen(flow.client, flow.server).unwrap();
                    seen.map(|seen| seen.map(|seen| (seen.fin, seen.rst)).unwrap())
                };
                for way in WAYS {
                    let row = |flags, outcome| ("", outcome, segment(&how, way).flags(flags).frame());
                    check(lane, &how, way, &row(ACK, Outcome::Express));
                    check(lane, &how, way, &row(SYN, lost));
                    check(lane, &how, way, &("TTL 1", lost, segment(&how, way).ttl(1).frame()));
                    check(lane, &how, way, &row(0, lost));
                }
                assert_eq!(seen(lane), [(false, false); 2]);
                let fin = |way| ("FIN", Outcome::ExpressAlone, segment(&how, way).flags(FIN | ACK).frame());
                check(lane, &how, Way::ToServer, &fin(Way::ToServer));
                assert_eq!(seen(lane), [(true, false), (false, false)]);
                check(lane, &how, Way::ToClient, &fin(Way::ToClient));
                let rst = ("RST", Outcome::ExpressAlone, segment(&how, Way::ToClient).flags(RST).frame());
                check(lane, &how, Way::ToClient, &rst);
                assert_eq!(seen(lane), [(true, false), (true, true)]);
                lane.express.take(flow.client, flow.server).unwrap();
            }
        });
    }
}

#[test]
fn connection_that_reuses_addresses_without_a_worker_is_none_of_the_flow_before() {
    with_lane(|lane| {
        lane.set_alive(false);
        for family in BOTH {
            for ends in
                [vec![(Way::ToServer, RST)], vec![(Way::ToServer, FIN | ACK), (Way::ToClient, FIN | ACK)]]
            {
                let how = spliced(family);
                let flow = lane.put(&how);
                for (way, flags) in ends {
                    assert_eq!(
                        lane.counted(Way::ToServer, &segment(&how, Way::ToServer).flags(SYN).frame()).1,
                        Outcome::ExpressDrop
                    );
                    let row = ("end", Outcome::ExpressAlone, segment(&how, way).flags(flags).frame());
                    check(lane, &how, way, &row);
                }
                let syn = segment(&how, Way::ToServer).flags(SYN).frame();
                check(lane, &how, Way::ToServer, &("SYN", Outcome::StalePass, syn));
                for way in WAYS {
                    let row = ("of the next", Outcome::StalePass, segment(&how, way).frame());
                    check(lane, &how, way, &row);
                }
                let seen = lane.express.take(flow.client, flow.server).unwrap();
                assert!(seen.into_iter().all(|seen| seen.unwrap().is_void));
            }
        }
    });
}

#[test]
fn worker_that_has_just_died_leaves_no_end_unsent() {
    with_lane(|lane| {
        // The sockets went with it, its last sign of life is still fresh.
        lose_sockets(lane, &segment(&spliced(BOTH[0]), Way::ToServer).flags(SYN).frame());
        for family in BOTH {
            let how = spliced(family);
            lane.put(&how);
            for way in WAYS {
                let fin = segment(&how, way).flags(FIN | ACK).frame();
                check(lane, &how, way, &("FIN", Outcome::ExpressAlone, fin));
            }
        }
    });
}

#[test]
fn flow_that_stands_by_is_its_workers_as_long_as_there_is_one() {
    for how in BOTH.into_iter().flat_map(|family| [plain(family), spliced(family)]) {
        with_lane(|lane| {
            let flow = ExpressFlow { stands_by: true, ..flow_of(&how) };
            assert_eq!(lane.express.insert(&mut lane.batch, &[flow]).unwrap(), 1);
            let all =
                || WAYS.into_iter().flat_map(|way| rows(&how, way).into_iter().map(move |row| (way, row)));
            // A SYN is steered like any other.
            for (way, row) in all().filter(|(_, row)| row.1 != Outcome::NoIntercept) {
                check(lane, &how, way, &(row.0, Outcome::Redirect, row.2));
            }
            for (way, row) in all().filter(|(_, row)| row.0 == "SYN") {
                check(lane, &how, way, &row);
            }
            let seen = lane.express.seen(flow.client, flow.server).unwrap();
            assert!(seen.iter().flatten().all(|seen| seen.packets == 0), "{seen:?}");
            lane.set_alive(false);
            for (way, row) in all().filter(|(_, row)| row.1 == Outcome::Express) {
                check(lane, &how, way, &row);
            }
            // Killed: the sockets are gone, and the last sign of life is still fresh.
            lane.set_alive(true);
            lose_sockets(lane, &segment(&how, Way::ToServer).frame());
            for (way, row) in all().filter(|(_, row)| row.1 == Outcome::Express) {
                check(lane, &how, way, &row);
            }
        });
    }
}

/// The frame as its sender leaves it to a device: the checksum is that of the pseudo header.
fn unfinished(frame: &[u8]) -> Vec<u8> {
    let meta = meta_of(frame).unwrap();
    let mut frame = frame.to_vec();
    put(&mut frame, usize::from(meta.l4) + 16, &checksum::fold(meta.pseudo_sum()).to_be_bytes());
    frame
}

#[test]
fn checksums_left_to_a_device_are_finished() {
    with_lane(|lane| {
        let mut random = Random::new(3);
        for device in lane.devices {
            lane.express.set_link(device, MAC, true).unwrap();
        }
        for how in BOTH.into_iter().flat_map(|family| [plain(family), spliced(family)]) {
            let flow = lane.put(&how);
            let longest = if flow.client.0.is_ipv4() { 1461 } else { 1441 };
            for len in (0..300).chain(longest - 70..longest - 12) {
                let way = WAYS[len % 2];
                let payload = bytes(&mut random, len);
                let whole = segment(&how, way).options(&TIMESTAMPS).payload(&payload).frame();
                let sent = by_worker(&how, way, &whole);
                for frame in [&whole, &unfinished(&whole)] {
                    let (trial, outcome) = lane.counted(way, frame);
                    assert_eq!((outcome, trial.action), (Outcome::Express, REDIRECT));
                    assert_eq!(trial.frame, sent, "{len} octets, {how:?}");
                }
                let meta = meta_of(&sent).unwrap();
                assert_ne!(get_u16(&sent, usize::from(meta.l4) + 16), None);
                assert_eq!(meta.segment_sum(&sent), 0xffff);
            }
            lane.express.take(flow.client, flow.server).unwrap();
        }
    });
}
