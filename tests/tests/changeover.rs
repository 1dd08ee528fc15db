//! Into the express lane and out of it. The program is played here: what it carries does not come to the pipeline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use weir_core::drop::DropReason;
use weir_core::express::{Adopted, Carried, ExpressOp, Lanes, Names, Passed, Stay};
use weir_core::flow::key::Tuple;
use weir_core::ids::Nanos;
use weir_core::pipeline::Elsewhere;
use weir_core::tcp::seq::Seq;
use weir_core::tcp::translate::{TimestampMode, Translation};
use weir_core::wire::addr::Endpoint;
use weir_tests::bench::{Bench, LAN, Moved, Setup, WAN};
use weir_tests::packet::{ACK, BOTH, FIN, Family, RST, SYN, Seg};

const DROP: fn(DropReason) -> Moved = Moved::Drop;
/// Far beyond what the pipeline saw last.
const FAR: u32 = 3_000_000_000;

fn lanes() -> Lanes {
    let mut lanes = Lanes::NONE;
    for (from, to) in [(LAN, WAN), (WAN, LAN)] {
        lanes.between[usize::from(from.0)].insert(to);
    }
    lanes
}

/// The lane stands by between the same ports.
fn standby() -> Lanes {
    Lanes { standby: lanes().between, ..Lanes::NONE }
}

/// A bench with a lane, and a connection in it that `n` octets of the client opened.
fn carried(family: Family, setup: Setup) -> (Bench, u32, Carried) {
    let mut b = Bench::of(family, setup);
    b.pipe.set_lanes(lanes());
    let n = b.allowed_http();
    b.wan(&b.s(0, n), &[]);
    let ops = pass(&mut b, n, 20);
    let [ExpressOp::Enter(carried)] = ops[..] else { panic!("one enters: {ops:?}") };
    assert!(b.pipe.handle_entered(&carried.names.key(), true));
    assert_eq!((b.pipe.express_flows(), lane(&b)), (1, Some("express")));
    (b, n, carried)
}

/// Packets of both ends without a word.
fn pass(b: &mut Bench, n: u32, packets: u32) -> Vec<ExpressOp> {
    for _ in 0..packets / 2 {
        b.lan(&b.c(n), &[]).one_to_server();
        b.wan(&b.s(0, n), &[]).one_to_client();
    }
    std::mem::take(&mut b.out.express)
}

/// What the server says first is what tells whether it asks for a second ClientHello.
#[test]
fn tls_connection_stays_with_its_worker_until_the_server_has_answered() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::new());
        b.pipe.set_lanes(lanes());
        let n = b.allowed();
        b.wan(&b.s(0, n), &[]);
        assert_eq!(pass(&mut b, n, 40), []);
        let view = b.pipe.views(b.now, 0, 1).0.remove(0);
        assert_eq!(
            (view.lane, view.lane_reason),
            (Some("worker"), Some(Stay::Unanswered.name())),
            "{view:?}"
        );
        // A ServerHello with a random of its own.
        let hello = [&[22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3][..], &[7; 32], &[0; 52]].concat();
        b.wan(&b.s(0, n).payload(&hello), &[]);
        let said = hello.len() as u32;
        let mut ops = Vec::new();
        for _ in 0..20 {
            let mut c = b.c(n);
            c.ack = c.ack.wrapping_add(said);
            b.lan(&c, &[]).one_to_server();
            b.wan(&b.s(said, n), &[]).one_to_client();
            ops.append(&mut b.out.express);
        }
        assert!(matches!(ops[..], [ExpressOp::Enter(_)]), "{ops:?}");
    }
}

fn lane(b: &Bench) -> Option<&'static str> {
    b.pipe.views(b.now, 0, 1).0.first().and_then(|view| view.lane)
}

/// The program is told that these ends have finished, and had seen so much before.
fn ended(b: &mut Bench, names: Names, fins: (bool, bool), seen: &Passed) {
    let told = std::mem::take(&mut b.out.express);
    let is_it = |op: &ExpressOp| matches!(op, ExpressOp::Ending { names: n, fins: f, .. } if (*n, *f) == (names, fins));
    assert!(told.len() == 1 && is_it(&told[0]), "{told:?}");
    b.pipe.handle_ending(&names.key(), seen, &mut b.out);
}

/// The program is told what ends say that nobody has acknowledged, besides those that are known to have finished.
#[track_caller]
fn said(b: &mut Bench, names: Names, fins: (bool, bool), says: (bool, bool)) {
    assert_eq!(std::mem::take(&mut b.out.express), [ExpressOp::Ending { names, fins, says }]);
    b.pipe.handle_ending(&names.key(), &Passed::default(), &mut b.out);
}

fn left(b: &mut Bench) -> Vec<Names> {
    let ops = std::mem::take(&mut b.out.express);
    ops.into_iter()
        .map(|op| if let ExpressOp::Leave(names) = op { names } else { panic!("{op:?}") })
        .collect()
}

