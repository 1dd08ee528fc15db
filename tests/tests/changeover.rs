//! Into the express lane and out of it. The program is played here: what it carries does not come to the pipeline.

use weir_core::drop::DropReason;
use weir_core::express::{Adopted, Carried, ExpressOp, Lanes, Names, Passed, Stay};
use weir_core::flow::key::Tuple;
use weir_core::ids::Nanos;
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

/// A bench with a lane, and a connection in it that `n` octets of the client opened.
fn carried(family: Family, setup: Setup) -> (Bench, u32, Carried) {
    let mut b = Bench::of(family, setup);
    b.pipe.set_lanes(lanes());
    let n = b.allowed_http();
    b.wan(&b.s(0, n), &[]);
    let ops = pass(&mut b, n, 20);
    let [ExpressOp::Enter(carried)] = ops[..] else { panic!("one enters: {ops:?}") };
    b.pipe.handle_entered(&carried.names.key(), true);
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
        b.pipe.handle_entered(&carried.names.key(), false);
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
        assert_eq!(left(&mut b), [carried.names]);
        let passed = Passed { packets_to_server: 7, bytes_to_client: 5000, ..Passed::default() };
        b.pipe.handle_passed(&carried.names.key(), &passed);
        let view = b.pipe.views(b.now, 0, 1).0.remove(0);
        assert_eq!((view.lane, view.lane_reason), (Some("worker"), Some("ending")));
        assert!(view.packets_to_server > Some(7) && view.bytes_to_client == 5000);
        // The server sends the rest, and then its own FIN.
        let rest = Seg { ack: c.seq + 1, ..s.clone() };
        b.wan(&rest.clone().payload("rest"), &[]).one_to_client();
        let fin = Seg { seq: s.seq.wrapping_add(4), ..rest }.flags(FIN | ACK);
        b.wan(&fin, &[]).one_to_client();
        let last = Seg { seq: c.seq.wrapping_add(1), ack: fin.seq.wrapping_add(1), ..c };
        b.lan(&last, &[]).one_to_server();
        b.wait(Nanos::from_secs(61), &[]);
        assert_eq!((b.pipe.flow_counts(), b.pipe.express_flows()), ((0, 0), 0));
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
            assert_eq!(b.pipe.reroute(0, 1000, &mut b.out), None);
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
        let adopted = Adopted { names, up: Some(up), seen: b.now, fins: (false, true), note: None };
        assert!(b.pipe.adopt(b.now, &adopted));
        assert!(!b.pipe.adopt(b.now, &adopted), "its addresses are taken");
        let view = b.pipe.views(b.now, 0, 2).0.remove(0);
        assert_eq!((view.lane, view.reason.as_str(), view.server), (Some("express"), "adopted", pool.into()));
        let fin = Seg::new(b.client, b.server, FIN | ACK, 70, 5000);
        let seen = b.lan(&fin, &[]).one_to_server();
        assert_eq!((seen.dst, seen.seq, seen.ack, seen.flags), (pool, 70, 4000, FIN | ACK));
        assert_eq!(left(&mut b), [names]);
        // The server's FIN had passed before: its acknowledgment of this one is the end.
        b.wan(&Seg::new(pool, b.client, ACK, 4000, 71), &[]).one_to_client();
        b.wait(Nanos::from_secs(61), &[]);
        assert_eq!((b.pipe.flow_counts(), b.pipe.leg_count()), ((0, 0), 0));
    }
}
