//! What the pipeline asks for, carried out by the worker's glue ([`Feeder`]) on the real program's maps.

use std::sync::Arc;

use weir_core::express::{ExpressOp, Lanes, Names, Stay};
use weir_dataplane::express::{Feeder, Ways};
use weir_sys::steering::Sweep;
use weir_tests::bench::{Bench, LAN, Setup, WAN, fib};
use weir_tests::packet::{BOTH, FIN, RST, SYN};

use super::*;

/// The lane's glue, with both devices.
pub fn ways(lane: &Lane) -> Arc<Ways> {
    let ways = Ways::new(lane.express.clone(), Vec::new());
    ways.set_link(LAN, Some(0));
    ways.set_link(WAN, Some(1));
    ways.follow(&Arc::new(fib(MTU)));
    Arc::new(ways)
}

fn lanes(stands_by: bool) -> Lanes {
    let mut lanes = Lanes::NONE;
    for (from, to) in [(LAN, WAN), (WAN, LAN)] {
        let of = if stands_by { &mut lanes.standby } else { &mut lanes.between };
        of[usize::from(from.0)].insert(to);
    }
    lanes
}

/// A connection that asks to enter, with how much the client has said.
fn entering(family: Family, stands_by: bool) -> (Bench, u32) {
    let mut b = Bench::of(family, Setup::new());
    b.pipe.set_lanes(lanes(stands_by));
    let n = b.allowed_http();
    b.wan(&b.s(0, n), &[]);
    b.wait(Nanos::from_millis(1500), &[]);
    assert!(matches!(b.out.express[..], [ExpressOp::Enter(_)]), "{:?}", b.out.express);
    (b, n)
}

/// Directions in the map.
pub fn directions(lane: &Lane) -> usize {
    let mut sweep = Sweep::default();
    assert!(!lane.express.sweep(&mut sweep).unwrap());
    sweep.entries().count()
}

fn reason(b: &Bench) -> Option<&'static str> {
    b.pipe.views(b.now, 0, 1).0.first().and_then(|view| view.lane_reason)
}

#[test]
fn connection_that_ends_before_it_has_entered_leaves_nothing_in_the_lane() {
    with_lane(|lane| {
        for (family, stands_by) in BOTH.into_iter().flat_map(|family| [(family, false), (family, true)]) {
            let mut feeder = Feeder::new(ways(lane), 0);
            // It is reset while it waits to enter.
            let (mut b, n) = entering(family, stands_by);
            b.lan(&b.c(n).flags(RST), &[]).one_to_server();
            assert!(matches!(b.out.express[..], [ExpressOp::Enter(_), ExpressOp::Leave(_)]));
            feeder.carry_out(&mut b.pipe, &mut b.out);
            assert_eq!((directions(lane), b.out.express.len()), (0, 0), "{family:?}");
            assert_eq!((b.pipe.express_flows(), b.pipe.standby_flows()), (0, 0));

            // Nobody knows it any more.
            let (mut b, n) = entering(family, stands_by);
            let enter = b.out.express.clone();
            b.lan(&b.c(n).flags(RST), &[]);
            b.wait(Nanos::from_secs(20), &[]);
            assert_eq!(b.pipe.flow_counts(), (0, 0));
            b.out.express = enter;
            feeder.carry_out(&mut b.pipe, &mut b.out);
            assert_eq!(directions(lane), 0, "{family:?}: an orphan");
            let ends = (ends_of(b.client), ends_of(b.server));
            assert_eq!(lane.express.noted(ends).unwrap(), None);
        }
    });
}

fn ends_of((ip, port): (IpAddr, u16)) -> SocketAddr {
    SocketAddr::new(ip, port)
}

#[test]
fn connection_whose_way_out_is_no_device_of_the_lane_for_a_moment_enters_when_it_is_again() {
    with_lane(|lane| {
        for (family, stands_by) in BOTH.into_iter().flat_map(|family| [(family, false), (family, true)]) {
            let ways = ways(lane);
            let mut feeder = Feeder::new(ways.clone(), 0);
            ways.set_link(WAN, None);
            let (mut b, n) = entering(family, stands_by);
            feeder.carry_out(&mut b.pipe, &mut b.out);
            assert_eq!((directions(lane), reason(&b)), (0, Some(Stay::Young.name())), "{family:?}");
            assert_eq!((b.pipe.express_flows(), b.pipe.standby_flows()), (0, 0));
            assert_eq!(b.pipe.totals.express_full, 0, "there is room");
            // The worker carries it meanwhile, and asks again; where the program is to stand by, when it is told of the devices.
            ways.set_link(WAN, Some(1));
            if stands_by {
                b.pipe.reroute(0, 1000, false, &mut b.out);
            }
            for _ in 0..10 {
                b.lan(&b.c(n), &[]).one_to_server();
                b.wan(&b.s(0, n), &[]).one_to_client();
            }
            feeder.carry_out(&mut b.pipe, &mut b.out);
            assert_eq!(directions(lane), 2, "{family:?}");
            assert_eq!(b.pipe.express_flows() + b.pipe.standby_flows(), 1);
            b.lan(&b.c(n).flags(RST), &[]);
            feeder.carry_out(&mut b.pipe, &mut b.out);
            assert_eq!(directions(lane), 0);
        }
    });
}

/// What a process before has left, and a worker has no room for.
#[test]
fn connection_that_nobody_takes_over_is_carried_whole_and_its_entries_go_when_it_has_ended() {
    with_lane(|lane| {
        for (family, stands_by) in BOTH.into_iter().flat_map(|family| [(family, false), (family, true)]) {
            for how in [plain(family), spliced(family)] {
                let flow = ExpressFlow { stands_by, ..flow_of(&how) };
                assert_eq!(lane.express.insert(&mut lane.batch, &[flow]).unwrap(), 1);
                let ways = ways(lane);
                let names = Names { client: how.client, server: how.server };
                ways.strays().add(ways.express(), names).unwrap();
                let frames = |flags: u8| {
                    [Way::ToServer, Way::ToClient].map(|way| (way, segment(&how, way).flags(flags).frame()))
                };
                for (way, frame) in frames(ACK) {
                    let (trial, outcome) = lane.counted(way, &frame);
                    assert_eq!(outcome, Outcome::Express, "{family:?} {way:?}");
                    assert_eq!(trial.frame, by_worker(&how, way, &frame));
                }
                let look = |after: u64| {
                    let now = clock::monotonic_ns() + after * SECOND;
                    ways.strays().look(ways.express(), Nanos(now)).unwrap();
                    ways.strays().count()
                };
                assert_eq!((look(60), directions(lane)), (1, 2), "it lives");
                // A new connection with its addresses would end in this one.
                let syn = segment(&how, Way::ToServer).flags(SYN).frame();
                assert_eq!(lane.counted(Way::ToServer, &syn).1, Outcome::ExpressDrop, "{family:?}");
                for (way, frame) in frames(FIN | ACK) {
                    let (trial, outcome) = lane.counted(way, &frame);
                    assert_eq!(outcome, Outcome::ExpressAlone, "{family:?} {way:?}");
                    assert_eq!(trial.frame, by_worker(&how, way, &frame));
                }
                assert_eq!((look(1), directions(lane)), (1, 2), "what is sent again may still come");
                assert_eq!((look(20), directions(lane)), (0, 0));
            }
        }
    });
}