/// Segments as they are `FAR` further on, in both directions.
fn far(b: &Bench, n: u32) -> (Seg, Seg) {
    let (c, s) = (b.c(n.wrapping_add(FAR)), b.s(FAR, n.wrapping_add(FAR)));
    (Seg { ack: s.seq, ..c }, s)
}

#[test]
fn allowed_connection_enters_once_what_was_inspected_is_acknowledged() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.pipe.set_lanes(lanes());
        let n = b.allowed_http();
        for _ in 0..20 {
            b.wan(&b.s(0, n - 1), &[]);
            b.lan(&b.c(n), &[]);
        }
        assert_eq!(b.out.express, [], "the server has not all that was inspected");
        b.wan(&b.s(0, n), &[]);
        let ops = pass(&mut b, n, 20);
        let [ExpressOp::Enter(carried)] = ops[..] else { panic!("{ops:?}") };
        assert_eq!((carried.names.client, carried.up), (carried.names.server, None));
        assert_eq!((carried.to_server.0, carried.to_client.0), (WAN, LAN));
        assert_eq!(carried.to_server.1.ip(), b.server.0);
        assert!(b.pipe.handle_entered(&carried.names.key(), false));
        assert_eq!((lane(&b), b.pipe.totals.express_full), (Some("worker"), 1));
        assert_eq!(pass(&mut b, n, 100), [], "no room stays no room");
    }
}

#[test]
fn quiet_connection_enters_after_a_moment_and_one_without_a_lane_never() {
    for family in BOTH {
        for has_lane in [true, false] {
            let mut b = Bench::new(family);
            b.pipe.set_lanes(if has_lane { lanes() } else { Lanes::NONE });
            let n = b.allowed_http();
            b.wan(&b.s(0, n), &[]);
            b.wait(Nanos::from_millis(1500), &[]);
            assert_eq!(b.out.express.len(), usize::from(has_lane));
        }
    }
}

#[test]
fn fin_takes_the_connection_back_and_it_ends_although_nobody_knows_where_it_stood() {
    for family in BOTH {
        let (mut b, n, carried) = carried(family, Setup::new());
        let (c, s) = far(&b, n);
        let fin = b.lan(&c.clone().flags(FIN | ACK), &[]).one_to_server();
        assert_eq!((fin.seq, fin.flags), (c.seq, FIN | ACK));
        let passed = Passed { packets_to_server: 7, bytes_to_client: 5000, ..Passed::default() };
        ended(&mut b, carried.names, (false, false), &passed);
        assert_eq!((b.pipe.express_flows(), b.pipe.standby_flows()), (0, 1));
        let view = b.pipe.views_with(b.now, 0, 1, |_| Some(passed)).0.remove(0);
        assert_eq!((view.lane, view.lane_reason), (Some("worker"), Some("ending")));
        assert!(view.packets_to_server > Some(7) && view.bytes_to_client == 5000);
        // The server sends the rest, and then its own FIN.
        let rest = Seg { ack: c.seq + 1, ..s.clone() };
        b.wan(&rest.clone().payload("rest"), &[]).one_to_client();
        ended(&mut b, carried.names, (true, false), &passed);
        let fin = Seg { seq: s.seq.wrapping_add(4), ..rest }.flags(FIN | ACK);
        b.wan(&fin, &[]).one_to_client();
        said(&mut b, carried.names, (true, false), (true, true));
        assert_eq!(left(&mut b), [], "its acknowledgment may be lost with weir");
        let last = Seg { seq: c.seq.wrapping_add(1), ack: fin.seq.wrapping_add(1), ..c };
        b.lan(&last, &[]).one_to_server();
        assert_eq!(left(&mut b), [carried.names]);
        b.wait(Nanos::from_secs(61), &[]);
        assert_eq!((b.pipe.flow_counts(), b.pipe.express_flows()), ((0, 0), 0));
    }
}

/// Who knows the addresses, and no number, says for both ends that they have finished.
#[test]
fn forged_fins_end_no_connection_whatever_is_asked_of_the_program() {
    for family in BOTH {
        let (mut b, n, carried) = carried(family, Setup::new());
        let (c, s) = far(&b, n);
        for ahead in [0, 1 << 29, 1 << 30] {
            b.lan(&Seg { seq: c.seq.wrapping_add(5000 + ahead), ..c.clone() }.flags(FIN | ACK), &[]);
            b.wan(&Seg { seq: s.seq.wrapping_add(5000 + ahead), ..s.clone() }.flags(FIN | ACK), &[]);
        }
        // The ends' own go on.
        b.wan(&s, &[]).one_to_client();
        b.lan(&c, &[]).one_to_server();
        let told = std::mem::take(&mut b.out.express);
        let names = carried.names;
        assert_eq!(told, [ExpressOp::Ending { names, fins: (false, false), says: (true, true) }]);
        let passed = Passed { packets_to_server: 9, seen: b.now, ..Passed::default() };
        b.pipe.handle_ending(&names.key(), &passed, &mut b.out);
        assert_eq!(b.pipe.reroute(0, 1000, true, &mut b.out), None);
        assert_eq!(std::mem::take(&mut b.out.express), [ExpressOp::Ask(names)]);
        b.pipe.handle_seen(&names.key(), Some(&passed), &mut b.out);
        // Both are asked, and know of no end.
        b.collect();
        b.wan(&s, &[]).one_to_client();
        b.lan(&c, &[]).one_to_server();
        assert_eq!(left(&mut b), []);
        b.wait(Nanos::from_secs(300), &[]);
        assert_eq!((b.pipe.flow_counts(), b.pipe.standby_flows()), ((1, 0), 1));
        b.lan(&c.payload("more"), &[]).one_to_server();
    }
}

/// The acknowledgment may pass when weir has been killed: a process after it would wait for it for hours.
#[test]
fn fin_that_nobody_has_acknowledged_is_known_to_the_next_process() {
    for family in BOTH {
        let (mut b, n, carried) = carried(family, Setup::new());
        let ((c, s), names) = (far(&b, n), carried.names);
        b.lan(&c.clone().flags(FIN | ACK), &[]).one_to_server();
        said(&mut b, names, (false, false), (true, false));
        b.lan(&c.clone().flags(FIN | ACK), &[]).one_to_server();
        assert_eq!(std::mem::take(&mut b.out.express), [], "it is known");
        b.wan(&s.clone().flags(FIN | ACK), &[]).one_to_client();
        said(&mut b, names, (false, false), (true, true));
        // Neither ends the connection: they may be a forger's.
        b.pipe.handle_seen(&names.key(), Some(&Passed { seen: b.now, ..Passed::default() }), &mut b.out);
        assert_eq!((std::mem::take(&mut b.out.express), b.pipe.standby_flows()), (Vec::new(), 1));
    }
}

#[test]
fn stall_between_a_fin_and_its_acknowledgment_is_no_reason_to_forget_it() {
    for family in BOTH {
        let (mut b, n, carried) = carried(family, Setup::new());
        let ((c, s), names) = (far(&b, n), carried.names);
        b.lan(&c.clone().flags(FIN | ACK), &[]).one_to_server();
        let passed = Passed { packets_to_server: 9, seen: b.now, ..Passed::default() };
        ended(&mut b, names, (false, false), &passed);
        b.pipe.handle_seen(&names.key(), Some(&passed), &mut b.out);
        let fin = Seg { ack: c.seq.wrapping_add(1), ..s }.flags(FIN | ACK);
        b.wan(&fin, &[]).one_to_client();
        ended(&mut b, names, (true, false), &passed);
        b.pipe.handle_seen(&names.key(), Some(&passed), &mut b.out);
        b.collect().one_to_client();
        b.lan(&Seg { seq: fin.ack, ack: fin.seq.wrapping_add(1), ..c }, &[]).one_to_server();
        assert_eq!(left(&mut b), [names]);
        b.wait(Nanos::from_secs(61), &[]);
        assert_eq!((b.pipe.flow_counts(), b.pipe.standby_flows()), ((0, 0), 0));
    }
}

/// Nobody would say it again.
#[test]
fn acknowledgment_of_the_last_fin_that_went_past_in_a_stall_is_asked_for() {
    for family in BOTH {
        for has_forgotten in [false, true] {
            let (mut b, n, carried) = carried(family, Setup::new());
            let ((c, s), names) = (far(&b, n), carried.names);
            b.lan(&c.clone().flags(FIN | ACK), &[]).one_to_server();
            let passed = Passed { packets_to_server: 9, seen: b.now, ..Passed::default() };
            ended(&mut b, names, (false, false), &passed);
            let fin = Seg { ack: c.seq.wrapping_add(1), ..s }.flags(FIN | ACK);
            b.wan(&fin, &[]).one_to_client();
            ended(&mut b, names, (true, false), &passed);
            b.pipe.handle_seen(&names.key(), Some(&passed), &mut b.out);
            let asked = b.collect().one_to_client();
            assert_eq!((asked.flags, asked.seq), (ACK, fin.seq), "an octet that the client has had");
            if has_forgotten {
                let rst = Seg::new(b.client, b.server, RST, asked.ack, 0);
                b.lan(&rst, &[DROP(DropReason::ToWeir)]);
            } else {
                let last = Seg { seq: fin.ack, ack: fin.seq.wrapping_add(1), ..c };
                b.lan(&last, &[]).one_to_server();
            }
            assert_eq!(left(&mut b), [names]);
            b.wait(Nanos::from_secs(61), &[]);
            assert_eq!((b.pipe.flow_counts(), b.pipe.standby_flows()), ((0, 0), 0));
        }
    }
}

#[test]
fn rst_behind_a_fin_that_nobody_answers_for_ends_the_connection_in_time() {
    for family in BOTH {
        let (mut b, n, carried) = carried(family, Setup::new());
        let ((c, _), names) = (far(&b, n), carried.names);
        b.lan(&c.clone().flags(FIN | ACK), &[]).one_to_server();
        let passed = Passed { packets_to_server: 9, seen: b.now, ..Passed::default() };
        ended(&mut b, names, (false, false), &passed);
        let rst = Seg { seq: c.seq.wrapping_add(1), ..c }.flags(RST);
        b.lan(&rst, &[]).to_server();
        b.wait(Nanos::from_secs(241), &[]);
        assert_eq!(std::mem::take(&mut b.out.express), [ExpressOp::Ask(names)]);
        b.pipe.handle_seen(&names.key(), Some(&passed), &mut b.out);
        assert_eq!((left(&mut b), b.pipe.flow_counts()), (vec![names], (0, 0)));
    }
}

#[test]
fn rst_passes_and_the_connection_is_over_only_if_its_receiver_has_it_no_more() {
    for family in BOTH {
        for is_over in [true, false] {
            let (mut b, n, carried) = carried(family, Setup::new());
            let (c, s) = far(&b, n);
            let came = b.lan(&c.clone().flags(RST), &[]).to_server();
            assert_eq!((came[0].flags, came[0].seq), (RST, c.seq), "the server judges it");
            assert_eq!((came[1].flags, came.len()), (ACK, 2), "and is asked");
            assert_eq!(left(&mut b), [carried.names]);
            if is_over {
                let rst = Seg::new(b.server, b.client, RST, came[1].ack, 0);
                assert!(b.wan(&rst, &[DROP(DropReason::ToWeir)]).is_nothing());
                b.wait(Nanos::from_secs(11), &[]);
                assert_eq!(b.pipe.flow_counts(), (0, 0));
            } else {
                // A forger's: the connection goes on.
                b.wan(&s, &[]).one_to_client();
                let rst = Seg::new(b.server, b.client, RST, came[1].ack.wrapping_add(1), 0);
                b.wan(&rst, &[]);
                b.lan(&c.clone().payload("more"), &[]).one_to_server();
                b.wait(Nanos::from_secs(100), &[]);
                assert_eq!(b.pipe.flow_counts(), (1, 0));
            }
        }
    }
}

#[test]
fn syn_of_a_client_that_has_forgotten_asks_the_server_and_opens_no_connection() {
    for family in BOTH {
        let (mut b, ..) = carried(family, Setup::new());
        let syn = Seg::new(b.client, b.server, SYN, 77, 0).options(&[2, 4, 5, 0xb4]);
        let probe = b.lan(&syn, &[DROP(DropReason::UnexpectedSyn)]).one_to_server();
        assert_eq!((probe.flags, probe.seq), (ACK, 77));
        assert_eq!(lane(&b), Some("express"), "the server's answer takes the lane");
        let rst = Seg::new(b.server, b.client, RST, probe.ack, 0);
        b.wan(&rst, &[DROP(DropReason::ToWeir)]);
        left(&mut b);
        assert_eq!(b.lan(&syn, &[Moved::Opened]).one_to_server().flags, SYN);
    }
}

/// Another version's program carries it, to a server of a pool.
#[test]
fn syn_of_a_client_that_has_forgotten_a_connection_which_goes_on_elsewhere_opens_one_when_that_has_ended() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let pool = (b.server.0, 8443);
        let end = |(addr, port): (std::net::IpAddr, u16)| Endpoint { addr: addr.into(), port };
        let (of, leg) = ([b.client, b.server].map(end), Tuple { src: end(b.client), dst: end(pool) });
        let has_ended = Arc::new(AtomicBool::new(false));
        let ended = has_ended.clone();
        b.pipe.spare(Elsewhere::new(move |tuple| {
            assert_eq!([tuple.src, tuple.dst], of);
            (!ended.load(Relaxed)).then_some(leg)
        }));
        let syn = Seg::new(b.client, b.server, SYN, 77, 0).options(&[2, 4, 5, 0xb4]);
        for _ in 0..2 {
            let probe = b.lan(&syn, &[DROP(DropReason::UnexpectedSyn)]).one_to_server();
            assert_eq!((probe.src, probe.dst, probe.flags, probe.seq), (b.client, pool, ACK, 77));
        }
        assert_eq!(b.pipe.flow_counts(), (0, 0), "the SYN itself never passes");
        has_ended.store(true, Relaxed);
        assert_eq!(b.lan(&syn, &[Moved::Opened]).one_to_server().flags, SYN);
    }
}

#[test]
fn refused_by_other_rules_both_ends_get_an_exact_rst_with_the_next_packet() {
    for family in BOTH {
        let (mut b, n, carried) = carried(family, Setup::new());
        let mut spec = Setup::new().spec;
        spec.otherwise = weir_core::policy::Action::Reset;
        let policy = std::sync::Arc::new(weir_tests::bench::policy(2, [spec]));
        let fib = std::sync::Arc::new(weir_tests::bench::fib(1500));
        b.pipe.set_snapshot(b.now, policy, fib);
        let mut tally = weir_core::reevaluate::Tally::default();
        b.pipe.reevaluate(b.now, 0, 64, &mut tally, &mut b.out);
        assert!(b.collect().is_nothing(), "nobody knows the numbers yet");
        assert_eq!(left(&mut b), [carried.names]);
        let (c, s) = far(&b, n);
        let came = b.wan(&s.clone().payload("data"), &[DROP(DropReason::VerdictReset)]);
        let (to_server, to_client) = (came.to_server(), came.to_client());
        assert_eq!((to_server[0].flags, to_server[0].seq), (RST, s.ack));
        assert_eq!((to_client[0].flags & RST, to_client[0].seq), (RST, s.seq));
        assert_eq!(b.lan(&c, &[DROP(DropReason::VerdictReset)]).one_to_client().seq, c.ack);
    }
}

#[test]
fn idle_connection_is_forgotten_only_when_the_program_saw_nothing_either() {
    let idle = Nanos::from_secs(2 * 3600 + 301);
    for family in BOTH {
        let (mut b, _, carried) = carried(family, Setup::new());
        let key = carried.names.key();
        b.wait(idle, &[]);
        assert_eq!(std::mem::take(&mut b.out.express), [ExpressOp::Ask(carried.names)]);
        let passed = Passed { seen: Nanos(b.now.0 - 1_000_000_000), ..Passed::default() };
        b.pipe.handle_seen(&key, Some(&passed), &mut b.out);
        b.wait(idle, &[]);
        assert_eq!(std::mem::take(&mut b.out.express), [ExpressOp::Ask(carried.names)]);
        b.pipe.handle_seen(&key, Some(&passed), &mut b.out);
        assert_eq!((left(&mut b), b.pipe.flow_counts()), (vec![carried.names], (0, 0)));
    }
}

#[test]
fn route_change_takes_back_those_whose_way_it_is() {
    for family in BOTH {
        for moves in [true, false] {
            let (mut b, n, carried) = carried(family, Setup::new());
            let mut after = weir_tests::bench::fib(1500);
            let router: std::net::IpAddr = weir_tests::bench::pool_server(family, 0).0;
            let server = if moves { b.server.0 } else { weir_tests::bench::pool_server(family, 1).0 };
            let route = weir_core::fib::Route::Via(WAN, router);
            match ipnet::IpNet::from(server) {
                ipnet::IpNet::V4(net) => drop(after.v4.insert(net, route)),
                ipnet::IpNet::V6(net) => drop(after.v6.insert(net, route)),
            }
            let policy = std::sync::Arc::new(weir_tests::bench::policy(1, [Setup::new().spec]));
            b.pipe.set_snapshot(b.now, policy, std::sync::Arc::new(after));
            assert_eq!(b.pipe.reroute(0, 1000, false, &mut b.out), None);
            assert_eq!(left(&mut b), if moves { vec![carried.names] } else { vec![] });
            if moves {
                let ops = pass(&mut b, n, 40);
                assert!(matches!(ops[..], [ExpressOp::Enter(c)] if c.to_server.1.ip() == router), "{ops:?}");
            }
        }
    }
}

#[test]
fn adopted_connection_is_listed_and_its_end_is_translated() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::answer());
        b.pipe.set_lanes(lanes());
        let end = |(addr, port): (std::net::IpAddr, u16)| Endpoint { addr: addr.into(), port };
        let client = Tuple { src: end(b.client), dst: end(b.server) };
        let pool = weir_tests::bench::pool_server(family, 0);
        let server = Tuple { src: client.src, dst: end(pool) };
        let up = Translation {
            client,
            server,
            delta: 1000,
            start: Seq(1),
            prefix: 0,
            base: Seq(1),
            timestamps: TimestampMode::None,
            sack: true,
            server_scale: 0,
            shift_to_client: 0,
            shift_to_server: 0,
            ecn: true,
            acked: true,
        };
        let names = Names { client, server };
        let adopted =
            Adopted { names, up: Some(up), seen: b.now, fins: (false, true), stands_by: false, note: None };
        assert!(b.pipe.adopt(b.now, &adopted));
        assert!(!b.pipe.adopt(b.now, &adopted), "its addresses are taken");
        let view = b.pipe.views(b.now, 0, 2).0.remove(0);
        assert_eq!((view.lane, view.reason.as_str(), view.server), (Some("express"), "adopted", pool.into()));
        let fin = Seg::new(b.client, b.server, FIN | ACK, 70, 5000);
        let seen = b.lan(&fin, &[]).one_to_server();
        assert_eq!((seen.dst, seen.seq, seen.ack, seen.flags), (pool, 70, 4000, FIN | ACK));
        // The server's FIN had passed before: its acknowledgment of this one is the end.
        ended(&mut b, names, (false, true), &Passed { fins: (false, true), ..Passed::default() });
        b.wan(&Seg::new(pool, b.client, ACK, 4000, 71), &[]).one_to_client();
        assert_eq!(left(&mut b), [names]);
        b.wait(Nanos::from_secs(61), &[]);
        assert_eq!((b.pipe.flow_counts(), b.pipe.leg_count()), ((0, 0), 0));
    }
}

/// A bench with a lane that stands by, a connection for which it does, and what it has of it.
fn stood_by(family: Family) -> (Bench, u32, Carried) {
    let mut b = Bench::of(family, Setup::new());
    b.pipe.set_lanes(standby());
    let n = b.allowed_http();
    b.wan(&b.s(0, n), &[]);
    assert_eq!(pass(&mut b, n, 100), [], "young ones end before it would matter");
    b.wait(Nanos::from_millis(1500), &[]);
    let ops = std::mem::take(&mut b.out.express);
    let [ExpressOp::Enter(carried)] = ops[..] else { panic!("one enters: {ops:?}") };
    assert!(carried.stands_by);
    assert!(b.pipe.handle_entered(&carried.names.key(), true));
    assert_eq!((b.pipe.express_flows(), b.pipe.standby_flows()), (0, 1));
    (b, n, carried)
}

#[test]
fn connection_that_the_program_stands_by_for_is_carried_and_ended_by_its_worker() {
    for family in BOTH {
        let (mut b, n, carried) = stood_by(family);
        let view = b.pipe.views(b.now, 0, 1).0.remove(0);
        assert_eq!((view.lane, view.lane_reason), (Some("worker"), Some(Stay::Standby.name())));
        assert_eq!(pass(&mut b, n, 200), []);
        // An RST that its receiver would not believe does not pass: the worker knows the windows.
        let (c, _) = far(&b, n);
        b.lan(&c.flags(RST), &[DROP(DropReason::RstOutOfWindow)]);
        let fin = b.c(n).flags(FIN | ACK);
        b.lan(&fin, &[]).one_to_server();
        ended(&mut b, carried.names, (true, false), &Passed::default());
        b.lan(&fin, &[]).one_to_server();
        assert_eq!(b.out.express, [], "it is known");
        b.wan(&b.s(0, n + 1).flags(FIN | ACK), &[]).one_to_client();
        ended(&mut b, carried.names, (true, true), &Passed { fins: (true, false), ..Passed::default() });
        let last = Seg { seq: fin.seq.wrapping_add(1), ack: fin.ack.wrapping_add(1), ..b.c(n) };
        b.lan(&last, &[]).one_to_server();
        assert_eq!(left(&mut b), [carried.names], "nobody takes it for one that goes on");
        b.wait(Nanos::from_secs(61), &[]);
        assert_eq!((b.pipe.flow_counts(), b.pipe.standby_flows()), ((0, 0), 0));
    }
}

#[test]
fn what_the_program_has_carried_meanwhile_moves_the_numbers_of_its_worker() {
    for family in BOTH {
        let (mut b, n, carried) = stood_by(family);
        let seen = 3_000_000;
        let (c, s) = (b.c(n.wrapping_add(seen)), b.s(seen, n.wrapping_add(seen)));
        for _ in 0..3 {
            b.lan(&Seg { ack: s.seq, ..c.clone() }, &[]).one_to_server();
            b.wan(&s, &[]).one_to_client();
        }
        let passed = Passed { packets_to_server: 7, bytes_to_client: 5000, ..Passed::default() };
        let view = b.pipe.views_with(b.now, 0, 1, |_| Some(passed)).0.remove(0);
        assert!(view.packets_to_server > Some(7) && view.bytes_to_client == 5000);
        b.lan(&Seg { ack: s.seq, ..c.clone() }.flags(RST), &[]).one_to_server();
        assert_eq!(left(&mut b), [carried.names], "the RST is exact, and ends it");
    }
}

/// While there was no sign of life the program sent on what ends a connection.
#[test]
fn ends_that_passed_while_no_worker_looked_are_learned_from_the_program() {
    for family in BOTH {
        let fins =
            |client, server| Passed { fins: (client, server), packets_to_server: 3, ..Passed::default() };
        // Both of them: nothing more comes, and it is asked for.
        let (mut b, _, carried) = stood_by(family);
        assert_eq!(b.pipe.reroute(0, 1000, true, &mut b.out), None);
        assert_eq!(std::mem::take(&mut b.out.express), [ExpressOp::Ask(carried.names)]);
        b.pipe.handle_seen(&carried.names.key(), Some(&fins(true, true)), &mut b.out);
        assert_eq!(left(&mut b), [carried.names]);
        b.wait(Nanos::from_secs(61), &[]);
        assert_eq!(b.pipe.flow_counts().0, 1, "whether they were acknowledged nobody knows");
        b.wait(Nanos::from_secs(241), &[]);
        assert_eq!((b.pipe.flow_counts(), b.pipe.standby_flows()), ((0, 0), 0));

        // The client's; and the rest comes here, before anybody has asked.
        let (mut b, n, carried) = stood_by(family);
        b.wan(&b.s(0, n + 1).flags(FIN | ACK), &[]).one_to_client();
        let last = Seg { seq: b.c(n).seq.wrapping_add(1), ack: b.c(n).ack.wrapping_add(1), ..b.c(n) };
        b.lan(&last, &[]).one_to_server();
        ended(&mut b, carried.names, (false, true), &fins(true, false));
        assert_eq!(left(&mut b), [carried.names]);
        b.wait(Nanos::from_secs(61), &[]);
        assert_eq!(b.pipe.flow_counts(), (0, 0));

        // An RST, which may have ended it.
        let (mut b, _, carried) = stood_by(family);
        let passed = Passed { rst: true, seen: b.now, ..Passed::default() };
        b.pipe.handle_seen(&carried.names.key(), Some(&passed), &mut b.out);
        b.wait(Nanos::from_secs(241), &[]);
        assert_eq!(std::mem::take(&mut b.out.express), [ExpressOp::Ask(carried.names)]);
        b.pipe.handle_seen(&carried.names.key(), Some(&passed), &mut b.out);
        assert_eq!((left(&mut b), b.pipe.flow_counts()), (vec![carried.names], (0, 0)));
    }
}

#[test]
fn adopted_connection_with_large_windows_ends_when_both_ends_have_finished() {
    for family in BOTH {
        let (mut b, names) = adopted_standby(family);
        let c = Seg::new(b.client, b.server, ACK, 70, 5000);
        let s = Seg::new(b.server, b.client, ACK, 5000, 70);
        for _ in 0..2 {
            b.lan(&c, &[]).one_to_server();
            b.wan(&s, &[]).one_to_client();
        }
        // Far more than a window without scaling is under way when the server finishes.
        for at in (0..300_000).step_by(1000) {
            b.wan(&Seg { seq: s.seq + at, ..s.clone() }.payload([7; 1000]), &[]).one_to_client();
        }
        b.wan(&Seg { seq: s.seq + 300_000, ..s.clone() }.flags(FIN | ACK), &[]).one_to_client();
        ended(&mut b, names, (false, true), &Passed::default());
        let fin = Seg { ack: s.seq + 300_001, ..c.clone() }.flags(FIN | ACK);
        b.lan(&fin, &[]).one_to_server();
        ended(&mut b, names, (true, true), &Passed { fins: (false, true), ..Passed::default() });
        b.wan(&Seg { seq: s.seq + 300_001, ack: c.seq + 1, ..s }, &[]).one_to_client();
        assert_eq!(left(&mut b), [names]);
        b.wait(Nanos::from_secs(61), &[]);
        assert_eq!(b.pipe.flow_counts(), (0, 0));
    }
}

/// Its own windows nobody knows either.
#[test]
fn adopted_connection_that_the_program_carried_ends_although_its_last_segments_come_twice() {
    for family in BOTH {
        let (mut b, names) = adopted(family, false);
        let c = Seg::new(b.client, b.server, ACK, 71, 5000);
        let s = Seg::new(b.server, b.client, ACK, 5000, 71);
        b.lan(&Seg { seq: 70, ..c.clone() }.flags(FIN | ACK), &[]).one_to_server();
        ended(&mut b, names, (false, false), &Passed::default());
        b.wan(&s, &[]).one_to_client();
        ended(&mut b, names, (true, false), &Passed::default());
        b.lan(&c, &[]).one_to_server();
        let last = Seg { seq: s.seq + 299_000, ..s.clone() }.payload([7; 1000]);
        b.wan(&last, &[]).one_to_client();
        b.wan(&Seg { seq: s.seq + 300_000, ..s.clone() }.flags(FIN | ACK), &[]).one_to_client();
        ended(&mut b, names, (true, true), &Passed { fins: (true, false), ..Passed::default() });
        b.wan(&last, &[]).one_to_client();
        b.lan(&Seg { ack: s.seq + 300_001, ..c }, &[]).one_to_server();
        assert_eq!(left(&mut b), [names]);
        b.wait(Nanos::from_secs(61), &[]);
        assert_eq!((b.pipe.flow_counts(), b.pipe.standby_flows()), ((0, 0), 0));
    }
}

#[test]
fn connection_goes_to_whoever_is_to_carry_it_now() {
    for family in BOTH {
        let (mut b, n, carried) = stood_by(family);
        b.pipe.set_lanes(lanes());
        assert_eq!(b.pipe.reroute(0, 1000, false, &mut b.out), None);
        assert_eq!(left(&mut b), [carried.names]);
        let ops = pass(&mut b, n, 20);
        assert!(matches!(ops[..], [ExpressOp::Enter(carried)] if !carried.stands_by), "{ops:?}");
    }
}

#[test]
fn connection_that_was_there_before_the_lane_is_stood_by_for_as_well() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::new());
        let n = b.allowed_http();
        b.wan(&b.s(0, n), &[]);
        b.wait(Nanos::from_secs(2), &[]);
        b.pipe.set_lanes(standby());
        assert_eq!(b.pipe.reroute(0, 1000, false, &mut b.out), None);
        assert!(matches!(b.out.express[..], [ExpressOp::Enter(carried)] if carried.stands_by));
        assert_eq!(b.pipe.standby_flows(), 1);
        b.out.express.clear();
        assert_eq!(b.pipe.reroute(0, 1000, false, &mut b.out), None);
        assert_eq!(b.out.express, [], "the way is the same");
    }
}

/// After a change the walk over a table is one of many breaths.
#[test]
fn walk_in_pieces_lets_each_connection_be_stood_by_for_once_and_comes_to_its_end() {
    const PIECE: u32 = 3;
    for family in BOTH {
        let mut b = Bench::of(family, Setup::new());
        let ports: Vec<u16> = (0..8).map(|n| b.client.1 + n).collect();
        for port in &ports {
            b.client.1 = *port;
            let n = b.allowed_http();
            b.wan(&b.s(0, n), &[]);
        }
        b.wait(Nanos::from_secs(2), &[]);
        b.pipe.set_lanes(standby());
        let (mut next, mut entered) = (Some(0), Vec::new());
        while let Some(from) = next {
            next = b.pipe.reroute(from, PIECE, false, &mut b.out);
            assert!(next.is_none_or(|next| next == from + PIECE), "from {from} to {next:?}");
            let ops = std::mem::take(&mut b.out.express);
            assert!(ops.len() <= PIECE as usize, "{ops:?}");
            entered.extend(ops.iter().map(|op| match op {
                ExpressOp::Enter(carried) if carried.stands_by => carried.names.client.src.port,
                other => panic!("{other:?}"),
            }));
        }
        entered.sort_unstable();
        assert_eq!((entered, b.pipe.standby_flows()), (ports, 8));
        // Nothing has changed since.
        assert!(walk(&mut b).is_empty());
        // The lane carries itself now: each is taken back once.
        b.pipe.set_lanes(lanes());
        assert_eq!((walk(&mut b).len(), b.pipe.standby_flows()), (8, 0));
    }
}

/// What a walk over all connections takes back.
fn walk(b: &mut Bench) -> Vec<Names> {
    let mut next = Some(0);
    while let Some(from) = next {
        next = b.pipe.reroute(from, 5, false, &mut b.out);
    }
    left(b)
}

#[test]
fn program_without_room_leaves_the_connection_with_its_worker() {
    for family in BOTH {
        let (mut b, n, carried) = stood_by(family);
        assert!(b.pipe.handle_entered(&carried.names.key(), false));
        let view = b.pipe.views(b.now, 0, 1).0.remove(0);
        assert_eq!((view.lane_reason, b.pipe.standby_flows()), (Some(Stay::NoRoom.name()), 0));
        assert_eq!(pass(&mut b, n, 40), []);
    }
}

/// A connection that stood by, with the next process.
fn adopted_standby(family: Family) -> (Bench, Names) {
    adopted(family, true)
}

/// The same, or one that the program carries.
fn adopted(family: Family, stands_by: bool) -> (Bench, Names) {
    let mut b = Bench::of(family, Setup::new());
    b.pipe.set_lanes(if stands_by { standby() } else { lanes() });
    let end = |(addr, port): (std::net::IpAddr, u16)| Endpoint { addr: addr.into(), port };
    let client = Tuple { src: end(b.client), dst: end(b.server) };
    let names = Names { client, server: client };
    let adopted = Adopted { names, up: None, seen: b.now, fins: (false, false), stands_by, note: None };
    assert!(b.pipe.adopt(b.now, &adopted));
    (b, names)
}

#[test]
fn connection_that_stood_by_is_a_workers_again_with_the_next_process() {
    for family in BOTH {
        let (mut b, names) = adopted_standby(family);
        let view = b.pipe.views(b.now, 0, 2).0.remove(0);
        assert_eq!((view.lane, view.lane_reason), (Some("worker"), Some(Stay::Standby.name())));
        assert_eq!((b.pipe.express_flows(), b.pipe.standby_flows()), (0, 1));
        let (c, s) =
            (Seg::new(b.client, b.server, ACK, 70, 5000), Seg::new(b.server, b.client, ACK, 5000, 70));
        for _ in 0..2 {
            b.lan(&c, &[]).one_to_server();
            b.wan(&s, &[]).one_to_client();
        }
        b.lan(&c.flags(RST), &[]).one_to_server();
        assert_eq!(left(&mut b), [names]);
    }
}
